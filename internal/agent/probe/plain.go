package probe

import "net"

// StartTLS runs the plain-text part of a STARTTLS protocol on a connection, so that TLS can begin on it; the caller sets the
// deadline. The protocols are those of a recipe's probe; empty and none are TLS from the beginning. What keeps TLS from
// beginning has ErrNotTLS or the connection's own error in its chain.
func StartTLS(conn net.Conn, protocol, serverName string) error {
	if protocol == "none" {
		return nil
	}
	start, err := starter(protocol)
	if err != nil || start == nil {
		return err
	}
	return begin(conn, start, serverName)
}
