package ca

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Issue issues a certificate. It returns once the certificate, its serial, its idempotency key and its audit event are
// committed; a call repeated with its key gets the same certificate. An order that wants an approval is refused: Submit it.
func (c *CA) Issue(ctx context.Context, by access.Principal, order Order) (*Certificate, error) {
	now := time.Now()
	if err := c.admit(ctx, by, access.IssueCertificate, now); err != nil {
		return nil, err
	}
	return c.planAndIssue(ctx, by, &order, now)
}

func (c *CA) planAndIssue(ctx context.Context, by access.Principal, order *Order, now time.Time) (*Certificate, error) {
	p, err := c.plan(ctx, by, order, now)
	if err == nil && !p.atOnce {
		err = p.needsApproval(by, order)
	}
	if err != nil {
		return c.replay(ctx, by, order, now, fmt.Errorf("issue: %w", err))
	}
	return c.issue(ctx, by, order, p, now)
}

// needsApproval says how the caller gets there. A renewal cannot be submitted: an officer makes it, or the request is
// submitted again.
func (p *plan) needsApproval(by access.Principal, order *Order) error {
	refused := fault.New(fault.Denied, "profile %q wants an officer's approval for %s", p.profile, by.Name)
	switch old := order.replaces; {
	case old == nil:
		return refused.WithHint("chancery request submit asks for it")
	case p.twoPerson:
		return refused.WithHint("chancery request submit --profile %s --csr FILE asks for a certificate with the same names, and another officer "+
			"approves it", p.profile)
	default:
		return refused.WithHint("an officer renews it: chancery cert renew %s; or chancery request submit --profile %s --csr FILE asks for a "+
			"certificate with the same names", cert.FormatSerial(old.Serial), p.profile)
	}
}

// issueCall is an order as its idempotency key knows it.
func issueCall(by access.Principal, order *Order) (call, error) {
	var replaces int64
	if order.replaces != nil {
		replaces = order.replaces.ID
	}
	return newCall(by, order.IdempotencyKey, "certificate.issue", struct {
		Order    *Order
		Replaces int64
	}{order, replaces})
}

// replay answers a call that would be refused now with the certificate that it got before, if it is a repeated one: what
// it renewed may have been revoked meanwhile, or the profile changed.
func (c *CA) replay(ctx context.Context, by access.Principal, order *Order, now time.Time, refusal error) (*Certificate, error) {
	if order.IdempotencyKey == "" {
		return nil, refusal
	}
	asked, err := issueCall(by, order)
	if err != nil {
		return nil, refusal
	}
	var found *Certificate
	err = c.db.Tx(ctx, func(tx *db.Tx) error {
		found = nil
		earlier, err := asked.earlier(ctx, tx)
		if err != nil || earlier == "" {
			return err
		}
		found, err = c.byAnswer(ctx, tx, earlier, now)
		return err
	})
	if err != nil || found == nil {
		return nil, refusal
	}
	return found, nil
}

// admit holds a caller to its role, its rate and the clock, before anything costly is done.
func (c *CA) admit(ctx context.Context, by access.Principal, action access.Action, now time.Time) error {
	if err := by.May(action); err != nil {
		return err
	}
	if err := c.db.CheckClock(now); err != nil {
		return err
	}
	return c.withinRate(ctx, by, now)
}

func (c *CA) withinRate(ctx context.Context, by access.Principal, now time.Time) error {
	if isSystem(by) {
		return nil
	}
	s, err := c.settings.Get(ctx)
	if err != nil {
		return err
	}
	return c.rates.allow(by, s.Limits, now)
}

// signed is a certificate that has not left the process: it does when record has committed.
type signed struct {
	certificate *Certificate
	call        call
	ahead       *ahead // nil where nothing was read ahead
	limits      settings.Limits
	runs        []int64 // the IDs that the runs of its transaction gave it
	within      Within  // nil for most
	control     bool    // of a proof of revocation: see IssueControl
	login       bool    // of IssueLogin
	requester   access.Principal
}

func (c *CA) issue(ctx context.Context, by access.Principal, order *Order, p *plan, now time.Time) (*Certificate, error) {
	if err := c.guardCaller(ctx, by, p, now); err != nil {
		return c.replay(ctx, by, order, now, fmt.Errorf("issue: %w", err))
	}
	s, err := c.sign(ctx, by, p)
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	if s.call, err = issueCall(by, order); err != nil {
		return nil, err
	}
	s.within, s.control = order.within, order.control
	defer c.settle(s)
	s.ahead = s.reads()
	together := db.Ahead{Key: aheadKey{}, Item: s.ahead, Read: readAhead}
	tx := func(ctx context.Context, fn func(*db.Tx) error) error { return c.db.TxAhead(ctx, together, fn) }
	var issued *Certificate
	err = commit(ctx, tx, func(tx *db.Tx, again bool) (err error) {
		issued = nil
		if again {
			if issued, err = c.committed(ctx, tx, s, now); err != nil || issued != nil {
				return err
			}
		}
		issued, err = c.record(ctx, tx, by, s, now)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	return issued, nil
}

// commit runs fn in a transaction, and runs it again while the outcome is unknown. fn then first looks whether its writes
// are there. That it does not see them, or cannot look, proves nothing as long as the first commit may still be under way at a server
// that waits for its standby: the outcome stays unknown then, and no later failure or refusal may say that nothing was changed.
func (c *CA) commit(ctx context.Context, fn func(tx *db.Tx, again bool) error) error {
	return commit(ctx, c.db.Tx, fn)
}

func commit(ctx context.Context, run func(context.Context, func(*db.Tx) error) error, fn func(tx *db.Tx, again bool) error) error {
	const tries = 5
	var lost error // of a commit whose outcome is unknown
	for try := 0; ; try++ {
		err := run(ctx, func(tx *db.Tx) error { return fn(tx, try > 0) })
		switch {
		case errors.Is(err, db.ErrUnknownOutcome):
			lost = err
		case err == nil || lost == nil:
			return err
		}
		wait := time.NewTimer(10 * time.Millisecond << try)
		select {
		case <-ctx.Done():
		case <-wait.C:
			if try < tries-1 {
				continue
			}
		}
		wait.Stop()
		return lost
	}
}

// committed finds the certificate that a commit of unknown outcome wrote, and nil when it did not.
func (c *CA) committed(ctx context.Context, tx *db.Tx, s *signed, now time.Time) (*Certificate, error) {
	r, err := c.recordByRef(ctx, tx, Ref{Issuer: s.certificate.Issuer.ID, Serial: s.certificate.Serial})
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := touch(ctx, tx, r.ID); err != nil {
		return nil, err
	}
	return c.complete(ctx, tx, r, now)
}

// touch writes a row as it is. An act that is found to be done is acknowledged only behind a commit of its own: on
// PostgreSQL that commit waits for the standby, and so proves that the act's survived too.
func touch(ctx context.Context, tx *db.Tx, certificate int64) error {
	if _, err := tx.Exec(ctx, `UPDATE certificate SET state = state WHERE id = $1`, certificate); err != nil {
		return fmt.Errorf("confirm certificate %d: %w", certificate, err)
	}
	return nil
}

// sign consumes the plan.
func (c *CA) sign(ctx context.Context, by access.Principal, p *plan) (*signed, error) {
	s, err := c.settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	signer, err := c.keys.SignerFor(ctx, p.issuer.KeyID, p.issuer.Certificate)
	if err != nil {
		return nil, fmt.Errorf("load the key of issuer %s: %w", p.issuer.Name, err)
	}
	der, err := p.linted.Sign(signer)
	if err != nil {
		return nil, fmt.Errorf("sign as issuer %s: %w", p.issuer.Name, err)
	}
	crt := &Certificate{
		Issuer: p.issuer, State: Valid, DER: der, Profile: p.profile, ProfileVersion: p.version, Requester: by.ID, Warnings: p.warnings,
	}
	if p.replaces != nil {
		crt.Replaces = p.replaces.ID
	}
	crt.take(p.facts)
	return &signed{certificate: crt, limits: s.Limits, login: p.login, requester: by}, nil
}

// record writes a signed certificate in the caller's transaction, or returns the one that an earlier call with the same
// key, or the duplicate guard, says it is.
func (c *CA) record(ctx context.Context, tx *db.Tx, by access.Principal, s *signed, now time.Time) (*Certificate, error) {
	crt := *s.certificate // this run's own: the function may run twice
	earlier, err := s.earlier(ctx, tx)
	if err != nil {
		return nil, err
	}
	if earlier != "" {
		return c.byAnswer(ctx, tx, earlier, now)
	}
	if err := s.checkKey(ctx, tx); err != nil {
		return nil, err
	}
	if !s.control { // whose own within says who gets one
		if err := c.admitInTx(ctx, tx, by, crt.Profile, now); err != nil {
			return nil, err
		}
	}
	if err := c.admitToDatabase(ctx, tx, s); err != nil {
		return nil, err
	}
	same, err := c.guard(ctx, tx, by, s, now)
	if err != nil {
		return nil, err
	}
	if same != nil {
		return same, s.remember(ctx, tx, answer(same.ID), now)
	}
	crt.ID = c.nextID(now)
	s.runs = append(s.runs, crt.ID)
	c.pending.Store(crt.ID, &crt)
	if err := c.insertCertificate(ctx, tx, &crt); err != nil {
		return nil, err
	}
	if err := s.remember(ctx, tx, answer(crt.ID), now); err != nil {
		return nil, err
	}
	if s.within != nil {
		if err := s.within(ctx, tx, &crt); err != nil {
			return nil, err
		}
	}
	if err := c.auditIssued(ctx, tx, by, &crt, now); err != nil {
		return nil, err
	}
	return &crt, nil
}

func (c *CA) auditIssued(ctx context.Context, tx *db.Tx, by access.Principal, crt *Certificate, now time.Time) error {
	sum := sha256.Sum256(crt.DER)
	return c.audit.Append(ctx, tx, audit.Event{
		Time: now, Actor: by.Actor(), Action: actionIssue, Object: cert.FormatSerial(crt.Serial), Detail: issueDetail{
			Certificate: crt.ID, Issuer: crt.Issuer.Name, Profile: crt.Profile, Version: crt.ProfileVersion, Replaces: crt.Replaces,
			SHA256: hex.EncodeToString(sum[:]), Subject: crt.Subject, NotAfter: utc(crt.NotAfter),
		},
	})
}

type issueDetail struct {
	Certificate int64  `json:"certificate"`
	Issuer      string `json:"issuer"`
	NotAfter    string `json:"notAfter"`
	Profile     string `json:"profile"`
	Replaces    int64  `json:"replaces,omitempty"`
	SHA256      string `json:"sha256"`
	Subject     string `json:"subject"`
	Version     int    `json:"version"`
}

func answer(id int64) string { return fmt.Sprint(id) }

func (c *CA) byAnswer(ctx context.Context, tx *db.Tx, earlier string, now time.Time) (*Certificate, error) {
	var id int64
	if _, err := fmt.Sscan(earlier, &id); err != nil {
		return nil, fmt.Errorf("read the remembered answer: %w", err)
	}
	if crt, ok := c.pending.Load(id); ok {
		// The call with the same key is in this very transaction, and its row is written right before the commit.
		same := *crt.(*Certificate)
		return &same, nil
	}
	r, err := recordByID(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	if err := touch(ctx, tx, id); err != nil {
		return nil, err
	}
	return c.complete(ctx, tx, r, now)
}

// settle forgets a certificate whose transaction is over.
func (c *CA) settle(s *signed) {
	for _, id := range s.runs {
		c.pending.Delete(id)
	}
}

// sameWish reports whether two certificates are of one profile and for the same names.
func (c *Certificate) sameWish(other *Certificate) bool {
	if c.Profile != other.Profile || c.Subject != other.Subject || len(c.Names()) != len(other.Names()) {
		return false
	}
	for i, n := range c.Names() {
		if n.String() != other.Names()[i].String() {
			return false
		}
	}
	return true
}

// unsigned wraps a TBSCertificate as a certificate with an empty signature.
func unsigned(l *cert.Linted) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(l.TBS())
		b.AddBytes(l.Algorithm().Identifier())
		b.AddASN1BitString(nil)
	})
	return b.BytesOrPanic() // of parts that were encoded before
}
