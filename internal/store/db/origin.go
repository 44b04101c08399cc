package db

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"

	"chancery/internal/fault"
)

// A standby is a copy of its primary, octet by octet: its cluster has the system identifier that initdb gave to the primary's, and the
// database has the same OID there. What is read from a server that is no such copy is another authority's, or of another time, and is
// never given to anybody: each connection to the server that is read is held against the primary before it is used, and those that were
// made before the primary was met are ended then.

// errForeign is a server to read from that is no copy of the primary's cluster.
var errForeign = errors.New("the server that is read is no standby of the primary")

// errApart is a server to read from that takes writes of its own beside the primary.
var errApart = errors.New("the server that is read takes writes, and is not the primary")

// origin tells which database it is that a connection leads to.
type origin struct {
	System   string // the system identifier of the cluster; empty where the server does not tell
	Database string // the OID of the database
	standby  bool   // the server is in recovery
	started  string // when the server was started
	// Authority is what the settings in the database say which authority it is; asked only where there is no system identifier.
	Authority string
}

const (
	askOrigin = `SELECT CAST(c.system_identifier AS TEXT), CAST(d.oid AS TEXT), pg_is_in_recovery(), CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) AS TEXT)
		FROM pg_control_system() c, pg_database d WHERE d.datname = current_database()`
	askAuthority = `SELECT CAST(document AS JSON) ->> 'authority' FROM settings WHERE id = 'authority'`
)

// originOf asks where a connection leads.
func originOf(ctx context.Context, conn *pgconn.PgConn) (o origin, err error) {
	rows := conn.ExecParams(ctx, askOrigin, nil, nil, nil, nil).Read()
	_, refused := errors.AsType[*pgconn.PgError](rows.Err)
	switch {
	case rows.Err == nil && len(rows.Rows) == 1:
		one := rows.Rows[0]
		return origin{System: string(one[0]), Database: string(one[1]), standby: string(one[2]) == "t", started: string(one[3])}, nil
	case rows.Err != nil && !refused:
		return o, rows.Err
	}
	// A provider may keep it to himself.
	rows = conn.ExecParams(ctx, askAuthority, nil, nil, nil, nil).Read()
	if _, refused := errors.AsType[*pgconn.PgError](rows.Err); rows.Err != nil && !refused {
		return o, rows.Err
	}
	if len(rows.Rows) == 1 {
		o.Authority = string(rows.Rows[0][0])
	}
	return o, nil
}

// differs says in what the database of a server is another than ours; empty where it is the same, or nothing is known.
func (o origin) differs(ours origin) string {
	switch {
	case o.System != "" && ours.System != "" && o.System != ours.System:
		return fmt.Sprintf("its cluster has the system identifier %s, and the primary's has %s", o.System, ours.System)
	case o.System != "" && ours.System != "" && o.Database != ours.Database:
		return fmt.Sprintf("it is another database of the same cluster, with the OID %s; the primary's has %s", o.Database, ours.Database)
	case o.Authority != "" && ours.Authority != "" && o.Authority != ours.Authority:
		return fmt.Sprintf("it holds authority %s, and the primary holds %s", o.Authority, ours.Authority)
	}
	return ""
}

// home is where the primary was when a connection met it last. All servers of a DB share it.
type home struct {
	met  atomic.Pointer[origin] // nil before
	away func() bool            // whether the primary is, as far as Watch knows

	mu    sync.Mutex
	reads []*sockets // guarded by mu: of the server that is read
}

// holds adds the connections of a server that is read.
func (h *home) holds(s *sockets) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reads = append(h.reads, s)
}

// meet notes where the primary is. Whatever was read beside another, or before it was known, is asked anew.
func (h *home) meet(now origin) {
	before := h.met.Swap(&now)
	if before != nil && *before == now {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.reads {
		s.closeAll()
	}
}

// admits refuses a server to read from that is not the primary's standby. While the primary is away nobody knows whether the one that takes
// writes is the next.
func (h *home) admits(o origin) error {
	ours := h.met.Load()
	if ours == nil {
		return nil
	}
	if why := o.differs(*ours); why != "" {
		return fmt.Errorf("%w: %s; nothing is read there", errForeign, why)
	}
	if o.started != "" && !o.standby && o.started != ours.started && ours.started != "" && !h.away() {
		return fmt.Errorf("%w; nothing is read there", errApart)
	}
	return nil
}

// placed holds a new connection against the primary, or notes the primary by it. The connection is among the open ones by now, so that a
// primary that is met meanwhile ends it.
func (c *postgresConn) placed(ctx context.Context) error {
	c.watchdog.Reset(c.connector.patience)
	defer c.watchdog.Stop()
	o, err := originOf(ctx, c.Conn.Conn().PgConn())
	if err != nil {
		return err
	}
	of := c.connector.of
	if of.primary {
		of.home.meet(o)
		return nil
	}
	if err := of.ruled.admits(ctx, c.Conn.Conn().PgConn()); err != nil {
		return err
	}
	return of.home.admits(o)
}

// refusedForeign says at the start which key of the configuration is wrong.
func refusedForeign(err error) error {
	return fault.New(fault.Invalid, "database_read leads to another database than database_file does: %w", err).
		WithHint(nameOwn)
}

// nameOwn is what to do where a server is read that is of another database.
const nameOwn = "name the standby beside this node that follows the primary, with the same database name, or leave database_read out; " +
	"chancery doctor database says which servers are of which cluster"
