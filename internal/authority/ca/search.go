package ca

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Filter selects certificates; what is empty selects all.
type Filter struct {
	// Name is a subject alternative name or common name, whole, or its beginning followed by *. A wildcard certificate is
	// found by its name as it is: "*.example.com".
	Name          string
	Serial        *big.Int
	Issuer        string // name or ID
	Profile       string
	Requester     string
	State         State
	ExpiresAfter  time.Time
	ExpiresBefore time.Time
	Unreplaced    bool // leave out what was renewed or re-keyed
}

// maxPage bounds the length of a page.
const maxPage = 1000

// Search lists certificates page by page: after is empty for the first page, and what the page before returned as next;
// next is empty after the last page. The newest come first; where the filter bounds expiry, or asks for what has
// expired, those that expire first; where it gives the beginning of a name, by name. A page may be shorter than the limit,
// and a certificate with several names of one beginning may be on several pages.
// A caller with no role that reads everything sees what it requested itself.
func (c *CA) Search(ctx context.Context, by access.Principal, f Filter, after string, limit int) (found []*Certificate, next string, err error) {
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	now := time.Now()
	if err := ownOnly(by, &f); err != nil {
		return nil, "", err
	}
	err = c.db.Read(ctx, func(tx *db.Tx) error {
		found, next, err = c.page(ctx, tx, f, after, limit, now)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("search certificates: %w", err)
	}
	return found, next, nil
}

// ownOnly narrows the filter of a caller that may not see what others requested.
func ownOnly(by access.Principal, f *Filter) error {
	if readsAll(by) {
		return nil
	}
	if f.Requester != "" && f.Requester != by.ID {
		return fault.New(fault.Denied, "%s may list what it requested itself, and not what others did", by.Name)
	}
	f.Requester = by.ID
	return nil
}

// listing is a query under construction: one of the orders, and the conditions.
type listing struct {
	where []string
	args  []any
	order order
}

// order is the key that a page is sorted and continued by.
type order string

const (
	newestFirst order = "n"
	byExpiry    order = "e"
	byName      order = "a"
)

func (l *listing) arg(v any) string {
	l.args = append(l.args, v)
	return fmt.Sprintf("$%d", len(l.args))
}

func (l *listing) add(condition string, v any) {
	l.where = append(l.where, strings.ReplaceAll(condition, "?", l.arg(v)))
}

func (c *CA) page(ctx context.Context, tx *db.Tx, f Filter, after string, limit int, now time.Time) ([]*Certificate, string, error) {
	l := &listing{order: newestFirst}
	if err := c.conditions(ctx, tx, l, f, now); err != nil {
		return nil, "", err
	}
	key, err := parsePageKey(after, l.order)
	if err != nil {
		return nil, "", err
	}
	if l.order == byName {
		return c.pageByName(ctx, tx, l, strings.TrimSuffix(f.Name, "*"), key, limit, now)
	}
	orderBy := " ORDER BY c.id DESC"
	if f.Serial != nil || f.Name != "" {
		// These select a few. The sum keeps a planner from walking down all IDs instead, in the hope of meeting them soon.
		orderBy = " ORDER BY c.id + 0 DESC"
	}
	switch {
	case l.order == byExpiry:
		orderBy = " ORDER BY c.not_after, c.id"
		if key != nil {
			l.where = append(l.where, fmt.Sprintf("(c.not_after, c.id) > (%s, %s)", l.arg(key.time), l.arg(key.id)))
		}
	case key != nil:
		l.add("c.id < ?", key.id)
	}
	query := `SELECT ` + certificateColumns + certificateFrom
	if f.State == Revoked || f.State == Held {
		// The few that are revoked are found through their own rows.
		query = `SELECT ` + certificateColumns + ` FROM revocation r JOIN certificate c ON c.id = r.certificate`
		orderBy = strings.Replace(orderBy, "c.id", "r.certificate", 1)
		if l.order == newestFirst && key != nil {
			l.add("r.certificate < ?", key.id)
		}
	}
	if len(l.where) > 0 {
		query += " WHERE " + strings.Join(l.where, " AND ")
	}
	rows, err := tx.Query(ctx, query+orderBy+" LIMIT "+l.arg(int64(limit)), l.args...)
	if err != nil {
		return nil, "", err
	}
	records, err := collect(rows)
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(records) == limit {
		last := records[len(records)-1]
		next = pageKey{time: db.Micros(last.NotAfter), id: last.ID}.text(l.order)
	}
	found, err := c.completeAll(ctx, tx, records, now)
	return found, next, err
}

func (c *CA) completeAll(ctx context.Context, tx *db.Tx, records []*record, now time.Time) ([]*Certificate, error) {
	found := make([]*Certificate, len(records))
	for i, r := range records {
		var err error
		if found[i], err = c.complete(ctx, tx, r, now); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (c *CA) conditions(ctx context.Context, tx *db.Tx, l *listing, f Filter, now time.Time) error {
	if f.Serial != nil {
		if f.Serial.Sign() < 0 {
			return fault.New(fault.Invalid, "serial %v is negative; serials are not", f.Serial)
		}
		l.add("c.serial = ?", serialKey(f.Serial))
	}
	if f.Issuer != "" {
		issuer, err := c.issuer(ctx, tx, f.Issuer)
		if err != nil {
			return err
		}
		l.add("c.issuer = ?", issuer.number)
	}
	if f.Profile != "" {
		l.add("c.profile = ?", f.Profile)
	}
	if f.Requester != "" {
		l.add("c.requester = ?", f.Requester)
	}
	if f.Unreplaced {
		l.where = append(l.where, "c.replaced_by = 0")
	}
	if err := stateConditions(l, &f, now); err != nil {
		return err
	}
	if !f.ExpiresAfter.IsZero() {
		l.order = byExpiry
		l.add("c.not_after >= ?", db.Micros(f.ExpiresAfter))
	}
	if !f.ExpiresBefore.IsZero() {
		l.order = byExpiry
		l.add("c.not_after < ?", db.Micros(f.ExpiresBefore))
	}
	switch name := searchName(f.Name); {
	case name == "":
	case strings.HasSuffix(name, "*") && name != "*":
		l.order = byName
	case strings.Contains(strings.TrimPrefix(name, "*."), "*"):
		return fault.New(fault.Invalid, "name %q is neither a whole name nor the beginning of one followed by *", f.Name)
	default:
		p := l.arg([]byte(name))
		l.where = append(l.where, `c.id IN (SELECT id FROM certificate WHERE name = `+p+
			` UNION ALL SELECT certificate FROM certificate_name WHERE name = `+p+`)`)
	}
	return nil
}

func stateConditions(l *listing, f *Filter, now time.Time) error {
	switch f.State {
	case "":
	case Valid:
		l.where = append(l.where, "c.state = 'valid'")
		l.add("c.not_after >= ?", db.Micros(now))
	case Expired:
		l.where = append(l.where, "c.state = 'valid'")
		if f.ExpiresBefore.IsZero() || f.ExpiresBefore.After(now) {
			f.ExpiresBefore = now
		}
	case Held:
		l.where = append(l.where, "c.state = 'held'", "r.state = 'held'")
	case Revoked:
		l.where = append(l.where, "c.state = 'revoked'", "r.state = 'revoked'")
	default:
		return fault.New(fault.Invalid, "state %q is not one of valid, held, revoked, expired", f.State)
	}
	return nil
}

// pageByName reads a page of the names that begin with prefix. The bound on the page is put on the names, which two
// indexes give in order, so that a page costs the same whatever the other conditions leave of it.
func (c *CA) pageByName(ctx context.Context, tx *db.Tx, l *listing, prefix string, key *pageKey, limit int,
	now time.Time) ([]*Certificate, string, error) {
	ids, next, err := namedIDs(ctx, tx, searchName(prefix), key, limit)
	if err != nil || len(ids) == 0 {
		return nil, "", err
	}
	places := make([]string, len(ids))
	for i, id := range ids {
		places[i] = l.arg(id)
	}
	l.where = append(l.where, "c.id IN ("+strings.Join(places, ", ")+")")
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE `+strings.Join(l.where, " AND "), l.args...)
	if err != nil {
		return nil, "", err
	}
	records, err := collect(rows)
	if err != nil {
		return nil, "", err
	}
	slices.SortFunc(records, func(a, b *record) int { return slices.Index(ids, a.ID) - slices.Index(ids, b.ID) })
	found, err := c.completeAll(ctx, tx, records, now)
	return found, next, err
}

// namedIDs returns the certificates that the next page of names belongs to, in the order of the names, each once.
func namedIDs(ctx context.Context, tx *db.Tx, prefix string, key *pageKey, limit int) (ids []int64, next string, err error) {
	l := &listing{args: []any{[]byte(prefix), append([]byte(prefix), 0xff), int64(limit)}}
	after := ""
	if key != nil {
		after = fmt.Sprintf(" AND (name, id) > (%s, %s)", l.arg([]byte(key.name)), l.arg(key.id))
	}
	rows, err := tx.Query(ctx, `SELECT name, id FROM (SELECT name, id FROM certificate WHERE name >= $1 AND name < $2`+after+
		` ORDER BY name, id LIMIT $3) a UNION ALL SELECT name, id FROM (SELECT name, certificate AS id FROM certificate_name`+
		` WHERE name >= $1 AND name < $2`+strings.Replace(after, "id)", "certificate)", 1)+` ORDER BY name, certificate LIMIT $3) b`+
		` ORDER BY 1, 2 LIMIT $3`, l.args...)
	if err != nil {
		return nil, "", err
	}
	defer rows.Close()
	var (
		last pageKey
		name []byte
		n    int
	)
	for ; rows.Next(); n++ {
		if err := rows.Scan(&name, &last.id); err != nil {
			return nil, "", err
		}
		last.name = string(name)
		if !slices.Contains(ids, last.id) {
			ids = append(ids, last.id)
		}
	}
	if n == limit {
		next = last.text(byName)
	}
	return ids, next, rows.Err()
}

// pageKey is where a page ended.
type pageKey struct {
	name string
	time int64
	id   int64
}

func (k pageKey) text(o order) string {
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte(o), uint64(k.time)), uint64(k.id))
	return base64.RawURLEncoding.EncodeToString(append(b, k.name...))
}

func parsePageKey(text string, o order) (*pageKey, error) {
	if text == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < 17 || order(b[:1]) != o {
		return nil, fault.New(fault.Invalid, "page key %.40q is not one that this search returned", text)
	}
	return &pageKey{
		time: int64(binary.BigEndian.Uint64(b[1:])), id: int64(binary.BigEndian.Uint64(b[9:])), name: string(b[17:]),
	}, nil
}
