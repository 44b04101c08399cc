// Package probe is what an agent sees: the facts of its host, what a consumer serves on the wire, what another user can
// read, and whether a certificate is right for the consumer that is to get it. It writes nothing.
//
// Standards: RFC 8446 and RFC 5246 (TLS), RFC 6066 section 3 (server_name), RFC 9525 (names), RFC 5280 sections 4 to 6,
// RFC 4514 (names as text); STARTTLS as in RFC 3207 (smtp), RFC 9051 (imap), RFC 2595 (pop3), RFC 4511 section 4.14
// (ldap), RFC 6120 section 5 (xmpp), the SSLRequest of PostgreSQL's protocol, RFC 6143 with the VeNCrypt security type of its
// community (vnc), and NBD_OPT_STARTTLS of the NBD protocol (nbd).
//
// Divergences, all deliberate:
//
//   - The connection itself verifies nothing: what is served is wanted even where it is wrong, to say what is wrong with
//     it. The path is judged afterwards, as a peer that holds only the roots would.
//   - RFC 9525 ignores the common name. Where a recipe says so, a certificate without alternative names is taken by its
//     common name, as GnuTLS takes it.
//   - A keyUsage or extKeyUsage that forbids what a consumer does is refused whether it is critical or not.
//   - A server that refuses the certificate shown to it, after it proved that it holds its own key, has served.
package probe

import (
	"crypto/x509"
	"errors"
	"net"
	"os"
	"syscall"
)

// What a connection may say other than serve. Each is in the chain of the error.
var (
	// ErrDown: nothing listens at the address.
	ErrDown = errors.New("nothing listens there")
	// ErrNotTLS: what answered does not speak TLS, or not the STARTTLS protocol that was expected.
	ErrNotTLS = errors.New("it does not speak TLS")
	// ErrTimeout: it did not answer in time.
	ErrTimeout = errors.New("no answer in time")
	// ErrHandshake: the TLS handshake failed before a certificate was proven.
	ErrHandshake = errors.New("the TLS handshake failed")
	// ErrNotServed: TLS is spoken, and what is served is not what was placed.
	ErrNotServed = errors.New("it does not serve what was placed")
)

// IsDown reports whether the consumer does not run, as far as its port shows.
func IsDown(err error) bool { return errors.Is(err, ErrDown) }

// Seen is what a server showed on one connection.
type Seen struct {
	Path       []*x509.Certificate // in the order in which they were sent
	ServerName string              // that was asked for; empty for none
	Version    uint16              // of TLS
	// Asked says that the server wanted a certificate of the client, and Refused what it said of it: empty where it said
	// nothing against it within a moment.
	Asked   bool
	Refused string
}

// Leaf is the certificate that the server proved to hold the key of.
func (s *Seen) Leaf() *x509.Certificate { return s.Path[0] }

// refusedConnection reports whether the kernel said that nobody listens.
func refusedConnection(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

func timedOut(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}
