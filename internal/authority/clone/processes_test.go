package clone_test

import (
	"testing"
	"time"

	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestStartedTwice runs one node in two processes, as after a machine was started twice from one snapshot: the newest goes on.
func TestStartedTwice(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, one := a.join("n2")
	two, now := a.open(m), time.Now()
	must(t, one.Clones.Register(ctx, m.in.Address, now))
	must(t, one.Clones.Report(ctx, clone.Self{}, now))
	must(t, two.Clones.Register(ctx, m.in.Address, now)) // in the same microsecond
	err := one.Clones.Report(ctx, clone.Self{}, now)
	refused(t, err, fault.Denied, "another process started as node n2")
	if !clone.Ended(err) || !clone.Ended(one.Clones.Registered(ctx)) {
		t.Fatalf("the older one goes on: %v", err)
	}
	must(t, two.Clones.Report(ctx, clone.Self{}, now))
	must(t, two.Clones.Registered(ctx))
	must(t, one.Clones.Register(ctx, m.in.Address, now)) // started again
	must(t, one.Clones.Report(ctx, clone.Self{}, now))
}

// TestRemovedHearsSoon bounds how long a node works on that was removed and has not reported since.
func TestRemovedHearsSoon(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now().Add(-2*time.Second)))
	two.DB.Guard(two.Clones.Guard)
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Force: true}, once.Call{}))
	err := two.DB.Tx(ctx, func(*db.Tx) error { return nil })
	refused(t, err, fault.Unavailable, "left or was removed") // its caller may, at another node
	if !clone.Ended(err) {
		t.Fatalf("it goes on: %v", err)
	}
}

// TestCompromised removes a node that fell into wrong hands, while it runs.
func TestCompromised(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	for name, how := range map[string]clone.Removal{"n2": {Compromised: true}, "n3": {Force: true}} {
		m, s := a.join(name)
		must(t, s.Clones.Register(ctx, m.in.Address, time.Now()))
		must(t, s.Clones.Report(ctx, clone.Self{}, time.Now()))
		must(t, a.Clones.Remove(ctx, a.admin, name, how, once.Call{}))
		want := map[bool]int64{true: 1, false: 5}[how.Compromised]
		if n := a.count(`SELECT COUNT(*) FROM certificate c JOIN revocation r ON r.certificate = c.id
			WHERE c.subject = $1 AND r.reason = $2`, "CN="+name, want); n != 1 {
			t.Errorf("%s: %d of its certificates are revoked for reason %d", name, n, want)
		}
	}
}

// TestClocksOfOthers has a node whose clock is far ahead see one that leaves and still finishes its calls.
func TestClocksOfOthers(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	_, err := a.Clones.Leave(ctx, a.admin, "n2", once.Call{})
	must(t, err)
	ahead := time.Now().Add(5 * time.Minute)
	leaving := func() bool { return a.count(`SELECT COUNT(*) FROM node WHERE name = 'n2' AND state = 'leaving'`) == 1 }
	must(t, a.Clones.Finish(ctx, ahead))
	if !leaving() {
		t.Fatal("it was ended while it works")
	}
	must(t, a.Clones.Finish(ctx, ahead.Add(2*time.Minute)))
	if leaving() {
		t.Fatal("it is silent, and was not ended")
	}
}
