package ca

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// insertCertificate puts a certificate into the shared transaction: all that its functions add are written by one
// statement for each table, right before COMMIT.
func (c *CA) insertCertificate(ctx context.Context, tx *db.Tx, crt *Certificate) error {
	if crt.Replaces != 0 {
		// What was replaced once already keeps its first successor's mark: it is not missed either way.
		_, err := tx.Exec(ctx, `UPDATE certificate SET replaced_by = $1 WHERE id = $2 AND replaced_by = 0`, crt.ID, crt.Replaces)
		if err != nil {
			return fmt.Errorf("mark certificate %d replaced: %w", crt.Replaces, err)
		}
	}
	tx.BeforeCommit(&c.inserts, crt, writeCertificates)
	return nil
}

const certificateInsert = `INSERT INTO certificate (id, issuer, serial, state, name, not_before, not_after, replaces, replaced_by,
	profile, profile_version, requester, subject, der) VALUES `

const certificateRow = `(?, ?, ?, 'valid', ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)`

func writeCertificates(ctx context.Context, tx *db.Tx, items []any) error {
	var names []any
	args := make([]any, 0, 12*len(items))
	for _, item := range items {
		crt := item.(*Certificate)
		searched := crt.searchNames()
		args = append(args, crt.ID, crt.Issuer.number, serialKey(crt.Serial), []byte(searched[0]),
			db.Micros(crt.NotBefore), db.Micros(crt.NotAfter), crt.Replaces, crt.Profile, int64(crt.ProfileVersion),
			crt.Requester, crt.Subject, crt.DER)
		for _, name := range searched[1:] {
			names = append(names, []byte(name), crt.ID)
		}
	}
	if _, err := tx.Exec(ctx, certificateInsert+values(len(items), certificateRow), args...); err != nil {
		if db.IsUnique(err) {
			return taken(err)
		}
		return fmt.Errorf("insert certificates: %w", err)
	}
	const chunk = 500 // far below the number of arguments that either engine takes
	for len(names) > 0 {
		n := min(len(names), 2*chunk)
		if _, err := tx.Exec(ctx, `INSERT INTO certificate_name (name, certificate) VALUES `+values(n/2, "(?, ?)"), names[:n]...); err != nil {
			return fmt.Errorf("insert names: %w", err)
		}
		names = names[n:]
	}
	return nil
}

// taken says that a serial is in use. An ID that is in use passes as it is, so that the function runs again, with another ID.
func taken(err error) error {
	if db.IsPrimaryKey(err, "certificate") {
		return fmt.Errorf("insert certificates: %w", err)
	}
	return &fault.Error{Kind: fault.Conflict, Message: "the issuer has used this serial before", Err: err}
}

// values writes n rows, numbering their placeholders on.
func values(n int, row string) string {
	var b strings.Builder
	b.Grow(n * len(row) * 2)
	for i, place := 0, 0; i < n; i++ {
		if i > 0 {
			b.WriteString(", ")
		}
		for _, c := range row {
			if c != '?' {
				b.WriteRune(c)
				continue
			}
			place++
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(place))
		}
	}
	return b.String()
}

// searchNames are the names by which Search finds the certificate, in lower case, each once: the alternative names, and
// the common name. There is always one, so that the column is never empty: the whole subject where there is no other.
func (c *Certificate) searchNames() []string {
	var names []string
	add := func(name string) {
		if name = searchName(name); name != "" {
			for _, have := range names {
				if have == name {
					return
				}
			}
			names = append(names, name)
		}
	}
	for _, n := range c.Names() {
		if n.Value != "" {
			add(n.Value)
		} else {
			add(n.String())
		}
	}
	add(c.commonName())
	if len(names) == 0 {
		add(c.Subject)
	}
	if len(names) == 0 {
		add("serial:" + cert.FormatSerial(c.Serial))
	}
	return names
}

// searchName is the form in which names are compared: lower case, without the dot that ends an absolute DNS name.
func searchName(name string) string {
	name = strings.ToLower(strings.TrimSpace(name))
	if len(name) > 1 {
		name = strings.TrimSuffix(name, ".")
	}
	if len(name) > maxSearchName {
		name = name[:maxSearchName]
	}
	return name
}

// maxSearchName keeps an index entry within what a page of either engine takes.
const maxSearchName = 512
