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
// seen is not written to; and one whom nobody follows is held against the others that the URL names.

// errReplaced is a primary that does not know that another was promoted in its place.
var errReplaced = errors.New("the server was replaced")

// timeline is the highest that this process has seen at a primary.
type timeline struct{ highest atomic.Int64 }

// askTimeline is the question, to which a standby has no answer.
const askTimeline = `SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END`

// validate refuses, when a connection is made, a standby, and a primary that was replaced: of several hosts the next is tried.
func (t *timeline) validate(ctx context.Context, conn *pgconn.PgConn) error {
	rows := conn.ExecParams(ctx, askTimeline, nil, nil, nil, nil).Read()
	if rows.Err != nil {
		return rows.Err
	}
	if len(rows.Rows) != 1 || len(rows.Rows[0][0]) == 0 {
		return errStandby
	}
	return t.met(string(rows.Rows[0][0]))
}

// met notes the timeline of a primary, and refuses it when there was a higher one.
func (t *timeline) met(hexadecimal string) error {
	now, err := strconv.ParseInt(hexadecimal, 16, 64)
	if err != nil {
		return fmt.Errorf("read the server's timeline: %w", err)
	}
	for {
		highest := t.highest.Load()
		if now < highest {
			return fmt.Errorf("%w: it takes writes on timeline %d, and another did on timeline %d", errReplaced, now, highest)
		}
		if now == highest || t.highest.CompareAndSwap(highest, now) {
			return nil
		}
	}
}

// rivalsEvery is how often a primary whom nobody follows is held against the other servers.
const rivalsEvery = 2 * time.Second

// replaced is an error when another server has been promoted since this process connected to the primary that it writes to. The others are
// asked only while no standby follows that one, and only where commits wait for standbys. Watch alone calls it.
func (d *DB) replaced(ctx context.Context, now time.Time) error {
	s := d.primary
	if d.durability.Load().(Durability) != Synchronous || now.Sub(s.compared) < rivalsEvery {
		return nil
	}
	s.compared = now
	ctx, cancel := context.WithTimeout(ctx, watchPatience)
	defer cancel()
	conn, err := s.asking.Conn(ctx)
	if err != nil {
		return nil // whether it is there is asked elsewhere
	}
	defer conn.Close()
	var followers int
	var ours string
	err = conn.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM pg_stat_replication), (`+askTimeline+`)`).Scan(&followers, &ours)
	if err != nil || followers > 0 || ours == "" {
		return nil
	}
	askRivals(ctx, d.url, s.timeline)
	if err := s.timeline.met(ours); err != nil {
		discard(conn)
		return err
	}
	return nil
}

// askRivals connects to each server that a URL names, for its timeline alone. Who cannot be asked is no rival.
func askRivals(ctx context.Context, url string, t *timeline) {
	all, err := configure(url, true)
	if err != nil {
		return // the certificates that it names are being renewed
	}
	var asked sync.WaitGroup
	for i := -1; i < len(all.Fallbacks); i++ {
		one := all.Copy()
		one.Fallbacks, one.ValidateConnect = nil, t.validate
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
