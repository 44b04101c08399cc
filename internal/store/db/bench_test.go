package db_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// BenchmarkTx is one-insert functions (a 36-character key and 1,200 bytes) by 1, 8 and 32 callers, each of which waits for
// its answer before it calls again.
func BenchmarkTx(b *testing.B) {
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		for _, writers := range []int{1, 8, 32, 128} {
			b.Run(fmt.Sprintf("%s/%d", engine, writers), func(b *testing.B) {
				d := pkitest.Open(b, db.Options{URL: benchURL(b, engine)})
				makeTable(b, d)
				benchWriters(b, d, writers)
			})
		}
	}
}

// benchURL is a database that syncs, unlike the one that the other tests use.
func benchURL(b *testing.B, engine db.Dialect) string {
	if engine == db.SQLite {
		return pkitest.URL(b, engine)
	}
	return pkitest.Postgres(b, "shared_buffers=128MB", "fsync=on", "full_page_writes=on").URL("postgres")
}

func benchWriters(b *testing.B, d *db.DB, writers int) {
	body := make([]byte, 1200)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range writers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				id := db.NewID()
				err := d.Tx(b.Context(), func(tx *db.Tx) error {
					return tx.Send(b.Context(), "INSERT INTO items (id, n, body) VALUES ($1, $2, $3)", id, int64(7), body)
				})
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
}
