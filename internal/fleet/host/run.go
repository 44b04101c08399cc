package host

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

const (
	// flushEvery is how often the times of agents' last calls are written, and so how coarse they are.
	flushEvery = time.Minute
	// flushRows is how many are written by one statement.
	flushRows = 250
	// maxSeen bounds what is kept between two flushes.
	maxSeen = 1 << 17
	// KeepRemoved is how long a host that was removed is still shown.
	KeepRemoved = 400 * 24 * time.Hour
	// keepToken is how long a token's row outlives its end: a repeated redemption is answered, and a late one told why not.
	keepToken = 30 * 24 * time.Hour
)

// Run writes the times of agents' last calls now and then, and finishes the revocations that were cut short, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	for {
		if err := errors.Join(s.FlushSeen(ctx), s.TakeHeard(ctx), s.finish(ctx)); err != nil && ctx.Err() == nil {
			s.Logger.WarnContext(ctx, "hosts: the minute's work is not done, and is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// noteSeen remembers that an agent called. It never waits for the database.
func (s *Service) noteSeen(host string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) < maxSeen {
		s.seen[host] = now
	}
}

// FlushSeen writes the times of last calls that are pending.
func (s *Service) FlushSeen(ctx context.Context) error {
	s.mu.Lock()
	pending := s.seen
	s.seen = map[string]time.Time{}
	s.mu.Unlock()
	var hosts []string
	for host := range pending {
		hosts = append(hosts, host)
	}
	for len(hosts) > 0 {
		n := min(len(hosts), flushRows)
		if err := s.writeSeen(ctx, hosts[:n], pending); err != nil {
			s.mu.Lock()
			for _, host := range hosts {
				if s.seen[host].Before(pending[host]) {
					s.seen[host] = pending[host]
				}
			}
			s.mu.Unlock()
			return fmt.Errorf("write when agents were seen: %w", err)
		}
		hosts = hosts[n:]
	}
	return nil
}

func (s *Service) writeSeen(ctx context.Context, hosts []string, at map[string]time.Time) error {
	var rows []string
	var args []any
	for _, host := range hosts {
		args = append(args, host, db.Micros(at[host]))
		rows = append(rows, fmt.Sprintf("($%d, $%d)", len(args)-1, len(args)))
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		// What a node wrote whose clock is ahead would hide what is heard until then.
		now, err := tx.Clock(ctx)
		if err != nil {
			return err
		}
		for i := 1; i < len(args); i += 2 {
			args[i] = min(args[i].(int64), db.Micros(now))
		}
		reads, err := tx.Reader(ctx)
		if err != nil {
			return err
		}
		if reads {
			return heardByReader(ctx, tx, rows, args)
		}
		// Another node may have written a later time.
		_, err = tx.Exec(ctx, `INSERT INTO host_seen (host, seen_at) VALUES `+strings.Join(rows, ", ")+`
			ON CONFLICT (host) DO UPDATE SET seen_at = excluded.seen_at WHERE host_seen.seen_at < excluded.seen_at`, args...)
		return err
	})
}

// heardByReader writes what writeSeen does, where the node's login at the database may write rows of its own alone.
func heardByReader(ctx context.Context, tx *db.Tx, rows []string, args []any) error {
	own := strings.ReplaceAll(strings.Join(rows, ", "), "(", "(substr(session_user, 10), ")
	_, err := tx.Exec(ctx, `INSERT INTO host_heard (node, host, seen_at) VALUES `+own+`
		ON CONFLICT (node, host) DO UPDATE SET seen_at = excluded.seen_at WHERE host_heard.seen_at < excluded.seen_at`, args...)
	return err
}

// TakeHeard takes over what nodes have heard whose logins at the database read. SQLite has no such nodes.
func (s *Service) TakeHeard(ctx context.Context) error {
	if s.DB.Dialect() != db.Postgres {
		return nil
	}
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		if reads, err := tx.Reader(ctx); err != nil || reads {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO host_seen (host, seen_at)
			SELECT heard.host, MAX(heard.seen_at) FROM host_heard heard JOIN host ON host.id = heard.host LEFT JOIN host_seen seen ON seen.host = heard.host
			WHERE seen.seen_at IS NULL OR seen.seen_at < heard.seen_at GROUP BY heard.host
			ON CONFLICT (host) DO UPDATE SET seen_at = excluded.seen_at WHERE host_seen.seen_at < excluded.seen_at`)
		return err
	})
	if err != nil {
		return fmt.Errorf("take over what other nodes have heard: %w", err)
	}
	return nil
}

// ending is a machine that is no longer a host, and holds certificates that are to be revoked.
type ending struct {
	principal, actor string
	reason           crl.Reason
}

// readEnding returns nil where there is none.
func readEnding(ctx context.Context, tx *db.Tx) (*ending, error) {
	var e ending
	var reason int64
	err := tx.QueryRow(ctx, `SELECT principal, reason, actor FROM host_ending ORDER BY principal LIMIT 1`).Scan(&e.principal, &reason, &e.actor)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is to be revoked: %w", err)
	}
	e.reason = crl.Reason(reason)
	return &e, nil
}

// Prune removes up to limit hosts that were removed long ago, and as many tokens that ended, and says how many it removed of
// the more numerous.
func (s *Service) Prune(ctx context.Context, now time.Time, limit int) (n int64, err error) {
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		removed, err := tx.Exec(ctx, `DELETE FROM host WHERE id IN (SELECT id FROM host WHERE removed_at > 0 AND removed_at < $1
			ORDER BY removed_at LIMIT $2)`, db.Micros(now.Add(-KeepRemoved)), int64(limit))
		if err != nil {
			return err
		}
		ended, err := tx.Exec(ctx, `DELETE FROM host_token WHERE id IN (SELECT id FROM host_token WHERE expires < $1 ORDER BY id LIMIT $2)`,
			db.Micros(now.Add(-keepToken)), int64(limit))
		n = max(removed, ended)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune hosts: %w", err)
	}
	return n, nil
}
