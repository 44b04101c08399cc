package db

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery/internal/fault"

	"github.com/jackc/pgx/v5/pgconn"
)

// errStandby is a server that was given as the one to write to, and only reads.
var errStandby = errors.New("the server is a standby, which only reads")

// validatePrimary refuses a standby when a connection is made, so that of several hosts the next is tried.
func validatePrimary(ctx context.Context, conn *pgconn.PgConn) error {
	rows := conn.ExecParams(ctx, "SELECT pg_is_in_recovery()", nil, nil, nil, nil).Read()
	if rows.Err != nil {
		return rows.Err
	}
	if len(rows.Rows) == 1 && string(rows.Rows[0][0]) == "t" {
		return errStandby
	}
	return nil
}

// markStandby tells the answer of a server that has become a standby under an open connection: it cannot even begin.
func markStandby(err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && (e.Code == "0A000" || e.Code == "25006") {
		return fmt.Errorf("%w: %w", errStandby, err)
	}
	return err
}

// standbyPatience is how long a transaction is not begun because no synchronous standby is connected: Patroni takes some seconds to
// choose another. After that it is refused, which is better than a COMMIT whose outcome nobody knows.
const standbyPatience = 10 * time.Second

// requireStandbys refuses to write while the server names no synchronous standby: a primary that was promoted without that
// setting would lose what it acknowledges when it is lost in turn. Where our role may see the standbys (pg_read_all_stats), it also
// waits for one to be there.
func (c *postgresConn) requireStandbys(ctx context.Context) error {
	lonely := &c.connector.of.lonely
	for {
		var names string
		var seesAll bool
		var synchronous int
		err := c.Conn.Conn().QueryRow(ctx, `SELECT current_setting('synchronous_standby_names'), pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
			(SELECT COUNT(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum'))`).Scan(&names, &seesAll, &synchronous)
		switch {
		case err != nil:
			return err
		case strings.TrimSpace(names) == "":
			return fault.New(fault.Unavailable, "durability is synchronous and the database server names no synchronous standby; this node is read-only").
				WithHint("set synchronous_standby_names on the primary, or `chancery settings set durability=local` with a single node")
		case !seesAll || synchronous > 0:
			lonely.Store(0)
			c.standbys = time.Now()
			return nil
		}
		lonely.CompareAndSwap(0, Micros(time.Now()))
		since := FromMicros(lonely.Load())
		if time.Since(since) >= min(standbyPatience, c.connector.patience/2) {
			return fault.New(fault.Unavailable, "no synchronous standby of the database is connected since %s, so nothing can be acknowledged; "+
				"nothing was changed, and this node is read-only", since.UTC().Format(time.RFC3339)).
				WithHint("start a standby; chancery doctor database says which are there")
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
}
