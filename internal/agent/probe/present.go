package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// Shown is what a server made of a client's certificate.
type Shown struct {
	Asked    bool   // it wanted one
	Accepted bool   // it took what was shown; of meaning only where Asked
	Revoked  bool   // it said itself that what was shown is revoked (RFC 8446 section 6.2, certificate_revoked)
	Cut      bool   // it said nothing and ended the connection: so do some who refuse, and all that are being restarted
	Said     string // what it said or did, in words
}

const (
	// quietWait is how long a server may say nothing before that is taken for consent: in TLS 1.3 the client's certificate is
	// judged after the client's handshake is over, and who refuses it says so at once.
	quietWait = 3 * time.Second
	// answerWait is how long a server may take over an answer that its protocol demands of it.
	answerWait = 5 * time.Second
	// presentTime bounds a whole connection.
	presentTime = 12 * time.Second
)

// verdictOf reads on after the handshake until the server has shown whether it takes the client.
type verdictOf func(t *tls.Conn, serverName string) Shown

// acceptance returns how a protocol shows that a client is taken.
func acceptance(p recipe.Probe) (verdictOf, error) {
	protocol := p.Accepts
	if protocol == "" && p.StartTLS == "postgres" {
		protocol = "postgres"
	}
	switch protocol {
	case "", "tls":
		return acceptsTLS, nil
	case "http":
		return acceptsHTTP, nil
	case "libvirt":
		return acceptsLibvirt, nil
	case "postgres":
		return acceptsPostgres, nil
	}
	return nil, fault.New(fault.Invalid, "accepts: %q is none of http, libvirt, postgres and tls", protocol)
}

// Present shows a server a client's certificate and says whether it takes it. It makes one connection, and verifies nothing of
// the server but that it holds the key of what it serves.
func Present(ctx context.Context, p recipe.Probe, client *tls.Certificate) (*Shown, error) {
	verdict, err := acceptance(p)
	if err != nil {
		return nil, err
	}
	address, err := dialable(p.Address)
	if err != nil {
		return nil, err
	}
	start, err := starter(p.StartTLS)
	if err != nil {
		return nil, err
	}
	name := askedName(p)
	ctx, cancel := context.WithTimeout(ctx, presentTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if refusedConnection(err) {
		return nil, fmt.Errorf("connect to %s: %w: %w", address, ErrDown, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if start != nil {
		if err := begin(conn, start, name); err != nil {
			return nil, fmt.Errorf("start TLS by %s at %s: %w", p.StartTLS, address, classify(err, true))
		}
	}
	shown, err := present(ctx, conn, client, name, p.StartTLS == "postgres", verdict)
	if err != nil {
		return nil, fmt.Errorf("show a certificate to %s: %w", address, err)
	}
	return shown, nil
}

// askedName is the first of the probe's names that can be asked for, or the host of its address.
func askedName(p recipe.Probe) string {
	for _, n := range p.Names {
		if name := serverName(n); name != "" {
			return name
		}
	}
	if host, _, err := net.SplitHostPort(p.Address); err == nil {
		return serverName(host)
	}
	return ""
}

func present(ctx context.Context, conn net.Conn, client *tls.Certificate, name string, database bool, verdict verdictOf) (*Shown, error) {
	seen := &Seen{}
	config := seen.config(client, name, database)
	t := tls.Client(conn, config)
	err := t.HandshakeContext(ctx)
	switch {
	case err != nil && !seen.proven(err):
		return nil, classify(err, false)
	case err != nil: // TLS 1.2: the handshake is not over before the server has judged
		return refusal(err), nil
	case !seen.Asked:
		_ = t.Close()
		return &Shown{Said: "it asks for no client certificate"}, nil
	}
	shown := verdict(t, name)
	shown.Asked = true
	_ = t.Close()
	return &shown, nil
}

// IsCut reports whether an error of Present is that of a connection which ended before there was a verdict. A server that is told
// of new files may close its port and open it again: connections that it had not accepted by then are reset.
func IsCut(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// certificateRevoked is the alert of RFC 8446 section 6.2, as crypto/tls words it.
const certificateRevoked = "revoked certificate"

// refusal is what an error after the server's proof says: an alert, or that it hung up or reset the connection. In TLS 1.3 that
// comes after the client's handshake is over, and an alert that was sent before a reset is read before it.
func refusal(err error) *Shown {
	s := &Shown{Asked: true, Said: err.Error(), Revoked: strings.Contains(err.Error(), certificateRevoked)}
	if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" {
		return s
	}
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		s.Cut, s.Said = true, "it hung up"
	case IsCut(err):
		s.Cut, s.Said = true, "it reset the connection"
	}
	return s
}

func taken(format string, args ...any) Shown {
	return Shown{Asked: true, Accepted: true, Said: fmt.Sprintf(format, args...)}
}

// acceptsTLS waits for an alert: a server that says something else, or is quiet, has taken the client.
func acceptsTLS(t *tls.Conn, _ string) Shown {
	_ = t.SetReadDeadline(time.Now().Add(quietWait))
	var one [1]byte
	_, err := t.Read(one[:])
	switch {
	case err == nil:
		return taken("it began to speak")
	case timedOut(err):
		return taken("it said nothing against it within %s", quietWait)
	}
	return *refusal(err)
}

// acceptsHTTP sends a request (RFC 9112). nginx ends the handshake whatever it thinks of the client's certificate, and answers
// requests by 400, or by its own 495 and 496 where a page is configured for them; Apache and HAProxy send an alert.
func acceptsHTTP(t *tls.Conn, name string) Shown {
	if name == "" {
		name = "localhost"
	}
	_ = t.SetDeadline(time.Now().Add(answerWait))
	_, wrong := io.WriteString(t, "GET / HTTP/1.1\r\nHost: "+name+"\r\nUser-Agent: chancery-proof\r\nConnection: close\r\n\r\n")
	line, err := readLine(bufio.NewReaderSize(io.LimitReader(t, 4<<10), 4<<10))
	switch {
	case err != nil && timedOut(err):
		return taken("it neither answered a request nor refused it within %s", answerWait)
	case err != nil:
		return *refusal(err)
	case wrong != nil:
		return *refusal(wrong)
	}
	protocol, rest, _ := strings.Cut(line, " ")
	status, _, _ := strings.Cut(rest, " ")
	if !strings.HasPrefix(protocol, "HTTP/") || len(status) != 3 {
		return taken("it answered %q", printable(line))
	}
	switch status {
	case "400", "495", "496":
		return Shown{Asked: true, Said: "it answered a request by HTTP " + strings.TrimSpace(printable(rest))}
	}
	return taken("it answered a request by HTTP %s", strings.TrimSpace(printable(rest)))
}

// acceptsLibvirt waits for the octet 1, by which libvirtd tells a client that it was taken (virNetServerClientCheckAccess);
// whom it does not take it hangs up on.
func acceptsLibvirt(t *tls.Conn, _ string) Shown {
	_ = t.SetReadDeadline(time.Now().Add(answerWait))
	var one [1]byte
	_, err := io.ReadFull(t, one[:])
	switch {
	case err == nil && one[0] == 1:
		return taken("it said that the client is verified")
	case err == nil:
		return Shown{Asked: true, Said: fmt.Sprintf("it answered by the octet %#02x, not by 0x01", one[0])}
	case timedOut(err):
		return Shown{Asked: true, Said: fmt.Sprintf("it did not say within %s that the client is verified", answerWait)}
	}
	return *refusal(err)
}

// acceptsPostgres sends a startup message. Whatever is answered to it, an error about the login included, comes after the
// certificate was taken: PostgreSQL verifies what it is shown in the handshake.
func acceptsPostgres(t *tls.Conn, _ string) Shown {
	body := binary.BigEndian.AppendUint32(nil, 3<<16) // protocol 3.0
	for _, text := range []string{"user", "chancery-proof", "database", "postgres", ""} {
		body = append(append(body, text...), 0)
	}
	_ = t.SetDeadline(time.Now().Add(answerWait))
	_, wrong := t.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...))
	var kind [1]byte
	_, err := io.ReadFull(t, kind[:])
	switch {
	case err == nil && kind[0] == 'R':
		return taken("it went on to the login")
	case err == nil && kind[0] == 'E':
		return taken("it verified the certificate, and went on to refuse the login")
	case err == nil:
		return taken("it answered the startup message")
	case timedOut(err):
		return taken("it neither answered the startup message nor refused it within %s", answerWait)
	case wrong != nil && !errors.Is(err, io.EOF):
		return *refusal(errors.Join(err, wrong))
	}
	return *refusal(err)
}
