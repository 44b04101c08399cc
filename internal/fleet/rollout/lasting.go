package rollout

import (
	"crypto/x509"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
)

// How long what hosts go to must last: when a rollout begins two lives of a leaf, and when the old trust is taken away one.
// Hosts that are moved to a root which ends before they can be moved again have nothing left that is good.
const (
	leastAtStart = 180 * 24 * time.Hour
	leastAtLeave = 90 * 24 * time.Hour
)

// lasts refuses an issuer that ends soon, or one above it that does.
func lasts(target *ca.Issuer, least time.Duration, now time.Time) error {
	for _, c := range above(target) {
		if c.NotAfter.Sub(now) < least {
			return fault.New(fault.Invalid, "the hosts would go to %q, and %q ends on %s; what they go to has to last %d days at the least", target.Name,
				c.Subject, c.NotAfter.UTC().Format(time.DateOnly), least/(24*time.Hour)).WithHint("chancery rollout start rotate-root makes a new root")
		}
	}
	return nil
}

func above(i *ca.Issuer) []*x509.Certificate {
	return append([]*x509.Certificate{i.Certificate}, i.Chain...)
}

// targetLasts holds the issuer that hosts go to against what the stage that begins needs of it. What one that is undone goes back
// to is what there was.
func (r *row) targetLasts(stage string, issuers []*ca.Issuer, now time.Time) error {
	if r.backwards || stage == client.StageRekey {
		return nil
	}
	i := slices.IndexFunc(issuers, func(i *ca.Issuer) bool { return i.Name == r.plan.To && i.Certificate != nil })
	if i < 0 {
		return nil // target says so
	}
	least := leastAtStart
	if stage == client.StageLeave && !r.spec.Compromised {
		least = leastAtLeave
	}
	return lasts(issuers[i], least, now)
}
