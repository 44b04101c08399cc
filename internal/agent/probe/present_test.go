package probe

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
)

// presented is Present. What a server says too late on a busy machine, which is taken for consent, is no verdict where another is expected: it is
// shown again then.
func presented(t *testing.T, p recipe.Probe, own *holder, quiet bool) (shown *Shown, err error) {
	t.Helper()
	for late := time.Now().Add(time.Minute); ; {
		shown, err = Present(t.Context(), p, own.tls())
		if again := errors.Is(err, ErrTimeout) || err == nil && !quiet && strings.Contains(shown.Said, " within "); !again || time.Now().After(late) {
			return shown, err
		}
	}
}

// TestPresentToOpenSSL shows certificates to openssl s_server with a CRL, in both versions of TLS and by two ways of seeing: a good
// one is taken, a revoked one is refused by its alert, a stranger's by another, and no certificate is asked for where none is.
func TestPresentToOpenSSL(t *testing.T) {
	o, stranger := newOffice(t), newOffice(t)
	bad := issue(t, o.issuer, "bad", client)
	dir := t.TempDir()
	write(t, dir+"/ca.pem", keyfile.EncodeCertificates(o.root.cert, o.issuer.cert))
	list := revoke(t, o.issuer, nil, bad.cert.SerialNumber)
	write(t, dir+"/crl.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}))
	var shown atomic.Int32
	t.Run("versions", func(t *testing.T) {
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			t.Run(version, func(t *testing.T) {
				t.Parallel()
				strict := serveOpenSSL(t, o.leaf, o.leaf.path, version, "-Verify", "3", "-verify_return_error", "-CAfile", dir+"/ca.pem", "-CRL", dir+"/crl.pem",
					"-crl_check")
				open := serveOpenSSL(t, o.leaf, o.leaf.path, version)
				for _, accepts := range []string{"tls", "http"} {
					p := recipe.Probe{Address: strict, Accepts: accepts}
					for name, c := range map[string]struct {
						p                          recipe.Probe
						own                        *holder
						asked, accepted, isRevoked bool
					}{
						"good": {p, o.leaf, true, true, false}, "revoked": {p, bad, true, false, true}, "a stranger's": {p, stranger.leaf, true, false, false},
						"not asked for": {recipe.Probe{Address: open, Accepts: accepts}, bad, false, false, false},
					} {
						shown.Add(1)
						got, err := presented(t, c.p, c.own, c.accepted)
						if err != nil || got.Asked != c.asked || got.Accepted != c.accepted || got.Revoked != c.isRevoked || got.Said == "" {
							t.Errorf("accepts %q, %s: %+v, %v", accepts, name, got, err)
						}
					}
				}
			})
		}
	})
	if shown.Load() != 16 {
		t.Fatalf("%d certificates were shown", shown.Load())
	}
}

// speaker is a TLS server that takes every client, and then says something of its own.
func speaker(t *testing.T, o *office, ask tls.ClientAuthType, after func(net.Conn)) string {
	t.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{*o.leaf.tls()}, ClientAuth: ask}
	return plainServer(t, func(raw net.Conn) {
		conn := tls.Server(raw, config)
		defer conn.Close()
		if conn.Handshake() == nil {
			after(conn)
		}
	})
}

// TestPresentByProtocol: what each protocol says of a client that it takes, and of one that it does not.
func TestPresentByProtocol(t *testing.T) {
	o := newOffice(t)
	says := func(text string) func(net.Conn) {
		return func(c net.Conn) { io.WriteString(c, text); io.CopyN(io.Discard, c, 1) }
	}
	answers := func(text string) func(net.Conn) {
		return func(c net.Conn) { c.Read(make([]byte, 512)); io.WriteString(c, text) }
	}
	hangsUp := func(net.Conn) {}
	for name, c := range map[string]struct {
		accepts  string
		does     func(net.Conn)
		accepted bool
		said     string
	}{
		"libvirt takes":           {"libvirt", says("\x01"), true, "verified"},
		"libvirt refuses":         {"libvirt", hangsUp, false, "hung up"},
		"libvirt says else":       {"libvirt", says("\x00"), false, "0x00"},
		"postgres asks":           {"postgres", answers("R\x00\x00\x00\x08\x00\x00\x00\x00"), true, "went on to the login"},
		"postgres refuses logins": {"postgres", answers("E\x00\x00\x00\x05\x00"), true, "refuse the login"},
		"postgres hangs up":       {"postgres", hangsUp, false, "hung up"},
		"nginx":                   {"http", answers("HTTP/1.1 400 Bad Request\r\n\r\n"), false, "400 Bad Request"},
		"nginx, its own number":   {"http", answers("HTTP/1.1 495 SSL\r\n\r\n"), false, "495"},
		"forbidden is taken":      {"http", answers("HTTP/1.1 403 Forbidden\r\n\r\n"), true, "403 Forbidden"},
		"no HTTP":                 {"http", answers("-ERR what?\r\n"), true, "-ERR what?"},
		"http hangs up":           {"http", hangsUp, false, "hung up"},
		"speaks first":            {"tls", says("220 hello\r\n"), true, "began to speak"},
		"is quiet":                {"tls", func(c net.Conn) { io.Copy(io.Discard, c) }, true, "nothing against it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := presented(t, recipe.Probe{Address: speaker(t, o, tls.RequireAnyClientCert, c.does), Accepts: c.accepts}, o.leaf, name == "is quiet")
			if err != nil || !got.Asked || got.Accepted != c.accepted || !strings.Contains(got.Said, c.said) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// TestPresentFails: what is no verdict is an error, and nobody listening is told from that.
func TestPresentFails(t *testing.T) {
	o := newOffice(t)
	if _, err := Present(t.Context(), recipe.Probe{Address: "127.0.0.1:1"}, o.leaf.tls()); !IsDown(err) {
		t.Errorf("nobody listens: %v", err)
	}
	plain := plainServer(t, func(c net.Conn) { io.WriteString(c, "hello\r\n"); io.CopyN(io.Discard, c, 1) })
	_, err := Present(t.Context(), recipe.Probe{Address: plain}, o.leaf.tls())
	wantError(t, err, "does not speak TLS")
	_, err = Present(t.Context(), recipe.Probe{Address: plain, Accepts: "telnet"}, o.leaf.tls())
	wantError(t, err, `"telnet" is none of http, libvirt, postgres and tls`)
	wrong := issue(t, o.issuer, "wrong", server("wrong"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	got, err := Present(t.Context(), recipe.Probe{Address: speaker(t, &office{leaf: wrong}, tls.NoClientCert, func(net.Conn) {})}, o.leaf.tls())
	if err != nil || got.Asked {
		t.Errorf("a server whose own certificate ended, and which asks for none: %+v, %v", got, err)
	}
}
