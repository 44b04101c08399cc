package revocation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strconv"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// Scope says which certificates of an issuer a list covers: all, all since a base, or one partition.
type Scope string

// The scopes that are not a partition's.
const (
	Complete Scope = "complete"
	Delta    Scope = "delta"
)

// Partition is the scope of partition n.
func Partition(n int) Scope { return Scope(strconv.Itoa(n)) }

// partition is the number of a partition's scope, and -1 for the others.
func (s Scope) partition() int {
	n, err := strconv.Atoi(string(s))
	if err != nil || n < 0 || Partition(n) != s {
		return -1
	}
	return n
}

// ParseScope reads a scope as it stands in a URL: complete, delta or the number of a partition.
func ParseScope(text string) (Scope, error) {
	s := Scope(text)
	if s != Complete && s != Delta && s.partition() < 0 {
		return "", fault.New(fault.Invalid, "CRL scope %q is not complete, delta or the number of a partition", text)
	}
	return s, nil
}

// The states of a list.
const (
	building = "building"
	current  = "current"
	past     = "past"
)

// List is a CRL that was published. Its octets stay in the database; WriteTo streams them.
type List struct {
	ID         string
	Issuer     string // ID
	Scope      Scope
	Current    bool
	Number     *big.Int
	Base       *big.Int // of a delta CRL
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    int64
	Size       int64 // of the DER

	change    int64 // the last change that it takes into account
	scheduled int64 // thisUpdate, in microseconds, of the last scheduled list of its scope up to and with this one
	head      []byte
	tail      []byte
	octets    []byte // the whole, where it is in memory
}

const listColumns = `id, issuer, scope, state, number, base, this_update, next_update, entries, size, change, scheduled, head, tail`

func scanList(row interface{ Scan(...any) error }) (*List, error) {
	var (
		l                      List
		state, number, base    string
		thisUpdate, nextUpdate int64
	)
	err := row.Scan(&l.ID, &l.Issuer, &l.Scope, &state, &number, &base, &thisUpdate, &nextUpdate, &l.Entries, &l.Size,
		&l.change, &l.scheduled, &l.head, &l.tail)
	if err != nil {
		return nil, err
	}
	l.Current = state == current
	l.ThisUpdate, l.NextUpdate = db.FromMicros(thisUpdate), db.FromMicros(nextUpdate)
	if l.Number, err = parseNumber(number); err != nil {
		return nil, err
	}
	if base != "" {
		if l.Base, err = parseNumber(base); err != nil {
			return nil, err
		}
	}
	return &l, nil
}

func parseNumber(text string) (*big.Int, error) {
	n, ok := new(big.Int).SetString(text, 10)
	if !ok {
		return nil, fmt.Errorf("stored CRLNumber %q is not a number", text)
	}
	return n, nil
}

// Current returns the list in force of an issuer's scope: the one that this node keeps, where no database answers.
func (s *Service) Current(ctx context.Context, nameOrID string, scope Scope) (*List, error) {
	issuer, err := s.ca.Issuer(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	var l *List
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		l, err = currentList(ctx, tx, issuer.ID, scope)
		return err
	})
	kept := s.shelf.at(place{issuer.ID, scope})
	switch {
	case fault.Is(err, fault.Unavailable) && kept != nil:
		l, err = kept.list, nil
	case err == nil && l == nil:
		return nil, fault.New(fault.NotFound, "issuer %s has no CRL of scope %s", issuer.Name, scope)
	}
	if err == nil && kept != nil && kept.list.ID == l.ID {
		whole := *l
		whole.octets = kept.octets
		l = &whole
	}
	return l, err
}

// Numbered is what tells one complete CRL of an issuer from the next.
type Numbered struct {
	Number     string
	NextUpdate time.Time
	Change     int64 // the last change of a status that it takes into account
	Entries    int64
}

// CurrentNumbers returns the complete CRL in force of each issuer, by the issuer's ID; one without a CRL is not in it.
func CurrentNumbers(ctx context.Context, tx *db.Tx) (map[string]Numbered, error) {
	rows, err := tx.Query(ctx, `SELECT issuer, number, next_update, change, entries FROM crl
		WHERE scope = 'complete' AND state = 'current'`)
	if err != nil {
		return nil, fmt.Errorf("read the numbers of the current CRLs: %w", err)
	}
	defer rows.Close()
	numbers := make(map[string]Numbered)
	for rows.Next() {
		var issuer string
		var n Numbered
		var next int64
		if err := rows.Scan(&issuer, &n.Number, &next, &n.Change, &n.Entries); err != nil {
			return nil, fmt.Errorf("read the numbers of the current CRLs: %w", err)
		}
		n.NextUpdate = db.FromMicros(next)
		numbers[issuer] = n
	}
	return numbers, rows.Err()
}

// currentList returns nil where there is none.
func currentList(ctx context.Context, tx *db.Tx, issuer string, scope Scope) (*List, error) {
	l, err := scanList(tx.QueryRow(ctx, `SELECT `+listColumns+` FROM crl
		WHERE issuer = $1 AND scope = $2 AND state = 'current'`, issuer, string(scope)))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the current CRL of issuer %s, %s: %w", issuer, scope, err)
	}
	return l, nil
}

// Lists returns the published lists of an issuer's scope, the newest first, a page at a time: before is the ID of the last
// one of the page before, empty for the first page.
func (s *Service) Lists(ctx context.Context, nameOrID string, scope Scope, before string, limit int) ([]*List, error) {
	if limit < 1 || limit > 1000 {
		return nil, fault.New(fault.Invalid, "a page of %d CRLs is not of 1 to 1000", limit)
	}
	issuer, err := s.ca.Issuer(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	if before == "" {
		before = "~" // after every ID
	}
	var all []*List
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		all, err = readLists(ctx, tx, `issuer = $1 AND scope = $2 AND state <> 'building' AND id < $3
			ORDER BY id DESC LIMIT $4`, issuer.ID, string(scope), before, limit)
		return err
	})
	return all, err
}

// Find returns the published list of an issuer with this CRLNumber: the complete one, where a delta has the number too.
func (s *Service) Find(ctx context.Context, nameOrID string, number *big.Int) (*List, error) {
	issuer, err := s.ca.Issuer(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	var all []*List
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		all, err = readLists(ctx, tx, `issuer = $1 AND number = $2 AND state <> 'building' ORDER BY scope`, issuer.ID, number.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fault.New(fault.NotFound, "issuer %s has no CRL %v, or it was pruned", issuer.Name, number)
	}
	return all[0], nil
}

func readLists(ctx context.Context, tx *db.Tx, where string, args ...any) ([]*List, error) {
	rows, err := tx.Query(ctx, `SELECT `+listColumns+` FROM crl WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read CRLs: %w", err)
	}
	defer rows.Close()
	var all []*List
	for rows.Next() {
		l, err := scanList(rows)
		if err != nil {
			return nil, fmt.Errorf("read CRLs: %w", err)
		}
		all = append(all, l)
	}
	return all, rows.Err()
}

// Pruned reports that the octets of a past list are gone, and only what is in List is still known.
func (l *List) Pruned() bool { return len(l.head) == 0 }

// WriteTo streams the DER of a list. A list's octets never change while its row exists, so each chunk is read by itself
// and a slow reader holds no transaction.
func (s *Service) WriteTo(ctx context.Context, w io.Writer, l *List) error {
	if l.Pruned() {
		return fault.New(fault.NotFound, "CRL %v is past, and its octets were pruned", l.Number)
	}
	if l.octets != nil {
		_, err := w.Write(l.octets)
		return err
	}
	if _, err := w.Write(l.head); err != nil {
		return err
	}
	left := l.Size - int64(len(l.head)) - int64(len(l.tail))
	for seq := int64(0); left > 0; seq++ {
		octets, err := s.chunk(ctx, l.ID, seq)
		if err != nil {
			return err
		}
		if left -= int64(len(octets)); len(octets) == 0 || left < 0 {
			return fmt.Errorf("stored CRL %s is damaged: chunk %d has %d octets, and %d are left over", l.ID, seq,
				len(octets), left)
		}
		if _, err := w.Write(octets); err != nil {
			return err
		}
	}
	_, err := w.Write(l.tail)
	return err
}

func (s *Service) chunk(ctx context.Context, id string, seq int64) (octets []byte, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT octets FROM crl_chunk WHERE crl = $1 AND seq = $2`, id, seq).Scan(&octets)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "CRL %s was pruned while it was read", id)
	}
	if err != nil {
		return nil, fmt.Errorf("read chunk %d of CRL %s: %w", seq, id, err)
	}
	return octets, nil
}
