package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"chancery/internal/fault"
)

// A session that waits for its COMMIT keeps its locks until a standby has answered, which takes as long as a standby stands still. That is
// no session that somebody left open: the lane waits on behind it, for as long as it would wait for its own COMMIT. PostgreSQL tells whom a
// session waits for only while it waits, so a second connection asks beside it.

const (
	// blockersAfter is how long a transaction takes before it is asked whom it waits for, and blockersEvery how often then: within each wait that
	// heldBriefly leaves, at least once.
	blockersAfter = 300 * time.Millisecond
	blockersEvery = 300 * time.Millisecond
	// blindTries is how often a wait is repeated of which nothing was seen, on a machine that has much to do.
	blindTries = 2
)

// askBlockers asks for those at the end of the queue that a session stands in: who waits for a lock himself holds nobody up by his own will.
// 0 is a prepared transaction. Of other roles' sessions pg_read_all_stats shows what they do, and without that nothing does.
const askBlockers = `WITH RECURSIVE holds(pid) AS (SELECT p FROM unnest(pg_blocking_pids($1)) AS p
		UNION SELECT p FROM holds b, unnest(pg_blocking_pids(b.pid)) AS p)
	SELECT b.pid, COALESCE(a.usename, ''), COALESCE(a.state, ''), COALESCE(a.wait_event, '') = 'SyncRep'
	FROM holds b LEFT JOIN pg_stat_activity a ON a.pid = b.pid WHERE b.pid = 0 OR cardinality(pg_blocking_pids(b.pid)) = 0`

// blockers looks at whom one transaction of the lane waits for.
type blockers struct {
	d     *DB
	pid   int64
	timer *time.Timer
	over  context.CancelFunc
	until context.Context

	mu   sync.Mutex
	seen sight // guarded by mu
}

// sight is whom a transaction was seen to wait for.
type sight struct {
	commits  bool      // a COMMIT that waits for its standby was among them
	others   []string  // the rest, at the last look that saw any
	sessions []Session // whose those are
	err      error     // why nobody can be seen
}

var errNoProcess = errors.New("the server process of the connection is not known")

// blank says that a look would have shown something, and none has.
func (s sight) blank() bool { return !s.commits && len(s.others) == 0 && s.err == nil }

// watchBlockers begins to look, if the transaction takes long.
func (d *DB) watchBlockers(conn *sql.Conn) *blockers {
	w := &blockers{d: d}
	_ = conn.Raw(func(inner any) error {
		if c, ok := inner.(*postgresConn); ok {
			w.pid = int64(c.Conn.Conn().PgConn().PID())
		}
		return nil
	})
	if w.pid == 0 {
		return w
	}
	w.until, w.over = context.WithCancel(context.Background())
	w.timer = time.AfterFunc(blockersAfter, w.run)
	return w
}

// limitWaits bounds how long a transaction that has begun waits for locks, and begins to look at whom it waits for.
func (b *batch) limitWaits(conn *sql.Conn) (*blockers, error) {
	if b.d.dialect != Postgres {
		return &blockers{}, nil
	}
	if since := time.Now().UnixNano() - b.d.held.Load(); since < int64(stuckFor) {
		if _, err := conn.ExecContext(context.Background(), heldBriefly); err != nil {
			return nil, err
		}
	}
	return b.d.watchBlockers(conn), nil
}

// stop ends the looking and returns what was seen. It waits for no look.
func (w *blockers) stop() sight {
	if w.timer == nil {
		return sight{err: errNoProcess}
	}
	w.timer.Stop()
	w.over()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

func (w *blockers) run() {
	for w.until.Err() == nil {
		w.look()
		if !sleep(w.until, blockersEvery) {
			return
		}
	}
}

func (w *blockers) look() {
	// Its own bound: a look that is broken off with the transaction would cost the watch its connection.
	ctx, cancel := context.WithTimeout(context.Background(), watchPatience)
	defer cancel()
	now, err := w.d.askBlockers(ctx, w.pid)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		w.seen.err = err
	case now.commits || len(now.others) > 0:
		w.seen.commits, w.seen.others, w.seen.sessions, w.seen.err = w.seen.commits || now.commits, now.others, now.sessions, nil
	}
}

func (d *DB) askBlockers(ctx context.Context, pid int64) (s sight, err error) {
	rows, err := d.primary.asking.QueryContext(ctx, askBlockers, pid)
	if err != nil {
		return s, err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			blocker     int64
			role, state string
			commits     bool
		)
		if err := rows.Scan(&blocker, &role, &state, &commits); err != nil {
			return s, err
		}
		switch {
		case commits:
			s.commits = true
		case blocker == 0:
			s.others = append(s.others, "a prepared transaction")
		case state == "":
			s.others = append(s.others, fmt.Sprintf("process %d of %s, which does not show what it does", blocker, role))
		default:
			s.others = append(s.others, fmt.Sprintf("process %d of %s, %s", blocker, role, state))
		}
		if !commits {
			s.sessions = append(s.sessions, Session{blocker, role, s.others[len(s.others)-1]})
		}
	}
	return s, rows.Err()
}

// waitsOn says whether a batch is run again whose lock was waited for in vain: whom it waits for commits, and there is patience for that; or
// nobody was seen yet.
func (b *batch) waitsOn() bool {
	switch {
	case time.Since(b.since) >= b.d.patience:
		return false
	case b.seen.commits:
		return true
	case b.seen.blank() && b.blind < blindTries:
		b.blind++
		return true
	}
	return false
}

// lockError is a lock that was waited for in vain, with whom for.
type lockError struct {
	err  error
	seen sight
}

func (e *lockError) Error() string { return e.err.Error() }

func (e *lockError) Unwrap() error { return e.err }

// inVain notes whom was waited for. His name is for the log, and not for whoever wanted to write.
func (b *batch) inVain(err error) error {
	if !b.seen.commits {
		b.d.log.Warn("a lock was waited for in vain", "held_by", strings.Join(b.seen.others, "; "), "look_failed", b.seen.err, "error", err)
	}
	return &lockError{err, b.seen}
}

// refusedLock says what was waited for, and what ends it.
func refusedLock(err error, seen sight) error {
	if seen.commits {
		return (&fault.Error{Kind: fault.Unavailable, Err: err,
			Message: "what this change needs is held by a change that waits for the synchronous standby of the database, which did not answer in time; nothing was changed"}).
			WithHint("try again; chancery doctor database says which standbys are there")
	}
	return (&fault.Error{Kind: fault.Unavailable, Err: fmt.Errorf("%w: %w", ErrHeld, err),
		Message: "another session of the database holds what this change needs, and did not let go of it in some seconds; nothing was changed"}).
		WithHint("try again; if it stays so, the node's log says whose session it is: one that is idle in transaction was left open, and one that waits for SyncRep " +
			"waits for a standby (pg_stat_activity, pg_blocking_pids)")
}
