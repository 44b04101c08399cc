package loop_test

import (
	"context"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/pki/keyfile"
)

const day = 24 * time.Hour

// longAway is an authority and a host of it, both made and left some time ago; the authority has gone on.
type longAway struct {
	*machine
	partner *x509.Certificate // was trusted beside the pool's root, and has ended
	before  client.Observation
	leaf    *x509.Certificate
}

// leftAgo makes an authority and lets a host join and settle while the clock stands at some time in the past: in a bubble, whose
// time is its own. All that is signed there is of that time, and all else is as it always is: the node, its database, TLS, and the
// agent. Then the node is started anew, now.
func leftAgo(t *testing.T, ago, partnerLasts time.Duration) *longAway {
	t.Helper()
	// The resolver keeps what it began in a bubble for good, so it begins outside.
	if _, err := net.DefaultResolver.LookupHost(t.Context(), "localhost"); err != nil {
		t.Fatal(err)
	}
	n := &node{dir: t.TempDir()}
	l := &longAway{machine: &machine{t: t, node: n, name: "web1", root: t.TempDir(), state: filepath.Join(t.TempDir(), "state")}}
	l.options = loop.Options{State: l.state, Version: "test"}
	must(t, os.MkdirAll(l.path("/etc/ssl"), 0o755))
	now := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now.Add(-ago)))
		must(t, n.initialize())
		must(t, n.serve())
		defer n.leave()
		ctx := context.Background()
		l.partner = foreignRoot(t, "partner", time.Now().Add(partnerLasts))
		_, err := n.admin.AddTrust(ctx, "default", client.AddTrustRequest{PEM: pemText(l.partner)})
		must(t, err)
		added, err := n.admin.AddHost(ctx, client.AddHostRequest{
			Name: "web1", DNS: []string{"web1.example"}, Profiles: []string{"server"},
			Placements: []client.PlacementOrder{{Recipe: "plain", Parameters: map[string]string{"key": "/etc/ssl/a.key", "cert": "/etc/ssl/a.pem", "trust": "/etc/ssl/ca.pem"}}},
		})
		must(t, err)
		_, err = loop.Join(ctx, loop.JoinOptions{State: l.state, Root: l.root, Token: added.Token, Version: "test"})
		must(t, err)
		a, err := loop.New(l.options)
		must(t, err)
		result, err := a.Once(ctx)
		must(t, err)
		must(t, a.Close())
		if !result.Done() || len(l.trusted()) != 2 {
			t.Fatalf("%d trusted: %+v", len(l.trusted()), result)
		}
		l.before = result.Observations[0]
	})
	l.leaf = l.pair("/etc/ssl/a.pem", "/etc/ssl/a.key").Leaf
	must(t, command(t.Context(), "rescue", "admin", "--dir", n.authority())) // an operator's identity ends, too
	must(t, n.serve())
	t.Cleanup(n.leave)
	return l
}

func (l *longAway) trusted() []*x509.Certificate {
	l.t.Helper()
	all, err := keyfile.ParseCertificates(l.read("/etc/ssl/ca.pem"))
	must(l.t, err)
	return all
}

// TestHostReturnsWithinTheMonth: its identity has ended, and renews itself; nothing is done by hand.
func TestHostReturnsWithinTheMonth(t *testing.T) {
	t.Parallel()
	l := leftAgo(t, 45*day, 400*day)
	before, err := loop.Look(l.state, time.Now())
	must(t, err)
	if !time.Now().After(before.IdentityEnds) {
		t.Fatalf("its identity lasts until %s", before.IdentityEnds)
	}
	l.leavesAlone()
	o := l.settled().Observations[0]
	after, err := loop.Look(l.state, time.Now())
	must(t, err)
	if o.Serial != l.before.Serial || after.Generation <= before.Generation || !after.IdentityEnds.After(time.Now()) {
		t.Errorf("%+v: %+v", after, o)
	}
	host, err := l.node.admin.Host(t.Context(), "web1")
	must(t, err)
	if host.State != client.HostJoined || time.Since(host.SeenAt) > time.Hour {
		t.Errorf("%+v", host)
	}
}

// leavesAlone has a pass while the authority is away: key and certificate stay as they are, whatever it says.
func (l *longAway) leavesAlone() {
	l.t.Helper()
	key, certificate := l.read("/etc/ssl/a.key"), l.read("/etc/ssl/a.pem")
	l.node.leave()
	l.once()
	must(l.t, l.node.serve())
	if string(key) != string(l.read("/etc/ssl/a.key")) || string(certificate) != string(l.read("/etc/ssl/a.pem")) {
		l.t.Error("what was placed was changed while the authority was away")
	}
}

// refused has a pass that the authority refuses, and holds what is said against what helps.
func (l *longAway) refused() client.Observation {
	l.t.Helper()
	key, certificate := l.read("/etc/ssl/a.key"), l.read("/etc/ssl/a.pem")
	result := l.once()
	said := strings.Join(result.Problems, "\n")
	for _, wanted := range []string{"chancery host replace web1", "agent join --again"} {
		if !strings.Contains(said, wanted) {
			l.t.Errorf("it does not say %q: %s", wanted, said)
		}
	}
	if string(key) != string(l.read("/etc/ssl/a.key")) || string(certificate) != string(l.read("/etc/ssl/a.pem")) {
		l.t.Error("what was placed was changed")
	}
	if len(result.Observations) != 1 {
		l.t.Fatalf("%+v", result)
	}
	return result.Observations[0]
}

// TestHostReturnsAfterTheMonth: it is told to be replaced, and until then what it has goes on for as long as its certificate
// lasts; the trust anchor that has ended leaves without the authority.
func TestHostReturnsAfterTheMonth(t *testing.T) {
	t.Parallel()
	l := leftAgo(t, 75*day, 60*day)
	o := l.refused()
	if o.Serial != l.before.Serial || !time.Now().Before(l.leaf.NotAfter) {
		t.Errorf("%+v", o)
	}
	if all := l.trusted(); len(all) != 1 || all[0].Equal(l.partner) || !strings.Contains(o.Message, "partner") {
		t.Errorf("%d are trusted: %s", len(all), o.Message)
	}
	l.verifies(l.trusted())
}

// verifies holds the certificate that lies on the host against roots.
func (l *longAway) verifies(roots []*x509.Certificate) {
	l.t.Helper()
	pool, above := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	path, err := keyfile.ParseCertificates(l.read("/etc/ssl/a.pem"))
	must(l.t, err)
	for _, c := range path[1:] {
		above.AddCert(c)
	}
	if _, err := path[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: above, DNSName: "web1.example"}); err != nil {
		l.t.Error(err)
	}
}

// replaced lets the machine in again, as its operator does.
func (l *longAway) replaced() client.Observation {
	l.t.Helper()
	token, err := l.node.admin.ReplaceHost(l.t.Context(), "web1", client.ReplaceHostRequest{})
	must(l.t, err)
	_, err = loop.Join(l.t.Context(), loop.JoinOptions{State: l.state, Token: token.Token, Again: true, Version: "test"})
	must(l.t, err)
	o := l.settled().Observations[0]
	if o.Serial == l.before.Serial || o.State != client.PlacementPlaced {
		l.t.Errorf("%+v", o)
	}
	l.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
	l.verifies(l.trusted())
	return o
}

// TestHostReturnsAfterAYear: its identity and its certificate have ended, and the root of its pool was rotated twice. It is told
// what helps, drops what has ended, and once it was replaced it holds what the pool holds now, and trusts nothing else.
func TestHostReturnsAfterAYear(t *testing.T) {
	t.Parallel()
	l := leftAgo(t, 370*day, 200*day)
	first := l.trusted()
	peer := &machine{t: t, node: l.node, name: "web2", root: t.TempDir(), state: filepath.Join(t.TempDir(), "state")}
	peer.options = loop.Options{State: peer.state, Version: "test"}
	must(t, os.MkdirAll(peer.path("/etc/ssl"), 0o755))
	added, err := l.node.admin.AddHost(t.Context(), client.AddHostRequest{
		Name: "web2", DNS: []string{"web2.example"}, Profiles: []string{"server"},
		Placements: []client.PlacementOrder{{Recipe: "plain", Parameters: map[string]string{"key": "/etc/ssl/a.key", "cert": "/etc/ssl/a.pem", "trust": "/etc/ssl/ca.pem"}}},
	})
	must(t, err)
	_, err = loop.Join(t.Context(), loop.JoinOptions{State: peer.state, Root: peer.root, Token: added.Token, Version: "test"})
	must(t, err)
	peer.once()
	for range 2 {
		l.rotate(peer)
	}
	o := l.refused()
	if o.State != client.PlacementFailed || !strings.Contains(o.Message, "has ended") && !strings.Contains(o.Message, "expired") {
		t.Errorf("%+v", o)
	}
	if slices.ContainsFunc(l.trusted(), l.partner.Equal) {
		t.Error("it trusts an anchor that ended")
	}
	l.replaced()
	theirs, err := keyfile.ParseCertificates(peer.read("/etc/ssl/ca.pem"))
	must(t, err)
	for _, c := range l.trusted() {
		if slices.ContainsFunc(first, c.Equal) {
			t.Errorf("it trusts %s still", c.Subject)
		}
		if !slices.ContainsFunc(theirs, c.Equal) {
			t.Errorf("it trusts %s, and its peer does not", c.Subject)
		}
	}
}

// rotate takes the pool to a new root, without the host that is away.
func (l *longAway) rotate(peer *machine) {
	l.t.Helper()
	made, err := l.node.admin.StartRollout(l.t.Context(), client.StartRolloutRequest{
		Kind: "rotate-root", Pool: "default", Online: true, NoNodeProbe: true, Except: []string{"web1"}, Because: "it is away",
	})
	must(l.t, err)
	for began := time.Now(); ; {
		peer.once()
		now, err := l.node.admin.Rollout(l.t.Context(), made.ID)
		must(l.t, err)
		if now.State == "done" {
			return
		}
		if now.State != "running" && now.State != "waiting" || time.Since(began) > 5*time.Minute {
			l.t.Fatalf("%+v", now)
		}
	}
}
