package db

import (
	"context"
	"database/sql"

	"github.com/jackc/pgx/v5"
)

// sent is a statement that waits for company on its way to the server.
type sent struct {
	call  *call // whose function sent it; nil for a writer of BeforeCommit
	query string
	args  []any
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
		if _, err = conn.ExecContext(context.Background(), statements[done].query, statements[done].args...); err != nil {
			break
		}
	}
	if err != nil {
		return statements[min(done, len(statements)-1)].call, err
	}
	return nil, nil
}

// flushLast sends what waits before COMMIT. A function's statement that fails here has taken its neighbours' writes with
// it, so the batch is run again with savepoints.
func (b *batch) flushLast(conn *sql.Conn) (disposition, error) {
	owner, err := b.flush(conn)
	if err == nil {
		return final, nil
	}
	if kind := judge(err); kind != final {
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
	for range statements {
		if _, err = results.Exec(); err != nil {
			break
		}
		done++
	}
	if end := results.Close(); err == nil {
		err = end
	}
	return done, markLost(err)
}
