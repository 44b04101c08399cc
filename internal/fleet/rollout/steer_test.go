package rollout_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/trust"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestFirstFailurePauses: a host that fails with what it was told stops the rollout; one that failed before holds it.
func TestFirstFailurePauses(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(4)
		w.hosts[0].fails = "disk full"
		w.hosts[0].converge()
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Waves: []string{"host:h01.example.com"}})
		w.until("the second wave", func(r *client.Rollout) bool { return r.Wave == 2 })
		held := w.until("the failing host is told", func(r *client.Rollout) bool { return len(r.Holding) == 1 && r.Waves[1].Done == 2 })
		if held.State != client.RolloutRunning || held.Holding[0].Host != "h00.example.com" || !strings.Contains(held.Holding[0].Message, "disk full") {
			t.Errorf("what failed before is %s by %+v", held.State, held.Holding)
		}
		w.hosts[2].fails = "the new file is refused"
		paused := w.untilState(client.RolloutPaused)
		if !strings.Contains(paused.Message, "host h02.example.com, placement plain: the new file is refused") {
			t.Errorf("it is paused since %q", paused.Message)
		}
		for range 3 { // while it is paused nothing is told
			if r := w.turn(); r.State != client.RolloutPaused || r.Stage != client.StageTrust {
				t.Fatalf("paused, and it is %s at %s", r.State, r.Stage)
			}
		}
		must[*client.Rollout](t)(w.Rollouts.Resume(t.Context(), operator, w.id, client.ResumeRolloutRequest{}, once.Call{}))
		for range 3 {
			r := w.turn()
			if r.State != client.RolloutRunning || len(r.Holding) != 2 {
				t.Fatalf("resumed, it is %s, held by %+v", r.State, r.Holding)
			}
		}
		_, err := w.Rollouts.Resume(t.Context(), operator, w.id, client.ResumeRolloutRequest{Except: []string{"h02.example.com"}, Because: "x"}, once.Call{})
		refused(t, err, fault.Denied, "")
		w.hosts[0].fails, w.hosts[2].fails = "", ""
		w.untilState(client.RolloutDone)
		if w.events("rollout.pause") != 1 || w.events("rollout.resume") != 1 || w.under("lab-2") != 4 {
			t.Errorf("%d pauses, %d resumed, %d hosts done", w.events("rollout.pause"), w.events("rollout.resume"), w.under("lab-2"))
		}
	})
}

// TestSilentHostHoldsAndComesBackAfterAYear: nothing is dropped while a host is silent, until somebody says that it does not
// count. When it comes back it gets what it missed.
func TestSilentHostHoldsAndComesBackAfterAYear(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(3)
		gone := w.hosts[1]
		gone.silent = true
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true})
		held := w.until("it is held", func(r *client.Rollout) bool {
			return len(r.Holding) == 1 && r.Holding[0].Host == gone.name && r.Stage == client.StageTrust
		})
		if held.Holding[0].SeenAt.IsZero() {
			t.Errorf("it is not said when it was seen: %+v", held.Holding[0])
		}
		for range 5 {
			if r := w.turn(); r.Stage != client.StageTrust {
				t.Fatalf("a host is silent, and stage %s has begun", r.Stage)
			}
		}
		gone.left = true
		must[*client.Rollout](t)(w.Rollouts.Resume(t.Context(), admin, w.id, client.ResumeRolloutRequest{Except: []string{gone.name}, Because: "in repair"}, once.Call{}))
		w.untilState(client.RolloutDone)
		if w.under("lab-2") != 2 || w.under("lab") != 1 {
			t.Fatalf("%d hosts are under the new issuer, %d under the old", w.under("lab-2"), w.under("lab"))
		}
		gone.silent, gone.left = false, false
		gone.converge()
		w.safe()
		if w.under("lab-2") != 3 {
			t.Error("the host that came back has no certificate under the new issuer")
		}
		told := func() (issuer string) {
			check(t, d.Read(t.Context(), func(tx *db.Tx) error {
				return tx.QueryRow(t.Context(), `SELECT issuer FROM host WHERE name = $1`, gone.name).Scan(&issuer)
			}))
			return issuer
		}
		if told() != "lab-2" {
			t.Fatalf("it was told of %q", told())
		}
		must[int64](t)(w.Rollouts.Prune(t.Context(), time.Now(), 100))
		if told() != "" {
			t.Errorf("it is where it was to go, and is still told of %q", told())
		}
	})
}

// TestUndoAndAbortAtEveryStage: wherever a rollout is, it can go back without breaking a connection, or be left where it is.
func TestUndoAndAbortAtEveryStage(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{client.RolloutRoot, client.RolloutIssuer} {
		t.Run(kind, func(t *testing.T) {
			pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
				w := newWorld(t, d)
				w.addMany(4)
				next := 2
				undone := []string{client.StagePrepare, client.StageTrust, client.StageRekey, client.StageLeave}
				aborted := undone[2:]             // before: see TestAbortedTrustGoesToNobodyElse
				if kind == client.RolloutIssuer { // what it has in common with the other kind is seen there
					undone, aborted = undone[2:], aborted[:1]
				}
				for _, stage := range undone {
					before := w.issuerOfDefault()
					trusted := fmt.Sprint(w.trusts(0))
					w.start(client.StartRolloutRequest{Kind: kind, Online: kind == client.RolloutRoot})
					w.halfway(stage)
					must[*client.Rollout](t)(w.Rollouts.Undo(t.Context(), admin, w.id, once.Call{}))
					_, err := w.Rollouts.Undo(t.Context(), admin, w.id, once.Call{})
					refused(t, err, fault.Conflict, "undone")
					if stage != client.StagePrepare {
						w.untilState(client.RolloutUndone)
					}
					if w.issuerOfDefault() != before || w.under(before) != 4 {
						t.Errorf("undone at %s, %d of 4 are under %s, and the default is %s", stage, w.under(before), before, w.issuerOfDefault())
					}
					for range 2 {
						w.turn()
					}
					if now := fmt.Sprint(w.trusts(0)); now != trusted {
						t.Errorf("undone at %s, other issuers are trusted than before", stage)
					}
					if made := w.issuer(fmt.Sprintf("lab-%d", next)); made.State != ca.IssuerRetired {
						t.Errorf("undone at %s, what was made for it is %s", stage, made.State)
					}
					next++
				}
				for _, stage := range aborted {
					old := print256(w.issuer(w.issuerOfDefault()).Certificate)
					w.start(client.StartRolloutRequest{Kind: kind, Online: kind == client.RolloutRoot})
					w.halfway(stage)
					r := must[*client.Rollout](t)(w.Rollouts.Abort(t.Context(), admin, w.id, once.Call{}))
					if r.State != client.RolloutAborted {
						t.Errorf("aborted, it is %s", r.State)
					}
					for range 3 {
						w.turn()
					}
					all := strings.Join(w.trusts(0), " ")
					if !strings.Contains(all, old) || !strings.Contains(all, print256(w.issuer(fmt.Sprintf("lab-%d", next)).Certificate)) {
						t.Errorf("aborted at %s, not both are trusted", stage)
					}
					next++
				}
				// And none of it keeps the next one from being done.
				w.start(client.StartRolloutRequest{Kind: kind, Online: kind == client.RolloutRoot})
				w.untilState(client.RolloutDone)
				if w.under(fmt.Sprintf("lab-%d", next)) != 4 {
					t.Error("the last one did not reach all")
				}
			})
		})
	}
}

func (w *world) issuerOfDefault() string {
	w.t.Helper()
	for _, i := range must[[]*ca.Issuer](w.t)(w.CA.Issuers(w.t.Context())) {
		if i.Pool == lab && i.Default {
			return i.Name
		}
	}
	return ""
}

// halfway takes turns until about half of the hosts have fulfilled a stage.
func (w *world) halfway(stage string) {
	w.t.Helper()
	if stage == client.StagePrepare {
		return
	}
	w.until("half of "+stage, func(r *client.Rollout) bool { return r.Stage == stage && r.Wave == 3 })
}

func TestUndoOfAReissueSaysWhatStays(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(6)
		w.start(client.StartRolloutRequest{Kind: client.RolloutReissue, Waves: []string{"canary", "50%"}})
		w.until("the last wave", func(r *client.Rollout) bool { return r.Wave == 3 && r.Waves[1].Done == 2 })
		for _, a := range w.hosts {
			a.silent = true
		}
		check(t, w.drive.Look(t.Context()))
		done := 0
		for _, a := range w.hosts {
			if a.reissued["plain"] > 0 {
				done++
			}
		}
		r := must[*client.Rollout](t)(w.Rollouts.Undo(t.Context(), operator, w.id, once.Call{}))
		if want := fmt.Sprintf("since what was there before is gone: %d hosts; as before: %d hosts", done, 6-done); r.State != client.RolloutUndone || !strings.Contains(r.Message, want) {
			t.Errorf("it is %s: %q; want %q", r.State, r.Message, want)
		}
		for _, a := range w.hosts {
			a.silent = false
			a.converge()
		}
		after := 0
		for _, a := range w.hosts {
			if a.reissued["plain"] > 0 {
				after++
			}
		}
		if after != done || done == 0 || done == 6 {
			t.Errorf("%d hosts had new keys, and after it was undone %d have", done, after)
		}
	})
}

// TestLiarIsContradicted: an agent says that it serves the new certificate, and serves the old one.
func TestLiarIsContradicted(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		liar := w.add(client.AddHostRequest{Name: "liar.example.com", IP: []string{"127.0.0.1"}})
		liar.converge()
		served := serveSelf(t, "liar.example.com")
		liar.address = net.JoinHostPort("192.0.2.1", served.port) // the host part is not taken
		liar.converge()
		var r *client.Rollout
		for range 20 { // on a busy machine the port may be seen too late: then it counts as out of reach, and the rollout goes on
			w.start(client.StartRolloutRequest{Kind: client.RolloutReissue, Waves: []string{"host:liar.example.com"}})
			r = w.until("paused", func(r *client.Rollout) bool { return r.State == client.RolloutPaused || r.State == client.RolloutDone })
			if r.State == client.RolloutPaused {
				break
			}
		}
		if !strings.Contains(r.Message, "host liar.example.com, placement plain: its agent reports that it serves") || !strings.Contains(r.Message, served.serial) {
			t.Errorf("it says %q", r.Message)
		}
		must[*client.Rollout](t)(w.Rollouts.Resume(t.Context(), operator, w.id, client.ResumeRolloutRequest{Except: []string{"liar.example.com"}, Because: "taken apart"}, once.Call{}))
		w.untilState(client.RolloutDone)
	})
}

// TestUnreachableFromTheNodeIsNoFailure: a firewall between the node and the host says nothing about the host.
func TestUnreachableFromTheNodeIsNoFailure(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		far := w.add(client.AddHostRequest{Name: "far.example.com", IP: []string{"127.0.0.1"}})
		far.address = net.JoinHostPort("127.0.0.1", closedPort(t))
		far.converge()
		w.start(client.StartRolloutRequest{Kind: client.RolloutReissue})
		w.untilState(client.RolloutDone)
		var message string
		check(t, w.DB.Read(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT message FROM rollout_host WHERE rollout = $1`, w.id).Scan(&message)
		}))
		if !strings.Contains(message, "could not be seen from the node") {
			t.Errorf("it is noted: %q", message)
		}
	})
}

// TestKilledAtEveryCommit cuts a rotation of the root before and after each of its commits, and goes on each time with a node that
// knows nothing: no connection breaks, and it comes to its end.
func TestKilledAtEveryCommit(t *testing.T) {
	t.Parallel()
	for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
		t.Run(strings.ReplaceAll(string(outcome), " ", "-"), func(t *testing.T) {
			pkitest.EachURL(t, func(t *testing.T, url string) {
				var faults pkitest.Faults
				d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
				w := newWorld(t, d)
				w.addMany(3)
				w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Waves: []string{"canary"}})
				cut, looks := 0, 0
				for r := w.show(); r.EndedAt.IsZero(); r = w.show() {
					if looks++; looks > 3000 {
						t.Fatalf("it does not come to its end: %+v", w.show())
					}
					if !w.awaitsCRL(r) { // which another commits, who would try again ever later
						// Of the commits of one look, the first that is not spared: each is met in its turn.
						faults.FailCommit(1+looks%3, outcome)
					}
					err := w.drive.Look(t.Context())
					faults.Clear()
					if err != nil {
						cut++
						w.again()
					}
					if await(r); r.Stage == client.StagePrepare {
						continue // nobody is told of anything
					}
					for _, a := range w.hosts {
						a.converge()
						w.safe()
					}
				}
				if r := w.show(); r.State != client.RolloutDone || w.under("lab-2") != 3 {
					t.Errorf("it ended as %s: %s; %d of 3 are under the new issuer", r.State, r.Message, w.under("lab-2"))
				}
				if w.events("rollout.done") != 1 || w.events("rollout.stage") != 3 {
					t.Errorf("%d ends and %d stages are in the audit", w.events("rollout.done"), w.events("rollout.stage"))
				}
				if cut < 6 {
					t.Fatalf("it was cut %d times only", cut)
				}
				t.Logf("cut %d times", cut)
			})
		})
	}
}

// TestLeaseFencesTheDriverBefore: who has lost the lease does nothing any more, and does not know it.
func TestLeaseFencesTheDriverBefore(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true})
		w.untilStage(client.StageTrust)
		check(t, d.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE leases SET holder = 'n2', epoch = epoch + 1, expires_at = expires_at + 3600000000 WHERE name = 'rollout'`)
			return err
		}))
		before := w.show()
		for range 3 {
			_ = w.drive.Look(t.Context())
		}
		after := w.show()
		if before.Stage != after.Stage || before.Wave != after.Wave || w.drive.Holds() {
			t.Errorf("it went from %s %d to %s %d without the lease", before.Stage, before.Wave, after.Stage, after.Wave)
		}
	})
}

func TestFingerprintsAreThoseOfTrust(t *testing.T) {
	t.Parallel()
	c, _ := foreignCA(t, "x")
	if print256(c) != trust.Fingerprint(c) {
		t.Error("they differ")
	}
}
