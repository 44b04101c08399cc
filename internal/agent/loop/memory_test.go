package loop_test

import (
	"math"
	"runtime/debug"
	"testing"

	"chancery/internal/agent/loop"
)

// TestFrugalLeavesWhatIsSet: an agent is small by itself, and as its operator has it where that was said.
func TestFrugalLeavesWhatIsSet(t *testing.T) {
	percent, limit := debug.SetGCPercent(77), debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) })
	for _, c := range []struct {
		gogc, memlimit string
		percent        int
		limit          int64
	}{
		{"", "", 20, 12 << 20}, {"77", "", 77, 12 << 20}, {"", "off", 20, math.MaxInt64}, {"77", "off", 77, math.MaxInt64},
	} {
		t.Setenv("GOGC", c.gogc)
		t.Setenv("GOMEMLIMIT", c.memlimit)
		debug.SetGCPercent(77)
		debug.SetMemoryLimit(math.MaxInt64)
		loop.Frugal()
		if has, bound := debug.SetGCPercent(77), debug.SetMemoryLimit(-1); has != c.percent || bound != c.limit {
			t.Errorf("with GOGC=%q and GOMEMLIMIT=%q they are %d and %d, want %d and %d", c.gogc, c.memlimit, has, bound, c.percent, c.limit)
		}
	}
}
