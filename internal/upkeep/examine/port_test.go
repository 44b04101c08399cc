package examine

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/run/consumer"
	"chancery/internal/upkeep/finding"
)

// TestPathOnTheWire: openssl s_server sends its certificates in each wrong way.
func TestPathOnTheWire(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	other := issue(t, nil, "somebody else", ca)
	second := issue(t, o.issuer, "below", ca)
	deep := issue(t, second, "localhost", server("localhost"), known)
	leaf, issuer, root := o.leaf.cert, o.issuer.cert, o.root.cert
	for name, c := range map[string]struct {
		holder *holder
		sent   []*x509.Certificate
		trust  *Trust
		broken []string
	}{
		"right":             {o.leaf, []*x509.Certificate{leaf, issuer}, o.trust(), nil},
		"leaf alone":        {o.leaf, []*x509.Certificate{leaf}, o.trust(), []string{"wire.path.incomplete"}},
		"root sent":         {o.leaf, []*x509.Certificate{leaf, issuer, root}, o.trust(), []string{"wire.path.root"}},
		"reversed":          {o.leaf, []*x509.Certificate{leaf, root, issuer}, o.trust(), []string{"wire.path.order", "wire.path.root"}},
		"deep, in order":    {deep, []*x509.Certificate{deep.cert, second.cert, issuer}, o.trust(), nil},
		"deep, wrong order": {deep, []*x509.Certificate{deep.cert, issuer, second.cert}, o.trust(), []string{"wire.path.order"}},
		"deep, gap":         {deep, []*x509.Certificate{deep.cert, issuer}, o.trust(), []string{"wire.path.incomplete", "wire.path.extra"}},
		"unrelated":         {o.leaf, []*x509.Certificate{leaf, issuer, other.cert}, o.trust(), []string{"wire.path.extra"}},
		"twice":             {o.leaf, []*x509.Certificate{leaf, issuer, issuer}, o.trust(), []string{"wire.path.duplicate"}},
		"another authority": {o.leaf, []*x509.Certificate{leaf, issuer, root}, &Trust{Anchors: []*x509.Certificate{other.cert}, From: "x"}, []string{"wire.path.root", "wire.trust.untrusted"}},
		"nothing to trust":  {o.leaf, []*x509.Certificate{leaf, issuer}, nil, []string{"wire.trust.unknown"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := c.holder.sServer(t, c.sent)
			want(t, at(t, address, PortOptions{Trust: c.trust, Offline: true}), c.broken...)
		})
	}
}

// TestCertificateOnTheWire: what is wrong with the certificate itself.
func TestCertificateOnTheWire(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	old := issue(t, o.root, "old issuer", ca, expired)
	lenient := []string{"-cipher", "DEFAULT:@SECLEVEL=0", "-min_protocol", "TLSv1.2"}
	for name, c := range map[string]struct {
		issuer  *holder
		change  []func(*x509.Certificate)
		options PortOptions
		weak    bool
		broken  []string
	}{
		"expired": {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost"), expired}, broken: []string{"wire.times.expired"}},
		"not yet": {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost"), func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }}, broken: []string{"wire.times.future"}},
		"ends soon": {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost"), func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(-85 * 24 * time.Hour)
			c.NotAfter = time.Now().Add(5 * 24 * time.Hour)
		}}, broken: []string{"wire.times.ends"}},
		"young and short":  {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(20 * time.Hour) }}},
		"issuer expired":   {issuer: old, change: []func(*x509.Certificate){server("localhost")}, broken: []string{"wire.times.expired"}},
		"common name only": {issuer: o.issuer, change: []func(*x509.Certificate){server()}, broken: []string{"wire.names.commonname"}},
		"other name":       {issuer: o.issuer, change: []func(*x509.Certificate){server("elsewhere.test")}, broken: []string{"wire.names.mismatch"}},
		"client's": {issuer: o.issuer, change: []func(*x509.Certificate){func(c *x509.Certificate) {
			c.DNSNames, c.ExtKeyUsage = []string{"localhost"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}}, broken: []string{"wire.usages.server"}},
		"no signature": {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost"), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }}, broken: []string{"wire.usages.key"}},
		"encipherment": {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost"), func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }}, broken: []string{"wire.usages.encipherment"}},
		"a CA's":       {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost"), func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }}, broken: []string{"wire.usages.ca"}},
		"libvirt":      {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost")}, options: PortOptions{Recipe: "libvirt-server"}, broken: []string{"wire.usages.critical"}},
		"weak key":     {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost")}, weak: true, broken: []string{"wire.key.weak"}},
		"by address":   {issuer: o.issuer, change: []func(*x509.Certificate){server("localhost")}, options: PortOptions{Names: []string{}}, broken: []string{"wire.names.address"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := issue(t, c.issuer, "localhost", append(c.change, known)...)
			if c.weak {
				h = issueFor(t, c.issuer, weakKey(t), "localhost", append(c.change, known)...)
			}
			c.options.Trust, c.options.Offline = o.trust(), true
			if c.options.Names != nil { // by the address alone
				c.options.Names = nil
				found, _, err := Port(t.Context(), h.sServer(t, h.path, lenient...), c.options, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				want(t, found, c.broken...)
				return
			}
			want(t, at(t, h.sServer(t, h.path, lenient...), c.options), c.broken...)
		})
	}
}

// TestSelfSignedAndSHA1: openssl makes what Go does not sign.
func TestSelfSignedAndSHA1(t *testing.T) {
	t.Parallel()
	self := issue(t, nil, "localhost", server("localhost"), known)
	want(t, at(t, self.sServer(t, self.path), PortOptions{Offline: true}), "wire.trust.selfsigned")
	o := newOffice(t)
	want(t, at(t, self.sServer(t, self.path), PortOptions{Offline: true, Trust: o.trust()}), "wire.trust.selfsigned", "wire.trust.untrusted")
	twin := issue(t, nil, "root of "+t.Name(), ca) // the same name, another key
	leaf := issue(t, twin, "localhost", server("localhost"), known)
	wantOne(t, at(t, leaf.sServer(t, leaf.path), PortOptions{Offline: true, Trust: o.trust()}), "wire.trust.untrusted", "another key of that name")

	dir := t.TempDir()
	root, key := o.root.files(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	put(t, file("ext"), []byte("subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\nauthorityInfoAccess=OCSP;URI:http://127.0.0.1:9/\n"), 0o600)
	openssl(t, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", file("key"), "-out", file("csr"), "-subj", "/CN=localhost")
	openssl(t, "x509", "-req", "-sha1", "-in", file("csr"), "-CA", root, "-CAkey", key, "-days", "90", "-extfile", file("ext"), "-out", file("cert"))
	address := start(t, "openssl", "s_server", "-quiet", "-cert", file("cert"), "-key", file("key"), "-cipher", "DEFAULT:@SECLEVEL=0", "-min_protocol", "TLSv1.2")
	want(t, at(t, address, PortOptions{Offline: true, Trust: o.trust()}), "wire.signature.weak")
}

func openssl(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
}

func TestTrustFileStopsConsumers(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	address := o.leaf.sServer(t, o.leaf.path)
	trust := o.trust()
	trust.Anchors = append(trust.Anchors, issue(t, nil, "ended", ca, expired).cert)
	wantOne(t, at(t, address, PortOptions{Trust: trust, Offline: true}), "wire.trust.anchor", "ended", "expired")
	// A CA that may not have CAs below it.
	narrow := issue(t, o.root, "narrow", ca, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	below := issue(t, narrow, "below narrow", ca)
	leaf := issue(t, below, "localhost", server("localhost"), known)
	wantOne(t, at(t, leaf.sServer(t, leaf.path), PortOptions{Trust: o.trust(), Offline: true}), "wire.path.refused")
}

func TestVersions(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	for name, c := range map[string]struct {
		flags  []string
		broken []string
	}{
		"1.3 and 1.2":       {nil, nil},
		"1.1 only":          {[]string{"-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"}, []string{"wire.tls.version"}},
		"1.0 as well":       {[]string{"-min_protocol", "TLSv1", "-cipher", "DEFAULT:@SECLEVEL=0"}, []string{"wire.tls.old"}},
		"no ephemeral keys": {[]string{"-no_tls1_3", "-cipher", "AES128-SHA:@SECLEVEL=0"}, []string{"rsa"}},
	} {
		t.Run(name, func(t *testing.T) {
			if len(c.broken) == 1 && c.broken[0] == "rsa" {
				key, err := rsa.GenerateKey(rand.Reader, 2048)
				must(t, err)
				h := issueFor(t, o.issuer, key, "localhost", server("localhost"), known, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment })
				wantOne(t, at(t, h.sServer(t, h.path, c.flags...), PortOptions{Trust: o.trust(), Offline: true}), "wire.tls.old")
				return
			}
			want(t, at(t, o.leaf.sServer(t, o.leaf.path, c.flags...), PortOptions{Trust: o.trust(), Offline: true}), c.broken...)
		})
	}
}

// TestNginxInTheWrongOrder: nginx sends what its file has, in the file's order.
func TestNginxInTheWrongOrder(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	second := issue(t, o.issuer, "below", ca)
	leaf := issue(t, second, "localhost", server("localhost"), known)
	certificate, key := leaf.files(t, leaf.cert, o.issuer.cert, second.cert)
	n, err := consumer.StartNginx(t.Context(), t.TempDir(), consumer.NginxServer{Names: []string{"localhost"}, Certificate: certificate, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Stop() }()
	found := at(t, n.Address, PortOptions{Trust: o.trust(), Offline: true})
	want(t, found, "wire.path.order")
	for _, f := range found {
		if f.Check == "wire.clock" && f.Level == finding.OK {
			return
		}
	}
	t.Errorf("nginx tells the time, and it was not heard:\n%s", listing(found))
}

func TestPostgreSQL(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	certificate, key := o.leaf.files(t)
	for _, path := range []string{certificate, key} { // the starter opens the way to the directory
		if out, err := exec.Command("chown", "postgres", path).CombinedOutput(); err != nil && os.Geteuid() == 0 {
			t.Fatalf("%v: %s", err, out)
		}
	}
	pg, err := consumer.StartPostgreSQL(t.Context(), filepath.Dir(certificate), consumer.PostgreSQLOptions{
		Settings: []string{"ssl=on", "ssl_cert_file=" + certificate, "ssl_key_file=" + key},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pg.Stop() }()
	found := at(t, pg.Address, PortOptions{Trust: o.trust(), Offline: true})
	want(t, found, "wire.tls.none")
	wantOne(t, found, "wire.tls.none", "PostgreSQL", "--starttls postgres")
	want(t, at(t, pg.Address, PortOptions{StartTLS: "postgres", Trust: o.trust(), Offline: true}))
	wantOne(t, at(t, pg.Address, PortOptions{StartTLS: "smtp", Offline: true, Timeout: 2 * time.Second}), "wire.tls.slow")
}

// say starts a server that does one thing with each connection.
func say(t testing.TB, with func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); with(conn) }()
		}
	}()
	return l.Addr().String()
}

// TestBusyPostgreSQL takes two seconds to answer its own question: it was taken for a port that hangs up.
func TestBusyPostgreSQL(t *testing.T) {
	t.Parallel()
	busy := say(t, func(c net.Conn) {
		question := make([]byte, 8)
		if _, err := io.ReadFull(c, question); err != nil || question[0] == recordHandshake {
			return
		}
		time.Sleep(2 * time.Second)
		_, _ = io.WriteString(c, "S")
	})
	wantOne(t, at(t, busy, PortOptions{Offline: true}), "wire.tls.none", "PostgreSQL", "--starttls postgres")
}

func TestWhatIsNoTLS(t *testing.T) {
	t.Parallel()
	web := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.NotFoundHandler()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = web.Serve(l) }()
	defer web.Close()
	wantOne(t, at(t, l.Addr().String(), PortOptions{Offline: true}), "wire.tls.none", "plain HTTP")
	greet := func(text string) string {
		return say(t, func(c net.Conn) { _, _ = io.WriteString(c, text); _, _ = io.Copy(io.Discard, c) })
	}
	for text, words := range map[string][]string{
		"SSH-2.0-OpenSSH_9.2p1 \x1b]0;owned\x07\r\n": {"SSH"},
		"220 mail.test ESMTP\r\n":                    {"SMTP", "--starttls smtp"},
		"* OK ready\r\n":                             {"IMAP", "--starttls imap"},
		"+OK ready\r\n":                              {"POP3", "--starttls pop3"},
		"RFB 003.008\n":                              {"VNC", "--starttls vnc"},
		"NBDMAGICIHAVEOPT\x00\x03":                   {"block device", "--starttls nbd"},
		"220 (vsFTPd 3.0.3)\r\n":                     {"FTP"},
		"J\x00\x00\x00\x0a10.11.6-MariaDB\x00":       {"MariaDB"},
		"\x00\x01\x02hello":                          {"something else"},
	} {
		wantOne(t, at(t, greet(text), PortOptions{Offline: true}), "wire.tls.none", words...)
	}
	gone := say(t, func(net.Conn) {})
	wantOne(t, at(t, gone, PortOptions{Offline: true}), "wire.tls.none", "hung up")
	want(t, at(t, "127.0.0.1:1", PortOptions{Offline: true}), "wire.connect.refused")
	found, _, err := Port(t.Context(), "no-such-host.invalid:443", PortOptions{Offline: true}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	want(t, found, "wire.connect.name")
	for _, bad := range []string{"host", "host:", ":443", "::1:443", "host:nothing", "a b:1", "http://x:1"} {
		if _, _, err := Port(t.Context(), bad, PortOptions{}, time.Now()); err == nil {
			t.Errorf("%q passes for HOST:PORT", bad)
		}
	}
}

// TestHostilePeers: a look ends in time whatever the peer does.
func TestHostilePeers(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	silent := say(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	slow := say(t, func(c net.Conn) { // a record of a handshake, octet by octet
		for _, b := range []byte(strings.Repeat("\x16\x03\x03\x40\x00", 100)) {
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	endless := say(t, func(c net.Conn) { // empty records for ever
		for {
			if _, err := c.Write([]byte("\x16\x03\x03\x00\x00")); err != nil {
				return
			}
		}
	})
	garbage := say(t, func(c net.Conn) {
		_, _ = c.Write([]byte("\x16\x03\x03\x00\x10garbage-garbage-"))
		_, _ = io.Copy(io.Discard, c)
	})
	for address, c := range map[string]struct {
		rule    string
		timeout time.Duration // 0: that of the others, since what is wrong there comes at once
	}{
		silent: {"wire.tls.slow", 3 * time.Second}, slow: {"wire.tls.slow", 3 * time.Second}, endless: {"wire.tls.handshake", 0}, garbage: {"wire.tls.handshake", 0},
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			wantOne(t, at(t, address, PortOptions{Offline: true, Timeout: c.timeout}), c.rule)
		})
	}
	junk := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{[]byte("no certificate")}, PrivateKey: o.leaf.key}}}
	served := say(t, func(c net.Conn) { _ = tls.Server(c, junk).Handshake() })
	wantOne(t, at(t, served, PortOptions{Offline: true}), "wire.certificate.unreadable")
	many := tls.Certificate{PrivateKey: o.leaf.key, Certificate: [][]byte{o.leaf.cert.Raw}}
	for range 200 {
		many.Certificate = append(many.Certificate, o.issuer.cert.Raw)
	}
	served = say(t, func(c net.Conn) { _ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{many}}).Handshake() })
	wantOne(t, at(t, served, PortOptions{Offline: true}), "wire.certificate.unreadable", "201")
	pasted := issue(t, o.issuer, "x", server("x;touch /tmp/owned", "$(id)"), func(c *x509.Certificate) { c.OCSPServer = []string{"http://127.0.0.1:1/;reboot"} })
	found := at(t, pasted.sServer(t, pasted.path), PortOptions{Trust: o.trust()})
	for _, f := range found {
		if strings.Contains(f.Hint, ";touch") && !strings.Contains(f.Hint, "'dns:x;touch /tmp/owned'") || strings.Contains(f.Hint, ";reboot") && !strings.Contains(f.Hint, "'http://127.0.0.1:1/;reboot'") {
			t.Errorf("a stranger's words would be run: %s", f.Hint)
		}
	}
	want(t, found, "wire.names.mismatch", "wire.revocation.unreachable")
	evil := issue(t, o.issuer, "\x1b[2J\x1b]0;owned\x07\u202etxt.exe", server("localhost"), known)
	want(t, at(t, evil.sServer(t, evil.path), PortOptions{Offline: true, Trust: o.trust()}))
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	put(t, roots, keyfileCertificates(o.root.cert, o.issuer.cert), 0o644)
	address := o.leaf.sServer(t, o.leaf.path, "-www", "-Verify", "5", "-verify_return_error", "-CAfile", roots)
	options := PortOptions{Trust: o.trust(), Offline: true}
	want(t, at(t, address, options))
	stranger := issue(t, nil, "stranger", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	options.Client = stranger.pair()
	found := at(t, address, options)
	for range 20 { // in TLS 1.3 a refusal follows the handshake, and on a busy machine comes later than a look waits for it now and then
		if slices.ContainsFunc(found, func(f finding.Finding) bool { return f.Check == "wire.client.refused" }) {
			break
		}
		found = at(t, address, options)
	}
	wantOne(t, found, "wire.client.refused")
	friend := issue(t, o.issuer, "friend", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	options.Client = friend.pair()
	want(t, at(t, address, options))
}

func (h *holder) pair() *tls.Certificate {
	c := &tls.Certificate{PrivateKey: h.key}
	for _, p := range h.path {
		c.Certificate = append(c.Certificate, p.Raw)
	}
	return c
}

func TestClock(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	web := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-2*time.Hour).UTC().Format(http.TimeFormat))
	}), TLSConfig: &tls.Config{Certificates: []tls.Certificate{*o.leaf.pair()}}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = web.ServeTLS(l, "", "") }()
	defer web.Close()
	found := at(t, l.Addr().String(), PortOptions{Offline: true, Trust: o.trust()})
	want(t, found, "wire.clock.differs")
	wantOne(t, found, "wire.clock.differs", "behind", "hours")
}

// TestAuthorityAway: that the authority cannot be asked is told, and hides nothing else.
func TestAuthorityAway(t *testing.T) {
	t.Parallel()
	want(t, []finding.Finding{Unreachable(io.ErrUnexpectedEOF)}, "wire.authority.unreachable")
	free, err := consumer.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(client.Options{Address: "https://" + free, Roots: x509.NewCertPool(), Token: "none"})
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	o := newOffice(t)
	found := at(t, o.leaf.sServer(t, o.leaf.path), PortOptions{Offline: true, Authority: &Authority{API: api}})
	want(t, found, "wire.authority.unreachable", "wire.trust.unknown")
}

// TestBlockDevice: qemu-nbd speaks TLS once it is asked for it in its own protocol.
func TestBlockDevice(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	certificate, key := o.leaf.files(t)
	dir := filepath.Dir(certificate)
	must(t, os.Rename(certificate, filepath.Join(dir, "server-cert.pem")))
	must(t, os.Rename(key, filepath.Join(dir, "server-key.pem")))
	put(t, filepath.Join(dir, "ca-cert.pem"), keyfileCertificates(o.root.cert, o.issuer.cert), 0o644)
	put(t, filepath.Join(dir, "disk"), make([]byte, 1<<20), 0o600)
	address, err := consumer.FreeAddress()
	must(t, err)
	host, port, _ := net.SplitHostPort(address)
	p, err := consumer.Start(context.WithoutCancel(t.Context()), consumer.Program{
		Path: "/usr/bin/qemu-nbd", Ready: consumer.Listening(address),
		Args: []string{"--object", "tls-creds-x509,id=t,dir=" + dir + ",endpoint=server,verify-peer=no", "--tls-creds", "t", "-b", host, "-p", port, "-t", "-f", "raw", "-x", "x",
			filepath.Join(dir, "disk")},
	})
	must(t, err)
	t.Cleanup(func() { _ = p.Stop() })
	options := PortOptions{Trust: o.trust(), Offline: true, Timeout: 20 * time.Second}
	wantOne(t, at(t, address, options), "wire.tls.none", "--starttls nbd")
	options.StartTLS = "nbd"
	want(t, at(t, address, options), "wire.tls.old") // GnuTLS has it by default
}
