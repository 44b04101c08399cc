package ca

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// nextID returns an ID greater than all that this node made before. Two nodes can meet in one microsecond; the primary
// key then refuses one of them, and the transaction runs again with another ID. Who is ahead of the clock, as in an
// import or on a clock that stands still, goes on by steps of chance: two that went one by one would meet at each.
func (c *CA) nextID(now time.Time) int64 {
	for {
		last := c.lastID.Load()
		id := max(last+1+c.chance(1<<idBits), now.UnixMicro()<<idBits|c.chance(1<<idBits))
		if c.lastID.CompareAndSwap(last, id) {
			return id
		}
	}
}

// serialKey is a serial as the tables hold it: its magnitude, big-endian, and one zero octet for zero.
func serialKey(serial *big.Int) []byte {
	if serial.Sign() == 0 {
		return []byte{0}
	}
	return serial.Bytes()
}

const certificateColumns = `c.id, c.issuer, c.serial, c.state, c.not_before, c.not_after, c.replaces, c.replaced_by,
	c.profile, c.profile_version, c.requester, c.subject, c.der,
	COALESCE(r.reason, 0), COALESCE(r.revoked_at, 0), COALESCE(r.invalidity_date, 0)`

const certificateFrom = ` FROM certificate c LEFT JOIN revocation r ON r.certificate = c.id AND c.state <> 'valid'`

// record is a row of certificate, before its issuer is looked up.
type record struct {
	Certificate
	issuer int64
}

func scanRecord(scan func(...any) error) (*record, error) {
	var (
		r                             record
		serial                        []byte
		notBefore, notAfter           int64
		reason, revokedAt, invalidity int64
	)
	err := scan(&r.ID, &r.issuer, &serial, &r.State, &notBefore, &notAfter, &r.Replaces, &r.ReplacedBy,
		&r.Profile, &r.ProfileVersion, &r.Requester, &r.Subject, &r.DER, &reason, &revokedAt, &invalidity)
	if err != nil {
		return nil, err
	}
	r.Serial = new(big.Int).SetBytes(serial)
	r.NotBefore, r.NotAfter = db.FromMicros(notBefore), db.FromMicros(notAfter)
	if r.State != Valid {
		r.Revocation = &Revocation{Reason: crl.Reason(reason), RevokedAt: db.FromMicros(revokedAt)}
		if invalidity != 0 {
			r.Revocation.InvalidityDate = db.FromMicros(invalidity)
		}
	}
	return &r, nil
}

// at sets the state that depends on the clock.
func (r *record) at(now time.Time) {
	if r.State == Valid && now.After(r.NotAfter) {
		r.State = Expired
	}
}

// complete gives a record its issuer and its state of now.
func (c *CA) complete(ctx context.Context, tx *db.Tx, r *record, now time.Time) (*Certificate, error) {
	issuer, err := c.issuerByNumber(ctx, tx, r.issuer)
	if err != nil {
		return nil, err
	}
	r.Issuer = issuer
	r.at(now)
	return &r.Certificate, nil
}

// recordByID reads one certificate.
func recordByID(ctx context.Context, tx *db.Tx, id int64) (*record, error) {
	r, err := scanRecord(tx.QueryRow(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.id = $1`, id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "there is no certificate %d", id)
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate %d: %w", id, err)
	}
	return r, nil
}

// Ref names a certificate by its serial, and by its issuer where two issuers may have used the serial.
type Ref struct {
	Issuer string // name or ID; may be empty
	Serial *big.Int
}

func (c *CA) recordByRef(ctx context.Context, tx *db.Tx, ref Ref) (*record, error) {
	if ref.Serial == nil || ref.Serial.Sign() < 0 {
		return nil, noSerialGiven()
	}
	query, args := ` WHERE c.serial = $1`, []any{serialKey(ref.Serial)}
	if ref.Issuer != "" {
		issuer, err := c.issuer(ctx, tx, ref.Issuer)
		if err != nil {
			return nil, err
		}
		query, args = query+` AND c.issuer = $2`, append(args, issuer.number)
	}
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+query+` LIMIT 2`, args...)
	if err != nil {
		return nil, fmt.Errorf("find serial %s: %w", cert.FormatSerial(ref.Serial), err)
	}
	found, err := collect(rows)
	switch {
	case err != nil:
		return nil, fmt.Errorf("find serial %s: %w", cert.FormatSerial(ref.Serial), err)
	case len(found) == 0:
		return nil, noSerial(ref.Serial)
	case len(found) > 1:
		return nil, fault.New(fault.Conflict, "several issuers used serial %s; name the issuer", cert.FormatSerial(ref.Serial))
	}
	return found[0], nil
}

func noSerialGiven() error { return fault.New(fault.Invalid, "a serial number is required") }

func noSerial(serial *big.Int) error {
	return fault.New(fault.NotFound, "no certificate here has serial %s", cert.FormatSerial(serial))
}

// collect reads all rows, and closes them.
func collect(rows *sql.Rows) ([]*record, error) {
	defer rows.Close()
	var records []*record
	for rows.Next() {
		r, err := scanRecord(rows.Scan)
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, rows.Err()
}

// Parsed returns the certificate in the standard library's form, or an error where only its record was imported.
func (c *Certificate) Parsed() (*x509.Certificate, error) {
	if len(c.DER) == 0 {
		return nil, fault.New(fault.Conflict, "certificate %s was imported as a record, without the certificate itself", cert.FormatSerial(c.Serial))
	}
	return x509.ParseCertificate(c.DER)
}
