package audit_test

import (
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// BenchmarkAppend is the cost of one event of a full batch, without the commit's fsync being shared any further.
func BenchmarkAppend(b *testing.B) {
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		b.Run(string(engine), func(b *testing.B) {
			d := pkitest.Open(b, db.Options{URL: pkitest.URL(b, engine)})
			l := newLog(b, d, "n1")
			for i := 0; b.Loop(); i += 64 {
				appendEvents(b, d, l, i, i+63)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(64*b.N), "ns/event")
		})
	}
}

// BenchmarkVerify is the cost of reading and checking one event of a long chain.
func BenchmarkVerify(b *testing.B) {
	const events = 50_000
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		b.Run(string(engine), func(b *testing.B) {
			d := pkitest.Open(b, db.Options{URL: pkitest.URL(b, engine)})
			l := newLog(b, d, "n1")
			for i := 0; i < events; i += 1000 {
				appendEvents(b, d, l, i, i+999)
			}
			key, _ := signers(b)
			for b.Loop() {
				wantClean(b, l, key, events)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events*b.N), "ns/event")
		})
	}
}
