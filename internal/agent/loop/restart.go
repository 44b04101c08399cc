package loop

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery/internal/agent/probe"
	"chancery/internal/pki/cert"
)

// What follows is of consumers that end when they are told of new files. Some do so by mistake (libvirtd 9.0, where
// server-update-tls falls into a handshake), and have a supervisor: systemd with Restart=, or another. Who is started again
// has read the new files, so going back at once would be a second interruption for nothing; and who cannot start with them
// must have the old ones back. Only the live port tells one from the other, and it does so within a bounded time (law 3).

// lookEvery is the pause between two looks for a consumer that ended.
const lookEvery = 100 * time.Millisecond

// errEnded is why files are not placed while a consumer is down that ended of them: whoever starts it is to find the files with
// which it ran.
var errEnded = errors.New("it ended when it was given these files, and does not run since; the old ones are there, and the new are given to it once it runs again")

// beforeTelling notes who listens now, and that the consumer is told.
func (c *consumer) beforeTelling() {
	c.told = true
	if p := c.plan.Probe; p != nil && p.Address != "" {
		if now := probe.Listeners(p.Address); now.Known() {
			c.ran = now
		}
	}
}

// hasEnded reports whether the consumer has ended since it was told: nothing listens at its port any more, or others do than
// did before. Of a consumer without a port it is not said, for there a restart cannot be seen to have gone well.
func (c *consumer) hasEnded(ctx context.Context) bool {
	p := c.plan.Probe
	if p == nil || p.Address == "" {
		return false
	}
	if c.ran.Ended() {
		return true
	}
	_, err := probe.Look(ctx, *p, nil)
	return probe.IsDown(err)
}

// comesBack waits until a consumer that ended shows what it is to. Why is what was heard of its end, which is told in any case.
func (c *consumer) comesBack(ctx context.Context, why error, shows func(context.Context) error) error {
	c.ended = true
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, c.restart)
	defer cancel()
	for {
		c.beat()
		err := shows(bounded)
		if err == nil {
			c.ended = false
			c.note(fmt.Sprintf("%s ended when it was told of new files, and was started again within %s: %v",
				c.who(), time.Since(began).Round(100*time.Millisecond), why))
			return nil
		}
		select {
		case <-time.After(lookEvery):
			continue
		case <-bounded.Done():
		}
		// The last look may have been cut short.
		if _, now := probe.Look(ctx, *c.plan.Probe, nil); probe.IsDown(now) {
			return fmt.Errorf("%w: %s ended then, and nothing has started it again within %s; start it, and see why it ended", why, c.who(), c.restart)
		}
		c.ended = false
		return errors.Join(why, fmt.Errorf("%s ended then, was started again, and after %s: %w", c.who(), c.restart, err))
	}
}

// errNotBack is why a consumer is waited for that ended before it was told of the files that were put back.
var errNotBack = errors.New("it does not run with the old files either")

// showsOld looks whether the consumer shows what was placed before: who was started between the two sets has read the other.
func (c *consumer) showsOld(ctx context.Context) error {
	seen, err := probe.Look(ctx, *c.plan.Probe, nil)
	if err == nil && c.before != nil && !seen.Leaf().Equal(c.before) {
		err = fmt.Errorf("%w: %s serves certificate %s still, and %s is back", probe.ErrNotServed, c.plan.Probe.Address,
			cert.FormatSerial(seen.Leaf().SerialNumber), cert.FormatSerial(c.before.SerialNumber))
	}
	return err
}

// who is the consumer as it ran before it was told.
func (c *consumer) who() string {
	if len(c.ran.Processes) == 0 {
		return "the consumer at " + c.plan.Probe.Address
	}
	var names []string
	for _, p := range c.ran.Processes[:min(len(c.ran.Processes), 3)] {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}
