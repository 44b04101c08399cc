package ca

import (
	"bytes"
	"context"
	"fmt"
	"math/big"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// CheckRule names what a CheckFinding is about.
type CheckRule string

// The rules that Check holds the inventory against.
const (
	WrongRecord     CheckRule = "wrong-record"     // a row does not say what its certificate says
	WrongSignature  CheckRule = "wrong-signature"  // a certificate is not signed by its issuer
	UnknownIssuer   CheckRule = "unknown-issuer"   // a row names no issuer here
	SerialTwice     CheckRule = "serial-twice"     // an issuer used a serial for two certificates (RFC 5280 4.1.2.2)
	WrongRevocation CheckRule = "wrong-revocation" // a certificate's state and its revocation do not fit together
)

// CheckFinding is one rule that a row breaks.
type CheckFinding struct {
	Serial  string
	Rule    CheckRule
	Message string
}

// Checked says how much Check looked at.
type Checked struct {
	Certificates int64 // rows
	Signatures   int64 // verified; rows that were imported without their certificate have none
	Revocations  int64
}

// checkPage is how many rows are read at once.
const checkPage = 500

// Check reads the whole inventory as somebody would who trusts no row of it: each certificate is read, its signature is
// verified, and its row and its revocation are held against it. It tells what it finds, and stops when tell returns false.
func (c *CA) Check(ctx context.Context, tell func(CheckFinding) bool) (Checked, error) {
	var done Checked
	issuers, err := c.Issuers(ctx)
	if err != nil {
		return done, err
	}
	byNumber := map[int64]*Issuer{}
	for _, i := range issuers {
		byNumber[i.number] = i
	}
	if goOn, err := c.checkSerials(ctx, tell); err != nil || !goOn {
		return done, err
	}
	for after := int64(-1); ; {
		var page []checkedRow
		err := c.db.Read(ctx, func(tx *db.Tx) (err error) {
			page, err = readChecked(ctx, tx, after)
			return err
		})
		if err != nil {
			return done, fmt.Errorf("check the inventory: %w", err)
		}
		for _, row := range page {
			if !row.check(byNumber[row.issuer], tell, &done) {
				return done, nil
			}
		}
		if len(page) < checkPage {
			return done, nil
		}
		after = page[len(page)-1].ID
	}
}

// checkSerials does not rely on the unique index, which an outsider may have dropped.
func (c *CA) checkSerials(ctx context.Context, tell func(CheckFinding) bool) (goOn bool, err error) {
	var twice []CheckFinding
	err = c.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT serial, COUNT(*) FROM certificate GROUP BY issuer, serial HAVING COUNT(*) > 1 LIMIT 100`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var serial []byte
			var n int64
			if err := rows.Scan(&serial, &n); err != nil {
				return err
			}
			twice = append(twice, CheckFinding{
				cert.FormatSerial(new(big.Int).SetBytes(serial)), SerialTwice, fmt.Sprintf("one issuer has %d certificates of this serial", n),
			})
		}
		return rows.Err()
	})
	if err != nil {
		return false, fmt.Errorf("check serials: %w", err)
	}
	for _, f := range twice {
		if !tell(f) {
			return false, nil
		}
	}
	return true, nil
}

// checkedRow is a certificate with its revocation row, whatever its state says.
type checkedRow struct {
	record
	entry []byte // as CRLs have it; empty where there is no revocation row
	state State  // of the revocation row
}

func readChecked(ctx context.Context, tx *db.Tx, after int64) ([]checkedRow, error) {
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+`, COALESCE(v.entry, $1), COALESCE(v.state, '')`+certificateFrom+
		` LEFT JOIN revocation v ON v.certificate = c.id WHERE c.id > $2 ORDER BY c.id LIMIT $3`, []byte{}, after, int64(checkPage))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var page []checkedRow
	for rows.Next() {
		var row checkedRow
		r, err := scanRecord(func(dest ...any) error { return rows.Scan(append(dest, &row.entry, &row.state)...) })
		if err != nil {
			return nil, err
		}
		row.record = *r
		page = append(page, row)
	}
	return page, rows.Err()
}

// check judges one row.
func (row *checkedRow) check(issuer *Issuer, tell func(CheckFinding) bool, done *Checked) bool {
	done.Certificates++
	goOn := true
	wrong := func(rule CheckRule, format string, args ...any) {
		goOn = goOn && tell(CheckFinding{cert.FormatSerial(row.Serial), rule, fmt.Sprintf(format, args...)})
	}
	if issuer == nil {
		wrong(UnknownIssuer, "its row names issuer number %d", row.issuer)
		return goOn
	}
	if len(row.DER) > 0 {
		row.checkCertificate(issuer, wrong, done)
	}
	row.checkRevocation(wrong, done)
	return goOn
}

func (row *checkedRow) checkCertificate(issuer *Issuer, wrong func(CheckRule, string, ...any), done *Checked) {
	parsed, err := row.Parsed()
	if err != nil {
		wrong(WrongRecord, "its certificate cannot be read: %v", err)
		return
	}
	switch {
	case parsed.SerialNumber.Cmp(row.Serial) != 0:
		wrong(WrongRecord, "its certificate has serial %s", cert.FormatSerial(parsed.SerialNumber))
	case !parsed.NotBefore.Equal(row.NotBefore) || !parsed.NotAfter.Equal(row.NotAfter):
		wrong(WrongRecord, "its certificate is valid from %v to %v, its row says %v to %v", parsed.NotBefore, parsed.NotAfter, row.NotBefore, row.NotAfter)
	case !bytes.Equal(parsed.RawIssuer, issuer.Certificate.RawSubject):
		wrong(WrongRecord, "its certificate names another issuer, %q", parsed.Issuer)
	}
	if err := parsed.CheckSignatureFrom(issuer.Certificate); err != nil {
		wrong(WrongSignature, "it is not signed by issuer %s: %v", issuer.Name, err)
	}
	done.Signatures++
}

func (row *checkedRow) checkRevocation(wrong func(CheckRule, string, ...any), done *Checked) {
	if len(row.entry) == 0 {
		if row.State != Valid {
			wrong(WrongRevocation, "it is %s, and there is no record of its revocation", row.State)
		}
		return
	}
	done.Revocations++
	entry, err := crl.ParseEntry(row.entry)
	switch {
	case err != nil:
		wrong(WrongRevocation, "its CRL entry cannot be read: %v", err)
	case entry.Serial.Cmp(row.Serial) != 0:
		wrong(WrongRevocation, "its CRL entry is for serial %s", cert.FormatSerial(entry.Serial))
	case row.state != row.State:
		wrong(WrongRevocation, "its row says %s, its revocation %s", row.State, row.state)
	case row.Revocation != nil && (entry.Reason != row.Revocation.Reason || !entry.RevokedAt.Equal(row.Revocation.RevokedAt)):
		wrong(WrongRevocation, "its CRL entry says %s since %v, its revocation %s since %v", entry.Reason, entry.RevokedAt, row.Revocation.Reason,
			row.Revocation.RevokedAt)
	}
}
