package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// CheckGiven refuses a certificate that was not given to a principal here, or is no longer good: what others are to trust as
// it is must be what the record has, octet by octet.
func (c *CA) CheckGiven(ctx context.Context, tx *db.Tx, shown *x509.Certificate, requester string, now time.Time) error {
	serial := cert.FormatSerial(shown.SerialNumber)
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.serial = $1`, serialKey(shown.SerialNumber))
	if err != nil {
		return fmt.Errorf("find serial %s: %w", serial, err)
	}
	found, err := collect(rows)
	if err != nil {
		return fmt.Errorf("find serial %s: %w", serial, err)
	}
	for _, r := range found {
		if r.Requester != requester || !bytes.Equal(r.DER, shown.Raw) {
			continue
		}
		if r.at(now); r.State != Valid {
			return fault.New(fault.Conflict, "certificate %s is %s; a good one is wanted", serial, r.State)
		}
		return nil
	}
	return fault.New(fault.Denied, "certificate %s was not issued to the caller", serial)
}
