package ca

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

// BenchmarkIssue issues P-256 certificates from 32 goroutines, each with an idempotency key: what the API does, without HTTP.
func BenchmarkIssue(b *testing.B) {
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		b.Run(string(engine), func(b *testing.B) {
			a := newAuthority(b, pkitest.Open(b, db.Options{URL: pkitest.URL(b, engine)}))
			a.settingsWith(func(s *settings.Settings) { s.Limits.OperatorDuplicates = 1_000_000 })
			a.settingsWith(func(s *settings.Settings) {
				s.Limits.OperatorRate = settings.Rate{PerSecond: 1_000_000, Burst: 1_000_000}
			})
			by := operator("bench", access.Operator)
			requests := make([][]byte, 256)
			for i := range requests {
				requests[i] = csr(b, newKey(b), fmt.Sprintf("dns:host%d.bench.example.com", i))
			}
			var n atomic.Int64
			b.SetParallelism(16) // times GOMAXPROCS, 2 on the machine that the budget is for
			before := cpuTime(b)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := n.Add(1)
					_, err := a.Issue(context.Background(), by, Order{
						IdempotencyKey: fmt.Sprintf("bench-%d", i), Profile: "server", CSR: requests[i%int64(len(requests))],
					})
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certificates/s")
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

// cpuTime is what the process used of the processors, which other load on the machine does not change.
func cpuTime(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkPlan is an issuance without signature and store.
func BenchmarkPlan(b *testing.B) {
	a := newAuthority(b, pkitest.Open(b, db.Options{URL: pkitest.URL(b, db.SQLite)}))
	by := operator("bench", access.Operator)
	order := Order{Profile: "server", CSR: csr(b, newKey(b), "dns:host.bench.example.com")}
	for b.Loop() {
		if _, err := a.DryRun(context.Background(), by, order); err != nil {
			b.Fatal(err)
		}
	}
}
