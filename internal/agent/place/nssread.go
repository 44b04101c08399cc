package place

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // NSS keeps its certificates in SQLite

	"chancery/internal/fault"
)

// nssEntry is a certificate of an NSS database.
type nssEntry struct {
	nickname string
	der      []byte
}

// subject is the encoded name; nil of a certificate that Go does not read, which then is nobody's namesake.
func (e nssEntry) subject() []byte {
	c, err := x509.ParseCertificate(e.der)
	if err != nil {
		return nil
	}
	return c.RawSubject
}

// The columns of NSS's table are attributes of PKCS #11 objects, named by their numbers in hexadecimal: a0 is CKA_CLASS, a3
// CKA_LABEL, a11 CKA_VALUE.
const nssCertificates = `SELECT a3, a11 FROM nssPublic WHERE a0 = x'00000001'` // CKO_CERTIFICATE

// readNSS lists the certificates in a database that nobody else has open. Certutil prints all certificates of a subject for
// each of their nicknames, and cannot say which is whose.
func readNSS(dir string) (entries []nssEntry, err error) {
	file := filepath.Join(dir, "cert9.db")
	db, err := sql.Open("sqlite", "file:"+url.PathEscape(file)+"?mode=ro&immutable=1")
	if err != nil {
		return nil, fmt.Errorf("read the NSS database: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	rows, err := db.QueryContext(ctx, nssCertificates)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cert9.db is no certificate database of NSS: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e nssEntry
		var label []byte
		if err := rows.Scan(&label, &e.der); err != nil {
			return nil, fmt.Errorf("read the NSS database: %w", err)
		}
		e.nickname = string(label)
		entries = append(entries, e)
	}
	return entries, rows.Err()
}
