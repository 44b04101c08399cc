package bench

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// postgres connects to the authority's database beside its node.
func (a *authority) postgres(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, a.pg.URL(database))
}

// sql runs one statement in a database of the authority's server.
func (a *authority) sql(ctx context.Context, database, text string) error {
	conn, err := pgx.Connect(ctx, a.pg.URL(database))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, text)
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

// postgresSeed writes by COPY.
type postgresSeed struct {
	conn    *pgx.Conn
	indexes []string // what makes them again
}

func openPostgreSQL(ctx context.Context, a *authority) (*postgresSeed, error) {
	conn, err := a.postgres(ctx)
	if err != nil {
		return nil, err
	}
	w := &postgresSeed{conn: conn}
	if err := w.dropIndexes(ctx); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return w, nil
}

func (w *postgresSeed) dropIndexes(ctx context.Context) error {
	rows, err := w.conn.Query(ctx, `SELECT indexname, indexdef FROM pg_indexes
		WHERE tablename IN ('certificate', 'revocation') AND indexname NOT LIKE '%\_pkey'`)
	if err != nil {
		return err
	}
	type index struct{ Name, Text string }
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[index])
	if err != nil {
		return err
	}
	for _, i := range all {
		if _, err := w.conn.Exec(ctx, "DROP INDEX "+i.Name); err != nil {
			return err
		}
		w.indexes = append(w.indexes, i.Text)
	}
	return nil
}

func (w *postgresSeed) write(ctx context.Context, s *seeder, rows []seedRow, change int64) (int64, error) {
	_, err := w.conn.CopyFrom(ctx, pgx.Identifier{"certificate"}, certificateColumns,
		pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) { return s.certificateValues(&rows[i]), nil }))
	if err != nil {
		return 0, err
	}
	var revocations [][]any
	for i := range rows {
		if rows[i].entry != nil {
			change++
			revocations = append(revocations, s.revocationValues(&rows[i], change))
		}
	}
	_, err = w.conn.CopyFrom(ctx, pgx.Identifier{"revocation"}, revocationColumns, pgx.CopyFromRows(revocations))
	return change, err
}

func (w *postgresSeed) lastChange(ctx context.Context, issuer int64) (n int64, err error) {
	err = w.conn.QueryRow(ctx, lastChangeQuery, issuer).Scan(&n)
	return n, err
}

func (w *postgresSeed) setChange(ctx context.Context, issuer, change int64) error {
	_, err := w.conn.Exec(ctx, changeUpsert, issuer, change)
	return err
}

// finish makes the indexes, and does what autovacuum would have done by the time that a store has grown so large.
func (w *postgresSeed) finish(ctx context.Context, failed error) error {
	errs := []error{}
	if failed == nil {
		for _, text := range append(w.indexes, "VACUUM ANALYZE certificate", "VACUUM ANALYZE revocation", "CHECKPOINT") {
			_, err := w.conn.Exec(ctx, text)
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, w.conn.Close(context.WithoutCancel(ctx)))...)
}
