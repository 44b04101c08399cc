package ca

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// Merged says what MergeCRL did with the entries of a CRL.
type Merged struct {
	Known   int // were revoked here already
	Revoked int // were good or on hold here, and are revoked now
	Unknown int // have no certificate here, and are kept as revoked serials
}

// mergeChunk is how many entries are merged in one transaction.
const mergeChunk = 200

// MergeCRL revokes what a CRL of one of the issuers lists and this store does not know of: an authority that was restored
// from a backup has forgotten what was issued and revoked since, but its CRLs were published. The revocation dates and
// reasons are the list's. It may be repeated, and goes on where it was cut short. An entry that is missing from the list
// changes nothing: a revocation is never taken back by it.
func (c *CA) MergeCRL(ctx context.Context, by access.Principal, list *crl.List) (Merged, error) {
	var done Merged
	if err := by.Require(access.Admin, access.Officer); err != nil { // a host may revoke too, but only its own
		return done, err
	}
	now := time.Now()
	if err := c.db.CheckClock(now); err != nil {
		return done, err
	}
	issuer, err := c.signerOf(ctx, list, now)
	if err != nil {
		return done, err
	}
	var part []crl.Entry
	flush := func() error {
		merged, err := c.mergeEntries(ctx, by, issuer, part, now)
		done.Known, done.Revoked, done.Unknown = done.Known+merged.Known, done.Revoked+merged.Revoked, done.Unknown+merged.Unknown
		part = part[:0]
		return err
	}
	for entry, err := range list.Entries() {
		if err != nil {
			return done, err
		}
		if part = append(part, entry); len(part) == mergeChunk {
			if err := flush(); err != nil {
				return done, err
			}
		}
	}
	if err := flush(); err != nil {
		return done, err
	}
	c.announce()
	return done, nil
}

// signerOf finds the issuer that signed a list.
func (c *CA) signerOf(ctx context.Context, list *crl.List, now time.Time) (*Issuer, error) {
	set, err := c.issuersNow(ctx, now)
	if err != nil {
		return nil, err
	}
	for _, i := range set.all {
		if i.Certificate != nil && list.CheckIssuer(i.Certificate) == nil {
			return i, nil
		}
	}
	return nil, fault.New(fault.Invalid, "the CRL is signed by none of the %d issuers of this authority", len(set.all))
}

func (c *CA) mergeEntries(ctx context.Context, by access.Principal, issuer *Issuer, entries []crl.Entry, now time.Time) (Merged, error) {
	var done Merged
	if len(entries) == 0 {
		return done, nil
	}
	err := c.db.Tx(ctx, func(tx *db.Tx) error {
		done = Merged{}
		for _, entry := range entries {
			if err := c.mergeEntry(ctx, tx, by, issuer, entry, now, &done); err != nil {
				return err
			}
		}
		if done.Revoked+done.Unknown == 0 {
			return nil
		}
		return c.audit.Append(ctx, tx, audit.Event{
			Time: now, Actor: by.Actor(), Action: "certificate.merge-crl", Object: issuer.ID,
			Detail: map[string]any{"name": issuer.Name, "known": done.Known, "revoked": done.Revoked, "unknown": done.Unknown},
		})
	})
	if err != nil {
		return Merged{}, fmt.Errorf("merge a CRL of issuer %s: %w", issuer.Name, err)
	}
	return done, nil
}

func (c *CA) mergeEntry(ctx context.Context, tx *db.Tx, by access.Principal, issuer *Issuer, e crl.Entry, now time.Time, done *Merged) error {
	if e.Reason == crl.RemoveFromCRL {
		return nil // of a delta; the complete list speaks for itself
	}
	r, err := c.recordByRef(ctx, tx, Ref{Issuer: issuer.ID, Serial: e.Serial})
	known, missing := errors.AsType[*fault.Error](err)
	switch {
	case missing && known.Kind == fault.NotFound:
		done.Unknown++
		lost := imported{
			&Certificate{
				ID: c.nextID(now), Issuer: issuer, State: Valid, Profile: importedProfile, Requester: by.ID, Serial: e.Serial, DER: []byte{},
				NotBefore: issuer.Certificate.NotBefore, NotAfter: issuer.Certificate.NotAfter,
			},
			&Revocation{Reason: e.Reason, RevokedAt: e.RevokedAt, InvalidityDate: e.Invalidity},
		}
		return c.storeHistory(ctx, tx, by, []imported{lost}, now)
	case err != nil:
		return err
	case r.State == Revoked, r.State == Held && e.Reason == crl.CertificateHold:
		done.Known++
		return nil
	}
	done.Revoked++
	// The date is the list's: relying parties have seen it.
	if err := c.revoke(ctx, tx, r, RevokeOrder{Reason: e.Reason, InvalidityDate: e.Invalidity}, e.RevokedAt); err != nil {
		return err
	}
	return c.recordMerged(ctx, tx, by, r, now)
}

// recordMerged gives what a merged entry revoked an event of its own, as any revocation has: CheckAudit asks for it.
func (c *CA) recordMerged(ctx context.Context, tx *db.Tx, by access.Principal, r *record, now time.Time) error {
	action := actionRevoke
	if r.Revocation.Reason == crl.CertificateHold {
		action = actionHold
	}
	return c.audit.Append(ctx, tx, audit.Event{
		Time: now, Actor: by.Actor(), Action: action, Object: cert.FormatSerial(r.Serial), Detail: auditRevocation(r),
	})
}
