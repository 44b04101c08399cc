package access

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// Store keeps principals, their tokens and their certificates.
type Store struct {
	db  *db.DB
	log *audit.Log

	first chan struct{} // tells Run that a token was used for the first time

	mu    sync.RWMutex // guards what follows
	known map[proof]known
	epoch int64                // counts invalidations, so that what was read before one is not kept after it
	used  map[string]time.Time // tokens used since the last flush, by id
}

// New returns the store of the principals in d, whose changes are recorded in log.
func New(d *db.DB, log *audit.Log) *Store {
	return &Store{db: d, log: log, first: make(chan struct{}, 1), known: map[proof]known{}, used: map[string]time.Time{}}
}

// CreatePrincipal adds a principal and gives it an id. This and the other changes keep their answer for a repeated call.
func (s *Store) CreatePrincipal(ctx context.Context, by Principal, p Principal, call once.Call) (Principal, error) {
	if err := by.May(ManagePrincipals); err != nil {
		return Principal{}, err
	}
	now := time.Now()
	p.ID, p.Created, p.Disabled = db.NewID(), now, false
	var made Principal
	err := s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		made, err = once.Act(ctx, tx, call, now, func() (Principal, error) {
			if err := s.InsertPrincipal(ctx, tx, p, by.Actor()); err != nil {
				return Principal{}, err
			}
			return principal(ctx, tx, p.ID)
		})
		return err
	})
	if err != nil {
		return Principal{}, fmt.Errorf("create principal: %w", err)
	}
	return made, nil
}

// InsertPrincipal adds a principal, with the id and the time that it has, in the caller's transaction.
func (s *Store) InsertPrincipal(ctx context.Context, tx *db.Tx, p Principal, actor string) error {
	p, err := p.normal()
	if err != nil {
		return err
	}
	if p.ID == "" || p.Created.IsZero() {
		return fmt.Errorf("add principal %q: it lacks its id or the time", p.Name)
	}
	n, err := tx.Exec(ctx, `INSERT INTO principal (id, name, kind, roles, disabled, created) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT DO NOTHING`, p.ID, p.Name, string(p.Kind), joinRoles(p.Roles), flag(p.Disabled), db.Micros(p.Created))
	if err != nil {
		return err
	}
	if n == 0 {
		return fault.New(fault.Conflict, "there is a principal named %q, or with the id %s, already", p.Name, p.ID).At("name")
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: p.Created, Actor: actor, Action: "principal.create", Object: p.ID,
		Detail: map[string]any{"name": p.Name, "kind": p.Kind, "roles": p.Roles},
	})
}

// Bootstrap adds the first administrator, in the transaction that makes the authority. It refuses where there is one.
func (s *Store) Bootstrap(ctx context.Context, tx *db.Tx, name, actor string, now time.Time) (Principal, error) {
	n, err := countAdmins(ctx, tx, "")
	if err != nil {
		return Principal{}, err
	}
	if n > 0 {
		return Principal{}, fault.New(fault.Conflict, "this authority has an administrator already; that one adds others").
			WithHint("chancery operator add NAME --role admin")
	}
	p := Principal{ID: db.NewID(), Name: name, Kind: KindOperator, Roles: []Role{Admin}, Created: db.FromMicros(db.Micros(now))}
	return p, s.InsertPrincipal(ctx, tx, p, actor)
}

// Change is what UpdatePrincipal changes; nil fields stay.
type Change struct {
	Roles    []Role
	Disabled *bool
}

// UpdatePrincipal changes a principal's roles, or disables or enables it. When it returns, this node accepts none of a
// disabled principal's tokens and certificates any more. The last enabled administrator stays one.
func (s *Store) UpdatePrincipal(ctx context.Context, by Principal, id string, change Change, call once.Call) (Principal, error) {
	if err := by.May(ManagePrincipals); err != nil {
		return Principal{}, err
	}
	now := time.Now()
	var p Principal
	err := s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		p, err = once.Act(ctx, tx, call, now, func() (Principal, error) { return s.update(ctx, tx, by, id, change, now) })
		return err
	})
	s.invalidate() // also after an error: the outcome may be unknown
	if err != nil {
		return Principal{}, fmt.Errorf("update principal: %w", err)
	}
	return p, nil
}

func (s *Store) update(ctx context.Context, tx *db.Tx, by Principal, id string, change Change, now time.Time) (Principal, error) {
	old, err := principal(ctx, tx, id)
	if err != nil {
		return old, err
	}
	p := old
	if change.Roles != nil {
		p.Roles = change.Roles
	}
	if change.Disabled != nil {
		p.Disabled = *change.Disabled
	}
	if p, err = p.normal(); err != nil {
		return p, err
	}
	if err := keepAdmin(ctx, tx, old, p); err != nil {
		return p, err
	}
	_, err = tx.Exec(ctx, `UPDATE principal SET roles = $1, disabled = $2 WHERE id = $3`, joinRoles(p.Roles), flag(p.Disabled), id)
	if err != nil {
		return p, err
	}
	return p, s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: by.Actor(), Action: "principal.update", Object: id, Detail: map[string]any{
			"name": p.Name, "from": map[string]any{"roles": old.Roles, "disabled": old.Disabled},
			"to": map[string]any{"roles": p.Roles, "disabled": p.Disabled},
		},
	})
}

// DeletePrincipal removes a principal with its tokens and certificates. Its name stays in the audit record.
func (s *Store) DeletePrincipal(ctx context.Context, by Principal, id string, call once.Call) error {
	if err := by.May(ManagePrincipals); err != nil {
		return err
	}
	now := time.Now()
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		_, err := once.Act(ctx, tx, call, now, func() (once.Done, error) { return once.Done{}, s.remove(ctx, tx, by, id, now) })
		return err
	})
	s.invalidate()
	if err != nil {
		return fmt.Errorf("delete principal: %w", err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, tx *db.Tx, by Principal, id string, now time.Time) error {
	old, err := principal(ctx, tx, id)
	if err != nil {
		return err
	}
	if err := keepAdmin(ctx, tx, old, Principal{}); err != nil {
		return err
	}
	for _, statement := range []string{
		`DELETE FROM access_token WHERE principal_id = $1`,
		`DELETE FROM access_identity WHERE principal_id = $1`,
		`DELETE FROM principal WHERE id = $1`,
	} {
		if _, err := tx.Exec(ctx, statement, id); err != nil {
			return err
		}
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: by.Actor(), Action: "principal.delete", Object: id,
		Detail: map[string]any{"name": old.Name, "kind": old.Kind, "roles": old.Roles},
	})
}

// keepAdmin refuses a change that would leave nobody who can undo it.
func keepAdmin(ctx context.Context, tx *db.Tx, old, next Principal) error {
	isAdmin := func(p Principal) bool { return !p.Disabled && slices.Contains(p.Roles, Admin) }
	if !isAdmin(old) || isAdmin(next) {
		return nil
	}
	others, err := countAdmins(ctx, tx, old.ID)
	if err != nil {
		return err
	}
	if others == 0 {
		return fault.New(fault.Conflict, "%s is the last administrator; give another operator the role first", old.Name)
	}
	return nil
}

// countAdmins counts the enabled administrators other than one. There are few operators; hosts are not read.
func countAdmins(ctx context.Context, tx *db.Tx, except string) (int, error) {
	rows, err := tx.Query(ctx, `SELECT id, roles FROM principal WHERE kind <> 'host' AND kind <> 'agent' AND disabled = 0 AND id <> $1`,
		except)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var id, roles string
		if err := rows.Scan(&id, &roles); err != nil {
			return 0, err
		}
		if slices.Contains(splitRoles(roles), Admin) {
			n++
		}
	}
	return n, rows.Err()
}

// Principal returns one principal. Who may ask is the caller's to decide.
func (s *Store) Principal(ctx context.Context, id string) (p Principal, err error) {
	err = s.db.ReadFound(ctx, func(tx *db.Tx) error {
		p, err = scanPrincipal(tx.QueryRow(ctx, `SELECT `+principalColumns+` FROM principal WHERE id = $1`, id))
		return err
	})
	return p, noPrincipal(err, id)
}

// PrincipalNamed returns the principal with that name.
func (s *Store) PrincipalNamed(ctx context.Context, name string) (p Principal, err error) {
	err = s.db.ReadFound(ctx, func(tx *db.Tx) error {
		p, err = scanPrincipal(tx.QueryRow(ctx, `SELECT `+principalColumns+` FROM principal WHERE name = $1`, name))
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		err = fault.New(fault.NotFound, "there is no principal named %q", name)
	}
	return p, err
}

// MaxPage is the most that one page of a list has.
const MaxPage = 1000

func pageSize(limit int) error {
	if limit <= 0 || limit > MaxPage {
		return fault.New(fault.Invalid, "a page of %d was asked for; from 1 to %d can be had", limit, MaxPage).At("limit")
	}
	return nil
}

// Principals lists principals in the order of their ids, of one kind unless kind is empty, from after the id given; next is
// the id to continue with, empty at the end.
func (s *Store) Principals(ctx context.Context, by Principal, kind Kind, after string, limit int) (found []Principal, next string, err error) {
	if err := errors.Join(by.May(ReadPrincipals), pageSize(limit)); err != nil {
		return nil, "", err
	}
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		found = nil
		rows, err := tx.Query(ctx, `SELECT `+principalColumns+` FROM principal WHERE id > $1 AND (kind = $2 OR $2 = '')
			ORDER BY id LIMIT $3`, after, string(kind), limit+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			p, err := scanPrincipal(rows)
			if err != nil {
				return err
			}
			found = append(found, p)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list principals: %w", err)
	}
	if len(found) > limit {
		found = found[:limit]
		next = found[limit-1].ID
	}
	return found, next, nil
}

const principalColumns = `id, name, kind, roles, disabled, created`

func principal(ctx context.Context, tx *db.Tx, id string) (Principal, error) {
	p, err := scanPrincipal(tx.QueryRow(ctx, `SELECT `+principalColumns+` FROM principal WHERE id = $1`, id))
	return p, noPrincipal(err, id)
}

func noPrincipal(err error, id string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fault.New(fault.NotFound, "there is no principal %q", id)
	}
	return err
}

// Lookup reads a principal in the caller's transaction.
func Lookup(ctx context.Context, tx *db.Tx, id string) (Principal, error) {
	return principal(ctx, tx, id)
}

// NameOf is a principal's name, by which people know it; its ID where it is gone, or was the authority itself.
func NameOf(ctx context.Context, tx *db.Tx, id string) (string, error) {
	p, err := principal(ctx, tx, id)
	if fault.Is(err, fault.NotFound) {
		return id, nil
	}
	return p.Name, err
}

func scanPrincipal(row interface{ Scan(...any) error }) (Principal, error) {
	var p Principal
	var roles string
	var disabled, created int64
	if err := row.Scan(&p.ID, &p.Name, &p.Kind, &roles, &disabled, &created); err != nil {
		return Principal{}, err
	}
	p.Roles, p.Disabled, p.Created = splitRoles(roles), disabled != 0, db.FromMicros(created)
	return p, nil
}

func joinRoles(roles []Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return strings.Join(names, ",")
}

func splitRoles(text string) []Role {
	roles := []Role{}
	for name := range strings.SplitSeq(text, ",") {
		if name != "" {
			roles = append(roles, Role(name))
		}
	}
	return roles
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
