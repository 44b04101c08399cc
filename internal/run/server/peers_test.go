package server

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestOneAddressCannotTakeAllConnections: a stranger who opened as many as the listener has kept operators out.
func TestOneAddressCannotTakeAllConnections(t *testing.T) {
	for _, c := range []struct {
		name    string
		proxies []netip.Prefix
		stays   int
	}{
		{"a stranger", nil, 3},
		{"a trusted proxy", []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, 6},
	} {
		socket, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := newPeers(socket, 3, c.proxies)
		accepted := make(chan net.Conn, 10)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					close(accepted)
					return
				}
				conn.Write([]byte("x"))
				accepted <- conn
			}
		}()
		dial := func(from string) (net.Conn, bool) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			conn, err := d.DialContext(t.Context(), "tcp", socket.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			conn.SetReadDeadline(time.Now().Add(time.Minute))
			_, err = io.ReadFull(conn, make([]byte, 1))
			return conn, err == nil
		}
		stays := 0
		for range 6 {
			if _, ok := dial("127.0.0.1"); ok {
				stays++
			}
		}
		if stays != c.stays {
			t.Errorf("%s: %d connections stay", c.name, stays)
		}
		if _, ok := dial("127.0.0.2"); !ok {
			t.Errorf("%s: another address does not get in", c.name)
		}
		if conn := <-accepted; c.proxies == nil {
			conn.Close()
			conn.Close() // once more counts once
			if _, ok := dial("127.0.0.1"); !ok {
				t.Error("no room came of a connection that ended")
			}
			if _, ok := dial("127.0.0.1"); ok {
				t.Error("one connection that ended made room for two")
			}
		}
		socket.Close()
		for conn := range accepted {
			conn.Close()
		}
		if n := len(l.open); n > 0 {
			t.Errorf("%s: %d addresses are remembered", c.name, n)
		}
	}
}
