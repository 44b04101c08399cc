package db

import (
	"sync"
	"time"
)

// leaseMemory is what this process knows of leases beside what is stored. It makes two things sure that the table alone does not:
// processes that have one holder's name (a copied data directory, a machine started twice from a snapshot) are not one holder, since a
// process goes on with an epoch only that it began; and a lease that is being renewed is not taken because a clock here is ahead, nor kept for
// a holder that is dead because its clock was.
type leaseMemory struct {
	mu    sync.Mutex
	begun map[leaseHolder]int64 // the epoch that this process began
	seen  map[string]leaseSeen  // by the lease's name
}

type leaseHolder struct{ name, holder string }

// leaseSeen is how a lease stood when it was last seen to have changed.
type leaseSeen struct {
	epoch   int64
	expires int64
	at      time.Time
	renewed bool // it was seen to change: somebody has it
}

// began notes that this process has the lease since now.
func (m *leaseMemory) began(l Lease, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.begun == nil {
		m.begun, m.seen = map[leaseHolder]int64{}, map[string]leaseSeen{}
	}
	m.begun[leaseHolder{l.Name, l.Holder}] = l.Epoch
	m.seen[l.Name] = leaseSeen{epoch: l.Epoch, expires: Micros(l.Expires), at: now}
}

// own reports whether this process began the lease's epoch.
func (m *leaseMemory) own(l Lease) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	epoch, ok := m.begun[leaseHolder{l.Name, l.Holder}]
	return ok && epoch == l.Epoch
}

const (
	// skewed is how far the clocks of nodes may be apart. A lease that ended no longer ago, or was seen to be renewed, is taken only by who
	// has seen it unrenewed for as long as it lasts, on one clock.
	skewed = time.Minute
	// grace is for the renewal that is on its way. Who has seen a lease unrenewed for longer takes it, whenever it ends by its holder's clock;
	// a holder that lives is fenced by the epoch.
	grace = time.Second
)

// live reports whether a lease is its holder's still.
func (m *leaseMemory) live(l Lease, ttl time.Duration, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.begun == nil {
		m.begun, m.seen = map[leaseHolder]int64{}, map[string]leaseSeen{}
	}
	was, known := m.seen[l.Name]
	if !known || was.epoch != l.Epoch || was.expires != Micros(l.Expires) {
		was = leaseSeen{epoch: l.Epoch, expires: Micros(l.Expires), at: now, renewed: known}
		m.seen[l.Name] = was
	}
	switch {
	case l.Expires.After(now):
		return now.Sub(was.at) < ttl+grace
	case l.Expires.Equal(FromMicros(0)), now.Sub(l.Expires) > skewed && !was.renewed: // let go of, or ended long ago
		return false
	}
	return now.Sub(was.at) < ttl
}
