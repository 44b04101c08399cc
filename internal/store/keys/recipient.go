package keys

import (
	"context"
	"database/sql"
	"errors"
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

// AddRecipient stores a recipient. It opens nothing yet: Rewrap does that, at a node that can.
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
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "recipient.add", Object: r.ID,
		Detail: map[string]any{"kind": r.Kind, "name": r.Name, "subsystems": joinSubsystems(r.Subsystems), "public_key": r.PublicKey},
	})
}

// RemoveRecipient deletes a recipient and all its wraps. What the recipient opened before it may have kept: if it is no
// longer trusted, the keys must be replaced as well. The last recovery recipient stays, because without one the loss of
// the nodes would be the loss of the authority.
func (s *Store) RemoveRecipient(ctx context.Context, tx *db.Tx, id, actor string, now time.Time) error {
	all, err := recipients(ctx, tx)
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
	if _, err := tx.Exec(ctx, `DELETE FROM key_recipient WHERE id = $1`, id); err != nil {
		return fmt.Errorf("remove key recipient %s: %w", id, err)
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "recipient.remove", Object: id,
		Detail: map[string]any{"kind": all[at].Kind, "name": all[at].Name, "public_key": all[at].PublicKey, "wraps": wraps},
	})
}

// Recipients lists all recipients, in the order of their ids. There are as many as nodes, and one or two more.
func (s *Store) Recipients(ctx context.Context) ([]Recipient, error) {
	var all []Recipient
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		all, err = recipients(ctx, tx)
		return err
	})
	return all, err
}

const recipientColumns = `id, kind, name, subsystems, public_key, created`

func recipients(ctx context.Context, tx *db.Tx) ([]Recipient, error) {
	rows, err := tx.Query(ctx, `SELECT `+recipientColumns+` FROM key_recipient ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("list key recipients: %w", err)
	}
	defer rows.Close()
	var all []Recipient
	for rows.Next() {
		r, err := scanRecipient(rows)
		if err != nil {
			return nil, fmt.Errorf("list key recipients: %w", err)
		}
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list key recipients: %w", err)
	}
	return all, nil
}

func recipient(ctx context.Context, tx *db.Tx, id string) (Recipient, error) {
	r, err := scanRecipient(tx.QueryRow(ctx, `SELECT `+recipientColumns+` FROM key_recipient WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return r, fault.New(fault.NotFound, "there is no key recipient %q", id)
	}
	if err != nil {
		return r, fmt.Errorf("load key recipient %s: %w", id, err)
	}
	return r, nil
}

func scanRecipient(row interface{ Scan(...any) error }) (Recipient, error) {
	var r Recipient
	var kind, list string
	var created int64
	if err := row.Scan(&r.ID, &kind, &r.Name, &list, &r.PublicKey, &created); err != nil {
		return r, err
	}
	r.Kind, r.Created = RecipientKind(kind), db.FromMicros(created)
	for name := range strings.SplitSeq(list, ",") {
		if name != "" {
			r.Subsystems = append(r.Subsystems, Subsystem(name))
		}
	}
	return r, nil
}

func joinSubsystems(list []Subsystem) string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = string(s)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ",")
}
