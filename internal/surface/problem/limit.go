package problem

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"golang.org/x/time/rate"
)

// RateLimiter gives each caller a token bucket. Memory is bounded: buckets live in two generations of at most half the
// capacity each; when the young one is full, the old one is dropped and the young one grows old. A caller that is active
// is carried over, so only callers that were silent for a whole generation start anew, with a full bucket, which is what
// silence would have earned them in all but a flood of strangers.
type RateLimiter struct {
	half int

	mu         sync.Mutex // guards what follows
	limit      rate.Limit
	burst      int
	young, old map[string]*rate.Limiter
}

// NewRateLimiter allows each caller perSecond calls a second on average and burst at once, and remembers up to callers of
// them. perSecond 0 sets no limit.
func NewRateLimiter(perSecond float64, burst, callers int) *RateLimiter {
	l := &RateLimiter{half: max(callers/2, 1)}
	l.Set(perSecond, burst)
	return l
}

// Set changes the rate; where it really changes, every caller begins anew.
func (l *RateLimiter) Set(perSecond float64, burst int) {
	limit := rate.Limit(perSecond)
	if perSecond <= 0 {
		limit = rate.Inf
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if burst = max(burst, 1); l.young == nil || limit != l.limit || burst != l.burst {
		l.limit, l.burst, l.young, l.old = limit, burst, map[string]*rate.Limiter{}, nil
	}
}

// Take takes one call from the caller's bucket, or refuses and says when to come back.
func (l *RateLimiter) Take(caller string, now time.Time) error {
	b := l.bucket(caller)
	if b == nil {
		return nil
	}
	r := b.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	r.CancelAt(now)
	return RateError(wait, "%q made more than %d calls at once and more than %v a second", caller, b.Burst(), float64(b.Limit()))
}

// Spent reports whether a caller's bucket is empty, and takes nothing from it.
func (l *RateLimiter) Spent(caller string, now time.Time) bool {
	b := l.bucket(caller)
	return b != nil && b.TokensAt(now) < 1
}

// bucket is the caller's; nil where there is no limit.
func (l *RateLimiter) bucket(caller string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limit == rate.Inf {
		return nil
	}
	if b, ok := l.young[caller]; ok {
		return b
	}
	b, ok := l.old[caller]
	if !ok {
		b = rate.NewLimiter(l.limit, l.burst)
	}
	if len(l.young) >= l.half {
		l.old, l.young = l.young, make(map[string]*rate.Limiter)
	}
	l.young[caller] = b
	return b
}

// Address is what strangers are counted by: the address that a request comes from, or the network of 64 bits that one IPv6
// host has for itself. It is as remote where that is no address.
func Address(remote string) (counted string, addr netip.Addr) {
	from, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote, netip.Addr{}
	}
	addr = from.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if network, err := addr.Prefix(64); err == nil {
			return network.String(), addr
		}
	}
	return addr.String(), addr
}

// Within reports whether one of the prefixes holds the address.
func Within(prefixes []netip.Prefix, addr netip.Addr) bool {
	return addr.IsValid() && slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// size is the number of remembered callers.
func (l *RateLimiter) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.young) + len(l.old)
}

// waitError is a refusal that knows when the caller may come back.
type waitError struct {
	refusal *fault.Error
	wait    time.Duration
}

func (e waitError) Error() string             { return e.refusal.Error() }
func (e waitError) Unwrap() error             { return e.refusal }
func (e waitError) RetryAfter() time.Duration { return e.wait }

// RateError refuses with a time to come back.
func RateError(wait time.Duration, format string, args ...any) error {
	e := fault.New(fault.RateLimited, format, args...).WithHint("wait %v before the next call", cert.Duration(wait.Round(time.Millisecond)))
	return waitError{refusal: e, wait: max(wait, time.Millisecond)}
}

// Gate lets so many expensive calls run at once. Further ones wait their turn for a while, then are sent away: a queue that
// only grows helps nobody.
type Gate struct {
	slots chan struct{}
	wait  time.Duration
}

// NewGate returns a gate for n calls at once; others wait up to wait.
func NewGate(n int, wait time.Duration) *Gate {
	return &Gate{slots: make(chan struct{}, n), wait: wait}
}

// Enter waits for a slot. The caller calls leave when it is done.
func (g *Gate) Enter(ctx context.Context) (leave func(), err error) {
	leave = func() { <-g.slots }
	select {
	case g.slots <- struct{}{}:
		return leave, nil
	default:
	}
	t := time.NewTimer(g.wait)
	defer t.Stop()
	select {
	case g.slots <- struct{}{}:
		return leave, nil
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "the caller left while it waited its turn")
	case <-t.C:
		return nil, fault.New(fault.Unavailable, "%d such calls run already, and none ended within %v", cap(g.slots), cert.Duration(g.wait))
	}
}

// Security sets the headers that keep a browser, should one come here, from doing anything with what it gets.
func Security(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		next.ServeHTTP(w, r)
	})
}
