package settings

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// Store reads and changes the settings. Its methods may be called from any goroutine.
type Store struct {
	db      *db.DB
	log     *audit.Log
	current atomic.Pointer[snapshot]
	refresh sync.Mutex                                                 // held by the one caller that asks the database
	guard   func(ctx context.Context, tx *db.Tx, next *Settings) error // nil for none; not changed
}

type snapshot struct {
	settings *Settings
	checked  time.Time
}

// New returns the store of the settings in d, whose changes are recorded in log.
func New(d *db.DB, log *audit.Log) *Store { return &Store{db: d, log: log} }

// maxAge is how old an answer of Get may be, and so how long another node's change takes to be seen.
const maxAge = time.Second

// Get returns the settings as they were within the last second. The value is shared: nobody may modify it. While one caller
// asks the database whether they changed, which reads one number, the others go on with what they have; and when the
// database is away, so do all, since a node should answer OCSP requests then too.
func (s *Store) Get(ctx context.Context) (*Settings, error) {
	now := time.Now()
	known := s.current.Load()
	if known != nil {
		if now.Sub(known.checked) < maxAge || !s.refresh.TryLock() {
			return known.settings, nil
		}
	} else {
		s.refresh.Lock()
	}
	defer s.refresh.Unlock()
	if known = s.current.Load(); known != nil && now.Sub(known.checked) < maxAge {
		return known.settings, nil
	}
	fresh, err := s.load(ctx, known)
	switch {
	case err == nil:
		s.keep(fresh, now)
		return fresh, nil
	case known != nil && ctx.Err() == nil && fault.Is(err, fault.Unavailable):
		s.keep(known.settings, now)
		return known.settings, nil
	}
	return nil, err
}

// keep remembers what was read, unless somebody has kept something newer meanwhile: a standby may answer with an older row.
func (s *Store) keep(read *Settings, now time.Time) {
	for {
		old := s.current.Load()
		if old != nil && old.settings.Version > read.Version {
			read = old.settings
		}
		if s.current.CompareAndSwap(old, &snapshot{read, now}) {
			return
		}
	}
}

// doubt has the next caller of Get ask the database.
func (s *Store) doubt() {
	if old := s.current.Load(); old != nil {
		s.current.CompareAndSwap(old, &snapshot{settings: old.settings}) // who was quicker has kept something fresher
	}
}

// load returns the stored settings, or known's own when they have the same version.
func (s *Store) load(ctx context.Context, known *snapshot) (*Settings, error) {
	var found *Settings
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		if known != nil {
			var version int64
			err := tx.QueryRow(ctx, `SELECT version FROM settings WHERE id = 'authority'`).Scan(&version)
			if err == nil && version == known.settings.Version {
				found = known.settings
				return nil
			}
		}
		var err error
		found, err = read(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load settings: %w", err)
	}
	return found, nil
}

func read(ctx context.Context, tx *db.Tx) (*Settings, error) {
	var version int64
	var document string
	err := tx.QueryRow(ctx, `SELECT version, document FROM settings WHERE id = 'authority'`).Scan(&version, &document)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "this database has no authority yet").WithHint("chancery init")
	}
	if err != nil {
		return nil, err
	}
	// Not Decode: a row that a later release wrote may have fields that this one does not know, and it must still run.
	found := Defaults()
	found.Expiry.Thresholds = nil
	if err := json.Unmarshal([]byte(document), &found); err != nil {
		return nil, fmt.Errorf("the settings row, version %d: %w", version, err)
	}
	if found.Expiry.Thresholds == nil {
		found.Expiry.Thresholds = Defaults().Expiry.Thresholds
	}
	found.Version = version
	return &found, nil
}

// Within reads the settings in the caller's transaction.
func Within(ctx context.Context, tx *db.Tx) (*Settings, error) { return read(ctx, tx) }

// Guard has every change of the settings refused that guard refuses, in the transaction of the change: for rules that concern more
// than the settings. It is called before the store is used.
func (s *Store) Guard(guard func(ctx context.Context, tx *db.Tx, next *Settings) error) {
	s.guard = guard
}

// Create stores the first settings, in the transaction that makes the authority.
func (s *Store) Create(ctx context.Context, tx *db.Tx, first Settings, actor string, now time.Time) error {
	if err := first.Validate(); err != nil {
		return err
	}
	document, err := json.Marshal(first)
	if err != nil {
		return fmt.Errorf("encode settings: %w", err)
	}
	n, err := tx.Exec(ctx, `INSERT INTO settings (id, version, changed, changed_by, document)
		VALUES ('authority', 1, $1, $2, $3) ON CONFLICT (id) DO NOTHING`, db.Micros(now), actor, string(document))
	if err != nil {
		return fmt.Errorf("create settings: %w", err)
	}
	if n == 0 {
		return fault.New(fault.Conflict, "this database has an authority already; it is not made twice")
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "settings.create", Object: first.Authority, Detail: json.RawMessage(document),
	})
}

// Set replaces the settings whose version next carries. It refuses if they changed since, and records what changed. Whether
// the actor may is the caller's to decide. A repeated call gets the answer that was kept with the change.
func (s *Store) Set(ctx context.Context, actor string, next Settings, call once.Call) (*Settings, error) {
	now := time.Now()
	if err := next.Validate(); err != nil {
		return nil, err
	}
	next.Expiry.Thresholds = slices.Clone(next.Expiry.Thresholds) // it becomes shared; the caller's stays the caller's
	document, err := json.Marshal(next)
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	var stored Versioned
	err = s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		stored, err = once.Act(ctx, tx, call, now, func() (Versioned, error) { return s.replace(ctx, tx, actor, next, document, now) })
		return err
	})
	if err != nil {
		s.doubt() // the change may be there all the same
		return nil, fmt.Errorf("change settings: %w", err)
	}
	s.keep(stored.Whole(), now)
	return stored.Whole(), nil
}

// Versioned is settings with their version, as the answer to a change of them is kept.
type Versioned struct {
	Version  int64
	Settings Settings
}

// Whole is the settings, with the version that belongs to them.
func (v Versioned) Whole() *Settings {
	v.Settings.Version = v.Version
	return &v.Settings
}

func (s *Store) replace(ctx context.Context, tx *db.Tx, actor string, next Settings, document []byte, now time.Time) (Versioned, error) {
	old, err := read(ctx, tx)
	if err != nil {
		return Versioned{}, err
	}
	switch {
	case old.Version != next.Version:
		return Versioned{}, fault.New(fault.Conflict, "the settings are at version %d and this change was made from version %d", old.Version,
			next.Version).WithHint("read them again and repeat the change")
	case old.Authority != next.Authority:
		return Versioned{}, fault.New(fault.Invalid, "authority is %q and never changes", old.Authority).At("authority")
	}
	changes, err := difference(*old, next)
	if err != nil || len(changes) == 0 {
		return Versioned{old.Version, *old}, err
	}
	if s.guard != nil {
		if err := s.guard(ctx, tx, &next); err != nil {
			return Versioned{}, err
		}
	}
	_, err = tx.Exec(ctx, `UPDATE settings SET version = $1, changed = $2, changed_by = $3, document = $4 WHERE id = 'authority'`,
		old.Version+1, db.Micros(now), actor, string(document))
	if err != nil {
		return Versioned{}, err
	}
	next.Version = old.Version + 1
	return Versioned{next.Version, next}, s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "settings.change", Object: next.Authority,
		Detail: map[string]any{"version": next.Version, "changes": changes},
	})
}

// change is one field's old and new value, as the audit event has them.
type change struct {
	From string `json:"from"`
	To   string `json:"to"`
}

func difference(old, next Settings) (map[string]change, error) {
	before, err := old.Fields()
	if err != nil {
		return nil, err
	}
	after, err := next.Fields()
	if err != nil {
		return nil, err
	}
	changes := map[string]change{}
	for i := range after { // both list the same fields in the same order
		if before[i] != after[i] {
			changes[after[i].Path] = change{before[i].Value, after[i].Value}
		}
	}
	return changes, nil
}
