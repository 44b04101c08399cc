package clone

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/settings"
)

// Options are what the service works on.
type Options struct {
	DB       *db.DB
	CA       *ca.CA
	Keys     *keys.Store // whose recipient this node is
	Access   *access.Store
	Identity *identity.Service
	Settings *settings.Store
	Audit    *audit.Log
	Logger   *slog.Logger

	// OpenLogin gives a node its own login at the database, for the key of a CSR (PEM), and CloseLogin ends one. Both may be
	// called again. Logins are the logins that there are of the nodes named, by node. Nil where the engine knows no logins.
	OpenLogin  func(ctx context.Context, by access.Principal, node, csr string) (Login, error)
	CloseLogin func(ctx context.Context, role string) error
	Logins     func(ctx context.Context, nodes []string) (map[string]string, error)
}

// Login is a node's own login at the database.
type Login struct {
	Role        string
	Certificate []string // PEM; the login's, and what is above it below the root
	Roots       string   // PEM; what certifies the servers
}

// Service knows the nodes. It may be used by many goroutines, and starts none.
type Service struct {
	Options
	node   string        // this one
	takeUp time.Duration // for how long the new holder of a lease is waited for

	asking sync.Mutex // held by the one caller who asks whether this node is registered

	mu       sync.Mutex // guards what follows
	known    registered
	heard    map[string]heard // by node
	approved map[string]bool  // nodes behind whose approval a commit was seen
	clock    told             // the newest that was heard of the primary's
	started  int64            // node.started_at as this process wrote it; 0 before it is registered

	since   map[string]time.Time  // what is only for a while where all is well, and since when this process has seen it
	turns   map[string]unanswered // by the lease's name
	limited time.Time             // when limitReaders was last tried
}

// New returns the service of the node whose key recipient o.Keys is.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{Options: o, node: o.Keys.Self(), takeUp: takeUp}
}

// Node is the name of this node.
func (s *Service) Node() string { return s.node }

// row is a row of the table node.
type row struct {
	name, state  string
	subsystems   []string
	address      string
	publicKey    string
	fingerprint  string
	spki         []byte
	principal    string // its ID; empty before it is approved
	databaseRole string
	request      client.CloneJoin   // without its secret
	answer       client.CloneJoined // State is active where the approval went to its end
	report       report
	joinedBy     string // the invitation; empty for the first node
	approvedBy   string
	created      time.Time
	approved     time.Time
	started      time.Time
	seen         time.Time
	gone         time.Time
}

func (r *row) runs(subsystem keys.Subsystem) bool {
	return slices.Contains(r.subsystems, string(subsystem))
}

func (r *row) recipient(now time.Time) keys.Recipient {
	k := keys.Recipient{ID: r.name, Kind: keys.KindNode, Name: r.name, PublicKey: r.publicKey, Created: now}
	for _, name := range r.subsystems {
		k.Subsystems = append(k.Subsystems, keys.Subsystem(name))
	}
	return k
}

const nodeColumns = `name, state, subsystems, address, public_key, fingerprint, tls_spki, principal, database_role, request, answer, report,
	joined_by, approved_by, created_at, approved_at, started_at, seen_at, gone_at`

func scanNode(from interface{ Scan(...any) error }) (*row, error) {
	var r row
	var subsystems, request, answer, said string
	var created, approved, started, seen, gone int64
	err := from.Scan(&r.name, &r.state, &subsystems, &r.address, &r.publicKey, &r.fingerprint, &r.spki, &r.principal, &r.databaseRole,
		&request, &answer, &said, &r.joinedBy, &r.approvedBy, &created, &approved, &started, &seen, &gone)
	if err != nil {
		return nil, err
	}
	r.subsystems = strings.Split(subsystems, ",")
	for _, d := range []struct {
		text string
		into any
	}{{request, &r.request}, {answer, &r.answer}, {said, &r.report}} {
		// What a later release wrote may have fields that this one does not know.
		if d.text == "" {
			continue
		}
		if err := json.Unmarshal([]byte(d.text), d.into); err != nil {
			return nil, fmt.Errorf("read node %s: %w", r.name, err)
		}
	}
	for _, t := range []struct {
		micros int64
		into   *time.Time
	}{{created, &r.created}, {approved, &r.approved}, {started, &r.started}, {seen, &r.seen}, {gone, &r.gone}} {
		if t.micros != 0 {
			*t.into = db.FromMicros(t.micros)
		}
	}
	return &r, nil
}

func (r *row) insert(ctx context.Context, tx *db.Tx) error {
	request, err := encode(r.request)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO node (`+nodeColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, '', $9, '', '', $10, $11, $12, $13, $14, 0, 0)`,
		r.name, r.state, strings.Join(r.subsystems, ","), r.address, r.publicKey, r.fingerprint, r.spki, r.principal, request,
		r.joinedBy, r.approvedBy, db.Micros(r.created), micros(r.approved), micros(r.started))
	if err != nil {
		return fmt.Errorf("write node %s: %w", r.name, err)
	}
	return nil
}

func encode(v any) (string, error) {
	text, err := json.Marshal(v)
	return string(text), err
}

// micros is db.Micros, and 0 for the zero time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return db.Micros(t)
}

// find returns nil where there is no such node.
func find(ctx context.Context, tx *db.Tx, where string, args ...any) (*row, error) {
	r, err := scanNode(tx.QueryRow(ctx, `SELECT `+nodeColumns+` FROM node WHERE `+where, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a node: %w", err)
	}
	return r, nil
}

// named refuses where there is no such node.
func named(ctx context.Context, tx *db.Tx, name string) (*row, error) {
	r, err := find(ctx, tx, `name = $1`, name)
	if err == nil && r == nil {
		err = noNode(name)
	}
	return r, err
}

func noNode(name string) error {
	return fault.New(fault.NotFound, "there is no node %.80q", access.Redact(name)).WithHint("chancery clone list")
}

// read reads a node where writes go.
func (s *Service) read(ctx context.Context, name string) (r *row, err error) {
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) error {
		r, err = named(ctx, tx, name)
		return err
	})
	return r, err
}

// nodes reads all nodes whose names come after one, in the order of their names.
func nodes(ctx context.Context, tx *db.Tx, after string, limit int) ([]*row, error) {
	rows, err := tx.Query(ctx, `SELECT `+nodeColumns+` FROM node WHERE name > $1 ORDER BY name LIMIT $2`, after, int64(limit))
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	defer rows.Close()
	var all []*row
	for rows.Next() {
		r, err := scanNode(rows)
		if err != nil {
			return nil, fmt.Errorf("list nodes: %w", err)
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// MaxNodes is far above the nodes of any authority.
const MaxNodes = 1000

func (s *Service) audit(ctx context.Context, tx *db.Tx, actor, action, node string, detail map[string]any, now time.Time) error {
	return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: actor, Action: action, Object: node, Detail: detail})
}

// needsCA refuses what only a node with the ca subsystem can do, and says where there is one.
func (s *Service) needsCA(ctx context.Context) error {
	var all []*row
	err := s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		all, err = nodes(ctx, tx, "", MaxNodes)
		return err
	})
	if err != nil {
		return err
	}
	var where []string
	for _, r := range all {
		if r.state != client.CloneActive || !r.runs(keys.SubsystemCA) {
			continue
		}
		if r.name == s.node {
			return nil
		}
		where = append(where, r.name+" at "+r.address)
	}
	self := slices.IndexFunc(all, func(r *row) bool { return r.name == s.node })
	runs := ""
	switch {
	case self >= 0 && all[self].state != client.CloneActive:
		return goneError(all[self])
	case self >= 0:
		runs = strings.Join(all[self].subsystems, ",")
	default:
		// It is not registered: a node that is being made, a command on this machine, or one whose row was taken away. The signed list tells.
		own, entry, _, err := s.ownEntry(ctx)
		switch {
		case err != nil:
			return err
		case !own:
			return s.noneOfUs()
		case entry == nil || slices.Contains(strings.Split(entry.Subsystems, ","), string(keys.SubsystemCA)):
			return nil
		}
		runs = entry.Subsystems
	}
	return fault.New(fault.Conflict, "node %s runs %s only; ca runs on %s", s.node, runs, cmp.Or(strings.Join(where, ", "), "no node"))
}
