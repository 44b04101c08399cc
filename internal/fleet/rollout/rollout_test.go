package rollout_test

import (
	"testing"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

func TestReissueGoesThroughWaves(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(6)
		before := map[string]*ca.Certificate{}
		for _, a := range w.hosts {
			before[a.name] = a.certs["plain"]
		}
		r := w.start(client.StartRolloutRequest{Kind: client.RolloutReissue})
		if r.State != client.RolloutRunning || r.Plan.Hosts != 6 || r.Plan.Files != 12 || r.Plan.Reloads != 6 {
			t.Errorf("it began as %+v", r)
		}
		first := w.until("the canary is told", func(r *client.Rollout) bool { return r.Stage == client.StageRekey })
		if first.Wave != 1 || first.Waves[0].Hosts != 1 {
			t.Errorf("the first wave is %d with %+v", first.Wave, first.Waves)
		}
		done := w.untilState(client.RolloutDone)
		changed := 0
		for _, a := range w.hosts {
			if a.certs["plain"] != before[a.name] {
				changed++
			}
		}
		if changed != 6 {
			t.Errorf("%d of 6 have new certificates; %+v", changed, done)
		}
	})
}

func TestRotateRootBreaksNoConnection(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(5)
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true})
		w.untilStage(client.StageRekey)
		if n := w.under("lab-2"); n != 0 {
			t.Errorf("%d hosts were re-keyed before all had the new trust", n)
		}
		w.untilState(client.RolloutDone)
		if n := w.under("lab-2"); n != 5 {
			t.Errorf("%d of 5 are under the new issuer", n)
		}
		if w.issuer("lab").State != ca.IssuerRetired || !w.issuer("lab-2").Default {
			t.Error("the issuers are not as they should be")
		}
		if w.connections == 0 {
			t.Fatal("no connection was checked")
		}
		t.Logf("%d connections, none of which would have broken", w.connections)
	})
}
