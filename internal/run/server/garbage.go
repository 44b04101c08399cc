package server

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

// garbageRoom is how much may be allocated between two collections at least. A node keeps some ten megabytes; collecting
// whenever that has doubled takes a tenth of its processor time under load, to save memory that nobody misses.
const garbageRoom = 24 << 20

// collectSeldom sets GOGC by what is live, after each collection until ctx ends. It leaves alone what the operator has set.
func collectSeldom(ctx context.Context) error {
	if os.Getenv("GOGC") == "" {
		var ended atomic.Bool
		defer ended.Store(true)
		afterCollection(&ended, 100)
	}
	<-ctx.Done()
	return nil
}

// collected is garbage from the moment that it is made, so that its finalizer tells of the next collection.
type collected struct{ percent int }

func afterCollection(ended *atomic.Bool, percent int) {
	runtime.SetFinalizer(&collected{percent}, func(c *collected) {
		if ended.Load() {
			return
		}
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		percent := gcPercent(live[0].Value.Uint64())
		if percent != c.percent {
			debug.SetGCPercent(percent)
		}
		afterCollection(ended, percent)
	})
}

// gcPercent is how much a heap may grow before it is collected, in hundredths of what is live: garbageRoom, and at least
// as much again. It goes in steps, so that it seldom changes.
func gcPercent(live uint64) int {
	const step = 25
	percent := 100 * garbageRoom / max(live, garbageRoom/4)
	return int(max(percent/step*step, 100))
}
