package crl

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"chancery/internal/fault"
)

// CheckIssuer checks that issuer signed the list and may: name, key identifier, cRLSign, signature (RFC 5280 §6.3.3 f, g).
func (l *List) CheckIssuer(issuer *x509.Certificate) error {
	if !bytes.Equal(l.RawIssuer, issuer.RawSubject) {
		return fault.New(fault.Invalid, "the CRL's issuer is not %q", issuer.Subject)
	}
	if len(l.AuthorityKeyID) > 0 && len(issuer.SubjectKeyId) > 0 && !bytes.Equal(l.AuthorityKeyID, issuer.SubjectKeyId) {
		return fault.New(fault.Invalid, "the CRL's authorityKeyIdentifier %s is not the issuer's %s",
			hex.EncodeToString(l.AuthorityKeyID), hex.EncodeToString(issuer.SubjectKeyId))
	}
	if issuer.KeyUsage != 0 && issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return fault.New(fault.Invalid, "issuer %q has a keyUsage without cRLSign", issuer.Subject)
	}
	if err := l.Algorithm.Verify(issuer.PublicKey, l.RawTBS, l.Signature); err != nil {
		return fault.New(fault.Invalid, "the CRL's signature is not by issuer %q: %w", issuer.Subject, err)
	}
	return nil
}

// CheckTimes refuses a list that is not in force at now.
func (l *List) CheckTimes(now time.Time) error {
	if now.Before(l.ThisUpdate) {
		return fault.New(fault.Invalid, "the CRL begins at %s, which is later than now", stamp(l.ThisUpdate))
	}
	if now.After(l.NextUpdate) {
		return fault.New(fault.Invalid, "the CRL ended at %s (nextUpdate)", stamp(l.NextUpdate))
	}
	return nil
}

// CheckSuccessor checks that l may be published after previous: a list of the same scope whose number grew and whose
// thisUpdate did not go back (RFC 5280 §5.2.3).
func (l *List) CheckSuccessor(previous *List) error {
	if err := l.sameScope(previous); err != nil {
		return err
	}
	if l.Number.Cmp(previous.Number) <= 0 {
		return fault.New(fault.Conflict, "CRLNumber %v is not greater than %v of the CRL before it", l.Number,
			previous.Number)
	}
	if l.ThisUpdate.Before(previous.ThisUpdate) {
		return fault.New(fault.Conflict, "thisUpdate %s is before %s of the CRL before it", stamp(l.ThisUpdate),
			stamp(previous.ThisUpdate))
	}
	return nil
}

// CheckBase checks that delta CRL l can be combined with complete CRL base (RFC 5280 §5.2.4).
func (l *List) CheckBase(base *List) error {
	if l.BaseNumber == nil {
		return errors.New("the CRL is not a delta CRL")
	}
	if base.BaseNumber != nil {
		return errors.New("the base is a delta CRL itself")
	}
	if err := l.sameScope(base); err != nil {
		return err
	}
	if base.Number.Cmp(l.BaseNumber) < 0 {
		return fault.New(fault.Conflict, "complete CRL %v is older than %v, the one that the delta starts from",
			base.Number, l.BaseNumber)
	}
	if base.Number.Cmp(l.Number) >= 0 {
		return fault.New(fault.Conflict, "complete CRL %v is not older than delta CRL %v", base.Number, l.Number)
	}
	return nil
}

func (l *List) sameScope(other *List) error {
	if !bytes.Equal(l.RawIssuer, other.RawIssuer) || !bytes.Equal(l.AuthorityKeyID, other.AuthorityKeyID) {
		return fault.New(fault.Invalid, "the two CRLs are of different issuers")
	}
	if !l.IDP.Equal(other.IDP) {
		return fmt.Errorf("scopes differ: %w", fault.New(fault.Invalid,
			"the two CRLs have different issuingDistributionPoints"))
	}
	return nil
}
