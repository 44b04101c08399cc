package server

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// garbageRoom is how much may be allocated between two collections at least. A node keeps some ten megabytes; collecting
// whenever that has doubled takes a tenth of its processor time under load, to save memory that nobody misses.
const garbageRoom = 24 << 20

// collectSeldom sets GOGC by what is live, until ctx ends. It leaves alone what the operator has set.
func collectSeldom(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	before := 100
	return every(ctx, 10*time.Second, func(context.Context, time.Time) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		if percent := gcPercent(live[0].Value.Uint64()); percent != before {
			debug.SetGCPercent(percent)
			before = percent
		}
	})
}

// gcPercent is how much a heap may grow before it is collected, in hundredths of what is live: garbageRoom, and at least
// as much again. It goes in steps, so that it seldom changes.
func gcPercent(live uint64) int {
	const step = 25
	percent := 100 * garbageRoom / max(live, garbageRoom/8)
	return int(max(percent/step*step, 100))
}
