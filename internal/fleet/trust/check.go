package trust

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// Finding is something in the rows of what pools trust that is not as it should be.
type Finding struct {
	Pool, Object string // the object is an entry's ID, or a serial
	Message      string
}

// Checked says how much Check looked at.
type Checked struct{ Pools, Entries, CRLs, Announced int64 }

// Check holds what pools trust against the certificates themselves, the issuers and each other: each row says what its
// certificate says, versions are in order, no pool trusts another pool's issuer or that of identities, and each CRL is its
// entry's. It stops when tell returns false.
func (s *Service) Check(ctx context.Context, tell func(Finding) bool) (seen Checked, err error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return seen, err
	}
	var found []Finding
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) error {
		seen, found = Checked{}, nil
		say := func(pool, object, format string, args ...any) {
			found = append(found, Finding{pool, object, fmt.Sprintf(format, args...)})
		}
		states, err := ReadStates(ctx, tx)
		if err != nil {
			return err
		}
		for name, st := range states {
			seen.Pools++
			if st.Version < 1 || st.Newest < st.Version {
				say(name, "", "its version is %d, and the newest %d", st.Version, st.Newest)
			}
		}
		entries, err := readEntries(ctx, tx, `id <> ''`)
		if err != nil {
			return err
		}
		for _, e := range entries {
			seen.Entries++
			for _, message := range e.check(states, issuers) {
				say(e.pool, e.id, "%s", message)
			}
			has, message, err := e.checkCRL(ctx, tx)
			if err != nil {
				return err
			}
			if has {
				seen.CRLs++
			}
			if message != "" {
				say(e.pool, e.id, "%s", message)
			}
		}
		leaves, err := readPinned(ctx, tx, `host <> ''`)
		if err != nil {
			return err
		}
		for _, p := range leaves {
			seen.Announced++
			if Fingerprint(p.certificate) != p.fingerprint || cert.FormatSerial(p.certificate.SerialNumber) != p.serial {
				say(p.pool, p.serial, "the row of the announced certificate does not say what the certificate says")
			}
		}
		return nil
	})
	if err != nil {
		return seen, fmt.Errorf("check what pools trust: %w", err)
	}
	for _, f := range found {
		if !tell(f) {
			break
		}
	}
	return seen, nil
}

// check says what is wrong with an entry.
func (e *entry) check(states map[string]State, issuers []*ca.Issuer) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	c := e.certificate
	if Fingerprint(c) != e.fingerprint {
		say("its fingerprint is not that of its certificate")
	}
	if !c.NotAfter.Equal(e.notAfter) {
		say("it ends at %s, and its certificate at %s", stamp(e.notAfter), stamp(c.NotAfter))
	}
	switch e.kind {
	case client.TrustAnchor, client.TrustIntermediate:
		if !c.IsCA || cert.SelfIssued(c) != (e.kind == client.TrustAnchor) {
			say("it is no %s: CA %t, self-issued %t", e.kind, c.IsCA, cert.SelfIssued(c))
		}
	case client.TrustPinned:
		if c.IsCA {
			say("it is pinned, and is a CA certificate")
		}
	default:
		say("its kind is %q", e.kind)
	}
	if st, ok := states[e.pool]; !ok || e.from < 1 || e.from > st.Newest || e.to != 0 && e.to < e.from || e.to > st.Newest {
		say("it is in the versions from %d to %d, and the newest of the pool is %d", e.from, e.to, st.Newest)
	}
	own := slices.IndexFunc(issuers, func(i *ca.Issuer) bool { return i.ID == e.issuer })
	if e.issuer != "" && (own < 0 || issuers[own].Pool != e.pool || issuers[own].Certificate == nil || !cert.SameCA(issuers[own].Certificate, c)) {
		say("it is not the certificate of issuer %s of its pool", e.issuer)
	}
	// What is above an issuer of the pool is in its trust by whoever put that issuer there; only what was brought in is judged.
	above := func(i *ca.Issuer) bool {
		return i.Pool == e.pool && i.Certificate != nil && (cert.SameCA(i.Certificate, c) || slices.ContainsFunc(i.Chain, c.Equal))
	}
	if slices.ContainsFunc(issuers, above) {
		return
	}
	for _, i := range issuers {
		if i.Pool != e.pool && i.Certificate != nil && c.IsCA && bytes.Equal(i.Certificate.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo) {
			say("it has the key of issuer %q of pool %q, and pools share no issuer", i.Name, i.Pool)
		}
	}
	return wrong
}

// checkCRL holds the CRL of an entry against it.
func (e *entry) checkCRL(ctx context.Context, tx *db.Tx) (has bool, wrong string, err error) {
	_, der, err := readCRL(ctx, tx, e.pool, e.id)
	if err != nil || der == nil {
		return false, "", err
	}
	list, err := crl.Parse(der)
	if err != nil {
		return true, fmt.Sprintf("its CRL cannot be read: %v", err), nil
	}
	if err := list.CheckIssuer(e.certificate); err != nil {
		return true, fmt.Sprintf("its CRL: %v", err), nil
	}
	return true, "", nil
}
