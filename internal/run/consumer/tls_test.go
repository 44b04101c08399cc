package consumer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// selfSigned writes a certificate for localhost that is its own CA, in which libvirtd finds nothing to complain of, and
// its key.
func selfSigned(t *testing.T, dir string, authority *x509.Certificate, authorityKey *ecdsa.PrivateKey) (certificate, key string, c *x509.Certificate, private *ecdsa.PrivateKey) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true,
	}
	if authority == nil {
		template.Subject.CommonName, template.IsCA, template.KeyUsage = "root", true, x509.KeyUsageCertSign
		authority, authorityKey = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority, &private.PublicKey, authorityKey)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, c.Subject.CommonName+".pem"), filepath.Join(dir, c.Subject.CommonName+".key")
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: encoded}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key, c, private
}

func TestLibvirtdAnswersVirsh(t *testing.T) {
	dir, err := os.MkdirTemp("", "virt") // a socket's path may have 107 octets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	trust, _, authority, authorityKey := selfSigned(t, dir, nil, nil)
	certificate, key, _, _ := selfSigned(t, dir, authority, authorityKey)
	d, err := StartLibvirtd(t.Context(), dir, fmt.Sprintf("cert_file = %q", certificate), fmt.Sprintf("key_file = %q", key), fmt.Sprintf("ca_file = %q", trust))
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{trust: "cacert.pem", certificate: "clientcert.pem", key: "clientkey.pem"} {
		if err := os.Symlink(from, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("virsh", "-q", "-c", d.URI("localhost", dir), "list").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "test") {
		t.Errorf("virsh: %v: %s", err, out)
	}
	out, err = exec.Command("virt-admin", "-q", "-c", d.AdminURI(), "srv-list").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "libvirtd") {
		t.Errorf("virt-admin: %v: %s", err, out)
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestLibvirtdThatRefusesItsFilesSaysWhy(t *testing.T) {
	dir, err := os.MkdirTemp("", "virt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	certificate, key, _, _ := selfSigned(t, dir, nil, nil)
	_, err = StartLibvirtd(t.Context(), dir, fmt.Sprintf("cert_file = %q", certificate), fmt.Sprintf("key_file = %q", key))
	if err == nil || !strings.Contains(err.Error(), "No CA certificate path set") {
		t.Fatalf("error %v", err)
	}
}

func TestNginxAnswersByName(t *testing.T) {
	dir := t.TempDir()
	_, _, authority, authorityKey := selfSigned(t, dir, nil, nil)
	certificate, key, leaf, _ := selfSigned(t, dir, authority, authorityKey)
	n, err := StartNginx(t.Context(), dir, NginxServer{Names: []string{"localhost"}, Certificate: certificate, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	_, port, _ := net.SplitHostPort(n.Address)
	answer, err := (&http.Client{Transport: transport}).Get("https://localhost:" + port + "/")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK || !answer.TLS.PeerCertificates[0].Equal(leaf) {
		t.Errorf("answer %s of %s", answer.Status, answer.TLS.PeerCertificates[0].Subject)
	}
	if pid, err := os.ReadFile(n.PIDFile); err != nil || strings.TrimSpace(string(pid)) != fmt.Sprint(n.PID()) {
		t.Errorf("the file of its process ID says %q (%v), not %d", pid, err, n.PID())
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
}
