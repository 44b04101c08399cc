package rollout_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// BenchmarkDriver drives rotations of roots over pools of a hundred, a thousand and ten thousand hosts, whose agents do what they
// are told in the tables, at once: what is left is the driver's own cost.
func BenchmarkDriver(b *testing.B) {
	for _, size := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			for b.Loop() {
				w := newWorld(b, pkitest.Open(b, db.Options{URL: pkitest.URL(b, db.SQLite)}))
				w.populate(size)
				w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true})
				looks, most := 0, uint64(0)
				var looking time.Duration
				for w.show().EndedAt.IsZero() {
					began := time.Now()
					check(b, w.drive.Look(b.Context()))
					looking += time.Since(began)
					if looks++; looks > 5000 {
						b.Fatalf("it does not come to its end: %+v", w.show())
					}
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					most = max(most, m.HeapAlloc)
					w.obey()
				}
				if r := w.show(); r.State != client.RolloutDone {
					b.Fatalf("it is %s: %s", r.State, r.Message)
				}
				b.ReportMetric(float64(looking.Microseconds())/float64(size), "µs/host")
				b.ReportMetric(float64(most>>20), "MB-heap")
			}
		})
	}
}

// populate makes the pool lab have so many joined hosts, each with a placement, by their rows alone.
func (w *world) populate(size int) {
	w.t.Helper()
	t, d, print := w.t, w.DB, print256(w.issuer("lab").Certificate)
	const chunk = 100
	for first := 0; first < size; first += chunk {
		check(t, d.Tx(t.Context(), func(tx *db.Tx) error {
			var hosts, placements []string
			for i := first; i < first+chunk; i++ {
				hosts = append(hosts, fmt.Sprintf(`('h%05d', 'h%05d.example.com', 'lab', 'p%05d', 'joined', '', 0, 1, '', '', '', 0, '', 0, 1, 1, 0, '', 1)`, i, i, i))
				placements = append(placements, fmt.Sprintf(`('h%05d', 'plain', 'plain', '{}', 0, 'served', 1, '{"files":[{"path":"/a"}],"reload":"x"}', 1, '%s', 'ab')`, i, print))
			}
			_, err := tx.Exec(t.Context(), `INSERT INTO host (id, name, pool, principal, state, message, problem, generation, identity_issuer, identity_serial,
				identity_spki, identity_ends, agent, change, created_at, joined_at, removed_at, profiles, identity_used) VALUES `+strings.Join(hosts, ", "))
			if err == nil {
				_, err = tx.Exec(t.Context(), `INSERT INTO host_placement (host, name, recipe, parameters, position, state, not_after, observed, observed_at, issuer,
					serial) VALUES `+strings.Join(placements, ", "))
			}
			return err
		}))
	}
	w.obey()
}

// obey has all agents do what they are told.
func (w *world) obey() {
	w.t.Helper()
	prints := map[string]string{}
	for _, name := range []string{"lab", "lab-2", "lab-3", "lab-4"} {
		if i, err := w.CA.Issuer(w.t.Context(), name); err == nil && i.Certificate != nil {
			prints[name] = print256(i.Certificate)
		}
	}
	check(w.t, w.DB.Tx(w.t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(w.t.Context(), `UPDATE host_placement SET reissued = reissue, trust = (SELECT CASE WHEN h.trust > 0 THEN h.trust ELSE
			(SELECT version FROM trust_pool WHERE pool = 'lab') END FROM host h WHERE h.id = host_placement.host)
			WHERE EXISTS (SELECT 1 FROM trust_pool WHERE pool = 'lab')`)
		for name, print := range prints {
			if err == nil {
				_, err = tx.Exec(w.t.Context(), `UPDATE host_placement SET issuer = $1 WHERE issuer <> $1 AND host IN (SELECT id FROM host WHERE issuer = $2)`, print, name)
			}
		}
		return err
	}))
}
