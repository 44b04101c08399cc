package trust_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// tunnel is a placement whose certificate its peers pin.
func tunnel(purpose string) client.PlacementOrder {
	return client.PlacementOrder{Name: "tunnel", Recipe: "stunnel", Parameters: map[string]string{"pinned": "true", "purpose": purpose}}
}

// peer is a host with a tunnel.
type peer struct {
	*machine
	held []string // fingerprints of what it holds of others
}

// says reports what the peer holds, what it has placed, and what it announces.
func (a *authority) says(p *peer, placed string, announced ...*ca.Certificate) {
	a.t.Helper()
	seen := client.Observation{Placement: "tunnel", Serial: placed, Pinned: p.held, Files: []client.ObservedFile{{Path: "/etc/stunnel/peers.pem"}}}
	for _, c := range announced {
		seen.Announced = append(seen.Announced, encode(c.DER))
	}
	a.report(p.machine, seen)
}

// takes has a peer place what it is told to pin.
func (a *authority) takes(p *peer, purpose string) {
	a.t.Helper()
	p.held = nil
	d := a.desired(p.machine)
	for _, set := range append(d.TrustSets, d.Trust) {
		if set.Purpose == purpose || purpose == client.TrustGeneral && set.Purpose == "" {
			for _, text := range set.Pinned {
				p.held = append(p.held, trust.Fingerprint(parse(a.t, text)))
			}
		}
	}
}

// TestAnnouncedWaitsForAllWhoPin has peers pin each other: a new certificate is for all to hold at once, waits until each of
// them does, and then the ones before it leave. Who is waited for is said; who leaves is waited for no longer.
func TestAnnouncedWaitsForAllWhoPin(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		var peers []*peer
		for i := range 3 {
			peers = append(peers, &peer{machine: a.join(client.AddHostRequest{Name: fmt.Sprintf("h%d", i), Placements: []client.PlacementOrder{tunnel("vpn")}})})
		}
		bystander := &peer{machine: a.join(client.AddHostRequest{Name: "other", Placements: []client.PlacementOrder{tunnel("backup")}})}
		a.says(bystander, "")
		released := func(p *peer) []string { return a.desired(p.machine).Placements[0].Released }
		// The first certificates wait for nobody: no peer has anything placed that could refuse them.
		first := make([]*ca.Certificate, len(peers))
		for i, p := range peers {
			first[i] = a.issue(p.machine)
			a.report(p.machine, client.Observation{Placement: "tunnel", State: client.PlacementPending, Announced: []string{encode(first[i].DER)}})
			if got := released(p); len(got) != 1 || got[0] != cert.FormatSerial(first[i].Serial) {
				t.Fatalf("the first certificate of %s is released: %q", p.name, got)
			}
		}
		for i, p := range peers {
			a.takes(p, "vpn")
			a.says(p, cert.FormatSerial(first[i].Serial))
			if len(p.held) != 3 {
				t.Fatalf("%s holds %d", p.name, len(p.held))
			}
		}
		// A second one waits.
		version := a.of(0).Version
		second := a.issue(peers[0].machine)
		serial := cert.FormatSerial(second.Serial)
		a.says(peers[0], cert.FormatSerial(first[0].Serial), second)
		check(t, a.Trust.Release(ctx, time.Now()))
		if got := released(peers[0]); len(got) != 1 {
			t.Fatalf("released: %q", got)
		}
		if a.of(0).Version != version {
			t.Error("an announced certificate is in a version")
		}
		message := must[*client.Host](t)(a.Hosts.Show(ctx, operator, "h0")).Placements[0].Observed.Message
		for _, want := range []string{serial, "h1 (tunnel)", "h2 (tunnel)"} {
			if !strings.Contains(message, want) || strings.Contains(message, "other") || strings.Contains(message, "h0 (tunnel)") {
				t.Errorf("host show says %q, and not %q", message, want)
			}
		}
		for i, p := range peers {
			a.takes(p, "vpn")
			placed := cert.FormatSerial(first[i].Serial)
			if i == 0 {
				a.says(p, placed, second)
			} else {
				a.says(p, placed)
			}
			check(t, a.Trust.Release(ctx, time.Now()))
			if got, want := len(released(peers[0])), 1+i/2; got != want { // after the last of three
				t.Fatalf("after %s: %d released, want %d", p.name, got, want)
			}
			for _, e := range a.list() {
				if e.Host == "h0" && e.Fingerprint == trust.Fingerprint(parsed(t, second)) && (e.State == "announced") != (i < 2) {
					t.Errorf("after %s: %+v", p.name, e)
				}
			}
		}
		if n := a.events("trust.release"); n != 1 {
			t.Errorf("%d events", n)
		}
		// It is placed: the one before leaves everywhere.
		a.says(peers[0], serial)
		a.takes(peers[1], "vpn")
		if len(peers[1].held) != 3 {
			t.Fatalf("a peer holds %d", len(peers[1].held))
		}
		// The next waits for a host that has gone: until it is removed.
		third := a.issue(peers[1].machine)
		a.says(peers[1], cert.FormatSerial(first[1].Serial), third)
		for _, p := range peers[:2] {
			a.takes(p, "vpn")
		}
		a.says(peers[0], serial)
		a.says(peers[1], cert.FormatSerial(first[1].Serial), third)
		check(t, a.Trust.Release(ctx, time.Now()))
		if got := released(peers[1]); len(got) != 1 {
			t.Fatalf("released beside a host that does not answer: %q", got)
		}
		for _, e := range a.list() {
			if e.State == "announced" && !strings.Contains(e.Comment, "waits for h2 (tunnel)") {
				t.Errorf("listed: %+v", e)
			}
		}
		check(t, a.Hosts.Remove(ctx, operator, "h2", "", ""))
		check(t, a.Trust.Release(ctx, time.Now()))
		if got := released(peers[1]); len(got) != 2 {
			t.Fatalf("released after the host was removed: %q", got)
		}
		a.takes(peers[0], "vpn")
		if len(peers[0].held) != 3 { // h0's, and both of h1; none of h2
			t.Errorf("%d are pinned", len(peers[0].held))
		}
		// A placement that is taken away takes its certificates along.
		must[*client.Host](t)(a.Hosts.Set(ctx, operator, "h1", client.ChangeHostRequest{Placements: &[]client.PlacementOrder{}}, ""))
		a.takes(peers[0], "vpn")
		if len(peers[0].held) != 1 {
			t.Errorf("%d are pinned", len(peers[0].held))
		}
		a.verified()
	})
}

func parsed(t testing.TB, c *ca.Certificate) *x509.Certificate {
	t.Helper()
	return must[*x509.Certificate](t)(c.Parsed())
}

// TestAnnouncedMustBeOnesOwn has a host announce what is not its own, or no good any more: its peers are not told to trust it.
func TestAnnouncedMustBeOnesOwn(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		one := &peer{machine: a.join(client.AddHostRequest{Name: "one", Placements: []client.PlacementOrder{tunnel("vpn")}})}
		two := &peer{machine: a.join(client.AddHostRequest{Name: "two", Placements: []client.PlacementOrder{tunnel("vpn")}})}
		others, own, revoked := a.issue(two.machine), a.issue(one.machine), a.issue(one.machine)
		must[*ca.Certificate](t)(a.CA.Revoke(ctx, system, ca.Ref{Serial: revoked.Serial}, ca.RevokeOrder{}))
		foreign := forge(t, "one", nil, leaf, func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Set(own.Serial) })
		a.report(one.machine, client.Observation{Placement: "tunnel", Announced: []string{encode(others.DER), encode(revoked.DER), foreign.pem(), encode(own.DER)}})
		a.takes(two, "vpn")
		if len(two.held) != 1 || two.held[0] != trust.Fingerprint(parsed(t, own)) {
			t.Fatalf("a peer is told to pin %d certificates", len(two.held))
		}
		for text, bad := range map[string]client.Observation{
			"is not one certificate": {Announced: []string{"hello"}},
			"is not a certificate":   {Announced: []string{encode([]byte{1})}},
			"at most 8 pass":         {Announced: make([]string, 9)},
			"no SHA-256":             {Pinned: []string{"AB"}},
			"is no SHA-256":          {Issuer: "x"},
		} {
			bad.Placement, bad.State = "tunnel", client.PlacementServed
			err := a.Hosts.Report(ctx, one.principal, client.Report{Observations: []client.Observation{bad}})
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v", text, err)
			}
		}
		// What it announces no longer, and never placed, leaves.
		a.report(one.machine, client.Observation{Placement: "tunnel", State: client.PlacementPlaced})
		if a.takes(two, "vpn"); len(two.held) != 0 {
			t.Errorf("%d are pinned", len(two.held))
		}
	})
}

// TestTrustWakesWhoWaits changes a pool's trust while its hosts wait: they are woken, and those of another pool are not.
func TestTrustWakesWhoWaits(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		one := a.join(client.AddHostRequest{Name: "one", Placements: []client.PlacementOrder{tunnel("vpn")}})
		lab := a.join(client.AddHostRequest{Name: "two", Pool: "lab"})
		run, stop := context.WithCancel(ctx)
		followed := make(chan error, 1)
		go func() { followed <- a.Hosts.Follow(run) }()
		defer func() { stop(); <-followed }()
		wait := func(m *machine, etag string) <-chan *client.Desired {
			got := make(chan *client.Desired, 1)
			go func() {
				d, err := a.Hosts.Desired(ctx, m.principal, etag, time.Minute)
				if err != nil {
					t.Error(err)
				}
				got <- d
			}()
			return got
		}
		other := wait(lab, a.desired(lab).ETag)
		last := a.desired(one).ETag
		var entry client.TrustEntry
		root := forge(t, "Foreign", nil)
		for _, change := range []struct {
			what string
			do   func()
		}{
			{"an anchor is added", func() { entry = a.add(root.pem())[0] }},
			{"its CRL comes", func() {
				check(t, a.Trust.AddCRL(ctx, admin, "default", entry.ID, root.list(t, 1, time.Now().Add(-time.Hour), 24*time.Hour), once.Call{}))
			}},
			{"a certificate is announced", func() {
				a.says(&peer{machine: one}, "", a.issue(one))
			}},
			{"the anchor is dropped", func() { check(t, a.drop(entry.ID, "")) }},
		} {
			got := wait(one, last)
			change.do()
			d := <-got
			if d == nil || d.ETag == last {
				t.Fatalf("%s: woken with %v", change.what, d)
			}
			last = d.ETag
		}
		a.Hosts.EndWaits()
		if d := <-other; d != nil {
			t.Errorf("a host of another pool was given %+v", d)
		}
	})
}

// TestRevokedIsPinnedNoLonger revokes a certificate that peers pin, and they are not told to trust it once a CRL lists it: who
// pins looks at no CRL.
func TestRevokedIsPinnedNoLonger(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		run, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Revocation.Run(run) }()
		defer func() { stop(); <-ended }()
		one := &peer{machine: a.join(client.AddHostRequest{Name: "one", Placements: []client.PlacementOrder{tunnel("vpn")}})}
		two := &peer{machine: a.join(client.AddHostRequest{Name: "two", Placements: []client.PlacementOrder{tunnel("vpn")}})}
		first, second := a.issue(one.machine), a.issue(two.machine)
		a.says(one, cert.FormatSerial(first.Serial), first)
		a.says(two, cert.FormatSerial(second.Serial), second)
		if a.takes(two, "vpn"); len(two.held) != 2 {
			t.Fatalf("%d are pinned", len(two.held))
		}
		must[*ca.Certificate](t)(a.CA.Hold(t.Context(), system, ca.Ref{Serial: first.Serial}, ""))
		until := func(n int) {
			t.Helper()
			for begun := time.Now(); len(two.held) != n; a.takes(two, "vpn") {
				if time.Since(begun) > 2*time.Minute {
					t.Fatalf("%d are pinned, want %d", len(two.held), n)
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		until(1)
		must[*ca.Certificate](t)(a.CA.Release(t.Context(), system, ca.Ref{Serial: first.Serial}, ""))
		until(2)
		must[*ca.Certificate](t)(a.CA.Revoke(t.Context(), system, ca.Ref{Serial: first.Serial}, ca.RevokeOrder{}))
		until(1)
		if two.held[0] != trust.Fingerprint(parsed(t, second)) {
			t.Error("the other one is pinned no longer")
		}
	})
}

// TestPeerWhoseCertificateEndedHoldsNobody: it comes back after a long while, pins nothing that it could reach its peers with, and
// says that its certificate has ended. Others do not wait for it, and it does not wait for itself.
func TestPeerWhoseCertificateEndedHoldsNobody(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		var both [2]*peer
		var placed [2]string
		for i := range both {
			p := &peer{machine: a.join(client.AddHostRequest{Name: fmt.Sprintf("h%d", i), Placements: []client.PlacementOrder{tunnel("vpn")}})}
			first := a.issue(p.machine)
			both[i], placed[i] = p, cert.FormatSerial(first.Serial)
			a.report(p.machine, client.Observation{Placement: "tunnel", State: client.PlacementPending, Announced: []string{encode(first.DER)}})
		}
		for i, p := range both {
			a.takes(p, "vpn")
			a.says(p, placed[i])
		}
		back, other := both[0], both[1]
		next := a.issue(back.machine)
		ended := client.Observation{Placement: "tunnel", State: client.PlacementFailed, Serial: placed[0], NotAfter: time.Now().Add(-time.Hour),
			Files: []client.ObservedFile{{Path: "/etc/stunnel/peers.pem"}}, Announced: []string{encode(next.DER)}}
		released := func(p *peer) int {
			check(t, a.Trust.Release(t.Context(), time.Now()))
			return len(a.desired(p.machine).Placements[0].Released)
		}
		a.report(back.machine, ended)
		if n := released(back); n != 1 {
			t.Fatalf("%d are released before the other one holds the new certificate", n)
		}
		a.takes(other, "vpn")
		a.says(other, placed[1])
		if n := released(back); n != 2 {
			t.Errorf("it waits for itself: %d are released", n)
		}
		second := a.issue(other.machine)
		a.says(other, placed[1], second)
		if n := released(other); n != 2 {
			t.Errorf("the other one waits for it: %d are released", n)
		}
	})
}

// TestNobodyWaitsForWhoIsLeftOut: a host that does not call holds what its peers would place, until an operator says that it is
// absent, or a rollout leaves it out. Once it calls again it is waited for again.
func TestNobodyWaitsForWhoIsLeftOut(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		var both [2]*peer
		for i := range both {
			both[i] = &peer{machine: a.join(client.AddHostRequest{Name: fmt.Sprintf("h%d", i), Placements: []client.PlacementOrder{tunnel("vpn")}})}
			a.says(both[i], "")
		}
		here, gone := both[0], both[1]
		serial := ""
		holds := func() bool {
			t.Helper()
			next := a.issue(here.machine)
			a.says(here, serial, next)
			serial = cert.FormatSerial(next.Serial)
			check(t, a.Trust.Release(ctx, time.Now()))
			return !slices.Contains(a.desired(here.machine).Placements[0].Released, serial)
		}
		if !holds() {
			t.Fatal("nobody is waited for")
		}
		absent := "its disk is being mended"
		set := must[*client.Host](t)(a.Hosts.Set(ctx, operator, gone.name, client.ChangeHostRequest{Absent: &absent}, ""))
		if set.Absent != absent || holds() {
			t.Errorf("it is absent (%q), and waited for", set.Absent)
		}
		a.says(gone, "")
		if shown := must[*client.Host](t)(a.Hosts.Show(ctx, operator, gone.name)); shown.Absent != "" || a.events("host.back") != 1 || !holds() {
			t.Errorf("it is back, and %+v", shown)
		}
		must[*client.Rollout](t)(a.Rollouts.Start(ctx, admin, client.StartRolloutRequest{
			Kind: client.RolloutReissue, Pool: "default", Except: []string{gone.name}, Because: "it is away",
		}, once.Call{}))
		if holds() {
			t.Error("a rollout leaves it out, and it is waited for")
		}
		too := strings.Repeat("x", 501)
		if _, err := a.Hosts.Set(ctx, operator, gone.name, client.ChangeHostRequest{Absent: &too}, ""); !fault.Is(err, fault.Invalid) {
			t.Errorf("501 octets: %v", err)
		}
		a.verified()
	})
}
