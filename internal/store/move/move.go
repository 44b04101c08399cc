// Package move marks the two databases of an authority that moves from one to the other, so that it lives in one of them
// at any moment and in both at none, whatever is killed or started when.
//
// The states, in the order in which they are written:
//
//	source    target
//	leaving   -          nothing is written to the source any more; a node on it answers what only reads
//	leaving   filling    rows are copied; no node starts on the target
//	left      filling    the copy was verified; no node ever starts on the source again: this write is the move
//	left      arrived    nodes start on the target
//
// Each is one transaction of its database. A move that was cut short is gone on with, or given up before the source is left.
package move

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// OwnTable says whether a table is this package's: such a one is of a database and not of the authority in it, and no copy
// carries it.
func OwnTable(name string) bool { return name == "move_mark" || name == "move_table" }

// State is where a database stands.
type State string

// The states; a database that never took part in a move has none.
const (
	Leaving State = "leaving"
	Left    State = "left"
	Filling State = "filling"
	Arrived State = "arrived"
)

// Mark is what a database says of itself.
type Mark struct {
	ID      string // of the move
	State   State
	Peer    string // the other side, for people
	Changed time.Time
}

// Read reads the mark; the zero Mark where there is none, or no table for one.
func Read(ctx context.Context, d *db.DB) (m Mark, err error) {
	err = d.Read(db.AtPrimary(ctx), func(tx *db.Tx) error {
		m, err = read(ctx, tx)
		return err
	})
	if db.IsNoTable(err) {
		return Mark{}, nil
	}
	return m, err
}

func read(ctx context.Context, tx *db.Tx) (m Mark, err error) {
	var changed int64
	err = tx.QueryRow(ctx, "SELECT id, state, peer, changed_at FROM move_mark WHERE name = 'here'").Scan(&m.ID, &m.State, &m.Peer, &changed)
	if errors.Is(err, sql.ErrNoRows) {
		return Mark{}, nil
	}
	if err != nil {
		return Mark{}, err
	}
	m.Changed = db.FromMicros(changed)
	return m, nil
}

// Change writes the mark, if the one that is there is still the one that was read; the zero Mark removes it. It says whether it
// did: an earlier try, whose answer was lost, may have.
func Change(ctx context.Context, tx *db.Tx, from, to Mark) (changed bool, err error) {
	now, err := read(ctx, tx)
	if err != nil {
		return false, fmt.Errorf("read the mark of the move: %w", err)
	}
	if now.ID == to.ID && now.State == to.State {
		return false, nil
	}
	if now.ID != from.ID || now.State != from.State {
		return false, fault.New(fault.Conflict, "the database's mark is %q of move %q, and was %q of %q: another process moves it too",
			now.State, now.ID, from.State, from.ID)
	}
	if _, err := tx.Exec(ctx, "DELETE FROM move_mark WHERE name = 'here'"); err != nil {
		return false, err
	}
	if to == (Mark{}) {
		return true, nil
	}
	_, err = tx.Exec(ctx, "INSERT INTO move_mark (name, id, state, peer, changed_at) VALUES ('here', $1, $2, $3, $4)",
		to.ID, string(to.State), to.Peer, db.Micros(to.Changed))
	return err == nil, err
}

// Guard is called when a database is opened to serve an authority. It refuses one that was left, and one that is filled; of one
// that is being left only reading goes on.
func Guard(ctx context.Context, d *db.DB) error {
	m, err := Read(ctx, d)
	if err != nil {
		return fmt.Errorf("read the mark of a move: %w", err)
	}
	when := m.Changed.UTC().Format(time.RFC3339)
	switch m.State {
	case Left:
		return fault.New(fault.Conflict, "the authority left this database on %s and lives in %s: a second one here would issue the same "+
			"names under the same keys", when, m.Peer).
			WithHint("where node.yaml does not name the new database yet, run the same chancery migrate again: it ends what was cut short")
	case Filling:
		return fault.New(fault.Conflict, "an authority is being moved into this database from %s, since %s, and not all of it is here", m.Peer, when).
			WithHint("run the same chancery migrate again: it goes on where it was cut short")
	case Leaving:
		d.OnlyRead(Leave(m))
	}
	return nil
}

// Leave is why nothing is written to a database that is being left.
func Leave(m Mark) error {
	return fault.New(fault.Unavailable, "the authority is being moved to %s: until that is done it answers and changes nothing", m.Peer).
		WithHint("try again in a few minutes; a move that was cut short is gone on with by chancery migrate, or given up by chancery migrate --give-up")
}
