package server

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"testing/synctest"
	"time"
)

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		live, stacks uint64
		want         int
	}{
		{0, 0, 200}, {12 << 20, 60 << 20, 200}, {smallHeap - 1, 0, 200}, {smallHeap, 0, 100}, {96 << 20, 0, 100}, {256 << 20, 0, 37},
		{400 << 20, 0, 24}, {400 << 20, 100 << 20, 19}, {1 << 40, 0, 15},
	} {
		if got := gcPercent(c.live, c.stacks); got != c.want {
			t.Errorf("with %d live and stacks of %d: %d, want %d", c.live, c.stacks, got, c.want)
		}
	}
}

func TestGarbageIsCollectedByWhatIsLive(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	percent := func() int {
		now := debug.SetGCPercent(100)
		debug.SetGCPercent(now)
		return now
	}
	for _, set := range []string{"", "300"} {
		t.Setenv("GOGC", set)
		synctest.Test(t, func(t *testing.T) {
			debug.SetGCPercent(300)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- collect(ctx) }()
			time.Sleep(1500 * time.Millisecond)
			ballast := make([]byte, smallHeap)
			runtime.GC()
			time.Sleep(1500 * time.Millisecond)
			live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
			metrics.Read(live)
			want := largePercent
			if set != "" {
				want = 300
			}
			if got := percent(); got != want || live[0].Value.Uint64() < smallHeap {
				t.Errorf("with %d live and GOGC=%q it is %d, want %d", live[0].Value.Uint64(), set, got, want)
			}
			runtime.KeepAlive(ballast)
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
