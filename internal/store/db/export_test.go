package db

import (
	"context"
	"database/sql"
	"runtime"
)

// AwaitQueue returns when n calls wait in the lane, so that tests need no sleeps.
func AwaitQueue(d *DB, n int) {
	for {
		d.lane.mu.Lock()
		queued := len(d.lane.queue)
		d.lane.mu.Unlock()
		if queued >= n {
			return
		}
		runtime.Gosched()
	}
}

// AcquireAt is Acquire at a given time.
var AcquireAt = (*DB).acquireAt

// Anonymous is the text of a statement that SQLite is given.
func Anonymous(query string) string { return anonymous(query) }

// ReplacedBy has this process have seen a primary of another timeline, and connect anew.
func (d *DB) ReplacedBy(timeline int64) {
	d.primary.timeline.highest.Store(timeline)
	d.primary.open.closeAll()
}

// Aside runs fn in a transaction beside the lane.
func (d *DB) Aside(ctx context.Context, fn func(conn *sql.Conn) error) error { return d.aside(ctx, fn) }

// Ruled reports whether the server that is read was seen to be the primary.
func Ruled(d *DB) bool { return d.standby.ruled.Load() }

// EndStanding ends what a session waits for and has stood still for a while.
func (d *DB) EndStanding(ctx context.Context, pid int64) { d.endStanding(ctx, pid) }
