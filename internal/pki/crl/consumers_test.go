package crl

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run starts a real program and returns what it printed. A program that is not installed fails the test.
func run(t *testing.T, dir string, program string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is needed by this test: %v", program, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustRun(t *testing.T, dir string, program string, args ...string) string {
	t.Helper()
	out, err := run(t, dir, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return out
}

// files lays issuer.pem, list.der and list.pem in a directory of their own.
func files(t *testing.T, issuer testIssuer, spec *Spec, entries []Entry) string {
	t.Helper()
	dir := t.TempDir()
	der, err := Encode(spec, entries, issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	w := NewPEMWriter(&text)
	w.Write(der)
	w.Close()
	for name, content := range map[string][]byte{
		"issuer.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.certificate.Raw}),
		"issuer.der": issuer.certificate.Raw,
		"list.der":   der,
		"list.pem":   text.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOpenSSLReadsAndVerifies(t *testing.T) {
	for name, issuer := range issuers(t) {
		dir := files(t, issuer, issuer.spec(0x1234), someEntries())
		out := mustRun(t, dir, "openssl", "crl", "-in", "list.pem", "-CAfile", "issuer.pem", "-noout", "-text")
		for _, want := range []string{"verify OK", "X509v3 CRL Number", "4660", "Key Compromise", "Certificate Hold", "Invalidity Date", "Jan  2 03:04:05 2051 GMT"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: openssl does not say %q:\n%s", name, want, out)
			}
		}
		if n := strings.Count(out, "Serial Number:"); n != len(someEntries()) {
			t.Errorf("%s: openssl lists %d entries", name, n)
		}
	}
}

func TestOpenSSLReadsPartitionAndDelta(t *testing.T) {
	issuer := p256(t)
	spec := issuer.spec(9)
	spec.IDP = &IssuingDistributionPoint{URIs: []string{"http://pki.example/crl/a/3.crl"}, OnlyUserCerts: true}
	spec.BaseNumber = big.NewInt(7)
	out := mustRun(t, files(t, issuer, spec, someEntries()), "openssl", "crl", "-in", "list.pem", "-CAfile", "issuer.pem", "-noout", "-text")
	for _, want := range []string{"verify OK", "Issuing Distribution Point: critical", "URI:http://pki.example/crl/a/3.crl", "Only User Certificates", "Delta CRL Indicator: critical"} {
		if !strings.Contains(out, want) {
			t.Errorf("openssl does not say %q:\n%s", want, out)
		}
	}
	spec = issuer.spec(10)
	spec.Freshest = []string{"http://pki.example/crl/a/delta.crl"}
	out = mustRun(t, files(t, issuer, spec, nil), "openssl", "crl", "-in", "list.der", "-inform", "DER", "-noout", "-text")
	for _, want := range []string{"X509v3 Freshest CRL", "URI:http://pki.example/crl/a/delta.crl", "No Revoked Certificates"} {
		if !strings.Contains(out, want) {
			t.Errorf("openssl does not say %q:\n%s", want, out)
		}
	}
}

func TestGnuTLSReadsAndVerifies(t *testing.T) {
	for name, issuer := range issuers(t) {
		spec := issuer.spec(0x1234)
		spec.ThisUpdate = time.Now().Add(-time.Minute)
		spec.NextUpdate = spec.ThisUpdate.AddDate(0, 0, 7)
		dir := files(t, issuer, spec, someEntries()[:9])
		out := mustRun(t, dir, "certtool", "--crl-info", "--infile", "list.pem")
		for _, want := range []string{"CRL Number", "1234", "Authority Key Identifier", fmt.Sprintf("Revoked certificates (%d)", 9)} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: certtool does not say %q:\n%s", name, want, out)
			}
		}
		out = mustRun(t, dir, "certtool", "--verify-crl", "--infile", "list.pem", "--load-ca-certificate", "issuer.pem")
		if !strings.Contains(out, "Verification output: Verified") {
			t.Errorf("%s: certtool does not verify the list:\n%s", name, out)
		}
	}
}

// TestEmptyListOfGnuTLSIsRead reads a list of certtool's that revokes nothing: it writes an empty list of entries.
func TestEmptyListOfGnuTLSIsRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.tmpl", "cn = Foreign\nca\ncert_signing_key\ncrl_signing_key\n")
	write("crl.tmpl", "crl_number = 5\ncrl_next_update = 30\n")
	mustRun(t, dir, "certtool", "--generate-privkey", "--key-type", "ecdsa", "--outfile", "ca.key")
	mustRun(t, dir, "certtool", "--generate-self-signed", "--load-privkey", "ca.key", "--template", "ca.tmpl", "--outfile", "ca.pem")
	mustRun(t, dir, "certtool", "--generate-crl", "--load-ca-privkey", "ca.key", "--load-ca-certificate", "ca.pem", "--template", "crl.tmpl", "--outfile", "crl.pem")
	text, err := os.ReadFile(filepath.Join(dir, "crl.pem"))
	if err != nil {
		t.Fatal(err)
	}
	der, err := FromPEM(text)
	if err != nil {
		t.Fatal(err)
	}
	list, err := Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if list.Count != 0 || list.Number.Int64() != 5 || !list.revoked.Empty() {
		t.Errorf("read: %d entries, number %v", list.Count, list.Number)
	}
}

func TestNSSImports(t *testing.T) {
	issuer := p256(t)
	dir := files(t, issuer, issuer.spec(5), someEntries())
	mustRun(t, dir, "certutil", "-N", "-d", "sql:"+dir, "--empty-password")
	mustRun(t, dir, "certutil", "-A", "-d", "sql:"+dir, "-n", "issuer", "-t", "CT,C,C", "-i", "issuer.der")
	mustRun(t, dir, "crlutil", "-I", "-d", "sql:"+dir, "-i", "list.der", "-t", "1") // checks the signature
	out := mustRun(t, dir, "crlutil", "-L", "-d", "sql:"+dir, "-n", "issuer")
	if n := strings.Count(out, "Serial Number:"); n != len(someEntries()) {
		t.Errorf("NSS lists %d entries:\n%s", n, out)
	}
}

const javaReader = `
import java.io.*;
import java.security.cert.*;
public class Read {
  public static void main(String[] a) throws Exception {
    CertificateFactory f = CertificateFactory.getInstance("X.509");
    X509Certificate c = (X509Certificate) f.generateCertificate(new FileInputStream(a[0]));
    X509CRL l = (X509CRL) f.generateCRL(new FileInputStream(a[1]));
    l.verify(c.getPublicKey());
    System.out.println("entries " + l.getRevokedCertificates().size() + " critical " + l.getCriticalExtensionOIDs());
    for (X509CRLEntry e : l.getRevokedCertificates())
      System.out.println(e.getSerialNumber().toString(16) + " " + e.getRevocationReason() + " " + e.getRevocationDate().getTime());
  }
}`

func TestJavaReadsAndVerifies(t *testing.T) {
	issuer := p256(t)
	spec := issuer.spec(9)
	spec.IDP = &IssuingDistributionPoint{URIs: []string{"http://pki.example/crl/a/3.crl"}}
	dir := files(t, issuer, spec, someEntries())
	if err := os.WriteFile(filepath.Join(dir, "Read.java"), []byte(javaReader), 0o600); err != nil {
		t.Fatal(err)
	}
	out := mustRun(t, dir, "java", "Read.java", "issuer.pem", "list.pem")
	if !strings.Contains(out, fmt.Sprintf("entries %d critical [2.5.29.28]", len(someEntries()))) {
		t.Errorf("Java reads:\n%s", out)
	}
	for _, e := range someEntries() {
		line := fmt.Sprintf("%x %s %d", e.Serial, javaReasons[e.Reason], e.RevokedAt.UnixMilli())
		if !strings.Contains(out, line) {
			t.Errorf("Java does not read %q:\n%s", line, out)
		}
	}
}

var javaReasons = map[Reason]string{
	Unspecified: "null", KeyCompromise: "KEY_COMPROMISE", CACompromise: "CA_COMPROMISE", AffiliationChanged: "AFFILIATION_CHANGED",
	Superseded: "SUPERSEDED", CessationOfOperation: "CESSATION_OF_OPERATION", CertificateHold: "CERTIFICATE_HOLD",
	PrivilegeWithdrawn: "PRIVILEGE_WITHDRAWN", AACompromise: "AA_COMPROMISE",
}
