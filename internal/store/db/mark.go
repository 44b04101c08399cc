package db

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// Each transaction of a node that reads elsewhere than it writes carries a number, in a row of the node's own. A state of the
// database that has the number has the write: so a caller who was told that something is done finds it done, though the standby
// follows later. Positions in the server's log would tell as well, but only after the commit, which the server may not survive.

// errBehind says that the standby lacks a write that this process has acknowledged.
var errBehind = errors.New("the standby lacks what this node has written")

// sendMark adds the number of this transaction to what a batch sends, and returns it; 0 where none is needed.
func (b *batch) sendMark() int64 {
	d := b.d
	if d.standby == nil || d.node == "" || !b.wrote && len(b.sent) == 0 {
		return 0
	}
	d.lastMark = max(d.lastMark+1, Micros(time.Now()))
	b.sent = append(b.sent, sent{query: `INSERT INTO write_mark (node, number) VALUES ($1, $2)
		ON CONFLICT (node) DO UPDATE SET number = excluded.number`, args: []any{d.node, d.lastMark}})
	return d.lastMark
}

// acknowledged notes that a transaction with a number was committed.
func (d *DB) acknowledged(mark int64) {
	if mark > d.floor.Load() { // only the leader of the lane is here
		d.floor.Store(mark)
	}
}

// caughtUp says whether the state that tx sees has all that this process has acknowledged.
func (d *DB) caughtUp(ctx context.Context, tx *Tx, floor int64) (bool, error) {
	var number int64
	err := tx.QueryRow(ctx, `SELECT number FROM write_mark WHERE node = $1`, d.node).Scan(&number)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	for reached := d.reached.Load(); err == nil && number > reached && !d.reached.CompareAndSwap(reached, number); {
		reached = d.reached.Load()
	}
	return number >= floor, err
}

// Lacks reports whether the state that tx sees lacks a write that this process has acknowledged. That is so only while the primary
// is away, since it is asked otherwise.
func (tx *Tx) Lacks() bool { return tx.lacks }
