package examine

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"syscall"
	"time"

	"chancery/internal/agent/probe"
)

// Served is what a port showed on a connection.
type Served struct {
	Path    []*x509.Certificate // in the order in which they were sent
	Version uint16              // of TLS
	Staple  []byte              // the stapled OCSP answer
	Asked   bool                // the server wanted a certificate of the client
	Refused string              // what it said against the one that was shown
	Date    time.Time           // the server's clock, where it speaks HTTP
	At      time.Time           // ours at that moment
	From    netip.Addr          // the address that was connected to
}

// failure is why a port could not be looked at, by its rule.
type failure struct {
	rule, seen, message, command string
}

func (f *failure) Error() string { return f.message }

// mostCertificates bounds what is taken of one path. crypto/tls bounds its octets: 256 KiB.
const mostCertificates = 32

// verdictWait is how long a server is given to refuse the client's certificate after the handshake, as TLS 1.3 has it.
const verdictWait = 300 * time.Millisecond

// connection is how one is made.
type connection struct {
	address    string // HOST:PORT
	startTLS   string
	serverName string
	client     *tls.Certificate
	timeout    time.Duration
	most       uint16 // the newest version that is offered; 0 is no limit
	http       bool   // ask for the time, where HTTP is spoken
}

// connect makes a connection and keeps what is shown. Where a certificate was shown and the handshake failed nevertheless,
// both are returned.
func (c connection) connect(ctx context.Context) (*Served, *failure) {
	served, fail := c.once(ctx, offer{alpn: true})
	switch {
	case fail == nil:
	case strings.Contains(fail.seen, "no application protocol"): // a server that insists on another ALPN
		return c.once(ctx, offer{})
	case strings.Contains(fail.seen, "handshake failure") && len(served.Path) == 0: // one that knows nothing newer, perhaps
		if again, wrong := c.once(ctx, offer{alpn: true, oldest: true}); wrong == nil {
			return again, nil
		}
	}
	return served, fail
}

// offer is what is offered to a server beside the versions.
type offer struct {
	alpn   bool
	oldest bool // key exchanges by the certificate's key, too
}

func (c connection) once(ctx context.Context, with offer) (*Served, *failure) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.address)
	if err != nil {
		return nil, c.notConnected(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if err := probe.StartTLS(conn, c.startTLS, c.serverName); err != nil {
		return nil, c.notStarted(err)
	}
	heard := &hearing{Conn: conn}
	served := &Served{From: remoteOf(conn)}
	t := tls.Client(heard, c.config(served, with))
	err = t.HandshakeContext(ctx)
	served.Version, served.Staple = t.ConnectionState().Version, t.ConnectionState().OCSPResponse
	switch {
	case err != nil && served.Asked && len(served.Path) > 0 && !with.oldest:
		// An ephemeral key exchange was signed before our certificate was asked for, so what it says now is about ours.
		served.Refused = clean(err.Error())
		return served, nil
	case err != nil:
		return served, c.notSpoken(ctx, err, heard.head)
	}
	if served.Asked {
		served.Refused = verdict(t)
	}
	if c.http && served.Refused == "" && (t.ConnectionState().NegotiatedProtocol == "http/1.1" || webPort(c.address)) {
		served.askTime(t, c.serverName)
	}
	_ = t.Close()
	return served, nil
}

func (c connection) config(served *Served, with offer) *tls.Config {
	config := &tls.Config{
		ServerName:             c.serverName,
		MinVersion:             tls.VersionTLS10, // what is too old is to be told from what is no TLS
		MaxVersion:             c.most,
		CipherSuites:           suites(with.oldest),
		InsecureSkipVerify:     true, // what is wrong is to be seen; it is judged afterwards
		SessionTicketsDisabled: true,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) (err error) {
			served.Path, err = parsePath(raw)
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			served.Asked = true
			if c.client == nil {
				return new(tls.Certificate), nil
			}
			return c.client, nil
		},
	}
	switch {
	case c.startTLS == "postgres":
		config.NextProtos = []string{"postgresql"}
	case c.startTLS == "" && with.alpn && c.http:
		config.NextProtos = []string{"http/1.1"}
	}
	return config
}

// errCertificate says that what was shown is no certificate.
var errCertificate = errors.New("not a certificate")

func parsePath(raw [][]byte) ([]*x509.Certificate, error) {
	if len(raw) > mostCertificates {
		return nil, fmt.Errorf("%w: %d of them were sent, of which %d are looked at", errCertificate, len(raw), mostCertificates)
	}
	path := make([]*x509.Certificate, 0, len(raw))
	for i, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return path, fmt.Errorf("%w: number %d of %d: %w", errCertificate, i+1, len(raw), err)
		}
		path = append(path, c)
	}
	return path, nil
}

// suites are all that can be spoken, good and bad: what a server has is to be seen. Those without an ephemeral key exchange
// are offered only where nothing else passed.
func suites(oldest bool) []uint16 {
	var ids []uint16
	for _, s := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if oldest || !strings.HasPrefix(s.Name, "TLS_RSA_") {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func (c connection) notConnected(err error) *failure {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return &failure{"connect.name", dns.Error(), fmt.Sprintf("%s has no address", dns.Name), "getent hosts " + quoted(dns.Name)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &failure{"connect.refused", "connection refused", "nothing listens at " + c.address, "ss -ltn " + quoted("sport = :"+portOf(c.address))}
	case timedOut(err):
		return &failure{"connect.unreachable", "no answer within " + span(c.timeout), fmt.Sprintf("%s does not answer", c.address), c.route()}
	}
	return &failure{"connect.unreachable", err.Error(), fmt.Sprintf("%s cannot be reached", c.address), c.route()}
}

func (c connection) notStarted(err error) *failure {
	seen := strings.TrimPrefix(err.Error(), probe.ErrNotTLS.Error()+": ")
	switch {
	case timedOut(err):
		return &failure{"tls.slow", "no answer within " + span(c.timeout), fmt.Sprintf("%s does not answer as %s does", c.address, c.startTLS), c.longer()}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		seen = "it hung up"
	}
	return &failure{
		"tls.none", seen, fmt.Sprintf("TLS cannot be started at %s by %s", c.address, c.startTLS),
		fmt.Sprintf("chancery doctor %s --starttls none", quoted(c.address)),
	}
}

// notSpoken tells what answered from what failed.
func (c connection) notSpoken(ctx context.Context, err error, head []byte) *failure {
	var header tls.RecordHeaderError
	var remote *net.OpError
	switch {
	case errors.Is(err, errCertificate), strings.Contains(err.Error(), "failed to parse certificate"): // crypto/tls has no type for it
		return &failure{"certificate.unreadable", err.Error(), fmt.Sprintf("%s serves what is no certificate", c.address), ""}
	case errors.As(err, &header), len(head) > 0 && head[0] != recordAlert && head[0] != recordHandshake:
		what, protocol := whatAnswers(head)
		return c.notTLS(what, protocol)
	case timedOut(err) && len(head) == 0, hungUp(err) && len(head) == 0:
		if c.startTLS == "" && c.most == 0 {
			patience := listenWait // who has kept silent till now is not given all that time again
			if hungUp(err) {
				patience = max(patience, c.timeout/2)
			}
			if what, protocol := c.listen(ctx, patience); what != "" {
				return c.notTLS(what, protocol)
			}
		}
		if timedOut(err) {
			return &failure{"tls.slow", "no answer within " + span(c.timeout), fmt.Sprintf("%s takes the connection and does not answer", c.address), c.longer()}
		}
		return c.notTLS("it hung up without a word", "")
	case timedOut(err):
		return &failure{"tls.slow", "no end within " + span(c.timeout), fmt.Sprintf("the handshake with %s does not end", c.address), c.longer()}
	case errors.As(err, &remote) && remote.Op == "remote error":
		return &failure{"tls.handshake", err.Error(), fmt.Sprintf("%s breaks the handshake off", c.address), c.openssl("")}
	}
	return &failure{"tls.handshake", err.Error(), fmt.Sprintf("the handshake with %s fails", c.address), c.openssl("")}
}

// longer is the same look with more time: what is slow then answers, and what is stuck does not.
func (c connection) longer() string {
	command := fmt.Sprintf("chancery doctor %s --timeout %s", quoted(c.address), max(time.Minute, 5*c.timeout.Round(time.Second)))
	if c.startTLS != "" {
		command += " --starttls " + c.startTLS
	}
	return command
}

// route shows how far packets for the port come.
func (c connection) route() string {
	host, _, _ := net.SplitHostPort(c.address)
	return fmt.Sprintf("traceroute -T -p %s %s", portOf(c.address), quoted(host))
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// openssl is another program's look at the same; empty where that cannot begin TLS as it is begun there.
func (c connection) openssl(more string) string {
	if c.startTLS == "vnc" || c.startTLS == "nbd" {
		return ""
	}
	command := "openssl s_client -connect " + quoted(c.address)
	if c.startTLS != "" {
		command += " -starttls " + c.startTLS
	}
	if c.serverName != "" {
		command += " -servername " + quoted(c.serverName)
	}
	return command + more + " </dev/null"
}

func (c connection) notTLS(what, protocol string) *failure {
	f := &failure{rule: "tls.none", seen: what, message: fmt.Sprintf("%s does not speak TLS: what answers is %s", c.address, what)}
	if protocol != "" {
		f.command = fmt.Sprintf("chancery doctor %s --starttls %s", quoted(c.address), protocol)
	}
	return f
}

func timedOut(err error) bool {
	var n net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, net.ErrClosed) || errors.As(err, &n) && n.Timeout() // it is we who close
}

func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// verdict waits a moment for what the server says of the client's certificate. Hanging up is what libvirtd says.
func verdict(t *tls.Conn) string {
	_ = t.SetReadDeadline(time.Now().Add(verdictWait))
	var one [1]byte
	_, err := t.Read(one[:])
	switch {
	case err == nil, timedOut(err):
		return ""
	case errors.Is(err, io.EOF):
		return "it hung up after the handshake"
	}
	return clean(err.Error())
}

// webPort reports whether HTTP is spoken at an address by custom.
func webPort(address string) bool {
	_, port, _ := net.SplitHostPort(address)
	return port == "443" || port == "8443"
}

// mostAnswer bounds the head of an HTTP answer.
const mostAnswer = 16 << 10

// askTime asks for the server's clock. It is no matter if it does not say it.
func (s *Served) askTime(t *tls.Conn, host string) {
	if host == "" {
		host = "localhost"
	}
	_ = t.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := fmt.Fprintf(t, "HEAD / HTTP/1.1\r\nHost: %s\r\nUser-Agent: chancery-doctor\r\nConnection: close\r\n\r\n", host); err != nil {
		return
	}
	in := textproto.NewReader(bufio.NewReader(io.LimitReader(t, mostAnswer)))
	line, err := in.ReadLine()
	if err != nil || !strings.HasPrefix(line, "HTTP/") {
		return
	}
	header, err := in.ReadMIMEHeader()
	if err != nil {
		return
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		s.Date, s.At = date, time.Now()
	}
}
