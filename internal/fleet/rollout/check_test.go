package rollout_test

import (
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fleet/rollout"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// wrong is what Check finds, and how much it looked at.
func (w *world) wrong() (string, rollout.Checked) {
	w.t.Helper()
	found := ""
	seen := must[rollout.Checked](w.t)(w.Rollouts.Check(w.t.Context(), func(f rollout.Finding) bool { found += f.Object + ": " + f.Message + "\n"; return true }))
	return found, seen
}

// TestCheckSeesWhatWasChanged changes rows as somebody would who can write to the database, and is told of each.
func TestCheckSeesWhatWasChanged(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(3)
		w.start(client.StartRolloutRequest{Kind: client.RolloutReissue, Waves: []string{"100%"}})
		w.untilState(client.RolloutDone)
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Waves: []string{"canary", "100%"}})
		w.until("some hosts are told of the other issuer", func(r *client.Rollout) bool { return r.Stage == client.StageRekey && r.Wave == 2 })
		found, seen := w.wrong()
		if found != "" || seen.Rollouts != 2 || seen.Members != 6 || seen.Hosts == 0 {
			t.Fatalf("nothing was changed: %q of %+v", found, seen)
		}
		exec := func(query string) {
			t.Helper()
			check(t, d.Tx(t.Context(), func(tx *db.Tx) error {
				n, err := tx.Exec(t.Context(), query)
				if err == nil && n == 0 {
					t.Errorf("%s: no row", query)
				}
				return err
			}))
		}
		for _, c := range []struct{ says, change, back string }{
			{`rollout 2: it is of pool "gone", which there is not`, "UPDATE rollout SET pool = 'gone' WHERE id = '2'", "UPDATE rollout SET pool = 'lab' WHERE id = '2'"},
			{`rollout 2: it changes what pool "lab" trusts, and has no claim`, "UPDATE trust_pool SET rollout = '' WHERE pool = 'lab'",
				"UPDATE trust_pool SET rollout = '2' WHERE pool = 'lab'"},
			{`rollout 1: it has the trust of pool "lab" for itself, and is not at work`, "UPDATE trust_pool SET rollout = '1' WHERE pool = 'lab'",
				"UPDATE trust_pool SET rollout = '2' WHERE pool = 'lab'"},
			{"rollout 1: it is done, and has an end: false", "UPDATE rollout SET pool = 'default', ended_at = 0 WHERE id = '1'",
				"UPDATE rollout SET pool = 'lab', ended_at = changed_at WHERE id = '1'"},
			{`rollout 1: its state is "resting"`, "UPDATE rollout SET state = 'resting' WHERE id = '1'", "UPDATE rollout SET state = 'done' WHERE id = '1'"},
			{`rollout 1: it is in stage "leave"`, "UPDATE rollout SET stage = 'leave' WHERE id = '1'", "UPDATE rollout SET stage = 'rekey' WHERE id = '1'"},
			{"rollout 2: it is in wave 9 of 2", "UPDATE rollout SET wave = 9 WHERE id = '2'", "UPDATE rollout SET wave = 2 WHERE id = '2'"},
			{"rollout 9: there are hosts of it, and it is not there", "UPDATE rollout_host SET rollout = '9' WHERE rollout = '1'",
				"UPDATE rollout_host SET rollout = '1' WHERE rollout = '9'"},
			{"rollout 2: host h01.example.com is in it, and was never in pool", "UPDATE rollout_host SET host = 'x' WHERE rollout = '2' AND name = 'h01.example.com'",
				"UPDATE rollout_host SET host = (SELECT id FROM host WHERE name = 'h01.example.com') WHERE host = 'x'"},
			{"rollout 2: host h02.example.com is in none of its 2 waves", "UPDATE rollout_host SET wave = 7 WHERE rollout = '2' AND name = 'h02.example.com'",
				"UPDATE rollout_host SET wave = 2 WHERE rollout = '2' AND name = 'h02.example.com'"},
			{"host h00.example.com: it is at version", "UPDATE host SET trust = trust + 9000000000000 WHERE name = 'h00.example.com'",
				"UPDATE host SET trust = trust - 9000000000000 WHERE name = 'h00.example.com'"},
			{`host h00.example.com: it is to be under issuer "nobody", which there is not`, "UPDATE host SET issuer = 'nobody' WHERE name = 'h00.example.com'",
				"UPDATE host SET issuer = 'lab-2' WHERE name = 'h00.example.com'"},
			{`host h00.example.com: it is in pool "lab", and is to be under issuer "default" of pool "default"`,
				"UPDATE host SET issuer = 'default' WHERE name = 'h00.example.com'", "UPDATE host SET issuer = 'lab-2' WHERE name = 'h00.example.com'"},
			{`host h01.example.com: placement plain is held at an issuer that is none of pool "lab"`,
				"UPDATE host_placement SET held = 'x' || held WHERE host = (SELECT id FROM host WHERE name = 'h01.example.com')",
				"UPDATE host_placement SET held = substr(held, 2) WHERE held LIKE 'x%'"},
			{"host h01.example.com: placement plain is held at issuer 00", "UPDATE host_placement SET held = '00' WHERE host = (SELECT id FROM host WHERE name = 'h01.example.com')",
				"UPDATE host_placement SET held = issuer WHERE held = '00'"},
		} {
			exec(c.change)
			if found, _ := w.wrong(); !strings.Contains(found, c.says) {
				t.Errorf("%s: found %q", c.says, found)
			}
			exec(c.back)
		}
		if found, _ := w.wrong(); found != "" {
			t.Errorf("all was put back: %q", found)
		}
		w.untilState(client.RolloutDone)
		if found, _ := w.wrong(); found != "" {
			t.Errorf("done: %q", found)
		}
		exec("UPDATE host_placement SET held = issuer WHERE host = (SELECT id FROM host WHERE name = 'h00.example.com')")
		if found, _ := w.wrong(); !strings.Contains(found, "host h00.example.com: placement plain is held at an issuer, and no rollout is at work") {
			t.Errorf("found %q", found)
		}
		exec("UPDATE host_placement SET held = ''")
		exec("UPDATE host SET issuer = 'lab' WHERE name = 'h00.example.com'")
		if found, _ := w.wrong(); !strings.Contains(found, `under issuer "lab", which issues no more`) {
			t.Errorf("found %q", found)
		}
	})
}

// TestStuckRolloutsAreToldOf: one that is paused, at once; one that waits or is held, after a while.
func TestStuckRolloutsAreToldOf(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		w.hosts[1].silent = true
		stuck := func(after time.Duration) string {
			t.Helper()
			all := must[[]rollout.Work](t)(w.Rollouts.Working(t.Context()))
			if len(all) != 1 {
				t.Fatalf("at work are %+v", all)
			}
			return all[0].Stuck(time.Now().Add(after))
		}
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Waves: []string{"100%"}})
		w.until("one holds it", func(r *client.Rollout) bool {
			return r.Stage == client.StageTrust && len(r.Holding) == 1 && r.Waves[0].Done == 1
		})
		if now, later := stuck(rollout.LongHeld/2), stuck(2*rollout.LongHeld); now != "" || !strings.Contains(later, "is in stage trust, wave 1 since") ||
			!strings.HasSuffix(later, "hosts that hold it: 1") {
			t.Errorf("held, it says %q, and later %q", now, later)
		}
		must[*client.Rollout](t)(w.Rollouts.Pause(t.Context(), operator, w.id, once.Call{}))
		if now := stuck(0); !strings.Contains(now, "is paused in stage trust since") || !strings.Contains(now, "otto") {
			t.Errorf("paused, it says %q", now)
		}
		must[*client.Rollout](t)(w.Rollouts.Abort(t.Context(), admin, w.id, once.Call{}))
		if all := must[[]rollout.Work](t)(w.Rollouts.Working(t.Context())); len(all) != 0 {
			t.Errorf("it has ended: %+v", all)
		}
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot})
		w.until("it waits", func(r *client.Rollout) bool { return r.State == client.RolloutWaiting })
		if now, later := stuck(0), stuck(2*rollout.LongHeld); now != "" || !strings.Contains(later, "waits since") || !strings.Contains(later, "chancery rollout complete") {
			t.Errorf("waiting, it says %q, and later %q", now, later)
		}
	})
}
