package db

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"chancery/internal/fault"
)

// ClockTolerance is how far a node's clock may be behind the newest heartbeat of any node.
const ClockTolerance = 5 * time.Minute

const clockRow = "authority"

// Heartbeat writes now as the newest time that any node has seen, and learns what others have written. A node whose login reads writes it
// into a row of its own, and learns what else it may write. It is refused, and
// writes nothing, while the clock is behind, or ahead of the database's. Each node calls it every few seconds; the row is also how old a standby's
// reads are (ReadAge), and a synchronously committed write after which a look at the primary settles an unknown outcome.
func (d *DB) Heartbeat(ctx context.Context, now time.Time) error {
	before := d.refused.Load()
	var high, history int64
	var ahead *aheadOf
	ends := d.ends.Load()
	err := d.Tx(ctx, func(tx *Tx) error {
		var err error
		if high, ahead, err = tx.judgeClock(ctx, now); err != nil || behind(now, high) {
			return err
		}
		if history, err = readHistory(ctx, tx); err != nil {
			return err
		}
		high = max(high, Micros(now))
		reads, err := tx.Reader(ctx)
		if err != nil {
			return err
		}
		if ends, err = tx.endsSuspensions(ctx); err != nil {
			return err
		}
		switch {
		case ahead != nil && reads: // it has no lease; with what it writes goes its mark, by which the others judge their clocks
			_, err = tx.Exec(ctx, "UPDATE clock SET high_water = LEAST(high_water, "+soon+") WHERE name = "+readerRow)
			return err
		case ahead != nil:
			return tx.letGo(ctx)
		case reads:
			_, err = tx.Exec(ctx, `INSERT INTO clock (name, high_water) VALUES (`+readerRow+`, LEAST($1::bigint, `+soon+`))
				ON CONFLICT (name) DO UPDATE SET high_water = excluded.high_water`, Micros(now))
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO clock (name, high_water) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET high_water = excluded.high_water`, clockRow, high)
		return err
	})
	if err != nil {
		return err
	}
	d.ahead.Store(ahead)
	if ahead != nil {
		return d.ClockAhead()
	}
	d.highWater.Store(high)
	d.ends.Store(ends)
	d.begins(history)
	if before != nil {
		d.refused.CompareAndSwap(before, nil) // one that came meanwhile stays until the next heartbeat
	}
	return d.CheckClock(now)
}

// JudgeClock refuses what a heartbeat at now would be refused for, and writes nothing. It is for what is removed by the clock, and is gone where
// the clock was wrong: CheckClock knows only what the last heartbeat found.
func (d *DB) JudgeClock(ctx context.Context, now time.Time) error {
	var high int64
	var ahead *aheadOf
	err := d.Tx(ctx, func(tx *Tx) (err error) {
		high, ahead, err = tx.judgeClock(ctx, now)
		return err
	})
	switch {
	case err != nil:
		return err
	case ahead != nil:
		return ahead.refusal()
	case behind(now, high):
		return refusedBehind(now, high)
	}
	return nil
}

// judgeClock returns the newest time that any node has seen, and whether now, which is not behind it, is ahead of the database's.
func (tx *Tx) judgeClock(ctx context.Context, now time.Time) (high int64, ahead *aheadOf, err error) {
	if high, err = readClock(ctx, tx); err == nil && !behind(now, high) {
		ahead, err = tx.clockAhead(ctx, now, high)
	}
	return high, ahead, err
}

// CheckClock is Unavailable while now is behind the newest time that this process has learnt from the store: certificates and
// CRLs would be dated before what was issued already. So it is while the clock is ahead of the database's (ClockAhead): they would be dated
// in the future. It costs nothing.
func (d *DB) CheckClock(now time.Time) error {
	if err := d.ClockAhead(); err != nil {
		return err
	}
	high := d.highWater.Load()
	if !behind(now, high) {
		return nil
	}
	return refusedBehind(now, high)
}

func refusedBehind(now time.Time, high int64) error {
	return fault.New(fault.Unavailable, "the clock is behind: it says %s, and the authority has seen %s", now.UTC().Format(time.RFC3339),
		FromMicros(high).Format(time.RFC3339)).
		WithHint("set the clock right; if it is right and the store's mark is wrong, chancery rescue clock sets the mark back")
}

// Latest is now, or the newest time that this process has learnt from the store where the clock is behind it.
func (d *DB) Latest(now time.Time) time.Time {
	if high := d.highWater.Load(); behind(now, high) {
		return FromMicros(high)
	}
	return now
}

func behind(now time.Time, high int64) bool { return Micros(now) < high-ClockTolerance.Microseconds() }

// LearnClock reads the mark, for a process that has not made a heartbeat yet.
func (d *DB) LearnClock(ctx context.Context) error {
	return d.Read(ctx, func(tx *Tx) error {
		high, err := readClock(ctx, tx)
		if err == nil {
			d.highWater.Store(high)
		}
		if err == nil && tx.standby { // what the primary showed says nothing of it
			if high, err = newestBeat(ctx, tx); err == nil {
				d.standby.seen.Store(max(high, d.standby.seen.Load()))
			}
		}
		return err
	})
}

// ResetClock sets the mark to now even if that is back: for an operator whose clock had been ahead.
func (d *DB) ResetClock(ctx context.Context, now time.Time) error {
	err := d.Tx(ctx, func(tx *Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO clock (name, high_water) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET high_water = excluded.high_water`, clockRow, Micros(now))
		return err
	})
	if err == nil {
		d.highWater.Store(Micros(now))
	}
	return err
}

// SeenTime is the newest time that any node has written; zero before the first heartbeat.
func (d *DB) SeenTime(ctx context.Context) (seen time.Time, err error) {
	err = d.Read(ctx, func(tx *Tx) error {
		high, err := readClock(ctx, tx)
		if high != 0 {
			seen = FromMicros(high)
		}
		return err
	})
	return seen, err
}

// ReadAge is how old what Read sees may be: the time since the newest heartbeat that has arrived there. Before the first
// heartbeat it is 0.
func (d *DB) ReadAge(ctx context.Context, now time.Time) (time.Duration, error) {
	var high int64
	err := d.Read(ctx, func(tx *Tx) (err error) {
		high, err = newestBeat(ctx, tx)
		return err
	})
	if err != nil || high == 0 {
		return 0, err
	}
	return max(0, now.Sub(FromMicros(high))), nil
}

// Clock is the time by the clock of the server that tx is at. It is for what several nodes write of when they did something, and hold
// against each other: their own clocks may be apart. What is dated for others is dated by the node's.
func (tx *Tx) Clock(ctx context.Context) (time.Time, error) {
	if tx.d.dialect == SQLite {
		return FromMicros(Micros(time.Now())), nil
	}
	var now int64
	err := tx.QueryRow(ctx, `SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)`).Scan(&now)
	return FromMicros(now), err
}

// newestBeat is the newest heartbeat, also of nodes whose logins read: it tells how old what is read is. What certificates are dated by
// is the row that those do not write.
func newestBeat(ctx context.Context, tx *Tx) (at int64, err error) {
	err = tx.QueryRow(ctx, "SELECT COALESCE(MAX(high_water), 0) FROM clock").Scan(&at)
	return at, err
}

func readClock(ctx context.Context, tx *Tx) (high int64, err error) {
	err = tx.QueryRow(ctx, "SELECT high_water FROM clock WHERE name = $1", clockRow).Scan(&high)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return high, err
}
