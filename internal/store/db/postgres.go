package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	beginSerializable = "BEGIN ISOLATION LEVEL SERIALIZABLE"
	beginSnapshot     = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

	// limitIdle has the server end a transaction whose node says nothing any more, because it or its machine stands still: the
	// locks it has, on a lease for example, would keep all other nodes from taking its place. Snapshots lock nothing, and a
	// backup may be read slowly.
	limitIdle = "; SET LOCAL idle_in_transaction_session_timeout = '15s'"

	// limitHeld has the server refuse a statement whose lock another session does not let go of: it may be of anybody who may log in, and
	// for as long as he likes, and all writes of this node wait in the lane behind it. Nodes have locks for as long as a commit takes, which
	// is seconds where the synchronous standby stands still.
	limitHeld = "; SET LOCAL lock_timeout = '12s'"
	// heldBriefly is instead of that for a while after a lock was waited for in vain: who wants it is refused soon, and the others do not
	// wait for so long with each of his tries.
	heldBriefly = "SET LOCAL lock_timeout = '1s'"
)

// errRolledBack is COMMIT answered by ROLLBACK: a statement of the transaction had failed.
var errRolledBack = errors.New("the server rolled the transaction back at COMMIT")

// URLFromFile reads a database URL, which may hold a password, from a file that only its owner may read.
func URLFromFile(path string) (string, error) {
	text, err := keyfile.ReadSecret(path, keyfile.MaxSecret)
	if refused, ok := errors.AsType[*fault.Error](err); ok {
		return "", refused
	}
	if err != nil {
		return "", fault.New(fault.Invalid, "read the database URL: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// openPostgres opens the lane's pool, and Read's.
func (d *DB) openPostgres(ctx context.Context, o Options) error {
	d.dialect = Postgres
	d.beginWrite, d.beginRead = beginSerializable, beginSnapshot
	var err error
	// The lane needs one. The others are for snapshots (ReadSnapshot): a backup and a long CRL hold theirs for long, and the
	// CRL is stored through the lane meanwhile, so they must never be all there is.
	d.primary = newServer("the primary of the database", 8, true)
	if d.writer, err = d.postgresPool(o, o.URL, d.primary, 8); err != nil {
		return err
	}
	asks := newServer("", 1, true)
	asks.timeline, asks.home, d.url = d.primary.timeline, d.primary.home, o.URL
	d.primary.home.away = func() bool { return d.primary.away.Load() != nil }
	if d.primary.asking, err = d.postgresPool(o, o.URL, asks, 1); err != nil {
		return err
	}
	d.primary.pools = []*sql.DB{d.writer}
	if o.ReadURL == "" {
		d.reader, err = d.postgresPool(o, o.URL, d.primary, o.ReadConns)
		d.primary.pools = append(d.primary.pools, d.reader)
	} else {
		err = d.openStandby(o)
	}
	if err != nil {
		return err
	}
	return d.greet(ctx, o)
}

// openStandby opens the connections of Read to a server of its own.
func (d *DB) openStandby(o Options) error {
	if err := CheckReadURL(o.ReadURL); err != nil {
		return err
	}
	former, err := d.kept.load(o.MarkFile)
	if err != nil {
		return err
	}
	d.former.Store(former)
	d.floor.Store(former)
	if former != nobodyKnows {
		d.lastMark = former
	}
	s := newServer("the standby that is read", o.ReadConns, false)
	s.home, s.ruled.d = d.primary.home, d
	s.home.holds(&s.open)
	if d.reader, err = d.postgresPool(o, o.ReadURL, s, o.ReadConns); err != nil {
		return err
	}
	asks := newServer("", 1, false)
	asks.ruled, asks.home = s.ruled, s.home
	asks.home.holds(&asks.open)
	if s.asking, err = d.postgresPool(o, o.ReadURL, asks, 1); err != nil {
		return err
	}
	s.pools = []*sql.DB{d.reader}
	d.standby, d.primary.compared = s, true
	return nil
}

// CheckReadURL refuses a URL of several servers as the one that is read. How old data are is asked on one connection, and read on
// others: of several servers each would be at another place, and an answer could be dated after what it was read from.
func CheckReadURL(url string) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return fault.New(fault.Invalid, "the URL of database_read cannot be read: %w", err)
	}
	for _, other := range cfg.Fallbacks {
		if other.Host != cfg.Host || other.Port != cfg.Port { // the same again is without TLS
			return fault.New(fault.Invalid, "database_read names several servers, %s and %s; how old an answer is can be said of one only",
				net.JoinHostPort(cfg.Host, fmt.Sprint(cfg.Port)), net.JoinHostPort(other.Host, fmt.Sprint(other.Port))).
				WithHint("name the standby beside this node alone; while it is away the node reads at the primary")
		}
	}
	return nil
}

// greet wants an answer of the primary, or else of the standby: with that a node serves what only reads.
func (d *DB) greet(ctx context.Context, o Options) error {
	begun := time.Now()
	if d.standby == nil {
		return d.explain(d.writer.PingContext(ctx))
	}
	hurried, cancel := context.WithTimeout(ctx, min(5*time.Second, o.Patience))
	defer cancel()
	err := d.writer.PingContext(hurried)
	if err == nil {
		return d.greetStandby(ctx, o)
	}
	if other := d.reader.PingContext(ctx); other != nil {
		return errors.Join(d.explain(err), d.explain(other))
	}
	d.gone(d.primary, begun, err)
	return nil
}

// greetStandby refuses one that is no standby of the primary that has just answered. One that is away is none of the start's business.
func (d *DB) greetStandby(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, min(5*time.Second, o.Patience))
	defer cancel()
	if err := d.reader.PingContext(ctx); errors.Is(err, errForeign) {
		return refusedForeign(err)
	}
	return nil
}

// postgresPool opens connections to url.
func (d *DB) postgresPool(o Options, url string, of *server, conns int) (*sql.DB, error) {
	cfg, err := configure(url, of.primary)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the database URL cannot be read: %w", err) // pgx leaves the password out
	}
	d.nodeLogin = d.nodeLogin || strings.HasPrefix(cfg.User, loginPrefix)
	of.reach = time.Duration(1+len(cfg.Fallbacks)) * cfg.ConnectTimeout
	var c driver.Connector = &postgresConnector{url: url, config: cfg, durability: d.durability, patience: o.Patience, of: of}
	if o.Wrap != nil {
		c = o.Wrap(c)
	}
	pool := sql.OpenDB(c)
	pool.SetMaxOpenConns(conns)
	pool.SetMaxIdleConns(conns)
	return pool, nil
}

// configure reads a URL, with the certificates and keys that it names. Of several hosts, or of one, only a primary will do for
// what is written, whatever the URL says.
func configure(url string, primary bool) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	if primary {
		cfg.ValidateConnect = validatePrimary
	}
	if strings.HasPrefix(cfg.User, loginPrefix) {
		cfg.AfterConnect = standForOwner
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
		if len(cfg.Fallbacks) > 0 {
			cfg.ConnectTimeout = 2 * time.Second // for each: one that stands still is not to keep the others from being asked
		}
	}
	cfg.RuntimeParams["application_name"] = "chancery"
	cfg.StatementCacheCapacity = maxStatements
	cfg.DialFunc = dialMarked(&net.Dialer{Timeout: cfg.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}})
	return cfg, nil
}

// connecting marks the context of a real connection attempt.
type connecting struct{}

// dialMarked dials for connections and for nothing else. pgx also dials to send a cancel request whenever it gives a
// connection up, and a cancelled COMMIT is reported as done although no standby has it.
func dialMarked(dialer *net.Dialer) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if ctx.Value(connecting{}) == nil {
			return nil, errors.New("cancel requests are never sent")
		}
		return dialer.DialContext(ctx, network, addr)
	}
}

// postgresConnector makes connections that watch over COMMIT.
type postgresConnector struct {
	url        string
	config     *pgx.ConnConfig // as the URL was read first
	durability *atomic.Value
	patience   time.Duration
	of         *server
}

func (c *postgresConnector) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

func (c *postgresConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn := &postgresConn{connector: c}
	cfg, err := configure(c.url, c.of.primary) // anew, since the certificates that it names are renewed while we run
	if err != nil {
		cfg = c.config.Copy()
	}
	var met int64
	if c.of.primary && c.durability.Load().(Durability) == Synchronous {
		cfg.ValidateConnect = func(ctx context.Context, to *pgconn.PgConn) (err error) {
			met, err = c.of.timeline.validate(ctx, to)
			return err
		}
	}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Severity == "WARNING" || n.SeverityUnlocalized == "WARNING" {
			conn.warning = n
		}
	}
	ctx, cancel := context.WithCancel(context.WithValue(ctx, connecting{}, true))
	defer cancel()
	defer context.AfterFunc(c.of.here.Load().ctx, cancel)() // nobody waits for a server that is given up
	inner, err := stdlib.GetConnector(*cfg).Connect(ctx)
	if err != nil {
		return nil, err
	}
	conn.Conn = inner.(*stdlib.Conn)
	// The connection is closed under a statement that goes unanswered for too long; no context is used for that, because
	// each context costs a goroutine per statement.
	socket := conn.Conn.Conn().PgConn().Conn()
	conn.watchdog = time.AfterFunc(c.patience, func() { socket.Close() })
	conn.watchdog.Stop()
	conn.socket = socket
	c.of.open.add(socket, met)
	if err := conn.placed(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// postgresConn is one connection. database/sql lets one goroutine at a time use it.
type postgresConn struct {
	*stdlib.Conn
	connector *postgresConnector
	socket    net.Conn
	watchdog  *time.Timer
	warning   *pgconn.Notice // set by OnNotice, on the goroutine that runs the statement
	asked     Durability     // what the session was told
	standbys  time.Time      // when a synchronous standby was last seen to be waited for
	shown     int64          // the newest number of this node's writes that a read has shown here
}

func (c *postgresConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c.watchdog.Reset(c.connector.patience)
	defer c.watchdog.Stop()
	switch query {
	case beginSerializable:
		return c.begin(ctx)
	case "COMMIT":
		return c.commit(ctx)
	}
	res, err := c.Conn.ExecContext(ctx, query, args)
	return res, markLost(err)
}

func (c *postgresConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.watchdog.Reset(c.connector.patience)
	defer c.watchdog.Stop()
	rows, err := c.Conn.QueryContext(ctx, query, args)
	return rows, markLost(err)
}

// begin tells the session what its commits wait for, when that has changed. The setting goes before BEGIN in a message of its own:
// in one message it would be part of the transaction, and a rollback would take it back.
func (c *postgresConn) begin(ctx context.Context) (driver.Result, error) {
	want := c.connector.durability.Load().(Durability)
	if want != c.asked {
		set := map[Durability]string{
			Local:       "SET synchronous_commit = on",
			Synchronous: "SET synchronous_commit = remote_apply",
			Provider:    "RESET synchronous_commit",
		}[want]
		if _, err := c.Conn.ExecContext(ctx, set, nil); err != nil {
			return nil, markLost(err)
		}
		c.asked = want
	}
	if want == Synchronous && time.Since(c.standbys) > time.Second {
		if err := c.requireStandbys(ctx); err != nil {
			return nil, markLost(err)
		}
	}
	res, err := c.Conn.ExecContext(ctx, beginSerializable+limitIdle+limitHeld, nil) // in one message
	return res, markLost(markStandby(err))
}

// commit believes an answer only when it is clean. A warning means that the wait for the standby was given up: the server
// then says COMMIT although the change may be lost with it.
func (c *postgresConn) commit(ctx context.Context) (driver.Result, error) {
	if c.Conn.Conn().IsClosed() {
		return nil, driver.ErrBadConn // nothing was sent
	}
	c.warning = nil
	tag, err := c.Conn.Conn().Exec(context.WithoutCancel(ctx), "COMMIT")
	switch {
	case err != nil:
		return nil, err // never driver.ErrBadConn: pgx calls a COMMIT safe to retry whose answer it did not read
	case c.warning != nil && tag.String() == "COMMIT":
		return nil, fmt.Errorf("%w: the server warns: %s (%s)", ErrUnknownOutcome, c.warning.Message, c.warning.Code)
	case tag.String() != "COMMIT":
		return nil, errRolledBack
	}
	return driver.RowsAffected(0), nil
}

func (c *postgresConn) Close() error {
	c.watchdog.Stop()
	c.connector.of.open.remove(c.socket)
	if err := c.Conn.Close(); !errors.Is(err, net.ErrClosed) { // as it is where the server was given up
		return err
	}
	return nil
}
