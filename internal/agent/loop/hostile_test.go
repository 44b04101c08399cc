package loop_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// wire stands between an agent and the node, with the node's own key: it can lose calls, lose answers, and lie.
type wire struct {
	t      testing.TB
	m      *machine
	server *httptest.Server
	client *http.Client

	mu    sync.Mutex
	lose  func(path string) (call, answer bool)       // guarded by mu
	lie   func(path string, sent, body []byte) []byte // guarded by mu
	calls map[string]int                              // guarded by mu
}

// onWire puts a wire between a machine and its node.
func onWire(t testing.TB, m *machine) *wire {
	t.Helper()
	w := &wire{t: t, m: m, calls: map[string]int{}}
	authority := filepath.Join(m.node.dir, "authority")
	pair, err := tls.LoadX509KeyPair(filepath.Join(authority, "node-tls.pem"), filepath.Join(authority, "node-tls.pem"))
	must(t, err)
	roots, err := client.RootsFile(filepath.Join(authority, "ca", "identity-root.pem"))
	must(t, err)
	file := filepath.Join(m.state, "identity.json")
	text, err := os.ReadFile(file)
	must(t, err)
	var identity map[string]any
	must(t, json.Unmarshal(text, &identity))
	own, err := tls.X509KeyPair([]byte(identity["certificate"].(string)+identity["chain"].(string)), []byte(identity["key"].(string)))
	must(t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}}
	w.client = &http.Client{Transport: transport}
	w.server = httptest.NewUnstartedServer(w)
	w.server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	w.server.StartTLS()
	t.Cleanup(func() { w.server.Close(); transport.CloseIdleConnections() })
	identity["address"] = strings.Replace(w.server.URL, "127.0.0.1", "localhost", 1)
	text, err = json.Marshal(identity)
	must(t, err)
	must(t, os.WriteFile(file, text, 0o600))
	return w
}

// ServeHTTP hands a call on, and its answer back.
func (w *wire) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	lose, lie := w.lose, w.lie
	w.calls[r.URL.Path]++
	w.mu.Unlock()
	sent, err := io.ReadAll(r.Body)
	call, answer := false, false
	if lose != nil {
		call, answer = lose(r.URL.Path)
	}
	if err != nil || call {
		panic(http.ErrAbortHandler)
	}
	on, err := http.NewRequestWithContext(r.Context(), r.Method, w.m.node.admin.Address()+r.URL.RequestURI(), bytes.NewReader(sent))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	on.Header = r.Header.Clone()
	got, err := w.client.Do(on)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer got.Body.Close()
	body, err := io.ReadAll(got.Body)
	if err != nil || answer {
		panic(http.ErrAbortHandler)
	}
	if lie != nil && got.StatusCode == http.StatusOK || lie != nil && got.StatusCode == http.StatusCreated {
		body = lie(r.URL.Path, sent, body)
	}
	for name, values := range got.Header {
		if name != "Content-Length" {
			out.Header()[name] = values
		}
	}
	out.WriteHeader(got.StatusCode)
	_, _ = out.Write(body)
}

func (w *wire) set(lose func(string) (bool, bool), lie func(string, []byte, []byte) []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lose, w.lie = lose, lie
}

const certificatesPath = client.Prefix + "/certificates"

// answers replaces the answer to a call for a certificate.
func answers(t testing.TB, with func(sent client.IssueRequest, got *client.Certificate) *client.Certificate) func(string, []byte, []byte) []byte {
	return func(path string, sent, body []byte) []byte {
		if path != certificatesPath {
			return body
		}
		var order client.IssueRequest
		var result client.IssueResult
		if err := json.Unmarshal(sent, &order); err != nil {
			t.Error(err)
		}
		if err := json.Unmarshal(body, &result); err != nil {
			t.Error(err)
		}
		result.Certificate = with(order, result.Certificate)
		text, err := json.Marshal(result)
		if err != nil {
			t.Error(err)
		}
		return text
	}
}

// TestWhatDoesNotFitIsNotPlaced gives agents certificates that must not get to a consumer (S10 of the scenarios): another
// key's, one that ended, one of another CA, one without its issuers.
func TestWhatDoesNotFitIsNotPlaced(t *testing.T) {
	n := authority(t)
	ctx := t.Context()
	issue := func(t testing.TB, in client.IssueRequest) *client.Certificate {
		result, err := n.admin.Issue(ctx, in)
		if err != nil {
			t.Error(err)
			return &client.Certificate{}
		}
		return result.Certificate
	}
	foreign, err := n.admin.AddPool(ctx, client.AddPoolRequest{Name: "foreign", Online: true})
	must(t, err)
	for name, with := range map[string]func(t testing.TB, sent client.IssueRequest, got *client.Certificate) *client.Certificate{
		"another key": func(t testing.TB, sent client.IssueRequest, _ *client.Certificate) *client.Certificate {
			key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
			must(t, err)
			der, err := cert.CreateCSR(&cert.CSRTemplate{}, key)
			must(t, err)
			return issue(t, client.IssueRequest{Profile: sent.Profile, CSR: csrText(der), Names: &client.Names{SAN: []string{"dns:x.example"}}})
		},
		"another CA": func(t testing.TB, sent client.IssueRequest, _ *client.Certificate) *client.Certificate {
			return issue(t, client.IssueRequest{Pool: foreign.Name, Profile: sent.Profile, CSR: sent.CSR})
		},
		"ended": func(t testing.TB, sent client.IssueRequest, _ *client.Certificate) *client.Certificate {
			return issue(t, client.IssueRequest{Profile: sent.Profile, CSR: sent.CSR, Validity: "10m"})
		},
		"without its issuer": func(_ testing.TB, _ client.IssueRequest, got *client.Certificate) *client.Certificate {
			got.Chain = ""
			return got
		},
		"no certificate": func(_ testing.TB, _ client.IssueRequest, got *client.Certificate) *client.Certificate {
			got.PEM = "hello"
			return got
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, plain(nil))
			first := m.settled().Observations[0]
			before := tree(t, m.path("/etc/ssl"))
			w := onWire(t, m)
			w.set(nil, answers(t, func(sent client.IssueRequest, got *client.Certificate) *client.Certificate { return with(t, sent, got) }))
			if name == "ended" {
				m.clockAt(time.Now().Add(30 * time.Minute))
			}
			m.rename("new.example")
			result := m.once()
			o := result.Observations[0]
			if result.Done() || !strings.Contains(o.Message, "ALARM") || o.Serial != first.Serial {
				t.Errorf("%+v", o)
			}
			after := tree(t, m.path("/etc/ssl"))
			for path, was := range before {
				if after[path] != was {
					t.Errorf("%s was touched", path)
				}
			}
			host, err := n.admin.Host(ctx, m.name)
			must(t, err)
			if !strings.Contains(host.Placements[0].Observed.Message, "ALARM") {
				t.Errorf("the authority was not told: %+v", host.Placements[0].Observed)
			}
			w.set(nil, nil)
			if o := m.settled().Observations[0]; o.Serial == first.Serial {
				t.Error("a certificate that fits is not taken either")
			}
		})
	}
}

func csrText(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestLostAnswersCostNoCertificates(t *testing.T) {
	m := newMachine(t, plain(nil))
	w := onWire(t, m)
	w.set(func(path string) (bool, bool) { return false, path == certificatesPath }, nil)
	if result := m.once(); result.Done() {
		t.Fatal("what was lost is in place")
	}
	if n := len(m.issued()); n != 1 {
		t.Fatalf("%d certificates were issued", n)
	}
	w.set(nil, nil)
	m.settled()
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
	if n := len(m.issued()); n != 1 {
		t.Fatalf("the repeated call got another certificate: %d", n)
	}
}

func TestWithoutTheAuthorityItGoesOn(t *testing.T) {
	m := newMachine(t, plain(nil))
	first := m.settled().Observations[0]
	w := onWire(t, m)
	w.server.Close()
	must(t, os.Remove(m.path("/etc/ssl/a.pem")))
	result := m.once()
	if !result.Done() || len(result.Problems) == 0 || result.Observations[0].Serial != first.Serial {
		t.Fatalf("%+v", result)
	}
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
	// Weeks later the CRLs have ended and the certificate waits to be re-keyed: what is there is kept and repaired.
	m.clockAt(time.Now().Add(70 * 24 * time.Hour))
	must(t, os.Chmod(m.path("/etc/ssl/a.key"), 0o644))
	if result := m.once(); result.Done() || !strings.Contains(result.Observations[0].Message, "cannot be asked") {
		t.Errorf("%+v", result)
	}
	if st, err := os.Stat(m.path("/etc/ssl/a.key")); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if o := m.once().Observations[0]; o.Serial != first.Serial {
		t.Errorf("%+v", o)
	}
}

func TestCheckpointThatGoesBackIsRefused(t *testing.T) {
	m := newMachine(t, plain(nil))
	newer, err := m.node.admin.SignCheckpoint(t.Context())
	must(t, err)
	older, err := m.node.admin.Checkpoint(t.Context(), newer.Number-1)
	must(t, err)
	shown := newer.Text
	w := onWire(t, m)
	w.set(nil, func(path string, _, body []byte) []byte {
		var d client.Desired
		if path != client.Prefix+"/agent/desired" || json.Unmarshal(body, &d) != nil {
			return body
		}
		d.Checkpoint = shown
		text, err := json.Marshal(d)
		if err != nil {
			t.Error(err)
		}
		return text
	})
	if result := m.settled(); len(result.Problems) > 0 {
		t.Fatalf("%q", result.Problems)
	}
	shown = older.Text
	m.rename("later.example")
	if result := m.once(); !strings.Contains(strings.Join(result.Problems, "\n"), "the audit went back") {
		t.Errorf("%q", result.Problems)
	}
	if status, err := loop.Look(m.state, time.Now()); err != nil || status.Checkpoint != newer.Number {
		t.Errorf("the host keeps checkpoint %d, %v", status.Checkpoint, err)
	}
}

// TestRemovedHostAsksSeldomAndKeepsWhatItHas runs the loop itself.
func TestRemovedHostAsksSeldomAndKeepsWhatItHas(t *testing.T) {
	m := newMachine(t, plain(nil))
	m.settled()
	w := onWire(t, m)
	must(t, m.node.admin.RemoveHost(t.Context(), m.name, ""))
	m.options.Pace = loop.Pace{Pass: 50 * time.Millisecond, Wait: time.Second, First: time.Millisecond}
	a, err := loop.New(m.options)
	must(t, err)
	defer a.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	must(t, os.Remove(m.path("/etc/ssl/a.pem")))
	m.eventually("it repairs what it has", func() bool {
		_, err := os.Stat(m.path("/etc/ssl/a.pem"))
		return err == nil
	})
	m.eventually("it asked", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.calls[client.Prefix+"/agent/desired"] > 0
	})
	stop()
	must(t, <-ended)
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.calls[client.Prefix+"/agent/desired"]; n != 1 {
		t.Errorf("it asked %d times", n)
	}
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
}

// TestRunFollowsWhatTheAuthoritySays runs the loop itself: what is changed there comes to the host without being asked for.
func TestRunFollowsWhatTheAuthoritySays(t *testing.T) {
	m := newMachine(t, plain(nil))
	a, err := loop.New(m.options)
	must(t, err)
	defer a.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	names := func(want string) func() bool {
		return func() bool {
			text, err := os.ReadFile(m.path("/etc/ssl/a.pem"))
			if err != nil {
				return false
			}
			all, err := keyfile.ParseCertificates(text)
			return err == nil && all[0].VerifyHostname(want) == nil
		}
	}
	m.eventually("the certificate is placed", names(m.name))
	m.rename("told.example")
	m.eventually("the new name is in it", names(m.name+".told.example"))
	m.eventually("the authority is told", func() bool {
		host, err := m.node.admin.Host(t.Context(), m.name)
		must(t, err)
		seen := host.Placements[0].Observed
		issued := m.issued()
		return seen.State == client.PlacementPlaced && len(issued) == 2 && seen.Serial == newest(issued).Serial
	})
	stop()
	must(t, <-ended)
}

func newest(all []client.Certificate) client.Certificate {
	last := all[0]
	for _, c := range all {
		if c.IssuedAt.After(last.IssuedAt) {
			last = c
		}
	}
	return last
}

func TestBundleHoldsNoKeyAndIsPlaced(t *testing.T) {
	n := authority(t)
	dir := t.TempDir()
	root, state := filepath.Join(dir, "r"), filepath.Join(dir, "s")
	must(t, os.MkdirAll(filepath.Join(root, "etc/ssl"), 0o755))
	csr, bundle := filepath.Join(dir, "csr"), filepath.Join(dir, "bundle")
	order := "plain:key=/etc/ssl/a.key,cert=/etc/ssl/a.pem,trust=/etc/ssl/ca.pem,crl=/etc/ssl/crl.pem"
	must(t, command(t.Context(), "agent", "csr", order, "--state", state, "--root", root, "--name", "offline.example", "--out", csr))
	must(t, command(t.Context(), "--dir", filepath.Join(n.dir, "authority"), "cert", "issue", "--profile", "server", "--csr", csr, "--bundle", bundle))
	text, err := os.ReadFile(bundle)
	must(t, err)
	if bytes.Contains(text, []byte("PRIVATE")) {
		t.Fatal("the bundle holds a key")
	}
	for what, bad := range map[string]string{
		"text outside its blocks": string(text) + "hello", "no bundle": string(text[bytes.Index(text, []byte("-----BEGIN CERT")):]),
		"no block": strings.Replace(string(text), "X509 CRL", "PRIVATE KEY", 2),
	} {
		if _, err := loop.ParseBundle([]byte(bad)); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, command(t.Context(), "agent", "place", "--offline", bundle, "--state", state))
	pair, err := tls.LoadX509KeyPair(filepath.Join(root, "etc/ssl/a.pem"), filepath.Join(root, "etc/ssl/a.key"))
	must(t, err)
	if err := pair.Leaf.VerifyHostname("offline.example"); err != nil {
		t.Error(err)
	}
	must(t, command(t.Context(), "agent", "place", "--offline", bundle, "--state", state))
	must(t, command(t.Context(), "agent", "status", "--state", state))
	other := filepath.Join(dir, "other")
	must(t, os.Mkdir(other, 0o700))
	if err := command(t.Context(), "agent", "place", "--offline", bundle, "--state", other); err == nil || !strings.Contains(err.Error(), "does not hold") {
		t.Errorf("on a host without the key: %v", err)
	}
	if _, err := x509.ParseCertificate(pair.Certificate[0]); err != nil {
		t.Error(err)
	}
}

// TestPathsThatTheHostDoesNotAccept: what an operator could name to become root on a host, or to be trusted by all of it,
// is refused before a certificate is asked for or a program is run, and the refusal is reported.
func TestPathsThatTheHostDoesNotAccept(t *testing.T) {
	for want, order := range map[string]client.PlacementOrder{
		"does not accept /srv/evil.conf as what a program is given": {Recipe: "nginx", Parameters: map[string]string{"conf": "/srv/evil.conf", "probe": "false"}},
		"decides what every program of this host trusts":            plain(map[string]string{"trust": "/etc/ssl/certs/5ad8a5d6.0"}),
		"not /etc/nginx/conf.d/a.conf":                              plain(map[string]string{"cert": "/etc/nginx/conf.d/a.conf"}),
	} {
		m := newMachine(t, order)
		o := m.once().Observations[0]
		if o.State != client.PlacementFailed || !strings.Contains(o.Message, want) {
			t.Errorf("%s: %+v", want, o)
		}
		if n := len(m.issued()); n != 0 {
			t.Errorf("%s: %d certificates were issued", want, n)
		}
	}
}
