package hosts_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"chancery/client"
)

// liar stands between an agent and its authority, as only somebody can who has the node's key and the agent's. It changes
// the certificates that are answered, and withholds CRLs.
type liar struct {
	mu       sync.Mutex
	answer   func(*client.Certificate)
	withhold bool // CRLs
}

// withholds says whether CRLs are handed on.
func (l *liar) withholds(so bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.withhold = so
}

// change says how; nil hands on what the authority says.
func (l *liar) change(f func(*client.Certificate)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answer = f
}

// between puts a liar before a host's authority.
func (w *world) between(t testing.TB, h *host) *liar {
	t.Helper()
	path := filepath.Join(h.state, "identity.json")
	text, err := os.ReadFile(path)
	must(t, err)
	id := decode[map[string]any](t, string(text))
	agent, err := tls.X509KeyPair([]byte(id["certificate"].(string)+id["chain"].(string)), []byte(id["key"].(string)))
	must(t, err)
	node, err := os.ReadFile(filepath.Join(string(w.dir), "node-tls.pem"))
	must(t, err)
	served, err := tls.X509KeyPair(node, node)
	must(t, err)
	roots, err := client.RootsFile(w.dir.IdentityRoot())
	must(t, err)
	target, err := url.Parse(id["address"].(string))
	must(t, err)
	l := &liar{}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{agent}, ServerName: "localhost"}}
	proxy.ModifyResponse = l.modify
	s := httptest.NewUnstartedServer(proxy)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{served}, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, _ := strings.Cut(s.Listener.Addr().String(), ":")
	id["address"] = "https://localhost:" + port
	text, err = json.Marshal(id)
	must(t, err)
	must(t, os.WriteFile(path, text, 0o600))
	return l
}

func (l *liar) modify(answer *http.Response) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.withhold && strings.Contains(answer.Request.URL.Path, "/crls/") {
		answer.Body.Close()
		answer.StatusCode, answer.Body, answer.ContentLength = http.StatusNotFound, http.NoBody, 0
		answer.Header.Del("Content-Length")
		return nil
	}
	issues := strings.HasSuffix(answer.Request.URL.Path, "/certificates") || strings.HasSuffix(answer.Request.URL.Path, "/rekey")
	if l.answer == nil || !issues || answer.StatusCode >= 300 {
		return nil
	}
	var result client.IssueResult
	if err := json.NewDecoder(answer.Body).Decode(&result); err != nil {
		return err
	}
	answer.Body.Close()
	l.answer(result.Certificate)
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	answer.Body, answer.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	answer.Header.Set("Content-Length", strconv.Itoa(len(text)))
	return nil
}
