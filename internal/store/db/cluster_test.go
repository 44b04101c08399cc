package db_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/run/cluster"
	"chancery/internal/store/db"
)

// theCluster is a cluster with a database of ours, and the parts of a test that are played on it one after the other.
type theCluster struct {
	*cluster.Cluster
	url string
	d   *db.DB // as a node has it
}

func startCluster(t *testing.T) *theCluster {
	t.Helper()
	made, err := cluster.Start(t.Context(), cluster.Options{Namespaces: os.Geteuid() == 0})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := made.Stop(); err != nil {
			t.Error(err)
		}
	})
	c := &theCluster{Cluster: made}
	if c.url, err = c.Database(t.Context(), "authority"); err != nil {
		t.Fatal(err)
	}
	primary := c.primary(t)
	awaitNo(t, func() error { return primary.Exec(t.Context(), "postgres", "GRANT pg_monitor TO chancery") })
	c.d = c.open(t, db.Options{URL: c.url, Durability: db.Synchronous})
	makeTable(t, c.d)
	ctx, cancel := context.WithCancel(context.Background())
	watched := make(chan error, 1)
	go func() { watched <- c.d.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-watched, c.d.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// open takes as long as a loaded machine does with the first connection, which may be longer than there is patience for.
func (c *theCluster) open(t *testing.T, o db.Options) (d *db.DB) {
	t.Helper()
	awaitNo(t, func() (err error) {
		d, err = db.Open(t.Context(), o)
		return err
	})
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *theCluster) primary(t *testing.T) (m *cluster.Member) {
	t.Helper()
	awaitNo(t, func() (err error) {
		m, err = c.Primary(t.Context())
		return err
	})
	return m
}

func (c *theCluster) synchronous(t *testing.T) (m *cluster.Member) {
	t.Helper()
	awaitNo(t, func() (err error) {
		m, err = c.Synchronous(t.Context())
		return err
	})
	return m
}

// once writes a row, and repeats that until it is known to be there: after an unknown outcome it looks first, in a transaction that
// itself writes.
func once(ctx context.Context, d *db.DB, id string) error {
	for try := 0; ; try++ {
		err := d.Tx(ctx, func(tx *db.Tx) error {
			if try > 0 {
				if n, err := tx.Exec(ctx, "UPDATE items SET n = n WHERE id = $1", id); err != nil || n == 1 {
					return err
				}
			}
			return insert(ctx, tx, id, 1)
		})
		if err == nil || ctx.Err() != nil || !fault.Is(err, fault.Unavailable) {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// load writes rows with several hands until it is ended, and then wants each of them to be there once. A hand repeats what was refused or
// left open. It returns how many were written, and the longest time in which none of them was acknowledged.
func (c *theCluster) load(t *testing.T, name string) (end func() (written int, silence time.Duration)) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	var hands sync.WaitGroup
	stop := make(chan struct{})
	var mu sync.Mutex
	written, silence, last := 0, time.Duration(0), time.Now() // guarded by mu
	for hand := range 4 {
		hands.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				if err := once(ctx, c.d, fmt.Sprint(name, ".", hand, ".", i)); err != nil {
					t.Errorf("%s: hand %d, row %d: %v", name, hand, i, err)
					return
				}
				mu.Lock()
				written++
				silence, last = max(silence, time.Since(last)), time.Now()
				mu.Unlock()
			}
		})
	}
	return func() (int, time.Duration) {
		close(stop)
		hands.Wait()
		cancel()
		var have int
		must(t, c.d.Read(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "SELECT COUNT(*) FROM items WHERE id LIKE $1", name+".%").Scan(&have)
		}))
		if have != written || written == 0 {
			t.Errorf("%s: %d rows were acknowledged, and %d are there", name, written, have)
		}
		return written, silence
	}
}

// gap tells how long no write is acknowledged when something is done to the cluster, until what it leads to is over.
func (c *theCluster) gap(t *testing.T, name string, do, over func() error) {
	t.Helper()
	end := c.load(t, name)
	for i := range 100 { // so that the others are at work
		must(t, once(t.Context(), c.d, fmt.Sprint(name, " before ", i)))
	}
	must(t, do())
	awaitNo(t, over)
	must(t, once(t.Context(), c.d, name+" after"))
	written, silence := end()
	t.Logf("%s: for %.1f s no write was acknowledged; %d were, and all are there", name, silence.Seconds(), written)
}

// awaitNo asks until there is no error.
func awaitNo(t *testing.T, ok func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestCluster does to three servers under Patroni what happens to servers. Those parts that need a failover are in TestFailover.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	for _, part := range []struct {
		name string
		do   func(*theCluster, *testing.T)
	}{
		{"each server is asked", (*theCluster).eachIsAsked},
		{"a standby is no primary", (*theCluster).standbyIsRefused},
		{"a primary that was replaced is none", (*theCluster).replacedIsRefused},
		{"the synchronous standby stands still", (*theCluster).standbyStandsStill},
		{"the process of the primary is lost", (*theCluster).processIsLost},
		{"the primary is cut off with its node", (*theCluster).primaryIsCutOff},
		{"all standbys stand still", (*theCluster).allStandbysStandStill},
	} {
		must(t, c.WaitHealthy(t.Context()))
		if !t.Run(part.name, func(t *testing.T) { part.do(c, t) }) {
			return
		}
	}
}

// eachIsAsked: a survey sees one primary, which one standby is synchronous with, and where each of them is.
func (c *theCluster) eachIsAsked(t *testing.T) {
	var all []db.Server
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var err error
		all, err = db.Survey(t.Context(), c.url, 10*time.Second)
		must(t, err)
		// The standby that nobody waits for may have the database a little later.
		if !slices.ContainsFunc(all, func(s db.Server) bool { return s.Err != nil || s.Standby && s.Position == 0 }) || time.Now().After(end) {
			break
		}
	}
	synchronous, standbys := 0, 0
	for i, s := range all {
		if s.Err != nil || s.Address != c.Members[i].Postgres() || s.Position == 0 || s.Connections.Most == 0 || s.Settings["wal_sender_timeout"] != "4000ms" {
			t.Errorf("server %d: %+v", i, s)
		}
		if s.Standby {
			standbys++
		}
		for _, f := range s.Standbys {
			if f.Sync == "sync" && !s.Standby && s.Settings["synchronous_standby_names"] != "" && f.State == "streaming" {
				synchronous++
			}
		}
	}
	if len(all) != 3 || standbys != 2 || synchronous != 1 {
		t.Errorf("%d servers, %d standbys, %d of them synchronous: %+v", len(all), standbys, synchronous, all)
	}
}

// replacedIsRefused: who has seen a primary of a higher timeline does not write to one of a lower.
func (c *theCluster) replacedIsRefused(t *testing.T) {
	d := c.open(t, db.Options{URL: c.url, Durability: db.Synchronous})
	defer d.Close()
	must(t, once(t.Context(), d, "before it is replaced"))
	d.ReplacedBy(1000)
	err := d.Tx(t.Context(), func(tx *db.Tx) error { return insert(t.Context(), tx, "replaced.1", 1) })
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "was replaced by another") {
		t.Errorf("a primary of a lower timeline: %v", err)
	}
	d.ReplacedBy(0)
	must(t, once(t.Context(), d, "after"))
}

// standbyIsRefused: a URL that names no primary is refused in words that say so; one that names a standby first is not.
func (c *theCluster) standbyIsRefused(t *testing.T) {
	standby, primary := c.synchronous(t), c.primary(t)
	_, err := db.Open(t.Context(), db.Options{URL: standby.URL("chancery", "authority")})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "the one that was given is a standby") {
		t.Errorf("a standby was given as the primary: %v", err)
	}
	url := fmt.Sprintf("postgres://chancery@%s,%s/authority?sslmode=disable", standby.Postgres(), primary.Postgres())
	d := c.open(t, db.Options{URL: url, Durability: db.Synchronous})
	must(t, once(t.Context(), d, "standby first"))
	must(t, d.Close())
}

func (c *theCluster) standbyStandsStill(t *testing.T) {
	frozen := c.synchronous(t)
	c.gap(t, "synchronous standby frozen", func() error { return frozen.Freeze(cluster.Process) }, func() error { return c.another(t, frozen) })
	must(t, frozen.Thaw(cluster.Process))
}

// another is an error until commits wait for another standby than the one.
func (c *theCluster) another(t *testing.T, than *cluster.Member) error {
	now, err := c.Synchronous(t.Context())
	if err == nil && now == than {
		err = fmt.Errorf("commits still wait for %s", now.Name)
	}
	return err
}

func (c *theCluster) processIsLost(t *testing.T) {
	primary := c.primary(t)
	was, err := primary.Postmaster()
	must(t, err)
	c.gap(t, "PostgreSQL process killed", func() error { return primary.Kill(cluster.Process) }, func() error {
		now, err := primary.Postmaster()
		if err == nil && now == was {
			err = fmt.Errorf("the postmaster is still process %d", now)
		}
		return err
	})
}

// primaryIsCutOff: who is cut off together with the primary hears of no success, and what he tried is settled once all are together again.
func (c *theCluster) primaryIsCutOff(t *testing.T) {
	primary := c.primary(t)
	aside := c.open(t, db.Options{URL: primary.Local("chancery", "authority"), Durability: db.Synchronous, Patience: 3 * time.Second})
	defer aside.Close()
	must(t, once(t.Context(), aside, "aside before"))
	must(t, primary.Cut())
	err := aside.Tx(t.Context(), func(tx *db.Tx) error { return insert(t.Context(), tx, "aside", 1) })
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("cut off, a write was answered with %v", err)
	}
	must(t, primary.Heal())
	must(t, c.WaitHealthy(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, c.settle(ctx, "aside"))
}

// settle repeats a write of which nobody knows whether it was done.
func (c *theCluster) settle(ctx context.Context, id string) error {
	for {
		err := c.d.Tx(ctx, func(tx *db.Tx) error {
			n, err := tx.Exec(ctx, "UPDATE items SET n = n WHERE id = $1", id)
			if err != nil || n == 1 {
				return err
			}
			return insert(ctx, tx, id, 1)
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// allStandbysStandStill: a COMMIT that waits is not called done when its session is ended, and afterwards writes are refused before anything
// is sent.
func (c *theCluster) allStandbysStandStill(t *testing.T) {
	ctx := t.Context()
	primary := c.primary(t)
	d := c.open(t, db.Options{URL: c.url, Durability: db.Synchronous, Patience: 8 * time.Second})
	defer d.Close()
	must(t, once(ctx, d, "all before"))
	answer := make(chan error, 1)
	// In the middle of the transaction: a primary that notices their silence before it begins would not let it.
	freeze := sync.OnceFunc(func() {
		for _, m := range c.Members {
			if m == primary {
				continue
			}
			if err := m.Freeze(cluster.Process); err != nil {
				t.Error(err)
			}
		}
	})
	go func() {
		answer <- d.Tx(ctx, func(tx *db.Tx) error {
			err := insert(ctx, tx, "waits", 1)
			freeze()
			return err
		})
	}()
	awaitNo(t, func() error { // its session is ended as an administrator does, or a fast shutdown
		ended, err := primary.Ask(ctx, "postgres",
			"SELECT COALESCE(bool_or(pg_terminate_backend(pid)), false) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = 'authority'")
		if err == nil && ended != "true" {
			err = errors.New("no COMMIT waits")
		}
		return err
	})
	if err := <-answer; !errors.Is(err, db.ErrUnknownOutcome) {
		t.Errorf("a COMMIT whose session was ended in its wait: %v", err)
	}
	for {
		err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "refused", 1) })
		if err == nil || !fault.Is(err, fault.Unavailable) {
			t.Fatalf("nobody follows, and a write is answered with %v", err)
		}
		if !errors.Is(err, db.ErrUnknownOutcome) && strings.Contains(err.Error(), "no synchronous standby") {
			break // once the primary has noticed that nobody answers
		}
		must(t, ctx.Err())
	}
	for _, m := range c.Members {
		if m != primary {
			must(t, m.Thaw(cluster.Process))
		}
	}
	for _, id := range []string{"waits", "refused"} {
		wait, cancel := context.WithTimeout(ctx, time.Minute)
		must(t, c.settle(wait, id))
		cancel()
	}
}
