package datadir

import (
	"fmt"
	"net"
	"net/url"
)

// Unreached says of each listener that other machines use whether only this machine reaches it, although the node's address is told to
// them. Nothing is wrong with that where something on this machine forwards to it, which is not to be seen from here.
func (c *Config) Unreached() []string {
	u, err := url.Parse(c.Address)
	if err != nil || loopback(u.Hostname()) {
		return nil // an authority that is all on one machine
	}
	var found []string
	for _, l := range []struct{ key, serves, at string }{
		{"listen.api", "the API", c.Listen.API}, {"listen.public", "CRLs and OCSP", c.Listen.Public},
	} {
		if host, _, err := net.SplitHostPort(l.at); err == nil && loopback(host) {
			found = append(found, fmt.Sprintf("node.yaml %s is %s, and its address is %s: other machines reach %s only if something on its own forwards to it",
				l.key, l.at, c.Address, l.serves))
		}
	}
	return found
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
