package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/jackc/pgx/v5"
)

// sent is a statement that waits for company on its way to the server.
type sent struct {
	call  *call // whose function sent it; nil for a writer of BeforeCommit
	query string
	args  []any

	fenced bool // that it touches no row means that this process may not write
}

// sender is a connection that takes several statements in one round trip. done is how many passed.
type sender interface {
	send(ctx context.Context, statements []sent) (done int, err error)
}

// flush sends what waits. On failure it says whose statement failed.
func (b *batch) flush(conn *sql.Conn) (*call, error) {
	if len(b.sent) == 0 {
		return nil, nil
	}
	if !b.careful { // a savepoint may take back what is sent after it
		if err := b.addMark(); err != nil {
			return nil, err
		}
	}
	statements := b.sent
	b.sent, b.wrote = nil, true
	done, handled := 0, false
	err := conn.Raw(func(driverConn any) (err error) {
		if s, ok := driverConn.(sender); ok {
			handled = true
			done, err = s.send(context.Background(), statements)
		}
		return err
	})
	for ; err == nil && !handled && done < len(statements); done++ { // a connector that a test has wrapped
		s, result := statements[done], driver.Result(nil)
		if result, err = conn.ExecContext(context.Background(), s.query, s.args...); err == nil && s.fenced {
			var n int64
			if n, err = result.RowsAffected(); err == nil && n == 0 {
				err = fenced()
			}
		}
		if err != nil {
			break
		}
	}
	if errors.Is(err, ErrFenced) {
		err = b.askFence(conn)
	}
	if err != nil {
		at := statements[min(done, len(statements)-1)]
		if at.fenced && Forbidden(err) {
			b.d.ends.Store(false) // a node of a release before took that right back; the next mark does without
		}
		return at.call, err
	}
	return nil, nil
}

// addMark has the mark sent with what waits, if it was not sent yet.
func (b *batch) addMark() error {
	s, err := b.mark()
	if s != nil {
		b.sent = append(b.sent, *s)
	}
	return err
}

// flushLast sends what waits before COMMIT. A function's statement that fails here has taken its neighbours' writes with
// it, so the batch is run again with savepoints.
func (b *batch) flushLast(conn *sql.Conn) (disposition, error) {
	if b.wrote || len(b.sent) > 0 {
		if err := b.addMark(); err != nil {
			return judge(err), err
		}
	}
	owner, err := b.flush(conn)
	if err == nil {
		return final, nil
	}
	if kind := judge(err); kind != final {
		b.keptFrom(owner, err)
		return kind, err
	}
	if owner != nil && len(b.calls) > 1 {
		return again, errRetry
	}
	return final, err
}

func (c *postgresConn) send(ctx context.Context, statements []sent) (done int, err error) {
	c.watchdog.Reset(c.connector.patience)
	defer c.watchdog.Stop()
	var queue pgx.Batch
	for _, s := range statements {
		queue.Queue(s.query, s.args...)
	}
	results := c.Conn.Conn().SendBatch(ctx, &queue)
	for _, s := range statements {
		tag, failed := results.Exec()
		if failed == nil && s.fenced && tag.RowsAffected() == 0 {
			failed = fenced()
		}
		if err = failed; err != nil {
			break
		}
		done++
	}
	if end := results.Close(); err == nil {
		err = end
	}
	return done, markLost(err)
}
