package db

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Each promotion begins a timeline of PostgreSQL's log, with a higher number. So of two servers that both take writes the one of the
// lower timeline was replaced, and does not know it yet: its machine stood still, or what watches over it does. It acknowledges nothing, since
// no standby follows it any more, but whoever is connected to it waits there in vain. A primary of a lower timeline than this process has
// seen is not written to, and what is connected to one is ended; one that no synchronous standby follows is held against the others that
// the URL names.

// errReplaced is a primary that does not know that another was promoted in its place.
var errReplaced = errors.New("the server was replaced")

// timeline is the highest that this process has seen at a primary.
type timeline struct{ highest atomic.Int64 }

// askTimeline is the question, to which a standby has no answer.
const askTimeline = `SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END`

// validate refuses, when a connection is made, a standby, and a primary that was replaced: of several hosts the next is tried.
// It returns the timeline.
func (t *timeline) validate(ctx context.Context, conn *pgconn.PgConn) (int64, error) {
	rows := conn.ExecParams(ctx, askTimeline, nil, nil, nil, nil).Read()
	if rows.Err != nil {
		return 0, rows.Err
	}
	if len(rows.Rows) != 1 || len(rows.Rows[0][0]) == 0 {
		return 0, errStandby
	}
	return t.met(string(rows.Rows[0][0]))
}

// met notes and returns the timeline of a primary, and refuses it when there was a higher one.
func (t *timeline) met(hexadecimal string) (int64, error) {
	now, err := strconv.ParseInt(hexadecimal, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("read the server's timeline: %w", err)
	}
	for {
		highest := t.highest.Load()
		if now < highest {
			return now, fmt.Errorf("%w: it takes writes on timeline %d, and another did on timeline %d", errReplaced, now, highest)
		}
		if now == highest || t.highest.CompareAndSwap(highest, now) {
			return now, nil
		}
	}
}

// followed ends what is connected to a primary that was replaced, once any connection has met the one in its place: what is open there
// would wait in vain. Of connections that were made before commits waited for standbys nobody knows where they lead; they end as well when
// another is promoted. Watch alone calls it.
func (s *server) followed() {
	highest := s.timeline.highest.Load()
	s.open.closeBelow(highest, s.met != 0 && highest > s.met)
	s.met = highest
}

// rivalsEvery is how often a primary that no synchronous standby follows is held against the other servers.
const rivalsEvery = 2 * time.Second

// rivals are the other servers that a URL names. They are asked beside the watch of the primary, since one that stands still takes as long
// as there is patience for it; what they say is seen at the primary's next answer. They are asked only where commits wait for standbys:
// one that nobody waits for may follow the replaced primary on. The watch alone calls the methods.
type rivals struct {
	asking sync.WaitGroup
	busy   atomic.Bool
	asked  time.Time
}

// ask notes the timelines of all that are primaries, unless that is being done, or was a moment ago.
func (r *rivals) ask(ctx context.Context, url string, t *timeline, now time.Time) {
	if now.Sub(r.asked) < rivalsEvery || !r.busy.CompareAndSwap(false, true) {
		return
	}
	r.asked = now
	r.asking.Go(func() {
		defer r.busy.Store(false)
		ctx, cancel := context.WithTimeout(ctx, watchPatience)
		defer cancel()
		askRivals(ctx, url, t)
	})
}

func (r *rivals) wait() { r.asking.Wait() }

// askRivals connects to each server that a URL names, for its timeline alone. Who cannot be asked is no rival.
func askRivals(ctx context.Context, url string, t *timeline) {
	all, err := configure(url, true)
	if err != nil {
		return // the certificates that it names are being renewed
	}
	var asked sync.WaitGroup
	for i := -1; i < len(all.Fallbacks); i++ {
		one := all.Copy()
		one.Fallbacks = nil
		one.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
			_, err := t.validate(ctx, conn)
			return err
		}
		if i >= 0 {
			one.Host, one.Port, one.TLSConfig = all.Fallbacks[i].Host, all.Fallbacks[i].Port, all.Fallbacks[i].TLSConfig
		}
		asked.Go(func() {
			if conn, err := pgx.ConnectConfig(context.WithValue(ctx, connecting{}, true), one); err == nil {
				_ = conn.Close(ctx)
			}
		})
	}
	asked.Wait()
}
