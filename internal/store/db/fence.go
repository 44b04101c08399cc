package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

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

// ErrSuspended is within what a process hears that writes as a node which is just being removed: it is one still if that fails.
var ErrSuspended = errors.New("the fence is suspended")

// shutOut says why a fence whose number is now another does not let a process write.
func shutOut(number int64) error {
	if number != suspended {
		return fenced()
	}
	return (&fault.Error{Kind: fault.Unavailable, Err: ErrSuspended, Message: "this node is just being removed, and writes nothing meanwhile; nothing was changed"}).
		WithHint("chancery clone list, at another node")
}

// suspended is the number of a fence between SuspendFence and what follows it; that of a raised one is -1.
const suspended = -2

// askFence tells a process that is shut out why it is.
func (b *batch) askFence(conn *sql.Conn) error {
	held := b.d.fence.Load()
	if held == nil || b.fence != nil {
		return fenced()
	}
	var number int64
	if err := conn.QueryRowContext(context.Background(), `SELECT fence FROM write_mark WHERE node = $1`, held.node).Scan(&number); err != nil {
		return fenced()
	}
	return shutOut(number)
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
		// The stronger lock waits for what the process before holds on to (holdFence): it ends before this one begins.
		if _, err := tx.Exec(ctx, lockFence, f.node); err != nil {
			return err
		}
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
	_, err := tx.Exec(ctx, `UPDATE write_mark SET fence = 0, suspended_until = 0 WHERE node = $1 AND fence = -1`, node)
	return err
}

// RaiseFence has nobody write as a node from the commit of tx on, until LowerFence. A serializable transaction begins anew with each write
// of the node, so one that may be busy is suspended first.
func RaiseFence(ctx context.Context, tx *Tx, node string) error {
	_, err := tx.Exec(ctx, `INSERT INTO write_mark (node, number, fence) VALUES ($1, 0, -1) ON CONFLICT (node) DO UPDATE SET fence = excluded.fence`, node)
	return err
}

// ResumeFence has the process of a node whose fence was suspended go on, by its number, before the suspension ends by itself. It takes the
// suspension's end back: a program from before it suspends without one, and an old one would end that at once.
func ResumeFence(ctx context.Context, tx *Tx, node string, number int64) error {
	_, err := tx.Exec(ctx, `UPDATE write_mark SET fence = $2, suspended_until = 0 WHERE node = $1 AND fence = -2`, node, number)
	return err
}

// Writing names the nodes that have written and whose fence was not raised since.
func Writing(ctx context.Context, tx *Tx) (map[string]bool, error) {
	return fencesOf(ctx, tx, `SELECT node FROM write_mark WHERE fence <> -1`)
}

// Suspended names the nodes whose fence is suspended. It is true of those whose process could go on by now, and has not.
func Suspended(ctx context.Context, tx *Tx) (map[string]bool, error) {
	found, err := fencesOf(ctx, tx, `SELECT node FROM write_mark WHERE fence = -2`)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	now, err := tx.Clock(ctx)
	if err != nil {
		return nil, err
	}
	over, err := fencesOf(ctx, tx, `SELECT node FROM write_mark WHERE fence = -2 AND suspended_until BETWEEN 1 AND $1`, Micros(now))
	for node := range found {
		found[node] = over[node]
	}
	return found, err
}

func fencesOf(ctx context.Context, tx *Tx, query string, args ...any) (map[string]bool, error) {
	rows, err := tx.Query(ctx, query, args...)
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

// lockFence excludes holdFence, which the row's own updates do not; the writes of the node wait for either.
const lockFence = `SELECT 1 FROM write_mark WHERE node = $1 FOR UPDATE`

const (
	// suspendTries is how often SuspendFence waits a second for the row: longer than a server lets a process stand still that has it
	// (limitIdle).
	suspendTries = 20
	// suspendedFor is how long a suspension lasts: many times what follows it takes, and no longer than a node may be silent that is the only one
	// left, where who suspended it is gone.
	suspendedFor = 20 * time.Second
	// standsAfter is when, of that second, those are ended that stand still.
	standsAfter = 700 * time.Millisecond
)

// ErrStanding says that somebody has a node's row and does not let go of it, and could not be ended.
var ErrStanding = errors.New("the row of the fence is another's")

// HeldBy is who held what the change needed that was refused with err, ErrHeld or ErrStanding, as far as was seen. Who stands in the queue for
// it is none of them.
func HeldBy(err error) []Session {
	if h, ok := errors.AsType[*holders](err); ok {
		return h.sessions
	}
	if waited, ok := errors.AsType[*lockError](err); ok && !waited.seen.commits {
		return waited.seen.sessions
	}
	return nil
}

// SuspendFence has nobody write as a node from its return on, until RaiseFence or ResumeFence, or until another process takes its fence;
// what the node had begun by then is committed or never will be. After suspendedFor the node's process goes on by itself (mark), since who
// suspended it may have ended; a raise that comes later holds all the same. It waits for what the node is just committing, and not in the
// lane, so that this node's other writes do not wait with it. SQLite has one process, which is not removed while it works.
func (d *DB) SuspendFence(ctx context.Context, node string) error {
	if d.dialect != Postgres {
		return nil
	}
	who := &holders{}
	for try := 1; ; try++ {
		err := d.aside(ctx, func(conn *sql.Conn) error {
			held, err := d.lockAside(ctx, conn, node)
			if len(held) > 0 {
				who.sessions = held
			}
			if err != nil {
				return err
			}
			_, err = conn.ExecContext(ctx, `INSERT INTO write_mark (node, number, fence, suspended_until)
				VALUES ($1, 0, -2, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) + $2)
				ON CONFLICT (node) DO UPDATE SET fence = excluded.fence, suspended_until = excluded.suspended_until,
					suspended = CASE WHEN write_mark.fence = -2 THEN write_mark.suspended ELSE write_mark.fence END
				WHERE write_mark.fence <> -1`, node, suspendedFor.Microseconds())
			return err
		})
		refused, ok := errors.AsType[*pgconn.PgError](err)
		waited := ok && refused.Code == lockNotAvailable
		switch {
		case err == nil || !waited && judge(err) != again:
			return d.explain(err)
		case try == suspendTries && waited:
			session, cause := "another session", ErrStanding
			if len(who.sessions) > 0 {
				session, cause = who.String(), errors.Join(ErrStanding, who)
			}
			return &fault.Error{Kind: fault.Unavailable, Err: cause,
				Message: fmt.Sprintf("%s has the row of node %s in write_mark, and did not let go of it in %d s", session, node, suspendTries)}
		case try == suspendTries:
			return d.explain(err)
		}
	}
}

// lockAside waits a second for a node's row, and ends meanwhile what stands in its way; held is who has the row then.
func (d *DB) lockAside(ctx context.Context, conn *sql.Conn, node string) (held []Session, err error) {
	var pid int64
	if err := conn.QueryRowContext(ctx, `SELECT pg_backend_pid() FROM set_config('lock_timeout', '1s', true)`).Scan(&pid); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	var unseen error
	end := time.AfterFunc(standsAfter, func() {
		defer close(ended)
		var seen sight
		seen, unseen = d.askBlockers(ctx, pid)
		held = seen.sessions
		d.endStanding(ctx, pid)
	})
	_, err = conn.ExecContext(ctx, lockFence, node)
	if !end.Stop() {
		<-ended
	}
	if unseen != nil && ctx.Err() == nil {
		d.log.Warn("it is not seen who has the row of a fence", "node", node, "error", unseen)
	}
	return held, err
}

// endStanding ends the connections that a session waits for and that have said nothing for a while: their process stands still between two
// statements, rather than be there at this instant. One that waits for its COMMIT is left alone, since that would be done without a
// standby. PostgreSQL lets us end those of our own login; the administrator's function ends other nodes' too. Where it is missing, since
// logins.sql was installed before it had that, the server ends them itself (limitIdle).
func (d *DB) endStanding(ctx context.Context, pid int64) {
	_, own := d.writer.ExecContext(ctx, `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids($1))
		AND a.state = 'idle in transaction' AND a.state_change < clock_timestamp() - interval '500 milliseconds' AND pg_has_role(a.usesysid, 'USAGE')`, pid)
	_, others := d.writer.ExecContext(ctx, `SELECT chancery_logins.end_standing($1)`, pid)
	if refused, ok := errors.AsType[*pgconn.PgError](others); ok {
		switch refused.Code {
		case "42883", "3F000", "42501": // undefined_function, invalid_schema_name, insufficient_privilege
			others = nil
		}
	}
	if err := errors.Join(own, others); err != nil && ctx.Err() == nil {
		d.log.Warn("sessions that stand still are not ended", "error", err)
	}
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
	var number int64
	err := conn.QueryRowContext(ctx, `SELECT fence FROM write_mark WHERE node = $1 FOR KEY SHARE`, held.node).Scan(&number)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fenced()
	case err == nil && number != held.number:
		return shutOut(number)
	}
	return d.explain(err)
}
