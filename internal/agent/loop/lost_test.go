package loop_test

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/pki/keyfile"
)

// holds reports whether the placed certificate is valid for a name.
func (m *machine) holds(name string) bool {
	text, err := os.ReadFile(m.path("/etc/ssl/a.pem"))
	if err != nil {
		return false
	}
	all, err := keyfile.ParseCertificates(text)
	return err == nil && all[0].VerifyHostname(name) == nil
}

// running runs the loop itself until the test ends.
func (m *machine) running() {
	m.t.Helper()
	a, err := loop.New(m.options)
	must(m.t, err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	m.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			m.t.Error(err)
		}
		a.Close()
	})
}

// TestOrderThatCouldNotBeKeptIsAskedForAgain puts a directory where the order is written, as a full disk would.
func TestOrderThatCouldNotBeKeptIsAskedForAgain(t *testing.T) {
	m := newMachine(t, plain(nil))
	m.settled()
	m.options.Pace = loop.Pace{Pass: 50 * time.Millisecond, First: 200 * time.Millisecond, Longest: 200 * time.Millisecond}
	must(t, os.Remove(m.path("/etc/ssl/a.pem")))
	m.running()
	m.eventually("it knows its last order", func() bool { return m.holds(m.name) })
	desired := filepath.Join(m.state, "desired.json")
	must(t, os.Rename(desired, desired+".was"))
	must(t, os.MkdirAll(filepath.Join(desired, "in-the-way"), 0o700))
	m.rename("kept.example")
	m.eventually("the authority is told that the order is not taken", func() bool {
		host, err := m.node.admin.Host(t.Context(), m.name)
		must(t, err)
		return strings.Contains(host.Message, "is not taken")
	})
	must(t, os.RemoveAll(desired))
	m.eventually("it does what the order says", func() bool { return m.holds(m.name + ".kept.example") })
	if text, err := os.ReadFile(desired); err != nil || !strings.Contains(string(text), "kept.example") {
		t.Errorf("%v: %s", err, text)
	}
}

// TestLostJoinAnswerAndReplacement loses the answer to a join, and then gives the machine another token: the key that was
// enrolled with the first one is another identity's by now.
func TestLostJoinAnswerAndReplacement(t *testing.T) {
	n := authority(t)
	name := "lostjoin"
	added, err := n.admin.AddHost(t.Context(), client.AddHostRequest{Name: name})
	must(t, err)
	token, err := client.ParseJoinToken(added.Token)
	must(t, err)
	lossy := loses(t, n, client.Prefix+"/join")
	state := filepath.Join(t.TempDir(), "s")
	join := func(token *client.JoinToken, again bool) error {
		_, err := loop.Join(t.Context(), loop.JoinOptions{State: state, Token: token.String(), Again: again, Version: "test"})
		return err
	}
	through := *token
	through.Address = lossy
	if err := join(&through, false); err == nil {
		t.Fatal("the answer was lost, and it joined")
	}
	request := filepath.Join(state, "identity-request.json")
	first, err := os.ReadFile(request)
	must(t, err)
	if strings.Contains(string(first), token.Secret) {
		t.Error("the secret of the token is kept")
	}
	if err := join(&through, false); err == nil {
		t.Fatal("the answer was lost again, and it joined")
	}
	if second, err := os.ReadFile(request); err != nil || string(second) != string(first) {
		t.Errorf("the same token makes another key: %v", err)
	}
	fresh, err := n.admin.ReplaceHost(t.Context(), name, client.ReplaceHostRequest{})
	must(t, err)
	token, err = client.ParseJoinToken(fresh.Token)
	must(t, err)
	must(t, join(token, false))
	// A request that was cut short by a full disk does not keep the machine out either.
	fresh, err = n.admin.ReplaceHost(t.Context(), name, client.ReplaceHostRequest{})
	must(t, err)
	must(t, os.WriteFile(request, nil, 0o600))
	token, err = client.ParseJoinToken(fresh.Token)
	must(t, err)
	must(t, join(token, true))
}

// loses is a node whose answers to one call are lost.
func loses(t *testing.T, n *node, path string) string {
	t.Helper()
	dir := filepath.Join(n.dir, "authority")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "node-tls.pem"), filepath.Join(dir, "node-tls.pem"))
	must(t, err)
	roots, err := client.RootsFile(filepath.Join(dir, "ca", "identity-root.pem"))
	must(t, err)
	target, err := url.Parse(n.admin.Address())
	must(t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = transport
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.URL.Path == path {
			panic(http.ErrAbortHandler)
		}
		return nil
	}
	server := httptest.NewUnstartedServer(proxy)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	t.Cleanup(func() { server.Close(); transport.CloseIdleConnections() })
	return strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
}

func TestDesiredStateThatCannotBeReadIsAskedForAnew(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "cut short": `{"host": "x", "pla`, "of nobody": "{}", "null": "null"} {
		m := newMachine(t, plain(nil))
		o := m.settled().Observations[0]
		desired := filepath.Join(m.state, "desired.json")
		must(t, os.WriteFile(desired, []byte(text), 0o600))
		result := m.settled()
		if said := strings.Join(result.Problems, "\n"); !strings.Contains(said, "could not be read") || !strings.Contains(said, "asked for anew") {
			t.Errorf("%s: it says %q", name, said)
		}
		if len(result.Observations) != 1 || result.Observations[0].Serial != o.Serial {
			t.Errorf("%s: %+v", name, result.Observations)
		}
		if kept, err := filepath.Glob(desired + ".unreadable-*"); err != nil || len(kept) != 1 {
			t.Errorf("%s: %v is kept, %v", name, kept, err)
		}
		if result := m.settled(); len(result.Problems) > 0 {
			t.Errorf("%s: afterwards %q", name, result.Problems)
		}
	}
	m := newMachine(t, plain(nil))
	m.settled()
	must(t, os.WriteFile(filepath.Join(m.state, "desired.json"), nil, 0o600))
	m.rename("anew.example")
	m.running()
	m.eventually("the loop asks anew", func() bool { return m.holds(m.name + ".anew.example") })
}

func TestPlacementStateThatCannotBeReadIsSetAside(t *testing.T) {
	for file, fresh := range map[string]bool{"main.json": true, "record.json": false, "main.next.json": false, "main.wanted.json": false} {
		m := newMachine(t, plain(nil))
		o := m.settled().Observations[0]
		path := filepath.Join(m.state, "placements", "plain", file)
		if text, err := os.ReadFile(path); err == nil {
			must(t, os.WriteFile(path, text[:len(text)/2], 0o600))
		} else {
			must(t, os.WriteFile(path, []byte("{"), 0o600))
		}
		if file == "main.wanted.json" {
			m.rename("asked.example")
			fresh = true
		}
		after := m.settled().Observations[0]
		if (after.Serial != o.Serial) != fresh {
			t.Errorf("%s: certificate %s after %s", file, after.Serial, o.Serial)
		}
		if said := strings.Join(after.Repaired, "\n"); !strings.Contains(said, file+" could not be read") {
			t.Errorf("%s: it says %q, and %q", file, said, after.Message)
		}
		if kept, err := filepath.Glob(path + ".unreadable-*"); err != nil || len(kept) != 1 {
			t.Errorf("%s: %v is kept, %v", file, kept, err)
		}
		m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
		if again := m.settled().Observations[0]; again.Serial != after.Serial {
			t.Errorf("%s: it is re-keyed again and again", file)
		}
		if status, err := loop.Look(m.state, time.Now()); err != nil || len(status.Wrong) > 0 {
			t.Errorf("%s: %+v, %v", file, status, err)
		}
	}
}
