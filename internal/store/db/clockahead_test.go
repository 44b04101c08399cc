package db_test

import (
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// clocks are two nodes of one PostgreSQL: n1's clock is right.
type clocks struct {
	*testing.T
	n1, n2 *db.DB
	now    time.Time
}

func newClocks(t *testing.T) *clocks {
	t.Helper()
	url := pkitest.URL(t, db.Postgres)
	c := &clocks{t, pkitest.Open(t, db.Options{URL: url, Node: "n1"}), pkitest.Open(t, db.Options{URL: url, Node: "n2"}), time.Now()}
	if err := c.n1.Tx(t.Context(), func(tx *db.Tx) error { db.TakeFence(tx, "n1", 1); return nil }); err != nil {
		t.Fatal(err)
	}
	c.beats(c.n1, 0)
	return c
}

func (c *clocks) beats(d *db.DB, by time.Duration) {
	c.Helper()
	if err := d.Heartbeat(c.Context(), c.now.Add(by)); err != nil || d.CheckClock(c.now.Add(by)) != nil {
		c.Fatalf("a heartbeat %v ahead: %v, %v", by, err, d.CheckClock(c.now.Add(by)))
	}
}

// refused has n2 beat ahead: it signs nothing, and n1 goes on.
func (c *clocks) refused(by time.Duration) {
	c.Helper()
	at := c.now.Add(by)
	if err := c.n2.Heartbeat(c.Context(), at); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "clock is ahead") {
		c.Fatalf("a heartbeat %v ahead: %v", by, err)
	}
	if err := c.n2.CheckClock(at); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "clock is ahead") {
		c.Fatalf("%v ahead it signs: %v", by, err)
	}
	c.beats(c.n1, time.Second)
}

// lease is who takes a lease now, and its epoch.
func (c *clocks) lease(d *db.DB, who string, want bool) int64 {
	c.Helper()
	vacant, err := d.Vacant(c.Context(), "crl", who, time.Minute, time.Now())
	if err != nil || vacant != want {
		c.Fatalf("vacant for %s: %v, %v", who, vacant, err)
	}
	l, ok, err := d.Acquire(c.Context(), "crl", who, time.Minute)
	if err != nil || ok != want {
		c.Fatalf("%s takes %+v: %v, %v", who, l, ok, err)
	}
	return l.Epoch
}

// TestOneClockAhead has one node's clock jump ahead: it alone stops, and another has its lease at once.
func TestOneClockAhead(t *testing.T) {
	c := newClocks(t)
	before := c.lease(c.n2, "n2", true)
	c.lease(c.n1, "n1", false)
	c.refused(time.Hour)
	if seen, err := c.n1.SeenTime(t.Context()); err != nil || seen.After(c.now.Add(time.Minute)) {
		t.Errorf("the authority has seen %v, %v", seen, err)
	}
	if after := c.lease(c.n1, "n1", true); after <= before {
		t.Errorf("epoch %d after %d", after, before)
	}
	c.lease(c.n2, "n2", false)
	c.refused(time.Hour)
	c.lease(c.n1, "n1", true) // what it has now stays its own
	c.beats(c.n2, 0)          // its clock is set right
	if l, ok, err := c.n1.Acquire(t.Context(), "other", "n1", time.Minute); err != nil || !ok {
		t.Errorf("another lease: %+v, %v, %v", l, ok, err)
	}
}

// TestOneClockRunsAhead has one node's clock gain time slowly: it takes the mark no further than the others can follow.
func TestOneClockRunsAhead(t *testing.T) {
	c := newClocks(t)
	for _, by := range []time.Duration{time.Minute, 2 * time.Minute, 2*time.Minute + 20*time.Second} {
		c.beats(c.n2, by)
		c.beats(c.n1, 0)
	}
	for by := 3 * time.Minute; by < 10*time.Minute; by += time.Minute {
		c.refused(by)
	}
	if err := c.n1.CheckClock(c.now.Add(-2 * time.Minute)); err != nil {
		t.Errorf("one that is two minutes behind stops: %v", err)
	}
}

// TestClockOfTheDatabaseIsWrong: a server whose clock went back stops nobody, nor does one that loses time slowly; of nodes that start after
// a long silence it is asked first, and the mark can be set where it is the wrong one.
func TestClockOfTheDatabaseIsWrong(t *testing.T) {
	c := newClocks(t)
	set := func(node string, by time.Duration) {
		t.Helper()
		if err := c.n2.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), "UPDATE write_mark SET number = $2 WHERE node = $1", node, db.Micros(c.now.Add(by)))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	c.beats(c.n2, 2*time.Minute) // it loses time
	set("n1", 2*time.Minute+50*time.Second)
	c.beats(c.n2, 2*time.Minute+50*time.Second)
	c.beats(c.n2, 4*time.Minute)
	if err := c.n1.ResetClock(t.Context(), c.now.Add(time.Hour)); err != nil { // it went back: the nodes had gone on by theirs
		t.Fatal(err)
	}
	c.beats(c.n1, time.Hour)
	c.beats(c.n2, time.Hour+time.Minute)
	c.beats(c.n1, time.Hour+2*time.Minute)
	if err := c.n1.ResetClock(t.Context(), c.now.Add(-24*time.Hour)); err != nil { // all were away for a day
		t.Fatal(err)
	}
	c.refused(time.Hour)
	if err := c.n1.ResetClock(t.Context(), c.now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	c.beats(c.n2, time.Hour)
}

// writes says that nodes wrote, when the clocks of them were ahead by so much: what each writes is numbered by its clock.
func (c *clocks) writes(by time.Duration, nodes ...string) {
	c.Helper()
	for _, node := range nodes {
		if err := c.n2.Tx(c.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(c.Context(), "INSERT INTO write_mark (node, number) VALUES ($1, $2) ON CONFLICT (node) DO UPDATE SET number = excluded.number",
				node, db.Micros(c.now.Add(by)))
			return err
		}); err != nil {
			c.Fatal(err)
		}
	}
}

// TestServerStoodStill has the database's machine stand still, and go on with the time at which it did, while the nodes' clocks are right:
// the first is refused, and writes as it lets go of its leases; by that the others go on, and it does with its next heartbeat.
func TestServerStoodStill(t *testing.T) {
	c := newClocks(t)
	c.writes(0, "n1", "n2")
	refused := 0
	for by := 3 * time.Minute; by < 4*time.Minute; by += 5 * time.Second {
		for node, d := range map[string]*db.DB{"n1": c.n1, "n2": c.n2} {
			if err := d.Heartbeat(t.Context(), c.now.Add(by)); err != nil {
				refused++
			}
			c.writes(by, node)
		}
	}
	if refused != 1 {
		t.Errorf("%d heartbeats of nodes that agree were refused", refused)
	}
	c.beats(c.n1, 5*time.Minute)
	c.beats(c.n2, 5*time.Minute)
}

// TestOneThatWasAheadBearsNobodyOut: the numbers of a node that was ahead stay so though its clock was set right. Alone they do not speak for
// another that is ahead, against one whose clock is the server's.
func TestOneThatWasAheadBearsNobodyOut(t *testing.T) {
	c := newClocks(t)
	c.writes(0, "n1")
	c.writes(time.Hour, "n3")
	c.refused(time.Hour)
	c.refused(time.Hour + time.Minute)
	c.writes(time.Hour, "n4")
	c.beats(c.n2, time.Hour) // two against one: the server's is wrong
}

// TestJudgeClock says of a time what a heartbeat would, and writes nothing.
func TestJudgeClock(t *testing.T) {
	c := newClocks(t)
	for by, want := range map[time.Duration]string{-time.Hour: "clock is behind", 0: "", time.Minute: "", time.Hour: "clock is ahead"} {
		err := c.n2.JudgeClock(t.Context(), c.now.Add(by))
		if want == "" && err != nil || want != "" && (!fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), want)) {
			t.Errorf("by %s: %v", by, err)
		}
	}
	if seen, err := c.n1.SeenTime(t.Context()); err != nil || seen.After(c.now.Add(time.Second)) {
		t.Errorf("the authority has seen %v, %v", seen, err)
	}
}

// TestServerLosesTime has the server's clock lose time by and by: nobody is refused when it is past the bound.
func TestServerLosesTime(t *testing.T) {
	c := newClocks(t)
	for by := 2*time.Minute + 20*time.Second; by < 3*time.Minute; by += 2 * time.Second {
		c.beats(c.n1, by)
		c.writes(by, "n1")
		c.beats(c.n2, by+time.Second)
		c.writes(by+time.Second, "n2")
	}
}
