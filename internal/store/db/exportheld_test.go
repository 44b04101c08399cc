package db

import (
	"context"
	"database/sql"
)

// RowHeldBy waits for the row of a node's fence as SuspendFence does once, and says who had it.
func (d *DB) RowHeldBy(ctx context.Context, node string) (held []Session, err error) {
	err = d.aside(ctx, func(conn *sql.Conn) error {
		held, err = d.lockAside(ctx, conn, node)
		return err
	})
	return held, err
}
