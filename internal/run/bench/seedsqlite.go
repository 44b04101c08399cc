package bench

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"modernc.org/sqlite"
)

// sqliteSeed writes to the file of a stopped node, without syncing; the node's own settings are back when it starts.
type sqliteSeed struct {
	db      *sql.DB
	indexes []string // what makes them again
}

func openSQLite(ctx context.Context, path string) (*sqliteSeed, error) {
	connector, err := sqlite.NewConnector("file:" + path + "?_pragma=synchronous(off)&_pragma=cache_size(-262144)&_pragma=temp_store(memory)")
	if err != nil {
		return nil, err
	}
	w := &sqliteSeed{db: sql.OpenDB(connector)}
	w.db.SetMaxOpenConns(1)
	if err := w.dropIndexes(ctx); err != nil {
		return nil, errors.Join(err, w.db.Close())
	}
	return w, nil
}

func (w *sqliteSeed) dropIndexes(ctx context.Context) error {
	rows, err := w.db.QueryContext(ctx, `SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name IN ('certificate', 'revocation') AND sql IS NOT NULL`)
	if err != nil {
		return err
	}
	var names []string
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return errors.Join(err, rows.Close())
		}
		names, w.indexes = append(names, name), append(w.indexes, text)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, name := range names {
		if _, err := w.db.ExecContext(ctx, "DROP INDEX "+name); err != nil {
			return err
		}
	}
	return nil
}

// sqliteRows is how many rows one statement inserts.
const sqliteRows = 50

func (w *sqliteSeed) write(ctx context.Context, s *seeder, rows []seedRow, change int64) (int64, error) {
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	certificates, revocations := &sqliteInsert{tx: tx, table: "certificate", columns: certificateColumns}, &sqliteInsert{tx: tx, table: "revocation", columns: revocationColumns}
	for i := range rows {
		if err := certificates.add(ctx, s.certificateValues(&rows[i])); err != nil {
			return 0, err
		}
		if rows[i].entry != nil {
			change++
			if err := revocations.add(ctx, s.revocationValues(&rows[i], change)); err != nil {
				return 0, err
			}
		}
	}
	if err := errors.Join(certificates.flush(ctx), revocations.flush(ctx)); err != nil {
		return 0, err
	}
	return change, tx.Commit()
}

// sqliteInsert gathers rows.
type sqliteInsert struct {
	tx       *sql.Tx
	table    string
	columns  []string
	prepared *sql.Stmt // for sqliteRows rows
	args     []any
}

func (in *sqliteInsert) text(n int) string {
	row := "(" + strings.TrimSuffix(strings.Repeat("?,", len(in.columns)), ",") + ")"
	return "INSERT INTO " + in.table + " (" + strings.Join(in.columns, ",") + ") VALUES " + strings.TrimSuffix(strings.Repeat(row+",", n), ",")
}

func (in *sqliteInsert) add(ctx context.Context, values []any) (err error) {
	if in.args = append(in.args, values...); len(in.args) < sqliteRows*len(in.columns) {
		return nil
	}
	if in.prepared == nil {
		if in.prepared, err = in.tx.PrepareContext(ctx, in.text(sqliteRows)); err != nil {
			return err
		}
	}
	_, err = in.prepared.ExecContext(ctx, in.args...)
	in.args = in.args[:0]
	return err
}

func (in *sqliteInsert) flush(ctx context.Context) error {
	if len(in.args) == 0 {
		return nil
	}
	_, err := in.tx.ExecContext(ctx, in.text(len(in.args)/len(in.columns)), in.args...)
	return err
}

func (w *sqliteSeed) lastChange(ctx context.Context, issuer int64) (n int64, err error) {
	err = w.db.QueryRowContext(ctx, lastChangeQuery, issuer).Scan(&n)
	return n, err
}

func (w *sqliteSeed) setChange(ctx context.Context, issuer, change int64) error {
	_, err := w.db.ExecContext(ctx, changeUpsert, issuer, change)
	return err
}

func (w *sqliteSeed) finish(ctx context.Context, failed error) error {
	errs := []error{}
	if failed == nil {
		for _, text := range w.indexes {
			_, err := w.db.ExecContext(ctx, text)
			errs = append(errs, err)
		}
		_, err := w.db.ExecContext(ctx, "PRAGMA wal_checkpoint(truncate)")
		errs = append(errs, err)
	}
	return errors.Join(append(errs, w.db.Close())...)
}
