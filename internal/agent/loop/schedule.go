package loop

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"math/rand/v2"
	"time"
)

// Pace is how often an agent does what. The zero value of each field is the usual pace.
type Pace struct {
	Pass      time.Duration // between two looks at the host while nothing changes; 5 minutes
	Wait      time.Duration // how long the authority holds a poll; 55 seconds
	Heartbeat time.Duration // between two reports that say the same; 1 hour
	Standing  time.Duration // between two calls of a host that was removed or is suspect; 1 hour
	First     time.Duration // the wait after a first failure; 1 second
	Longest   time.Duration // the longest wait between two tries; 10 minutes
	Restart   time.Duration // how long a consumer that ended when it was told is waited for; 30 seconds
}

func (p Pace) filled() Pace {
	set := func(d *time.Duration, usual time.Duration) {
		if *d <= 0 {
			*d = usual
		}
	}
	set(&p.Pass, 5*time.Minute)
	set(&p.Wait, 55*time.Second)
	set(&p.Heartbeat, time.Hour)
	set(&p.Standing, time.Hour)
	set(&p.First, time.Second)
	set(&p.Longest, 10*time.Minute)
	set(&p.Restart, 30*time.Second)
	return p
}

// backoff is how long to wait after so many failures: twice as long each time, and never the same for two agents.
func (p Pace) backoff(failures int) time.Duration {
	wait := p.First
	for range min(failures-1, 30) {
		if wait *= 2; wait >= p.Longest {
			wait = p.Longest
			break
		}
	}
	return jitter(wait)
}

// jitter is d, a quarter more or less.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + time.Duration(rand.Int64N(int64(d)/2+1))
}

// dueAt is when a certificate is replaced: at two thirds of its life, or up to a twelfth of it earlier. How much earlier
// depends on who holds it, so that certificates that were issued together are not all replaced together.
func dueAt(c *x509.Certificate, holder string) time.Time {
	life := c.NotAfter.Sub(c.NotBefore)
	sum := sha256.Sum256([]byte(holder))
	share := float64(binary.BigEndian.Uint32(sum[:4])) / (1 << 32)
	return c.NotBefore.Add(life * 2 / 3).Add(-time.Duration(float64(life/12) * share))
}

// attempts remembers what failed, and until when it is not tried again. It is in memory only: who starts an agent anew wants
// it to try.
type attempts map[string]attempt

type attempt struct {
	failures int
	next     time.Time
}

func (a attempts) may(what string, now time.Time) bool { return !now.Before(a[what].next) }

func (a attempts) failed(what string, now time.Time, p Pace) {
	n := a[what].failures + 1
	p.First, p.Longest = max(p.First, time.Minute), max(p.Longest, time.Hour)
	a[what] = attempt{failures: n, next: now.Add(p.backoff(n))}
}

func (a attempts) succeeded(what string) { delete(a, what) }
