package keys

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"filippo.io/age"

	"chancery/internal/fault"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// Purpose says what a sealed key is for.
type Purpose string

// The purposes of keys.
const (
	Issuer Purpose = "issuer" // signs certificates and CRLs
	OCSP   Purpose = "ocsp"   // signs OCSP responses for an issuer, as its delegated responder
	Audit  Purpose = "audit"  // signs audit checkpoints
	TLS    Purpose = "tls"    // a node's own server key
)

var purposes = []Purpose{Issuer, OCSP, Audit, TLS} // never changed

// Subsystem is what a node runs.
type Subsystem string

// The subsystems.
const (
	SubsystemCA   Subsystem = "ca"
	SubsystemOCSP Subsystem = "ocsp"
	SubsystemKRA  Subsystem = "kra"
	SubsystemTKS  Subsystem = "tks"
)

var subsystems = []Subsystem{SubsystemCA, SubsystemOCSP, SubsystemKRA, SubsystemTKS} // never changed

// RecipientKind tells nodes from the recovery recipient.
type RecipientKind string

// The kinds of recipients.
const (
	KindNode     RecipientKind = "node"
	KindRecovery RecipientKind = "recovery"
)

// Recipient is a public key to which data keys are wrapped.
type Recipient struct {
	ID         string        `json:"id"` // a node's is the node's own
	Kind       RecipientKind `json:"kind"`
	Name       string        `json:"name"`
	Subsystems []Subsystem   `json:"subsystems"` // of a node
	PublicKey  string        `json:"public_key"` // age1…
	Created    time.Time     `json:"created"`
	Endorsed   bool          `json:"endorsed"` // the node that reads it gives it keys; see List and Endorse

	why string // why it is not
	mac bool   // this node itself endorsed it
}

// Entitled is the rule of who may open which key; nothing else decides it.
//
//	           issuer   ocsp   audit   tls
//	recovery   yes      yes    yes     yes
//	ca         yes      yes    yes     its own
//	ocsp       no       yes    no      its own
//	kra, tks   no       no     no      its own
//
// A node that only answers OCSP requests stands where the requests come from, and so must not be able to issue. Audit
// checkpoints are signed by the holder of a lease, which only a node with the ca subsystem takes.
func (r Recipient) Entitled(purpose Purpose, owner string) bool {
	if r.Kind == KindRecovery {
		return slices.Contains(purposes, purpose)
	}
	if r.Kind != KindNode {
		return false
	}
	runs := func(s Subsystem) bool { return slices.Contains(r.Subsystems, s) }
	switch purpose {
	case Issuer, Audit:
		return runs(SubsystemCA)
	case OCSP:
		return runs(SubsystemCA) || runs(SubsystemOCSP)
	case TLS:
		return owner == r.ID
	}
	return false
}

func (r Recipient) validate() error {
	switch {
	case r.ID == "" || len(r.ID) > 128 || strings.ContainsFunc(r.ID, func(c rune) bool { return c <= ' ' || c > '~' }):
		return fault.New(fault.Invalid, "recipient id %q is not 1 to 128 printable ASCII characters", r.ID).At("id")
	case r.Kind != KindNode && r.Kind != KindRecovery:
		return fault.New(fault.Invalid, "recipient kind %q is neither node nor recovery", r.Kind).At("kind")
	case r.Kind == KindNode && len(r.Subsystems) == 0:
		return fault.New(fault.Invalid, "node %q runs no subsystem; name one or more of ca, ocsp, kra, tks", r.ID).At("subsystems")
	case r.Kind == KindRecovery && len(r.Subsystems) != 0:
		return fault.New(fault.Invalid, "a recovery recipient runs no subsystems").At("subsystems")
	case !utf8.ValidString(r.Name) || len(r.Name) > 200 || strings.ContainsFunc(r.Name, unicode.IsControl):
		return fault.New(fault.Invalid, "recipient name %q is not text of at most 200 octets", r.Name).At("name")
	}
	for _, s := range r.Subsystems {
		if !slices.Contains(subsystems, s) {
			return fault.New(fault.Invalid, "subsystem %q is not one of ca, ocsp, kra, tks", s).At("subsystems")
		}
	}
	if _, err := age.ParseX25519Recipient(r.PublicKey); err != nil {
		return fault.New(fault.Invalid, "public key %.80q is not an age X25519 recipient (age1…)", r.PublicKey).At("public_key")
	}
	return nil
}

// AddRecipient stores a recipient, and this node vouches for it. It opens nothing yet: Rewrap does that. Where there are lists, the
// next one names it in the same transaction: see ChangeList.
func (s *Store) AddRecipient(ctx context.Context, tx *db.Tx, r Recipient, actor string, now time.Time) error {
	if err := r.validate(); err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `INSERT INTO key_recipient (id, kind, name, subsystems, public_key, created)
		VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
		r.ID, string(r.Kind), r.Name, joinSubsystems(r.Subsystems), r.PublicKey, db.Micros(now))
	if err != nil {
		return fmt.Errorf("add key recipient %s: %w", r.ID, err)
	}
	if n == 0 {
		return fault.New(fault.Conflict, "there is a key recipient with the id %q or the same public key already", r.ID)
	}
	if err := s.putEndorsement(ctx, tx, r); err != nil {
		return err
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "recipient.add", Object: r.ID,
		Detail: map[string]any{"kind": r.Kind, "name": r.Name, "subsystems": joinSubsystems(r.Subsystems), "public_key": r.PublicKey},
	})
}

// RemoveRecipient deletes a recipient and all its wraps. What the recipient opened before it may have kept: if it is no
// longer trusted, the keys must be replaced as well. The last recovery recipient stays, because without one the loss of
// the nodes would be the loss of the authority.
func (s *Store) RemoveRecipient(ctx context.Context, tx *db.Tx, id, actor string, now time.Time) error {
	all, err := s.rows(ctx, tx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all, func(r Recipient) bool { return r.ID == id })
	if at < 0 {
		return fault.New(fault.NotFound, "there is no key recipient %q", id)
	}
	isRecovery := func(r Recipient) bool { return r.Kind == KindRecovery }
	if isRecovery(all[at]) && slices.IndexFunc(slices.Delete(slices.Clone(all), at, at+1), isRecovery) < 0 {
		return fault.New(fault.Conflict, "%q is the only recovery recipient; add its successor and rewrap the keys first", id)
	}
	wraps, err := tx.Exec(ctx, `DELETE FROM key_wrap WHERE recipient_id = $1`, id)
	if err != nil {
		return fmt.Errorf("remove wraps of %s: %w", id, err)
	}
	for _, statement := range []string{
		`DELETE FROM key_endorsement WHERE recipient_id = $1 OR node = $1`,
		`DELETE FROM key_recipient WHERE id = $1`,
	} {
		if _, err := tx.Exec(ctx, statement, id); err != nil {
			return fmt.Errorf("remove key recipient %s: %w", id, err)
		}
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "recipient.remove", Object: id,
		Detail: map[string]any{"kind": all[at].Kind, "name": all[at].Name, "public_key": all[at].PublicKey, "wraps": wraps},
	})
}

// Recipients lists all recipients, in the order of their ids. There are as many as nodes, and one or two more. It asks where writes
// go: a standby may have an older list than the node has seen.
func (s *Store) Recipients(ctx context.Context) ([]Recipient, error) {
	var all []Recipient
	var v vouchers
	seen := s.mark()
	load := func(tx *db.Tx) (err error) {
		all, v, err = s.recipientsBy(ctx, tx, seen)
		return err
	}
	err := s.db.ReadSnapshot(ctx, load)
	if fault.Is(err, fault.Unavailable) {
		err = s.db.Read(ctx, load) // for those who only want to know; nothing is wrapped meanwhile
	}
	if err != nil {
		return nil, err
	}
	return all, s.remember(v)
}

// recipientsBy are all recipients, judged by the newest list, and what it judged them by; seen is the node's mark from before tx began.
func (s *Store) recipientsBy(ctx context.Context, tx *db.Tx, seen mark) ([]Recipient, vouchers, error) {
	v, err := s.vouch(ctx, tx, seen)
	if err != nil {
		return nil, v, err
	}
	all, err := s.rows(ctx, tx)
	for i := range all {
		all[i].Endorsed, all[i].why = v.trusts(all[i], all[i].mac)
	}
	return all, v, err
}

// rows are all recipients as they are stored, without a word on who is trusted.
func (s *Store) rows(ctx context.Context, tx *db.Tx) ([]Recipient, error) {
	rows, err := tx.Query(ctx, `SELECT id, kind, name, subsystems, public_key, created, mac FROM key_recipient
		LEFT JOIN key_endorsement ON recipient_id = id AND node = $1 ORDER BY id`, s.self)
	if err != nil {
		return nil, fmt.Errorf("list key recipients: %w", err)
	}
	defer rows.Close()
	var all []Recipient
	for rows.Next() {
		var r Recipient
		var list string
		var created int64
		var mac []byte
		if err := rows.Scan(&r.ID, &r.Kind, &r.Name, &list, &r.PublicKey, &created, &mac); err != nil {
			return nil, fmt.Errorf("list key recipients: %w", err)
		}
		r.Created = db.FromMicros(created)
		for name := range strings.SplitSeq(list, ",") {
			if name != "" {
				r.Subsystems = append(r.Subsystems, Subsystem(name))
			}
		}
		r.mac = hmac.Equal(mac, s.node.endorsement(r))
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list key recipients: %w", err)
	}
	return all, nil
}

// row is one recipient as it is stored.
func (s *Store) row(ctx context.Context, tx *db.Tx, id string) (Recipient, error) {
	all, err := s.rows(ctx, tx)
	if err != nil {
		return Recipient{}, err
	}
	return only(all, id)
}

// recipientBy is one recipient, as recipientsBy judges it.
func (s *Store) recipientBy(ctx context.Context, tx *db.Tx, id string, seen mark) (Recipient, error) {
	all, _, err := s.recipientsBy(ctx, tx, seen)
	if err != nil {
		return Recipient{}, err
	}
	return only(all, id)
}

func only(all []Recipient, id string) (Recipient, error) {
	if at := slices.IndexFunc(all, func(r Recipient) bool { return r.ID == id }); at >= 0 {
		return all[at], nil
	}
	return Recipient{}, fault.New(fault.NotFound, "there is no key recipient %q", id)
}

// Endorse makes this node vouch for a recipient that another node added, or that this node added with another key of its
// own. publicKey is what the operator has compared. A node wraps keys only to recipients that it has endorsed: otherwise
// whoever can write to the database could add a recipient of his own, or exchange the recovery recipient, and would be given
// the keys.
func (s *Store) Endorse(ctx context.Context, tx *db.Tx, id, publicKey, actor string, now time.Time) error {
	r, err := s.row(ctx, tx, id)
	if err != nil {
		return err
	}
	if r.PublicKey != publicKey {
		return fault.New(fault.Conflict, "key recipient %s has the public key %s, not %.80s", id, r.PublicKey, publicKey)
	}
	if err := r.validate(); err != nil {
		return err
	}
	if err := s.putEndorsement(ctx, tx, r); err != nil {
		return err
	}
	return s.log.Append(ctx, tx, audit.Event{Time: now, Actor: actor, Action: "recipient.endorse", Object: id,
		Detail: map[string]any{"node": s.self, "public_key": publicKey, "subsystems": joinSubsystems(r.Subsystems)}})
}

func (s *Store) putEndorsement(ctx context.Context, tx *db.Tx, r Recipient) error {
	_, err := tx.Exec(ctx, `INSERT INTO key_endorsement (node, recipient_id, mac) VALUES ($1, $2, $3)
		ON CONFLICT (node, recipient_id) DO UPDATE SET mac = excluded.mac`, s.self, r.ID, s.node.endorsement(r))
	if err != nil {
		return fmt.Errorf("endorse key recipient %s: %w", r.ID, err)
	}
	return nil
}

// endorsement authenticates all that decides what a recipient gets: its id, kind, subsystems and public key. Its secret is
// derived from the node's key, so the database cannot make one.
func (k *NodeKey) endorsement(r Recipient) []byte {
	secret, err := hkdf.Key(sha256.New, []byte(k.identity.String()), nil, "chancery recipient endorsement 1", sha256.Size)
	if err != nil {
		panic(err) // the length is constant and allowed
	}
	mac := hmac.New(sha256.New, secret)
	for _, text := range []string{r.ID, string(r.Kind), joinSubsystems(r.Subsystems), r.PublicKey} {
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(text))))
		mac.Write([]byte(text))
	}
	return mac.Sum(nil)
}

func joinSubsystems(list []Subsystem) string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = string(s)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ",")
}
