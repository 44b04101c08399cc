package host

import "testing"

// TestRounds holds what a caller read before he waits against the wakes that he may have missed.
func TestRounds(t *testing.T) {
	for name, c := range map[string]struct {
		meanwhile func(*waiters)
		again     bool
	}{
		"nothing happened":      {func(*waiters) {}, false},
		"his host was woken":    {func(w *waiters) { w.wakeHost("his") }, true},
		"some were woken":       {func(w *waiters) { w.wakeThose(func(*waiter) bool { return false }) }, true},
		"another began to wait": {func(w *waiters) { w.enter(&waiter{host: "other", woken: make(chan struct{}, 1)}) }, false},
	} {
		w := &waiters{byHost: map[string][]*waiter{}, ended: make(chan struct{})}
		one := &waiter{host: "his", woken: make(chan struct{}, 1)}
		round := w.round()
		c.meanwhile(w)
		entered, ok := w.enter(one)
		if !ok || (entered != round) != c.again {
			t.Errorf("%s: round %d, then %d (%t)", name, round, entered, ok)
		}
		if w.wakeHost("his"); len(one.woken) != 1 {
			t.Errorf("%s: he waits, and is not woken", name)
		}
	}
}
