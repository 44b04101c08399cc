package examine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// reach says how far what certificates point at may lie. Who serves a certificate chooses the addresses in it, and doctor runs
// where that stranger may not go: without this, a look at a port on the other side of the world would ask a service that
// listens on this machine alone, or the metadata of its cloud.
type reach struct {
	at      netip.Addr // of what is looked at: it may point at its own surroundings
	private bool       // the operator says that private and loopback addresses may be asked
}

// errInside says that a certificate points at an address to which a stranger may not lead.
var errInside = errors.New("not asked")

// errNever says that nobody may lead there, and that --fetch-private does not help.
var errNever = fmt.Errorf("%w at all", errInside)

// control is asked with each address that is connected to, when names have been resolved and redirects been followed, so that
// neither leads elsewhere.
func (r reach) control(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", errInside, address)
	}
	to, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("%w: %s", errInside, address)
	}
	return r.allows(to)
}

// allows refuses an address beyond reach. Link-local, multicast and unspecified ones are never a CRL's, whoever says so.
func (r reach) allows(to netip.Addr) error {
	to, at := plainAddress(to), plainAddress(r.at)
	switch {
	case !to.IsValid() || to.IsUnspecified() || within(to, "0.0.0.0/8", "240.0.0.0/4"):
		return fmt.Errorf("%w: %s is no address of a server", errNever, to)
	case to.IsMulticast():
		return fmt.Errorf("%w: %s is a multicast address", errNever, to)
	case to.IsLinkLocalUnicast():
		return fmt.Errorf("%w: %s is a link-local address", errNever, to)
	case r.private, to == at:
		return nil
	case to.IsLoopback() && !at.IsLoopback():
		return fmt.Errorf("%w: %s is this machine itself, and what is looked at is not", errInside, to)
	case isPrivate(to) && !at.IsLoopback() && !isPrivate(at):
		return fmt.Errorf("%w: %s is a private address, and what is looked at has a public one", errInside, to)
	}
	return nil
}

// isPrivate is RFC 1918, RFC 4193, RFC 6598 and the site-local addresses that RFC 3879 withdrew.
func isPrivate(a netip.Addr) bool {
	return a.IsPrivate() || within(a, "100.64.0.0/10", "fec0::/10")
}

func within(a netip.Addr, prefixes ...string) bool {
	for _, p := range prefixes {
		if netip.MustParsePrefix(p).Contains(a) {
			return true
		}
	}
	return false
}

// plainAddress takes an IPv4 address out of the IPv6 addresses that lead to it: mapped (RFC 4291), NAT64 (RFC 6052) and 6to4
// (RFC 3056).
func plainAddress(a netip.Addr) netip.Addr {
	a = a.WithZone("").Unmap()
	if !a.Is6() {
		return a
	}
	octets := a.As16()
	switch {
	case within(a, "64:ff9b::/96"), within(a, "::/96") && !a.IsLoopback() && !a.IsUnspecified():
		return netip.AddrFrom4([4]byte(octets[12:]))
	case within(a, "2002::/16"):
		return netip.AddrFrom4([4]byte(octets[2:6]))
	}
	return a
}

// remoteOf is the address that a connection goes to.
func remoteOf(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}
