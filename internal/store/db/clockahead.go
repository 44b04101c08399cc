package db

import (
	"context"
	"time"

	"chancery/internal/fault"
)

// The mark of time is one for all nodes, and each stops that is behind it. So what goes into it is held against the clock of the database's
// server: a node that is ahead of that puts nothing into it, signs nothing, and lets go of its leases, and the others go on.
//
// The server's clock may be the wrong one as well; then all nodes are ahead of it, and none should stop. No beat that was taken is further
// ahead of that clock than aheadTolerance. A mark that is says that the clock went back, or that another server was promoted whose clock is
// behind: it judges nobody. One that loses time slowly, or stood still with its machine, is contradicted by the nodes' own: what each wrote
// last is numbered by its clock, and whoever is nearer to ours than to the server's speaks for ours. More have to than speak for the
// server's: the numbers of a node that had been ahead stay so until the time has come, though its clock was set right.
//
// A node of a release before beats without looking, and SQLite has no other clock: a mark that is ahead is set back by ResetClock.

// aheadTolerance is how far a node's clock may be ahead of the database's server's: as the others may be behind the mark by twice that, a
// node that is not refused stops nobody whose clock is behind that server's by no more.
const aheadTolerance = ClockTolerance / 2

// aheadOf is a node's clock and the database's, as a heartbeat found them.
type aheadOf struct{ ours, theirs time.Time }

// clockAhead says whether a heartbeat is refused, beside a mark that stands at high; nil where it is not.
func (tx *Tx) clockAhead(ctx context.Context, now time.Time, high int64) (*aheadOf, error) {
	if tx.d.dialect != Postgres || high == 0 {
		return nil, nil
	}
	theirs, err := tx.Clock(ctx)
	if err != nil || now.Sub(theirs) <= aheadTolerance || FromMicros(high).Sub(theirs) > aheadTolerance {
		return nil, err
	}
	ahead := &aheadOf{now, theirs}
	var theirsToo, oursToo int // other nodes whose newest mark is nearer to the server's clock, and nearer to ours
	middle := theirs.Add(now.Sub(theirs) / 2)
	err = tx.QueryRow(ctx, `SELECT COUNT(CASE WHEN number < $3 THEN 1 END), COUNT(CASE WHEN number >= $3 THEN 1 END) FROM write_mark
		WHERE node <> $1 AND fence <> -1 AND number BETWEEN $2 AND $4`,
		tx.d.writesAs(), Micros(theirs.Add(-aheadTolerance)), Micros(middle), Micros(now.Add(aheadTolerance))).Scan(&theirsToo, &oursToo)
	if err != nil || oursToo > theirsToo || theirsToo == 0 && now.Sub(FromMicros(high)) <= aheadTolerance {
		return nil, err
	}
	return ahead, nil
}

// writesAs is the node that this process writes for; empty where it is none.
func (d *DB) writesAs() string {
	if f := d.fence.Load(); f != nil {
		return f.node
	}
	return d.node
}

// letGo has the others take what leases this node has, and takes what is being done under them from it.
func (tx *Tx) letGo(ctx context.Context) error {
	now, err := tx.Clock(ctx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "UPDATE leases SET expires_at = $2, epoch = epoch + 1 WHERE holder = $1 AND expires_at > 0", tx.d.writesAs(), -Micros(now))
	return err
}

// ClockAhead is Unavailable where the newest heartbeat of this process was refused since its clock is ahead. It costs nothing.
func (d *DB) ClockAhead() error {
	if a := d.ahead.Load(); a != nil {
		return a.refusal()
	}
	return nil
}

func (a *aheadOf) refusal() error {
	return fault.New(fault.Unavailable, "the clock is ahead: this node's said %s when the database's said %s; this node signs nothing, and the others go on",
		a.ours.UTC().Format(time.RFC3339), a.theirs.UTC().Format(time.RFC3339)).
		WithHint("set the wrong one of the two right, by NTP; chancery doctor database compares them. Where the database's was right again by being set, and all nodes " +
			"stay out: chancery rescue clock")
}
