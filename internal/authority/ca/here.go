package ca

import (
	"math"
	"math/big"
	"sync"
	"sync/atomic"
	"time"
)

// changedHere are the certificates whose status this node changed a moment ago. A standby may lack that, and while the primary
// is away nobody else can say it: so it is known that the standby's word does not count there.
type changedHere struct {
	any      atomic.Bool // whether there is one, for the many who ask while there is none
	mu       sync.Mutex
	at       map[changedKey]changedAt // guarded by mu
	overflow time.Time                // guarded by mu: since when there were too many to remember; zero while there are not
}

type changedKey struct{ issuer, serial string }

type changedAt struct {
	change int64 // its number
	noted  time.Time
}

const (
	mostChangedHere = 100_000
	// keepChangedHere is how long one is remembered at least: it is noted within its transaction, which may end later.
	keepChangedHere = time.Minute
)

func (c *changedHere) note(issuer string, serial *big.Int, change int64, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		c.at = map[changedKey]changedAt{}
	}
	if len(c.at) >= mostChangedHere {
		c.overflow = now
	} else {
		c.at[changedKey{issuer, string(serial.Bytes())}] = changedAt{change, now}
	}
	c.any.Store(true)
}

// ChangedHere is the number of the last change of a certificate's status that this node made, or was about to make, a moment ago;
// 0 where it made none. A status that does not take it into account does not count.
func (c *CA) ChangedHere(issuerID string, serial *big.Int) int64 {
	h := &c.here
	if !h.any.Load() {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.overflow.IsZero() {
		return math.MaxInt64
	}
	return h.at[changedKey{issuerID, string(serial.Bytes())}].change
}

// ForgetChanges is told that a state of the database which lacks nothing of this node's writes was read, and everything kept from
// before dropped, at a time.
func (c *CA) ForgetChanges(at time.Time) {
	h := &c.here
	if !h.any.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, one := range h.at {
		if at.Sub(one.noted) > keepChangedHere {
			delete(h.at, key)
		}
	}
	if at.Sub(h.overflow) > keepChangedHere {
		h.overflow = time.Time{}
	}
	h.any.Store(len(h.at) > 0 || !h.overflow.IsZero())
}
