package host

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Show returns a host; where no host has the name now, the one that had it last.
func (s *Service) Show(ctx context.Context, by access.Principal, name string) (*client.Host, error) {
	if err := by.May(access.ReadHosts); err != nil {
		return nil, err
	}
	var found client.Host
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		r, err := named(ctx, tx, name)
		if fault.Is(err, fault.NotFound) {
			last, again := find(ctx, tx, `host.id = (SELECT id FROM host WHERE name = $1 AND removed_at > 0 ORDER BY removed_at DESC LIMIT 1)`,
				strings.ToLower(name))
			if again != nil || last != nil {
				r, err = last, again
			}
		}
		if err != nil {
			return err
		}
		if found, err = s.view(ctx, tx, r); err != nil {
			return err
		}
		if err := s.addWaits(ctx, tx, r, &found); err != nil {
			return err
		}
		return s.addRemaining(ctx, tx, r, &found, time.Now())
	})
	if err != nil {
		return nil, fmt.Errorf("show host %s: %w", quoted(name), err)
	}
	return &found, nil
}

// List lists hosts: those with a problem first, then by name; after is the key that the page before gave as next.
func (s *Service) List(ctx context.Context, by access.Principal, f client.HostFilter, after string, limit int) (found []client.Host, next string, err error) {
	if err := by.May(access.ReadHosts); err != nil {
		return nil, "", err
	}
	if limit < 1 || limit > 1000 {
		return nil, "", fault.New(fault.Invalid, "a page of %d hosts was asked for; from 1 to 1000 can be had", limit)
	}
	if f.Pool != "" { // a misspelt one would silently have no hosts
		if _, err := s.Pools.Pool(ctx, f.Pool); err != nil {
			return nil, "", at(err, "query pool")
		}
	}
	where, args, err := selects(f, after)
	if err != nil {
		return nil, "", err
	}
	args = append(args, int64(limit+1))
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+hostColumns+` FROM host WHERE `+where+` ORDER BY host.problem DESC, host.name, host.id LIMIT $`+fmt.Sprint(len(args)), args...)
		if err != nil {
			return err
		}
		page, err := scanRows(rows)
		if err != nil {
			return err
		}
		next = ""
		if len(page) > limit {
			page = page[:limit]
			last := page[limit-1]
			next = fmt.Sprintf("%d %s %s", db.Bit(last.problem), last.name, last.id)
		}
		found, err = s.views(ctx, tx, page)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list hosts: %w", err)
	}
	return found, next, nil
}

// selects is what a filter and a page's key select.
func selects(f client.HostFilter, after string) (string, []any, error) {
	conditions, args := []string{"host.removed_at = 0"}, []any{}
	add := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		conditions = append(conditions, condition)
	}
	switch f.State {
	case "":
	case client.HostRemoved:
		conditions[0] = "host.removed_at > 0"
	case client.HostPending, client.HostJoined, client.HostSuspect:
		add("host.state = ?", f.State)
	default:
		return "", nil, fault.New(fault.Invalid, "state %.40q is not one of pending, joined, suspect, removed", f.State).At("query state")
	}
	if f.Pool != "" {
		add("host.pool = ?", f.Pool)
	}
	if after != "" {
		var problem int64
		var name, id string
		if n, err := fmt.Sscanf(after, "%d %s %s", &problem, &name, &id); n != 3 || err != nil {
			return "", nil, fault.New(fault.Invalid, "page key %.40q is not one that this list returned", after).At("query after")
		}
		add("(host.problem < ? OR host.problem = ? AND (host.name, host.id) > (?, ?))", problem, problem, name, id)
	}
	return strings.Join(conditions, " AND "), args, nil
}

func scanRows(rows *sql.Rows) ([]*row, error) {
	defer rows.Close()
	var all []*row
	for rows.Next() {
		r, err := scanRow(rows.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

func (s *Service) view(ctx context.Context, tx *db.Tx, r *row) (client.Host, error) {
	found, err := s.views(ctx, tx, []*row{r})
	if err != nil {
		return client.Host{}, err
	}
	return found[0], nil
}

// views are hosts as they are shown, with what belongs to them read in few statements.
func (s *Service) views(ctx context.Context, tx *db.Tx, rows []*row) ([]client.Host, error) {
	found := make([]client.Host, len(rows))
	index := make(map[string]*client.Host, len(rows))
	for i, r := range rows {
		found[i] = client.Host{
			Name: r.name, Pool: r.pool, DNS: []string{}, State: r.state, Message: r.message, Absent: r.absent, CreatedAt: r.created, JoinedAt: r.joined,
			Agent: r.agent, IdentityEnds: r.identityEnds, Profiles: r.profiles, Labels: r.labels,
		}
		if !r.removed.IsZero() {
			found[i].DNS = []string{r.name}
		}
		index[r.id] = &found[i]
	}
	const chunk = 500
	for len(rows) > 0 {
		n := min(len(rows), chunk)
		if err := s.fill(ctx, tx, rows[:n], index); err != nil {
			return nil, err
		}
		rows = rows[n:]
	}
	return found, nil
}

// fill adds names, placements, tokens and times of last calls.
func (s *Service) fill(ctx context.Context, tx *db.Tx, rows []*row, index map[string]*client.Host) error {
	var places []string
	var ids []any
	for _, r := range rows {
		ids = append(ids, r.id)
		places = append(places, fmt.Sprintf("$%d", len(ids)))
	}
	in := ` IN (` + strings.Join(places, ", ") + `)`
	err := each(ctx, tx, `SELECT host, kind, name FROM host_name WHERE host`+in+` ORDER BY host, position`, ids, func(scan func(...any) error) error {
		var host, kind, name string
		if err := scan(&host, &kind, &name); err != nil {
			return err
		}
		if h := index[host]; kind == "ip" {
			h.IP = append(h.IP, name)
		} else {
			h.DNS = append(h.DNS, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	placements, err := readPlacements(ctx, tx, `host`+in, ids...)
	if err != nil {
		return err
	}
	for _, p := range placements {
		index[p.host].Placements = append(index[p.host].Placements, p.Placement)
	}
	err = each(ctx, tx, `SELECT host, expires, redeemed_at, refused FROM host_token WHERE host`+in, ids, func(scan func(...any) error) error {
		var host string
		var expires, redeemed, refused int64
		if err := scan(&host, &expires, &redeemed, &refused); err != nil {
			return err
		}
		h := index[host]
		if redeemed == 0 {
			h.TokenExpires = db.FromMicros(expires)
		}
		if refused > 0 && h.Message == "" {
			h.Message = fmt.Sprintf("its join token, which was redeemed, was shown again with another key (%d times, as far as was counted)", refused)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = each(ctx, tx, `SELECT host, seen_at FROM host_seen WHERE host`+in, ids, func(scan func(...any) error) error {
		var host string
		var at int64
		if err := scan(&host, &at); err != nil {
			return err
		}
		index[host].SeenAt = db.FromMicros(at)
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range rows {
		if at := s.seen[r.id]; at.After(index[r.id].SeenAt) {
			index[r.id].SeenAt = at.UTC().Truncate(time.Microsecond)
		}
	}
	return err
}

func each(ctx context.Context, tx *db.Tx, query string, args []any, fn func(scan func(...any) error) error) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Silent is after how long without a call an agent is worth a look: it polls every few minutes.
const Silent = time.Hour

// Counts is how the hosts do, in one look.
type Counts struct {
	Hosts, Pending, Joined, Suspect int64
	Silent                          int64 // joined, and not seen for Silent
	Failed                          int64 // placements
	// Soonest is the placement whose certificate ends first; an empty host where there is none.
	SoonestHost, SoonestPlacement string
	SoonestEnd                    time.Time
}

// Count counts.
func (s *Service) Count(ctx context.Context, now time.Time) (c Counts, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		c = Counts{}
		err := each(ctx, tx, `SELECT state, COUNT(*) FROM host WHERE removed_at = 0 GROUP BY state`, nil, func(scan func(...any) error) error {
			var state string
			var n int64
			if err := scan(&state, &n); err != nil {
				return err
			}
			c.Hosts += n
			switch state {
			case client.HostPending:
				c.Pending = n
			case client.HostJoined:
				c.Joined = n
			case client.HostSuspect:
				c.Suspect = n
			}
			return nil
		})
		if err != nil {
			return err
		}
		since := db.Micros(now.Add(-Silent))
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM host LEFT JOIN host_seen ON host_seen.host = host.id
			WHERE host.state = 'joined' AND host.removed_at = 0 AND host.joined_at < $1 AND COALESCE(host_seen.seen_at, 0) < $1`, since).Scan(&c.Silent)
		if err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM host_placement WHERE state = 'failed'`).Scan(&c.Failed); err != nil {
			return err
		}
		var end int64
		err = tx.QueryRow(ctx, `SELECT host.name, host_placement.name, host_placement.not_after FROM host_placement JOIN host ON host.id = host_placement.host
			WHERE host_placement.not_after > 0 ORDER BY host_placement.not_after LIMIT 1`).Scan(&c.SoonestHost, &c.SoonestPlacement, &end)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		c.SoonestEnd = db.FromMicros(end)
		return err
	})
	if err != nil {
		return Counts{}, fmt.Errorf("count the hosts: %w", err)
	}
	return c, nil
}
