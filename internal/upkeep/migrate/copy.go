package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/move"

	"golang.org/x/sync/errgroup"
)

// versionTable is each database's own: its migrations were run there.
const versionTable = "schema_version"

// pieceOctets is about how much is in one piece, however few rows that are.
const pieceOctets = 4 << 20

// sourceTables are the tables that are moved, those that foreign keys point to first.
func (m *mover) sourceTables(ctx context.Context) ([]db.Table, error) {
	var tables []db.Table
	err := m.source.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		tables, err = db.Tables(ctx, tx)
		return err
	})
	return slices.DeleteFunc(tables, func(t db.Table) bool { return t.Name == versionTable || move.OwnTable(t.Name) }), err
}

// copyAll copies what is not there yet.
func (m *mover) copyAll(ctx context.Context) ([]db.Table, error) {
	tables, err := m.sourceTables(ctx)
	if err != nil {
		return nil, err
	}
	if len(tables) == 0 {
		return nil, fmt.Errorf("the source has no tables")
	}
	m.done.Tables = len(tables)
	for _, t := range tables {
		if err := m.copyTable(ctx, t); err != nil {
			return nil, fmt.Errorf("copy table %s: %w", t.Name, err)
		}
	}
	// The planner knows nothing of tables that were just filled, and would read them whole.
	if err := m.target.TxAlone(ctx, func(tx *db.Tx) error { _, err := tx.Exec(ctx, "ANALYZE"); return err }); err != nil {
		m.done.Warnings = append(m.done.Warnings, fmt.Sprintf("ANALYZE: %v; the first queries may be slow", err))
	}
	return tables, nil
}

// piece is rows that are copied in one transaction, and how far the table is then.
type piece struct {
	rows [][]any
	to   move.Progress
}

// copyTable reads ahead of what it writes.
func (m *mover) copyTable(ctx context.Context, t db.Table) error {
	var at move.Progress
	if err := m.target.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		at, err = move.ReadProgress(ctx, tx, t.Name)
		return err
	}); err != nil {
		return err
	}
	if at.Complete {
		return nil
	}
	pieces := make(chan piece, 1)
	g, ctx := errgroup.WithContext(ctx)
	from := at
	g.Go(func() error {
		defer close(pieces)
		return m.readPieces(ctx, t, from, pieces)
	})
	g.Go(func() error {
		for p := range pieces {
			if err := m.put(ctx, t, at, p); err != nil {
				return err
			}
			at = p.to
			m.done.Copied += int64(len(p.rows))
		}
		return nil
	})
	return g.Wait()
}

func (m *mover) readPieces(ctx context.Context, t db.Table, at move.Progress, to chan<- piece) error {
	return m.source.ReadSnapshot(ctx, func(tx *db.Tx) error {
		var rows [][]any
		octets := 0
		send := func(complete bool) error {
			if len(rows) > 0 {
				at.Last = t.KeyOf(rows[len(rows)-1])
			}
			at.Copied, at.Complete = at.Copied+int64(len(rows)), complete
			select {
			case to <- piece{rows, at}:
				rows, octets = nil, 0
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		for row, err := range t.RowsAfter(ctx, tx, at.Last) {
			if err != nil {
				return err
			}
			rows, octets = append(rows, row), octets+size(row)
			if len(rows) == m.Rows || octets >= pieceOctets {
				if err := send(false); err != nil {
					return err
				}
			}
		}
		return send(true)
	})
}

func size(row []any) (n int) {
	for _, v := range row {
		switch v := v.(type) {
		case string:
			n += len(v)
		case []byte:
			n += len(v)
		default:
			n += 8
		}
	}
	return n
}

// put writes one piece. A commit whose outcome is not known is looked up where it would be, in a transaction that itself writes.
func (m *mover) put(ctx context.Context, t db.Table, from move.Progress, p piece) error {
	for try := 0; ; try++ {
		err := m.target.TxAlone(ctx, func(tx *db.Tx) error {
			if err := move.Advance(ctx, tx, t.Name, from, p.to); err != nil {
				return err
			}
			if len(p.rows) == 0 {
				return nil
			}
			return t.CopyIn(ctx, tx, p.rows)
		})
		if !errors.Is(err, db.ErrUnknownOutcome) || try == 5 {
			return err
		}
		var now move.Progress
		err = m.target.TxAlone(ctx, func(tx *db.Tx) (err error) {
			if _, err := tx.Exec(ctx, "UPDATE move_table SET copied = copied WHERE name = $1", t.Name); err != nil {
				return err
			}
			now, err = move.ReadProgress(ctx, tx, t.Name)
			return err
		})
		if err == nil && now.Copied == p.to.Copied && now.Complete == p.to.Complete {
			return nil
		}
		if err != nil && !errors.Is(err, db.ErrUnknownOutcome) && !fault.Is(err, fault.Unavailable) {
			return err
		}
	}
}
