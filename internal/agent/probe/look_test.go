package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
)

// serveOpenSSL starts openssl s_server with the certificates of path, in that order, and returns its address.
func serveOpenSSL(t *testing.T, h *holder, path []*x509.Certificate, more ...string) string {
	t.Helper()
	dir := t.TempDir()
	certificate, key := h.files(t, dir, "server", path...)
	address, err := consumer.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"s_server", "-accept", address, "-cert", certificate, "-key", key, "-www"}, more...)
	if len(path) > 1 {
		rest := dir + "/rest.pem"
		write(t, rest, keyfile.EncodeCertificates(path[1:]...))
		args = append(args, "-cert_chain", rest)
	}
	p, err := consumer.Start(t.Context(), consumer.Program{Path: "openssl", Args: args, Ready: consumer.Listening(address)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return address
}

func probeOf(address string, names ...string) recipe.Probe {
	return recipe.Probe{Address: address, Names: names, Timeout: recipe.Duration(300 * time.Millisecond)}
}

// patiently asks again while there is no answer in the time that one connection may take, for which a server on a busy machine may have no processor.
func patiently(ask func() (*Seen, error)) (seen *Seen, err error) {
	for late := time.Now().Add(time.Minute); ; {
		if seen, err = ask(); !errors.Is(err, ErrTimeout) || time.Now().After(late) {
			return seen, err
		}
	}
}

func served(t *testing.T, p recipe.Probe, leaf *x509.Certificate, roots []*x509.Certificate, client *tls.Certificate, now time.Time) (*Seen, error) {
	t.Helper()
	return patiently(func() (*Seen, error) { return Served(t.Context(), p, leaf, roots, client, now) })
}

func looked(t *testing.T, p recipe.Probe, client *tls.Certificate) (*Seen, error) {
	t.Helper()
	return patiently(func() (*Seen, error) { return Look(t.Context(), p, client) })
}

func TestServedByOpenSSL(t *testing.T) {
	o := newOffice(t)
	other := issue(t, o.issuer, "other", server("other.test"))
	late := issue(t, o.issuer, "localhost", server("localhost"), expired)
	old := issue(t, o.root, "old issuer", ca, expired)
	underOld := issue(t, old, "localhost", server("localhost"))
	onlyClient := issue(t, o.issuer, "localhost", client, func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} })
	stranger := newOffice(t)
	cases := []struct {
		name  string
		leaf  *holder
		path  []*x509.Certificate
		roots []*x509.Certificate
		ask   []string
		want  []string // of the error; nil for success
	}{
		{name: "right", leaf: o.leaf},
		{name: "the root is sent too", leaf: o.leaf, path: append(slices.Clone(o.leaf.path), o.root.cert)},
		{name: "intermediate missing", leaf: o.leaf, path: o.leaf.path[:1], want: []string{"an intermediate is missing", "issuer TestServedByOpenSSL"}},
		{name: "wrong order", leaf: o.leaf, path: []*x509.Certificate{o.leaf.cert, o.root.cert, o.issuer.cert}, want: []string{"not in order"}},
		{name: "expired", leaf: late, want: []string{"not valid after"}},
		{name: "issuer expired", leaf: underOld, want: []string{"not valid after", "old issuer"}},
		{name: "other name", leaf: other, ask: []string{"dns:localhost"}, want: []string{"not for dns:localhost", "other.test"}},
		{name: "one name of two", leaf: o.leaf, ask: []string{"dns:localhost", "ip:127.0.0.2"}, want: []string{"ip:127.0.0.2"}},
		{name: "no server", leaf: onlyClient, want: []string{"serverAuth"}},
		{name: "other authority", leaf: stranger.leaf, want: []string{"no root of the trust set"}},
		{name: "other root of the same name", leaf: o.leaf, roots: []*x509.Certificate{issue(t, nil, "root "+t.Name(), ca).cert},
			want: []string{"no root of the trust set"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := c.path
			if path == nil {
				path = c.leaf.path
			}
			roots := c.roots
			if roots == nil {
				roots = o.roots()
			}
			seen, err := served(t, probeOf(serveOpenSSL(t, c.leaf, path), c.ask...), c.leaf.cert, roots, nil, time.Now())
			if c.want != nil {
				wantError(t, err, c.want...)
				if !errors.Is(err, ErrNotServed) || IsDown(err) {
					t.Errorf("the error is of the wrong kind: %v", err)
				}
				if seen == nil || !seen.Leaf().Equal(c.leaf.cert) {
					t.Error("what was seen is not returned with the error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !seen.Leaf().Equal(c.leaf.cert) || len(seen.Path) != len(path) || seen.Version != tls.VersionTLS13 {
				t.Errorf("saw %+v", seen)
			}
		})
	}
}

func TestServedTellsAnotherCertificate(t *testing.T) {
	o := newOffice(t)
	placed := issue(t, o.issuer, "localhost", server("localhost"))
	seen, err := served(t, probeOf(serveOpenSSL(t, o.leaf, o.leaf.path)), placed.cert, o.roots(), nil, time.Now())
	wantError(t, err, "was placed")
	if seen == nil || !seen.Leaf().Equal(o.leaf.cert) {
		t.Error("the certificate that is served is not returned")
	}
}

func TestServedByTheAgentsOwnNow(t *testing.T) {
	o := newOffice(t)
	p := probeOf(serveOpenSSL(t, o.leaf, o.leaf.path))
	if _, err := served(t, p, o.leaf.cert, o.roots(), nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	_, err := served(t, p, o.leaf.cert, o.roots(), nil, time.Now().Add(48*time.Hour))
	wantError(t, err, "not valid after")
	_, err = served(t, p, o.leaf.cert, o.roots(), nil, time.Now().Add(-48*time.Hour))
	wantError(t, err, "not valid before")
}

func TestCommonNameOnlyWhereTheRecipeTakesIt(t *testing.T) {
	o := newOffice(t)
	h := issue(t, o.issuer, "localhost", server())
	p := probeOf(serveOpenSSL(t, h, h.path), "localhost")
	_, err := served(t, p, h.cert, o.roots(), nil, time.Now())
	wantError(t, err, `none but the common name "localhost"`)
	p.CommonName = true
	if _, err := served(t, p, h.cert, o.roots(), nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	p.Names = nil // the certificate's own, which is the common name
	if _, err := served(t, p, h.cert, o.roots(), nil, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// TestRefusedClientHasSeenTheServer: both versions of TLS, a certificate of a stranger, and none.
func TestRefusedClientHasSeenTheServer(t *testing.T) {
	o, stranger := newOffice(t), newOffice(t)
	dir := t.TempDir()
	write(t, dir+"/ca.pem", keyfile.EncodeCertificates(o.root.cert, o.issuer.cert))
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			p := probeOf(serveOpenSSL(t, o.leaf, o.leaf.path, version, "-Verify", "3", "-verify_return_error", "-CAfile", dir+"/ca.pem"))
			// In TLS 1.3 the refusal follows the handshake; on a busy machine it comes later than it is waited for now and then.
			var seen *Seen
			var err error
			for try := 0; try == 0 || err == nil && seen.Refused == "" && try < 20; try++ {
				seen, err = looked(t, p, stranger.leaf.tls())
			}
			if err != nil || !seen.Leaf().Equal(o.leaf.cert) || !seen.Asked || seen.Refused == "" {
				t.Fatalf("saw %+v, error %v", seen, err)
			}
			err = nil
			for try := 0; err == nil && try < 20; try++ {
				_, err = served(t, p, o.leaf.cert, o.roots(), stranger.leaf.tls(), time.Now())
			}
			wantError(t, err, "refuses the certificate that the probe shows")
			p.AcceptRefusal = true
			if _, err = served(t, p, o.leaf.cert, o.roots(), stranger.leaf.tls(), time.Now()); err != nil {
				t.Error(err)
			}
			p.AcceptRefusal = false
			if _, err = served(t, p, o.leaf.cert, o.roots(), nil, time.Now()); err != nil {
				t.Errorf("without a certificate to show: %v", err)
			}
			if seen, err = served(t, p, o.leaf.cert, o.roots(), o.leaf.tls(), time.Now()); err != nil || seen.Refused != "" || !seen.Asked {
				t.Errorf("with the right certificate: %+v, %v", seen, err)
			}
		})
	}
}

// plainServer answers every connection by f.
func plainServer(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); f(conn) }()
		}
	}()
	return l.Addr().String()
}

func TestErrorsAreToldApart(t *testing.T) {
	free, err := consumer.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	o := newOffice(t)
	cases := []struct {
		name    string
		address string
		want    error
	}{
		{"down", free, ErrDown},
		{"plain text", plainServer(t, func(c net.Conn) { io.WriteString(c, "220 hello\r\n"); io.Copy(io.Discard, c) }), ErrNotTLS},
		{"silent", plainServer(t, func(c net.Conn) { io.Copy(io.Discard, c) }), ErrTimeout},
		{"hangs up", plainServer(t, func(c net.Conn) { c.Read(make([]byte, 1)) }), ErrHandshake},
		{"old TLS only", serveOpenSSL(t, o.leaf, o.leaf.path, "-tls1", "-cipher", "ALL:@SECLEVEL=0"), ErrHandshake},
		{"no certificate", serveOpenSSL(t, o.leaf, o.leaf.path, "-nocert", "-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"), ErrHandshake},
	}
	kinds := []error{ErrDown, ErrNotTLS, ErrTimeout, ErrHandshake, ErrNotServed}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ask := patiently
			if c.want == ErrTimeout {
				ask = func(once func() (*Seen, error)) (*Seen, error) { return once() }
			}
			_, err := ask(func() (*Seen, error) { return Look(t.Context(), probeOf(c.address), nil) })
			for _, kind := range kinds {
				if errors.Is(err, kind) != (kind == c.want) {
					t.Errorf("is it %q? %v", kind, err)
				}
			}
			if IsDown(err) != (c.want == ErrDown) {
				t.Errorf("IsDown: %v", err)
			}
			_, err = ask(func() (*Seen, error) {
				return Served(t.Context(), probeOf(c.address), o.leaf.cert, o.roots(), nil, time.Now())
			})
			if !errors.Is(err, c.want) {
				t.Errorf("Served: %v", err)
			}
		})
	}
}

func TestProbeThatCannotBeFollowed(t *testing.T) {
	o := newOffice(t)
	for _, p := range []recipe.Probe{
		{Address: "localhost"}, {Address: "localhost:"}, {Address: "::1:443"}, {Address: ""}, {Address: "localhost:1", StartTLS: "gopher"},
	} {
		if _, err := served(t, p, o.leaf.cert, o.roots(), nil, time.Now()); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	nameless := issue(t, o.issuer, "", server())
	if _, err := served(t, recipe.Probe{Address: "localhost:1"}, nameless.cert, o.roots(), nil, time.Now()); !fault.Is(err, fault.Invalid) {
		t.Errorf("nothing to check: %v", err)
	}
}

func TestServedEndsWithItsContext(t *testing.T) {
	o := newOffice(t)
	address := plainServer(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Served(ctx, recipe.Probe{Address: address, Timeout: recipe.Duration(time.Hour)}, o.leaf.cert, o.roots(), nil, time.Now()); err == nil {
		t.Fatal("no error")
	}
}

func TestServerThatListensEverywhereIsMetOnLoopback(t *testing.T) {
	for in, want := range map[string]string{
		":443": "127.0.0.1:443", "*:443": "127.0.0.1:443", "0.0.0.0:443": "127.0.0.1:443", "[::]:443": "[::1]:443", "[fe80::1%eth0]:443": "[fe80::1%eth0]:443",
	} {
		if got, err := dialable(in); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
}

func TestServerNames(t *testing.T) {
	for in, want := range map[string]string{
		"dns:a.test": "a.test", "a.test.": "a.test", "ip:10.0.0.1": "", "10.0.0.1": "", "::1": "", "*.a.test": "chancery-probe.a.test", "dns:*.b": "chancery-probe.b",
	} {
		if got := serverName(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	if got := serverNames([]string{"a", "ip:1.2.3.4", "dns:a", "::1", "b"}); !slices.Equal(got, []string{"a", "", "b"}) {
		t.Errorf("asked for %q", got)
	}
}

// TestRenewedRoot: a root that was renewed with its key stands beside the expired one, whichever comes first.
func TestRenewedRoot(t *testing.T) {
	o := newOffice(t)
	renewed := issueFor(t, nil, o.root.key, "root "+t.Name(), ca)
	old := issueFor(t, nil, o.root.key, "root "+t.Name(), ca, expired)
	seen := &Seen{Path: o.leaf.path}
	for _, roots := range [][]*x509.Certificate{{old.cert, renewed.cert}, {renewed.cert, old.cert}} {
		if err := seen.Judge(roots, time.Now()); err != nil {
			t.Error(err)
		}
	}
	wantError(t, seen.Judge([]*x509.Certificate{old.cert}, time.Now()), "not valid after")
}
