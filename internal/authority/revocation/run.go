package revocation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/settings"
	"chancery/internal/store/token"
)

const (
	// Lease is the name of the lease to sign CRLs and to renew OCSP responders.
	Lease     = "crl"
	leaseTime = 15 * time.Second
	// tick is how often the holder looks for changes; a revocation is in a list after that, settings.CRL.Gather, and the
	// making of it.
	tick = 100 * time.Millisecond
	// look is how often it looks at everything, whatever it believes to know.
	look = 10 * time.Second
	// turn is how often a node looks whether the lease was handed over, to it or to another.
	turn = 250 * time.Millisecond
	// farewell is how long Run waits for a signature that a token does not give, when it ends.
	farewell = 5 * time.Second
)

// Run signs CRLs and renews OCSP responders while this node holds the lease, and waits for it otherwise. It returns when
// ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer s.rest()
	var yielded time.Time
	for failing := false; ; {
		lease, ok, err := s.acquire(ctx)
		before := failing
		failing = err != nil
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			if !before {
				s.logger.WarnContext(ctx, "the lease to sign CRLs cannot be had", "error", err)
			}
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
		case ok:
			err := s.hold(ctx, lease, yielded)
			s.logger.InfoContext(ctx, "signing of CRLs ended", "epoch", lease.Epoch, "error", err)
			if errors.Is(err, errYield) {
				yielded = time.Now()
				if err := sleep(ctx, yieldPause); err != nil {
					return err
				}
			}
		}
		if err := sleep(ctx, turn); err != nil {
			return err
		}
	}
}

// rest waits for what was begun under leases, which their end has told to end. A signature in a token hears nothing of that; one that hangs
// ends with the token's helper, and what comes of it is published no more.
func (s *Service) rest() {
	ended := make(chan struct{})
	go func() { s.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(farewell):
	}
}

// acquire takes the lease, if it is free and this node may open issuers' keys. One that only answers OCSP requests may not.
func (s *Service) acquire(ctx context.Context) (lease db.Lease, ok bool, err error) {
	if vacant, err := s.db.Vacant(ctx, Lease, s.audit.Node(), leaseTime, time.Now()); err != nil || !vacant {
		return db.Lease{}, false, err
	}
	all, err := s.keys.Recipients(ctx)
	if err != nil {
		return db.Lease{}, false, err
	}
	may := slices.ContainsFunc(all, func(r keys.Recipient) bool {
		return r.ID == s.keys.Self() && r.Entitled(keys.Issuer, "")
	})
	if !may {
		return db.Lease{}, false, nil
	}
	return s.db.Acquire(ctx, Lease, s.audit.Node(), leaseTime)
}

// hold works until the lease is lost, is better left to another node, or ctx ends, and then lets go of the lease. yielded is when it
// was left to others before.
func (s *Service) hold(ctx context.Context, lease db.Lease, yielded time.Time) error {
	s.logger.InfoContext(ctx, "signing CRLs", "epoch", lease.Epoch)
	left, err := s.leftBehind(ctx)
	if err != nil {
		return errors.Join(err, s.release(ctx, lease))
	}
	held, end := context.WithCancelCause(access.With(ctx, access.System(s.audit.Node())))
	for _, loop := range []func() error{
		func() error { return s.yield(held, lease, yielded) },
		// Two loops, so that a revocation is in a short list while a long one is still being made.
		func() error { return s.work(held, lease, false) },
		func() error { return s.work(held, lease, true) },
		func() error { return s.maintain(held, lease, left) },
	} {
		s.running.Go(func() { end(loop()) })
	}
	end(s.keepLease(held, lease))
	// The loops are not waited for: one may stand at a token that hangs, and another node is to sign meanwhile. From when that
	// one has the lease, nothing that they still make is taken.
	return errors.Join(context.Cause(held), s.release(held, lease))
}

// release lets go of the lease, also where ctx has ended.
func (s *Service) release(ctx context.Context, lease db.Lease) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return s.db.Release(ctx, lease)
}

func (s *Service) keepLease(ctx context.Context, lease db.Lease) error {
	renewed, tried := time.Now(), time.Now()
	answered := lease.Given // of the hand-overs to this node, the last that it answered; a standby may show it for a while still
	for {
		if err := sleep(ctx, turn); err != nil {
			return err
		}
		have, held, err := s.db.Held(ctx, lease)
		if err == nil && !held {
			return fault.New(fault.Conflict, "the lease to sign CRLs (epoch %d) was handed over", lease.Epoch)
		}
		asked := err == nil && have.Epoch == lease.Epoch && have.Unanswered() && !have.Given.Equal(answered) // whoever promotes waits for it
		if !asked && time.Since(tried) < leaseTime/3 {
			continue
		}
		tried = time.Now()
		_, err = s.db.Renew(ctx, lease, leaseTime)
		switch {
		case err == nil:
			renewed = time.Now()
			if asked {
				answered = have.Given
			}
		case fault.Is(err, fault.Conflict) || time.Since(renewed) > leaseTime:
			return fmt.Errorf("keep the lease to sign CRLs: %w", err)
		}
	}
}

// worker is what one of the two loops knows. The database decides; this only saves looking.
type worker struct {
	s       *Service
	lease   db.Lease
	long    bool                 // this loop makes the long lists, the other one the rest
	seen    map[string]int64     // the newest change of each issuer when nothing was due any more
	noticed time.Time            // when a change was first seen that is not in the lists
	next    time.Time            // when something is due although nothing changed
	failing map[string]failing   // issuers whose lists could not be made; they hold up nobody else's
	places  map[string]string    // of issuers: whose lists are made one after the other
	busy    map[string]chan made // places where a list takes long

	patience time.Duration
}

// made is what became of an issuer's lists.
type made struct {
	issuer *ca.Issuer
	change int64 // up to which they are
	next   time.Time
	err    error
}

// patience is how long a loop waits for one issuer's lists before it turns to the next place. A key may lie in a token, and a token may
// hang; nobody else's revocations wait for that, and of the issuers in that token one alone waits.
const patience = time.Second

type failing struct {
	again time.Time
	pause time.Duration
}

// maxPause is how long an issuer waits at most after a list could not be made: when what was in the way is gone, no list is later than this.
const maxPause = 15 * time.Second

func newWorker(s *Service, lease db.Lease, long bool) *worker {
	return &worker{s: s, lease: lease, long: long, seen: make(map[string]int64), failing: make(map[string]failing), places: make(map[string]string),
		busy: make(map[string]chan made), patience: patience}
}

func (s *Service) work(ctx context.Context, lease db.Lease, long bool) error {
	w := newWorker(s, lease, long)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		changed := s.ca.Changed() // before looking, so that nothing is missed
		if err := w.once(ctx, time.Now()); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if fault.Is(err, fault.Conflict) {
				return err
			}
			s.logger.ErrorContext(ctx, "it cannot be seen which CRLs are due", "error", err)
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case <-changed:
		}
	}
}

// once makes what is due. A Conflict means that the lease is lost.
func (w *worker) once(ctx context.Context, now time.Time) error {
	set, err := w.s.settings.Get(ctx)
	if err != nil {
		return err
	}
	changes, wanted, err := w.s.pending(ctx)
	if err != nil {
		return err
	}
	moved, err := w.collect(ctx, now)
	if err != nil {
		return err
	}
	for issuer, change := range changes {
		moved = moved || change != w.seen[issuer] && !w.waits(issuer)
	}
	for issuer := range wanted {
		moved = moved || !w.waits(issuer)
	}
	if !moved && now.Before(w.next) {
		return nil
	}
	if moved && w.noticed.IsZero() {
		w.noticed = now
	}
	if moved && len(wanted) == 0 && now.Sub(w.noticed) < set.CRL.Gather.Std() && now.Before(w.next) {
		return nil // more may come, and one signature does for all
	}
	issuers, err := w.s.ca.Issuers(ctx)
	if err != nil {
		return err
	}
	if err := w.place(ctx, issuers); err != nil {
		return err
	}
	w.noticed, w.next = time.Time{}, now.Add(look)
	for _, issuer := range issuers {
		if !signs(issuer, now) || w.busy[w.places[issuer.ID]] != nil {
			continue
		}
		next := w.failing[issuer.ID].again
		if !now.Before(next) {
			if next, err = w.begin(ctx, issuer, set, changes[issuer.ID], wanted[issuer.ID], now); err != nil {
				return err
			}
		}
		if next.Before(w.next) {
			w.next = next
		}
	}
	return nil
}

// place says of each issuer whose lists its own are made after: those of its token, or, of the long ones, for the sake of memory, those of
// all whose keys are software.
func (w *worker) place(ctx context.Context, issuers []*ca.Issuer) error {
	inTokens, err := w.s.keys.InTokens(ctx)
	if err != nil {
		return err
	}
	for _, issuer := range issuers {
		place := issuer.ID
		if w.long {
			place = "software"
		}
		if i := slices.IndexFunc(inTokens, func(k keys.Key) bool { return k.ID == issuer.KeyID }); i >= 0 {
			u, err := token.Parse(inTokens[i].Token)
			if err != nil {
				return fmt.Errorf("the key of issuer %s: %w", issuer.Name, err)
			}
			place = "token " + u.Serial
		}
		w.places[issuer.ID] = place
	}
	return nil
}

// waits reports whether an issuer is not to be looked at for now.
func (w *worker) waits(issuer string) bool {
	_, fails := w.failing[issuer]
	return fails || w.busy[w.places[issuer]] != nil
}

// begin makes an issuer's lists, and returns when to look again. Where that takes long it goes on, and collect learns what became of it.
func (w *worker) begin(ctx context.Context, issuer *ca.Issuer, set *settings.Settings, change int64, wish Wish, now time.Time) (time.Time, error) {
	done, seen := make(chan made, 1), w.seen[issuer.ID]
	w.s.running.Go(func() {
		next, err := w.issuer(ctx, issuer, set, seen, wish, now)
		done <- made{issuer, change, next, err}
	})
	enough := time.NewTimer(w.patience)
	defer enough.Stop()
	select {
	case m := <-done:
		return w.settle(ctx, m, now)
	case <-enough.C:
		w.busy[w.places[issuer.ID]] = done
		return now.Add(look), nil
	}
}

// collect settles what took long and has ended. It reports whether anything has.
func (w *worker) collect(ctx context.Context, now time.Time) (ended bool, err error) {
	for place, done := range w.busy {
		select {
		case m := <-done:
			ended = true
			delete(w.busy, place)
			if _, err := w.settle(ctx, m, now); err != nil {
				return ended, err
			}
		default:
		}
	}
	return ended, nil
}

// settle notes what became of an issuer's lists, and returns when to look again.
func (w *worker) settle(ctx context.Context, m made, now time.Time) (time.Time, error) {
	if m.err != nil {
		return w.failed(ctx, m.issuer, m.err, now)
	}
	delete(w.failing, m.issuer.ID)
	w.seen[m.issuer.ID] = m.change
	return m.next, nil
}

// failed notes that a list could not be made, and returns when to try again. The error it returns is a lost lease.
func (w *worker) failed(ctx context.Context, issuer *ca.Issuer, cause error, now time.Time) (time.Time, error) {
	if ctx.Err() != nil {
		return now, ctx.Err()
	}
	if _, err := w.s.db.Renew(ctx, w.lease, leaseTime); fault.Is(err, fault.Conflict) {
		return now, err
	}
	f := w.failing[issuer.ID]
	f.pause = min(max(2*f.pause, time.Second), maxPause)
	f.again = now.Add(f.pause)
	w.failing[issuer.ID] = f
	w.s.logger.ErrorContext(ctx, "a CRL that is due could not be signed", "issuer", issuer.Name, "again", f.again,
		"error", cause)
	return f.again, nil
}

// signs reports whether the lists of an issuer are signed here: its key is in the store, and its certificate, without which
// nobody can check a list, has not ended. A retired issuer goes on signing them.
func signs(issuer *ca.Issuer, now time.Time) bool {
	return issuer.KeyID != "" && issuer.Certificate != nil && issuer.State != ca.IssuerPending &&
		now.Before(issuer.Certificate.NotAfter)
}

// issuer makes an issuer's lists that are due. seen is a change up to which they are known to be.
func (w *worker) issuer(ctx context.Context, issuer *ca.Issuer, set *settings.Settings, seen int64, wish Wish, now time.Time) (next time.Time, err error) {
	st, err := w.s.standing(ctx, issuer, seen)
	if err != nil {
		return now, err
	}
	st.wanted = wish.since > 0
	orders, next := st.due(set, now)
	var mine []order
	for _, o := range orders {
		if st.long(o, set) != w.long {
			continue
		}
		if o.long = w.long; o.scope == Complete {
			o.wish = wish
		}
		mine = append(mine, o)
	}
	for _, group := range together(mine) {
		lists, err := w.s.buildTogether(ctx, w.lease, issuer, group, time.Now())
		if err != nil {
			return now, err
		}
		for _, l := range lists {
			w.s.logger.InfoContext(ctx, "CRL signed", "issuer", issuer.Name, "scope", string(l.Scope), "crlNumber", l.Number.String(),
				"entries", l.Entries, "nextUpdate", l.NextUpdate)
			if at := l.RenewAt(set, issuer); at.Before(next) {
				next = at
			}
			if l.Scope == Complete && st.wanted {
				if err := w.s.fulfilled(ctx, issuer.ID, wish.since); err != nil {
					return now, err
				}
			}
		}
	}
	return next, nil
}

// standing reads what decides about an issuer's lists, all of one state. seen is a change up to which no partition can be
// behind; 0 where that is not known.
func (s *Service) standing(ctx context.Context, issuer *ca.Issuer, seen int64) (*standing, error) {
	st := &standing{issuer: issuer}
	err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		st.lists = make(map[Scope]*List)
		all, err := readLists(ctx, tx, `issuer = $1 AND state = 'current'`, issuer.ID)
		if err != nil {
			return err
		}
		oldest := int64(-1) // the change of the partition's list that is furthest behind
		for _, l := range all {
			st.lists[l.Scope] = l
			if l.Scope.partition() >= 0 && (oldest < 0 || l.change < oldest) {
				oldest = l.change
			}
		}
		changes, err := ca.LastChanges(ctx, tx)
		if err != nil {
			return err
		}
		st.last = changes[issuer.ID]
		if issuer.CRL.Partitions > 0 {
			st.dirty, err = ca.ChangedPartitions(ctx, tx, issuer, max(oldest, seen, 0))
		}
		return err
	})
	return st, err
}
