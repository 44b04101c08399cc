package revocation

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

// lease takes the lease for a test that makes lists by hand.
func (o *office) lease() db.Lease {
	o.t.Helper()
	l, ok, err := o.db.Acquire(o.t.Context(), Lease, o.audit.Node(), time.Minute)
	must(o.t, err)
	if !ok {
		o.t.Fatal("another holds the lease")
	}
	return l
}

// make makes one list now, and returns it parsed and checked.
func (o *office) make(lease db.Lease, scope Scope, scheduled bool) *crl.List {
	o.t.Helper()
	l, err := o.service.build(o.t.Context(), lease, o.issuer, order{scope: scope, scheduled: scheduled}, time.Now())
	must(o.t, err)
	return o.parse(l)
}

func serials(l *crl.List) []string {
	var all []string
	for e := range l.Entries() {
		all = append(all, e.Serial.Text(16))
	}
	slices.Sort(all)
	return all
}

func serialsOf(all ...*x509.Certificate) []string {
	var texts []string
	for _, c := range all {
		texts = append(texts, c.SerialNumber.Text(16))
	}
	slices.Sort(texts)
	return texts
}

func TestDeltaCombinesWithItsBase(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{Delta: true}, nil)
		lease := o.lease()
		old, held, released, fresh := o.issue("old.example"), o.issue("held.example"), o.issue("released.example"), o.issue("fresh.example")
		o.revoke(old, crl.KeyCompromise)
		o.revoke(released, crl.CertificateHold)
		base := o.make(lease, Complete, true)
		if len(base.Freshest) != 1 || base.Freshest[0] != publicURL+"/crl/one/delta.crl" {
			t.Fatalf("freshestCRL %v", base.Freshest)
		}
		if empty := o.make(lease, Delta, true); empty.Count != 0 || empty.CheckBase(base) != nil {
			t.Fatalf("delta without changes %+v", empty)
		}
		o.revoke(fresh, crl.Superseded)
		o.revoke(held, crl.CertificateHold)
		_, err := o.ca.Release(t.Context(), o.by, o.ref(released), "")
		must(t, err)
		delta := o.make(lease, Delta, false)
		must(t, delta.CheckBase(base))
		if got := serials(delta); !slices.Equal(got, serialsOf(fresh, held, released)) {
			t.Fatalf("delta lists %v", got)
		}
		if e, _ := delta.Lookup(released.SerialNumber); e.Reason != crl.RemoveFromCRL {
			t.Fatalf("the released hold is %v", e.Reason)
		}
		// The next complete list follows, and the delta then still starts from the old one, which is in force.
		next := o.make(lease, Complete, false)
		must(t, next.CheckSuccessor(base))
		if got := serials(next); !slices.Equal(got, serialsOf(old, fresh, held)) {
			t.Fatalf("the next complete list has %v", got)
		}
		o.revoke(held, crl.CessationOfOperation)
		delta = o.make(lease, Delta, false)
		if delta.BaseNumber.Cmp(base.Number) != 0 || delta.CheckBase(base) != nil || delta.CheckBase(next) != nil {
			t.Fatalf("delta starts from %v; the lists are %v and %v", delta.BaseNumber, base.Number, next.Number)
		}
		if e, _ := delta.Lookup(held.SerialNumber); e.Reason != crl.CessationOfOperation {
			t.Fatalf("the hold that became permanent is %v", e.Reason)
		}
	})
}

func TestPartitionsShareWhatIsRevoked(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		const n = 4
		o := newOffice(t, d, ca.CRLMode{Partitions: n}, nil)
		lease := o.lease()
		var all []*x509.Certificate
		for range 24 {
			c := o.issue("a.example")
			o.revoke(c, crl.Superseded)
			all = append(all, c)
		}
		var listed []string
		for p := range n {
			l := o.make(lease, Partition(p), true)
			for _, c := range all {
				_, ok := l.Lookup(c.SerialNumber)
				if in := crl.Partition(c.SerialNumber, n) == p; in != ok {
					t.Errorf("serial %x of partition %d: in the list of %d is %v", c.SerialNumber, crl.Partition(c.SerialNumber, n), p, ok)
				}
				if crl.Partition(c.SerialNumber, n) == p && !slices.Equal(l.IDP.URIs, c.CRLDistributionPoints) {
					t.Errorf("the list names %v and the certificate %v", l.IDP.URIs, c.CRLDistributionPoints)
				}
			}
			listed = append(listed, serials(l)...)
		}
		slices.Sort(listed)
		if !slices.Equal(listed, serialsOf(all...)) {
			t.Errorf("all partitions list %v", listed)
		}
		if whole := o.make(lease, Complete, true); whole.IDP != nil || !slices.Equal(serials(whole), serialsOf(all...)) {
			t.Errorf("the complete list has %v", serials(whole))
		}
		if _, err := o.service.build(t.Context(), lease, o.issuer, order{scope: Partition(n)}, time.Now()); !fault.Is(err, fault.Conflict) {
			t.Errorf("a partition that is not: %v", err)
		}
	})
}

// TestOnlyTheHolderPublishes: a node that was asleep while another took the lease cannot store a chunk, a number or a list.
func TestOnlyTheHolderPublishes(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		stale := o.lease()
		first := o.make(stale, Complete, true)
		must(t, d.Release(t.Context(), stale))
		_, ok, err := d.Acquire(t.Context(), Lease, "node-b", time.Minute)
		must(t, err)
		if !ok {
			t.Fatal("node-b did not get the lease")
		}
		if _, err := o.service.build(t.Context(), stale, o.issuer, order{scope: Complete}, time.Now()); !fault.Is(err, fault.Conflict) {
			t.Fatalf("the old holder: %v", err)
		}
		// Also when it lost the lease between reading and publishing.
		w := &chunkWriter{ctx: t.Context(), s: o.service, fence: stale.Check, buffer: []byte("x"),
			list: &List{ID: db.NewID(), Issuer: o.issuer.ID, Scope: Complete, Number: big.NewInt(1 << 60), ThisUpdate: time.Now(), NextUpdate: time.Now()}}
		if err := o.service.publish(t.Context(), "test", time.Now(), w); !fault.Is(err, fault.Conflict) {
			t.Fatalf("publish: %v", err)
		}
		if err := w.flush(); !fault.Is(err, fault.Conflict) {
			t.Fatalf("store a chunk: %v", err)
		}
		current, err := o.service.Current(t.Context(), "one", Complete)
		must(t, err)
		if current.Number.Cmp(first.Number) != 0 {
			t.Fatalf("list %v is current", current.Number)
		}
	})
}

// TestCommitsThatFail kills each commit of making a list, both ways. Whatever happened, the list in force is whole and
// names what was revoked before it, the next try succeeds, and CRLNumbers only grow.
func TestCommitsThatFail(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		o := newOffice(t, d, ca.CRLMode{}, nil)
		lease := o.lease()
		c := o.issue("first.example")
		o.revoke(c, crl.Superseded)
		before := faults.Commits()
		last := o.make(lease, Complete, true)
		commits := faults.Commits() - before
		if commits < 2 {
			t.Fatalf("making a list took %d commits; the test would prove nothing", commits)
		}
		for n := 1; n <= commits; n++ {
			for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
				c := o.issue("more.example")
				o.revoke(c, crl.Superseded)
				faults.FailCommit(n, outcome)
				_, err := o.service.build(t.Context(), lease, o.issuer, order{scope: Complete, scheduled: true}, time.Now())
				if err == nil {
					t.Fatalf("commit %d, %s: no error", n, outcome)
				}
				now, err := o.service.Current(t.Context(), "one", Complete)
				must(t, err)
				parsed := o.parse(now)
				_, listed := parsed.Lookup(c.SerialNumber)
				if persisted := outcome == pkitest.PersistedAnyway && n == commits; listed != persisted {
					t.Fatalf("commit %d, %s: the revocation is in force: %v", n, outcome, listed)
				}
				next := o.make(lease, Complete, true)
				must(t, next.CheckSuccessor(parsed))
				must(t, next.CheckSuccessor(last))
				if _, ok := next.Lookup(c.SerialNumber); !ok {
					t.Fatalf("commit %d, %s: the next list lacks the revocation", n, outcome)
				}
				last = next
			}
		}
	})
}

// revokeMany writes revocations of certificates that end at notAfter, as package ca would, but many at a time.
func (o *office) revokeMany(n int, notAfter time.Time) {
	o.t.Helper()
	must(o.t, fillRevocations(o.t.Context(), o.db, o.issuer, n, notAfter))
}

// fillRevocations adds n permanent revocations to the records.
func fillRevocations(ctx context.Context, d *db.DB, issuer *ca.Issuer, n int, notAfter time.Time) error {
	const batch = 1000
	partition := func(serial *big.Int) int { return crl.Partition(serial, issuer.CRL.Partitions) }
	for done := 0; done < n; done += batch {
		err := d.TxAlone(ctx, func(tx *db.Tx) error {
			var number, change int64
			if err := tx.QueryRow(ctx, `SELECT number FROM issuer WHERE id = $1`, issuer.ID).Scan(&number); err != nil {
				return err
			}
			size := min(batch, n-done)
			err := tx.QueryRow(ctx, `INSERT INTO revocation_change (issuer, change) VALUES ($1, $2)
				ON CONFLICT (issuer) DO UPDATE SET change = revocation_change.change + $2 RETURNING change`, number, size).Scan(&change)
			if err != nil {
				return err
			}
			var (
				rows []string
				args []any
				now  = db.Micros(time.Now())
			)
			for i := range size {
				at := change - int64(size) + int64(i) + 1
				serial := new(big.Int).SetBit(big.NewInt(at), 120, 1)
				entry, err := crl.EncodeEntry(crl.Entry{Serial: serial, RevokedAt: time.Now().Add(-time.Hour), Reason: crl.Superseded})
				if err != nil {
					return err
				}
				n := len(args)
				rows = append(rows, fmt.Sprintf("($%d, %d, %d, 'revoked', 4, %d, 0, %d, $%d, $%d)", n+1, number, partition(serial), now, db.Micros(notAfter), n+2, n+3))
				args = append(args, at, at, entry)
			}
			_, err = tx.Exec(ctx, `INSERT INTO revocation (certificate, issuer, crl_partition, state, reason, revoked_at, invalidity_date, not_after, change, entry)
				VALUES `+strings.Join(rows, ", "), args...)
			if err != nil {
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *office) segments() (rows, entries int64) {
	o.t.Helper()
	must(o.t, o.db.Read(o.t.Context(), func(tx *db.Tx) error {
		return tx.QueryRow(o.t.Context(), `SELECT COUNT(*), CAST(COALESCE(SUM(entries), 0) AS BIGINT) FROM crl_segment`).Scan(&rows, &entries)
	}))
	return rows, entries
}

func TestPackedListsAreTheSame(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		lease := o.lease()
		held := o.issue("held.example")
		o.revoke(held, crl.CertificateHold)
		o.revokeMany(2*packFrom+100, time.Now().AddDate(0, 0, 90))
		loose := o.make(lease, Complete, true)
		must(t, o.service.pack(t.Context(), lease, o.issuer, 0))
		if rows, entries := o.segments(); rows != 1 || entries != 2*packFrom+100 {
			t.Fatalf("%d segments of %d entries", rows, entries)
		}
		packed := o.make(lease, Complete, true)
		if packed.Count != loose.Count || !slices.Equal(serials(packed), serials(loose)) {
			t.Fatalf("%d entries were %d", packed.Count, loose.Count)
		}
		must(t, o.service.pack(t.Context(), lease, o.issuer, 0))
		if rows, _ := o.segments(); rows != 1 {
			t.Fatal("what is packed was packed again")
		}
		// A hold that becomes permanent after the packing, and one that ends.
		o.revoke(held, crl.KeyCompromise)
		o.revokeMany(packFrom, time.Now().AddDate(0, 0, 90))
		must(t, o.service.pack(t.Context(), lease, o.issuer, 0))
		after := o.make(lease, Complete, true)
		if e, ok := after.Lookup(held.SerialNumber); !ok || e.Reason != crl.KeyCompromise || after.Count != 3*packFrom+101 {
			t.Fatalf("%d entries; the hold is %+v", after.Count, e)
		}
		if all := serials(after); len(slices.Compact(all)) != after.Count {
			t.Fatal("a serial is listed twice")
		}
	})
}

// TestExpiredEntriesStayOnOneMoreScheduledList is RFC 5280 §3.3, loose and packed.
func TestExpiredEntriesStayOnOneMoreScheduledList(t *testing.T) {
	for _, packed := range []bool{false, true} {
		pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
			o := newOffice(t, d, ca.CRLMode{}, nil)
			lease := o.lease()
			at := func(now time.Time, scheduled bool) int64 {
				l, err := o.service.build(t.Context(), lease, o.issuer, order{scope: Complete, scheduled: scheduled}, now)
				must(t, err)
				return l.Entries
			}
			start := time.Now()
			end := start.Add(2 * time.Hour)
			o.revokeMany(packFrom, end)
			o.revokeMany(10, end.Add(240*time.Hour))
			if packed {
				must(t, o.service.pack(t.Context(), lease, o.issuer, 0))
			}
			for i, step := range []struct {
				now       time.Time
				scheduled bool
				want      int64
			}{
				{start, true, packFrom + 10},
				{end.Add(time.Hour), false, packFrom + 10},    // ended, but no scheduled list has shown it since
				{end.Add(2 * time.Hour), true, packFrom + 10}, // the one more
				{end.Add(3 * time.Hour), false, 10},
				{end.Add(26 * time.Hour), true, 10},
				{end.Add(27 * time.Hour), false, 10},
			} {
				got := at(step.now, step.scheduled)
				if packed && i == 3 && got == packFrom+10 {
					continue // packed entries leave with the next scheduled list
				}
				if got != step.want {
					t.Fatalf("packed %v, step %d: %d entries, want %d", packed, i, got, step.want)
				}
			}
			if _, entries := o.segments(); packed && entries != 10 {
				t.Fatalf("%d entries are still packed", entries)
			}
		})
	}
}

func TestLongListIsStoredInChunks(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		lease := o.lease()
		o.revokeMany(22_000, time.Now().AddDate(0, 0, 90))
		l, err := o.service.build(t.Context(), lease, o.issuer, order{scope: Complete, scheduled: true}, time.Now())
		must(t, err)
		if l.Size < chunkSize || o.parse(l).Count != 22_000 {
			t.Fatalf("list of %d octets", l.Size)
		}
		// A holder that dies while it makes one leaves chunks, which the next one sweeps away.
		w := &chunkWriter{ctx: t.Context(), s: o.service, fence: lease.Check, buffer: make([]byte, 100),
			list: &List{ID: db.NewID(), Issuer: o.issuer.ID, Scope: Complete, Number: big.NewInt(7), ThisUpdate: time.Now(), NextUpdate: time.Now()}}
		must(t, w.flush())
		count := func() (lists, chunks int) {
			must(t, d.Read(t.Context(), func(tx *db.Tx) error {
				return errors.Join(tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM crl`).Scan(&lists), tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM crl_chunk`).Scan(&chunks))
			}))
			return lists, chunks
		}
		lists, chunks := count()
		left, err := o.service.leftBehind(t.Context())
		must(t, err)
		set, err := o.settings.Get(t.Context())
		must(t, err)
		signer, err := o.keys.SignerFor(t.Context(), o.issuer.KeyID, o.issuer.Certificate)
		must(t, err)
		make := func(do func()) ([]*List, error) {
			return o.service.make(t.Context(), lease, o.issuer, []order{{scope: Complete, long: true}}, set, beforeSigning{signer, do}, time.Now())
		}
		// The sweep goes on beside what this holder makes, and takes nothing of it.
		next, err := make(func() {
			must(t, o.service.sweep(t.Context(), lease, left))
			if l2, c2 := count(); l2 != lists || c2 != chunks { // one chunk of what is made is there
				t.Errorf("%d lists and %d chunks became %d and %d", lists, chunks, l2, c2)
			}
		})
		must(t, err)
		o.parse(l)
		o.parse(next[0])
		// Of which octets went away, whoever took them, is not published.
		_, err = make(func() {
			must(t, d.Tx(t.Context(), func(tx *db.Tx) error {
				n, err := tx.Exec(t.Context(), `DELETE FROM crl_chunk WHERE crl IN (SELECT id FROM crl WHERE state = 'building')`)
				if n != 1 {
					t.Errorf("%d chunks of it were there", n)
				}
				return err
			}))
		})
		now, found := o.service.Current(t.Context(), "one", Complete)
		must(t, found)
		if err == nil || now.ID != next[0].ID {
			t.Fatalf("a list without its octets: %v; the one in force has number %v, not %v", err, now.Number, next[0].Number)
		}
		o.parse(now)
	})
}

// beforeSigning is a key before whose signature something happens.
type beforeSigning struct {
	crypto.Signer
	do func()
}

func (s beforeSigning) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	s.do()
	return s.Signer.Sign(r, digest, o)
}

func TestPastListsArePruned(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{Delta: true}, func(s *settings.Settings) { s.Retention.CRLs = settings.Duration(30 * 24 * time.Hour) })
		lease := o.lease()
		at := time.Now().Add(-40 * 24 * time.Hour)
		for i, step := range []order{{scope: Complete, scheduled: true}, {scope: Delta}, {scope: Complete}, {scope: Complete, scheduled: true}, {scope: Complete}, {scope: Delta}} {
			if i == 3 {
				at = time.Now().Add(-3 * time.Hour)
			}
			_, err := o.service.build(t.Context(), lease, o.issuer, step, at.Add(time.Duration(i)*time.Second))
			must(t, err)
		}
		must(t, o.service.prune(t.Context(), lease, time.Now()))
		complete, err := o.service.Lists(t.Context(), "one", Complete, "", 10)
		must(t, err)
		deltas, err := o.service.Lists(t.Context(), "one", Delta, "", 10)
		must(t, err)
		if len(complete) != 2 || complete[0].Pruned() || complete[1].Pruned() || len(deltas) != 1 {
			t.Fatalf("%d complete lists and %d deltas are left", len(complete), len(deltas))
		}
		// A list that a revocation brought keeps its row when the next one comes, and loses its octets.
		_, err = o.service.build(t.Context(), lease, o.issuer, order{scope: Complete}, time.Now())
		must(t, err)
		must(t, o.service.prune(t.Context(), lease, time.Now().Add(2*lingering)))
		complete, err = o.service.Lists(t.Context(), "one", Complete, "", 10)
		must(t, err)
		if len(complete) != 3 || complete[0].Pruned() || !complete[1].Pruned() || complete[2].Pruned() {
			t.Fatalf("lists %+v", complete)
		}
		if err := o.service.WriteTo(t.Context(), nil, complete[1]); !fault.Is(err, fault.NotFound) {
			t.Fatalf("a pruned list: %v", err)
		}
	})
}
