package db

import (
	"context"
	"errors"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// A promotion may give up what a server had shown: a standby that is ahead of the promoted one, and a primary that was cut off and went on
// as a standby, show transactions that nobody was told are done, and lose them. What a process keeps in memory by the number of a change is
// wrong from then on, since the promoted server gives the number to another change.

// History is the timeline of the primary where this process has last said that it lives; 0 where there are none. Read gives nothing of
// a history that has ended while the primary answers, nor does it afterwards where Tx.Lacks is false. It costs nothing.
func (d *DB) History() int64 { return d.history.Load() }

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

// begins notes a history, once a write of this process is acknowledged in it: a state that has the write is none of a history before.
func (d *DB) begins(history int64) {
	for {
		before := d.history.Load()
		if history <= before || d.history.CompareAndSwap(before, history) {
			return
		}
	}
}

// meets tells who waits for Promoted that a primary has a later history than this process writes in.
func (d *DB) meets(hexadecimal string) {
	at, err := strconv.ParseInt(hexadecimal, 16, 64)
	if err != nil || at <= d.history.Load() {
		return
	}
	select {
	case d.promoted <- struct{}{}:
	default:
	}
}

// errDemoted is the server beside a node that was the primary, and has followed no other since: what it took last may be what nobody
// acknowledged, and show itself now. It is read again when it follows.
var errDemoted = errors.New("the server was the primary, follows no other yet, and may show what nobody acknowledged")

// askDemoted is the question, of the time since the server was started.
const askDemoted = `SELECT pg_is_in_recovery() AND pg_last_wal_receive_lsn() IS NULL`

// refuseDemoted is for connections to a server that was seen to be the primary. No connection outlives a demotion.
func refuseDemoted(ctx context.Context, conn *pgconn.PgConn) error {
	rows := conn.ExecParams(ctx, askDemoted, nil, nil, nil, nil).Read()
	if rows.Err != nil {
		return rows.Err
	}
	if len(rows.Rows) == 1 && string(rows.Rows[0][0]) == "t" {
		return errDemoted
	}
	return nil
}
