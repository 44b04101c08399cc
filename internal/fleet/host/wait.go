package host

import "sync"

// waiters are the calls that wait for a change on this node. Ten thousand may: each has a channel and three words here.
type waiters struct {
	mu     sync.Mutex           // guards what follows
	byHost map[string][]*waiter // an agent that lost its connection may wait twice
	rounds int64                // how often somebody was to be woken

	ended chan struct{} // closed when the node ends
	once  sync.Once
}

// waiter is one call that waits.
type waiter struct {
	host, principal, pool string
	woken                 chan struct{} // holds one wake, so that waking never waits
}

func (w *waiter) wake() {
	select {
	case w.woken <- struct{}{}:
	default: // it was woken, and has not looked yet
	}
}

// round counts the times that somebody was to be woken. What one read after he learnt the round still holds if the round is
// the same when he enters: whatever has changed since wakes him.
func (w *waiters) round() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rounds
}

// enter returns the round from which on one is woken; it is not ok when the node ends.
func (w *waiters) enter(one *waiter) (round int64, ok bool) {
	select {
	case <-w.ended:
		return 0, false
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.byHost[one.host] = append(w.byHost[one.host], one)
	return w.rounds, true
}

func (w *waiters) leave(one *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := w.byHost[one.host][:0]
	for _, other := range w.byHost[one.host] {
		if other != one {
			kept = append(kept, other)
		}
	}
	if len(kept) == 0 {
		delete(w.byHost, one.host)
		return
	}
	clear(w.byHost[one.host][len(kept):])
	w.byHost[one.host] = kept
}

func (w *waiters) wakeHost(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rounds++
	for _, one := range w.byHost[host] {
		one.wake()
	}
}

// wakeThose wakes all that match.
func (w *waiters) wakeThose(match func(*waiter) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rounds++
	for _, those := range w.byHost {
		for _, one := range those {
			if match(one) {
				one.wake()
			}
		}
	}
}

// Waiting is how many wait on this node.
func (s *Service) Waiting() int { return s.waiting.count() }

func (w *waiters) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, those := range w.byHost {
		n += len(those)
	}
	return n
}

// EndWaits answers all who wait, now and from now on, at once: a node that ends has no time for them.
func (s *Service) EndWaits() { s.waiting.once.Do(func() { close(s.waiting.ended) }) }
