package revocation

import (
	"bytes"
	"math/big"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

func (o *office) octets(l *List) []byte {
	o.t.Helper()
	var out bytes.Buffer
	must(o.t, o.service.WriteTo(o.t.Context(), &out, l))
	return out.Bytes()
}

func has(serial *big.Int, reason crl.Reason) func(*crl.List) bool {
	return func(l *crl.List) bool { e, ok := l.Lookup(serial); return ok && e.Reason == reason }
}

func lacks(serial *big.Int) func(*crl.List) bool {
	return func(l *crl.List) bool { _, ok := l.Lookup(serial); return !ok }
}

func TestRevocationsAndHoldsAreInTheCompleteList(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		o.run()
		first := o.list(Complete, func(l *crl.List) bool { return l.Count == 0 })
		a, b := o.issue("a.example"), o.issue("b.example")
		o.revoke(a, crl.KeyCompromise)
		second := o.list(Complete, has(a.SerialNumber, crl.KeyCompromise))
		must(t, second.CheckSuccessor(first))
		o.revoke(b, crl.CertificateHold)
		o.list(Complete, has(b.SerialNumber, crl.CertificateHold))
		_, err := o.ca.Release(t.Context(), o.by, o.ref(b), "")
		must(t, err)
		o.list(Complete, lacks(b.SerialNumber))
		o.revoke(b, crl.CertificateHold)
		o.revoke(b, crl.Superseded)
		last := o.list(Complete, has(b.SerialNumber, crl.Superseded))
		must(t, last.CheckSuccessor(second))
		if last.IDP != nil || last.BaseNumber != nil || last.NextUpdate.Sub(last.ThisUpdate) != 7*24*time.Hour {
			t.Fatalf("list %+v", last)
		}
		all, err := o.service.Lists(t.Context(), "one", Complete, "", 2)
		must(t, err)
		if len(all) != 2 || !all[0].Current || all[1].Current || all[0].Number.Cmp(all[1].Number) <= 0 {
			t.Fatalf("page %+v", all)
		}
		rest, err := o.service.Lists(t.Context(), "one", Complete, all[1].ID, 100)
		must(t, err)
		if len(rest) < 3 {
			t.Fatalf("%d lists on the next page", len(rest))
		}
		found, err := o.service.Find(t.Context(), "one", rest[0].Number)
		must(t, err)
		if found.ID != rest[0].ID || len(o.octets(found)) == 0 {
			t.Fatalf("found %+v", found)
		}
	})
}
