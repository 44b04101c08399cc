package revocation

import (
	"crypto"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/ocsp"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// seen makes at the newest time that any node of the authority has seen.
func (o *office) seen(at time.Time) {
	o.t.Helper()
	must(o.t, o.db.ResetClock(o.t.Context(), at))
}

// TestOCSPWithTheClockSetBackSaysTryLater: it went on signing "good" with times of the past.
func TestOCSPWithTheClockSetBackSaysTryLater(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		o.withResponder()
		kept, fresh := o.issue("kept.example"), o.issue("fresh.example")
		if r, _ := o.ask(kept, crypto.SHA256); r == nil || r.Status != xocsp.Good {
			t.Fatalf("before: %+v", r)
		}
		o.seen(time.Now().Add(time.Hour))
		request, err := xocsp.CreateRequest(fresh, o.issuer.Certificate, nil)
		must(t, err)
		if r, err := o.service.Respond(t.Context(), request, nil); r.Status != ocsp.TryLater || !fault.Is(err, fault.Unavailable) {
			t.Errorf("an answer was signed: %v, %v", r.Status, err)
		}
		if r, how := o.ask(kept, crypto.SHA256); r == nil || r.Status != xocsp.Good || !how.Cached {
			t.Errorf("the answer that is still in force: %+v, %+v", r, how.Status)
		}
		o.seen(time.Now().Add(24 * time.Hour)) // longer than an answer lasts
		if _, how := o.ask(kept, crypto.SHA256); how.Status != ocsp.TryLater {
			t.Errorf("an answer that has ended by the authority's time: %v", how.Status)
		}
		o.seen(time.Now())
		if r, _ := o.ask(fresh, crypto.SHA256); r == nil || r.Status != xocsp.Good {
			t.Errorf("after the clock was set right: %+v", r)
		}
	})
}
