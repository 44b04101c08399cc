package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// Record is a certificate that an imported issuer signed before.
type Record struct {
	Serial     *big.Int
	DER        []byte // nil where only the record is left
	Subject    string // RFC 4514
	NotBefore  time.Time
	NotAfter   time.Time
	Revocation *Revocation // nil where it is not revoked
}

// ImportSpec is an issuer that exists already.
type ImportSpec struct {
	IdempotencyKey string
	Name           string
	Pool           string // empty means that of the issuers here that are above it, and without any DefaultPool
	Default        bool
	CRL            CRLMode
	Certificate    *x509.Certificate
	Chain          []*x509.Certificate // the certificates above it
	Key            crypto.Signer       // nil when it stays offline, or is in a token
	Token          string              // PKCS #11 URI of the key, where it lies in a token that this node reaches
	Records        []Record

	// Also runs in the transaction of the import, after all rows: what else has to be true of the issuer from its first
	// moment on, such as the CRLNumber it reached. It may be nil, and may run twice.
	Also func(ctx context.Context, tx *db.Tx, issuer *Issuer) error
}

// importedProfile is what the inventory names as the profile of imported records.
const importedProfile = "imported"

// ImportIssuer takes over an issuer with all that it issued and revoked. The issuer is there when all of its records are:
// they are one transaction, so nobody meets an issuer that has forgotten a revocation. One that is here without its key gets that.
func (c *CA) ImportIssuer(ctx context.Context, by access.Principal, spec ImportSpec) (*Issuer, error) {
	now := time.Now()
	if err := by.May(access.ManageIssuers); err != nil {
		return nil, err
	}
	if err := spec.check(now); err != nil {
		return nil, fmt.Errorf("import issuer %s: %w", spec.Name, err)
	}
	if err := c.db.CheckClock(now); err != nil {
		return nil, err
	}
	set, err := c.issuersNow(ctx, now)
	if err != nil {
		return nil, err
	}
	known, err := set.keyless(&spec)
	if err != nil {
		return nil, fmt.Errorf("import issuer %s: %w", spec.Name, err)
	}
	above := chainAbove(spec.Certificate, spec.Chain)
	if spec.Pool == "" {
		spec.Pool = set.poolAbove(&Issuer{Certificate: spec.Certificate, Chain: above})
	}
	n := &newIssuer{imported: true, subject: spec.Certificate.RawSubject, request: spec.digest(), issuer: &Issuer{
		ID: db.NewID(), Name: spec.Name, Pool: spec.Pool, State: IssuerActive, Default: spec.Default,
		PublicKey: spec.Certificate.RawSubjectPublicKeyInfo, Certificate: spec.Certificate, Chain: above, CRL: spec.CRL,
		CreatedAt: now,
	}}
	if known != nil {
		is := *known
		n.issuer, n.given, n.byDefault = &is, true, spec.Default
	}
	n.record = set.recordFor(n.issuer)
	if n.issuer.Root() {
		n.record = &Certificate{Issuer: n.issuer, State: Valid, DER: spec.Certificate.Raw, Profile: issuerProfile}
		if err := n.record.fill(); err != nil {
			return nil, fmt.Errorf("import issuer %s: %w", spec.Name, err)
		}
	}
	if spec.Key != nil {
		if n.sealed, err = c.keys.Seal(ctx, spec.Key, keys.Issuer, n.issuer.ID); err != nil {
			return nil, fmt.Errorf("seal the key of issuer %s: %w", spec.Name, err)
		}
		n.issuer.KeyID = n.sealed.ID
	}
	if spec.Token != "" {
		if err := c.adoptInto(ctx, n, spec.Token); err != nil {
			return nil, fmt.Errorf("import issuer %s: %w", spec.Name, err)
		}
	}
	if n.history, err = c.history(n, spec.Records, by, now); err != nil {
		return nil, fmt.Errorf("import issuer %s: %w", spec.Name, err)
	}
	n.also = spec.Also
	issuer, err := c.storeIssuer(ctx, by, spec.IdempotencyKey, "issuer.import", n, now)
	if err != nil {
		return nil, fmt.Errorf("import issuer %s: %w", spec.Name, err)
	}
	c.announce()
	return issuer, nil
}

// adoptInto gives an imported issuer its key in a token.
func (c *CA) adoptInto(ctx context.Context, n *newIssuer, uri string) error {
	inToken, key, err := c.keys.Adopt(ctx, uri, keys.Issuer, n.issuer.ID)
	if err != nil {
		return err
	}
	if err := keyfile.CheckPair(key.Public(), n.issuer.Certificate); err != nil {
		return err
	}
	n.token, n.issuer.KeyID = inToken, inToken.ID
	return nil
}

func (s *ImportSpec) check(now time.Time) error {
	if err := checkName(s.Name); err != nil {
		return err
	}
	if err := s.CRL.check(); err != nil {
		return err
	}
	if s.CRL.Partitions > 0 && len(s.Records) > 0 {
		return fault.New(fault.Invalid, "the certificates that issuer %q signed before name no partition; import it without, and make a new issuer "+
			"for partitions", s.Name)
	}
	if s.Certificate == nil {
		return fault.New(fault.Invalid, "issuer %q has no certificate", s.Name)
	}
	if err := checkIssuerCertificate(s.Certificate, now); err != nil {
		return err
	}
	if s.Key != nil {
		return keyfile.CheckPair(s.Key.Public(), s.Certificate)
	}
	return nil
}

// digest tells imports apart for the idempotency key.
func (s *ImportSpec) digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%v\n%d\n%x\n%t\n", s.Name, s.Pool, s.Default, len(s.Records), s.Certificate.Raw, s.Key != nil || s.Token != "")
	return hex.EncodeToString(h.Sum(nil))
}

// imported is a record ready to be stored.
type imported struct {
	certificate *Certificate
	revocation  *Revocation
}

// history checks the records of an imported issuer and turns them into rows.
func (c *CA) history(n *newIssuer, records []Record, by access.Principal, now time.Time) ([]imported, error) {
	seen := map[string]bool{}
	if n.record != nil && n.record.Issuer == n.issuer {
		seen[string(serialKey(n.record.Serial))] = true
	}
	var rows []imported
	for _, r := range records {
		if r.Serial == nil || r.Serial.Sign() < 0 {
			return nil, fault.New(fault.Invalid, "a record has the serial %v; a serial of 0 or more is needed", r.Serial)
		}
		key := string(serialKey(r.Serial))
		if n.record != nil && n.record.Issuer == n.issuer && n.record.Serial.Cmp(r.Serial) == 0 {
			continue // the root's own certificate
		}
		if seen[key] {
			return nil, fault.New(fault.Invalid, "two records have the serial %s", cert.FormatSerial(r.Serial))
		}
		seen[key] = true
		row, err := r.imported(n.issuer, by)
		if err != nil {
			return nil, err
		}
		row.certificate.ID = c.nextID(now)
		rows = append(rows, row)
	}
	return rows, nil
}

func (r *Record) imported(issuer *Issuer, by access.Principal) (imported, error) {
	crt := &Certificate{Issuer: issuer, State: Valid, DER: bytesOf(r.DER), Profile: importedProfile, Requester: by.ID, Serial: r.Serial,
		Subject: r.Subject, NotBefore: r.NotBefore, NotAfter: r.NotAfter}
	if len(r.DER) > 0 {
		parsed, err := x509.ParseCertificate(r.DER)
		if err != nil {
			return imported{}, fault.New(fault.Invalid, "certificate %s cannot be read: %w", cert.FormatSerial(r.Serial), err)
		}
		if parsed.SerialNumber.Cmp(r.Serial) != 0 || !bytes.Equal(parsed.RawIssuer, issuer.Certificate.RawSubject) {
			return imported{}, fault.New(fault.Invalid, "certificate %s is not what its record says: it has serial %s, and issuer %q",
				cert.FormatSerial(r.Serial), cert.FormatSerial(parsed.SerialNumber), parsed.Issuer)
		}
		if err := crt.fill(); err != nil {
			return imported{}, err
		}
	}
	if crt.NotAfter.IsZero() {
		crt.NotAfter = issuer.Certificate.NotAfter
	}
	if crt.NotBefore.IsZero() {
		crt.NotBefore = issuer.Certificate.NotBefore
	}
	if v := r.Revocation; v != nil {
		if !slices.Contains(crl.Reasons(), v.Reason) {
			return imported{}, fault.New(fault.Invalid, "certificate %s was revoked with reason %d, which is not one of %v",
				cert.FormatSerial(r.Serial), int(v.Reason), crl.Reasons())
		}
	}
	return imported{crt, r.Revocation}, nil
}

// storeHistory writes the records of an imported issuer, after its own row.
func (c *CA) storeHistory(ctx context.Context, tx *db.Tx, by access.Principal, rows []imported, now time.Time) error {
	const chunk = 200
	for part := range slices.Chunk(rows, chunk) {
		var items []any
		for _, row := range part {
			items = append(items, row.certificate)
		}
		if err := writeCertificates(ctx, tx, items); err != nil {
			return err
		}
	}
	for _, row := range rows {
		if row.revocation == nil {
			continue
		}
		r := &record{Certificate: *row.certificate, issuer: row.certificate.Issuer.number}
		v := revocationRow{record: r, state: Revoked, reason: row.revocation.Reason, at: row.revocation.RevokedAt.Truncate(time.Second),
			invalidity: row.revocation.InvalidityDate}
		if v.reason == crl.CertificateHold {
			v.state = Held
		}
		if v.at.IsZero() {
			v.at = now.Truncate(time.Second)
		}
		if v.reason == crl.KeyCompromise && len(r.DER) > 0 {
			if err := blockKey(ctx, tx, &r.Certificate, now); err != nil {
				return err
			}
		}
		if err := c.writeRevocation(ctx, tx, v, row.certificate.Issuer); err != nil {
			return err
		}
	}
	return c.auditHistory(ctx, tx, by, rows, now)
}

// brought is how an event names a certificate that was not issued here: what came in with an imported issuer, or what a CRL
// knows and the store had forgotten.
type brought struct {
	Certificate int64     `json:"certificate"`
	Serial      string    `json:"serial"`
	SHA256      string    `json:"sha256"`
	NotAfter    time.Time `json:"notAfter"`
	Reason      string    `json:"reason,omitempty"` // of its revocation or hold
}

// broughtChunk is how many certificates one event names; with more, its detail could be too long for the audit.
const broughtChunk = 100

// auditHistory names every certificate that came in, so that none of them can be taken out again, or put among them, unseen.
func (c *CA) auditHistory(ctx context.Context, tx *db.Tx, by access.Principal, rows []imported, now time.Time) error {
	for part := range slices.Chunk(rows, broughtChunk) {
		named := make([]brought, len(part))
		for i, row := range part {
			r := row.certificate
			named[i] = brought{Certificate: r.ID, Serial: cert.FormatSerial(r.Serial), SHA256: r.digest(), NotAfter: r.NotAfter.UTC()}
			if row.revocation != nil {
				named[i].Reason = row.revocation.Reason.String()
			}
		}
		issuer := part[0].certificate.Issuer
		err := c.audit.Append(ctx, tx, audit.Event{
			Time: now, Actor: by.Actor(), Action: actionImport, Object: issuer.ID,
			Detail: map[string]any{"name": issuer.Name, "brought": named},
		})
		if err != nil {
			return err
		}
	}
	return nil
}
