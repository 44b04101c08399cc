package server

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A node keeps some ten megabytes. Collecting whenever that has doubled takes a tenth of its processor time under load, to
// save memory that nobody misses; of a large heap, as of a node with ten thousand agents, the same share would be missed. There
// most of what is live is connections that wait, which make little garbage: so beside them it may take a fixed amount.
const (
	smallHeap    = 64 << 20 // live octets
	smallPercent = 200      // GOGC below
	largePercent = 100      // and above, which is Go's own, while that is no more than
	mostGarbage  = 96 << 20 // octets; the percentage falls with what is live, down to
	leastPercent = 15       // below which collecting would take too much of the processor
)

// collect sets GOGC by what is live, looking once a second, and leaves alone what the operator has set: GOGC, and GOMEMLIMIT
// in any case.
func collect(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	now := 0
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}} // GOGC is a percentage of both
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		metrics.Read(live)
		if percent := gcPercent(live[0].Value.Uint64(), live[1].Value.Uint64()); percent != now {
			debug.SetGCPercent(percent)
			now = percent
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func gcPercent(live, stacks uint64) int {
	if live < smallHeap {
		return smallPercent
	}
	return int(min(largePercent, max(leastPercent, mostGarbage*100/(live+stacks))))
}
