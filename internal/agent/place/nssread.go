package place

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"time"

	"modernc.org/sqlite" // NSS keeps its certificates in SQLite
	sqlite3 "modernc.org/sqlite/lib"

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
const (
	nssCertificates = `SELECT a3, a11 FROM nssPublic WHERE a0 = x'00000001' AND coalesce(length(a3), 0) <= 4096 AND coalesce(length(a11), 0) <= 65536 LIMIT 10001` // CKO_CERTIFICATE
	nssTooLong      = `SELECT count(*) FROM nssPublic WHERE a0 = x'00000001' AND (length(a3) > 4096 OR length(a11) > 65536)`
)

// mostNSS bounds the certificates of a database, and mostNSSSchema the tables and indexes.
const (
	mostNSS       = 10_000
	mostNSSSchema = 100
)

// nssSchema is what NSS makes: tables of named columns and indexes upon them, and nothing that is computed. Whoever may write
// the file may else have it say that one row is all the memory there is: by a view, a generated column, an index of an
// expression, a trigger or a virtual table.
var nssSchema = regexp.MustCompile(`^CREATE (TABLE|INDEX) \w+ ?(ON \w+ ?)?\([\w, ]*\)$`)

// isWAL reports whether a database says of itself that its newest pages are in a file beside it.
func isWAL(data []byte) bool { return len(data) > 19 && (data[18] == 2 || data[19] == 2) }

// checkNSS refuses a database that NSS did not make, before its tools or we read any row of it: its file belongs to the
// consumer, and the agent is root.
func checkNSS(file string) error {
	return withNSS(file, func(ctx context.Context, db *sql.DB) error {
		odd := fault.New(fault.Invalid, "%s is not as NSS makes it: it has more than plain tables and indexes", filepath.Base(file)).
			WithHint("move the database away, and have a new one made")
		rows, err := db.QueryContext(ctx, `SELECT type, rootpage, coalesce(sql, '') FROM sqlite_master LIMIT 101`)
		if err != nil {
			return err
		}
		defer rows.Close()
		n := 0
		for ; rows.Next(); n++ {
			var kind, text string
			var page int64
			if err := rows.Scan(&kind, &page, &text); err != nil {
				return err
			}
			automatic := kind == "index" && text == ""
			if n >= mostNSSSchema || page < 1 || kind != "table" && kind != "index" || !automatic && !nssSchema.MatchString(text) {
				return odd
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		// Pages that are used twice make of a small file a long answer.
		var verdict string
		if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
			return err
		}
		if verdict != "ok" {
			return fault.New(fault.Invalid, "%s is damaged: %.200s", filepath.Base(file), verdict)
		}
		return nil
	})
}

// withNSS opens a database that nobody else has open, with bounds to time and to what one value may be.
func withNSS(file string, ask func(context.Context, *sql.DB) error) (err error) {
	db, err := sql.Open("sqlite", "file:"+url.PathEscape(file)+"?mode=ro&immutable=1")
	if err != nil {
		return fmt.Errorf("read the NSS database: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1) // to which the limit is
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := db.Conn(ctx)
	if err == nil {
		_, err = sqlite.Limit(conn, sqlite3.SQLITE_LIMIT_LENGTH, maxFile)
		err = errors.Join(err, conn.Close())
	}
	if err == nil {
		err = ask(ctx, db)
	}
	if _, said := errors.AsType[*fault.Error](err); err == nil || said {
		return err
	}
	return fault.New(fault.Invalid, "%s is no database of NSS: %w", filepath.Base(file), err)
}

// readNSS lists the certificates in a database that nobody else has open. Certutil prints all certificates of a subject for
// each of their nicknames, and cannot say which is whose.
func readNSS(dir string) (entries []nssEntry, err error) {
	file := filepath.Join(dir, "cert9.db")
	if err := checkNSS(file); err != nil {
		return nil, err
	}
	err = withNSS(file, func(ctx context.Context, db *sql.DB) error {
		var long int
		if err := db.QueryRowContext(ctx, nssTooLong).Scan(&long); err != nil {
			return err
		}
		rows, err := db.QueryContext(ctx, nssCertificates)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var e nssEntry
			var label []byte
			if err := rows.Scan(&label, &e.der); err != nil {
				return err
			}
			e.nickname = string(label)
			entries = append(entries, e)
		}
		if long > 0 || len(entries) > mostNSS {
			return fault.New(fault.TooLarge, "cert9.db holds a certificate of more than 64 KiB or %d of them and more; fewer and shorter ones pass", mostNSS)
		}
		return rows.Err()
	})
	return entries, err
}
