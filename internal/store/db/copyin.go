package db

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/jackc/pgx/v5"
)

// CopyIn is Insert by PostgreSQL's COPY, several times as fast; on SQLite it is Insert. Like every statement of a
// transaction that writes it runs to its end, whatever becomes of ctx.
func (t Table) CopyIn(ctx context.Context, tx *Tx, rows [][]any) error {
	if tx.d.dialect == SQLite {
		return t.Insert(ctx, tx, rows)
	}
	ctx, err := tx.enter(ctx, "COPY", nil)
	if err != nil {
		return err
	}
	names := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		names[i] = c.Name
	}
	for _, row := range rows {
		if len(row) != len(names) {
			return tx.fail(fmt.Errorf("a row for %s has %d values, not %d", t.Name, len(row), len(names)))
		}
		if err := tx.admit(row); err != nil { // so that a text which COPY would end at is named
			return err
		}
	}
	var whole bool
	err = tx.conn.Raw(func(driverConn any) error {
		conn, ok := driverConn.(*postgresConn)
		if !ok { // a test's wrapping
			return nil
		}
		whole = true
		conn.watchdog.Reset(conn.connector.patience)
		defer conn.watchdog.Stop()
		n, err := conn.Conn.Conn().CopyFrom(ctx, pgx.Identifier{t.Name}, names, pgx.CopyFromRows(rows))
		if err == nil && n != int64(len(rows)) {
			err = fmt.Errorf("%d rows went in, of %d", n, len(rows))
		}
		return markLost(err)
	})
	switch {
	case err != nil:
		return tx.fail(fmt.Errorf("copy into %s: %w", t.Name, err))
	case !whole:
		return t.Insert(ctx, tx, rows)
	}
	return nil
}

// RowsAfter is Rows from behind the row with this key on, in the order of the octets of the key on both engines, so that a
// stream that broke off goes on where it was. A nil key is before all rows.
func (t Table) RowsAfter(ctx context.Context, tx *Tx, key []any) iter.Seq2[[]any, error] {
	if len(t.Key) == 0 {
		return func(yield func([]any, error) bool) {
			yield(nil, fmt.Errorf("table %s has no key to go on from", t.Name))
		}
	}
	ordered := make([]string, len(t.Key))
	for i, name := range t.Key {
		ordered[i] = name
		for _, c := range t.Columns {
			if c.Name == name && c.Type == "TEXT" && tx.d.dialect == Postgres {
				ordered[i] += ` COLLATE "C"`
			}
		}
	}
	tail := ""
	if key != nil {
		places := make([]string, len(t.Key))
		for i := range places {
			places[i] = fmt.Sprintf("$%d", i+1)
		}
		tail = " WHERE (" + strings.Join(ordered, ", ") + ") > (" + strings.Join(places, ", ") + ")"
	}
	return t.stream(ctx, tx, tail+" ORDER BY "+strings.Join(ordered, ", "), key...)
}

// Unordered streams the table in whatever order is the fastest.
func (t Table) Unordered(ctx context.Context, tx *Tx) iter.Seq2[[]any, error] {
	return t.stream(ctx, tx, "")
}

// KeyOf is the key of a row.
func (t Table) KeyOf(row []any) []any {
	key := make([]any, len(t.Key))
	for i, name := range t.Key {
		for j, c := range t.Columns {
			if c.Name == name {
				key[i] = row[j]
			}
		}
	}
	return key
}
