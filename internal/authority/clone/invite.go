package clone

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

const (
	inviteLife    = time.Hour
	maxInviteLife = 7 * 24 * time.Hour
	secretSize    = 32 // octets: 256 random bits, so a plain hash is enough

	// maxInvitations bounds the invitations that are good at the same time: each lets a stranger have a node wait.
	maxInvitations = 100
)

// invitation is a row of node_invitation.
type invitation struct {
	id         string
	subsystems string
	actor      string
	created    time.Time
	expires    time.Time
	usedBy     string
	refused    int64 // calls with its secret and another key, up to auditedRefusals
}

const invitationColumns = `id, subsystems, actor, created_at, expires_at, used_by, refused`

func scanInvitation(from interface{ Scan(...any) error }) (*invitation, error) {
	var i invitation
	var created, expires int64
	err := from.Scan(&i.id, &i.subsystems, &i.actor, &created, &expires, &i.usedBy, &i.refused)
	i.created, i.expires = db.FromMicros(created), db.FromMicros(expires)
	return &i, err
}

// findInvitation returns nil where there is none.
func findInvitation(ctx context.Context, tx *db.Tx, where string, arg any) (*invitation, error) {
	i, err := scanInvitation(tx.QueryRow(ctx, `SELECT `+invitationColumns+` FROM node_invitation WHERE `+where, arg))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read an invitation: %w", err)
	}
	return i, nil
}

func (i *invitation) wire() client.CloneInvited {
	return client.CloneInvited{ID: i.id, Subsystems: strings.Split(i.subsystems, ","), By: i.actor, Expires: i.expires, UsedBy: i.usedBy}
}

// subsystemsOf are the subsystems that an invitation names, sorted; both where it names none. There is no ca without ocsp: who signs for an
// issuer has its responder's key as well, and each node's public listener answers.
func subsystemsOf(names []string) ([]string, error) {
	if len(names) == 0 {
		return []string{string(keys.SubsystemCA), string(keys.SubsystemOCSP)}, nil
	}
	var all []string
	for i, name := range names {
		if name != string(keys.SubsystemCA) && name != string(keys.SubsystemOCSP) {
			return nil, fault.New(fault.Invalid, "subsystem %.40q is none that this release runs; ca,ocsp or ocsp would pass", name).
				At(fmt.Sprintf("/subsystems/%d", i))
		}
		all = append(all, name)
	}
	slices.Sort(all)
	if all = slices.Compact(all); !slices.Contains(all, string(keys.SubsystemOCSP)) {
		return nil, fault.New(fault.Invalid, "a node that runs ca alone was asked for, and every node answers OCSP requests; ca,ocsp or ocsp would pass").At("/subsystems")
	}
	return all, nil
}

func lifeOf(text string) (time.Duration, error) {
	if text == "" {
		return inviteLife, nil
	}
	life, err := settings.ParseDuration(text)
	if err != nil {
		return 0, fault.New(fault.Invalid, "%w", err).At("/life")
	}
	if d := life.Std(); d >= time.Minute && d <= maxInviteLife {
		return d, nil
	}
	return 0, fault.New(fault.Invalid, "an invitation that is good for %s was asked for; from 1m to 7d can be had", text).At("/life")
}

// Invite makes a one-time token with which a new node may ask to join; it is shown once and stored nowhere. So a repeated call
// cannot get the first answer: it changes the secret of the first, unless that was used.
func (s *Service) Invite(ctx context.Context, by access.Principal, in client.CloneInvitation, key string) (*client.CloneInvited, error) {
	if err := by.May(access.ManageNodes); err != nil {
		return nil, err
	}
	if err := s.shared(); err != nil {
		return nil, err
	}
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	if err := durable(set); err != nil { // which would refuse the approval, when a machine has come that far
		return nil, err
	}
	if err := s.goodKeys(ctx); err != nil { // which would too
		return nil, err
	}
	subsystems, err := subsystemsOf(in.Subsystems)
	if err != nil {
		return nil, err
	}
	life, err := lifeOf(in.Life)
	if err != nil {
		return nil, err
	}
	text, err := s.token(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	request := once.Hash([]byte(strings.Join(subsystems, ",")), []byte(life.String()))
	var made invitation
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		made = invitation{id: db.NewID(), subsystems: strings.Join(subsystems, ","), actor: by.Actor(), created: now, expires: db.FromMicros(db.Micros(now.Add(life)))}
		first, found, err := once.Lookup(ctx, tx, "clone-invite:"+by.ID, key, request)
		if err != nil {
			return err
		}
		if found {
			made.id = string(first)
			return renewSecret(ctx, tx, &made, text.Secret)
		}
		if err := roomToInvite(ctx, tx, now); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO node_invitation (id, hash, subsystems, actor, created_at, expires_at, used_by, used_at, refused)
			VALUES ($1, $2, $3, $4, $5, $6, '', 0, 0)`, made.id, hashSecret(text.Secret), made.subsystems, made.actor, db.Micros(now), db.Micros(made.expires))
		if err != nil {
			return fmt.Errorf("write an invitation: %w", err)
		}
		err = s.audit(ctx, tx, by.Actor(), "clone.invite", made.id, map[string]any{
			"subsystems": made.subsystems, "expires": made.expires.UTC().Format(time.RFC3339),
		}, now)
		if err != nil {
			return err
		}
		return once.Remember(ctx, tx, "clone-invite:"+by.ID, key, request, []byte(made.id), now)
	})
	if err != nil {
		return nil, fmt.Errorf("invite a node: %w", err)
	}
	out := made.wire()
	out.Token = text.String()
	return &out, nil
}

// roomToInvite refuses where too many invitations are open, or machines wait: a program that invites in a loop ends here.
func roomToInvite(ctx context.Context, tx *db.Tx, now time.Time) error {
	var open, wait int64
	err := tx.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM node_invitation WHERE used_by = '' AND expires_at >= $1),
		(SELECT COUNT(*) FROM node WHERE state = 'waiting')`, db.Micros(now)).Scan(&open, &wait)
	switch {
	case err != nil:
		return fmt.Errorf("count invitations: %w", err)
	case open >= maxInvitations:
		return fault.New(fault.Conflict, "%d invitations of nodes are open, and at most %d are at the same time", open, maxInvitations).
			WithHint("chancery clone invitations lists them; withdraw those that nobody uses, or let them end")
	case wait >= maxInvitations:
		return fault.New(fault.Conflict, "%d machines wait to become nodes, and at most %d may", wait, maxInvitations).
			WithHint("chancery clone list shows them; chancery clone remove NODE refuses one")
	}
	return nil
}

// renewSecret gives the invitation of a repeated call another secret, and refuses where the first answer arrived.
func renewSecret(ctx context.Context, tx *db.Tx, made *invitation, secret string) error {
	n, err := tx.Exec(ctx, `UPDATE node_invitation SET hash = $1, expires_at = $2 WHERE id = $3 AND used_by = '' AND created_at <= $4`,
		hashSecret(secret), db.Micros(made.expires), made.id, db.Micros(made.created))
	if err == nil && n == 0 {
		err = fault.New(fault.Conflict, "the invitation %s that was made with this idempotency key was used or withdrawn", made.id).
			WithHint("its token was shown once; make another with a fresh key")
	}
	return err
}

// shared refuses an engine that only one node can use.
func (s *Service) shared() error {
	if s.DB.Dialect() != db.SQLite {
		return nil
	}
	return fault.New(fault.Conflict, "the store of this authority is an SQLite file, which one node alone has open; nodes share a PostgreSQL database").
		WithHint("chancery migrate --to postgres://… moves it there, then invite again")
}

// token makes a token for this authority.
func (s *Service) token(ctx context.Context) (*client.CloneToken, error) {
	// The authority's own address may lead to a machine that is lost, which is when others are invited; this node is there.
	self, err := s.read(ctx, s.node)
	if err != nil {
		return nil, err
	}
	roots, err := s.Identity.RootCertificates(ctx)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, fault.New(fault.Unavailable, "the authority has no root of identities")
	}
	newest := roots[0] // of two, while the root is replaced, the newer one is there longer
	for _, r := range roots[1:] {
		if r.NotBefore.After(newest.NotBefore) {
			newest = r
		}
	}
	var secret [secretSize]byte
	rand.Read(secret[:])
	return &client.CloneToken{
		Address: self.address, Fingerprint: client.Fingerprint(newest.Raw), Secret: base64.RawURLEncoding.EncodeToString(secret[:]),
	}, nil
}

func hashSecret(secret string) []byte {
	sum := sha256.Sum256([]byte("chancery clone secret 1\n" + secret))
	return sum[:]
}

// Invitations lists invitations in the order of their ids, from after the id given; next is the id to continue with.
func (s *Service) Invitations(ctx context.Context, by access.Principal, after string, limit int) (found []client.CloneInvited, next string, err error) {
	if err := by.May(access.ManageNodes); err != nil {
		return nil, "", err
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		found = nil
		rows, err := tx.Query(ctx, `SELECT `+invitationColumns+` FROM node_invitation WHERE id > $1 ORDER BY id LIMIT $2`, after, int64(limit)+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			i, err := scanInvitation(rows)
			if err != nil {
				return err
			}
			found = append(found, i.wire())
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list invitations: %w", err)
	}
	if len(found) > limit {
		found = found[:limit]
		next = found[limit-1].ID
	}
	return found, next, nil
}

// Withdraw ends an invitation that was not used.
func (s *Service) Withdraw(ctx context.Context, by access.Principal, id string, call once.Call) error {
	if err := by.May(access.ManageNodes); err != nil {
		return err
	}
	now := time.Now()
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := once.Act(ctx, tx, call, now, func() (once.Done, error) {
			i, err := findInvitation(ctx, tx, `id = $1`, id)
			switch {
			case err != nil:
				return once.Done{}, err
			case i == nil:
				return once.Done{}, fault.New(fault.NotFound, "there is no invitation %.80q", access.Redact(id)).WithHint("chancery clone invitations")
			case i.usedBy != "":
				return once.Done{}, fault.New(fault.Conflict, "the invitation was used by node %s", i.usedBy).WithHint("chancery clone remove %s refuses the node", i.usedBy)
			}
			if _, err := tx.Exec(ctx, `DELETE FROM node_invitation WHERE id = $1`, id); err != nil {
				return once.Done{}, err
			}
			return once.Done{}, s.audit(ctx, tx, by.Actor(), "clone.withdraw", id, nil, now)
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("withdraw an invitation: %w", err)
	}
	return nil
}

// keepInvitations is how long an invitation is listed after its end.
const keepInvitations = 30 * 24 * time.Hour

// Prune removes up to limit invitations that ended long ago and were not used; a used one is what its node is known by.
func (s *Service) Prune(ctx context.Context, now time.Time, limit int) (n int64, err error) {
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		n, err = tx.Exec(ctx, `DELETE FROM node_invitation WHERE id IN
			(SELECT id FROM node_invitation WHERE used_by = '' AND expires_at < $1 ORDER BY id LIMIT $2)`, db.Micros(now.Add(-keepInvitations)), int64(limit))
		return err
	})
	return n, err
}
