package revocation

import (
	"bytes"
	"math/big"
	"os/exec"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// openssl says what openssl reads of a list.
func openssl(t *testing.T, der []byte) string {
	t.Helper()
	cmd := exec.Command("openssl", "crl", "-inform", "DER", "-noout", "-text", "-crlnumber")
	cmd.Stdin = bytes.NewReader(der)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl crl: %v\n%s", err, out)
	}
	return string(out)
}

// line is the first line of a text that contains what.
func line(t *testing.T, text, what string) string {
	t.Helper()
	for l := range strings.Lines(text) {
		if strings.Contains(l, what) {
			return strings.TrimSpace(l)
		}
	}
	t.Fatalf("no %q in %s", what, text)
	return ""
}

// RFC 5280 5.2.3: a complete CRL and a delta of one scope that are issued at the same time must have the same number and
// provide the same revocation information.
func TestDeltaAndCompleteOfOneMomentHadTwoNumbers(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{Delta: true}, nil)
		w := newWorker(o.service, o.lease(), false)
		w.patience = time.Minute
		base := o.make(w.lease, Complete, true)
		alone := o.make(w.lease, Delta, true)
		if alone.Number.Cmp(base.Number) <= 0 {
			t.Fatalf("a delta issued alone has number %v after %v", alone.Number, base.Number)
		}
		c := o.issue("a.example")
		o.revoke(c, crl.KeyCompromise)
		before := time.Now().UnixMilli()
		must(t, w.once(t.Context(), time.Now()))
		if len(w.failing) != 0 {
			t.Fatalf("failing %+v", w.failing)
		}
		complete := o.list(Complete, has(c.SerialNumber, crl.KeyCompromise))
		delta := o.list(Delta, has(c.SerialNumber, crl.KeyCompromise))
		if complete.Number.Cmp(delta.Number) != 0 || !complete.ThisUpdate.Equal(delta.ThisUpdate) {
			t.Errorf("complete %v of %v, delta %v of %v", complete.Number, complete.ThisUpdate, delta.Number, delta.ThisUpdate)
		}
		if complete.Number.Cmp(big.NewInt(before)) < 0 || complete.Number.Cmp(alone.Number) <= 0 {
			t.Errorf("number %v at %d ms, after %v", complete.Number, before, alone.Number)
		}
		must(t, delta.CheckBase(base))
		one, other := openssl(t, complete.Raw), openssl(t, delta.Raw)
		for _, what := range []string{"crlNumber=", "Last Update:"} {
			if a, b := line(t, one, what), line(t, other, what); a != b {
				t.Errorf("openssl reads %q and %q", a, b)
			}
		}
		line(t, other, "Delta CRL Indicator")
		found, err := o.service.Find(t.Context(), "one", complete.Number)
		must(t, err)
		if found.Scope != Complete {
			t.Errorf("by its number the list %s is found", found.Scope)
		}
	})
}
