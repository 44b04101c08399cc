package status_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/doctor"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/status"
)

// TestStuckRollouts: status and doctor tell of a rollout that is paused, or held for long, and of no other.
func TestStuckRollouts(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		s := opened(t, url)
		name, now := joined(t, s, "web1.example.com"), time.Now()
		r := must[*client.Rollout](t)(s.Rollouts.Start(t.Context(), admin, client.StartRolloutRequest{Kind: client.RolloutReissue}, once.Call{}))
		want := func(at time.Time, says string) {
			t.Helper()
			st := must[*status.Status](t)(status.Of(t.Context(), s, at))
			if len(st.Rollouts) != 1 || st.Rollouts[0].ID != r.ID {
				t.Fatalf("at work are %+v", st.Rollouts)
			}
			warned := slices.ContainsFunc(st.Warnings, func(w string) bool { return strings.HasPrefix(w, "rollout "+r.ID) && strings.Contains(w, says) })
			told := findings(t, s, at)
			wrong := slices.ContainsFunc(told, func(f finding.Finding) bool {
				return f.Level == finding.Warning && f.Object == "rollout "+r.ID && strings.Contains(f.Message, says) && f.Hint != ""
			})
			if warned != (says != "") || wrong != (says != "") || len(told) != 1 {
				t.Errorf("status warns %q, doctor says %+v, and %q is so", st.Warnings, told, says)
			}
		}
		want(now, "")
		exec(t, s.DB, `UPDATE rollout SET stage = 'rekey', wave = 1, moved_at = $1`, db.Micros(now))
		exec(t, s.DB, `UPDATE rollout_host SET moved_at = $1 WHERE name = $2`, db.Micros(now), name)
		want(now.Add(59*time.Minute), "")
		want(now.Add(61*time.Minute), "hosts that hold it: 1")
		must[*client.Rollout](t)(s.Rollouts.Pause(t.Context(), admin, r.ID, once.Call{}))
		want(now, "is paused in stage rekey since")
	})
}

// findings are what doctor says of rollouts.
func findings(t *testing.T, s *setup.Services, at time.Time) (found []finding.Finding) {
	t.Helper()
	look := doctor.Node{DB: s.DB, Keys: s.Keys, Moves: s.Rollouts.Working}
	for f, err := range look.Look(t.Context(), at) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Check == "rollouts" {
			found = append(found, f)
		}
	}
	return found
}
