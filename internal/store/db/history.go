package db

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
)

// A promotion may give up what a server had shown: a standby that is ahead of the promoted one, and a primary that was cut off and went on
// as a standby, show transactions that nobody was told are done, and lose them. What a process keeps in memory by the number of a change is
// wrong from then on, since the promoted server gives the number to another change.

// History is the timeline of the primary where this process has last said that it lives; 0 where there are none. Read gives nothing of
// a history that has ended while the primary answers, nor does it afterwards where Tx.Lacks is false. It costs nothing.
func (d *DB) History() int64 {
	if b := d.began.Load(); b != nil {
		return b.history
	}
	return 0
}

// MayHaveEnded reports whether the state that tx sees may be of a history before the present one: it shows nothing that was acknowledged
// in this. Such a state lacks a write (Lacks), and may have what was given up, under numbers that something else has now.
func (tx *Tx) MayHaveEnded() bool { return tx.ended }

// AtStandby reports whether tx reads at the server of Options.ReadURL.
func (tx *Tx) AtStandby() bool { return tx.standby }

// ReadsStandby reports whether Read goes to a server of its own.
func (d *DB) ReadsStandby() bool { return d.standby != nil }

// Promoted has a value soon after Watch has met a primary with a later history: it begins here with the next Heartbeat.
func (d *DB) Promoted() <-chan struct{} { return d.promoted }

// readHistory is the timeline of the primary that tx writes to.
func readHistory(ctx context.Context, tx *Tx) (int64, error) {
	if tx.d.dialect != Postgres {
		return 0, nil
	}
	var hexadecimal string
	if err := tx.QueryRow(ctx, askTimeline).Scan(&hexadecimal); err != nil {
		return 0, err
	}
	return strconv.ParseInt(hexadecimal, 16, 64)
}

// beginning is a history that a write of this process was acknowledged in.
type beginning struct {
	history int64
	number  int64 // of a transaction that was acknowledged in it; 0 where transactions have none
}

// begins notes a history, once a write of this process is acknowledged in it: a state that has the write is none of a history before.
func (d *DB) begins(history int64) {
	for {
		before := d.began.Load()
		if before != nil && history <= before.history || d.began.CompareAndSwap(before, &beginning{history, d.floor.Load()}) {
			return
		}
	}
}

// meets tells who waits for Promoted that a primary has a later history than this process writes in.
func (d *DB) meets(hexadecimal string) {
	at, err := strconv.ParseInt(hexadecimal, 16, 64)
	if err != nil || at <= d.History() {
		return
	}
	select {
	case d.promoted <- struct{}{}:
	default:
	}
}

// errDemoted is the server beside a node that was the primary, and has shown nothing yet that was acknowledged in a history after its own:
// what it took last may be what nobody acknowledged, and show itself now.
var errDemoted = errors.New("the server was the primary, and shows nothing yet that was acknowledged since another was promoted; it may show what nobody acknowledged")

// reign is whether the server that is read was seen to be the primary, and has not shown since that it follows another.
type reign struct {
	d       *DB
	history atomic.Int64 // the newest in which it ruled; 0 where there is none
}

// sees notes what a server shows that may be read: the timeline that it writes, empty where it is a standby. A standby that ruled has refused
// the connection unless it follows.
func (r *reign) sees(hexadecimal string) {
	at, err := strconv.ParseInt(hexadecimal, 16, 64)
	if err != nil {
		at = 0
	}
	r.history.Store(at)
}

// askFollows is what one that ruled is asked for on each new connection; none outlives a demotion.
const askFollows = `SELECT pg_is_in_recovery(), COALESCE((SELECT number FROM write_mark WHERE node = $1), 0)`

// admits refuses a server that ruled and is a standby now, until it shows a write that this process was told is done in a later history. To
// whom it is connected says nothing: it asks its upstream from where it stands itself, and one that follows an archive is connected to
// nobody. But the numbers of our writes grow, and a server that has come to one of a history has given up what that has not.
func (r *reign) admits(ctx context.Context, conn *pgconn.PgConn) error {
	ruled := r.history.Load()
	if ruled == 0 {
		return nil
	}
	rows := conn.ExecParams(ctx, askFollows, [][]byte{[]byte(r.d.node)}, nil, nil, nil).Read()
	if rows.Err != nil {
		return rows.Err
	}
	if len(rows.Rows) != 1 {
		return errDemoted
	}
	number, err := strconv.ParseInt(string(rows.Rows[0][1]), 10, 64)
	if err != nil {
		return err
	}
	now := r.d.began.Load()
	if string(rows.Rows[0][0]) != "t" || now != nil && now.history > ruled && now.number > 0 && number >= now.number {
		return nil
	}
	return errDemoted
}
