package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"time"
)

// Read runs fn in a read-only transaction that sees one state of the database: repeatable read on PostgreSQL, where it may
// be a standby's and so a little old (ReadAge), a snapshot on SQLite. fn may run again when the connection is lost or a
// standby cancels the query, then on the primary where the standby is not there.
func (d *DB) Read(ctx context.Context, fn func(tx *Tx) error) error {
	for attempt, alone, lost := 0, false, false; ; attempt++ {
		pool, err := d.readFrom(ctx)
		if err != nil {
			return err
		}
		if lost && d.Away() == nil {
			pool = d.writer // nobody watches yet, or has not seen that the standby is gone
		}
		kind, err := d.readOnce(ctx, pool, d.floorOf(pool, alone), fn)
		if err == errBehind {
			if kind, err = d.readOnce(ctx, d.writer, anyState, fn); kind == broken {
				alone = true // the standby is what there is
			}
		}
		if kind == final || attempt >= 3 || ctx.Err() != nil {
			return d.explain(err)
		}
		lost = kind == broken && d.standby != nil && pool == d.reader
		if !sleep(ctx, backoff(attempt)) {
			return d.explain(err)
		}
	}
}

// ReadSnapshot is Read for long streams, as a backup's: always on the database that is written to, and run once. Writers
// go on meanwhile.
func (d *DB) ReadSnapshot(ctx context.Context, fn func(tx *Tx) error) error {
	pool := d.reader
	if d.dialect == Postgres {
		pool = d.writer
	}
	if err := d.Away(); err != nil {
		return err
	}
	_, err := d.readOnce(ctx, pool, anyState, fn)
	return d.explain(err)
}

// demand is what a state must have to be read: all writes up to a number, where it is above 0.
type demand struct {
	floor  int64
	insist bool // it is refused otherwise, and not only noted
}

// anyState is a state as good as any other.
var anyState = demand{}

// floorOf is what is asked of a pool's state: a standby is to have what this process has acknowledged, if the primary can be asked
// instead.
func (d *DB) floorOf(pool *sql.DB, alone bool) demand {
	if d.standby == nil || pool != d.reader {
		return anyState
	}
	floor := d.floor.Load()
	if floor == 0 {
		return anyState
	}
	return demand{floor, !alone && d.primary.away.Load() == nil}
}

// readOnce returns fn's error, or what broke the transaction, and whether to try again.
func (d *DB) readOnce(ctx context.Context, pool *sql.DB, wanted demand, fn func(tx *Tx) error) (kind disposition, err error) {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return judge(err), err
	}
	tx := &Tx{d: d, conn: conn, standby: d.standby != nil && pool == d.reader}
	clean := false
	defer func() { // also when fn panics
		tx.finish()
		if !clean {
			discard(conn)
		}
		conn.Close()
	}()
	if _, err := conn.ExecContext(ctx, d.beginRead); err != nil {
		return judge(err), err
	}
	if wanted.floor > 0 {
		whole, err := d.caughtUp(ctx, tx, wanted.floor)
		if err != nil {
			return judge(err), err
		}
		if !whole && wanted.insist {
			_, end := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
			clean = end == nil
			return final, errBehind
		}
		tx.lacks = !whole
	}
	err = fn(tx)
	tx.finish()
	if tx.failed != nil && ctx.Err() == nil {
		kind = judge(tx.failed)
	}
	if kind == broken {
		return kind, err
	}
	if _, end := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK"); end == nil {
		clean = true
	}
	if err == nil && kind != final {
		err = tx.failed
	}
	return kind, err
}

// discard makes the pool drop the connection instead of using it again.
func discard(conn *sql.Conn) {
	conn.Raw(func(any) error { return driver.ErrBadConn })
}

// backoff grows from 2 ms; the jitter is the scheduler's.
func backoff(attempt int) time.Duration { return 2 * time.Millisecond << min(attempt, 6) }

// sleep waits unless ctx ends first, and says whether it did wait.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
