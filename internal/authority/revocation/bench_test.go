package revocation

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// peakMemory is the resident size's high-water mark in MiB since it was last reset.
func peakMemory(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	must(b, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			must(b, err)
			return kib / 1024
		}
	}
	b.Fatal("no VmHWM")
	return 0
}

// hashAndWrite does with the octets of a list what cannot be done without: hash them, and write them durably.
func hashAndWrite(b *testing.B, der []byte) time.Duration {
	b.Helper()
	start := time.Now()
	sha256.Sum256(der)
	f, err := os.Create(filepath.Join(b.TempDir(), "list"))
	must(b, err)
	_, err = f.Write(der)
	must(b, err)
	must(b, f.Sync())
	must(b, f.Close())
	return time.Since(start)
}

// BenchmarkMillion measures, with 1,000,000 entries: the complete list against hashing and writing the same octets, its
// memory, and what one more revocation costs until its delta is published.
func BenchmarkMillion(b *testing.B) {
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		b.Run(string(engine), func(b *testing.B) {
			o := newOffice(b, pkitest.Open(b, db.Options{URL: pkitest.URL(b, engine)}), ca.CRLMode{Delta: true}, nil)
			lease := o.lease()
			n := 1_000_000
			o.revokeMany(n, time.Now().AddDate(1, 0, 0))
			start := time.Now()
			must(b, o.service.pack(b.Context(), lease, o.issuer, 0))
			b.Logf("packed %d in %v", n, time.Since(start))
			b.Run("complete", func(b *testing.B) {
				var der []byte
				must(b, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0))
				before := peakMemory(b)
				for b.Loop() {
					l, err := o.service.build(b.Context(), lease, o.issuer, order{scope: Complete, scheduled: true}, time.Now())
					must(b, err)
					if l.Entries != int64(n) {
						b.Fatalf("%d entries", l.Entries)
					}
				}
				after := peakMemory(b)
				l, err := o.service.Current(b.Context(), "one", Complete)
				must(b, err)
				der = o.octets(l)
				floor := hashAndWrite(b, der)
				b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(floor), "x-hash+write")
				b.ReportMetric(after, "MiB-peak-RSS")
				b.ReportMetric(after-before, "MiB-more-RSS")
				b.ReportMetric(float64(len(der))/float64(n), "octets/entry")
			})
			b.Run("revoke-and-delta", func(b *testing.B) {
				for b.Loop() {
					o.revokeMany(1, time.Now().AddDate(1, 0, 0))
					if _, err := o.service.build(b.Context(), lease, o.issuer, order{scope: Delta}, time.Now()); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkRevokeVisible is the time from a revocation that is acknowledged until its delta CRL is in force, with the loops
// running as in a node.
func BenchmarkRevokeVisible(b *testing.B) {
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		for _, n := range []int{0, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", engine, n), func(b *testing.B) {
				o := newOffice(b, pkitest.Open(b, db.Options{URL: pkitest.URL(b, engine)}), ca.CRLMode{Delta: true}, nil)
				if n > 0 {
					o.revokeMany(n, time.Now().AddDate(1, 0, 0))
				}
				o.run()
				o.list(Delta, func(*crl.List) bool { return true })
				for b.Loop() {
					b.StopTimer()
					c := o.issue("a.example")
					b.StartTimer()
					o.revoke(c, crl.Superseded)
					o.list(Delta, has(c.SerialNumber, crl.Superseded))
				}
			})
		}
	}
}
