package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/root"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// This file renews issuers (RFC 3647 4.6): another certificate for the same name and key. The issuer stays the one that it is,
// with its number, its inventory, its CRLs and its responders, since two issuers of one name and key would sign CRLs that
// contradict each other.

// RenewSpec says which issuer gets another certificate for the key that it has.
type RenewSpec struct {
	IdempotencyKey string
	Issuer         string        // name or ID
	Validity       time.Duration // 0: as long as the certificate before, and never beyond the end of the one above

	// Answer is the certificate where it was made elsewhere, by an outside root or with an offline key, and those above it as far
	// as they are not here. Without it, the issuer above signs now.
	Answer []*x509.Certificate
}

// actionRenew is the audit event of a renewal.
const actionRenew = "issuer.renew"

// asked tells a repeated call from another one.
func (s *RenewSpec) asked() any {
	var answer []string
	for _, c := range s.Answer {
		answer = append(answer, digestOf(c))
	}
	return struct {
		Issuer   string
		Validity time.Duration
		Answer   []string
	}{s.Issuer, s.Validity, answer}
}

func digestOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// renewal is an issuer's new certificate about to be stored.
type renewal struct {
	before, after *Issuer
	record        *Certificate // in the inventory of the issuer above; nil where that is not here
	warnings      []string
}

// again reports whether the certificate is the one that the issuer has.
func (r *renewal) again() bool { return r.after.Certificate.Equal(r.before.Certificate) }

// RenewIssuer gives an issuer another certificate for the name and the key that it has, which lasts longer. What it issued stays
// good under either certificate; the one before stays in the inventory of the issuer above, good until its end unless it is
// revoked. Other nodes issue under the new one within a second.
//
// An issuer that was retired, and whose key is good, is active again with it; the certificate that it has, given as Answer, makes it so
// without another one.
func (c *CA) RenewIssuer(ctx context.Context, by access.Principal, spec RenewSpec) (*Issuer, error) {
	now := time.Now()
	if err := by.May(access.ManageIssuers); err != nil {
		return nil, err
	}
	if err := c.db.CheckClock(now); err != nil {
		return nil, err
	}
	if spec.IdempotencyKey == "" {
		spec.IdempotencyKey = "once:" + db.NewID() // so that an unknown outcome can be resolved
	}
	asked, err := newCall(by, spec.IdempotencyKey, actionRenew, spec.asked())
	if err != nil {
		return nil, err
	}
	var r *renewal
	var warnings []string
	repeated, err := c.wasAsked(ctx, asked)
	if err != nil {
		return nil, err
	}
	if !repeated { // nothing is signed, nor judged anew, for a call that is repeated
		if r, err = c.prepareRenewal(ctx, &spec, now); err != nil {
			return nil, fmt.Errorf("renew issuer %s: %w", spec.Issuer, err)
		}
		if warnings, err = c.warnings(ctx, r, now); err != nil {
			return nil, fmt.Errorf("renew issuer %s: %w", spec.Issuer, err)
		}
	}
	var renewed *Issuer
	err = c.commit(ctx, func(tx *db.Tx, _ bool) (err error) {
		renewed, err = c.storeRenewal(ctx, tx, by, asked, r, now)
		return err
	})
	c.forget() // after a failure too: the outcome of the commit may be unknown
	if err != nil {
		return nil, fmt.Errorf("renew issuer %s: %w", spec.Issuer, err)
	}
	c.announce()
	renewed.Warnings = warnings
	return renewed, nil
}

// wasAsked reports whether there is an answer to an earlier call with the key. Where it cannot be read now, the transaction finds it.
func (c *CA) wasAsked(ctx context.Context, asked call) (was bool, err error) {
	earlier := ""
	err = c.db.Read(ctx, func(tx *db.Tx) (err error) {
		earlier, err = asked.earlier(ctx, tx)
		return err
	})
	if fault.Is(err, fault.Unavailable) || fault.KindOf(err) == fault.Internal {
		err = nil
	}
	return earlier != "", err
}

// renewed is the issuer that an earlier call with the key renewed; nil where there was none.
func (k call) renewed(ctx context.Context, tx *db.Tx) (*Issuer, error) {
	earlier, err := k.earlier(ctx, tx)
	if err != nil || earlier == "" {
		return nil, err
	}
	return touchIssuer(ctx, tx, earlier)
}

// touchIssuer writes an issuer as it is, for the reason that touch does, and returns it.
func touchIssuer(ctx context.Context, tx *db.Tx, id string) (*Issuer, error) {
	if _, err := tx.Exec(ctx, `UPDATE issuer SET state = state WHERE id = $1`, id); err != nil {
		return nil, fmt.Errorf("confirm issuer %s: %w", id, err)
	}
	return oneIssuer(ctx, tx, "issuer "+id+" is gone", ` WHERE id = $1`, id)
}

// prepareRenewal makes or judges the new certificate.
func (c *CA) prepareRenewal(ctx context.Context, spec *RenewSpec, now time.Time) (*renewal, error) {
	if spec.Validity < 0 {
		return nil, fault.New(fault.Invalid, "validity %s is negative", cert.Duration(spec.Validity)).At("/validity")
	}
	if spec.Validity != 0 && len(spec.Answer) > 0 {
		return nil, fault.New(fault.Invalid, "the certificate that is given says how long it lasts; give no validity beside it").At("/validity")
	}
	set, err := c.issuersAnew(ctx)
	if err != nil {
		return nil, err
	}
	before := set.find(spec.Issuer)
	if before == nil {
		return nil, fault.New(fault.NotFound, "there is no issuer %q", spec.Issuer).WithHint("chancery issuer list")
	}
	if err := before.renewable(spec.Answer); err != nil {
		return nil, err
	}
	after := *before
	after.State = IssuerActive
	if len(spec.Answer) > 0 {
		err = set.takeRenewed(before, &after, spec.Answer, now)
	} else {
		err = before.orReopened(c.signAgain(ctx, set, before, &after, spec.Validity, now))
	}
	if err != nil {
		return nil, err
	}
	r := &renewal{before: before, after: &after}
	if !r.again() || before.State == IssuerRetired {
		if r.warnings, err = root.CheckPath(after.path(), before.path(), now); err != nil {
			return nil, err
		}
	}
	if above := set.parent(&after); above != nil && !r.again() {
		after.Parent = above.ID // which may have come in after it
		r.record = &Certificate{Issuer: above, State: Valid, DER: after.Certificate.Raw, Profile: issuerProfile}
		err = r.record.fill()
	}
	return r, err
}

// signAgain has the issuer above sign, whose key is here.
func (c *CA) signAgain(ctx context.Context, set *issuerSet, before, after *Issuer, validity time.Duration, now time.Time) error {
	above := set.parent(before)
	switch {
	case above == nil:
		return fault.New(fault.Conflict, "%q, which signed issuer %q, is not here", before.Certificate.Issuer, before.Name).
			WithHint("chancery issuer renew %s --csr-out F, have it signed there, and then chancery issuer renew %s --certificate F", before.Name, before.Name)
	case above.State != IssuerActive:
		return fault.New(fault.Conflict, "issuer %q is %s; only an active issuer signs another", above.Name, above.State).
			WithHint("chancery issuer reopen %s, if it was retired by a slip", above.Name)
	case above.KeyID == "":
		return fault.New(fault.Conflict, "the key of issuer %q, which signed issuer %q, is offline", above.Name, before.Name).
			WithHint("chancery issuer renew %s --key-file F --passphrase-file F", before.Name)
	}
	signer, err := c.keys.SignerFor(ctx, above.KeyID, above.Certificate)
	if err != nil {
		return fmt.Errorf("load the key of issuer %s: %w", above.Name, err)
	}
	s, err := c.settings.Get(ctx)
	if err != nil {
		return err
	}
	signing := root.Root{Certificate: above.Certificate, Signer: signer}
	if after.Certificate, err = signing.RenewIssuer(before.Certificate, validity, *above.encoder(s, wholeList), now); err != nil {
		return err
	}
	after.Chain = above.path()
	return nil
}

// storeRenewal commits an issuer's new certificate: its row, the chains that it stands in, its record, idempotency key and event.
func (c *CA) storeRenewal(ctx context.Context, tx *db.Tx, by access.Principal, asked call, r *renewal, now time.Time) (*Issuer, error) {
	earlier, err := asked.renewed(ctx, tx)
	switch {
	case err != nil || earlier != nil:
		return earlier, err
	case r == nil:
		return nil, fault.New(fault.Unavailable, "the answer to the earlier call is not there any more; again, with a fresh idempotency key")
	}
	i, err := oneIssuer(ctx, tx, `issuer "`+r.before.Name+`" is gone`, ` WHERE id = $1`, r.before.ID)
	if err != nil {
		return nil, err
	}
	if i.Certificate != nil && i.Certificate.Equal(r.after.Certificate) {
		if i.State == IssuerRetired {
			if err := r.unmoved(i); err != nil {
				return nil, err
			}
			if err := c.reopenAsItIs(ctx, tx, r, i, by.Actor(), now); err != nil {
				return nil, err
			}
		}
		if err := asked.remember(ctx, tx, i.ID, now); err != nil {
			return nil, err
		}
		return touchIssuer(ctx, tx, i.ID)
	}
	if err := c.admitRenewal(ctx, tx, r, i); err != nil {
		return nil, err
	}
	old, err := c.recordBefore(ctx, tx, r)
	if err != nil {
		return nil, err
	}
	if err := keepFormer(ctx, tx, i, now); err != nil {
		return nil, err
	}
	certificate, chain, notAfter := r.after.stored()
	_, err = tx.Exec(ctx, `UPDATE issuer SET certificate = $1, chain = $2, not_after = $3, parent = $4 WHERE id = $5`, certificate, chain, notAfter, r.after.Parent, i.ID)
	if err != nil {
		return nil, fmt.Errorf("store the certificate of issuer %s: %w", i.Name, err)
	}
	if err := replaceAbove(ctx, tx, i.Certificate, r.after); err != nil {
		return nil, err
	}
	record, err := c.recordRenewed(ctx, tx, by, r, old, now)
	if err != nil {
		return nil, err
	}
	if c.renewing != nil {
		if err := c.renewing(ctx, tx, i, r.after); err != nil {
			return nil, err
		}
	}
	if err := asked.remember(ctx, tx, i.ID, now); err != nil {
		return nil, err
	}
	err = c.audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: actionRenew, Object: i.ID, Detail: record.entered(map[string]any{
		"name": i.Name, "pool": i.Pool, "sha256": digestOf(r.after.Certificate), "notAfter": utc(r.after.Certificate.NotAfter),
		"serial": cert.FormatSerial(r.after.Certificate.SerialNumber), "replaces": cert.FormatSerial(i.Certificate.SerialNumber),
	})})
	if err != nil {
		return nil, err
	}
	if err := c.reopened(ctx, tx, i, by.Actor(), now); err != nil {
		return nil, err
	}
	return oneIssuer(ctx, tx, `issuer "`+i.Name+`" is gone`, ` WHERE id = $1`, i.ID)
}

// admitRenewal judges the renewal again by what the store holds now.
func (c *CA) admitRenewal(ctx context.Context, tx *db.Tx, r *renewal, i *Issuer) error {
	if err := r.unmoved(i); err != nil {
		return err
	}
	if !i.Certificate.Equal(r.before.Certificate) {
		return fault.New(fault.Conflict, "issuer %q got another certificate in this moment (serial %s)", i.Name, cert.FormatSerial(i.Certificate.SerialNumber)).
			WithHint("chancery issuer show %s", i.Name)
	}
	if err := checkIssuerKey(ctx, tx, i); err != nil {
		return err
	}
	if err := c.admitAgain(ctx, tx, i); err != nil {
		return err
	}
	if r.record != nil {
		above, err := oneIssuer(ctx, tx, `the issuer above "`+i.Name+`" is gone`, ` WHERE id = $1`, r.after.Parent)
		if err != nil {
			return err
		}
		if err := c.goodAbove(ctx, tx, above); err != nil {
			return err
		}
		switch {
		case above.State != IssuerActive:
			return fault.New(fault.Conflict, "issuer %q above %q is %s; only an active issuer has others below it renewed", above.Name, i.Name, above.State).
				WithHint("chancery issuer reopen %s, if it was retired by a slip", above.Name)
		case !slices.EqualFunc(above.path(), r.after.Chain, (*x509.Certificate).Equal):
			return fault.New(fault.Conflict, "issuer %q above %q was changed in this moment", above.Name, i.Name).WithHint("chancery issuer show %s, and again", above.Name)
		}
	}
	return ownRoot(ctx, tx, r.after)
}

// recordBefore is what the inventory of the issuer above has of the certificate before; nil where it has none. One that is on hold, or
// revoked for what would be said of another one as well, is not got round by that.
func (c *CA) recordBefore(ctx context.Context, tx *db.Tx, r *renewal) (*record, error) {
	if r.record == nil {
		return nil, nil
	}
	old, err := c.recordByRef(ctx, tx, Ref{Issuer: r.after.Parent, Serial: r.before.Certificate.SerialNumber})
	switch {
	case fault.Is(err, fault.NotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case old.State == Held || old.State == Revoked && !outlived(old.Revocation.Reason):
		return nil, fault.New(fault.Conflict, "the certificate %s of issuer %q is %s (%s), and another one would get round that", cert.FormatSerial(old.Serial),
			r.before.Name, old.State, old.Revocation.Reason)
	}
	return old, nil
}

// recordRenewed enters the new certificate into the inventory of the issuer above, as what replaced the one before. Nothing is
// entered where it is there already; what is there in its place, or is revoked or on hold, is no certificate for an issuer.
func (c *CA) recordRenewed(ctx context.Context, tx *db.Tx, by access.Principal, r *renewal, old *record, now time.Time) (*Certificate, error) {
	if r.record == nil {
		return nil, nil
	}
	known, err := c.recordByRef(ctx, tx, Ref{Issuer: r.record.Issuer.ID, Serial: r.record.Serial})
	switch {
	case fault.Is(err, fault.NotFound):
	case err != nil:
		return nil, err
	case len(known.DER) > 0 && !bytes.Equal(known.DER, r.record.DER):
		return nil, fault.New(fault.Conflict, "the inventory of issuer %q has another certificate with the serial %s", r.record.Issuer.Name, cert.FormatSerial(known.Serial))
	case known.State != Valid:
		return nil, fault.New(fault.Conflict, "the certificate %s is %s in the inventory of issuer %q", cert.FormatSerial(known.Serial), known.State, r.record.Issuer.Name).
			WithHint("have another one signed")
	default:
		return nil, nil
	}
	fresh := *r.record
	fresh.ID, fresh.Requester = c.nextID(now), by.ID
	if old != nil {
		fresh.Replaces = old.ID
	}
	return &fresh, c.insertCertificate(ctx, tx, &fresh)
}

// replaceAbove puts a renewed issuer's certificate, and what is above it now, in the place of whichever it had before in the chains of
// the issuers below.
func replaceAbove(ctx context.Context, tx *db.Tx, before *x509.Certificate, after *Issuer) error {
	all, err := readIssuers(ctx, tx, "")
	if err != nil {
		return err
	}
	for _, i := range all {
		at := slices.IndexFunc(i.Chain, func(c *x509.Certificate) bool { return sameIssuer(c, before) })
		if at < 0 {
			continue
		}
		i.Chain = append(slices.Clone(i.Chain[:at]), after.path()...)
		_, chain, _ := i.stored()
		if _, err := tx.Exec(ctx, `UPDATE issuer SET chain = $1 WHERE id = $2`, chain, i.ID); err != nil {
			return fmt.Errorf("store the chain of issuer %s: %w", i.Name, err)
		}
	}
	return nil
}

// RenewalRequest is a request for another certificate of an issuer, with its name and key and all by which relying parties judge what
// is below it, for a root that is not here. That the key signed it is in the audit log; nothing else is stored.
func (c *CA) RenewalRequest(ctx context.Context, by access.Principal, nameOrID string) ([]byte, error) {
	now := time.Now()
	if err := by.May(access.ManageIssuers); err != nil {
		return nil, err
	}
	i, err := c.Issuer(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	if err := i.renewable(nil); err != nil {
		return nil, err
	}
	if i.KeyID == "" {
		return nil, fault.New(fault.Conflict, "the key of issuer %q is offline, so its request is made where the key is", i.Name).
			WithHint("chancery issuer renew %s --certificate F brings in what was made of it", i.Name)
	}
	signer, err := c.keys.SignerFor(ctx, i.KeyID, i.Certificate)
	if err != nil {
		return nil, fmt.Errorf("load the key of issuer %s: %w", i.Name, err)
	}
	subject, err := cert.ParseNameDER(i.Certificate.RawSubject)
	if err != nil {
		return nil, fmt.Errorf("read the subject of issuer %s: %w", i.Name, err)
	}
	csr, err := cert.CreateCSR(&cert.CSRTemplate{Subject: subject, Extra: root.Kept(i.Certificate)}, signer)
	if err != nil {
		return nil, fmt.Errorf("make a request for issuer %s: %w", i.Name, err)
	}
	err = c.db.Tx(ctx, func(tx *db.Tx) error {
		return c.audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "issuer.renewal-request", Object: i.ID, Detail: map[string]any{
			"name": i.Name, "sha256": fmt.Sprintf("%x", sha256.Sum256(csr)),
		}})
	})
	if err != nil {
		return nil, fmt.Errorf("record the request for issuer %s: %w", i.Name, err)
	}
	return csr, nil
}
