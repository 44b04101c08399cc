package rollout

import (
	"context"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/db"
)

// Finding is something in the rows of rollouts, or in what they told hosts, that is not as it should be.
type Finding struct {
	Object  string // "rollout 3", or "host web1"
	Message string
}

// Checked says how much Check looked at.
type Checked struct{ Rollouts, Members, Hosts int64 }

// Check holds the rollouts against the pools, the hosts and each other: whoever is at work has a pool and its claim, and nobody
// else has; hosts are told of versions and issuers of their own pool, and of none that issues no more. It stops when tell
// returns false.
func (s *Service) Check(ctx context.Context, tell func(Finding) bool) (seen Checked, err error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return seen, err
	}
	c := &checking{issuers: issuers}
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		c.seen, c.found, c.working = Checked{}, nil, map[string]*row{}
		if c.trusts, err = trust.ReadStates(ctx, tx); err != nil {
			return err
		}
		for _, look := range []func(context.Context, *db.Tx) error{c.rollouts, c.claims, c.members, c.hosts, c.placements} {
			if err := look(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return seen, fmt.Errorf("check rollouts: %w", err)
	}
	for _, f := range c.found {
		if !tell(f) {
			break
		}
	}
	return c.seen, nil
}

// checking is one Check.
type checking struct {
	issuers []*ca.Issuer
	trusts  map[string]trust.State
	working map[string]*row // by pool
	seen    Checked
	found   []Finding
}

func (c *checking) say(object, format string, args ...any) {
	c.found = append(c.found, Finding{object, fmt.Sprintf(format, args...)})
}

// rollouts looks at each by itself, and at its pool.
func (c *checking) rollouts(ctx context.Context, tx *db.Tx) error {
	pools, err := db.TextColumn(ctx, tx, `SELECT name FROM pool`)
	if err != nil {
		return err
	}
	all, err := read(ctx, tx, `ORDER BY number`)
	if err != nil {
		return err
	}
	for _, r := range all {
		c.seen.Rollouts++
		object := "rollout " + r.id
		if !slices.Contains(pools, r.pool) {
			c.say(object, "it is of pool %q, which there is not", r.pool)
		}
		ends := slices.Contains([]string{client.RolloutDone, client.RolloutUndone, client.RolloutAborted}, r.state)
		works := slices.Contains([]string{client.RolloutWaiting, client.RolloutRunning, client.RolloutPaused}, r.state)
		switch {
		case !ends && !works:
			c.say(object, "its state is %q", r.state)
		case ends != r.over():
			c.say(object, "it is %s, and has an end: %t", r.state, r.over())
		}
		if r.stage != client.StagePrepare && !slices.Contains(r.plan.Steps, r.stage) {
			c.say(object, "it is in stage %q, and its stages are %v", r.stage, r.plan.Steps)
		}
		if r.wave < 0 || r.wave > int64(len(r.plan.Waves)) {
			c.say(object, "it is in wave %d of %d", r.wave, len(r.plan.Waves))
		}
		if !r.over() {
			c.working[r.pool] = r
		}
	}
	return nil
}

// claims looks who has a pool's trust for himself.
func (c *checking) claims(ctx context.Context, tx *db.Tx) error {
	claimed := map[string]string{}
	for name, st := range c.trusts {
		if st.Rollout == "" {
			continue
		}
		claimed[name] = st.Rollout
		if r := c.working[name]; r == nil || r.id != st.Rollout {
			c.say("rollout "+st.Rollout, "it has the trust of pool %q for itself, and is not at work on it", name)
		}
	}
	for name, r := range c.working {
		if movesTrust(r.kind) && claimed[name] != r.id {
			c.say("rollout "+r.id, "it changes what pool %q trusts, and has no claim to that", name)
		}
	}
	return nil
}

// members looks for hosts of rollouts that there are not, and for hosts there are in waves that there are not.
func (c *checking) members(ctx context.Context, tx *db.Tx) error {
	if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM rollout_host`).Scan(&c.seen.Members); err != nil {
		return fmt.Errorf("count the hosts of rollouts: %w", err)
	}
	lost, err := db.TextColumn(ctx, tx, `SELECT DISTINCT m.rollout FROM rollout_host m WHERE NOT EXISTS (SELECT 1 FROM rollout r WHERE r.id = m.rollout)`)
	if err != nil {
		return err
	}
	for _, id := range lost {
		c.say("rollout "+id, "there are hosts of it, and it is not there itself")
	}
	for _, r := range c.working {
		strangers, err := db.TextColumn(ctx, tx, `SELECT m.name FROM rollout_host m WHERE m.rollout = $1
			AND NOT EXISTS (SELECT 1 FROM host h WHERE h.id = m.host AND h.pool = $2) ORDER BY m.name`, r.id, r.pool)
		if err != nil {
			return err
		}
		for _, name := range strangers {
			c.say("rollout "+r.id, "host %s is in it, and was never in pool %q", name, r.pool)
		}
		astray, err := db.TextColumn(ctx, tx, `SELECT name FROM rollout_host WHERE rollout = $1 AND (wave < 1 OR wave > $2) ORDER BY name`, r.id, int64(len(r.plan.Waves)))
		if err != nil {
			return err
		}
		for _, name := range astray {
			c.say("rollout "+r.id, "host %s is in none of its %d waves", name, len(r.plan.Waves))
		}
	}
	return nil
}

// hosts looks at what hosts are told by rollouts.
func (c *checking) hosts(ctx context.Context, tx *db.Tx) error {
	rows, err := tx.Query(ctx, `SELECT h.name, h.pool, h.trust, h.issuer, COALESCE(p.name, ''), COALESCE(p.held, '') FROM host h
		LEFT JOIN host_placement p ON p.host = h.id AND p.held <> '' WHERE h.removed_at = 0 AND (h.trust <> 0 OR h.issuer <> '' OR p.held IS NOT NULL)
		ORDER BY h.name`)
	if err != nil {
		return fmt.Errorf("read what hosts are told: %w", err)
	}
	defer rows.Close()
	last := ""
	for rows.Next() {
		var name, pool, issuer, placement, held string
		var version int64
		if err := rows.Scan(&name, &pool, &version, &issuer, &placement, &held); err != nil {
			return fmt.Errorf("read what hosts are told: %w", err)
		}
		if wrong := c.held(pool, held); wrong != "" {
			c.say("host "+name, "placement %s %s", placement, wrong)
		}
		if name == last {
			continue
		}
		last = name
		c.seen.Hosts++
		if st := c.trusts[pool]; version < 0 || version > st.Newest {
			c.say("host "+name, "it is at %s of what pool %q trusts, and the newest is %s", client.TrustVersion(version), pool,
				client.TrustVersion(st.Newest))
		}
		if wrong := c.under(pool, issuer); wrong != "" {
			c.say("host "+name, "%s", wrong)
		}
	}
	return rows.Err()
}

// held says what is wrong with holding a placement of a pool at an issuer.
func (c *checking) held(pool, print string) string {
	switch {
	case print == "":
		return ""
	case c.working[pool] == nil:
		return "is held at an issuer, and no rollout is at work"
	case !slices.ContainsFunc(c.issuers, func(i *ca.Issuer) bool {
		return i.Pool == pool && i.Certificate != nil && trust.Fingerprint(i.Certificate) == print
	}):
		return fmt.Sprintf("is held at an issuer that is none of pool %q", pool)
	}
	return ""
}

// placements looks at the issuers that placements are held at.
func (c *checking) placements(ctx context.Context, tx *db.Tx) error {
	rows, err := tx.Query(ctx, `SELECT h.name, h.pool, p.name, p.held FROM host_placement p JOIN host h ON h.id = p.host
		WHERE p.held <> '' AND h.removed_at = 0 ORDER BY h.name, p.name`)
	if err != nil {
		return fmt.Errorf("read where placements are held: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, pool, placement, held string
		if err := rows.Scan(&name, &pool, &placement, &held); err != nil {
			return fmt.Errorf("read where placements are held: %w", err)
		}
		if !slices.ContainsFunc(c.issuers, func(i *ca.Issuer) bool {
			return i.Pool == pool && i.Certificate != nil && trust.Fingerprint(i.Certificate) == held
		}) {
			c.say("host "+name, "placement %s is held at issuer %.16s…, and pool %q has none with that fingerprint", placement, held, pool)
		}
	}
	return rows.Err()
}

// under says what is wrong with telling hosts of a pool to be under an issuer. While a rollout is at work one may have retired
// that hosts are about to leave.
func (c *checking) under(pool, issuer string) string {
	if issuer == "" {
		return ""
	}
	i := slices.IndexFunc(c.issuers, func(i *ca.Issuer) bool { return i.Name == issuer })
	switch {
	case i < 0:
		return fmt.Sprintf("it is to be under issuer %q, which there is not", issuer)
	case c.issuers[i].Pool != pool:
		return fmt.Sprintf("it is in pool %q, and is to be under issuer %q of pool %q", pool, issuer, c.issuers[i].Pool)
	case c.issuers[i].State == ca.IssuerRetired && c.working[pool] == nil:
		return fmt.Sprintf("it is to be under issuer %q, which issues no more", issuer)
	}
	return ""
}

// LongHeld is after how long in one wave it is said that a rollout is held.
const LongHeld = time.Hour

// Work is a rollout that is at work.
type Work struct {
	ID, Kind, Pool, State, Stage, Message string
	Wave                                  int64
	Since                                 time.Time // when its wave began, or it was paused
	Holding                               int64     // hosts that were told and have not done it, without those that are left out
}

// Stuck says why somebody should see to it; empty where nobody has to.
func (w *Work) Stuck(now time.Time) string {
	since := w.Since.UTC().Format(time.RFC3339)
	switch {
	case w.State == client.RolloutPaused:
		return fmt.Sprintf("rollout %s (%s) of pool %s is paused in stage %s since %s: %s", w.ID, w.Kind, w.Pool, w.Stage, since, w.Message)
	case now.Sub(w.Since) < LongHeld:
		return ""
	case w.State == client.RolloutWaiting:
		return fmt.Sprintf("rollout %s (%s) of pool %s waits since %s: %s", w.ID, w.Kind, w.Pool, since, w.Message)
	}
	return fmt.Sprintf("rollout %s (%s) of pool %s is in stage %s, wave %d since %s; hosts that hold it: %d", w.ID, w.Kind, w.Pool, w.Stage, w.Wave, since, w.Holding)
}

// Working lists the rollouts that are at work. There is one for each pool at most.
func (s *Service) Working(ctx context.Context) (all []Work, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		all = nil
		active, err := read(ctx, tx, `WHERE ended_at = 0 ORDER BY number`)
		if err != nil {
			return err
		}
		for _, r := range active {
			w := Work{ID: r.id, Kind: r.kind, Pool: r.pool, State: r.state, Stage: r.stage, Message: r.message, Wave: r.wave, Since: r.moved}
			if r.state != client.RolloutRunning || r.moved.IsZero() {
				w.Since = r.changed
			}
			err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM rollout_host WHERE rollout = $1 AND moved_at > 0 AND done_at = 0 AND because = ''`, r.id).Scan(&w.Holding)
			if err != nil {
				return err
			}
			all = append(all, w)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the rollouts that are at work: %w", err)
	}
	return all, nil
}
