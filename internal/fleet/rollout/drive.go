package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

const (
	leaseName = "rollout"
	leaseTime = 15 * time.Second
	// idle is how often a node looks whether there is a rollout to drive, and busy how often the driver looks how far it is; where
	// looking takes long, it looks less often, so that it takes a quarter of a processor at most while agents do their part.
	idle  = time.Second
	busy  = 200 * time.Millisecond
	share = 3
	rare  = 5 * time.Second
	// seen is how long the lease is kept for whoever handed it over to see, where there is nothing to drive.
	seen = 5 * time.Second
	// syncEvery is how often hosts that came or went are looked for within a wave.
	syncEvery = 5 * time.Second
	// atOnce is how many hosts are told in one transaction, and inFlight how many may be told and not done before the next are,
	// unless nothing moved for a while: so a node that serves them all is not asked by ten thousand at once.
	atOnce   = host.Moved
	inFlight = 1000
	stalled  = 5 * time.Second
)

// Run drives rollouts while this node holds the lease, which it wants only while there are any. It returns when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	pause := idle
	failing := false
	var d *drive
	defer func() {
		if d != nil {
			release, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_ = s.DB.Release(release, d.lease)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		case <-time.After(pause):
		}
		began := time.Now()
		var err error
		d, err = s.look(ctx, d, began)
		if err != nil && ctx.Err() == nil && !failing {
			s.Logger.WarnContext(ctx, "rollouts are not driven", "error", err)
		}
		failing = err != nil
		if pause = idle; d != nil && err == nil {
			pause = min(rare, max(busy, share*time.Since(began)))
		}
	}
}

// drive is what the node that has the lease knows.
type drive struct {
	lease   db.Lease
	renewed time.Time
	handed  time.Time // when it was handed to this node last
	rollout map[string]*progress
}

// progress is what is remembered of a rollout between two looks; it is nothing that another node would miss.
type progress struct {
	synced time.Time // when hosts that came or went were looked for
	told   time.Time // when hosts were told last
	gated  time.Time // when it was looked last who holds the next stage
}

// look takes one step of each rollout, as far as one can be taken. It returns nil where there is nothing to drive, or another
// node does.
func (s *Service) look(ctx context.Context, d *drive, now time.Time) (*drive, error) {
	var active []*row
	handed := false // whoever hands the lease over waits until it is taken up
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		if active, err = read(ctx, tx, `WHERE ended_at = 0 AND state IN ('running', 'waiting') ORDER BY number`); err != nil {
			return err
		}
		l, err := db.LeaseOf(ctx, tx, leaseName)
		handed = l.Holder == s.Audit.Node() && l.Unanswered()
		return err
	})
	if err != nil {
		return d, err
	}
	if len(active) == 0 && !handed {
		if d != nil && now.Sub(d.handed) > seen {
			return nil, s.DB.Release(ctx, d.lease)
		}
		return d, nil
	}
	if d, err = s.hold(ctx, d, handed, now); err != nil || d == nil {
		return d, err
	}
	var failed error
	for _, r := range active {
		if d.rollout[r.id] == nil {
			d.rollout[r.id] = &progress{}
		}
		err := s.step(ctx, d, r, now)
		switch {
		case err == nil, errors.Is(err, errElsewhere):
		case fault.Is(err, fault.Conflict) && d.lost(ctx, s):
			return nil, err
		case refusal(err): // to try again would not help, and somebody has to hear of it
			failed = errors.Join(failed, s.pauseFor(ctx, d, r, "it cannot go on: "+err.Error(), now))
		default:
			failed = errors.Join(failed, fmt.Errorf("rollout %s: %w", r.id, err))
		}
	}
	return d, failed
}

// lost reports whether the lease is another node's.
func (d *drive) lost(ctx context.Context, s *Service) bool {
	_, err := s.DB.Renew(ctx, d.lease, leaseTime)
	return fault.Is(err, fault.Conflict)
}

// hold takes or renews the lease, at once where it was handed to this node. It returns nil where another node has it, or this one may open no
// issuer's key.
func (s *Service) hold(ctx context.Context, d *drive, handed bool, now time.Time) (*drive, error) {
	if d != nil && !handed && now.Sub(d.renewed) < leaseTime/3 {
		return d, nil
	}
	all, err := s.Keys.Recipients(ctx)
	if err != nil {
		return d, err
	}
	if !slices.ContainsFunc(all, func(r keys.Recipient) bool { return r.ID == s.Keys.Self() && r.Entitled(keys.Issuer, "") }) {
		return nil, nil
	}
	lease, ok, err := s.DB.Acquire(ctx, leaseName, s.Audit.Node(), leaseTime)
	if err != nil || !ok {
		return nil, err
	}
	if d == nil || d.lease.Epoch != lease.Epoch {
		d = &drive{rollout: map[string]*progress{}}
	}
	if d.lease, d.renewed = lease, now; handed {
		d.handed = now
	}
	return d, nil
}

// errElsewhere: the rollout is no longer where the step began; somebody paused or undid it. The next look sees it as it is.
var errElsewhere = errors.New("the rollout has moved meanwhile")

// within runs a step in one transaction: only while the lease is ours and the rollout is where it was.
func (s *Service) within(ctx context.Context, d *drive, r *row, fn func(tx *db.Tx, now *row) error) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := d.lease.Check(ctx, tx); err != nil {
			return err
		}
		now, err := one(ctx, tx, r.id)
		if err != nil {
			return err
		}
		if now.state != r.state || now.stage != r.stage || now.wave != r.wave || now.backwards != r.backwards || now.over() {
			return errElsewhere
		}
		return fn(tx, now)
	})
}

// step takes a rollout as far as it gets by what was observed.
func (s *Service) step(ctx context.Context, d *drive, r *row, now time.Time) error {
	if r.stage == client.StagePrepare {
		return s.stepPrepare(ctx, d, r, now)
	}
	known := d.rollout[r.id]
	v, err := s.view(ctx, r)
	if err != nil {
		return err
	}
	if v.failure != "" && !r.spec.Compromised { // to wait would leave the stolen keys of all others good
		return s.pauseFor(ctx, d, r, v.failure, now)
	}
	reached, contradiction, err := s.confirm(ctx, r, v.reached)
	if err != nil {
		return err
	}
	if contradiction != "" && !r.spec.Compromised {
		return s.pauseFor(ctx, d, r, contradiction, now)
	}
	tell := v.untold
	if v.inFlight-len(reached) >= inFlight && now.Sub(known.told) < stalled {
		tell = nil
	}
	if len(reached)+len(tell) > 0 {
		if err := s.move(ctx, d, r, reached, tell, now); err != nil {
			return err
		}
		if len(tell) > 0 {
			known.told = now
		}
	}
	if len(v.untold) > 0 || v.holding > waitedFor(reached) {
		if now.Sub(known.synced) > syncEvery {
			known.synced = now
			return s.within(ctx, d, r, func(tx *db.Tx, r *row) error { return s.sync(ctx, tx, r, now) })
		}
		return nil
	}
	if r.last() && now.Sub(known.gated) < time.Second {
		return nil
	}
	known.gated = now
	return s.advance(ctx, d, r, now)
}

// waitedFor is how many of the hosts are waited for.
func waitedFor(all []member) int {
	n := 0
	for _, m := range all {
		if m.because == "" {
			n++
		}
	}
	return n
}

// view is how a wave stands.
type view struct {
	untold   []member // hosts that are to be told, at most atOnce
	reached  []member // told, and seen to have fulfilled it since
	inFlight int      // told, and not marked as done
	holding  int      // of these, those that are waited for
	failure  string   // of a host that was told, and did not fail before
}

// view looks at the hosts of the present wave and those before it.
func (s *Service) view(ctx context.Context, r *row) (*view, error) {
	var v *view
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		v = &view{}
		// So many of either are read as can be under way, and not the rest of the wave at each look.
		told, err := members(ctx, tx, r, ` AND wave <= $2 AND done_at = 0 AND moved_at > 0`, r.wave)
		if err != nil {
			return err
		}
		if v.untold, err = members(ctx, tx, r, ` AND wave <= $2 AND done_at = 0 AND moved_at = 0 LIMIT $3`, r.wave, int64(atOnce)); err != nil {
			return err
		}
		standings, err := host.Standings(ctx, tx, r.goal(), idsOf(told))
		if err != nil {
			return err
		}
		for _, m := range told {
			standing, there := standings[m.id]
			switch {
			case !there || standing == host.Absent: // gone, or not here yet
				continue
			case standing == host.Reached:
				v.reached = append(v.reached, m)
			}
			if m.because == "" {
				v.holding++
			}
			v.inFlight++
		}
		v.failure, err = newFailure(ctx, tx, r)
		return err
	})
	return v, err
}

// newFailure says which placement fails of a host that was told and was well then; empty where there is none.
func newFailure(ctx context.Context, tx *db.Tx, r *row) (string, error) {
	failures, err := host.FailuresAmong(ctx, tx, r.pool, `SELECT host FROM rollout_host WHERE rollout = $3 AND moved_at > 0 AND failing = 0 AND because = ''`, 1, r.id)
	if err != nil || len(failures) == 0 {
		return "", err
	}
	f := failures[0]
	return fmt.Sprintf("host %s, placement %s: %s", f.Host, f.Placement, f.Message), nil
}

// sync takes hosts in that have come to the pool since, into the last wave, and those out that are no longer there. A rollout that waits
// for a certificate that is no issuer's any more is put right.
func (s *Service) sync(ctx context.Context, tx *db.Tx, r *row, now time.Time) error {
	if err := s.keepAnew(ctx, tx, r, now); err != nil {
		return err
	}
	there, err := allMembers(ctx, tx, r.pool)
	if err != nil {
		return err
	}
	known, err := members(ctx, tx, r, ``)
	if err != nil {
		return err
	}
	mine := make(map[string]bool, len(known))
	for _, m := range known {
		mine[m.id] = true
	}
	var came []member
	for _, h := range there {
		if !mine[h.ID] && movesTrust(r.kind) { // what else is changed is theirs who were there
			came = append(came, member{id: h.ID, name: h.Name, wave: int64(len(r.plan.Waves))})
		}
		delete(mine, h.ID)
	}
	var gone []string
	for id := range mine {
		gone = append(gone, id)
	}
	if err := removeMembers(ctx, tx, r, gone); err != nil {
		return err
	}
	return insertMembers(ctx, tx, r, came)
}
