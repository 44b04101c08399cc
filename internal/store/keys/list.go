package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// List is the whole of who gets keys, in one signed statement. Each has a higher version than the one before; only nodes with the
// ca subsystem can sign one, since the audit key is wrapped to no other.
//
// A list takes the place of endorsements: once a node has seen one, a recipient that the newest does not name gets nothing from
// it, whatever rows there are. Otherwise whoever can write to the database could put back the rows of a node that was removed.
type List struct {
	Version    int64    `json:"version"`
	Recipients []Listed `json:"recipients"` // by ID
}

// Listed is all of a recipient that decides what it gets.
type Listed struct {
	ID         string        `json:"id"`
	Kind       RecipientKind `json:"kind"`
	Subsystems string        `json:"subsystems,omitempty"` // sorted, with commas
	PublicKey  string        `json:"public_key"`
}

func listed(r Recipient) Listed {
	return Listed{ID: r.ID, Kind: r.Kind, Subsystems: joinSubsystems(r.Subsystems), PublicKey: r.PublicKey}
}

// SignedList is a list that was signed and is not stored yet. It is good for one PutList.
type SignedList struct {
	list      List
	after     int64 // the version that it follows
	body      []byte
	signature []byte
}

// Version is the list's.
func (l *SignedList) Version() int64 { return l.list.Version }

// listLabel begins what is signed, so that no signature of the audit key over something else is one over a list.
const listLabel = "chancery key recipients 1\n"

func toSign(body []byte) []byte { return append([]byte(listLabel), body...) }

// ErrListMoved says that another list was stored since this one was signed. Sign again.
var ErrListMoved = errors.New("another list of key recipients was signed meanwhile")

// floor is the newest list that a node has seen, kept where the database's owner cannot reach it.
type floor struct {
	file    string // empty keeps it in memory
	anchors []crypto.PublicKey

	mu   sync.Mutex // guards what follows
	seen mark
}

// mark names a list: its version, and the SHA-256 of its body. The zero mark is that of no list.
type mark struct {
	version int64
	sum     [sha256.Size]byte
}

// mark is that of the newest list which the node has seen. It is taken before the transaction whose list is held against it begins:
// that one may not see what was stored and remembered since, which would look like a database that was set back.
func (s *Store) mark() mark {
	if s.floor == nil {
		return mark{}
	}
	s.floor.mu.Lock()
	defer s.floor.mu.Unlock()
	return s.floor.seen
}

// Anchor gives the node what it checks lists with: the audit's public keys, from a file of its own, and the file in which it keeps
// the newest list that it has seen. Without keys no list is believed, and endorsements alone decide. It is called before the store
// is used.
func (s *Store) Anchor(auditKeys []crypto.PublicKey, file string) error {
	f := &floor{file: file, anchors: auditKeys}
	if file == "" {
		s.floor = f
		return nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		s.floor = f
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the newest list of key recipients: %w", err)
	}
	version, sum, ok := strings.Cut(strings.TrimSpace(string(text)), " ")
	octets, err := hex.DecodeString(sum)
	if f.seen.version, _ = strconv.ParseInt(version, 10, 64); !ok || err != nil || len(octets) != sha256.Size || f.seen.version <= 0 {
		return fault.New(fault.Invalid, "%s does not hold the version and the SHA-256 of a list of key recipients", file).
			WithHint("if nobody has put an old list back, remove the file: the node takes the newest list that it then finds")
	}
	f.seen.sum = [sha256.Size]byte(octets)
	s.floor = f
	return nil
}

// vouchers is what a node goes by when it decides who gets keys: a list, or nothing but its own endorsements, or nothing at all.
type vouchers struct {
	list    *List
	sum     [sha256.Size]byte
	newest  int64  // the version of the newest list that is stored, whether it is good or not
	against string // why no recipient is to be trusted
}

// vouch reads the newest list and judges it against the newest that the node had seen. It changes nothing, since what a transaction
// sees may not last.
func (s *Store) vouch(ctx context.Context, tx *db.Tx, seen mark) (v vouchers, err error) {
	var body string
	var signature []byte
	err = tx.QueryRow(ctx, `SELECT version, body, signature FROM recipient_list ORDER BY version DESC LIMIT 1`).
		Scan(&v.newest, &body, &signature)
	none := errors.Is(err, sql.ErrNoRows)
	if err != nil && !none {
		return v, fmt.Errorf("read the list of key recipients: %w", err)
	}
	f := s.floor
	if f == nil || len(f.anchors) == 0 {
		return v, nil
	}
	v.sum = sha256.Sum256([]byte(body))
	switch {
	case none && seen.version == 0:
		return v, nil
	case none || v.newest < seen.version:
		v.against = fmt.Sprintf("the newest list of key recipients in the database is %d, and this node has seen %d: the database was set back, or "+
			"somebody has put an old list there", v.newest, seen.version)
		return v, nil
	case v.newest == seen.version && v.sum != seen.sum:
		v.against = fmt.Sprintf("list %d of key recipients is not the one that this node has seen", seen.version)
		return v, nil
	}
	if v.list, err = openList([]byte(body), signature, f.anchors); err == nil && v.list.Version != v.newest {
		err = fmt.Errorf("it is stored as %d and says that it is %d", v.newest, v.list.Version)
	}
	if err != nil {
		v.list, v.against = nil, fmt.Sprintf("list %d of key recipients is not good: %v", v.newest, err)
	}
	return v, nil
}

// openList reads a list that one of the keys has signed.
func openList(body, signature []byte, anchors []crypto.PublicKey) (*List, error) {
	signed := slices.ContainsFunc(anchors, func(key crypto.PublicKey) bool {
		algorithm, err := cert.DefaultAlgorithm(key)
		return err == nil && algorithm.Verify(key, toSign(body), signature) == nil
	})
	if !signed {
		return nil, errors.New("none of the audit keys that this node has in its directory has signed it")
	}
	var l List
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, fmt.Errorf("it is no list: %w", err)
	}
	return &l, nil
}

// trusts decides whether a recipient gets keys from this node, and why it does not.
func (v *vouchers) trusts(r Recipient, endorsed bool) (bool, string) {
	switch {
	case v.against != "":
		return false, v.against
	case v.list == nil && !endorsed:
		return false, "it was added by another, or changed since"
	case v.list == nil:
		return true, ""
	case !slices.Contains(v.list.Recipients, listed(r)):
		return false, fmt.Sprintf("list %d of key recipients, the newest, does not name it so", v.list.Version)
	}
	return true, ""
}

// remember keeps the list that was read outside of any write as the newest that this node has seen.
func (s *Store) remember(v vouchers) error {
	f := s.floor
	if f == nil || v.list == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if v.list.Version <= f.seen.version {
		return nil
	}
	if f.file != "" {
		text := fmt.Sprintf("%d %x\n", v.list.Version, v.sum)
		if err := keyfile.ReplaceBeside(f.file, []byte(text), 0o600); err != nil {
			return fmt.Errorf("keep the newest list of key recipients: %w", err)
		}
	}
	f.seen = mark{v.list.Version, v.sum}
	return nil
}

// NewestList is the newest list that this node believes, and nil where there is none yet.
func (s *Store) NewestList(ctx context.Context) (*List, error) {
	var v vouchers
	seen := s.mark()
	err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		v, err = s.vouch(ctx, tx, seen)
		return err
	})
	if err != nil {
		return nil, err
	}
	if v.against != "" {
		return nil, fault.New(fault.Conflict, "%s", v.against).WithHint(listHint)
	}
	return v.list, s.remember(v)
}

// BelievedList is NewestList, and where that is in doubt, which it says, the newest good list that the database still shows and that is
// no older than the newest that this node has seen. It is nil where there is none. It decides what must not hang on whoever writes one
// bad row: whether a node starts, and not who gets keys.
func (s *Store) BelievedList(ctx context.Context) (list *List, doubt, err error) {
	list, err = s.NewestList(ctx)
	if !fault.Is(err, fault.Conflict) {
		return list, nil, err
	}
	doubt = err
	seen := s.mark()
	err = s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		list, err = s.believed(ctx, tx, seen)
		return err
	})
	return list, doubt, err
}

// believedAmong bounds how many lists are read that are newer than the one seen.
const believedAmong = 100

func (s *Store) believed(ctx context.Context, tx *db.Tx, seen mark) (*List, error) {
	rows, err := tx.Query(ctx, `SELECT version, body, signature FROM recipient_list WHERE version = $1 OR version IN
		(SELECT version FROM recipient_list WHERE version > $1 ORDER BY version DESC LIMIT $2) ORDER BY version DESC`, seen.version, int64(believedAmong))
	if err != nil {
		return nil, fmt.Errorf("read the lists of key recipients: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var version int64
		var body string
		var signature []byte
		if err := rows.Scan(&version, &body, &signature); err != nil {
			return nil, fmt.Errorf("read the lists of key recipients: %w", err)
		}
		if version == seen.version && sha256.Sum256([]byte(body)) != seen.sum {
			continue
		}
		if l, err := openList([]byte(body), signature, s.floor.anchors); err == nil && l.Version == version {
			return l, nil
		}
	}
	return nil, rows.Err()
}

const listHint = "find out who wrote to the database; if it was set back on purpose, remove ca/recipients from the data directory of each node"

// SignList makes and signs the list that follows the newest: the recipients that this node trusts now, with and without those
// given. PutList stores it in the transaction that changes the rows.
func (s *Store) SignList(ctx context.Context, add []Recipient, remove ...string) (*SignedList, error) {
	var v vouchers
	var all []Recipient
	seen := s.mark()
	err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		all, v, err = s.recipientsBy(ctx, tx, seen)
		return err
	})
	if err != nil {
		return nil, err
	}
	if v.against != "" {
		return nil, fault.New(fault.Conflict, "%s; no list is signed upon it", v.against).WithHint(listHint)
	}
	if err := s.remember(v); err != nil {
		return nil, err
	}
	l := &SignedList{after: v.newest, list: List{Version: v.newest + 1}}
	for _, r := range endorsed(all) {
		if !slices.Contains(remove, r.ID) {
			l.list.Recipients = append(l.list.Recipients, listed(r))
		}
	}
	for _, r := range add {
		if err := r.validate(); err != nil {
			return nil, err
		}
		l.list.Recipients = append(l.list.Recipients, listed(r))
	}
	slices.SortFunc(l.list.Recipients, func(a, b Listed) int { return strings.Compare(a.ID, b.ID) })
	return l, s.sign(ctx, l)
}

func (s *Store) sign(ctx context.Context, l *SignedList) error {
	found, err := s.Find(ctx, Audit, "")
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fault.New(fault.Conflict, "the authority has no audit key, which signs the list of key recipients").WithHint("chancery doctor")
	}
	signer, err := s.Signer(ctx, found[0].ID)
	if err != nil {
		return fmt.Errorf("open the audit key, which signs the list of key recipients: %w", err)
	}
	if l.body, err = json.Marshal(l.list); err != nil {
		return fmt.Errorf("encode the list of key recipients: %w", err)
	}
	algorithm, err := cert.DefaultAlgorithm(signer.Public())
	if err != nil {
		return fmt.Errorf("sign the list of key recipients: %w", err)
	}
	if l.signature, err = algorithm.Sign(signer, toSign(l.body)); err != nil {
		return fmt.Errorf("sign the list of key recipients: %w", err)
	}
	return nil
}

// PutList stores a signed list, after the rows were changed as it says. It is ErrListMoved where another was stored meanwhile.
func (s *Store) PutList(ctx context.Context, tx *db.Tx, l *SignedList, actor string, now time.Time) error {
	var newest sql.NullInt64
	if err := tx.QueryRow(ctx, `SELECT MAX(version) FROM recipient_list`).Scan(&newest); err != nil {
		return fmt.Errorf("read the list of key recipients: %w", err)
	}
	if newest.Int64 != l.after {
		return ErrListMoved
	}
	all, err := s.rows(ctx, tx)
	if err != nil {
		return err
	}
	for _, r := range l.list.Recipients {
		if !slices.ContainsFunc(all, func(stored Recipient) bool { return listed(stored) == r }) {
			return fault.New(fault.Conflict, "key recipient %s is on the list that was signed, and is not stored so", r.ID)
		}
	}
	_, err = tx.Exec(ctx, `INSERT INTO recipient_list (version, body, signature, created_at) VALUES ($1, $2, $3, $4)`,
		l.list.Version, string(l.body), l.signature, db.Micros(now))
	if err != nil {
		return fmt.Errorf("store list %d of key recipients: %w", l.list.Version, err)
	}
	ids := make([]string, len(l.list.Recipients))
	for i, r := range l.list.Recipients {
		ids[i] = r.ID
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "recipient.list", Object: strconv.FormatInt(l.list.Version, 10),
		Detail: map[string]any{"recipients": ids, "sha256": fmt.Sprintf("%x", sha256.Sum256(l.body))},
	})
}

// ChangeList runs change in a transaction that also stores the list which follows from it, and signs again while others do so too.
// Where there is no list, and the node would believe none, endorsements go on deciding and none is signed.
func (s *Store) ChangeList(ctx context.Context, add []Recipient, remove []string, actor string, now time.Time,
	change func(tx *db.Tx) error) error {
	if lists, err := s.lists(ctx); err != nil {
		return err
	} else if !lists {
		return s.db.Tx(ctx, change)
	}
	const tries = 5
	for try := 1; ; try++ {
		l, err := s.SignList(ctx, add, remove...)
		if err != nil {
			return err
		}
		err = s.db.Tx(ctx, func(tx *db.Tx) error {
			if err := change(tx); err != nil {
				return err
			}
			return s.PutList(ctx, tx, l, actor, now)
		})
		if errors.Is(err, ErrListMoved) && try < tries {
			continue
		}
		if errors.Is(err, ErrListMoved) {
			return fault.New(fault.Unavailable, "the key recipients change all the time; try again: %w", err)
		}
		return err
	}
}

// lists reports whether recipients are listed, or are to be.
func (s *Store) lists(ctx context.Context) (bool, error) {
	if s.floor != nil && len(s.floor.anchors) > 0 {
		return true, nil
	}
	var v vouchers
	seen := s.mark()
	err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		v, err = s.vouch(ctx, tx, seen)
		return err
	})
	return v.newest > 0, err
}

// FirstList signs the first list, of those whom this node has endorsed, where there is none: an authority that was made before
// there were lists goes over to them so. It reports whether it did.
func (s *Store) FirstList(ctx context.Context, actor string, now time.Time) (bool, error) {
	if s.floor == nil || len(s.floor.anchors) == 0 {
		return false, nil
	}
	if l, err := s.NewestList(ctx); err != nil || l != nil {
		return false, err
	}
	err := s.ChangeList(ctx, nil, nil, actor, now, func(tx *db.Tx) error {
		v, err := s.vouch(ctx, tx, mark{}) // only whether there is one
		if err == nil && v.newest > 0 {
			err = errHasList
		}
		return err
	})
	if errors.Is(err, errHasList) {
		return false, nil // another node was faster
	}
	return err == nil, err
}

var errHasList = errors.New("there is a list of key recipients already")
