package host

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/db"
)

// followEvery is how often a node looks for changes, once for all who wait there.
const followEvery = 300 * time.Millisecond

// wakeAtOnce is up to how many changed hosts are woken one by one; after more, all are. One that is woken for nothing costs a
// hundred times what it costs to read the name of one that changed, so it is above what a rollout tells between two slow looks.
const wakeAtOnce = 20_000

// followed is how far a node has followed.
type followed struct {
	begun   bool
	host    int64            // the newest change of a host
	revoked map[string]int64 // by issuer's ID: the newest change of a status
}

// Follow wakes those who wait on this node when what they shall hold changes, on whichever node that was: the host itself,
// what its pool trusts, CRLs included, one of its certificates. While the database is away it waits. It returns when ctx ends.
func (s *Service) Follow(ctx context.Context) error {
	f := &followed{revoked: map[string]int64{}}
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	failing := false
	for {
		changed := s.CA.Changed() // before looking, so that nothing is missed
		err := s.follow(ctx, f)
		if err != nil && ctx.Err() == nil && !failing {
			s.Logger.WarnContext(ctx, "changes of hosts cannot be followed", "error", err)
		}
		failing = err != nil
		if failing {
			changed = nil // the ticker is soon enough
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case <-changed:
		}
	}
}

func (s *Service) follow(ctx context.Context, f *followed) error {
	now := time.Now() // before looking
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	var newest int64
	var hosts, requesters []string
	var last map[string]int64
	var numbers map[string]revocation.Numbered
	var states map[string]trust.State
	err = s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		if newest, hosts, err = changedHosts(ctx, tx, f); err != nil {
			return err
		}
		if last, err = ca.LastChanges(ctx, tx); err != nil {
			return err
		}
		if requesters, err = changedRequesters(ctx, tx, issuers, f, last); err != nil {
			return err
		}
		if numbers, err = revocation.CurrentNumbers(ctx, tx); err != nil {
			return err
		}
		states, err = trust.ReadStates(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	pools := s.Trust.Follow(ctx, issuers, states, numbers, now)
	if f.begun {
		s.wake(hosts, requesters, pools)
	} else {
		s.waiting.wakeThose(func(*waiter) bool { return true }) // they may have begun to wait before what this look saw
	}
	f.begun, f.host, f.revoked = true, newest, last
	return nil
}

// wake wakes those whom a change concerns. Where that may be anyone, all look again: who finds nothing new goes on waiting.
func (s *Service) wake(hosts, requesters, pools []string) {
	if len(hosts)+len(requesters)+len(pools) == 0 {
		return
	}
	set := func(names []string) map[string]bool {
		m := make(map[string]bool, len(names))
		for _, name := range names {
			m[name] = true
		}
		return m
	}
	byHost, byPrincipal, byPool := set(hosts), set(requesters), set(pools)
	all := len(hosts) > wakeAtOnce
	s.waiting.wakeThose(func(w *waiter) bool { return all || byHost[w.host] || byPrincipal[w.principal] || byPool[w.pool] })
}

// changedHosts returns the newest change, and the hosts that changed since the last look: one more than can be woken one by
// one, where there are more.
func changedHosts(ctx context.Context, tx *db.Tx, f *followed) (newest int64, hosts []string, err error) {
	if err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(change), 0) FROM host_change`).Scan(&newest); err != nil {
		return 0, nil, fmt.Errorf("read the newest change of a host: %w", err)
	}
	if newest <= f.host || !f.begun {
		return newest, nil, nil
	}
	rows, err := tx.Query(ctx, `SELECT id FROM host WHERE change > $1 ORDER BY change LIMIT $2`, f.host, int64(wakeAtOnce+1))
	if err != nil {
		return 0, nil, fmt.Errorf("read the hosts that changed: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return 0, nil, fmt.Errorf("read the hosts that changed: %w", err)
		}
		hosts = append(hosts, id)
	}
	return newest, hosts, rows.Err()
}

// changedRequesters are those whose certificates were revoked, held or released since the last look.
func changedRequesters(ctx context.Context, tx *db.Tx, issuers []*ca.Issuer, f *followed, last map[string]int64) ([]string, error) {
	var all []string
	for _, i := range issuers {
		known, ok := f.revoked[i.ID]
		if change := last[i.ID]; change > known && f.begun && i.Pool != ca.IdentityPool {
			if !ok {
				known = 0
			}
			requesters, err := ca.ChangedRequesters(ctx, tx, i, known, change)
			if err != nil {
				return nil, err
			}
			all = append(all, requesters...)
		}
	}
	return all, nil
}
