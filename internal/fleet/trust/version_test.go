package trust_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// anchors are the common names of what a set ends at, and of its issuers.
func anchors(t testing.TB, set client.TrustSet) (roots, issuers []string) {
	t.Helper()
	for _, text := range set.Anchors {
		roots = append(roots, parse(t, text).Subject.CommonName)
	}
	for _, i := range set.Issuers {
		issuers = append(issuers, parse(t, i.PEM).Subject.CommonName)
	}
	return roots, issuers
}

// successors makes a root and an issuer below it in the default pool, as a rotation does.
func (a *authority) successors(number int) []*ca.Issuer {
	a.t.Helper()
	name := fmt.Sprintf("default-root-%d", number)
	root, _, err := a.CA.CreateIssuer(a.t.Context(), system, ca.IssuerSpec{Name: name, Pool: pool.Default, Subject: "CN=" + name})
	check(a.t, err)
	name = fmt.Sprintf("default-%d", number)
	issuer, _, err := a.CA.CreateIssuer(a.t.Context(), system, ca.IssuerSpec{Name: name, Pool: pool.Default, Subject: "CN=" + name, Parent: root.ID})
	check(a.t, err)
	return []*ca.Issuer{root, issuer}
}

// stage makes a version within a transaction.
func (a *authority) stage(add []*ca.Issuer, drop ...string) int64 {
	a.t.Helper()
	var version int64
	check(a.t, a.tx(func(tx *db.Tx) (err error) {
		version, err = a.Trust.Stage(a.t.Context(), tx, pool.Default, add, drop)
		return err
	}))
	return version
}

func (a *authority) adopt(version int64) {
	a.t.Helper()
	check(a.t, a.tx(func(tx *db.Tx) error { return a.Trust.Adopt(a.t.Context(), tx, pool.Default, version) }))
}

// TestVersionsHoldWhatTheyHeld plays a rotation of a root to its end, undoes it, and begins another: each version holds what it
// held when it was made, whichever the pool has meanwhile, and what was left comes back with a new number only.
func TestVersionsHoldWhatTheyHeld(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		first := a.of(0)
		if roots, issuers := anchors(t, first.General); first.Version < 1 || !slices.Equal(roots, []string{"default root"}) ||
			!slices.Equal(issuers, []string{"default root", "default issuer"}) {
			t.Fatalf("version %d: roots %q, issuers %q", first.Version, roots, issuers)
		}
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Claim(t.Context(), tx, pool.Default, "7") }))
		added := a.successors(2)
		if a.of(0).Version != first.Version || a.of(0).Hash != first.Hash {
			t.Fatal("issuers that a rollout made are trusted before it says so")
		}
		both := a.stage(added)
		old := must[client.TrustEntry](t)(a.Trust.Find(t.Context(), pool.Default, trust.Fingerprint(parse(t, first.General.Anchors[0]))))
		if a.of(0).Version != first.Version {
			t.Fatalf("a version that was staged is the pool's")
		}
		states := map[string]int{}
		for _, e := range a.list() {
			states[e.State]++
		}
		if states["trusted"] != 2 || states["staged"] != 2 {
			t.Errorf("listed: %v", states)
		}
		if roots, _ := anchors(t, a.of(both).General); !slices.Equal(roots, []string{"default root", "default-root-2"}) {
			t.Fatalf("staged: roots %q", roots)
		}
		a.adopt(both)
		left := a.stage(nil, old.ID)
		if roots, _ := anchors(t, a.of(left).General); !slices.Equal(roots, []string{"default-root-2"}) {
			t.Fatalf("without the old root: roots %q", roots)
		}
		a.adopt(left)
		for version, want := range map[int64]int{first.Version: 1, both: 2, left: 1} {
			if got := len(a.of(version).General.Anchors); got != want {
				t.Errorf("version %d has %d roots now, want %d", version, got, want)
			}
		}
		// It is undone: back to the first, and from there to another, in which the second's root must not come back by itself.
		a.adopt(first.Version)
		if a.of(0).Hash != first.Hash {
			t.Fatal("the first version is another than it was")
		}
		next := a.stage(a.successors(3))
		roots, issuers := anchors(t, a.of(next).General)
		slices.Sort(roots)
		if next <= left || !slices.Equal(roots, []string{"default root", "default-root-3"}) || len(issuers) != 4 {
			t.Fatalf("version %d: roots %q, issuers %q", next, roots, issuers)
		}
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Unclaim(t.Context(), tx, pool.Default, "7") }))
		if sets := a.of(0); sets.Version != first.Version {
			t.Fatalf("the issuers that the rollout had made came by themselves, version %d", sets.Version)
		}
		for _, e := range a.list() { // what was staged and not adopted is nobody's
			if e.State != "trusted" || e.Issuer != "default" && e.Issuer != "default-root" {
				t.Errorf("listed: %s of %s", e.State, e.Issuer)
			}
		}
		err := a.tx(func(tx *db.Tx) error { return a.Trust.Adopt(t.Context(), tx, pool.Default, next+1) })
		refused(t, err, fault.Invalid, "has no version")
		err = a.tx(func(tx *db.Tx) error {
			_, err := a.Trust.Stage(t.Context(), tx, pool.Default, nil, []string{"nobody"})
			return err
		})
		refused(t, err, fault.NotFound, `no trust entry "nobody"`)
		a.verified()
	})
}

// TestOwnRootElsewhereIsFollowed has the pool's own root in the set for another purpose, whose consumers meet the pool's hosts: a
// rotation brings the next root there, too, and takes the old one out.
func TestOwnRootElsewhereIsFollowed(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		old := a.of(0).General.Anchors[0]
		must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{Purpose: "ldaps", PEM: old}, once.Call{}))
		// A root that is elsewhere is above an issuer of ours, and no issuer here.
		a.exec(`UPDATE trust_entry SET issuer = '' WHERE purpose = 'ldaps'`)
		must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{Purpose: "web", PEM: forge(t, "Foreign", nil).pem()}, once.Call{}))
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Claim(ctx, tx, pool.Default, "1") }))
		both := a.stage(a.successors(2))
		if roots, _ := anchors(t, a.of(both).Others[0]); !slices.Equal(roots, []string{"default root", "default-root-2"}) {
			t.Errorf("ldaps: roots %q", roots)
		}
		if roots, _ := anchors(t, a.of(both).Others[1]); !slices.Equal(roots, []string{"Foreign"}) {
			t.Errorf("web: roots %q", roots)
		}
		a.adopt(both)
		left := a.stage(nil, trust.Fingerprint(parse(t, old)))
		if roots, _ := anchors(t, a.of(left).Others[0]); !slices.Equal(roots, []string{"default-root-2"}) {
			t.Errorf("ldaps: roots %q", roots)
		}
		a.verified()
	})
}

// verified fails unless the rows are in order.
func (a *authority) verified() {
	a.t.Helper()
	seen, err := a.Trust.Check(a.t.Context(), func(f trust.Finding) bool { a.t.Errorf("%+v", f); return true })
	check(a.t, err)
	if seen.Pools == 0 || seen.Entries == 0 {
		a.t.Errorf("only this was checked: %+v", seen)
	}
}

// TestClaims has two rollouts meet on a pool, and an administrator meet one.
func TestClaims(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		claim := func(rollout string) error {
			return a.tx(func(tx *db.Tx) error { return a.Trust.Claim(ctx, tx, pool.Default, rollout) })
		}
		refused(t, claim("1"), fault.Unavailable, "was not read yet")
		a.of(0)
		check(t, claim("1"))
		check(t, claim("1")) // resumed
		refused(t, claim("2"), fault.Conflict, "rollout 1 works on")
		_, err := a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{PEM: forge(t, "Other", nil).pem()}, once.Call{})
		refused(t, err, fault.Conflict, "rollout 1 works on")
		err = a.Trust.Drop(ctx, admin, pool.Default, a.list()[0].ID, client.DropTrustRequest{Because: "x"}, once.Call{})
		refused(t, err, fault.Conflict, "rollout 1 works on")
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Unclaim(ctx, tx, pool.Default, "2") })) // not its own
		refused(t, claim("2"), fault.Conflict, "rollout 1 works on")
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Unclaim(ctx, tx, pool.Default, "1") }))
		check(t, claim("2"))
	})
}

// TestIssuersEnterByThemselves adds an issuer outside a rollout, and retires it: it is trusted as soon as it is there, for as
// long as nobody takes it out. One that was taken out stays out.
func TestIssuersEnterByThemselves(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		before := a.of(0).Version
		made, _, err := a.CA.CreateIssuer(ctx, system, ca.IssuerSpec{Name: "extra", Pool: pool.Default, Parent: "default-root", Subject: "CN=extra"})
		check(t, err)
		if _, issuers := anchors(t, a.of(0).General); a.of(0).Version <= before || !slices.Contains(issuers, "extra") {
			t.Fatalf("version %d has issuers %q", a.of(0).Version, issuers)
		}
		must[*ca.Issuer](t)(a.CA.Retire(ctx, admin, "extra", once.Call{}))
		if _, issuers := anchors(t, a.of(0).General); !slices.Contains(issuers, "extra") {
			t.Fatalf("an issuer that was retired has left: %q", issuers)
		}
		before = a.of(0).Version
		check(t, a.Trust.Drop(ctx, admin, pool.Default, trust.Fingerprint(made.Certificate), client.DropTrustRequest{}, once.Call{}))
		for range 2 {
			if _, issuers := anchors(t, a.of(0).General); slices.Contains(issuers, "extra") || a.of(0).Version <= before {
				t.Fatalf("version %d has issuers %q", a.of(0).Version, issuers)
			}
		}
		if sets := must[*trust.Sets](t)(a.Trust.Of(ctx, "lab", 0, time.Now())); sets.Version < 1 || len(sets.General.Issuers) != 2 {
			t.Fatalf("the trust of another pool changed: %+v", sets)
		}
		_, err = a.Trust.Entries(ctx, admin, pool.Identity)
		refused(t, err, fault.Invalid, "is of identities")
	})
}

// TestListShowsWhatWasJustImported: a look at all pools that ended before an issuer came to be serves hosts for a moment still. Who
// lists what the pool trusts right after the import sees the issuer.
func TestListShowsWhatWasJustImported(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		a.of(0)
		issuers := must[[]*ca.Issuer](t)(a.CA.Issuers(ctx))
		check(t, d.Read(ctx, func(tx *db.Tx) error {
			states, err := trust.ReadStates(ctx, tx)
			if err != nil {
				return err
			}
			numbers, err := revocation.CurrentNumbers(ctx, tx)
			if err == nil {
				a.Trust.Follow(ctx, issuers, states, numbers, time.Now())
			}
			return err
		}))
		a.of(0) // keeps what the look was of
		_, _, err := a.CA.CreateIssuer(ctx, system, ca.IssuerSpec{Name: "extra", Pool: pool.Default, Parent: "default-root", Subject: "CN=extra"})
		check(t, err)
		if all := a.list(); !slices.ContainsFunc(all, func(e client.TrustEntry) bool { return e.Issuer == "extra" }) {
			t.Errorf("the list has %+v", all)
		}
	})
}

// versions are those of the default pool in which something came or left, in their order.
func (a *authority) versions() (all []int64) {
	a.t.Helper()
	check(a.t, a.DB.Read(a.t.Context(), func(tx *db.Tx) error {
		all = nil
		rows, err := tx.Query(a.t.Context(), `SELECT from_version FROM trust_entry WHERE pool = $1 UNION SELECT to_version FROM trust_entry
			WHERE pool = $1 AND to_version > 0 ORDER BY 1`, pool.Default)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var version int64
			if err := rows.Scan(&version); err != nil {
				return err
			}
			all = append(all, version)
		}
		return rows.Err()
	}))
	return all
}

// TestVersionsAreNotRepeatedAfterARestore: a version that hosts were given after the backup was taken is not what another one is
// called that is made after it was restored.
func TestVersionsAreNotRepeatedAfterARestore(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		backup := a.of(0).Version
		add := func(name string) int64 {
			must[[]client.TrustEntry](t)(a.Trust.Add(t.Context(), admin, pool.Default, client.AddTrustRequest{PEM: forge(t, name, nil).pem()}, once.Call{}))
			return a.of(0).Version
		}
		lost := add("Foreign one")
		a.exec(fmt.Sprintf("DELETE FROM trust_entry WHERE from_version = %d", lost))
		a.exec(fmt.Sprintf("UPDATE trust_pool SET version = %d, newest = %[1]d, change = change + 1 WHERE pool = 'default'", backup))
		if v := a.of(0).Version; v != backup {
			t.Fatalf("restored, it is version %d", v)
		}
		if again := add("Foreign two"); again == lost || again <= backup {
			t.Errorf("version %d was given twice", again)
		}
		if text := client.TrustVersion(lost); !strings.HasPrefix(text, "version "+time.UnixMilli(lost).UTC().Format("2006-01-02T15:04")) || client.TrustVersion(7) != "version 7" {
			t.Errorf("it is written %q", text)
		}
	})
}

// TestConcurrentAdds has many administrators add at once: nothing is lost, and each version has one more.
func TestConcurrentAdds(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		before := len(a.of(0).General.Anchors)
		const many = 12
		texts := make([]string, many)
		for i := range texts {
			texts[i] = forge(t, fmt.Sprintf("Foreign %d", i), nil).pem()
		}
		var group sync.WaitGroup
		errs := make([]error, many)
		for i, text := range texts {
			group.Go(func() {
				_, errs[i] = a.Trust.Add(t.Context(), admin, pool.Default, client.AddTrustRequest{PEM: text}, once.Call{})
			})
		}
		group.Wait()
		for _, err := range errs {
			check(t, err)
		}
		if sets := a.of(0); len(sets.General.Anchors) != before+many || len(a.versions()) != 1+many {
			t.Fatalf("%d anchors, version %d", len(sets.General.Anchors), sets.Version)
		}
		for i, version := range a.versions() {
			if n := len(a.of(version).General.Anchors); n != before+i {
				t.Errorf("version %d has %d anchors", version, n)
			}
		}
		if n := a.events("trust.add"); n != many {
			t.Errorf("%d events", n)
		}
		a.verified()
	})
}

// TestHostsHaveTheirVersion puts a host at a version, under an issuer and at a number: its ETag changes with each, nobody
// else's does, and its authority stays that of the issuer it has.
func TestHostsHaveTheirVersion(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		one := a.join(client.AddHostRequest{Name: "one", Placements: []client.PlacementOrder{{Recipe: "local/x"}}})
		two := a.join(client.AddHostRequest{Name: "two", Placements: []client.PlacementOrder{{Recipe: "local/x"}}})
		other := a.desired(two)
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Claim(t.Context(), tx, pool.Default, "1") }))
		staged := a.stage(a.successors(2))
		last := a.desired(one).ETag
		for _, change := range []string{
			fmt.Sprintf("UPDATE host SET trust = %d WHERE name = 'one'", staged), "UPDATE host SET issuer = 'default-2' WHERE name = 'one'",
			"UPDATE host SET identity_after = 5 WHERE name = 'one'", "UPDATE host_placement SET reissue = 3 WHERE host = (SELECT id FROM host WHERE name = 'one')",
		} {
			a.exec(change)
			d := a.desired(one)
			if d.ETag == last {
				t.Errorf("%s: the ETag is the same", change)
			}
			last = d.ETag
		}
		d1 := a.desired(one)
		if p := d1.Placements[0]; d1.Trust.Version != staged || len(d1.Trust.Anchors) != 2 || p.Issuer != "default-2" || p.Reissue != 3 || d1.IdentityAfter != 5 ||
			d1.Trust.Authority != "default-root-2" {
			t.Fatalf("%+v", d1)
		}
		if d2 := a.desired(two); d2.ETag != other.ETag || d2.Trust.Version != other.Trust.Version || d2.Trust.Authority != "default root" {
			t.Fatalf("another host: %+v", d2)
		}
		// The pool's issuer changes, while the hosts stay under the one they have.
		a.exec("UPDATE host SET issuer = 'default' WHERE name = 'two'")
		other = a.desired(two)
		must[*ca.Issuer](t)(a.CA.SetDefault(t.Context(), admin, "default-2", once.Call{}))
		if d2 := a.desired(two); d2.ETag != other.ETag || d2.Trust.Authority != "default root" {
			t.Fatalf("a host that keeps its issuer: authority %q, ETag changed %t", d2.Trust.Authority, d2.ETag != other.ETag)
		}
		a.report(one, client.Observation{
			Placement: "x", Trust: staged, Issuer: strings.Repeat("ab", 32), Serial: "01", Reissued: 3, CRLEnds: time.Now().Add(time.Hour),
		})
		a.exec("UPDATE host_placement SET trust = trust WHERE trust = $1 AND issuer = $2 AND serial = '01' AND reissued = 3 AND crl_ends > 0", staged, strings.Repeat("ab", 32))
		names := []string{"uno"}
		must[*client.Host](t)(a.Hosts.Set(t.Context(), operator, "one", client.ChangeHostRequest{DNS: &names, Placements: &[]client.PlacementOrder{{Recipe: "local/x"}, {Recipe: "local/y"}}}, ""))
		a.exec("UPDATE host_placement SET trust = trust WHERE trust = $1 AND issuer = $2 AND serial = '01' AND reissue = 3", staged, strings.Repeat("ab", 32))
	})
}
