package server

import (
	"net"
	"net/netip"
	"sync"

	"chancery/internal/surface/problem"
)

// maxFromOne is how many connections of a listener one address may have (of IPv6, one /64): a stranger who opens all he can
// leaves room for others. It holds 10,000 idle agents behind one address translator. Trusted proxies are not counted.
const maxFromOne = 12_000

// peers is a listener that closes what one address opens above its share. The connections in all are bounded above it.
type peers struct {
	net.Listener
	limit   int
	proxies []netip.Prefix

	mu   sync.Mutex     // guards open
	open map[string]int // by address, while it is not 0
}

func newPeers(l net.Listener, limit int, proxies []netip.Prefix) *peers {
	return &peers{Listener: l, limit: limit, proxies: proxies, open: map[string]int{}}
}

// Accept waits for the next connection that may stay.
func (p *peers) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, addr := problem.Address(c.RemoteAddr().String())
		if problem.Within(p.proxies, addr) {
			return c, nil
		}
		if p.enter(from) {
			return &peer{Conn: c, leave: sync.OnceFunc(func() { p.leave(from) })}, nil
		}
		c.Close() // it had nothing yet; the error would be his
	}
}

func (p *peers) enter(from string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[from] >= p.limit {
		return false
	}
	p.open[from]++
	return true
}

func (p *peers) leave(from string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[from]--; p.open[from] == 0 {
		delete(p.open, from)
	}
}

// peer is a connection that is counted until it is closed.
type peer struct {
	net.Conn
	leave func()
}

func (c *peer) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
