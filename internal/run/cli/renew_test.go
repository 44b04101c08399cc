package cli

import (
	"crypto/x509"
	"testing"
	"time"
)

func TestRenewalIsDueInTheLastThird(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &x509.Certificate{NotBefore: start, NotAfter: start.Add(30 * 24 * time.Hour)}
	for days, want := range map[int]bool{0: false, 19: false, 21: true, 29: true, 31: false} {
		if got := renewalIsDue(c, start.Add(time.Duration(days)*24*time.Hour)); got != want {
			t.Errorf("after %d of 30 days: due %t", days, got)
		}
	}
}
