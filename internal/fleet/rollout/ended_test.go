package rollout_test

import (
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestRotationCuresWhatHasEnded: a host whose certificate ended fails, and no trust mends that; so the stage that brings the new
// trust does not wait for it, the next one brings it another certificate, and only then is it done.
func TestRotationCuresWhatHasEnded(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(3)
		dead := w.hosts[1]
		for _, held := range dead.certs {
			held.NotAfter = time.Now().Add(-time.Hour)
		}
		dead.fails, dead.left = "its certificate expired", true
		dead.converge()
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true})
		r := w.until("it is to get another certificate", func(r *client.Rollout) bool {
			return r.Stage == client.StageRekey && len(r.Holding) == 1 && r.Holding[0].Host == dead.name
		})
		if r.State != client.RolloutRunning {
			t.Fatalf("%+v", r)
		}
		dead.fails = ""
		w.untilState(client.RolloutDone)
	})
}
