package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"chancery/internal/fault"

	"github.com/gofrs/flock"
)

// Dialect names the engine. The SQL text is the same for both; the few statements that cannot be live in this package.
type Dialect string

// The engines.
const (
	SQLite   Dialect = "sqlite"
	Postgres Dialect = "postgres"
)

// Durability says what PostgreSQL must have done before a commit is acknowledged. SQLite always syncs to the disk.
type Durability string

// The durabilities.
const (
	// Local is durable on the primary's own disk.
	Local Durability = "local"
	// Synchronous waits until a synchronous standby has applied the commit, and refuses to write while the server names none.
	Synchronous Durability = "synchronous"
	// Provider leaves the server's own setting: the operator vouches for it.
	Provider Durability = "provider"
)

// Options says which database to open. The zero value of every field but URL is useful.
type Options struct {
	// URL is "sqlite:/abs/path/chancery.db" or a PostgreSQL URL, which may list several hosts. It may hold a password:
	// it is never logged, and comes from a file (URLFromFile), not from an argument list.
	URL string
	// ReadURL is where Read goes on PostgreSQL, for instance the local standby; empty means URL.
	ReadURL string
	// Durability is Local when empty; SetDurability changes it later.
	Durability Durability
	// Logger receives what has no caller to tell; nil discards it.
	Logger *slog.Logger
	// ReadConns bounds the connections used by Read; 0 means 8.
	ReadConns int
	// Patience is how long one statement may go unanswered by PostgreSQL before its connection is dropped; 0 means 30 s.
	// For COMMIT that means an unknown outcome.
	Patience time.Duration
	// Node names this process where ReadURL is set, so that Read shows what it has written itself though the standby does not
	// have it yet. Empty leaves that out.
	Node string
	// MarkFile keeps, where ReadURL is set, the number of Node's newest write for the process after this one. It belongs to one process
	// at a time. Empty leaves that out: then a node that starts while the primary is away cannot tell what its standby lacks.
	MarkFile string
	// Beside opens SQLite while another process, its node, has it: for a short act that no cache of the node holds anything of. SQLite
	// itself keeps the writers of both apart. The file must be there.
	Beside bool
	// Wrap, when set, wraps the connector of each pool. It is the seam by which tests inject faults.
	Wrap func(driver.Connector) driver.Connector
}

// DB is an open database. Its methods may be called by many goroutines.
type DB struct {
	dialect    Dialect
	log        *slog.Logger
	path       string                  // SQLite's file; empty on PostgreSQL
	writer     *sql.DB                 // the lane's connection, and ReadSnapshot's on PostgreSQL
	reader     *sql.DB                 // Read's pool
	lock       *flock.Flock            // SQLite's one-process lock; nil on PostgreSQL
	durability *atomic.Value           // Durability; shared with the connections
	highWater  atomic.Int64            // newest heartbeat seen, microseconds
	ahead      atomic.Pointer[aheadOf] // the clocks of the newest heartbeat, where that was refused since ours is ahead
	refused    atomic.Pointer[error]   // why the store took a write no more; nil once a heartbeat was written after it
	closed     atomic.Bool
	guard      atomic.Pointer[func(context.Context) error]

	url              string  // of PostgreSQL's servers that are written to; it may hold a password
	primary, standby *server // of PostgreSQL; standby is nil where Read goes to the primary
	lag              lag     // of the standby

	patience      time.Duration
	node          string       // Options.Node
	lastMark      int64        // the number of the newest write; used by the lane's leader only
	floor, former atomic.Int64 // no number above was acknowledged, and none above before this process; nobodyKnows
	kept          keptMark
	began         atomic.Pointer[beginning] // the history of the primary that acknowledged the newest heartbeat; nil before the first
	promoted      chan struct{}             // holds one
	fence         atomic.Pointer[fence]     // by which this process writes; nil where it took none
	nodeLogin     bool                      // it logs in as what nodes are given
	ends          atomic.Bool               // its marks may take the end of a suspension back
	held          atomic.Int64              // when a lock was waited for in vain, in nanoseconds

	lane       lane
	leases     leaseMemory
	beginWrite string
	beginRead  string
}

// Open opens the database that o names. It creates the directory and the file of SQLite, and waits for neither engine:
// a database that is away is an error, unless
// ReadURL names a standby that answers: then what only reads is answered, and Watch sees the primary come back. The schema is
// the business of package schema.
func Open(ctx context.Context, o Options) (*DB, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.ReadConns <= 0 {
		o.ReadConns = 8
	}
	if o.Patience <= 0 {
		o.Patience = 30 * time.Second
	}
	switch o.Durability {
	case "":
		o.Durability = Local
	case Local, Synchronous, Provider:
	default:
		return nil, fault.New(fault.Invalid, "durability %q is not one of local, synchronous, provider", o.Durability)
	}
	d := &DB{log: o.Logger, durability: new(atomic.Value), node: o.Node, patience: o.Patience, promoted: make(chan struct{}, 1)}
	d.durability.Store(o.Durability)
	var err error
	switch {
	case strings.HasPrefix(o.URL, "sqlite:"):
		err = d.openSQLite(ctx, o)
	case strings.HasPrefix(o.URL, "postgres://"), strings.HasPrefix(o.URL, "postgresql://"):
		err = d.openPostgres(ctx, o)
		d.ends.Store(!d.nodeLogin) // of a node's login the first heartbeat tells
	default:
		err = fault.New(fault.Invalid, `the database URL starts neither with "sqlite:" nor with "postgres://"`)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Close waits for the transactions that run, and closes the database. A second call does nothing.
func (d *DB) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	d.lane.drain()
	d.kept.settle(d.floor.Load())
	var errs []error
	for _, s := range []*server{d.primary, d.standby} {
		if s != nil && s.asking != nil {
			errs = append(errs, s.asking.Close())
		}
	}
	for _, pool := range []*sql.DB{d.reader, d.writer} { // the writer last: its close folds SQLite's log into the file
		if pool != nil {
			errs = append(errs, pool.Close())
		}
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// Dialect says which engine this is.
func (d *DB) Dialect() Dialect { return d.dialect }

// Path is the file of SQLite, and empty on PostgreSQL.
func (d *DB) Path() string { return d.path }

// SetDurability changes what later commits wait for.
func (d *DB) SetDurability(v Durability) { d.durability.Store(v) }

// Migrator gives package schema the pool of the writer. Nothing else may use it: it goes round the lane.
func (d *DB) Migrator() *sql.DB { return d.writer }
