package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"chancery/internal/fault"
)

// A fence is what one process writes by. Others raise it when its node is taken away, and another process of the same name takes it over;
// from the commit of either on, nothing that this one still sends is committed: the row is written in each transaction, so of two at once
// the later begins anew and finds the other's. What a process merely remembers of its right to write would be true until it looks again,
// and one that was frozen after its look goes on where it stood.
type fence struct {
	node   string
	number int64
}

// ErrFenced is within what a process hears that writes as a node and is none any more.
var ErrFenced = errors.New("the fence is another's")

func fenced() error {
	// It is the node that may not, and no caller of it: another node takes what he sends.
	return (&fault.Error{Kind: fault.Unavailable, Err: ErrFenced,
		Message: "this process no longer writes for its node: the node was removed, or another process has started as it; nothing was changed"}).
		WithHint("chancery clone list, at another node")
}

type fenceKey struct{}

// TakeFence has this process alone write as a node from the commit of tx on; number is greater than that of any process before. A fence
// that was raised it does not take: ErrFenced. SQLite, which one process has open, needs none.
func TakeFence(tx *Tx, node string, number int64) {
	if tx.d.dialect != Postgres {
		return
	}
	tx.BeforeCommit(fenceKey{}, &fence{node, number}, func(ctx context.Context, tx *Tx, items []any) error {
		f := items[len(items)-1].(*fence)
		n, err := tx.Exec(ctx, `INSERT INTO write_mark (node, number, fence) VALUES ($1, 0, $2)
			ON CONFLICT (node) DO UPDATE SET fence = excluded.fence WHERE write_mark.fence <> -1`, f.node, f.number)
		if err == nil && n == 0 {
			err = fenced()
		}
		if err == nil {
			tx.batch.fence = f
		}
		return err
	})
}

// LowerFence lets a process take a node's fence again that was raised: who had the name is gone, and an administrator has given it to
// another. What was shut out stays so.
func LowerFence(ctx context.Context, tx *Tx, node string) error {
	_, err := tx.Exec(ctx, `UPDATE write_mark SET fence = 0 WHERE node = $1 AND fence = -1`, node)
	return err
}

// RaiseFence has nobody write as a node from the commit of tx on, until LowerFence. It is for a database that the node
// does not write to just now: a serializable transaction begins anew with each write of it. See DB.RaiseFence.
func RaiseFence(ctx context.Context, tx *Tx, node string) error {
	_, err := tx.Exec(ctx, raiseFence, node)
	return err
}

// Writing names the nodes that have written and whose fence was not raised since.
func Writing(ctx context.Context, tx *Tx) (map[string]bool, error) {
	rows, err := tx.Query(ctx, `SELECT node FROM write_mark WHERE fence <> -1`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]bool{}
	for rows.Next() {
		var node string
		if err := rows.Scan(&node); err != nil {
			return nil, err
		}
		found[node] = true
	}
	return found, rows.Err()
}

const raiseFence = `INSERT INTO write_mark (node, number, fence) VALUES ($1, 0, -1) ON CONFLICT (node) DO UPDATE SET fence = excluded.fence`

// raiseTries is how often DB.RaiseFence waits a second for the row: longer than a server lets a process stand still that has it (limitIdle).
const raiseTries = 20

// RaiseFence has nobody write as a node from its return on, until LowerFence. It waits for what the node is just
// committing, and not in the lane, so that this node's other writes do not wait with it.
func (d *DB) RaiseFence(ctx context.Context, node string) error {
	if d.dialect != Postgres {
		return d.Tx(ctx, func(tx *Tx) error { return RaiseFence(ctx, tx, node) })
	}
	for try := 1; ; try++ {
		err := d.aside(ctx, func(conn *sql.Conn) error {
			if _, err := conn.ExecContext(ctx, `SET LOCAL lock_timeout = '1s'`); err != nil {
				return err
			}
			// The stronger lock is for what asOwner holds; the node's own writes wait for either.
			if _, err := conn.ExecContext(ctx, `SELECT 1 FROM write_mark WHERE node = $1 FOR UPDATE`, node); err != nil {
				return err
			}
			_, err := conn.ExecContext(ctx, raiseFence, node)
			return err
		})
		refused, ok := errors.AsType[*pgconn.PgError](err)
		waited := ok && refused.Code == "55P03" // lock_not_available
		if err == nil || !waited && judge(err) != again || try == raiseTries {
			return d.explain(err)
		}
		if err := d.endStanding(ctx, node); err != nil {
			return d.explain(err)
		}
	}
}

// endStanding ends the connection that has a node's row and says nothing: its process stands still between two statements. One that waits
// for its COMMIT is left alone, since that would be done without a standby. Whose login is another's, the server does not let us end.
func (d *DB) endStanding(ctx context.Context, node string) error {
	_, err := d.writer.ExecContext(ctx, `SELECT pg_terminate_backend(a.pid) FROM write_mark w JOIN pg_stat_activity a ON a.backend_xid = w.xmax
		WHERE w.node = $1 AND a.state = 'idle in transaction' AND pg_has_role(a.usesysid, 'USAGE')`, node)
	return err
}

// aside runs fn in a transaction beside the lane, for what waits long. It is READ COMMITTED: a statement that has waited for another's row
// goes on with what that made of it. What this process may not write through the lane, it may not write here either.
func (d *DB) aside(ctx context.Context, fn func(conn *sql.Conn) error) error {
	if err := d.Away(); err != nil {
		return err
	}
	if err := d.guarded(ctx); err != nil {
		return err
	}
	conn, err := d.writer.Conn(ctx)
	if err != nil {
		return d.explain(err)
	}
	clean := false
	defer func() {
		if !clean {
			discard(conn)
		}
		conn.Close()
	}()
	for _, statement := range []string{d.beginWrite, `SET TRANSACTION ISOLATION LEVEL READ COMMITTED`} {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return d.explain(err)
		}
	}
	if err = d.holdFence(ctx, conn); err == nil {
		err = fn(conn)
	}
	if err != nil {
		_, end := conn.ExecContext(context.Background(), "ROLLBACK")
		clean = end == nil
		return err
	}
	if _, err := conn.ExecContext(context.Background(), "COMMIT"); err != nil {
		if judgeCommit(err) == unknown {
			err = fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
		}
		return d.explain(err)
	}
	clean = true
	return nil
}

// holdFence keeps the fence of this process from being raised until the transaction ends, if it is its own still. Its writes through the
// lane do not wait for that.
func (d *DB) holdFence(ctx context.Context, conn *sql.Conn) error {
	held := d.fence.Load()
	if held == nil {
		return nil
	}
	var own int
	err := conn.QueryRowContext(ctx, `SELECT 1 FROM write_mark WHERE node = $1 AND fence = $2 FOR KEY SHARE`, held.node, held.number).Scan(&own)
	if errors.Is(err, sql.ErrNoRows) {
		return fenced()
	}
	return d.explain(err)
}
