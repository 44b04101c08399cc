package bench_test

import "testing"

// TestRollouts rotates the root of a few real agents, whose consumers visit each other, and re-keys pools of simulated ones.
// The times judge nothing; that no connection failed does.
func TestRollouts(t *testing.T) {
	t.Parallel()
	measured := run(t, "sqlite", "rollouts")
	if b, ok := measured["rollout-failures.sqlite.empty"]; !ok || b.Unknown || b.Measured != 0 {
		t.Errorf("%s, in %v", b, ok)
	}
	delete(measured, "rollout-failures.sqlite.empty")
	each(t, measured, "rollout-linear.sqlite.empty", "rollout-memory.sqlite.empty", "rollout-root.sqlite.empty")
}
