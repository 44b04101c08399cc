package ca

import (
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/settings"

	"golang.org/x/time/rate"
)

// rates holds a token bucket for each caller that issued lately. There are two generations: when the young one is full
// the old one is dropped, so memory is bounded, and a caller that was dropped had time to fill its bucket.
type rates struct {
	mu         sync.Mutex
	young, old map[string]*rate.Limiter // guarded by mu
}

// maxRates bounds one generation.
const maxRates = 50_000

// allow takes a token from the caller's bucket.
func (r *rates) allow(by access.Principal, limits settings.Limits, now time.Time) error {
	bound := limits.OperatorRate
	if by.Has(access.Host) {
		bound = limits.HostRate
	}
	limiter := r.of(by.ID, bound)
	if !limiter.AllowN(now, 1) {
		return fault.New(fault.RateLimited, "%s asks for more than %v certificates a second (%d at once)", by.Actor(), bound.PerSecond, bound.Burst).
			WithHint("ask again in a second; limits.host_rate and limits.operator_rate are the bounds")
	}
	return nil
}

func (r *rates) of(caller string, bound settings.Rate) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	limiter := r.young[caller]
	if limiter == nil {
		if len(r.young) >= maxRates || r.young == nil {
			r.old, r.young = r.young, map[string]*rate.Limiter{}
		}
		if limiter = r.old[caller]; limiter == nil {
			limiter = rate.NewLimiter(rate.Limit(bound.PerSecond), int(bound.Burst))
		}
		r.young[caller] = limiter
	}
	if limiter.Limit() != rate.Limit(bound.PerSecond) || limiter.Burst() != int(bound.Burst) {
		limiter.SetLimit(rate.Limit(bound.PerSecond))
		limiter.SetBurst(int(bound.Burst))
	}
	return limiter
}
