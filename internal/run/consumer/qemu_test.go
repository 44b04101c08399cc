package consumer

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// asQEMUHasIt puts a certificate, its key and its CA into a directory under the names that QEMU looks for.
func asQEMUHasIt(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	ca, _, authority, authorityKey := selfSigned(t, dir, nil, nil)
	certificate, key, leaf, _ := selfSigned(t, dir, authority, authorityKey)
	for from, to := range map[string]string{ca: "ca-cert.pem", certificate: "server-cert.pem", key: "server-key.pem"} {
		if err := os.Rename(from, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	return leaf
}

func TestQEMUReloadsItsDisplay(t *testing.T) {
	dir, err := os.MkdirTemp("", "qemu") // a socket's path may have 107 octets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	asQEMUHasIt(t, dir)
	q, err := StartQEMU(t.Context(), dir, QEMUMachine{Name: "m", TLS: dir})
	if err != nil {
		t.Fatal(err)
	}
	asQEMUHasIt(t, dir)
	if err := q.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "server-key.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := q.Reload(t.Context()); err == nil {
		t.Error("a display without a key is reloaded")
	}
	if err := q.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestJournalsTravel(t *testing.T) {
	dir := t.TempDir()
	trust, _, authority, authorityKey := selfSigned(t, dir, nil, nil)
	certificate, key, leaf, _ := selfSigned(t, dir, authority, authorityKey)
	r, err := StartJournalRemote(t.Context(), dir, JournalRemote{Certificate: certificate, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	conn, err := tls.Dial("tcp", r.Remote.Address, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err != nil || !conn.ConnectionState().PeerCertificates[0].Equal(leaf) {
		t.Fatalf("another certificate, or %v", err)
	}
	conn.Close()
	entry := filepath.Join(dir, "entry")
	if err := WriteJournalEntry(entry, "far", "hello from afar", time.Now()); err != nil {
		t.Fatal(err)
	}
	words := JournalUpload{URL: "https://" + r.Remote.Address, Certificate: certificate, Key: key, Trust: trust, Entries: entry}.Command()
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("journalctl", "-o", "cat", "--directory="+r.Remote.Output).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "hello from afar") {
		t.Errorf("received is %q: %v", out, err)
	}
}
