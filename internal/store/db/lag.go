package db

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"time"
)

// A standby that answers need not follow: its replay may be paused, its log cut off, it may be being made anew. What it shows is then not what
// the authority says, and a revocation is missing from it for as long as that lasts. So Watch holds what the standby has replayed against what
// the primary had, by the position in the log and by the newest heartbeat, and both times are of one clock, this machine's. The heartbeat is
// for a standby that went its own way: it may be further in a log that is not the primary's.

const (
	// lagging is how far behind the primary a standby may be that is read while the primary answers: Watch looks at both each half a second,
	// so one that follows at once is seen up to a second behind.
	lagging = 2 * time.Second
	// steady is how long it must have been within that before it is read again, so that one that comes and goes is not read in between.
	steady = 5 * time.Second
	// positions bounds what is remembered of the primary, well above lagging.
	positions = 64
)

// position is what a server has.
type position struct {
	at   time.Time // of the primary: when it was about to be asked
	log  int64     // octets of its log
	beat int64     // the newest heartbeat
}

// askPosition is the question to a primary, and with replayed to a standby.
const (
	askPosition = `SELECT COALESCE(MAX(high_water), 0), CAST(pg_current_wal_lsn() - '0/0' AS BIGINT) FROM clock`
	replayed    = `COALESCE(CAST(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0' AS BIGINT), 0)`
)

// positionOf asks a primary; nil where it cannot be said, as before there is an authority.
func positionOf(ctx context.Context, conn *sql.Conn, at time.Time) *position {
	p := &position{at: at}
	if conn.QueryRowContext(ctx, askPosition).Scan(&p.beat, &p.log) != nil {
		return nil
	}
	return p
}

// lag is how far the standby that is read is behind the primary.
type lag struct {
	mu     sync.Mutex
	had    []position // of the primary, the oldest first; guarded by mu
	has    time.Time  // the newest of them that the standby has; zero while none is known; guarded by mu
	within time.Time  // since when it is within lagging again; zero while it is not; guarded by mu

	late  atomic.Bool          // it is not to be read while the primary answers
	since atomic.Pointer[span] // when it was seen to be behind; nil while it is not
	known atomic.Bool          // the standby was seen to have what the primary had

	behind atomic.Pointer[Behind] // as of the newest looks; nil while nothing is known
}

// Behind is how far a standby was behind the primary when both were looked at last. Both are 0 where it had all that the primary had.
type Behind struct {
	For    time.Duration // since it was last seen to have all that the primary had a moment before
	Octets int64         // of the primary's log that it had not replayed
}

// Behind is how far the standby that is read is behind the primary, as Watch saw both last; nil where there is none, and while it is not known:
// before both have answered, and while either is away. It costs nothing.
func (d *DB) Behind() *Behind { return d.lag.behind.Load() }

// span is a standby that is behind.
type span struct {
	begun time.Time
	by    time.Duration // at first
}

// forget is for when either server goes away: what they had says nothing of what they have when they are back.
func (l *lag) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.had, l.has, l.within = nil, time.Time{}, time.Time{}
	l.late.Store(false)
	l.known.Store(false)
	l.since.Store(nil)
	l.behind.Store(nil)
}

// primary notes what the primary has.
func (l *lag) primary(p position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.had = append(l.had, p); len(l.had) > positions {
		l.had = append(l.had[:0], l.had[1:]...)
	}
	if !l.has.IsZero() {
		l.judge(p.at)
	}
	l.late.Store(l.has.IsZero() || l.since.Load() != nil)
}

// standby notes what the standby has, now.
func (l *lag) standby(p position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.had) - 1; i >= 0; i-- {
		if had := l.had[i]; p.log >= had.log && p.beat >= had.beat {
			l.has = had.at
			l.had = append(l.had[:0], l.had[i:]...)
			l.known.Store(true)
			break
		}
	}
	l.measure(p)
	if len(l.had) > 0 { // else the primary has not answered
		l.judge(p.at)
		l.late.Store(l.has.IsZero() || l.since.Load() != nil)
	}
}

// measure notes how far behind the newest that is known of the primary the standby is. One that was never seen to have what the primary had
// is behind for longer than is known here.
func (l *lag) measure(p position) {
	if len(l.had) == 0 {
		return
	}
	newest, had := l.had[len(l.had)-1], l.has
	b := &Behind{Octets: max(0, newest.log-p.log)}
	if p.log < newest.log || p.beat < newest.beat {
		if since := l.since.Load(); had.IsZero() && since != nil {
			had = since.begun
		} else if had.IsZero() {
			had = l.had[0].at
		}
		b.For = p.at.Sub(had)
	}
	l.behind.Store(b)
}

// judge says whether the standby is behind. One that has not answered yet is not read, and not called so.
func (l *lag) judge(now time.Time) {
	newest := l.had[len(l.had)-1].at
	by := newest.Sub(l.has)
	if l.has.IsZero() {
		by = newest.Sub(l.had[0].at)
	}
	switch since := l.since.Load(); {
	case by > lagging:
		l.within = time.Time{}
		if since == nil {
			l.since.Store(&span{now, by})
		}
	case since != nil && l.within.IsZero():
		l.within = now
	case since != nil && now.Sub(l.within) >= steady:
		l.since.Store(nil)
	}
}

// sampled holds what a look at a server showed against the other's, and says once that the standby is behind, and once that it is not. It is
// before the server counts as there again, so that a standby is never read of which nothing is known.
func (d *DB) sampled(s *server) {
	if d.standby == nil || s.shown == nil {
		return
	}
	before := d.lag.since.Load()
	if s.primary {
		d.lag.primary(*s.shown)
	} else {
		d.lag.standby(*s.shown)
	}
	switch now := d.lag.since.Load(); {
	case now != nil && before == nil:
		d.log.Warn(d.standby.name+" is behind, and is not read while the primary answers", "behind", now.by.Round(time.Millisecond).String())
	case now == nil && before != nil:
		d.log.Info(d.standby.name+" has what the primary has, and is read again", "away", time.Since(before.begun).Round(time.Millisecond).String())
	}
}
