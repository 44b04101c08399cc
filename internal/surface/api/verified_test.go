package api

import (
	"crypto/x509"
	"testing"
	"time"
)

// TestVerifiedPath holds what is remembered of a path against what could have made it wrong since.
func TestVerifiedPath(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	from := func(after time.Duration) *x509.Certificate {
		return &x509.Certificate{NotBefore: at.Add(-time.Hour), NotAfter: at.Add(after)}
	}
	leafEnds := at.Add(time.Hour)
	for name, c := range map[string]struct {
		path  proven
		roots *x509.CertPool
		now   time.Time
		want  bool
	}{
		"as before":              {proven{at: at, notAfter: leafEnds, roots: roots, above: []*x509.Certificate{from(time.Hour)}}, roots, at.Add(time.Minute), true},
		"other roots":            {proven{at: at, notAfter: leafEnds, roots: roots, above: []*x509.Certificate{from(time.Hour)}}, others, at.Add(time.Minute), false},
		"nothing remembered":     {proven{}, roots, at, false},
		"the leaf has ended":     {proven{at: at, notAfter: leafEnds, roots: roots, above: []*x509.Certificate{from(2 * time.Hour)}}, roots, at.Add(61 * time.Minute), false},
		"the issuer has ended":   {proven{at: at, notAfter: leafEnds, roots: roots, above: []*x509.Certificate{from(time.Minute), from(time.Hour)}}, roots, at.Add(2 * time.Minute), false},
		"the root has ended":     {proven{at: at, notAfter: leafEnds, roots: roots, above: []*x509.Certificate{from(time.Hour), from(time.Minute)}}, roots, at.Add(2 * time.Minute), false},
		"the clock was put back": {proven{at: at, notAfter: leafEnds, roots: roots, above: []*x509.Certificate{from(time.Hour)}}, roots, at.Add(-time.Minute), false},
	} {
		if got := c.path.verified(c.roots, c.now); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
