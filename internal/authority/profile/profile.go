// Package profile stores profiles in versions, and lints what each would issue before it is saved.
//
// The rules of a profile are cert.Profile's. Here is what needs a database or is too slow for an issuance: the versions,
// who saved them, and zlint, which takes milliseconds and so runs over a sample of what the profile makes and not over
// each certificate. Its lints for RFC 5280, RFC 5480, RFC 8813 and its community lints count; those of the web's root
// programmes do not, since this is a private PKI. An error refuses the profile, a warning is shown.
//
// A built-in profile is in force, as version 0, until a profile of that name is saved. A version is never changed or
// deleted, so the certificates that name it can be explained; a retired profile issues nothing.
//
// All methods may be called from any goroutine.
package profile

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// Version is a profile as it was saved.
type Version struct {
	*cert.Profile
	Number   int    // from 1; 0 for what is built in
	Document string // the YAML as it was saved, comments included
	Retired  bool
	SavedBy  string // the actor; empty for what is built in
	SavedAt  time.Time
}

// Store keeps the profiles.
type Store struct {
	db  *db.DB
	log *audit.Log

	mu      sync.Mutex
	current map[string]*Version // guarded by mu: what is in force; nil until it is read
	checked time.Time           // guarded by mu
}

// maxAge is how long another node's change may take to be seen.
const maxAge = time.Second

// New returns the store of the profiles in d, whose changes are recorded in log.
func New(d *db.DB, log *audit.Log) *Store { return &Store{db: d, log: log} }

// states of a row
const (
	active  = "active"
	retired = "retired"
)

// Current returns the version of a profile that is in force. A retired profile is a Conflict.
func (s *Store) Current(ctx context.Context, name string) (*Version, error) {
	all, err := s.inForce(ctx, time.Now())
	if err != nil {
		return nil, fmt.Errorf("load profile %s: %w", name, err)
	}
	v := all[name]
	switch {
	case v == nil:
		return nil, noProfile(name, all)
	case v.Retired:
		return nil, fault.New(fault.Conflict, "profile %q is retired and issues nothing", name).WithHint("chancery profile list")
	}
	return v, nil
}

func noProfile(name string, all map[string]*Version) error {
	var names []string
	for _, v := range all {
		if !v.Retired {
			names = append(names, v.Name)
		}
	}
	slices.Sort(names)
	return fault.New(fault.NotFound, "there is no profile %q; there are %s", name, strings.Join(names, ", ")).
		WithHint("chancery profile list")
}

// List returns what is in force, retired profiles included, by name.
func (s *Store) List(ctx context.Context) ([]*Version, error) {
	all, err := s.inForce(ctx, time.Now())
	if err != nil {
		return nil, fmt.Errorf("list profiles: %w", err)
	}
	var list []*Version
	for _, v := range all {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b *Version) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// inForce returns the newest version of each profile, at most a second old. The map is shared: nobody modifies it.
func (s *Store) inForce(ctx context.Context, now time.Time) (map[string]*Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil && now.Sub(s.checked) < maxAge && !now.Before(s.checked) {
		return s.current, nil
	}
	built, err := builtins()
	if err != nil {
		return nil, err
	}
	all := maps.Clone(built)
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		found, err := query(ctx, tx, ` p WHERE version = (SELECT MAX(version) FROM profile q WHERE q.name = p.name)`)
		for _, v := range found {
			if old := s.current[v.Name]; old != nil && old.Number == v.Number {
				v = old // parsed before
			}
			all[v.Name] = v
		}
		return err
	})
	if err != nil {
		if s.current != nil && fault.Is(err, fault.Unavailable) {
			return s.current, nil
		}
		return nil, err
	}
	s.current, s.checked = all, now
	return all, nil
}

func (s *Store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked = time.Time{}
}

// builtins reads the built-in profiles once.
var builtins = sync.OnceValues(func() (map[string]*Version, error) {
	all := map[string]*Version{}
	for _, name := range cert.BuiltinProfiles() {
		v, err := builtin(name)
		if err != nil {
			return nil, err
		}
		all[name] = v
	}
	return all, nil
})

func builtin(name string) (*Version, error) {
	text, err := cert.BuiltinYAML(name)
	if err != nil {
		return nil, err
	}
	p, err := cert.ParseProfile(text)
	if err != nil {
		return nil, fmt.Errorf("read built-in profile %s: %w", name, err)
	}
	return &Version{Profile: p, Document: string(text)}, nil
}

func query(ctx context.Context, tx *db.Tx, where string, args ...any) ([]*Version, error) {
	rows, err := tx.Query(ctx, `SELECT name, version, state, document, saved_by, saved_at FROM profile`+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []*Version
	for rows.Next() {
		var (
			v           Version
			name, state string
			saved       int64
		)
		if err := rows.Scan(&name, &v.Number, &state, &v.Document, &v.SavedBy, &saved); err != nil {
			return nil, err
		}
		if v.Profile, err = cert.ParseProfile([]byte(v.Document)); err != nil {
			return nil, fmt.Errorf("read profile %s, version %d: %w", name, v.Number, err)
		}
		v.Retired, v.SavedAt = state == retired, db.FromMicros(saved)
		found = append(found, &v)
	}
	return found, rows.Err()
}

// Load returns one version of a profile; version 0 is what is built in.
func (s *Store) Load(ctx context.Context, name string, version int) (*Version, error) {
	if version == 0 {
		return builtin(name)
	}
	var found []*Version
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		found, err = query(ctx, tx, ` WHERE name = $1 AND version = $2`, name, int64(version))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load profile %s, version %d: %w", name, version, err)
	}
	if len(found) == 0 {
		return nil, fault.New(fault.NotFound, "profile %q has no version %d", name, version)
	}
	return found[0], nil
}

// History returns all versions of a profile, the newest first.
func (s *Store) History(ctx context.Context, name string) ([]*Version, error) {
	var found []*Version
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		found, err = query(ctx, tx, ` WHERE name = $1 ORDER BY version DESC`, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the versions of profile %s: %w", name, err)
	}
	if v, err := builtin(name); err == nil {
		found = append(found, v)
	} else if len(found) == 0 {
		return nil, fault.New(fault.NotFound, "there is no profile %q", name).WithHint("chancery profile list")
	}
	return found, nil
}

// Show returns what a version would issue.
func (s *Store) Show(ctx context.Context, name string, version int) (*Version, []Sample, error) {
	v, err := s.Load(ctx, name, version)
	if err != nil {
		return nil, nil, err
	}
	samples, err := Samples(v.Profile, time.Now())
	return v, samples, err
}

// Save stores a new version of the profile that the document names. base is the version it was made from, so that two
// people cannot overwrite each other unseen; 0 for a new one, or for what is built in. It refuses what its sample
// certificates fail of zlint; what they are warned of is in the samples. The same document again changes nothing, and a
// repeated call gets the answer that was kept with the version.
func (s *Store) Save(ctx context.Context, by access.Principal, document []byte, base int, call once.Call) (*Version, []Sample, error) {
	now := time.Now()
	if err := by.May(access.ManageProfiles); err != nil {
		return nil, nil, err
	}
	p, err := cert.ParseProfile(document)
	if err != nil {
		return nil, nil, err
	}
	samples, err := Samples(p, now)
	if err != nil {
		return nil, nil, fmt.Errorf("save profile %s: %w", p.Name, err)
	}
	if err := refused(p, samples); err != nil {
		return nil, nil, err
	}
	v := &Version{Profile: p, Number: base + 1, Document: string(document), SavedBy: by.Actor(), SavedAt: now.UTC().Truncate(time.Microsecond)}
	saved, err := s.insert(ctx, v, active, "profile.save", samples, call, now)
	if err != nil {
		return nil, nil, fmt.Errorf("save profile %s: %w", p.Name, err)
	}
	stored, err := s.Load(ctx, p.Name, saved.Number)
	return stored, saved.Samples, err
}

// Saved names the version that a call of Save or Retire made, as its answer is kept.
type Saved struct {
	Number  int
	Samples []Sample // of Save
}

// Retire ends a profile: it issues nothing more until a new version is saved. One that is retired already stays as it is.
func (s *Store) Retire(ctx context.Context, by access.Principal, name string, call once.Call) (*Version, error) {
	now := time.Now()
	if err := by.May(access.ManageProfiles); err != nil {
		return nil, err
	}
	s.forget()
	all, err := s.inForce(ctx, now)
	if err != nil {
		return nil, fmt.Errorf("retire profile %s: %w", name, err)
	}
	old := all[name]
	if old == nil {
		return nil, noProfile(name, all)
	}
	v := &Version{Profile: old.Profile, Number: old.Number + 1, Document: old.Document, Retired: true, SavedBy: by.Actor(),
		SavedAt: now.UTC().Truncate(time.Microsecond)}
	saved, err := s.insert(ctx, v, retired, "profile.retire", nil, call, now)
	if err != nil {
		return nil, fmt.Errorf("retire profile %s: %w", name, err)
	}
	return s.Load(ctx, name, saved.Number)
}

// insert stores v as the next version after its base, which must be the newest, and says which version is in force.
func (s *Store) insert(ctx context.Context, v *Version, state, action string, samples []Sample, call once.Call, now time.Time) (saved Saved, err error) {
	err = s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		saved, err = once.Act(ctx, tx, call, now, func() (Saved, error) {
			number, err := s.insertNext(ctx, tx, v, state, action, now)
			return Saved{number, samples}, err
		})
		return err
	})
	s.forget() // after a failure too: the outcome of the commit may be unknown
	return saved, err
}

func (s *Store) insertNext(ctx context.Context, tx *db.Tx, v *Version, state, action string, now time.Time) (int, error) {
	var newest int
	var document, newestState string
	err := tx.QueryRow(ctx, `SELECT version, document, state FROM profile WHERE name = $1 ORDER BY version DESC LIMIT 1`, v.Name).
		Scan(&newest, &document, &newestState)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, err
	}
	if newest > 0 && document == v.Document && newestState == state {
		return newest, nil
	}
	if newest != v.Number-1 {
		return 0, fault.New(fault.Conflict, "profile %q is at version %d and this change was made from version %d", v.Name, newest, v.Number-1).
			WithHint("read it again and repeat the change")
	}
	_, err = tx.Exec(ctx, `INSERT INTO profile (name, version, state, document, saved_by, saved_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		v.Name, int64(v.Number), state, v.Document, v.SavedBy, db.Micros(v.SavedAt))
	if err != nil {
		return 0, err
	}
	sum := sha256.Sum256([]byte(v.Document))
	return v.Number, s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: v.SavedBy, Action: action, Object: v.Name, Detail: map[string]any{
			"version": v.Number, "sha256": hex.EncodeToString(sum[:]),
		},
	})
}
