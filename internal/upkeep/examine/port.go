package examine

import (
	"context"
	"crypto/tls"
	"encoding/asn1"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/upkeep/finding"
)

// PortOptions are how a port is looked at.
type PortOptions struct {
	StartTLS   string   // as a recipe's probe names it; none is TLS from the beginning, and empty is guessed from the port
	ServerName string   // the name that peers use; the host of the address where it is empty
	Names      []string // all that the certificate is to be for; the name that peers use where it is nil, and none where it is empty
	Trust      *Trust
	Recipe     string       // the built-in recipe of the consumer; empty is any server
	Plan       *recipe.Plan // the recipe as it was decided on the host, where that is known
	Client     *tls.Certificate
	Authority  *Authority // what the authority knows; nil where none is asked
	Timeout    time.Duration
	Offline    bool // fetch nothing: no CRL, no OCSP answer, no issuer
	// FetchPrivate lets certificates point at private addresses and this machine, where what is looked at has a public address.
	FetchPrivate bool
	Quick        bool // one connection, and no look for old versions or the time
	TrustOurs    bool // hold what the authority issued against its roots, and no other: others need not be trusted here
}

// PortTimeout is how long a connection may take where nothing else is said.
const PortTimeout = 10 * time.Second

// Address reads HOST:PORT; ok is false for what is none.
func Address(text string) (host, port string, ok bool) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || host == "" || port == "" || strings.ContainsAny(text, "/ ") {
		return "", "", false
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return "", "", false
	}
	return host, port, true
}

// Port looks at a port. What was shown is returned with the findings, nil where that is nothing.
func Port(ctx context.Context, address string, o PortOptions, now time.Time) ([]finding.Finding, *Served, error) {
	host, port, ok := Address(address)
	if !ok {
		return nil, nil, fault.New(fault.Invalid, "%q is not HOST:PORT; an IPv6 address stands in brackets, as in [::1]:443", clean(address))
	}
	if o.Timeout <= 0 {
		o.Timeout = PortTimeout
	}
	start := o.StartTLS
	if start == "" {
		start = StartTLSOf(port)
	}
	if start == "none" {
		start = ""
	}
	r := &report{where: "wire", object: address}
	c := connection{address: address, startTLS: start, serverName: asked(o.ServerName, host), client: o.Client, timeout: o.Timeout, http: !o.Quick}
	served, fail := c.connect(ctx)
	if fail != nil {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		r.tell(fail.rule, fail.seen, fail.message, fail.command)
	}
	if served == nil || len(served.Path) == 0 {
		return r.found, nil, nil
	}
	if fail == nil {
		r.lookAtVersion(ctx, c, served, o)
		r.lookAtClock(served)
	}
	wanted := o.Names
	if wanted == nil {
		wanted = []string{host}
		if o.ServerName != "" {
			wanted = []string{o.ServerName}
		}
	}
	if err := r.lookAtPath(ctx, c, served, wanted, o, now); err != nil {
		return nil, nil, err
	}
	return r.found, served, nil
}

// asked is the name that is sent: none for an address (RFC 6066 section 3).
func asked(name, host string) string {
	if name == "" {
		name = host
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return ""
	}
	return strings.TrimSuffix(name, ".")
}

// lookAtPath judges what was shown.
func (r *report) lookAtPath(ctx context.Context, c connection, served *Served, names []string, o PortOptions, now time.Time) error {
	leaf := served.Path[0]
	var demand *Demand
	if o.Recipe != "" {
		var err error
		if demand, err = DemandOf(o.Recipe, o.Plan, leaf.PublicKey); err != nil {
			return err
		}
	}
	var fetch *fetcher
	if !o.Offline {
		fetch = newFetcher(reach{at: served.From, private: o.FetchPrivate})
	}
	trust := &Trust{}
	if o.Trust != nil {
		trust = o.Trust
		r.lookAtTrust(trust, now)
	}
	mend := reissue(firstName(leaf, names))
	if o.Authority != nil {
		mend = r.lookAtRecord(ctx, leaf, o.Authority, mend, now)
		issuer, err := o.Authority.Issuer(ctx, leaf)
		if o.Trust == nil && (!o.TrustOurs || err == nil && issuer != nil) {
			trust = o.Authority.trustOf(ctx, issuer)
		}
	}
	r.showRoot = c.openssl(" -showcerts")
	chain := r.order(served.Path)
	for _, name := range names {
		r.lookAtNames(leaf, name, o.ServerName != "" || len(o.Names) > 0, demand)
	}
	for i, one := range chain {
		command := mend
		if i > 0 {
			command = ""
		}
		r.lookAtTimes(one, now, command)
		r.lookAtStrength(one)
	}
	r.lookAtUsages(leaf, demand, true)
	full := r.reach(ctx, chain, trust, []asn1.ObjectIdentifier{serverAuth()}, fetch, now)
	if fetch != nil {
		r.lookAtRevocation(ctx, full, fetch, now)
	}
	r.lookAtStaple(served.Staple, full, now)
	return nil
}

// lookAtVersion judges the version that was agreed on, and looks whether an older one would do, too.
func (r *report) lookAtVersion(ctx context.Context, c connection, served *Served, o PortOptions) {
	version := tls.VersionName(served.Version)
	switch {
	case o.Client != nil && served.Refused != "":
		r.tell("client.refused", served.Refused, "the service refuses the client certificate that was shown", "")
	case served.Asked && served.Refused != "":
		r.ok("client", "it wants a certificate of its clients, and refuses those without")
	case served.Asked && o.Client == nil:
		r.ok("client", "it asks its clients for a certificate, and goes on without")
	}
	if served.Version < tls.VersionTLS12 {
		r.tell("tls.version", version, "the newest version that the service speaks is "+version, "")
		return
	}
	if o.Quick {
		return
	}
	c.most, c.http = tls.VersionTLS11, false
	if old, fail := c.connect(ctx); fail == nil && old.Version != 0 && old.Version < tls.VersionTLS12 {
		r.tell("tls.old", tls.VersionName(old.Version), "the service agrees to "+tls.VersionName(old.Version)+" too", "")
		return
	}
	r.ok("tls", "%s, and nothing before TLS 1.2", version)
}

// lookAtClock holds the service's clock against ours.
func (r *report) lookAtClock(served *Served) {
	if served.Date.IsZero() {
		return
	}
	if apart := served.At.Sub(served.Date); apart.Abs() > clockSkew {
		word := "behind"
		if apart < 0 {
			word = "ahead of"
		}
		r.tell("clock.differs", fmt.Sprintf("%s there, %s here", stamp(served.Date), stamp(served.At)),
			fmt.Sprintf("the service's clock is %s %s ours", span(apart), word), "timedatectl; chronyc tracking")
		return
	}
	r.ok("clock", "the service's and ours are the same")
}
