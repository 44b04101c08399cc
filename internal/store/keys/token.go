package keys

import (
	"context"
	"crypto"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/token"
)

// TokenKey is a private key in a PKCS #11 token, ready to be recorded. It has no wraps: who may use it is decided by who
// reaches the token.
type TokenKey struct {
	ID        string
	Purpose   Purpose
	Owner     string
	Algorithm string
	SPKI      []byte // SubjectPublicKeyInfo, DER
	URI       string // PKCS #11 URI, without what is a node's own

	Extractable bool // the token may give it out, so somebody may have a copy
}

// UseTokens gives the store the tokens that its node reaches. It is called before anything else is.
func (s *Store) UseTokens(tokens *token.Tokens) { s.tokens = tokens }

// Adopt finds a key in a token that this node reaches, has it prove that it signs what its public key verifies, and returns
// it ready to be recorded.
func (s *Store) Adopt(ctx context.Context, uri string, purpose Purpose, owner string) (*TokenKey, crypto.Signer, error) {
	if !slices.Contains(purposes, purpose) || owner == "" {
		return nil, nil, fmt.Errorf("adopt a key: %q is not a purpose, or there is no owner", purpose)
	}
	u, err := token.Parse(uri)
	if err != nil {
		return nil, nil, err
	}
	if local := u.Local(); len(local) > 0 {
		return nil, nil, fault.New(fault.Invalid, "%s in the URI of a key is one node's own, and a library is code: the node that reaches the token has it in "+
			"its node.yaml, under pkcs11", strings.Join(local, " and ")).At("key")
	}
	key, err := s.openToken(ctx, u)
	if err != nil {
		return nil, nil, err
	}
	k := &TokenKey{
		ID: db.NewID(), Purpose: purpose, Owner: owner, Algorithm: string(keyfile.AlgorithmOf(key.Public())), URI: key.URI().String(),
		Extractable: key.Extractable,
	}
	if k.SPKI, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return nil, nil, fmt.Errorf("adopt key %s: %w", k.URI, err)
	}
	return k, &signer{k.ID, key}, nil
}

func (s *Store) openToken(ctx context.Context, u *token.URI) (*token.Key, error) {
	if s.tokens == nil {
		return nil, fault.New(fault.Unavailable, "node %s cannot sign with the key %s in a PKCS #11 token: its node.yaml names no token", s.self, u).
			WithHint("pkcs11: in node.yaml; a node that reaches the token signs meanwhile")
	}
	return s.tokens.Open(ctx, u)
}

// InsertToken records a key in a token. A key has one owner: the same one for two issuers would let what is revoked or
// retired of one live on in the other.
func (s *Store) InsertToken(ctx context.Context, tx *db.Tx, k *TokenKey, actor string, now time.Time) error {
	var owner string
	err := tx.QueryRow(ctx, `SELECT owner FROM token_key WHERE spki = $1`, k.SPKI).Scan(&owner)
	if err == nil {
		return fault.New(fault.Conflict, "the key %s has an owner already, %s; each issuer has a key of its own", k.URI, owner)
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("look for the owner of key %s: %w", k.URI, err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO token_key (id, purpose, owner, algorithm, spki, uri, created) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		k.ID, string(k.Purpose), k.Owner, k.Algorithm, k.SPKI, k.URI, db.Micros(now))
	if err != nil {
		return fmt.Errorf("record key %s: %w", k.URI, err)
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "key.adopt", Object: k.ID,
		Detail: map[string]any{"purpose": k.Purpose, "owner": k.Owner, "algorithm": k.Algorithm, "uri": k.URI, "extractable": k.Extractable},
	})
}

// tokenSigner opens a recorded key of a token. The token's public key has to be the recorded one: a token that was made anew
// under the same labels signs for nobody.
func (s *Store) tokenSigner(ctx context.Context, k Key) (crypto.Signer, error) {
	u, err := token.Parse(k.Token)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", k.ID, err)
	}
	key, err := s.openToken(ctx, u)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", k.ID, err)
	}
	if !slices.Equal(spki, k.SPKI) {
		return nil, fault.New(fault.Conflict, "the token that node %s reaches holds another key under %s than the %s key of %s", s.self, u, k.Purpose, k.Owner)
	}
	return &signer{k.ID, key}, nil
}

const tokenKeyColumns = `id, purpose, owner, algorithm, spki, created, uri`

// tokenKeys reads recorded keys of tokens: of one id, or of one purpose and one owner; what is empty is any.
func tokenKeys(ctx context.Context, tx *db.Tx, id string, purpose Purpose, owner string) ([]Key, error) {
	rows, err := tx.Query(ctx, `SELECT `+tokenKeyColumns+` FROM token_key WHERE (id = $1 OR $1 = '') AND (purpose = $2 OR $2 = '')
		AND (owner = $3 OR $3 = '') ORDER BY created DESC, id DESC`, id, string(purpose), owner)
	if err != nil {
		return nil, fmt.Errorf("read keys in tokens: %w", err)
	}
	defer rows.Close()
	var found []Key
	for rows.Next() {
		var k Key
		var created int64
		if err := rows.Scan(&k.ID, &k.Purpose, &k.Owner, &k.Algorithm, &k.SPKI, &created, &k.Token); err != nil {
			return nil, fmt.Errorf("read keys in tokens: %w", err)
		}
		k.Created = db.FromMicros(created)
		found = append(found, k)
	}
	return found, rows.Err()
}

// tokenKeysHere is tokenKeys for one id, and refuses a key that this node is not entitled to: that it reaches the token does
// not make a node that answers OCSP requests one that issues.
func (s *Store) tokenKeysHere(ctx context.Context, tx *db.Tx, id string) ([]Key, error) {
	found, err := tokenKeys(ctx, tx, id, "", "")
	if err != nil || len(found) == 0 {
		return nil, err
	}
	self, err := s.row(ctx, tx, s.self)
	if err != nil {
		return nil, err
	}
	if !self.Entitled(found[0].Purpose, found[0].Owner) {
		return nil, fault.New(fault.Denied, "node %s runs %s, and is not entitled to the %s key of %s", s.self, joinSubsystems(self.Subsystems),
			found[0].Purpose, found[0].Owner)
	}
	return found, nil
}

// InTokens lists the keys in tokens that this node is entitled to.
func (s *Store) InTokens(ctx context.Context) ([]Key, error) {
	var found []Key
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		if found, err = tokenKeys(ctx, tx, "", "", ""); err != nil || len(found) == 0 {
			return err
		}
		self, err := s.row(ctx, tx, s.self)
		found = slices.DeleteFunc(found, func(k Key) bool { return !self.Entitled(k.Purpose, k.Owner) })
		return err
	})
	return found, err
}

// Reach says whether this node signs with a key in a token, by having it sign, and whether the token would give the key out.
func (s *Store) Reach(ctx context.Context, k Key) (extractable bool, err error) {
	opened, err := s.tokenSigner(ctx, k)
	if err != nil {
		return false, err
	}
	key, ok := opened.(*signer).key.(*token.Key)
	return ok && key.Extractable, nil
}

// reachTime is how long a token may take when it is only asked whether it is there.
const reachTime = 3 * time.Second

// reachable counts the keys in tokens: one that this node does not reach at this moment is one that it cannot open.
func (s *Store) reachable(ctx context.Context, o *Openable) error {
	inTokens, err := s.InTokens(ctx)
	if err != nil || len(inTokens) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	for _, k := range inTokens {
		o.Entitled++
		if _, err := s.Reach(ctx, k); err == nil {
			o.Open++
		} else if one := fmt.Sprintf("the %s key of %s: %v", k.Purpose, k.Owner, err); o.lacks(k.ID, one) {
			o.InTokens = append(o.InTokens, one)
		}
	}
	return nil
}

// exportable refuses a key that lies in a token, also where this node does not reach that: nobody gets it out, and what stands
// in for a copy is the token itself.
func (s *Store) exportable(ctx context.Context, id string) error {
	var found []Key
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		found, err = tokenKeys(ctx, tx, id, "", "")
		return err
	})
	if err != nil || len(found) == 0 {
		return err
	}
	return fault.New(fault.Denied, "the %s key of %s lies in a PKCS #11 token, %s, and never leaves it", found[0].Purpose, found[0].Owner, found[0].Token).
		WithHint("back the token up by its vendor's means, and name it under pkcs11 in the node.yaml of a node that reaches it")
}
