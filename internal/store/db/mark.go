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

// mark is the statement that a transaction carries which may have written, once: it says the transaction's number, where the node reads
// at a standby, and holds the process against the fence. It is nil where neither is needed.
func (b *batch) mark() (*sent, error) {
	d, held := b.d, b.d.fence.Load()
	if b.fence != nil {
		held = b.fence // taken in this very transaction
	}
	numbered := d.standby != nil && d.node != ""
	if b.marked || !numbered && held == nil {
		return nil, nil
	}
	b.marked = true
	d.lastMark = max(d.lastMark+1, Micros(time.Now()))
	if numbered {
		if err := d.kept.begin(d.lastMark); err != nil {
			return nil, err
		}
		b.number = d.lastMark
	}
	if held == nil {
		return &sent{query: `INSERT INTO write_mark (node, number) VALUES ($1, $2)
			ON CONFLICT (node) DO UPDATE SET number = excluded.number`, args: []any{d.node, d.lastMark}}, nil
	}
	// A suspension that is over by the server's clock ends with the first write of who was suspended, and no later one has its end: a program
	// from before suspensions ended by themselves begins one and leaves that as it is.
	over := ""
	if d.ends.Load() {
		over = ", suspended_until = 0"
	}
	return &sent{fenced: true, query: `INSERT INTO write_mark (node, number, fence) VALUES ($1, $2, $3)
		ON CONFLICT (node) DO UPDATE SET number = excluded.number, fence = excluded.fence` + over + ` WHERE write_mark.fence = excluded.fence
			OR write_mark.fence = -2 AND write_mark.suspended = excluded.fence AND write_mark.suspended_until > 0
				AND write_mark.suspended_until < EXTRACT(EPOCH FROM clock_timestamp()) * 1000000`,
		args: []any{held.node, d.lastMark, held.number}}, nil
}

// acknowledged notes that a transaction with a number was committed.
func (d *DB) acknowledged(mark int64) {
	if floor := d.floor.Load(); mark > floor || mark > 0 && floor == nobodyKnows { // only the leader of the lane is here
		d.former.CompareAndSwap(nobodyKnows, mark) // a state that has this write has all before it
		d.floor.Store(mark)
	}
}

// caughtUp says whether the state that tx sees has all that this process has acknowledged. What a connection has shown once, it shows
// from then on: it leads to one server. Another may lead to another server of the same name, or to the same one made anew.
func (d *DB) caughtUp(ctx context.Context, tx *Tx, floor int64) (bool, error) {
	if shown(tx.conn, 0) >= floor {
		return true, nil
	}
	var number int64
	err := tx.QueryRow(ctx, `SELECT number FROM write_mark WHERE node = $1`, d.node).Scan(&number)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	if err != nil {
		return false, err
	}
	tx.lacksFormer = number < d.former.Load()
	number = shown(tx.conn, number)
	if now := d.began.Load(); now != nil {
		tx.ended = number < now.number
	}
	return number >= floor, nil
}

// shown is the newest number that a connection has shown, with the one that it shows now.
func shown(conn *sql.Conn, number int64) int64 {
	_ = conn.Raw(func(inner any) error {
		if c, ok := inner.(*postgresConn); ok {
			c.shown = max(c.shown, number)
			number = c.shown
		}
		return nil
	})
	return number
}

// Lacks reports whether the state that tx sees lacks a write that this process has acknowledged. That is so only while the primary
// is away, since it is asked otherwise.
func (tx *Tx) Lacks() bool { return tx.lacks }

// LacksFormer reports whether what tx sees lacks, or may lack, a write that was acknowledged before this process started, so that
// nothing in its memory tells which.
func (tx *Tx) LacksFormer() bool { return tx.lacksFormer }
