package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// Token describes a bearer token. Its text is known only to whoever it was given to.
type Token struct {
	ID        string    `json:"id"`
	Principal string    `json:"principal"`
	Label     string    `json:"label"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	LastUsed  time.Time `json:"last_used"` // within some minutes; zero if never
}

// A token's text: a prefix by which scanners of source code know it, 256 random bits, and four octets of their hash, by
// which a mistyped or truncated token is told from a guess without asking the database.
const (
	tokenPrefix  = "chy_"
	tokenRandom  = 32
	tokenCheck   = 4
	tokenLetters = 48 // base64url of 36 octets
)

// MaxTokenLife bounds how long a token may be valid.
const MaxTokenLife = 366 * 24 * time.Hour

// NewTokenText returns the text of a fresh token.
func NewTokenText() string {
	var raw [tokenRandom + tokenCheck]byte
	rand.Read(raw[:tokenRandom])
	check := sha256.Sum256(append([]byte(tokenPrefix), raw[:tokenRandom]...))
	copy(raw[tokenRandom:], check[:])
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(raw[:])
}

// hashToken returns the hash by which the token is stored, and false for text that is no token.
func hashToken(text string) ([sha256.Size]byte, bool) {
	letters, ok := strings.CutPrefix(text, tokenPrefix)
	// The decoder skips line ends, so the length is compared first and again after.
	if !ok || len(letters) != tokenLetters {
		return [sha256.Size]byte{}, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(letters)
	if err != nil || len(raw) != tokenRandom+tokenCheck {
		return [sha256.Size]byte{}, false
	}
	check := sha256.Sum256(append([]byte(tokenPrefix), raw[:tokenRandom]...))
	if string(check[:tokenCheck]) != string(raw[tokenRandom:]) {
		return [sha256.Size]byte{}, false
	}
	return sha256.Sum256([]byte(text)), true
}

// joinPrefix begins the join tokens of hosts.
const joinPrefix = "chancery-join-"

// tokenLike matches token texts, and what is left of one that was cut or mistyped.
var tokenLike = regexp.MustCompile(`(` + tokenPrefix + `|` + joinPrefix + `[0-9]+\.)[A-Za-z0-9_-]{8,}`)

// LooksLikeToken reports whether a text where a name belongs is a secret that somebody pasted there: it is not echoed.
func LooksLikeToken(text string) bool {
	return strings.HasPrefix(text, tokenPrefix) || strings.HasPrefix(text, joinPrefix)
}

// Redact hides token texts in what is about to be logged: people paste them where an ID or a name belongs.
func Redact(text string) string {
	if !strings.Contains(text, tokenPrefix) && !strings.Contains(text, joinPrefix) {
		return text
	}
	return tokenLike.ReplaceAllString(text, "${1}[redacted]")
}

// mayManageTokens: administrators those of all, others their own.
func mayManageTokens(by Principal, principalID string) error {
	if by.ID != "" && by.ID == principalID {
		return by.May(ManageOwnTokens)
	}
	return by.May(ManagePrincipals)
}

// withinToken keeps a token from making one that outlasts it, but for administrators, who manage all tokens.
func withinToken(by Principal, life time.Duration, now time.Time) error {
	end, ok := by.TokenEnds()
	if !ok || by.May(ManagePrincipals) == nil || !now.Add(life).After(end) {
		return nil
	}
	return fault.New(fault.Denied, "a token makes none that outlasts it, and this one ends at %s", end.UTC().Format(time.RFC3339)).At("expires").
		WithHint("make it with a client certificate, or have an administrator make it")
}

// TokenOrder asks for a token.
type TokenOrder struct {
	Principal string // its id
	Label     string
	Life      time.Duration
	Key       string // of idempotency; empty where the call is its own
}

// CreateToken makes a token for a principal and returns its text, which is shown once and stored nowhere. So a call that is
// repeated with its key, because its answer was lost, cannot get the first answer: it ends the token of the first and
// makes another in its place. It is a conflict once that token was used or ended, since then the answer arrived.
func (s *Store) CreateToken(ctx context.Context, by Principal, o TokenOrder) (Token, string, error) {
	if err := mayManageTokens(by, o.Principal); err != nil {
		return Token{}, "", err
	}
	now := time.Now()
	if err := withinToken(by, o.Life, now); err != nil {
		return Token{}, "", err
	}
	text := NewTokenText()
	caller, request := "token:"+by.ID, once.Hash([]byte(o.Principal), []byte(o.Label), []byte(o.Life.String()))
	var t Token
	var replaced bool
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		first, found, err := once.Lookup(ctx, tx, caller, o.Key, request)
		if err != nil {
			return err
		}
		if replaced = found; found {
			if err := s.endUnused(ctx, tx, by, string(first), now); err != nil {
				return err
			}
		}
		if t, err = s.InsertToken(ctx, tx, o.Principal, o.Label, text, o.Life, by.Actor(), now); err != nil {
			return err
		}
		if found {
			return once.Replace(ctx, tx, caller, o.Key, []byte(t.ID), now)
		}
		return once.Remember(ctx, tx, caller, o.Key, request, []byte(t.ID), now)
	})
	if replaced {
		s.invalidate()
	}
	if err != nil {
		return Token{}, "", fmt.Errorf("create token: %w", err)
	}
	return t, text, nil
}

// endUnused removes a token whose secret reached nobody, as far as can be told, and refuses where it did.
func (s *Store) endUnused(ctx context.Context, tx *db.Tx, by Principal, id string, now time.Time) error {
	spent := func(what string) error {
		return fault.New(fault.Conflict, "the token %s that was made with this idempotency key %s", id, what).
			WithHint("its secret was shown once; make another token with a fresh key")
	}
	var owner, label string
	var created, used int64
	err := tx.QueryRow(ctx, `SELECT principal_id, label, created, last_used FROM access_token WHERE id = $1`, id).
		Scan(&owner, &label, &created, &used)
	s.mu.RLock()
	_, pending := s.used[id]
	s.mu.RUnlock()
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return spent("has ended")
	case err != nil:
		return err
	case used != 0 || pending:
		return spent("is in use")
	case created > db.Micros(now):
		return spent("answers a later call") // this one is the first, come late, and nobody waits for it any more
	}
	return s.removeToken(ctx, tx, by, id, owner, label, now)
}

func (s *Store) removeToken(ctx context.Context, tx *db.Tx, by Principal, id, owner, label string, now time.Time) error {
	if _, err := tx.Exec(ctx, `DELETE FROM access_token WHERE id = $1`, id); err != nil {
		return err
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: by.Actor(), Action: "token.delete", Object: id, Detail: map[string]any{"principal": owner, "label": label},
	})
}

// InsertToken stores a token that NewTokenText made, in the caller's transaction.
func (s *Store) InsertToken(ctx context.Context, tx *db.Tx, principalID, label, text string, life time.Duration, actor string, now time.Time) (Token, error) {
	switch {
	case life < time.Minute || life > MaxTokenLife:
		return Token{}, fault.New(fault.Invalid, "a token that is valid for %s was asked for; from 1m to %s can be had", cert.Duration(life), cert.Duration(MaxTokenLife)).
			At("expires")
	case !utf8.ValidString(label) || len(label) > 200 || strings.ContainsFunc(label, unicode.IsControl):
		return Token{}, fault.New(fault.Invalid, "label %.60q is not text of at most 200 octets", label).At("label")
	}
	hash, ok := hashToken(text)
	if !ok {
		return Token{}, fmt.Errorf("store a token: its text is not one that NewTokenText made")
	}
	p, err := principal(ctx, tx, principalID)
	if err != nil {
		return Token{}, err
	}
	t := Token{ID: db.NewID(), Principal: p.ID, Label: label, Created: db.FromMicros(db.Micros(now)), Expires: db.FromMicros(db.Micros(now.Add(life)))}
	_, err = tx.Exec(ctx, `INSERT INTO access_token (id, principal_id, label, hash, created, expires, last_used)
		VALUES ($1, $2, $3, $4, $5, $6, 0)`, t.ID, t.Principal, t.Label, hash[:], db.Micros(t.Created), db.Micros(t.Expires))
	if err != nil {
		return Token{}, err
	}
	return t, s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "token.create", Object: t.ID,
		Detail: map[string]any{"principal": p.Name, "label": label, "expires": t.Expires},
	})
}

// Tokens lists the tokens of a principal in the order in which they were made, from after the id given.
func (s *Store) Tokens(ctx context.Context, by Principal, principalID, after string, limit int) (found []Token, next string, err error) {
	if by.May(ReadPrincipals) != nil {
		if err := mayManageTokens(by, principalID); err != nil {
			return nil, "", err
		}
	}
	if err := pageSize(limit); err != nil {
		return nil, "", err
	}
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		found = nil
		rows, err := tx.Query(ctx, `SELECT id, principal_id, label, created, expires, last_used FROM access_token
			WHERE principal_id = $1 AND id > $2 ORDER BY id LIMIT $3`, principalID, after, limit+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var t Token
			var created, expires, used int64
			if err := rows.Scan(&t.ID, &t.Principal, &t.Label, &created, &expires, &used); err != nil {
				return err
			}
			t.Created, t.Expires = db.FromMicros(created), db.FromMicros(expires)
			if used != 0 {
				t.LastUsed = db.FromMicros(used)
			}
			found = append(found, t)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list tokens: %w", err)
	}
	if len(found) > limit {
		found = found[:limit]
		next = found[limit-1].ID
	}
	return found, next, nil
}

// DeleteToken ends a token; when it returns, this node accepts it no more.
func (s *Store) DeleteToken(ctx context.Context, by Principal, id string, call once.Call) error {
	if strings.HasPrefix(id, tokenPrefix) {
		return fault.New(fault.Invalid, "that is a token's secret, and its ID is wanted").
			WithHint("chancery token list shows the IDs; somebody who watched may have the secret now")
	}
	now := time.Now()
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		_, err := once.Act(ctx, tx, call, now, func() (once.Done, error) { return once.Done{}, s.endToken(ctx, tx, by, id, now) })
		return err
	})
	s.invalidate()
	if err != nil {
		return fmt.Errorf("delete token: %w", err)
	}
	return nil
}

func (s *Store) endToken(ctx context.Context, tx *db.Tx, by Principal, id string, now time.Time) error {
	var owner, label string
	err := tx.QueryRow(ctx, `SELECT principal_id, label FROM access_token WHERE id = $1`, id).Scan(&owner, &label)
	if err != nil {
		return notFound(err, "token", id)
	}
	if denied := mayManageTokens(by, owner); denied != nil {
		return notFound(nil, "token", id) // whether it exists is not the caller's to know
	}
	return s.removeToken(ctx, tx, by, id, owner, label, now)
}

// PruneTokens removes up to limit tokens that ended before the time given, and says how many it removed.
func (s *Store) PruneTokens(ctx context.Context, ended time.Time, limit int) (n int64, err error) {
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		n, err = tx.Exec(ctx, `DELETE FROM access_token WHERE id IN (SELECT id FROM access_token WHERE expires < $1 ORDER BY id LIMIT $2)`,
			db.Micros(ended), limit)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune tokens: %w", err)
	}
	return n, nil
}
