package bench_test

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/run/bench"
)

// TestRollouts rotates the root of a few real agents, whose consumers visit each other, and re-keys pools of simulated ones.
// The times judge nothing; that no connection failed does.
func TestRollouts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var out, talk bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	err := bench.Run(ctx, bench.Options{
		Program: built(t), Dir: dir, Profiles: filepath.Join(dir, "profiles"), Only: []string{"sqlite", "rollouts"}, Scale: bench.Tiny, Out: &out, Err: &talk,
	})
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, talk.String(), out.String())
	}
	seen := 0
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "BUDGET ") {
			continue
		}
		b, err := bench.ParseBudget(strings.TrimSpace(line))
		if err != nil {
			t.Error(err)
		}
		if failures := strings.HasPrefix(b.Name, "rollout-failures."); b.Unknown || failures && b.Measured != 0 || !failures && b.Measured <= 0 {
			t.Errorf("%s", line)
		}
		seen++
	}
	if seen != 4 {
		t.Errorf("%d budgets of 4 were measured", seen)
	}
	if t.Failed() {
		t.Log(out.String(), talk.String())
	}
}
