package hosts_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
)

// The places where the recipe nginx puts its files.
const (
	nginxConf = "/etc/nginx/nginx.conf"
	nginxCert = "/etc/nginx/tls/server.pem"
	nginxKey  = "/etc/nginx/tls/server.key"
	nginxCRL  = "/etc/nginx/tls/clients-crl.pem"
	nginxLog  = "/run/nginx.log"
)

// webServer is an nginx on a host, with its configuration in its usual place. Who shows no certificate of the pool's is
// answered 400 by it.
type webServer struct {
	*consumer.Process
	h       *host
	address string
}

// webHost joins a host whose nginx is configured and does not run yet.
func (w *world) webHost(t *testing.T, m machine) *webServer {
	t.Helper()
	h := w.newHost(t, "web", m)
	free, err := consumer.FreeAddress()
	must(t, err)
	_, port, _ := strings.Cut(free, ":")
	s := &webServer{h: h, address: h.at + ":" + port}
	var conf strings.Builder
	in := h.inside
	fmt.Fprintf(&conf, "daemon off;\nworker_processes 1;\npid %s;\nerror_log %s info;\nevents { worker_connections 64; }\nhttp {\n  access_log off;\n",
		in("/run/nginx.pid"), in(nginxLog))
	for _, temporary := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&conf, "  %s_temp_path %s;\n", temporary, in("/run/"+temporary))
	}
	fmt.Fprintf(&conf, `  server {
    listen %s ssl;
    server_name %s;
    ssl_certificate %s;
    ssl_certificate_key %s;
    ssl_client_certificate %s;
    ssl_crl %s;
    ssl_verify_client on;
    ssl_verify_depth 2;
    location / { return 200 "hello $ssl_client_s_dn\n"; }
    location /slow { limit_rate_after 1k; limit_rate 20; return 200 %q; }
  }
}
`, s.address, h.name, in(nginxCert), in(nginxKey), in("/etc/nginx/tls/clients-ca.pem"), in(nginxCRL), strings.Repeat("slow ", 780))
	h.write(nginxConf, conf.String())
	h.join(order("nginx", "clients=true", "address="+s.address, "conf="+in(nginxConf)))
	return s
}

func (s *webServer) begin() {
	s.h.t.Helper()
	s.Process = s.h.start(consumer.Program{
		Path: "/usr/sbin/nginx", Args: []string{"-e", "stderr", "-c", s.h.inside(nginxConf)}, Ready: consumer.Listening(s.address),
	})
}

// runningWeb is a webHost whose nginx runs and serves.
func (w *world) runningWeb(t *testing.T, m machine) *webServer {
	t.Helper()
	s := w.webHost(t, m)
	s.h.converge()
	s.begin()
	s.h.converge()
	return s
}

// get fetches a page as a client with a certificate, which trusts a root. The connection is used once.
func (s *webServer) get(trust []byte, own *peer, path string) (*http.Response, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trust)
	config := &tls.Config{RootCAs: roots, ServerName: s.h.name}
	if own != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own.pair, nil }
	}
	page := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 5 * time.Minute}
	return page.Get("https://" + s.address + path)
}

// lets wants a client to get in, and the server to show what the host was given; it returns what was shown.
func (s *webServer) lets(trust []byte, own *peer) *x509.Certificate {
	s.h.t.Helper()
	answer, err := s.get(trust, own, "/")
	must(s.h.t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK || !strings.HasPrefix(string(text), "hello ") {
		s.h.t.Errorf("%s %q %v", answer.Status, text, err)
	}
	return answer.TLS.PeerCertificates[0]
}

// refuses wants a client to be kept out, for a reason that nginx writes to its log. Old workers may answer for a moment after
// nginx was told of new files.
func (s *webServer) refuses(trust []byte, own *peer, reason string) {
	s.h.t.Helper()
	before := len(s.h.read(nginxLog))
	until(s.h.t, fmt.Sprintf("nginx answers 400 because of %q", reason), func() bool {
		answer, err := s.get(trust, own, "/")
		must(s.h.t, err)
		answer.Body.Close()
		return answer.StatusCode == http.StatusBadRequest
	})
	until(s.h.t, fmt.Sprintf("nginx says %q", reason), func() bool { return strings.Contains(string(s.h.read(nginxLog)[before:]), reason) })
}

// onTheWire is the serial number that openssl sees at an address.
func onTheWire(t testing.TB, h *host, address string, more ...string) string {
	t.Helper()
	args := append([]string{"s_client", "-connect", address, "-servername", h.name}, more...)
	seen, err := exec.Command("openssl", args...).Output() // it fails where a client certificate is wanted; what was shown is there
	block, _ := pem.Decode(seen[max(0, strings.Index(string(seen), "-----BEGIN")):])
	if block == nil {
		t.Fatalf("openssl s_client: %v: %s", err, seen)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return cert.FormatSerial(c.SerialNumber)
}

// clientOf has the authority issue a certificate for clients in a pool, to a common name.
func (w *world) clientOf(t testing.TB, p *client.Pool, name string) *peer {
	t.Helper()
	key := ecKey(t)
	out, err := w.admin.Issue(t.Context(), client.IssueRequest{
		Pool: p.Name, Profile: "client", PublicKey: publicKey(t, key.Public()), Names: &client.Names{Subject: "CN=" + name},
	})
	must(t, err)
	return newPeer(t, trustOf(p), []byte(out.Certificate.PEM+out.Certificate.Chain), key)
}

func publicKey(t testing.TB, key crypto.PublicKey) string {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
}

// selfMade is a client of nobody's: its certificate says what a good one says, and is signed by its own key.
func selfMade(t testing.TB, trust []byte, name string) *peer {
	t.Helper()
	key := ecKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	must(t, err)
	return newPeer(t, trust, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key)
}

// serves wants the placed certificate on the wire, and the authority to know that it is.
func (s *webServer) serves(want *x509.Certificate) {
	s.h.t.Helper()
	serial := cert.FormatSerial(want.SerialNumber)
	if seen := onTheWire(s.h.t, s.h, s.address); seen != serial {
		s.h.t.Errorf("%s is served, not %s", seen, serial)
	}
	if seen := s.h.observed("nginx"); seen.State != client.PlacementServed || seen.Served != serial || seen.Serial != serial {
		s.h.t.Errorf("reported is %+v, not %s served", seen, serial)
	}
}

// TestWebServer, scenario S17, takes nginx from a host that has just joined to one that lets in whom it should, mends what
// somebody changed, and is down, which the agent leaves to whoever stopped it.
func TestWebServer(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool, other := w.pool(t), w.pool(t)
	s := w.webHost(t, machine{pool: pool.Name})
	h := s.h
	h.converge()
	if seen := h.observed("nginx"); seen.State != client.PlacementDown || seen.Served != "" || seen.Serial == "" {
		t.Errorf("before nginx runs: %+v", seen)
	}
	s.begin()
	h.converge()
	leaf := parsed(t, h.read(nginxCert))
	s.serves(leaf)
	trust, good := []byte(pool.Root.PEM), w.clientOf(t, pool, "good")
	if shown := s.lets(trust, good); !shown.Equal(leaf) {
		t.Errorf("a client is shown %s", shown.Subject)
	}
	s.refuses(trust, w.clientOf(t, other, "good"), "client SSL certificate verify error")
	s.refuses(trust, selfMade(t, trust, "good"), "client SSL certificate verify error")
	s.refuses(trust, nil, "client sent no required SSL certificate")
	if _, err := s.get([]byte(other.Root.PEM), good, "/"); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a client of another pool believes the server: %v", err)
	}
	for what, change := range map[string]func() error{
		nginxKey: func() error { return os.Chmod(h.path(nginxKey), 0o644) },
		nginxCert: func() error {
			return os.WriteFile(h.path(nginxCert), keyfile.EncodeCertificates(selfMade(t, trust, "x").pair.Leaf), 0o644)
		},
		nginxCRL: func() error { return os.Remove(h.path(nginxCRL)) },
	} {
		must(t, change())
		h.converge()
		if mended := strings.Join(h.observed("nginx").Repaired, "\n"); !strings.Contains(mended, what) {
			t.Errorf("of %s is reported %q", what, mended)
		}
		if st, err := os.Stat(h.path(nginxKey)); err != nil || st.Mode() != 0o600 || !parsed(t, h.read(nginxCert)).Equal(leaf) {
			t.Errorf("%s was not mended: %v %v", what, st, err)
		}
		s.lets(trust, good)
	}
	must(t, s.Stop())
	h.converge()
	if seen := h.observed("nginx"); seen.State != client.PlacementDown {
		t.Errorf("after nginx was stopped: %+v", seen)
	}
	if err := consumer.Listening(s.address)(t.Context()); err == nil {
		t.Error("the agent started what was stopped")
	}
}

// TestWebRenewalUnderADownload, scenario S17: a download that runs while a new key is placed gets its octets to the last
// one.
func TestWebRenewalUnderADownload(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	s := w.runningWeb(t, machine{pool: pool.Name})
	trust, good := []byte(pool.Root.PEM), w.clientOf(t, pool, "good")
	before := parsed(t, s.h.read(nginxCert))
	s.serves(before)
	slow, err := s.get(trust, good, "/slow")
	must(t, err)
	defer slow.Body.Close()
	if _, err := io.ReadFull(slow.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	pid := string(s.h.read("/run/nginx.pid"))
	w.chancery(t, "host", "set", s.h.name, "--dns", "shop-"+s.h.name)
	s.h.converge()
	after := parsed(t, s.h.read(nginxCert))
	if string(after.RawSubjectPublicKeyInfo) == string(before.RawSubjectPublicKeyInfo) {
		t.Error("it was not re-keyed")
	}
	s.serves(after)
	if shown := s.lets(trust, good); !shown.Equal(after) {
		t.Errorf("a new connection is shown %s", cert.FormatSerial(shown.SerialNumber))
	}
	text := make([]byte, 1045) // past the first kilobyte, which comes at once: these are sent by the old worker now
	if _, err := io.ReadFull(slow.Body, text); err != nil || strings.Trim(string(text), "slow ") != "" {
		t.Errorf("the download: %v, %q", err, text)
	}
	if now := string(s.h.read("/run/nginx.pid")); now != pid {
		t.Errorf("nginx was restarted: %s, then %s", pid, now)
	}
}

// TestWebReloadThatFails: where nginx is not told, or cannot take what it is told, the old files come back, it goes on
// serving the old certificate, and the reason is reported.
func TestWebReloadThatFails(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	for name, c := range map[string]struct {
		steps, script, says string
	}{
		"the reload lies":  {"reload: [/bin/true]", "", "serves certificate"},
		"the reload fails": {"reload: [/bin/false]", "", "exit status 1"},
		"the check fails":  {"check: [/bin/false]", "", "exit status 1"},
		"wrong material":   {"check: [SPOIL]", "#!/bin/sh\ncat OTHER >KEY\nexec nginx -t -q -c CONF\n", "key values mismatch"},
		// A key of another algorithm passes nginx -t; only the port shows it.
		"another algorithm": {"check: [SPOIL]", "#!/bin/sh\ncat RSA >KEY\nexec nginx -t -q -c CONF\n", "handshake failure"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			pool := w.pool(t)
			s := w.runningWeb(t, machine{pool: pool.Name})
			trust, good := []byte(pool.Root.PEM), w.clientOf(t, pool, "good")
			before, key := parsed(t, s.h.read(nginxCert)), string(s.h.read(nginxKey))
			s.serves(before)
			names := strings.NewReplacer("SPOIL", s.h.inside("/opt/spoil"), "OTHER", s.h.inside("/opt/other.key"),
				"RSA", s.h.inside("/opt/rsa.key"), "KEY", s.h.inside(nginxKey), "CONF", s.h.inside(nginxConf))
			other, err := keyfile.EncodePKCS8(ecKey(t))
			must(t, err)
			s.h.write("/opt/other.key", string(other))
			s.h.write("/opt/rsa.key", string(encodeKey(t)))
			s.h.write("/opt/spoil", names.Replace(c.script))
			must(t, os.Chmod(s.h.path("/opt/spoil"), 0o755))
			s.h.write("/etc/chancery/agent.yaml", "steps:\n  nginx:\n    "+names.Replace(c.steps)+"\n")
			w.chancery(t, "host", "set", s.h.name, "--dns", "other-"+s.h.name)
			s.h.refuses("the old files are back")
			if seen := s.h.observed("nginx"); seen.State != client.PlacementFailed || !strings.Contains(seen.Message, c.says) ||
				seen.Serial != cert.FormatSerial(before.SerialNumber) {
				t.Errorf("reported is %+v, where %q is expected", seen, c.says)
			}
			if string(s.h.read(nginxKey)) != key || !parsed(t, s.h.read(nginxCert)).Equal(before) {
				t.Error("the old pair was not put back")
			}
			until(t, "the old certificate is served", func() bool {
				answer, err := s.get(trust, good, "/")
				if err != nil {
					return false
				}
				answer.Body.Close()
				return answer.StatusCode == http.StatusOK && answer.TLS.PeerCertificates[0].Equal(before)
			})
			must(t, os.Remove(s.h.path("/etc/chancery/agent.yaml")))
			s.h.converge()
			if after := parsed(t, s.h.read(nginxCert)); after.Equal(before) {
				t.Error("the new pair is not placed when it can be")
			} else {
				s.serves(after)
			}
		})
	}
}

// TestWebRevocation: nginx refuses a revoked client as soon as the agent has placed the CRL, and no other; and a revoked
// server gets a new key.
func TestWebRevocation(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	s := w.runningWeb(t, machine{pool: pool.Name})
	trust, good, bad := []byte(pool.Root.PEM), w.clientOf(t, pool, "good"), w.clientOf(t, pool, "bad")
	s.lets(trust, good)
	s.lets(trust, bad)
	s.h.revoked(pool, bad.pair.Leaf, nginxCRL)
	s.refuses(trust, bad, "certificate revoked")
	s.lets(trust, good)
	leaf := parsed(t, s.h.read(nginxCert))
	s.h.revoked(pool, leaf, nginxCRL)
	again := parsed(t, s.h.read(nginxCert))
	if string(again.RawSubjectPublicKeyInfo) == string(leaf.RawSubjectPublicKeyInfo) {
		t.Error("a revoked server was not re-keyed")
	}
	s.serves(again)
	s.lets(trust, good)
}

// revoked has a certificate of a pool revoked, and the host's agent run until it has placed the CRL that lists it.
func (h *host) revoked(p *client.Pool, c *x509.Certificate, file string) {
	h.t.Helper()
	_, err := h.world.admin.Revoke(h.t.Context(), p.Issuer.Name, cert.FormatSerial(c.SerialNumber), client.RevokeRequest{Reason: "keyCompromise"})
	must(h.t, err)
	until(h.t, "the CRL that lists "+c.Subject.String()+" is placed", func() bool {
		h.converge()
		return revokes(h.crlOf(h.crls(file), p.Issuer), c)
	})
}
