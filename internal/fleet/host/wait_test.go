package host_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fleet/host"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// follow runs the loop that wakes who waits.
func follow(t testing.TB, a *authority) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Hosts.Follow(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
}

// answer is what came of a wait.
type answer struct {
	desired *client.Desired
	err     error
}

// enough is how long a wait may last: as long as a node lets any, so that none ends by itself before it was woken.
const enough = host.MaxWait

// await waits for a change in a goroutine of its own.
func await(a *authority, by access.Principal, etag string) <-chan answer {
	got := make(chan answer, 1)
	go func() {
		desired, err := a.Hosts.Desired(a.t.Context(), by, etag, enough)
		got <- answer{desired, err}
	}()
	return got
}

// waiting returns when so many wait.
func (a *authority) waiting(n int) {
	a.t.Helper()
	for deadline := time.Now().Add(enough); a.Hosts.Waiting() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			a.t.Fatalf("%d wait, want %d", a.Hosts.Waiting(), n)
		}
	}
}

// TestWakesThoseConcerned changes one thing after the other, and sees who is woken.
func TestWakesThoseConcerned(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		one := a.join(client.AddHostRequest{Name: "one", Placements: []client.PlacementOrder{{Recipe: "local/x"}}})
		two := a.join(client.AddHostRequest{Name: "two", Placements: []client.PlacementOrder{{Recipe: "local/x"}}})
		lab := a.join(client.AddHostRequest{Name: "lab", Pool: "lab"})
		follow(t, a)
		etag := func(m *machine) string {
			return must[*client.Desired](t)(a.Hosts.Desired(ctx, m.principal, "", 0)).ETag
		}
		wait := map[*machine]<-chan answer{}
		for _, m := range []*machine{one, two, lab} {
			wait[m] = await(a, m.principal, etag(m))
		}
		a.waiting(3)
		woken := func(m *machine) *client.Desired {
			t.Helper()
			got := <-wait[m]
			if check(t, got.err); got.desired == nil {
				t.Fatal("woken with nothing")
			}
			wait[m] = await(a, m.principal, got.desired.ETag)
			return got.desired
		}
		names := []string{"uno"}
		must[*client.Host](t)(a.Hosts.Set(ctx, operator, "one", client.ChangeHostRequest{DNS: &names}, ""))
		if d := woken(one); len(d.DNS) != 2 {
			t.Fatalf("desired %+v", d)
		}
		a.waiting(3)
		held := must[*ca.Certificate](t)(a.issue(two, ca.Order{}, "two"))
		must[*ca.Certificate](t)(a.CA.Revoke(ctx, access.System("n1"), ca.Ref{Issuer: held.Issuer.ID, Serial: held.Serial}, ca.RevokeOrder{}))
		if d := woken(two); len(d.Placements[0].Revoked) != 1 {
			t.Fatalf("desired %+v", d)
		}
		// A CRL of the pool concerns all its hosts, and tells of the subject that is revoked.
		run, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- a.Revocation.Run(run) }()
		for _, m := range []*machine{one, two, lab} {
			d := woken(m)
			for d.Trust.Issuers[0].CRLNumber == "" || d.Trust.Issuers[1].CRLNumber == "" {
				d = woken(m)
			}
			if want := 1; m == lab && len(d.Trust.RevokedSubjects) != 0 || m != lab && len(d.Trust.RevokedSubjects) != want {
				t.Fatalf("%s: revoked subjects %q", d.Host, d.Trust.RevokedSubjects)
			}
		}
		stop()
		<-ended
		a.Hosts.EndWaits()
		for m, got := range wait {
			if last := <-got; last.err != nil {
				t.Fatalf("%s: %v", m.principal.Name, last.err)
			}
		}
		if d, err := a.Hosts.Desired(ctx, one.principal, etag(one), time.Minute); d != nil || err != nil {
			t.Fatalf("a node that ends has one wait: %v, %v", d, err)
		}
	})
}

// TestThousandWaitersAreWokenOnce has a thousand hosts wait, changes the pool's trust, and counts what they ask of the store.
func TestThousandWaitersAreWokenOnce(t *testing.T) {
	faults := &pkitest.Faults{}
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite), Wrap: faults.Wrap}))
	ctx := t.Context()
	const many = 1000
	principals := make([]access.Principal, many)
	for i := range principals { // as many machines that have joined; joining them would take most of the test
		p := a.add(client.AddHostRequest{Name: fmt.Sprintf("h%d", i)})
		principals[i] = must[access.Principal](t)(a.Access.PrincipalNamed(ctx, p.Host.Name))
	}
	follow(t, a)
	// The first look of the loop wakes all, so it is awaited before they wait.
	early := await(a, principals[0], must[*client.Desired](t)(a.Hosts.Desired(ctx, principals[0], "", 0)).ETag)
	must[*client.Host](t)(a.Hosts.Set(ctx, operator, "h0", client.ChangeHostRequest{DNS: &[]string{"early"}}, ""))
	check(t, (<-early).err)
	etags := make([]string, many)
	for i, p := range principals {
		etags[i] = must[*client.Desired](t)(a.Hosts.Desired(ctx, p, "", 0)).ETag
	}
	var group sync.WaitGroup
	answers := make([]answer, many)
	for i, p := range principals {
		group.Go(func() { answers[i].desired, answers[i].err = a.Hosts.Desired(ctx, p, etags[i], enough) })
	}
	a.waiting(many)
	before := faults.Statements()
	names := []string{"alone"}
	must[*client.Host](t)(a.Hosts.Set(ctx, operator, "h7", client.ChangeHostRequest{DNS: &names}, ""))
	a.waiting(many - 1)
	if spent := faults.Statements() - before; spent > many {
		t.Fatalf("one host's change cost %d statements while %d wait", spent, many)
	}
	before = faults.Statements()
	must[*ca.Issuer](t)(first(a.CA.CreateIssuer(ctx, access.System("n1"), ca.IssuerSpec{
		Name: "default-2", Pool: "default", Parent: "default-root", Subject: "CN=default issuer 2",
	})))
	group.Wait()
	for i, got := range answers {
		if got.err != nil || got.desired == nil || i != 7 && len(got.desired.Trust.Issuers) != 3 {
			t.Fatalf("h%d: %+v", i, got)
		}
	}
	// Each looked once: its host, names, certificates and placements, within a transaction.
	if spent := (faults.Statements() - before) / many; spent > 8 {
		t.Fatalf("each of %d that were woken cost %d statements", many, spent)
	}
}

// first drops the second of two values.
func first[A, B any](a A, _ B, err error) (A, error) { return a, err }
