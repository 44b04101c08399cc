package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"time"
)

// Read runs fn in a read-only transaction that sees one state of the database: repeatable read on PostgreSQL, where it may
// be a standby's and so a little old (ReadAge), a snapshot on SQLite. fn may run again when the connection is lost or a
// standby cancels the query.
func (d *DB) Read(ctx context.Context, fn func(tx *Tx) error) error {
	for attempt := 0; ; attempt++ {
		kind, err := d.readOnce(ctx, d.reader, fn)
		if kind == final || attempt >= 3 || ctx.Err() != nil {
			return d.explain(err)
		}
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
	_, err := d.readOnce(ctx, pool, fn)
	return d.explain(err)
}

// readOnce returns fn's error, or what broke the transaction, and whether to try again.
func (d *DB) readOnce(ctx context.Context, pool *sql.DB, fn func(tx *Tx) error) (kind disposition, err error) {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return judge(err), err
	}
	tx := &Tx{d: d, conn: conn}
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
