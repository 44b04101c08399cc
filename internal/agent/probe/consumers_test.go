package probe

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
)

// TestServedByNginx: each name is asked for by itself, since nginx chooses the certificate by it, and a reload is seen.
func TestServedByNginx(t *testing.T) {
	o := newOffice(t)
	dir := t.TempDir()
	both := issue(t, o.issuer, "a.test", server("a.test", "b.test"))
	onlyB := issue(t, o.issuer, "b.test", server("b.test"))
	certificateA, keyA := both.files(t, dir, "a")
	certificateB, keyB := onlyB.files(t, dir, "b")
	n, err := consumer.StartNginx(t.Context(), dir, consumer.NginxServer{Names: []string{"a.test"}, Certificate: certificateA, Key: keyA},
		consumer.NginxServer{Names: []string{"b.test"}, Certificate: certificateB, Key: keyB})
	if err != nil {
		t.Fatal(err)
	}
	p := probeOf(n.Address)
	_, err = served(t, p, both.cert, o.roots(), nil, time.Now())
	wantError(t, err, "for b.test", "was placed")
	p.Names = []string{"a.test"}
	if _, err := served(t, p, both.cert, o.roots(), nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	// A new certificate is not seen before the reload, and is seen after it.
	renewed := issue(t, o.issuer, "a.test", server("a.test"))
	renewed.files(t, dir, "a")
	_, err = served(t, p, renewed.cert, o.roots(), nil, time.Now())
	wantError(t, err, "was placed")
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	p.Timeout = recipe.Duration(time.Minute)
	if _, err := served(t, p, renewed.cert, o.roots(), nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := looked(t, p, nil); !IsDown(err) {
		t.Fatalf("after the end: %v", err)
	}
}

func TestServedByPostgreSQL(t *testing.T) {
	o := newOffice(t)
	dir := t.TempDir()
	certificate, key := o.leaf.files(t, dir, "pg")
	// PostgreSQL wants the key to be its own; the starter opens the way to the directory.
	own(t, "postgres", certificate, key)
	pg, err := consumer.StartPostgreSQL(t.Context(), dir, consumer.PostgreSQLOptions{
		Settings: []string{"ssl=on", "ssl_cert_file=" + certificate, "ssl_key_file=" + key},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := probeOf(pg.Address)
	if _, err := looked(t, p, nil); err == nil {
		t.Error("PostgreSQL spoke TLS without being asked in its protocol")
	}
	p.StartTLS = "postgres"
	seen, err := served(t, p, o.leaf.cert, o.roots(), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(seen.Path) != 2 {
		t.Errorf("the path has %d certificates", len(seen.Path))
	}
}

// own gives files to a user where this process is root.
func own(t *testing.T, user string, paths ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	u, err := System{}.User(user)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if err := os.Chown(p, u.UID, u.GID); err != nil {
			t.Fatal(err)
		}
	}
}

// virtual is an office with what libvirt wants: RSA keys, and both bits in keyUsage.
func virtual(t *testing.T, o *office, name string, changes ...func(*x509.Certificate)) *holder {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	both := func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }
	return issueFor(t, o.issuer, key, name, append(changes, both)...)
}

// critical makes extKeyUsage critical, as a profile for libvirt does.
func critical(c *x509.Certificate) {
	oid := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	value, _ := asn1.Marshal([]asn1.ObjectIdentifier{oid})
	c.ExtKeyUsage, c.ExtraExtensions = nil, []pkix.Extension{{Id: oidExtKeyUsage, Critical: true, Value: value}}
}

// startLibvirtd starts libvirtd on the files of h in dir.
func startLibvirtd(t *testing.T, h *holder, dir string, trust ...*x509.Certificate) (*consumer.Libvirtd, error) {
	t.Helper()
	certificate, key := h.files(t, dir, "server")
	authorities := filepath.Join(dir, "cacert.pem")
	write(t, authorities, keyfile.EncodeCertificates(trust...))
	return consumer.StartLibvirtd(t.Context(), dir, fmt.Sprintf("cert_file = %q", certificate), fmt.Sprintf("key_file = %q", key),
		fmt.Sprintf("ca_file = %q", authorities))
}

// TestServedByLibvirtd: the daemon refuses a server's certificate as a client's, and has shown its own by then; and virsh
// connects with what the probe found right.
func TestServedByLibvirtd(t *testing.T) {
	o := newOffice(t)
	dir := shortDir(t)
	h := virtual(t, o, "localhost", server("localhost", "127.0.0.1"), critical)
	d, err := startLibvirtd(t, h, dir, o.root.cert, o.issuer.cert)
	if err != nil {
		t.Fatal(err)
	}
	p := probeOf(d.Address)
	p.AcceptRefusal = true
	var seen *Seen
	for try := 0; try == 0 || err == nil && seen.Refused == "" && try < 20; try++ { // as in TestRefusedClientHasSeenTheServer
		seen, err = served(t, p, h.cert, o.roots(), h.tls(), time.Now())
	}
	if err != nil || seen.Refused == "" || !seen.Asked {
		t.Fatalf("saw %+v, error %v", seen, err)
	}
	good := virtual(t, o, "client1", client)
	p.AcceptRefusal = false
	if seen, err = served(t, p, h.cert, o.roots(), good.tls(), time.Now()); err != nil || seen.Refused != "" {
		t.Fatalf("saw %+v, error %v", seen, err)
	}
	pki := filepath.Join(dir, "pki")
	if err := os.Mkdir(pki, 0o700); err != nil {
		t.Fatal(err)
	}
	certificate, key := good.files(t, pki, "client")
	for from, to := range map[string]string{certificate: "clientcert.pem", key: "clientkey.pem"} {
		if err := os.Rename(from, filepath.Join(pki, to)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(pki, "cacert.pem"), keyfile.EncodeCertificates(o.root.cert, o.issuer.cert))
	out, err := exec.Command("virsh", "-q", "-c", d.URI("localhost", pki), "list").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "test") {
		t.Fatalf("virsh: %v: %s", err, out)
	}
}

// shortDir is a directory with a short name: a socket's path has 107 octets at most.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
