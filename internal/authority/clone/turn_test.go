package clone_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

// work has a node report, so that it is seen to live however long the test takes, and sign CRLs until the test ends or stop is called.
func (a *authority) work(s *setup.Services) (stop func()) {
	ctx, cancel := context.WithCancel(a.t.Context())
	var all sync.WaitGroup
	must(a.t, s.Clones.Report(ctx, clone.Self{}, time.Now()))
	all.Go(func() { _ = s.Revocation.Run(ctx) })
	all.Go(func() {
		for tick := time.Tick(time.Second); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick:
				_ = s.Clones.Report(ctx, clone.Self{}, time.Now())
			}
		}
	})
	stop = func() { cancel(); all.Wait() }
	a.t.Cleanup(stop)
	return stop
}

func (a *authority) holder() db.Lease {
	a.t.Helper()
	var l db.Lease
	must(a.t, a.DB.ReadSnapshot(a.t.Context(), func(tx *db.Tx) (err error) {
		l, err = db.LeaseOf(a.t.Context(), tx, revocation.Lease)
		return err
	}))
	return l
}

// await waits until the lease is a node's.
func (a *authority) await(node string) {
	a.t.Helper()
	for end := time.Now().Add(3 * time.Minute); a.holder().Holder != node; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			a.t.Fatalf("the lease is %+v, not %s's", a.holder(), node)
		}
	}
}

// TestPromoteWhoDiedAMomentAgo: a node that reported and then died does not take the lease up. It goes back to the one that had it, pinned as it was,
// and nobody is told that the work moved; the call repeated with its key says the same.
func TestPromoteWhoDiedAMomentAgo(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	ctx := t.Context()
	_, two := a.join("n2")
	a.start(two, "https://n2.test:8443")
	a.work(a.Services)
	a.await("n1")
	_, err := a.Clones.Promote(ctx, a.admin, "n1", client.CloneTurn{Pin: true}, once.Call{})
	must(t, err)
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	call := once.Call{Caller: "ada", Key: "died", Request: once.Hash([]byte("promote"))}
	_, err = a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{}, call)
	refused(t, err, fault.Conflict, "node n2 did not take the lease", "node n1 has it again")
	if l := a.holder(); l.Holder != "n1" || l.Pinned != "n1" {
		t.Errorf("it is left as %+v", l)
	}
	_, err = a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{}, call)
	refused(t, err, fault.Conflict, "node n1 has the lease")
	_, err = a.Clones.Promote(ctx, a.admin, "n1", client.CloneTurn{}, once.Call{}) // which takes it up, and is no longer pinned
	must(t, err)
	if l := a.holder(); l.Holder != "n1" || l.Pinned != "" {
		t.Errorf("at the end %+v", l)
	}
}

// numbers are the newest complete CRLs' numbers and next updates, by the issuer's ID.
func (a *authority) numbers() map[string]revocation.Numbered {
	a.t.Helper()
	var all map[string]revocation.Numbered
	must(a.t, a.DB.ReadSnapshot(a.t.Context(), func(tx *db.Tx) (err error) {
		all, err = revocation.CurrentNumbers(a.t.Context(), tx)
		return err
	}))
	return all
}

func TestPromoteAndDemote(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	ctx := t.Context()
	_, two := a.join("n2")
	_, three := a.join("n3", "ocsp")
	a.start(two, "https://n2.test:8443")
	a.start(three, "https://n3.test:8443")
	a.work(a.Services)
	a.await("n1")
	stop := a.work(two)
	must(t, three.Clones.Report(ctx, clone.Self{}, time.Now()))
	before := a.numbers()

	refuse := func(kind fault.Kind, by access.Principal, node string, in client.CloneTurn, says ...string) {
		t.Helper()
		was := a.holder()
		_, err := a.Clones.Promote(ctx, by, node, in, once.Call{})
		refused(t, err, kind, says...)
		if now := a.holder(); now.Holder != was.Holder || now.Epoch != was.Epoch || now.Pinned != was.Pinned {
			t.Errorf("a refused promotion left %+v of %+v", now, was)
		}
	}
	refuse(fault.Conflict, a.admin, "n3", client.CloneTurn{}, "ocsp", "only a node that runs ca")
	refuse(fault.NotFound, a.admin, "n9", client.CloneTurn{})
	refuse(fault.Invalid, a.admin, "n2", client.CloneTurn{Lease: "all"}, "crl", "audit", "rollout")
	refuse(fault.Denied, access.Principal{ID: "x", Name: "x", Kind: access.KindOperator, Roles: []access.Role{access.Officer}}, "n2", client.CloneTurn{})
	if _, err := a.Clones.Demote(ctx, a.admin, "n1", client.CloneTurn{Pin: true}, once.Call{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("demote and pin: %v", err)
	}

	shown, err := a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{}, once.Call{})
	must(t, err)
	if len(shown.Leases) != 1 || shown.Leases[0].Name != revocation.Lease || shown.Leases[0].Pinned != "" {
		t.Errorf("promoted: %+v", shown.Leases)
	}
	value := func(c *client.Clone, name string) string {
		at := slices.IndexFunc(c.Switches, func(s client.CloneSwitch) bool { return s.Name == name })
		if at < 0 {
			t.Fatalf("no switch %s on %s", name, c.Name)
		}
		return c.Switches[at].Value
	}
	one, err := a.Clones.Show(ctx, a.admin, "n1")
	must(t, err)
	for name, want := range map[string][2]string{ // on the one that signs, and on the other
		"ca.certStatusUpdateInterval": {"600", "0"}, "ca.listenToCloneModifications": {"true", "false"}, "ca.crl.default.enableCRLUpdates": {"true", "false"},
		"ca.crl.default.enableCRLCache": {"true", "false"}, "OCSP.Responder.store.defStore.refreshInSec": {"none", "none"},
		"master.ca.agent.host": {"", "n2.test"}, "master.ca.agent.port": {"", "8443"},
	} {
		if got := [2]string{value(shown, name), value(one, name)}; got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	// Each issuer's list is made anew by the new holder, with a greater number.
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		behind := 0
		for id, now := range a.numbers() {
			if now.Number == before[id].Number {
				behind++
			}
		}
		if behind == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d issuers have no new list", behind)
		}
	}
	// The same again, and a repeated call, change nothing.
	epoch, call := a.holder().Epoch, once.Call{Caller: "ada", Key: "k", Request: once.Hash([]byte("promote"))}
	for range 2 {
		_, err = a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{}, call)
		must(t, err)
	}
	if got := a.holder().Epoch; got != epoch {
		t.Errorf("a second promotion made epoch %d of %d", got, epoch)
	}

	// Two administrators at once: the later one's has it, and both are answered; the other may hear whose it is before it saw its own.
	var both sync.WaitGroup
	var won atomic.Int64
	for node, s := range map[string]*setup.Services{"n1": a.Services, "n2": two} {
		both.Go(func() {
			_, err := s.Clones.Promote(ctx, a.admin, node, client.CloneTurn{}, once.Call{})
			if err == nil {
				won.Add(1)
			} else if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "it was given on") {
				t.Errorf("promote %s: %v", node, err)
			}
		})
	}
	both.Wait()
	if h := a.holder().Holder; won.Load() == 0 || h != "n1" && h != "n2" {
		t.Errorf("after two promotions, of which %d went through: %+v", won.Load(), a.holder())
	}

	// Pinned, the work waits for its node; demoted, it goes to another that runs ca and is alive.
	_, err = a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{Pin: true}, once.Call{})
	must(t, err)
	stop()
	if vacant, err := a.DB.Vacant(ctx, revocation.Lease, "n1", time.Minute, time.Now().Add(time.Hour)); err != nil || vacant {
		t.Errorf("it is pinned to n2, and n1 may have it: %v", err)
	}
	_, err = a.Clones.Demote(ctx, a.admin, "n2", client.CloneTurn{}, once.Call{})
	must(t, err)
	if h := a.holder(); h.Holder != "n1" || h.Pinned != "" {
		t.Errorf("demoted: %+v", h)
	}
	epoch = a.holder().Epoch
	_, err = a.Clones.Demote(ctx, a.admin, "n2", client.CloneTurn{}, once.Call{}) // it has nothing to give
	must(t, err)
	if got := a.holder(); got.Epoch != epoch || got.Holder != "n1" {
		t.Errorf("demoting who has nothing: %+v", got)
	}
	// A node that stands still is no place for the work, nor is nobody.
	must(t, a.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE node SET seen_at = $1 WHERE name = 'n2'`, db.Micros(time.Now().Add(-time.Minute)))
		return err
	}))
	refuse(fault.Conflict, a.admin, "n2", client.CloneTurn{}, "last seen")
	_, err = a.Clones.Demote(ctx, a.admin, "n1", client.CloneTurn{}, once.Call{})
	refused(t, err, fault.Conflict, "no other node")
	if n := a.count(`SELECT COUNT(*) FROM audit_event WHERE action IN ('clone.promote', 'clone.demote')`); n < 3 {
		t.Errorf("%d events tell of it", n)
	}
}
