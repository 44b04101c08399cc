package db

import (
	"context"
	"database/sql"
	"runtime"
	"time"
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

// Lag is how far a standby is behind a primary.
type Lag struct{ lag }

// Primary is what the primary has at a time: octets of its log, and a heartbeat.
func (l *Lag) Primary(at time.Time, log, beat int64) { l.primary(position{at, log, beat}) }

// Standby is what the standby has.
func (l *Lag) Standby(at time.Time, log, beat int64) { l.standby(position{at, log, beat}) }

// Forget is of either server that goes away.
func (l *Lag) Forget() { l.forget() }

// Stands reports whether the standby is left alone while the primary answers, and whether it is called behind.
func (l *Lag) Stands() (late, behind bool) { return l.late.Load(), l.since.Load() != nil }

// Measured is how far behind it is.
func (l *Lag) Measured() *Behind { return l.behind.Load() }

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
func Ruled(d *DB) bool { return d.standby.ruled.history.Load() != 0 }

// WaitBriefly has locks be waited for as briefly as after one that was waited for in vain.
func WaitBriefly(d *DB) { d.held.Store(time.Now().UnixNano()) }

// EndStanding ends what a session waits for and has stood still for a while.
func (d *DB) EndStanding(ctx context.Context, pid int64) { d.endStanding(ctx, pid) }
