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
	for live, want := range map[uint64]int{0: 200, 12 << 20: 200, smallHeap - 1: 200, smallHeap: 100, 128 << 20: 100, 256 << 20: 50, 400 << 20: 32, 1 << 40: 25} {
		if got := gcPercent(live); got != want {
			t.Errorf("with %d live: %d, want %d", live, got, want)
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
