package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"chancery/internal/fault"
)

// Tx is what a function of Tx or Read sees of its transaction. It is valid until that function returns, and may be used
// by the goroutine that runs it only.
type Tx struct {
	d      *DB
	conn   *sql.Conn
	batch  *batch // nil in Read
	mark   int    // how many statements of earlier functions wait in batch.sent
	write  bool
	call   *call       // whose function this is; nil in Read
	over   bool        // the function has returned
	wrote  bool        // the function ran a statement that may have written
	failed error       // the first statement of the function that failed
	rows   []*sql.Rows // what Query returned; closed with the function, since a neighbour needs the connection
	added  []addition  // what the function gave to BeforeCommit
	lacks  bool        // see Lacks

	lacksFormer bool // see LacksFormer
	ended       bool // see MayHaveEnded
	standby     bool // it reads at the standby
}

type addition struct {
	key   any
	item  any
	write WriteAll
}

// WriteAll writes, just before COMMIT, all items that functions of one shared transaction added under one key.
type WriteAll func(ctx context.Context, tx *Tx, items []any) error

// BeforeCommit adds item to what the functions of the shared transaction give under key. Right before COMMIT, write (of the
// first who added under that key) is called once with the items of all functions that succeeded, in the order in which
// they ran; so a whole batch's events can be one INSERT. Items of a function that failed, or of an attempt that is repeated,
// are dropped. If write fails, the transaction is rolled back and its functions are run again one by one, so that only those
// whose item cannot be written fail. key must be comparable and unique to its owner (a pointer, or a private type).
func (tx *Tx) BeforeCommit(key, item any, write WriteAll) {
	if !tx.write {
		panic("db: BeforeCommit in a read-only transaction")
	}
	tx.added = append(tx.added, addition{key, item, write})
}

// Exec runs a statement that returns no rows, and says how many rows it touched.
func (tx *Tx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	ctx, err := tx.enter(ctx, query, args)
	if err != nil {
		return 0, err
	}
	res, err := tx.conn.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, tx.fail(err)
	}
	return res.RowsAffected()
}

// Send is Exec for a statement whose answer the function does not need. On PostgreSQL it goes out together with all that the
// functions of the batch send, in their order, before the next Exec or Query of any of them, or else before COMMIT: a whole
// batch's inserts cost one round trip. If it fails, Tx returns its error. On SQLite, where there is no round trip, it runs at once.
func (tx *Tx) Send(ctx context.Context, query string, args ...any) error {
	if tx.batch == nil || tx.d.dialect == SQLite {
		_, err := tx.Exec(ctx, query, args...)
		return err
	}
	if err := tx.admit(args); err != nil {
		return err
	}
	tx.batch.view = nil
	tx.batch.sent = append(tx.batch.sent, sent{call: tx.call, query: query, args: args})
	return nil
}

// Query runs a statement that returns rows. Rows still open when the function returns are closed then.
func (tx *Tx) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	ctx, err := tx.enter(ctx, query, args)
	if err != nil {
		return nil, err
	}
	rows, err := tx.conn.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, tx.fail(err)
	}
	tx.rows = append(tx.rows, rows)
	return rows, nil
}

// QueryRow runs a statement that returns at most one row.
func (tx *Tx) QueryRow(ctx context.Context, query string, args ...any) *Row {
	ctx, err := tx.enter(ctx, query, args)
	if err != nil {
		return &Row{err: err}
	}
	rows, err := tx.conn.QueryContext(ctx, query, args...)
	if err != nil {
		return &Row{err: tx.fail(err)}
	}
	return &Row{tx: tx, rows: rows}
}

// Row is the answer of QueryRow.
type Row struct {
	tx   *Tx
	rows *sql.Rows
	err  error
}

// Scan copies the columns of the first row to dest; where there is none, it returns sql.ErrNoRows.
func (r *Row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return r.tx.fail(err)
		}
		return sql.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	if err := r.rows.Close(); err != nil {
		return r.tx.fail(err)
	}
	return nil
}

// Err returns the error of the statement, if it failed before any row was read.
func (r *Row) Err() error { return r.err }

// enter checks a statement before it goes out, after those that wait. A statement of a write transaction runs to its end
// whatever becomes of its caller's context, since the transaction belongs to others too: cutting it would drop the
// connection under them.
func (tx *Tx) enter(ctx context.Context, query string, args []any) (context.Context, error) {
	if err := tx.admit(args); err != nil {
		return ctx, err
	}
	if tx.d.dialect == Postgres && tx.reading() {
		// Its driver would report the connection as bad, and database/sql would wait for ever for these rows to close it.
		return ctx, tx.fail(errors.New("db: a statement was run while the rows of another were read; read them whole first"))
	}
	if !tx.write {
		return ctx, nil
	}
	if len(tx.batch.sent) > 0 {
		tx.wrote = tx.wrote || len(tx.batch.sent) > tx.mark
		tx.mark = 0
		if owner, err := tx.batch.flush(tx.conn); err != nil {
			tx.batch.keptFrom(owner, err)
			return nil, tx.fail(err)
		}
	}
	if !isSelect(query) {
		tx.wrote, tx.batch.wrote, tx.batch.view = true, true, nil
	}
	return context.Background(), nil
}

// reading says whether rows of an earlier query are still open.
func (tx *Tx) reading() bool {
	tx.rows = slices.DeleteFunc(tx.rows, func(rows *sql.Rows) bool {
		_, err := rows.Columns() // fails only where they are closed
		return err != nil
	})
	return len(tx.rows) > 0
}

// admit refuses a statement that could not be right.
func (tx *Tx) admit(args []any) error {
	switch {
	case tx.over:
		return errors.New("db: the transaction was used after its function returned")
	case tx.failed != nil:
		return fmt.Errorf("db: an earlier statement of this function failed: %w", tx.failed)
	}
	for i, a := range args {
		if s, ok := a.(string); ok && (!utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0) {
			// PostgreSQL refuses this text and SQLite would keep it: then a backup could not move between them.
			return tx.fail(fault.New(fault.Invalid, "text %q (argument $%d) is not UTF-8 without NUL", s, i+1))
		}
	}
	return nil
}

// finish ends the function's use of the connection, also when it left rows open or panicked.
func (tx *Tx) finish() {
	tx.over = true
	for _, rows := range tx.rows {
		rows.Close()
	}
	tx.rows = nil
}

func (tx *Tx) fail(err error) error {
	if tx.failed == nil {
		tx.failed = err
		tx.batch.keptFrom(tx.call, err)
	}
	return err
}

// isSelect is conservative: what does not plainly start with SELECT counts as a write.
func isSelect(query string) bool {
	q := strings.TrimLeft(query, " \t\r\n")
	return len(q) >= 6 && strings.EqualFold(q[:6], "select")
}
