package keys

import (
	"container/list"
	"context"
	"crypto"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"filippo.io/age"

	"chancery/internal/fault"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/token"
)

// Store keeps the sealed keys of the authority, as one node sees them.
type Store struct {
	db   *db.DB
	log  *audit.Log
	self string // the recipient that this node is
	node *NodeKey
	most int // keys that are kept opened

	tokens *token.Tokens // nil where the node reaches none

	floor *floor // nil where no list is believed

	mu     sync.Mutex // guards what follows
	opened map[string]*list.Element
	recent *list.List // of cached, the latest used first
	epoch  int64      // counts Forget, so that a key that was being opened meanwhile is not kept
}

type cached struct {
	id  string
	key crypto.Signer
}

// maxOpened bounds the keys that a node keeps in memory; an authority has a few for each of its issuers.
const maxOpened = 1024

// New returns the store of the node whose recipient id is self and whose key is node.
func New(d *db.DB, log *audit.Log, self string, node *NodeKey) *Store {
	return &Store{db: d, log: log, self: self, node: node, most: maxOpened, opened: map[string]*list.Element{}, recent: list.New()}
}

// Self is the recipient id of this node.
func (s *Store) Self() string { return s.self }

// Public is the age recipient (age1…) of this node's key.
func (s *Store) Public() string { return s.node.Public() }

// Seal is the function Seal for the recipients that are stored now and that this node has endorsed.
func (s *Store) Seal(ctx context.Context, key crypto.Signer, purpose Purpose, owner string) (*Sealed, error) {
	all, err := s.Recipients(ctx)
	if err != nil {
		return nil, err
	}
	// Whoever may not open a key must not have made it either: it would have been in his memory.
	if i := slices.IndexFunc(all, func(r Recipient) bool { return r.ID == s.self }); i >= 0 && !all[i].Entitled(purpose, owner) {
		return nil, fault.New(fault.Denied, "node %s runs %s, and makes no %s key", s.self, joinSubsystems(all[i].Subsystems), purpose)
	}
	sealed, err := Seal(key, db.NewID(), purpose, owner, endorsed(all))
	if err == nil {
		sealed.seen = s.mark()
	}
	return sealed, err
}

func endorsed(all []Recipient) []Recipient {
	return slices.DeleteFunc(all, func(r Recipient) bool { return !r.Endorsed })
}

// Insert stores a sealed key. It refuses if the recipients that are entitled to it are not those it was sealed for: one
// that was removed meanwhile must not get a wrap, and one that was added must not lack it. The transaction begins after Seal.
func (s *Store) Insert(ctx context.Context, tx *db.Tx, k *Sealed, actor string, now time.Time) error {
	all, _, err := s.recipientsBy(ctx, tx, k.seen)
	if err != nil {
		return err
	}
	entitled := 0
	for _, r := range endorsed(all) {
		if !r.Entitled(k.Purpose, k.Owner) {
			continue
		}
		if entitled++; k.wraps[r.ID] == nil {
			entitled = -1
			break
		}
	}
	if entitled != len(k.wraps) {
		return fault.New(fault.Conflict, "the recipients of keys changed while key %s was sealed; try again", k.ID)
	}
	_, err = tx.Exec(ctx, `INSERT INTO sealed_key (id, purpose, owner, algorithm, spki, ciphertext, created)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		k.ID, string(k.Purpose), k.Owner, k.Algorithm, k.SPKI, k.ciphertext, db.Micros(now))
	if err != nil {
		return fmt.Errorf("store key %s: %w", k.ID, err)
	}
	to := slices.Sorted(maps.Keys(k.wraps))
	for _, id := range to {
		if err := putWrap(ctx, tx, k.ID, id, k.wraps[id], now); err != nil {
			return err
		}
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "key.store", Object: k.ID,
		Detail: map[string]any{"purpose": k.Purpose, "owner": k.Owner, "algorithm": k.Algorithm, "recipients": to},
	})
}

func putWrap(ctx context.Context, tx *db.Tx, key, recipient string, blob []byte, now time.Time) error {
	_, err := tx.Exec(ctx, `INSERT INTO key_wrap (key_id, recipient_id, wrap, created) VALUES ($1, $2, $3, $4)
		ON CONFLICT (key_id, recipient_id) DO UPDATE SET wrap = excluded.wrap, created = excluded.created`,
		key, recipient, blob, db.Micros(now))
	if err != nil {
		return fmt.Errorf("store the wrap of key %s to %s: %w", key, recipient, err)
	}
	return nil
}

// Delete removes a key and its wraps for good; one in a token stays there, and is known here no more. After the transaction
// has committed the caller calls Forget.
func (s *Store) Delete(ctx context.Context, tx *db.Tx, id, actor string, now time.Time) error {
	if _, err := tx.Exec(ctx, `DELETE FROM key_wrap WHERE key_id = $1`, id); err != nil {
		return fmt.Errorf("delete the wraps of key %s: %w", id, err)
	}
	n, err := tx.Exec(ctx, `DELETE FROM sealed_key WHERE id = $1`, id)
	if err != nil {
		return fmt.Errorf("delete key %s: %w", id, err)
	}
	inToken, err := tx.Exec(ctx, `DELETE FROM token_key WHERE id = $1`, id)
	if err != nil {
		return fmt.Errorf("delete key %s: %w", id, err)
	}
	if n+inToken == 0 {
		return fault.New(fault.NotFound, "there is no key %s", id)
	}
	return s.log.Append(ctx, tx, audit.Event{Time: now, Actor: actor, Action: "key.delete", Object: id})
}

// Signer returns the key so named. It is opened once and then kept, and may sign from any number of goroutines.
func (s *Store) Signer(ctx context.Context, id string) (crypto.Signer, error) {
	s.mu.Lock()
	if e, ok := s.opened[id]; ok {
		s.recent.MoveToFront(e)
		key := e.Value.(*cached).key
		s.mu.Unlock()
		return key, nil
	}
	epoch := s.epoch
	s.mu.Unlock()
	key, err := s.open(ctx, id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.opened[id]; ok { // another caller was faster
		return e.Value.(*cached).key, nil
	}
	if epoch == s.epoch {
		s.opened[id] = s.recent.PushFront(&cached{id, key})
		if s.recent.Len() > s.most {
			oldest := s.recent.Remove(s.recent.Back()).(*cached)
			delete(s.opened, oldest.id)
		}
	}
	return key, nil
}

// Forget drops keys from memory: those named, or all of them.
func (s *Store) Forget(ids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	if len(ids) == 0 {
		clear(s.opened)
		s.recent.Init()
	}
	for _, id := range ids {
		if e, ok := s.opened[id]; ok {
			s.recent.Remove(e)
			delete(s.opened, id)
		}
	}
}

func (s *Store) open(ctx context.Context, id string) (crypto.Signer, error) {
	var r record
	var blob []byte
	var inToken []Key
	// A key is opened right after it was stored, and a standby may not have it yet: that is asked again where writes go.
	load := func(tx *db.Tx) (err error) {
		r, blob, err = loadKey(ctx, tx, id, s.self)
		if fault.Is(err, fault.NotFound) {
			if found, e := s.tokenKeysHere(ctx, tx, id); e != nil || len(found) > 0 {
				inToken, err = found, e
			}
		}
		return err
	}
	err := s.db.Read(ctx, load)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Denied) {
		err = s.db.ReadSnapshot(ctx, load)
	}
	if err != nil {
		return nil, err
	}
	if len(inToken) > 0 {
		return s.tokenSigner(ctx, inToken[0])
	}
	key, dataKey, err := r.open(blob, s.node.identity)
	if err != nil {
		return nil, fmt.Errorf("open key %s with the wrap of node %s: %w", id, s.self, err)
	}
	clear(dataKey)
	return &signer{id, key}, nil
}

// loadKey reads a key and its wrap to one recipient.
func loadKey(ctx context.Context, tx *db.Tx, id, recipient string) (r record, blob []byte, err error) {
	r.id = id
	err = tx.QueryRow(ctx, `SELECT purpose, owner, spki, ciphertext FROM sealed_key WHERE id = $1`, id).
		Scan(&r.purpose, &r.owner, &r.spki, &r.ciphertext)
	if errors.Is(err, sql.ErrNoRows) {
		return r, nil, fault.New(fault.NotFound, "there is no key %s", id)
	}
	if err != nil {
		return r, nil, fmt.Errorf("load key %s: %w", id, err)
	}
	err = tx.QueryRow(ctx, `SELECT wrap FROM key_wrap WHERE key_id = $1 AND recipient_id = $2`, id, recipient).Scan(&blob)
	if errors.Is(err, sql.ErrNoRows) {
		return r, nil, fault.New(fault.Denied, "key %s (%s of %s) is not wrapped to %s", id, r.purpose, r.owner, recipient).
			WithHint("if it should be, rewrap the keys at a node that can open them; chancery doctor says which")
	}
	if err != nil {
		return r, nil, fmt.Errorf("load the wrap of key %s to %s: %w", id, recipient, err)
	}
	return r, blob, nil
}

// Key describes a stored key.
type Key struct {
	ID        string    `json:"id"`
	Purpose   Purpose   `json:"purpose"`
	Owner     string    `json:"owner"`
	Algorithm string    `json:"algorithm"`
	SPKI      []byte    `json:"spki"`
	Created   time.Time `json:"created"`
	Token     string    `json:"token,omitempty"` // PKCS #11 URI, where the key lies in a token
}

// Find lists the keys of one purpose, and of one owner unless owner is empty: the newest first, and those in tokens behind
// those that are stored.
func (s *Store) Find(ctx context.Context, purpose Purpose, owner string) ([]Key, error) {
	var found []Key
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		found = nil
		rows, err := tx.Query(ctx, `SELECT id, purpose, owner, algorithm, spki, created FROM sealed_key
			WHERE purpose = $1 AND (owner = $2 OR $2 = '') ORDER BY created DESC, id DESC`, string(purpose), owner)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var k Key
			var created int64
			if err := rows.Scan(&k.ID, &k.Purpose, &k.Owner, &k.Algorithm, &k.SPKI, &created); err != nil {
				return err
			}
			k.Created = db.FromMicros(created)
			found = append(found, k)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		rows.Close()
		inTokens, err := tokenKeys(ctx, tx, "", purpose, owner)
		found = append(found, inTokens...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s keys: %w", purpose, err)
	}
	return found, nil
}

// opener is a recipient whose private half is at hand.
type opener struct {
	recipient string
	identity  age.Identity
	recovery  bool // it is the recovery key
}

// mayWrapTo says whether a recipient gets keys. Who has the recovery key has them all, and may wrap them to the node on which he
// uses it, whatever list there is.
func (o opener) mayWrapTo(r Recipient) bool {
	return r.Endorsed || o.recovery && r.mac
}
