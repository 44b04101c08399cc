package clone_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// standing is how a lease stands.
func (a *authority) standing(name string) (l db.Lease) {
	a.t.Helper()
	must(a.t, a.DB.ReadSnapshot(a.t.Context(), func(tx *db.Tx) (err error) {
		l, err = db.LeaseOf(a.t.Context(), tx, name)
		return err
	}))
	return l
}

// has takes a lease for the first node, pinned.
func (a *authority) has(name string) {
	a.t.Helper()
	must(a.t, a.DB.Tx(a.t.Context(), func(tx *db.Tx) error {
		_, err := db.HandOver(a.t.Context(), tx, name, "n1", true, time.Minute, time.Now())
		return err
	}))
	_, ok, err := a.DB.Acquire(a.t.Context(), name, "n1", time.Minute)
	if must(a.t, err); !ok {
		a.t.Fatal("another has it")
	}
}

// TestPromoteTwiceWhoDied has operators give a lease to a node that died a moment ago, at once, with other flags, and by typing it again while
// the first waits. Each of them hears that it is not done, and who has the lease; the pin that there was is there.
func TestPromoteTwiceWhoDied(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	a.running("n2")
	a.Clones.TakeUpWithin(3 * time.Second)
	for _, lease := range []string{revocation.Lease, audit.Lease} {
		a.has(lease)
		promote := func(pin bool) error {
			_, err := a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{Lease: lease, Pin: pin}, once.Call{})
			return err
		}
		errs := make([]error, 4)
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() { errs[i] = promote(i%2 == 1) })
			for end := time.Now().Add(time.Minute); a.standing(lease).Holder != "n2" && time.Now().Before(end); {
				time.Sleep(5 * time.Millisecond)
			}
		}
		all.Wait()
		back := 0
		for i, err := range errs {
			refused(t, err, fault.Conflict, "node n1 has")
			if strings.Contains(err.Error(), "did not take the lease") && strings.Contains(err.Error(), "node n1 has it again, pinned as before") {
				back++
			} else if !strings.Contains(err.Error(), "(pinned to n1)") {
				t.Errorf("operator %d hears %v", i, err)
			}
		}
		if l := a.standing(lease); back != 1 || l.Holder != "n1" || l.Pinned != "n1" {
			t.Errorf("%s was given back %d times, and is left as %+v", lease, back, l)
		}
	}
}

// TestPromoteWhoHasItAndDied: a node that has the lease, and says nothing any more, is not told of as if it lived; nor is it given what it had.
func TestPromoteWhoHasItAndDied(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	a.running("n2")
	a.Clones.TakeUpWithin(time.Second)
	a.has(revocation.Lease)
	epoch := a.holder().Epoch
	for _, pin := range []bool{true, false} {
		_, err := a.Clones.Promote(ctx, a.admin, "n1", client.CloneTurn{Pin: pin}, once.Call{})
		refused(t, err, fault.Conflict, "node n1 did not take the lease", "it has it still, and it is pinned to it as before")
		if l := a.holder(); l.Holder != "n1" || l.Pinned != "n1" || l.Epoch != epoch {
			t.Errorf("it is left as %+v", l)
		}
	}
}

// TestPromoteWhoCannotSign: a node whose report says that it opens no keys is refused, and one of which that is not known yet takes the lease
// up, publishes nothing, and has it no more. What all others report as well keeps nobody from it.
func TestPromoteWhoCannotSign(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, _ := a.running("n2")
	a.Clones.TakeUpWithin(3 * time.Second)
	a.has(revocation.Lease)
	a.exec(`DELETE FROM key_wrap WHERE recipient_id = 'n2'`)
	two := a.open(m) // which remembers no keys
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	for _, pin := range []bool{true, false} {
		before := a.holder()
		_, err := a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{Pin: pin}, once.Call{})
		refused(t, err, fault.Conflict, "node n2 cannot sign", "does not open")
		if l := a.holder(); l != before {
			t.Errorf("a refused promotion left %+v", l)
		}
	}
	report := func(says string) {
		a.exec(`UPDATE node SET report = $1 WHERE name = 'n2'`, fmt.Sprintf(`{"CannotSign":[%s],"Closed":{"K":%[1]s}}`, says))
	}
	report(`"its token is not reached"`)
	_, err := a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{}, once.Call{})
	refused(t, err, fault.Conflict, "its token is not reached")
	a.exec(`UPDATE node SET report = '{}' WHERE name = 'n2'`) // and the keys that do not open, of which it says nothing then

	work, stop := context.WithCancel(ctx)
	var signing sync.WaitGroup
	signing.Go(func() { _ = two.Revocation.Run(work) })
	defer func() { stop(); signing.Wait() }()
	_, err = a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{Pin: true}, once.Call{})
	refused(t, err, fault.Conflict, "node n2 has taken the lease", "published no CRL", "node n1 has it again, pinned as before")
	if l := a.holder(); l.Holder != "n1" || l.Pinned != "n1" {
		t.Errorf("it is left as %+v", l)
	}
}

// TestPromoteWhoIsNotReady: what keeps a node from being ready, and not from signing, is no reason; nor is anything where no other lives.
func TestPromoteWhoIsNotReady(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.running("n2")
	work, stop := context.WithCancel(ctx)
	var signing sync.WaitGroup
	signing.Go(func() { _ = two.Revocation.Run(work) })
	defer func() { stop(); signing.Wait() }()
	a.has(revocation.Lease)
	must(t, a.Clones.Report(ctx, clone.Self{NotReady: []string{"what it reads is 26s old"}}, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{NotReady: []string{"what it reads is 25s old"}}, time.Now()))
	if _, err := two.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{}, once.Call{}); err != nil {
		t.Errorf("both lag behind: %v", err)
	}
	a.exec(`UPDATE node SET seen_at = 1 WHERE name = 'n1'`)
	a.exec(`UPDATE node SET report = '{"CannotSign":["one of its tokens is not reached"]}' WHERE name = 'n2'`)
	if _, err := two.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{Pin: true}, once.Call{}); err != nil {
		t.Errorf("the only one that lives: %v", err)
	}
}

// TestPromoteWhoseClockIsWrong: a node whose clock is ahead, or behind, gets no lease, neither by name nor as the one that was seen last, while
// that of another one is right; where every clock is wrong, that is no reason.
func TestPromoteWhoseClockIsWrong(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.running("n2")
	a.has(revocation.Lease)
	must(t, a.DB.Heartbeat(ctx, time.Now()))
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	if err := two.DB.Heartbeat(ctx, time.Now().Add(time.Hour)); err == nil || two.DB.ClockAhead() == nil {
		t.Fatalf("its clock is not ahead: %v", err)
	}
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	refuse := func(says string) {
		t.Helper()
		before := a.holder()
		_, err := a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{}, once.Call{})
		refused(t, err, fault.Conflict, "node n2 cannot sign", says)
		_, err = a.Clones.Demote(ctx, a.admin, "n1", client.CloneTurn{}, once.Call{})
		refused(t, err, fault.Conflict, "no other node")
		if l := a.holder(); l != before {
			t.Errorf("a refused promotion left %+v", l)
		}
	}
	refuse("the clock is ahead")
	must(t, two.DB.Heartbeat(ctx, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now().Add(-time.Hour)))
	refuse("the clock is behind")

	work, stop := context.WithCancel(ctx)
	var signing sync.WaitGroup
	signing.Go(func() { _ = two.Revocation.Run(work) })
	defer func() { stop(); signing.Wait() }()
	a.exec(`UPDATE node SET report = '{"Clock":"the clock is ahead, as all are"}' WHERE name IN ('n1', 'n2')`)
	if _, err := a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{}, once.Call{}); err != nil {
		t.Errorf("all clocks are wrong: %v", err)
	}
}

// TestPromoteOfOtherWork gives away the work of rollouts, of which there are none, and that of the audit: each is done when the node has taken
// it up, also where it has it already.
func TestPromoteOfOtherWork(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.running("n2")
	work, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	working.Go(func() { _ = two.Rollouts.Run(work) })
	working.Go(func() { // as its loop for checkpoints does
		for tick := time.Tick(20 * time.Millisecond); ; {
			select {
			case <-work.Done():
				return
			case <-tick:
			}
			if handed, err := two.DB.Handed(work, audit.Lease, "n2"); err == nil && handed {
				_, _, _ = two.DB.Acquire(work, audit.Lease, "n2", time.Minute)
			}
		}
	})
	defer func() { stop(); working.Wait() }()
	for _, lease := range []string{audit.Lease, "rollout"} {
		a.has(lease)
		for range 2 {
			shown, err := a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{Lease: lease, Pin: true}, once.Call{})
			must(t, err)
			if l := a.standing(lease); l.Holder != "n2" || l.Pinned != "n2" || l.Unanswered() || len(shown.Leases) == 0 {
				t.Errorf("%s: %+v; shown as %+v", lease, l, shown.Leases)
			}
		}
	}
}

// TestPromoteThroughCrash has the database crash while a node that died a moment ago is waited for, and come back later than that: the lease is
// given back all the same.
func TestPromoteThroughCrash(t *testing.T) {
	t.Parallel()
	server := pkitest.Postgres(t)
	a, ctx := newLocal(t, server.TCP("postgres")), t.Context()
	must(t, a.set("durability", "provider"))
	a.running("n2")
	const wait = time.Second
	a.Clones.TakeUpWithin(wait)
	a.has(revocation.Lease)
	answer := make(chan error, 1)
	go func() {
		_, err := a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{Pin: true}, once.Call{})
		answer <- err
	}()
	a.await("n2")
	must(t, server.Crash())
	select {
	case err := <-answer:
		t.Errorf("it ended while the database was away: %v", err)
		answer <- err
	case <-time.After(2 * wait):
	}
	must(t, server.Restart())
	refused(t, <-answer, fault.Conflict, "did not take the lease", "node n1 has it again, pinned as before")
	if l := a.holder(); l.Holder != "n1" || l.Pinned != "n1" {
		t.Errorf("it is left as %+v", l)
	}
}

// TestPromoterDies has whoever promotes a node that died end before it can take the lease back: another node does.
func TestPromoterDies(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.running("n2")
	a.has(revocation.Lease)
	must(t, pin(ctx, two, "n2"))
	for _, after := range []time.Duration{0, 20 * time.Second} {
		must(t, a.Clones.Finish(ctx, time.Now().Add(after)))
		if l := a.holder(); l.Holder != "n2" {
			t.Fatalf("it is given back after %s: %+v", after, l)
		}
	}
	must(t, a.Clones.Finish(ctx, time.Now().Add(time.Minute)))
	if l := a.holder(); l.Holder != "n1" || l.Pinned != "n1" {
		t.Errorf("it is left as %+v", l)
	}
	must(t, a.Clones.Finish(ctx, time.Now().Add(time.Hour)))
	must(t, a.Clones.Finish(ctx, time.Now().Add(2*time.Hour)))
	if l := a.holder(); l.Holder != "n1" || l.Pinned != "n1" { // also where that one does not take it up either: so it was
		t.Errorf("later it is %+v", l)
	}
}

// TestSuspensionEndsByItself has the remover of the only other node end right after it has suspended that one, which nobody tells: it goes on
// when the suspension is over by the database's clock. A process that another one has followed does not.
func TestSuspensionEndsByItself(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.running("n2")
	must(t, write(ctx, two))
	started := a.count(`SELECT started_at FROM node WHERE name = 'n2'`)
	later := func() { // as if the time had passed
		a.exec(`UPDATE write_mark SET suspended_until = suspended_until - 20000000 WHERE node = 'n2' AND suspended_until > 0`)
	}
	resume := func() {
		must(t, a.DB.Tx(ctx, func(tx *db.Tx) error {
			return db.ResumeFence(ctx, tx, "n2", started)
		}))
	}
	before := func() { // a program from before suspensions ended by themselves begins one, and leaves the rest of the row
		a.exec(`UPDATE write_mark SET fence = -2 WHERE node = 'n2'`)
		later()
		if err := write(ctx, two); !errors.Is(err, db.ErrSuspended) {
			t.Errorf("an end that a suspension before had ends this one: %v", err)
		}
	}
	must(t, a.DB.SuspendFence(ctx, "n2"))
	must(t, a.DB.SuspendFence(ctx, "n2")) // by another remover
	for range 2 {
		if err := write(ctx, two); !errors.Is(err, db.ErrSuspended) || clone.Ended(err) {
			t.Fatalf("it is being removed, and hears: %v", err)
		}
	}
	if n := a.count(`SELECT COUNT(*) FROM write_mark WHERE node = 'n2' AND suspended_until BETWEEN $1 AND $2`, db.Micros(time.Now().Add(time.Second)),
		db.Micros(time.Now().Add(30*time.Second))); n != 1 {
		t.Error("the suspension does not end in some seconds")
	}
	later()
	must(t, write(ctx, two))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	if _, ok, err := two.DB.Acquire(ctx, revocation.Lease, "n2", time.Minute); !ok || err != nil {
		t.Errorf("it does not take the work up: %v, %v", ok, err)
	}
	before()
	resume()
	must(t, write(ctx, two))
	must(t, a.DB.SuspendFence(ctx, "n2"))
	resume()
	before() // with no write between
	resume()

	newer := a.open(m)
	must(t, newer.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, a.DB.SuspendFence(ctx, "n2"))
	later()
	if err := write(ctx, two); err == nil {
		t.Error("a process that another has followed goes on")
	}
	must(t, write(ctx, newer))
	if err := write(ctx, two); !errors.Is(err, db.ErrFenced) {
		t.Errorf("the former one hears: %v", err)
	}

	// A removal that is late is one all the same.
	must(t, a.DB.SuspendFence(ctx, "n2"))
	later()
	must(t, write(ctx, newer))
	must(t, a.DB.Tx(ctx, func(tx *db.Tx) error { return db.RaiseFence(ctx, tx, "n2") }))
	later()
	if err := write(ctx, newer); !errors.Is(err, db.ErrFenced) {
		t.Errorf("its fence was raised, and it writes: %v", err)
	}
}
