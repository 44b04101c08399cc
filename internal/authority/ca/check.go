package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// Finding is something in the records that is not as it should be.
type Finding struct {
	Object  string // the issuer's name, or the serial
	Message string
}

// Checked says how much was looked at, so that "no findings" can be told from "nothing there".
type Checked struct {
	Issuers      int64
	Certificates int64
	Revocations  int64
	Signatures   int64 // that were verified
}

// maxFindings bounds what Check returns; a store that is wrong throughout would have one for each row.
const maxFindings = 100

// checker is a run of Check.
type checker struct {
	c        *CA
	every    int64
	findings []Finding
	done     Checked
}

// Check reads the records as an outsider would, who trusts nothing but the certificates: issuers and their paths, that
// each row says what its certificate says, that states and revocations agree, and that each CRL entry is of its
// certificate. Of every so many certificates it verifies the signature too; 1 means all, 0 none. It reads page by page.
func (c *CA) Check(ctx context.Context, every int64) ([]Finding, Checked, error) {
	k := &checker{c: c, every: every}
	err := c.db.Read(ctx, func(tx *db.Tx) error {
		issuers, err := readIssuers(ctx, tx, "")
		if err != nil {
			return err
		}
		now := time.Now()
		k.twins(issuers)
		for _, i := range issuers {
			k.issuer(i)
			k.above(i, issuers)
			if err := k.recorded(ctx, tx, i, now); err != nil {
				return err
			}
		}
		return nil
	})
	for after := int64(0); err == nil && after >= 0 && len(k.findings) < maxFindings; {
		err = c.db.Read(ctx, func(tx *db.Tx) (err error) {
			after, err = k.page(ctx, tx, after)
			return err
		})
	}
	if err == nil {
		err = c.db.Read(ctx, func(tx *db.Tx) error { return k.orphans(ctx, tx) })
	}
	if err != nil {
		return nil, k.done, fmt.Errorf("check certificates: %w", err)
	}
	return k.findings, k.done, nil
}

func (k *checker) tell(object, format string, args ...any) {
	if len(k.findings) < maxFindings {
		k.findings = append(k.findings, Finding{object, fmt.Sprintf(format, args...)})
	}
}

func (k *checker) issuer(i *Issuer) {
	k.done.Issuers++
	if i.Certificate == nil {
		if i.State == IssuerActive { // one that was retired before its root answered never had any
			k.tell(i.Name, "issuer is %s and has no certificate", i.State)
		}
		return
	}
	if !bytes.Equal(i.Certificate.RawSubjectPublicKeyInfo, i.PublicKey) {
		k.tell(i.Name, "the issuer's certificate is for another key than its row says")
	}
	if !i.Certificate.IsCA {
		k.tell(i.Name, "the issuer's certificate is no CA's")
	}
	below := i.Certificate
	for _, above := range i.Chain {
		if err := below.CheckSignatureFrom(above); err != nil {
			k.tell(i.Name, "the certificate of %q is not signed by %q, which stands above it", below.Subject, above.Subject)
		}
		below = above
	}
	if i.Root() && i.Certificate.CheckSignatureFrom(i.Certificate) != nil {
		k.tell(i.Name, "the root's own signature does not verify")
	}
}

// above finds issuers with a certificate above them that the issuer above has no more, since it was renewed.
func (k *checker) above(i *Issuer, all []*Issuer) {
	for _, parent := range all {
		if parent.ID == i.Parent && parent.ID != i.ID && parent.Certificate != nil && len(i.Chain) > 0 && sameIssuer(i.Chain[0], parent.Certificate) &&
			i.Chain[0].NotAfter.Before(parent.Certificate.NotAfter) {
			k.tell(i.Name, "the certificate above the issuer ends on %s, and issuer %q has one that ends on %s; the next renewal of %q mends it", utc(i.Chain[0].NotAfter),
				parent.Name, utc(parent.Certificate.NotAfter), parent.Name)
		}
	}
}

// twins finds issuers of one subject and key that all sign here. None is made any more; they came in before that was refused.
func (k *checker) twins(issuers []*Issuer) {
	first := map[string]string{}
	for _, i := range issuers {
		if i.Certificate == nil || i.KeyID == "" {
			continue
		}
		of := string(i.Certificate.RawSubject) + string(i.PublicKey)
		if other := first[of]; other != "" {
			k.tell(i.Name, "the issuer has the subject and the key of issuer %q, so both sign CRLs of one name and key, which contradict each other; retire one", other)
			continue
		}
		first[of] = i.Name
	}
}

// recorded looks for an issuer's certificate in the inventory of the issuer above, which could not revoke it otherwise.
func (k *checker) recorded(ctx context.Context, tx *db.Tx, i *Issuer, now time.Time) error {
	if i.Certificate == nil || i.Parent == "" || i.Root() || now.After(i.Certificate.NotAfter) {
		return nil // a root is in its own inventory, whoever has its key and name beside it
	}
	var der []byte
	var state State
	err := tx.QueryRow(ctx, `SELECT der, state FROM certificate WHERE serial = $1 AND issuer = (SELECT number FROM issuer WHERE id = $2)`,
		serialKey(i.Certificate.SerialNumber), i.Parent).Scan(&der, &state)
	switch {
	case err == nil && i.State == IssuerActive && state == Revoked:
		k.tell(i.Name, "the issuer is %s, and its certificate %s is revoked in the inventory of the issuer above it", i.State, cert.FormatSerial(i.Certificate.SerialNumber))
	case errors.Is(err, sql.ErrNoRows):
		k.tell(i.Name, "the issuer's certificate %s is not in the inventory of the issuer above it", cert.FormatSerial(i.Certificate.SerialNumber))
		return nil
	case err == nil && len(der) > 0 && !bytes.Equal(der, i.Certificate.Raw):
		k.tell(i.Name, "the inventory of the issuer above has another certificate under the serial %s than the issuer", cert.FormatSerial(i.Certificate.SerialNumber))
	}
	return err
}

// row is a certificate with what is recorded of its revocation.
type row struct {
	*record
	state  sql.NullString
	entry  []byte
	issuer sql.NullInt64
}

// page checks the certificates after an ID, and returns the last it saw, -1 at the end.
func (k *checker) page(ctx context.Context, tx *db.Tx, after int64) (int64, error) {
	found, err := readPage(ctx, tx, after)
	if err != nil {
		return 0, err
	}
	for _, r := range found {
		after = r.ID
		if err := k.certificate(ctx, tx, r.record); err != nil {
			return 0, err
		}
		if r.state.Valid {
			k.revocation(r.record, State(r.state.String), r.entry, r.issuer.Int64)
		} else if r.State != Valid {
			k.tell(cert.FormatSerial(r.Serial), "the certificate is %s and has no revocation", r.State)
		}
	}
	if len(found) < maxPage {
		after = -1
	}
	return after, nil
}

// readPage reads a page whole: the check of a certificate may ask for its issuer, and PostgreSQL takes no second question on
// a connection while the rows of the first are read.
func readPage(ctx context.Context, tx *db.Tx, after int64) ([]row, error) {
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+`, r.state, r.entry, r.issuer
		FROM certificate c LEFT JOIN revocation r ON r.certificate = c.id WHERE c.id > $1 ORDER BY c.id LIMIT $2`, after, int64(maxPage))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []row
	for rows.Next() {
		var r row
		r.record, err = scanRecord(func(dest ...any) error { return rows.Scan(append(dest, &r.state, &r.entry, &r.issuer)...) })
		if err != nil {
			return nil, err
		}
		found = append(found, r)
	}
	return found, rows.Err()
}

func (k *checker) certificate(ctx context.Context, tx *db.Tx, r *record) error {
	k.done.Certificates++
	serial := cert.FormatSerial(r.Serial)
	issuer := k.c.known().byNumber(r.issuer)
	if issuer == nil {
		var err error
		if issuer, err = k.c.issuerByNumber(ctx, tx, r.issuer); err != nil {
			k.tell(serial, "the certificate is of an issuer that is not here: %v", err)
			return nil
		}
	}
	if len(r.DER) == 0 || issuer.Certificate == nil {
		return nil
	}
	f, err := readFacts(r.DER)
	if err != nil {
		k.tell(serial, "%v", err)
		return nil
	}
	var wrong []string
	for what, differs := range map[string]bool{
		"serial": f.serial.Cmp(r.Serial) != 0, "subject": f.subject.String() != r.Subject,
		"notBefore": !f.notBefore.Equal(r.NotBefore), "notAfter": !f.notAfter.Equal(r.NotAfter),
	} {
		if differs {
			wrong = append(wrong, what)
		}
	}
	if len(wrong) > 0 {
		k.tell(serial, "the row differs from its certificate in %s", strings.Join(wrong, ", "))
	}
	if k.every > 0 && k.done.Certificates%k.every == 0 {
		k.done.Signatures++
		parsed, err := x509.ParseCertificate(r.DER)
		if err == nil {
			err = parsed.CheckSignatureFrom(issuer.Certificate)
		}
		if err != nil {
			k.tell(serial, "the certificate is not signed by issuer %q: %v", issuer.Name, err)
		}
	}
	return nil
}

// revocation compares a revocation row, and the CRL entry in it, with its certificate.
func (k *checker) revocation(r *record, state State, der []byte, issuer int64) {
	k.done.Revocations++
	serial := cert.FormatSerial(r.Serial)
	if state != r.State || issuer != r.issuer {
		k.tell(serial, "the certificate is %s, and its revocation says %s", r.State, state)
	}
	entry, err := crl.ParseEntry(der)
	switch {
	case err != nil:
		k.tell(serial, "the CRL entry cannot be read: %v", err)
	case entry.Serial.Cmp(r.Serial) != 0:
		k.tell(serial, "the CRL entry is of serial %s", cert.FormatSerial(entry.Serial))
	case state == Valid && entry.Reason != crl.RemoveFromCRL:
		k.tell(serial, "the hold was released, and the CRL entry says %s", entry.Reason)
	case r.Revocation != nil && (entry.Reason != r.Revocation.Reason || !entry.RevokedAt.Equal(r.Revocation.RevokedAt)):
		k.tell(serial, "the CRL entry says %s at %s, the row %s at %s", entry.Reason, utc(entry.RevokedAt), r.Revocation.Reason,
			utc(r.Revocation.RevokedAt))
	}
}

// orphans finds revocations of certificates that are not there, and change numbers beyond the counter.
func (k *checker) orphans(ctx context.Context, tx *db.Tx) error {
	var lost, beyond int64
	err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM revocation r WHERE NOT EXISTS (SELECT 1 FROM certificate c WHERE c.id = r.certificate)`).Scan(&lost)
	if err != nil {
		return err
	}
	if lost > 0 {
		k.tell("revocation", "%d revocations are of certificates that are not there", lost)
	}
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM revocation r WHERE change > COALESCE((SELECT change FROM revocation_change n
		WHERE n.issuer = r.issuer), 0)`).Scan(&beyond)
	if err == nil && beyond > 0 {
		k.tell("revocation", "%d revocations have change numbers that were not given out", beyond)
	}
	return err
}
