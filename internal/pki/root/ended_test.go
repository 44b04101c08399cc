package root

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// javaPath builds a path from a leaf to a root with the intermediates of a file, as Java's PKIX does.
const javaPath = `import java.io.*; import java.security.cert.*; import java.util.*;
class Path {
  static List<X509Certificate> all(String file) throws Exception {
    List<X509Certificate> found = new ArrayList<>();
    try (InputStream in = new FileInputStream(file)) {
      for (Certificate c : CertificateFactory.getInstance("X.509").generateCertificates(in)) found.add((X509Certificate) c);
    }
    return found;
  }
  public static void main(String[] a) throws Exception {
    X509CertSelector leaf = new X509CertSelector();
    leaf.setCertificate(all(a[2]).get(0));
    PKIXBuilderParameters p = new PKIXBuilderParameters(Set.of(new TrustAnchor(all(a[0]).get(0), null)), leaf);
    List<Certificate> between = new ArrayList<>(all(a[1]));
    between.add(all(a[2]).get(0));
    p.addCertStore(CertStore.getInstance("Collection", new CollectionCertStoreParameters(between)));
    p.setRevocationEnabled(false);
    CertPathBuilder.getInstance("PKIX").build(p);
    System.out.println("built");
  }
}`

// TestRenewedAndTheOneBeforeEnded: relying parties that have both certificates of a renewed issuer, of which the one before has ended,
// find the way up by the other one, in whichever order they have them. So a renewal needs no order among those who trust the root.
func TestRenewedAndTheOneBeforeEnded(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	rootKey, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(err)
	r, err := New(Options{Subject: name(t, "CN=Root,O=Example"), PathLen: 1}, rootKey, now.AddDate(-4, 0, 0))
	must(err)
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(err)
	spki, err := cert.MarshalPublicKey(key.Public())
	must(err)
	old, err := r.SignIssuer(Options{Subject: name(t, "CN=Issuer,O=Example"), Validity: 2 * 365 * 24 * time.Hour}, spki, cert.Issuer{}, now.AddDate(-3, 0, 0))
	must(err)
	renewed, err := r.RenewIssuer(old, 0, cert.Issuer{}, now)
	must(err)
	if !now.After(old.NotAfter) {
		t.Fatal("the one before has not ended")
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(5), Subject: pkix.Name{CommonName: "a.example"}, DNSNames: []string{"a.example"}, NotBefore: now.AddDate(-2, 0, 0),
		NotAfter: now.AddDate(0, 1, 0), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, old, key.Public(), key)
	must(err)
	dir := t.TempDir()
	file := func(name string, ders ...[]byte) string {
		var text []byte
		for _, der := range ders {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		must(os.WriteFile(filepath.Join(dir, name), text, 0o600))
		return filepath.Join(dir, name)
	}
	run := func(program string, args ...string) string {
		t.Helper()
		out, err := exec.Command(program, args...).CombinedOutput()
		if err != nil {
			t.Errorf("%s %v: %v\n%s", program, args, err, out)
		}
		return string(out)
	}
	top, leaf := file("root.pem", r.Certificate.Raw), file("leaf.pem", der)
	must(os.WriteFile(filepath.Join(dir, "Path.java"), []byte(javaPath), 0o600))
	for _, order := range []struct {
		name  string
		certs [2]*x509.Certificate
	}{{"old-first", [2]*x509.Certificate{old, renewed}}, {"new-first", [2]*x509.Certificate{renewed, old}}} {
		first, second := order.certs[0].Raw, order.certs[1].Raw
		both, trusted := file(order.name+".pem", first, second), file(order.name+"-trusted.pem", first, second, r.Certificate.Raw)
		run("openssl", "verify", "-CAfile", top, "-untrusted", both, leaf)
		run("openssl", "verify", "-CAfile", trusted, leaf)
		run("openssl", "verify", "-partial_chain", "-CAfile", both, leaf)
		if out := run("certtool", "--verify", "--load-ca-certificate", trusted, "--infile", leaf); !strings.Contains(out, "Verified.") {
			t.Errorf("%s: certtool with both trusted: %s", order.name, out)
		}
		store := "sql:" + filepath.Join(dir, order.name)
		must(os.Mkdir(filepath.Join(dir, order.name), 0o700))
		run("certutil", "-N", "-d", store, "--empty-password")
		run("certutil", "-A", "-d", store, "-n", "root", "-t", "C,,", "-a", "-i", top)
		for i, c := range order.certs {
			run("certutil", "-A", "-d", store, "-n", "issuer"+string(rune('1'+i)), "-t", ",,", "-a", "-i", file("one.pem", c.Raw))
		}
		run("certutil", "-A", "-d", store, "-n", "leaf", "-t", ",,", "-a", "-i", leaf)
		if out := run("certutil", "-V", "-u", "V", "-d", store, "-n", "leaf"); !strings.Contains(out, "certificate is valid") {
			t.Errorf("%s: certutil: %s", order.name, out)
		}
		if out := run("java", "-Xshare:auto", filepath.Join(dir, "Path.java"), top, both, leaf); !strings.Contains(out, "built") {
			t.Errorf("%s: java: %s", order.name, out)
		}
	}
}
