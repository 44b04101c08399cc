package consumer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// asks fetches a page over TLS, and wants a certificate shown and words said.
func asks(t *testing.T, address string, authority, leaf *x509.Certificate, words string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	_, port, _ := net.SplitHostPort(address)
	page := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	answer, err := page.Get("https://localhost:" + port + "/")
	for late := time.Now().Add(time.Minute); err != nil && time.Now().Before(late); { // a server that reloads opens its port anew, and resets who came in between
		time.Sleep(20 * time.Millisecond)
		answer, err = page.Get("https://localhost:" + port + "/")
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	if err = errors.Join(err, answer.Body.Close()); err != nil || !strings.HasPrefix(string(text), words) || !answer.TLS.PeerCertificates[0].Equal(leaf) {
		t.Errorf("%s %q of %s: %v", answer.Status, text, answer.TLS.PeerCertificates[0].Subject, err)
	}
}

func TestApacheServes(t *testing.T) {
	dir, err := os.MkdirTemp("", "apache") // its processes are another user's, and a test's own directory is closed to it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, _, authority, authorityKey := selfSigned(t, dir, nil, nil)
	certificate, key, leaf, _ := selfSigned(t, dir, authority, authorityKey)
	a, err := StartApache(t.Context(), dir, ApacheServer{Name: "localhost", Certificate: certificate, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	asks(t, a.Server.Address, authority, leaf, "hello")
	if err := a.Reload(); err != nil {
		t.Fatal(err)
	}
	asks(t, a.Server.Address, authority, leaf, "hello")
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestHAProxyServes(t *testing.T) {
	dir, err := os.MkdirTemp("", "haproxy") // a socket's path may have 107 octets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	_, _, authority, authorityKey := selfSigned(t, dir, nil, nil)
	certificate, key, leaf, _ := selfSigned(t, dir, authority, authorityKey)
	var all []byte
	for _, path := range []string{certificate, key} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	if err := os.WriteFile(dir+"/site.pem", all, 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := StartHAProxy(t.Context(), dir, HAProxyServer{Certificate: dir + "/site.pem"})
	if err != nil {
		t.Fatal(err)
	}
	asks(t, h.Server.Address, authority, leaf, "hello")
	if err := h.Reload(); err != nil {
		t.Fatal(err)
	}
	asks(t, h.Server.Address, authority, leaf, "hello")
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestStunnelHandsOn(t *testing.T) {
	dir := t.TempDir()
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	defer behind.Close()
	_, _, authority, authorityKey := selfSigned(t, dir, nil, nil)
	certificate, key, leaf, _ := selfSigned(t, dir, authority, authorityKey)
	s, err := StartStunnel(t.Context(), dir, StunnelServer{Connect: behind.Listener.Addr().String(), Certificate: certificate, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	asks(t, s.Server.Accept, authority, leaf, "hello")
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	asks(t, s.Server.Accept, authority, leaf, "hello")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}
