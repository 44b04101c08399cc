package clone_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

// write has a node write, as each of its calls does.
func write(ctx context.Context, s *setup.Services) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO clock (name, high_water) VALUES ($1, 1)`, db.NewID())
		return err
	})
}

// TestRemovedWritesNothing has a node that was removed go on at once, with what it remembers of its row still fresh, and with its rows
// put back under it.
func TestRemovedWritesNothing(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, write(ctx, two))
	for _, table := range []string{"key_recipient", "node"} {
		a.exec(`CREATE TABLE kept_` + table + ` AS SELECT * FROM ` + table + ` WHERE public_key = '` + m.in.PublicKey + `'`)
	}
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, two.Clones.Registered(ctx)) // from its memory, for some seconds
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Force: true}, once.Call{}))
	if err := write(ctx, two); !errors.Is(err, db.ErrFenced) { // nobody has told it
		t.Fatalf("it was removed, and writes: %v", err)
	}
	two.DB.Guard(two.Clones.Guard)

	back := func() {
		a.exec(`DELETE FROM node WHERE name = 'n2'`)
		for _, table := range []string{"key_recipient", "node"} {
			a.exec(`INSERT INTO ` + table + ` SELECT * FROM kept_` + table + ` ON CONFLICT DO NOTHING`)
		}
	}
	if err := two.Clones.Report(ctx, clone.Self{}, time.Now()); !clone.Ended(err) {
		t.Fatalf("it reports: %v", err)
	}
	back()
	for what, err := range map[string]error{
		"reports": two.Clones.Report(ctx, clone.Self{}, time.Now()), "is registered": two.Clones.Registered(ctx), "writes": write(ctx, two),
	} {
		if !clone.Ended(err) {
			t.Errorf("its rows were put back, and it %s: %v", what, err)
		}
	}
	// One that never heard of it: its process stood still all the while.
	anew := a.open(m)
	refused(t, anew.Clones.Register(ctx, m.in.Address, time.Now()), fault.Denied, "does not name it")
	a.exec(`DELETE FROM node WHERE name = 'n2'`)
	refused(t, anew.Clones.Register(ctx, m.in.Address, time.Now()), fault.Denied, "does not name it")
	back()
	a.exec(junkList)
	refused(t, a.open(m).Clones.Register(ctx, m.in.Address, time.Now()), fault.Denied, "does not name it")
	// The list goes too that leaves it out: it is none all the same, whether or not it has seen that one.
	a.exec(`DELETE FROM recipient_list WHERE version >= 3`)
	unseen := *m
	unseen.floor = filepath.Join(t.TempDir(), "recipients")
	for _, m := range []*machine{m, &unseen} {
		s := a.open(m)
		for range 2 {
			err := s.Clones.Register(ctx, m.in.Address, time.Now())
			refused(t, err, fault.Denied, "node n2 was removed, whatever its row says")
			if !clone.Ended(err) {
				t.Errorf("it goes on: %v", err)
			}
			must(t, a.Clones.Finish(ctx, time.Now()))
		}
	}
	if n := a.count(`SELECT COUNT(*) FROM write_mark WHERE node = 'n2' AND fence = -1`); n != 1 {
		t.Error("its fence is lifted")
	}
}

// junkList puts a list there that nobody has signed so.
const junkList = `INSERT INTO recipient_list SELECT version + 1, body, signature, created_at FROM recipient_list ORDER BY version DESC LIMIT 1`

// TestJunkListStopsNobody has every node start again while a bad list is the newest: they start, write, say so, and give nobody keys.
func TestJunkListStopsNobody(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	two, _ := a.join("n2")
	three, _ := a.join("o1", "ocsp")
	late := a.machine("n4", a.invite())
	waits, err := a.Clones.Join(ctx, late.in)
	must(t, err)
	first := &machine{name: "n1", key: a.key, floor: filepath.Join(t.TempDir(), "recipients"), in: client.CloneJoin{Address: "https://one.test:8443"}}
	outside := *a // who can write to the database, and is no node
	outside.Services = a.open(a.machine("x", &client.CloneToken{}))
	for range 2 { // the second is set upon the first
		outside.exec(junkList)
		for _, m := range []*machine{first, two, three} {
			s, log := a.open(m), &strings.Builder{}
			s.Clones.Logger = slog.New(slog.NewTextHandler(log, nil))
			must(t, s.Clones.Register(ctx, m.in.Address, time.Now()))
			must(t, write(ctx, s))
			must(t, s.Clones.Report(ctx, clone.Self{}, time.Now()))
			if !strings.Contains(log.String(), "is in doubt") || !strings.Contains(log.String(), "is not good") {
				t.Errorf("%s says of it: %s", m.name, log)
			}
			found, _, err := s.Keys.Check(ctx, nil)
			if err != nil || !slices.ContainsFunc(found, func(f keys.Finding) bool {
				return f.Rule == keys.Unendorsed && strings.Contains(f.Message, "is not good")
			}) {
				t.Errorf("%s finds %+v, %v", m.name, found, err)
			}
			if m == first {
				_, err = s.Clones.Approve(ctx, a.admin, "n4", client.CloneApproval{Fingerprint: waits.Fingerprint})
				refused(t, err, fault.Conflict, "no list is signed upon it")
			}
		}
	}
	outside.exec(`UPDATE node SET seen_at = seen_at + 3600000000 WHERE seen_at > 0`) // what they reported is fresh still, however slow this is
	if all, _, err := a.Clones.List(ctx, a.admin, "", 10); err != nil || len(all) != 4 || !all[0].Ready || !all[1].Ready || !all[3].Ready {
		t.Errorf("it shows %+v, %v", all, err)
	}
	// One whose key is not on the list that they believe is no node, whatever stands above it.
	stranger := a.machine("n2", &client.CloneToken{})
	outside.exec(`UPDATE key_recipient SET public_key = $1 WHERE id = 'n2'`, stranger.in.PublicKey)
	outside.exec(`UPDATE node SET public_key = $1 WHERE name = 'n2'`, stranger.in.PublicKey)
	refused(t, a.open(stranger).Clones.Register(ctx, two.in.Address, time.Now()), fault.Denied, "does not name it")
}

// TestNameGivenAnew has an administrator take a machine in by the name of one that was removed, and of which nothing else is left.
func TestNameGivenAnew(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, old := a.join("n2")
	must(t, old.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Force: true}, once.Call{}))
	a.exec(`DELETE FROM node WHERE name = 'n2'`)
	m, anew := a.join("n2")
	must(t, anew.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, write(ctx, anew))
	if err := write(ctx, old); !errors.Is(err, db.ErrFenced) {
		t.Errorf("it was removed, and writes by its successor's name: %v", err)
	}
}

// TestFrozenProcess has a process that stood still after it was asked whether it may write go on after another has started as its node.
func TestFrozenProcess(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, one := a.join("n2")
	must(t, one.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, one.Clones.Report(ctx, clone.Self{}, time.Now()))
	two, begun := a.open(m), false
	err := one.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO clock (name, high_water) VALUES ('frozen', 1)`); err != nil || begun {
			return err
		}
		begun = true
		return two.Clones.Register(ctx, m.in.Address, time.Now())
	})
	if !errors.Is(err, db.ErrFenced) || a.count(`SELECT COUNT(*) FROM clock WHERE name = 'frozen'`) != 0 {
		t.Fatalf("the older process wrote: %v", err)
	}
	must(t, write(ctx, two))
}

// TestLeavingSaysThatItStopped has a node that leaves say so right after it heard of it: the others need not wait for its silence.
func TestLeavingSaysThatItStopped(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	two.DB.Guard(two.Clones.Guard)
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	_, err := a.Clones.Leave(ctx, a.admin, "n2", once.Call{})
	must(t, err)
	if err := two.Clones.Report(ctx, clone.Self{}, time.Now()); !errors.Is(err, clone.ErrLeaving) {
		t.Fatalf("it heard %v", err)
	}
	must(t, write(ctx, two)) // what it has begun
	if err := two.Clones.Report(ctx, clone.Self{Stopped: true}, time.Now()); !errors.Is(err, clone.ErrLeaving) {
		t.Fatalf("it says that it has stopped: %v", err)
	}
	must(t, a.Clones.Finish(ctx, time.Now()))
	if n := a.count(`SELECT COUNT(*) FROM node WHERE name = 'n2' AND state = 'gone'`); n != 1 {
		t.Fatal("it said that it has stopped, and is not gone")
	}
	if err := write(ctx, two); !errors.Is(err, db.ErrFenced) {
		t.Fatalf("it is gone, and writes: %v", err)
	}
}

// TestNodeWithoutARow has who can write to the database take the row of a node away that runs ocsp only: it is told the rule still.
func TestNodeWithoutARow(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, three := a.join("o1", "ocsp")
	must(t, three.Clones.Register(ctx, m.in.Address, time.Now()))
	waits, err := a.Clones.Join(ctx, a.machine("n2", a.invite()).in)
	must(t, err)
	for _, row := range []bool{true, false} {
		if !row {
			a.exec(`DELETE FROM node WHERE name = 'o1'`)
		}
		_, err = three.Clones.Approve(ctx, a.admin, "n2", client.CloneApproval{Fingerprint: waits.Fingerprint})
		refused(t, err, fault.Conflict, "node o1 runs ocsp only; ca runs on n1 at https://one.test:8443")
	}
	_, two := a.join("n3")
	a.exec(`DELETE FROM node WHERE name = 'n3'`)
	_, err = two.Clones.Approve(ctx, a.admin, "n2", client.CloneApproval{Fingerprint: waits.Fingerprint})
	must(t, err) // as a command on a machine that runs ca may
}

// TestClocksOfNodes has nodes whose clocks are wrong by much report: who was seen is judged by one clock, the database's.
func TestClocksOfNodes(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	for _, off := range []time.Duration{-3 * time.Hour, 3 * time.Hour} {
		must(t, two.Clones.Report(ctx, clone.Self{}, time.Now().Add(off)))
		shown, err := a.Clones.Show(ctx, a.admin, "n2")
		if err != nil || !shown.Ready || time.Since(shown.Seen).Abs() > time.Minute {
			t.Fatalf("%v: it is %+v, %v", off, shown, err)
		}
		refused(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{}, once.Call{}), fault.Conflict, "was seen")
	}
	a.exec(`UPDATE node SET seen_at = $1 WHERE name = 'n2'`, db.Micros(time.Now().Add(-time.Minute)))
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{}, once.Call{}))
}

// TestIssuersOfNodes has two nodes answer for different issuers, which is shown as a difference of both.
func TestIssuersOfNodes(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, three := a.join("o1", "ocsp")
	must(t, three.Clones.Register(ctx, m.in.Address, time.Now()))
	report := func(s *setup.Services) client.CloneIssuers {
		var self clone.Self
		self.Issuers.Count, self.Issuers.Digest = s.Revocation.Answered(ctx, time.Now())
		must(t, s.Clones.Report(ctx, self, time.Now()))
		return self.Issuers
	}
	one, other := report(a.Services), report(three)
	if one != other || one.Count < 4 || len(one.Digest) != 64 {
		t.Fatalf("they answer for %+v and %+v", one, other)
	}
	shown, err := a.Clones.Show(ctx, a.admin, "o1")
	if err != nil || len(shown.Differences) > 0 || shown.Issuers != one {
		t.Fatalf("it is %+v, %v", shown, err)
	}
	less := clone.Self{}
	less.Issuers = client.CloneIssuers{Count: one.Count - 1, Digest: strings.Repeat("ab", 32)}
	must(t, three.Clones.Report(ctx, less, time.Now()))
	for _, name := range []string{"n1", "o1"} {
		shown, err := a.Clones.Show(ctx, a.admin, name)
		must(t, err)
		if !strings.Contains(strings.Join(shown.Differences, "; "), "issuers that it answers for") {
			t.Errorf("%s differs in %q", name, shown.Differences)
		}
	}
}

// TestUnreached: a node that says nobody can reach it is shown with that, and no other is.
func TestUnreached(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{Unreached: []string{"it listens on loopback"}}, time.Now()))
	for name, want := range map[string]string{"n1": "", "n2": "it listens on loopback"} {
		shown, err := a.Clones.Show(ctx, a.admin, name)
		must(t, err)
		if got := strings.Join(shown.Unreached, "; "); got != want || len(shown.Differences) > 0 {
			t.Errorf("%s: %q, not %q; it differs in %q", name, got, want, shown.Differences)
		}
	}
}

// TestOperatorsAtOnce has operators decide on one node at the same time: with different fingerprints, and one of them against it.
func TestOperatorsAtOnce(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	both := func(acts ...func() error) []error {
		errs := make([]error, len(acts))
		var all sync.WaitGroup
		for i, act := range acts {
			all.Go(func() { errs[i] = act() })
		}
		all.Wait()
		return errs
	}
	waits, err := a.Clones.Join(ctx, a.machine("n3", a.invite()).in)
	must(t, err)
	approve := func(s *setup.Services, node, fingerprint string) func() error {
		return func() error {
			_, err := s.Clones.Approve(ctx, a.admin, node, client.CloneApproval{Fingerprint: fingerprint})
			return err
		}
	}
	errs := both(approve(a.Services, "n3", waits.Fingerprint), approve(two, "n3", strings.Repeat("0", 64)))
	must(t, errs[0])
	refused(t, errs[1], fault.Conflict, "begins with "+waits.Fingerprint[:8])

	// One approves while the other refuses: one of them is told that he was too late, and what there is then is whole.
	for i := range 5 {
		name := "w" + string(rune('a'+i))
		waits, err := a.Clones.Join(ctx, a.machine(name, a.invite()).in)
		must(t, err)
		errs := both(approve(a.Services, name, waits.Fingerprint), func() error {
			return two.Clones.Remove(ctx, a.admin, name, clone.Removal{}, once.Call{})
		})
		if (errs[0] == nil) == (errs[1] == nil) {
			// It was approved before the other looked: then it is a node that has not started, and is removed as one.
			if errs[0] != nil || a.count(`SELECT COUNT(*) FROM node WHERE name = $1 AND state = 'gone' AND approved_at > 0`, name) != 1 {
				t.Fatalf("%s: %v", name, errs)
			}
		}
		for _, err := range errs {
			if err != nil && !fault.Is(err, fault.Conflict) {
				t.Errorf("%s: %v", name, err)
			}
		}
		state := a.count(`SELECT COUNT(*) FROM node WHERE name = $1 AND state = 'active'`, name)
		if n := a.count(`SELECT COUNT(*) FROM key_recipient WHERE id = $1`, name); n != state {
			t.Errorf("%s: %d active, %d recipients", name, state, n)
		}
	}

	// It is approved again, to be completed, while it leaves.
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now())) // or nobody who lives is left to sign
	errs = both(approve(a.Services, "n2", m.fingerprint(t, a)), func() error {
		_, err := two.Clones.Leave(ctx, a.admin, "n2", once.Call{})
		return err
	})
	must(t, errs[1])
	if errs[0] != nil && !fault.Is(errs[0], fault.Conflict) && !fault.Is(errs[0], fault.Unavailable) {
		t.Errorf("approved while it leaves: %v", errs[0])
	}
	refused(t, approve(a.Services, "n2", m.fingerprint(t, a))(), fault.Conflict, "node n2 is leaving")
	_, err = a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{}, once.Call{})
	refused(t, err, fault.Denied, "is leaving")
}

// fingerprint is what the authority knows a machine by.
func (m *machine) fingerprint(t *testing.T, a *authority) string {
	t.Helper()
	shown, err := a.Clones.Show(t.Context(), a.admin, m.name)
	must(t, err)
	return shown.Fingerprint
}

// TestLastCA has the last node that runs ca be removed and told to leave, by whichever node is asked.
func TestLastCA(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, three := a.join("o1", "ocsp")
	must(t, three.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, three.Clones.Report(ctx, clone.Self{}, time.Now()))
	refused(t, three.Clones.Remove(ctx, a.admin, "n1", clone.Removal{Force: true}, once.Call{}), fault.Conflict, "node o1 runs ocsp only; ca runs on n1")
	refused(t, a.Clones.Remove(ctx, a.admin, "n1", clone.Removal{Force: true}, once.Call{}), fault.Conflict, "was asked to remove itself")
	for _, s := range []*setup.Services{a.Services, three} {
		_, err := s.Clones.Leave(ctx, a.admin, "n1", once.Call{})
		refused(t, err, fault.Conflict, "is the last that runs ca")
	}
	// Of two, both are told to leave at once: one stays.
	m2, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m2.in.Address, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	errs := make(chan error, 2)
	for name, s := range map[string]*setup.Services{"n2": a.Services, "n1": two} {
		go func() {
			_, err := s.Clones.Leave(ctx, a.admin, name, once.Call{})
			errs <- err
		}()
	}
	first, second := <-errs, <-errs
	if (first == nil) == (second == nil) || !fault.Is(errors.Join(first, second), fault.Conflict) {
		t.Fatalf("both were told to leave: %v, %v", first, second)
	}
	if n := a.count(`SELECT COUNT(*) FROM node WHERE state = 'active' AND subsystems LIKE 'ca%'`); n != 1 {
		t.Fatalf("%d nodes that run ca are left", n)
	}
}

// TestLoginOfOneThatEnded has a node end while its login is made: the login ends too.
func TestLoginOfOneThatEnded(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m := a.machine("n2", a.invite())
	m.in.DatabaseCSR = a.machine("x", &client.CloneToken{}).in.CSR
	waits, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	roles := map[string]bool{}
	a.Clones.OpenLogin = func(ctx context.Context, _ access.Principal, node, _ string) (clone.Login, error) {
		must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Force: true}, once.Call{}))
		roles["chancery_"+node] = true
		return clone.Login{Role: "chancery_" + node}, nil
	}
	a.Clones.CloseLogin = func(_ context.Context, role string) error {
		delete(roles, role)
		return nil
	}
	_, err = a.Clones.Approve(ctx, a.admin, "n2", client.CloneApproval{Fingerprint: waits.Fingerprint})
	refused(t, err, fault.Conflict, "node n2 is gone since it was approved")
	if len(roles) != 0 {
		t.Fatalf("the node is gone, and its login is not: %v", roles)
	}
}

// TestAskingOnWritesNothing has whoever has a used token ask as often as he likes.
func TestAskingOnWritesNothing(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, _ := a.join("n2")
	waiting := a.machine("n3", a.invite())
	_, err := a.Clones.Join(ctx, waiting.in)
	must(t, err)
	_, err = a.Clones.Join(ctx, m.in) // behind a commit, once
	must(t, err)
	written := func(node string) int64 { // the transaction that wrote the row last
		return a.count(`SELECT CAST(CAST(xmin AS TEXT) AS BIGINT) FROM node_invitation WHERE used_by = $1`, node)
	}
	events := a.count(`SELECT COUNT(*) FROM audit_event`)
	for _, in := range []client.CloneJoin{m.in, waiting.in} {
		before := written(in.Name)
		for range 20 {
			_, err := a.Clones.Join(ctx, in)
			must(t, err)
		}
		if written(in.Name) != before || a.count(`SELECT COUNT(*) FROM audit_event`) != events {
			t.Errorf("%s asked on, and that was written", in.Name)
		}
	}
}
