package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// defaultTimeout is how long a probe waits where its recipe does not say.
const defaultTimeout = 10 * time.Second

// A single connection has the probe's time within these bounds: one that hangs is not to use up the time of all, and a
// busy host is to have enough for one even where the probe's time is short.
const (
	leastConnection = 2 * time.Second
	mostConnection  = 5 * time.Second
)

// verdictWait is how long a server is given to refuse the client's certificate once the handshake is done: in TLS 1.3 it
// says so only afterwards.
const verdictWait = 250 * time.Millisecond

// Look makes one connection and returns what was shown. It asks for the first of the probe's names that can be asked for,
// or for the host of the address. It verifies nothing but that the server holds the key of the certificate it shows.
func Look(ctx context.Context, p recipe.Probe, client *tls.Certificate) (*Seen, error) {
	return look(ctx, p, client, askedName(p))
}

// look makes one connection that asks for serverName; empty asks for none.
func look(ctx context.Context, p recipe.Probe, client *tls.Certificate, serverName string) (*Seen, error) {
	address, err := dialable(p.Address)
	if err != nil {
		return nil, err
	}
	start, err := starter(p.StartTLS)
	if err != nil {
		return nil, err
	}
	limit := min(mostConnection, max(leastConnection, timeoutOf(p)))
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	switch {
	case err == nil:
	case refusedConnection(err):
		return nil, fmt.Errorf("connect to %s: %w: %w", address, ErrDown, err)
	case timedOut(err) || ctx.Err() != nil:
		return nil, fmt.Errorf("connect to %s within %s: %w: %w", address, limit, ErrTimeout, err)
	default:
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if start != nil {
		if err := begin(conn, start, serverName); err != nil {
			return nil, fmt.Errorf("start TLS by %s at %s: %w", p.StartTLS, address, classify(err, true))
		}
	}
	seen, err := handshake(ctx, conn, client, serverName, p.StartTLS == "postgres")
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", address, err)
	}
	return seen, nil
}

// begin runs the plain-text part of a STARTTLS protocol. What the server sends after it and before our first record can
// come from somebody in between, so it is refused.
func begin(conn net.Conn, start startTLS, serverName string) error {
	in := bufio.NewReaderSize(io.LimitReader(conn, startTLSLimit), 4<<10)
	if err := start(in, conn, serverName); err != nil {
		return err
	}
	if n := in.Buffered(); n > 0 {
		return fmt.Errorf("%w: %d octets of plain text follow the agreement to start TLS", ErrNotTLS, n)
	}
	return nil
}

// handshake speaks TLS and keeps the path that is shown. Database says that the peer is PostgreSQL, which since release 17
// wants its protocol named by ALPN.
func handshake(ctx context.Context, conn net.Conn, client *tls.Certificate, serverName string, database bool) (*Seen, error) {
	seen := &Seen{ServerName: serverName}
	config := seen.config(client, serverName, database)
	t := tls.Client(conn, config)
	err := t.HandshakeContext(ctx)
	if err != nil && !seen.proven(err) {
		return nil, classify(err, false)
	}
	if err != nil {
		seen.Version, seen.Refused = t.ConnectionState().Version, err.Error()
		return seen, nil
	}
	seen.Version = t.ConnectionState().Version
	if seen.Asked {
		seen.Refused = verdict(t)
	}
	_ = t.Close()
	return seen, nil
}

// config notes what the server shows and asks for.
func (s *Seen) config(client *tls.Certificate, serverName string, database bool) *tls.Config {
	config := &tls.Config{
		ServerName:             serverName,
		MinVersion:             tls.VersionTLS12,
		InsecureSkipVerify:     true, // what is wrong is to be seen and said; judge looks at it afterwards
		SessionTicketsDisabled: true,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) (err error) {
			s.Path, err = parsePath(raw)
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			s.Asked = true
			if client == nil {
				return new(tls.Certificate), nil
			}
			return client, nil
		},
	}
	if database {
		config.NextProtos = []string{"postgresql"}
	}
	return config
}

// proven reports whether a handshake that failed had got as far as the proof that the server holds its key. Our own
// certificate is taken from the configuration after that proof: in TLS 1.3 after the server's Finished, and in TLS 1.2
// after ServerKeyExchange, which is signed, because only ephemeral key exchanges are offered. The server speaks of it by an
// alert, or by hanging up.
func (s *Seen) proven(err error) bool {
	if len(s.Path) == 0 || !s.Asked {
		return false
	}
	var remote *net.OpError
	alert := errors.As(err, &remote) && remote.Op == "remote error"
	return alert || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}

// verdict waits a moment for what the server says of the client's certificate. Hanging up is what libvirtd says.
func verdict(t *tls.Conn) string {
	_ = t.SetReadDeadline(time.Now().Add(verdictWait))
	var one [1]byte
	_, err := t.Read(one[:])
	switch {
	case err == nil || timedOut(err):
		return ""
	case errors.Is(err, io.EOF):
		return "it hung up after the handshake"
	}
	return err.Error()
}

func parsePath(raw [][]byte) ([]*x509.Certificate, error) {
	const most = 32
	if len(raw) == 0 || len(raw) > most {
		return nil, fmt.Errorf("the server sent %d certificates, where 1 to %d are expected", len(raw), most)
	}
	path := make([]*x509.Certificate, 0, len(raw))
	for i, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("read certificate %d of the path: %w", i+1, err)
		}
		path = append(path, c)
	}
	return path, nil
}

// classify puts one of the package's errors into the chain of err. Plain says that TLS had not begun.
func classify(err error, plain bool) error {
	var header tls.RecordHeaderError
	switch {
	case errors.Is(err, ErrNotTLS):
		return err
	case timedOut(err) || errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	case errors.As(err, &header), plain && errors.Is(err, io.EOF), plain && errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %w", ErrNotTLS, err)
	}
	return fmt.Errorf("%w: %w", ErrHandshake, err)
}

// dialable is the address to connect to: a server that listens on every address is met on loopback.
func dialable(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return "", fault.New(fault.Invalid, "the probe's address %q is not HOST:PORT, with an IPv6 address in brackets", address)
	}
	switch host {
	case "", "*", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port), nil
}

// serverName is what is asked for to reach name: nothing for an address (RFC 6066 section 3), and a label of our own in
// the place of a wildcard.
func serverName(name string) string {
	name = strings.TrimSuffix(strings.TrimPrefix(name, "dns:"), ".")
	if strings.HasPrefix(name, "ip:") {
		return ""
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return ""
	}
	if rest, ok := strings.CutPrefix(name, "*."); ok {
		return "chancery-probe." + rest
	}
	return name
}

func timeoutOf(p recipe.Probe) time.Duration {
	if p.Timeout > 0 {
		return time.Duration(p.Timeout)
	}
	return defaultTimeout
}
