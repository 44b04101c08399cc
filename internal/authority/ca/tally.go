package ca

import (
	"hash/maphash"
	"sync"
	"time"
)

// tally counts how often callers asked this node for the same names lately, and never counts too low: different names may
// share a place. It says when nobody need look into the store, which is nearly always. It does not know what was asked of
// other nodes, or of this one before it was started: see seldom.
type tally struct {
	mu         sync.Mutex
	seed       maphash.Seed
	young, old []uint16 // guarded by mu; each counts for a window
	since      time.Time
}

// seldom is how many times what was asked of this node must fit into a limit for the store not to be looked at: a caller that
// goes round so many nodes is found at the limit, as one that asks one node alone is.
const seldom = 8

// places is some 1 MB of counters. With more names in a window than would fit, more of them are looked for in the store.
const places = 1 << 18

// add counts one more, and returns how many there may have been within the window.
func (t *tally) add(caller, name string, window time.Duration, now time.Time) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.young == nil {
		t.seed, t.young, t.old, t.since = maphash.MakeSeed(), make([]uint16, places), make([]uint16, places), now
	}
	if age := now.Sub(t.since); age > window || age < 0 {
		t.young, t.old, t.since = t.old, t.young, now
		clear(t.young)
	}
	var h maphash.Hash
	h.SetSeed(t.seed)
	h.WriteString(caller)
	h.WriteByte(0)
	h.WriteString(name)
	place := h.Sum64() % places
	if t.young[place] < 1<<16-1 {
		t.young[place]++
	}
	return int64(t.young[place]) + int64(t.old[place])
}
