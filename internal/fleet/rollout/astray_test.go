package rollout_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// split has a pool of six hosts, of which some are under issuer lab and the rest under lab-2, the pool's default: a rotation was
// aborted in the middle.
func (w *world) split() (old []*agent) {
	w.t.Helper()
	w.addMany(6)
	w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Waves: []string{"50%"}})
	w.until("half are re-keyed", func(r *client.Rollout) bool { return r.Stage == client.StageRekey && r.Waves[0].Done == 3 })
	must[*client.Rollout](w.t)(w.Rollouts.Abort(w.t.Context(), admin, w.id, once.Call{}))
	for _, a := range w.hosts {
		a.converge()
		if a.certs["plain"].Issuer.Name == "lab" {
			old = append(old, a)
		}
	}
	if len(old) == 0 || len(old) == 6 || w.issuerOfDefault() != "lab-2" {
		w.t.Fatalf("%d of 6 are under the old issuer, and the default is %s", len(old), w.issuerOfDefault())
	}
	return old
}

// TestUndoGoesBackToWhatEachHad: hosts that are not under the pool's default go back to the issuer that they had, whatever that is.
func TestUndoGoesBackToWhatEachHad(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		old := w.split()
		w.start(client.StartRolloutRequest{Kind: client.RolloutRotateAway, From: "lab", Waves: []string{"host:" + old[0].name}})
		w.until("the first is re-keyed", func(r *client.Rollout) bool { return r.Stage == client.StageRekey && r.Waves[0].Done == 1 })
		if old[0].certs["plain"].Issuer.Name != "lab-2" {
			t.Fatalf("the host of the first wave is under %s", old[0].certs["plain"].Issuer.Name)
		}
		must[*client.Rollout](t)(w.Rollouts.Undo(t.Context(), admin, w.id, once.Call{}))
		w.untilState(client.RolloutUndone)
		for range 2 {
			w.turn()
		}
		for _, a := range w.hosts {
			want := "lab-2"
			if slices.Contains(old, a) {
				want = "lab"
			}
			if got := a.certs["plain"].Issuer.Name; got != want {
				t.Errorf("undone, %s is under %s; it was under %s", a.name, got, want)
			}
		}
		if w.issuer("lab").State != ca.IssuerActive || w.issuerOfDefault() != "lab-2" {
			t.Errorf("issuer lab is %s, and the default is %s", w.issuer("lab").State, w.issuerOfDefault())
		}
		// And forward, to its end.
		w.start(client.StartRolloutRequest{Kind: client.RolloutRotateAway, From: "lab"})
		w.untilState(client.RolloutDone)
		if n := w.under("lab-2"); n != 6 {
			t.Errorf("%d of 6 are under lab-2", n)
		}
	})
}

// TestHostsWaitForTheirWave: no host is re-keyed before its wave, also where it is not under the pool's default.
func TestHostsWaitForTheirWave(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		old := w.split()
		before := map[*agent]*ca.Certificate{}
		for _, a := range w.hosts {
			before[a] = a.certs["plain"]
		}
		canary := w.hosts[0]
		if canary == old[0] {
			canary = w.hosts[1]
		}
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Waves: []string{"host:" + canary.name}})
		w.untilStage(client.StageRekey)
		canary.silent = true
		for range 4 {
			w.turn()
		}
		if r := w.show(); r.Stage != client.StageRekey || r.Wave != 1 {
			t.Fatalf("it is in stage %s, wave %d", r.Stage, r.Wave)
		}
		for _, a := range w.hosts {
			if a != canary && a.certs["plain"] != before[a] {
				t.Errorf("%s was re-keyed to %s before its wave; it was under %s", a.name, a.certs["plain"].Issuer.Name, before[a].Issuer.Name)
			}
		}
		canary.silent = false
		w.untilState(client.RolloutDone) // what leaves is the default alone
		for _, a := range w.hosts {
			if got := a.certs["plain"].Issuer.Name; got != "lab-3" {
				t.Errorf("at the end %s is under %s", a.name, got)
			}
		}
	})
}

// TestAbortedTrustGoesToNobodyElse: who aborts because the new CA does harm to the first is not to give it to the rest.
func TestAbortedTrustGoesToNobodyElse(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(4)
		trusted := fmt.Sprint(w.trusts(0))
		for _, end := range []string{"abort", "undo, and abort that"} {
			w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Waves: []string{"host:h00.example.com"}})
			w.until("the canary has it", func(r *client.Rollout) bool { return r.Stage == client.StageTrust && r.Waves[0].Done == 1 })
			had := w.hosts[0].trust
			if end != "abort" {
				must[*client.Rollout](t)(w.Rollouts.Undo(t.Context(), admin, w.id, once.Call{}))
			}
			r := must[*client.Rollout](t)(w.Rollouts.Abort(t.Context(), admin, w.id, once.Call{}))
			if r.State != client.RolloutAborted || !strings.Contains(r.Message, "nobody does any more") {
				t.Errorf("%s: it is %s: %s", end, r.State, r.Message)
			}
			for _, a := range w.hosts {
				a.converge()
				if now := fmt.Sprint(w.trusts(a.trust)); now != trusted || a.trust == had {
					t.Errorf("%s: host %s has version %d of the trust, %s", end, a.name, a.trust, now)
				}
			}
			if name := w.issuerOfDefault(); name != "lab" {
				t.Errorf("%s: the default is %s", end, name)
			}
		}
		for _, name := range []string{"lab-2", "lab-3"} {
			if i := w.issuer(name); i.State != ca.IssuerRetired {
				t.Errorf("%s, which was made for it, is %s", name, i.State)
			}
		}
	})
}

// TestReissueAfterARestore: after a backup was restored, keys that are to be replaced are replaced, whatever agents have done in
// the time that it does not know of.
func TestReissueAfterARestore(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		w.start(client.StartRolloutRequest{Kind: client.RolloutReissue})
		w.untilState(client.RolloutDone)
		check(t, d.Tx(t.Context(), func(tx *db.Tx) error {
			for _, query := range []string{"DELETE FROM rollout", "DELETE FROM rollout_host", "UPDATE host_placement SET reissue = 0"} {
				if _, err := tx.Exec(t.Context(), query); err != nil {
					return err
				}
			}
			return nil
		}))
		before := map[*agent]*ca.Certificate{}
		for _, a := range w.hosts {
			a.converge()
			before[a] = a.certs["plain"]
		}
		if r := w.start(client.StartRolloutRequest{Kind: client.RolloutReissue}); r.ID != "1" {
			t.Fatalf("it is rollout %s", r.ID)
		}
		w.untilState(client.RolloutDone)
		for _, a := range w.hosts {
			if a.certs["plain"] == before[a] {
				t.Errorf("it is done, and %s has the key that it had", a.name)
			}
		}
	})
}

// TestNewFailureIsSeenBesideMany: a host that fails with what it was told pauses the rollout, however many placements have failed
// for long.
func TestNewFailureIsSeenBesideMany(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(3)
		broken := w.hosts[0]
		broken.silent = true
		check(t, d.Tx(t.Context(), func(tx *db.Tx) error {
			for i := range 1001 {
				_, err := tx.Exec(t.Context(), `INSERT INTO host_placement (host, name, recipe, parameters, position, state, not_after, observed, observed_at)
					SELECT id, $1, 'local/x', '{}', $2, 'failed', 0, '', 1 FROM host WHERE name = $3`, fmt.Sprintf("x%d", i), int64(i+1), broken.name)
				if err != nil {
					return err
				}
			}
			return nil
		}))
		w.start(client.StartRolloutRequest{Kind: client.RolloutReissue, Waves: []string{"100%"}})
		w.until("the others have done it", func(r *client.Rollout) bool { return r.Stage == client.StageRekey && r.Waves[0].Done == 2 })
		w.hosts[2].fails = "disk full"
		if r := w.untilState(client.RolloutPaused); !strings.Contains(r.Message, "host h02.example.com, placement plain: disk full") {
			t.Errorf("it is paused since %q", r.Message)
		}
	})
}

func TestLeavingOutAllIsRefused(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		for _, in := range []client.StartRolloutRequest{
			{Kind: client.RolloutRoot, Online: true, Except: []string{"h00.example.com", "h01.example.com"}},
			{Kind: client.RolloutReissue, Select: []string{"h00.example.com"}, Except: []string{"h00.example.com"}},
		} {
			in.Pool, in.Because = lab, "in repair"
			_, err := w.Rollouts.Start(t.Context(), admin, in, once.Call{})
			refused(t, err, fault.Invalid, "all hosts that it is for are left out")
		}
	})
}
