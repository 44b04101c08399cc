//go:build chaos

package db_test

import (
	"fmt"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/run/cluster"
	"chancery/internal/store/db"
)

// TestFailover has Patroni promote standbys. That takes as long as a lock of Patroni's lasts, 20 s at the least, so it is no part of make test.
func TestFailover(t *testing.T) {
	c := startCluster(t)
	for _, part := range []struct {
		name string
		do   func(*theCluster, *testing.T)
	}{
		{"the synchronous standby is cut off", (*theCluster).standbyIsCutOff},
		{"the machine of the primary is lost", (*theCluster).machineIsLost},
		{"the cut-off primary refuses while another writes", (*theCluster).cutOffSideRefuses},
		{"the primary's Patroni stands still", (*theCluster).patroniStandsStill},
	} {
		must(t, c.WaitHealthy(t.Context()))
		if !t.Run(part.name, func(t *testing.T) { part.do(c, t) }) {
			return
		}
	}
}

func (c *theCluster) standbyIsCutOff(t *testing.T) {
	cut := c.synchronous(t)
	c.gap(t, "synchronous standby cut off", cut.Cut, func() error { return c.another(t, cut) })
	must(t, cut.Heal())
}

// other is an error until another member than the one takes writes.
func (c *theCluster) other(t *testing.T, than *cluster.Member) error {
	now, err := c.Primary(t.Context())
	if err == nil && now == than {
		err = fmt.Errorf("%s is still the primary", now.Name)
	}
	return err
}

func (c *theCluster) machineIsLost(t *testing.T) {
	lost := c.primary(t)
	c.gap(t, "database machine lost", func() error { return lost.Kill(cluster.Machine) }, func() error { return c.other(t, lost) })
	must(t, lost.Restart())
}

// cutOffSideRefuses: while the old primary is alone with its node, nothing is acknowledged there, and the others go on. Together again, there is
// one truth.
func (c *theCluster) cutOffSideRefuses(t *testing.T) {
	old := c.primary(t)
	aside := c.open(t, db.Options{URL: old.Local("chancery", "authority"), Durability: db.Synchronous, Patience: 5 * time.Second})
	defer aside.Close()
	must(t, once(t.Context(), aside, "before both"))
	stop, refused := make(chan struct{}), make(chan int)
	c.gap(t, "primary cut off", func() error {
		if err := old.Cut(); err != nil {
			return err
		}
		go func() {
			n := 0
			for {
				select {
				case <-stop:
					refused <- n
					return
				default:
				}
				err := aside.Tx(t.Context(), func(tx *db.Tx) error { return insert(t.Context(), tx, fmt.Sprint("alone.", n), 1) })
				if !fault.Is(err, fault.Unavailable) {
					t.Errorf("the cut-off side answers %v", err)
				}
				n++
			}
		}()
		return nil
	}, func() error {
		if standby, err := old.Ask(t.Context(), "postgres", "SELECT pg_is_in_recovery()"); old.Link == nil && err == nil && standby == "false" {
			return fmt.Errorf("%s is a primary", old.Name)
		}
		return c.promoted(t, old)
	})
	close(stop)
	if n := <-refused; n == 0 {
		t.Error("nothing was tried on the cut-off side")
	}
	must(t, old.Heal())
	must(t, c.WaitHealthy(t.Context()))
	rows := "SELECT COUNT(*) FROM items"
	want, err := c.primary(t).Ask(t.Context(), "authority", rows)
	must(t, err)
	awaitNo(t, func() error {
		for _, m := range c.Members {
			if have, err := m.Ask(t.Context(), "authority", rows); err != nil || have != want {
				return fmt.Errorf("%s has %s rows, not %s: %w", m.Name, have, want, err)
			}
		}
		return nil
	})
}

// promoted is an error until another member than the one takes writes, whatever that one does.
func (c *theCluster) promoted(t *testing.T, old *cluster.Member) error {
	for _, m := range c.Members {
		if m != old {
			if standby, err := m.Ask(t.Context(), "postgres", "SELECT pg_is_in_recovery()"); err == nil && standby == "false" {
				return nil
			}
		}
	}
	return fmt.Errorf("no other member was promoted")
}

// patroniStandsStill: another member is promoted while PostgreSQL goes on at the old primary, and takes writes there that nobody confirms. The
// node goes to the other, though the URL names the old one first.
func (c *theCluster) patroniStandsStill(t *testing.T) {
	old := c.primary(t)
	c.gap(t, "primary's Patroni stands still", func() error { return old.Freeze(cluster.Patroni) }, func() error { return c.promoted(t, old) })
	if standby, err := old.Ask(t.Context(), "postgres", "SELECT pg_is_in_recovery()"); err != nil || standby != "false" {
		t.Errorf("%s is no primary any more: %s %v", old.Name, standby, err)
	}
	must(t, old.Thaw(cluster.Patroni))
}
