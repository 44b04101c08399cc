package db

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"chancery/internal/fault"
)

const (
	// watchEvery is how often Watch asks a server whether it is there, and watchTries how many refusals in a row it takes to
	// believe that it is not. A server that says nothing for watchPatience, or for Options.Patience, is not there either.
	watchEvery    = 500 * time.Millisecond
	watchTries    = 2
	watchPatience = 4 * time.Second

	// fresh is how far a standby may be behind by its heartbeats without being called old: two of them, which come every five
	// seconds.
	fresh = 10 * time.Second
)

// server is one of PostgreSQL's servers, as Watch sees it: where writes go, or the standby where Read goes.
type server struct {
	name    string // for people
	pools   []*sql.DB
	idle    int // how many idle connections each of them may keep
	asking  *sql.DB
	primary bool
	open    sockets
	reach   time.Duration // how long it may take to connect to it, by way of other hosts that do not answer

	away atomic.Pointer[absence] // nil while it answers
	here atomic.Pointer[stay]    // whose context ends when it goes away
	seen atomic.Int64            // microseconds: the newest heartbeat that it showed; of a primary, when it last answered

	ruled *reign // of the server that is read; shared with those who ask it

	lonely atomic.Int64 // microseconds: since when no synchronous standby was seen; 0 while one is

	timeline *timeline // of a primary; shared with those who ask it
	home     *home     // where the primary is; shared by all servers of a DB
	met      int64     // the highest at the last look; Watch's alone
	showed   string    // the timeline of the primary at the last look; Watch's alone
	compared bool      // a primary, with which a standby is compared
	shown    *position // what the server had at the last look; nil where it did not say; Watch's alone
}

// absence is a server that does not answer.
type absence struct {
	since time.Time
	err   error
}

// stay is the time during which a server answers.
type stay struct {
	ctx context.Context
	end context.CancelFunc
}

func newStay() *stay {
	ctx, end := context.WithCancel(context.Background())
	return &stay{ctx, end}
}

func newServer(name string, idle int, primary bool) *server {
	s := &server{name: name, idle: idle, primary: primary, timeline: &timeline{}, home: &home{away: func() bool { return false }}, ruled: &reign{}}
	s.here.Store(newStay())
	return s
}

// sockets are the open connections of a pool.
type sockets struct {
	mu   sync.Mutex
	open map[net.Conn]int64 // the timeline where each leads, 0 where it was not asked; guarded by mu
}

func (s *sockets) add(c net.Conn, timeline int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[net.Conn]int64{}
	}
	s.open[c] = timeline
}

func (s *sockets) remove(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// closeAll ends what waits for an answer. A statement before COMMIT is then not done; a COMMIT has an unknown outcome, as it had
// before.
func (s *sockets) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.Close()
	}
	clear(s.open)
}

// closeBelow ends what leads to a lower timeline, as closeAll does, and unasked what leads nobody knows where.
func (s *sockets) closeBelow(timeline int64, unasked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, at := range s.open {
		if at < timeline && (at != 0 || unasked) {
			c.Close()
			delete(s.open, c)
		}
	}
}

// Watch asks the servers twice a second whether they are there, until ctx ends. Without it, each call finds out for itself, which
// takes long where a machine is gone or stands still. With it, Tx refuses at once while the primary is away, and Read goes where
// there is an answer: to the standby, or to the primary while the standby is away or behind. It returns at once on SQLite.
func (d *DB) Watch(ctx context.Context) error {
	var g sync.WaitGroup
	for _, s := range []*server{d.primary, d.standby} {
		if s != nil {
			g.Go(func() { d.watch(ctx, s) })
		}
	}
	g.Wait()
	return nil
}

func (d *DB) watch(ctx context.Context, s *server) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	var others rivals
	defer others.wait()
	for failed := 0; ; {
		begun := time.Now()
		synchronous := s.primary && d.durability.Load().(Durability) == Synchronous
		alone, err := s.ask(ctx, min(watchPatience, d.patience), synchronous)
		if s.primary {
			s.followed()
			d.meets(s.showed)
		}
		switch {
		case errors.Is(err, errReplaced), errors.Is(err, errDemoted), errors.Is(err, errForeign):
			failed = watchTries
		case err == nil && alone && synchronous:
			others.ask(ctx, d.url, s.timeline, begun)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failed = 0
			d.sampled(s)
			d.back(s)
		default:
			if failed++; failed >= watchTries || errors.Is(err, context.DeadlineExceeded) {
				d.gone(s, begun, err)
			}
		}
		if s == d.standby {
			d.settleIdle(time.Now())
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

var errNoPrimary = errors.New("the server only reads: it is a standby, or was set to")

// ask asks on a connection of its own, since all others may be waiting. It returns whether a primary has no synchronous standby that
// follows it, as far as our role may see; one that was replaced is refused where that is to be looked for.
func (s *server) ask(ctx context.Context, patience time.Duration, replaced bool) (alone bool, err error) {
	reaching, cancel := context.WithTimeout(ctx, max(s.reach, patience))
	defer cancel()
	conn, err := s.asking.Conn(reaching)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel = context.WithTimeout(ctx, patience)
	defer cancel()
	var readOnly, timeline string
	var followers int
	var high int64
	s.shown = nil
	begun := time.Now()
	if s.primary {
		high = Micros(time.Now())
		err = conn.QueryRowContext(ctx, `SELECT current_setting('transaction_read_only'), (`+askTimeline+`), (SELECT COUNT(*)
			FROM pg_stat_replication WHERE sync_state IS NULL OR sync_state IN ('sync', 'quorum'))`).Scan(&readOnly, &timeline, &followers)
	} else {
		var rules string
		var log int64
		err = conn.QueryRowContext(ctx, `SELECT COALESCE(MAX(high_water), 0), (`+askTimeline+`), `+replayed+` FROM clock`).Scan(&high, &rules, &log)
		if err == nil {
			s.ruled.sees(rules)
			s.shown = &position{at: begun, log: log, beat: high}
		}
	}
	if err == nil && readOnly == "on" {
		err = errNoPrimary
	} else if err == nil && replaced && timeline != "" {
		_, err = s.timeline.met(timeline)
	}
	switch {
	case errors.Is(err, errNoPrimary), errors.Is(err, errReplaced):
		discard(conn) // of several hosts, another may be the primary: look for it
		return false, err
	case err != nil && judge(err) == final && !errors.Is(err, context.DeadlineExceeded):
		err = nil // it answered, and that there is no such table yet is another's business
	case err != nil:
		return false, err
	}
	s.seen.Store(max(high, s.seen.Load()))
	if s.primary {
		s.showed = timeline
	}
	if s.primary && s.compared && timeline != "" {
		s.shown = positionOf(ctx, conn, begun)
	}
	return followers == 0 && timeline != "", err
}

// gone notes that a server does not answer, and why by the newest try: one that was cut off first may refuse the login later. It ends what
// waits for it.
func (d *DB) gone(s *server, since time.Time, err error) {
	if was := s.away.Load(); was != nil {
		s.away.Store(&absence{was.since, err})
		if LoginRefused(err) && !LoginRefused(was.err) {
			d.log.Error(s.name+" does not let this node in", "since", was.since.UTC(), "error", err)
		}
		if unread(err) && !unread(was.err) {
			d.log.Error(s.name+" answers, and is not read", "since", was.since.UTC(), "error", err)
		}
		return
	}
	s.away.Store(&absence{since, err})
	d.lag.forget()
	s.here.Load().end()
	s.open.closeAll()
	what := " does not answer"
	if unread(err) {
		what = " is not read"
	}
	d.log.Error(s.name+what, "since", since.UTC(), "data_age", d.Age(time.Now()).Round(time.Second).String(), "error", err)
}

// unread reports whether a server answers and is not read.
func unread(err error) bool {
	return errors.Is(err, errForeign) || errors.Is(err, errApart) || errors.Is(err, errDemoted)
}

// back notes that a server answers again. Its idle connections may be of a machine that is no more.
func (d *DB) back(s *server) {
	was := s.away.Load()
	if was == nil {
		return
	}
	for _, pool := range s.pools {
		pool.SetMaxIdleConns(0)
		pool.SetMaxIdleConns(s.idle)
	}
	s.here.Store(newStay())
	s.away.Store(nil)
	d.log.Info(s.name+" answers again", "away", time.Since(was.since).Round(time.Millisecond).String())
}

// Away refuses while the server that is written to does not answer, as far as Watch knows. It costs nothing.
func (d *DB) Away() error {
	if d.primary == nil {
		return nil
	}
	a := d.primary.away.Load()
	if a == nil {
		return nil
	}
	rest := "this node answers what only reads"
	if d.standby == nil || d.standby.away.Load() != nil {
		rest = "this node answers what it keeps in memory"
	}
	return (&fault.Error{Kind: fault.Unavailable, Err: a.err, Message: "the primary of the database cannot be reached since " +
		a.since.UTC().Format(time.RFC3339) + "; nothing was changed, and " + rest}).
		WithHint("repeat the call later, or at another node; chancery doctor database says what is wrong")
}

// Unread says why what Read shows does not come from the server of Options.ReadURL, as far as Watch knows, and what to do; nil where it does.
// It costs nothing.
func (d *DB) Unread() error {
	if d.standby == nil {
		return nil
	}
	a := d.standby.away.Load()
	if a == nil {
		return d.trails()
	}
	said, since := func(what string) *fault.Error {
		return &fault.Error{Kind: fault.Unavailable, Err: a.err, Message: what}
	}, a.since.UTC().Format(time.RFC3339)
	switch {
	case errors.Is(a.err, errForeign):
		return said("the server of database_read is of another database than the one that is written to, and is not read since " + since).WithHint(nameOwn)
	case errors.Is(a.err, errApart):
		return said("the server of database_read takes writes and is not the primary, and is not read since " + since).
			WithHint("patronictl list says who leads; patronictl reinit makes the other one anew")
	case errors.Is(a.err, errDemoted):
		return said("the server of database_read was the primary, and is not read since " + since + ": it shows nothing yet that was acknowledged since another was promoted").
			WithHint("it is read again once it has replayed this node's newest heartbeat: patronictl list says whether it follows; where it has gone its own way, patronictl reinit makes it anew")
	}
	return said("the server of database_read does not answer since " + since).WithHint("chancery doctor database says what is wrong")
}

// trails is Unread of a standby that answers.
func (d *DB) trails() error {
	since := d.lag.since.Load()
	if since == nil || d.Away() != nil {
		return nil
	}
	return fault.New(fault.Unavailable, "the server of database_read is behind the primary, which is read in its place since %s", since.begun.UTC().Format(time.RFC3339)).
		WithHint("chancery doctor database says how far, and whether it follows; patronictl reinit makes anew what does not")
}

// readFrom is the pool of the next Read: the standby, where there is one that answers and is not behind a primary that answers, or else the
// primary.
func (d *DB) readFrom(ctx context.Context) (*sql.DB, error) {
	if d.primary == nil {
		return d.reader, nil
	}
	if d.standby != nil && ctx.Value(atPrimary{}) != nil && d.Away() == nil {
		return d.writer, nil
	}
	if d.standby != nil && d.standby.away.Load() == nil && !(d.lag.late.Load() && d.Away() == nil) {
		return d.reader, nil
	}
	if err := d.Away(); err != nil {
		return nil, err
	}
	return d.writer, nil
}

// Age is how old what Read sees may be, and what was read before, where nothing can be read now: since the newest heartbeat that
// has arrived there. It is 0 where that is the primary, or a standby beside one that answers, which Watch sees to follow or which is no more
// than two heartbeats behind. Where the primary is away and no heartbeat was ever seen at what is read, it is as old as the epoch: nothing that depends on
// the time can be said from it. It costs nothing.
func (d *DB) Age(now time.Time) time.Duration {
	if d.primary == nil {
		return 0
	}
	absent := d.primary.away.Load() != nil
	reads := d.primary
	if d.standby != nil && (absent || d.standby.away.Load() == nil && !d.lag.late.Load()) {
		reads = d.standby
	}
	seen := reads.seen.Load()
	if !absent && (reads == d.primary || seen == 0 || d.lag.known.Load()) {
		return 0
	}
	age := max(0, now.Sub(FromMicros(seen)))
	if !absent && age <= fresh {
		return 0
	}
	return age
}
