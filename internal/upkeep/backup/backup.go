// Package backup writes the whole authority into one encrypted file while it goes on issuing, and loads such a file into
// an empty database.
//
// A backup is an age file (age-encryption.org/v1) for the authority's recovery recipient, so only the offline recovery key
// opens it. It holds every table as it stood at one moment: issuers and their sealed keys, certificates, revocations,
// requests, settings, the audit. The keys in it are sealed once more, each wrapped to nodes and to the recovery recipient.
//
// It is signed with the key of the audit, whose public half is kept outside: anybody can encrypt to the recovery recipient.
//
// It copies tables through the database layer and does not know what they mean.
package backup

import (
	"bufio"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"filippo.io/age"

	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"
)

// notCopied are tables whose rows mean nothing in another life of the authority: leases and the clock belong to nodes that
// run, the migrations of the new database are its own, and it takes part in no move.
var notCopied = []string{"leases", "clock", "schema_version", "move_mark", "move_table"}

// Write streams a backup of d to w, signed with the audit's key. It reads one state of the database; writers go on meanwhile.
func Write(ctx context.Context, w io.Writer, d *db.DB, recipient string, header Header, key crypto.Signer) error {
	to, err := age.ParseX25519Recipient(recipient)
	if err != nil {
		return fmt.Errorf("parse recovery recipient: %w", err)
	}
	if header.Schema, err = schema.Version(ctx, d); err != nil {
		return err
	}
	header.Engine, header.At = string(d.Dialect()), time.Now().UTC()
	sealed, err := age.Encrypt(w, to)
	if err != nil {
		return fmt.Errorf("begin backup: %w", err)
	}
	e := &encoder{sum: sha256.New()}
	e.w = bufio.NewWriterSize(io.MultiWriter(sealed, e.sum), 1<<16)
	if err := d.ReadSnapshot(ctx, func(tx *db.Tx) error { return e.database(ctx, tx, header) }); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	if err := e.sign(key); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	if err := e.w.Flush(); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	if err := sealed.Close(); err != nil {
		return fmt.Errorf("finish backup: %w", err)
	}
	return nil
}

func (e *encoder) database(ctx context.Context, tx *db.Tx, header Header) error {
	if _, err := e.w.WriteString(magic); err != nil {
		return err
	}
	if err := e.frame(header); err != nil {
		return err
	}
	tables, err := db.Tables(ctx, tx)
	if err != nil {
		return err
	}
	end := trailer{Rows: map[string]int64{}}
	for _, table := range tables {
		if slices.Contains(notCopied, table.Name) {
			continue
		}
		if end.Rows[table.Name], err = e.table(ctx, tx, table); err != nil {
			return fmt.Errorf("table %s: %w", table.Name, err)
		}
		end.Tables++
	}
	// A frame without a name tells the trailer from a table.
	if err := e.frame(tableFrame{}); err != nil {
		return err
	}
	return e.frame(end)
}

func (e *encoder) table(ctx context.Context, tx *db.Tx, table db.Table) (rows int64, err error) {
	f := tableFrame{Name: table.Name}
	for _, c := range table.Columns {
		f.Columns = append(f.Columns, c.Name)
	}
	if err := e.frame(f); err != nil {
		return 0, err
	}
	for row, err := range table.Rows(ctx, tx) {
		if err != nil {
			return 0, err
		}
		if err := e.row(row); err != nil {
			return 0, err
		}
		rows++
	}
	return rows, e.endTable()
}

// Open decrypts a backup and reads its header; what follows is for Load. No error quotes what is not one: it may be a secret.
func Open(r io.Reader, identity age.Identity) (*Source, error) {
	plain, err := age.Decrypt(r, identity)
	if _, other := errors.AsType[*age.NoIdentityMatchError](err); other {
		return nil, fault.New(fault.Invalid, "the backup does not open with this recovery key: it was made for another")
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "the backup does not open with this recovery key: it is no file of age, or is damaged")
	}
	d := &decoder{r: &summed{r: bufio.NewReaderSize(plain, 1<<16), sum: sha256.New()}}
	line, err := d.bytes(len(magic))
	if err != nil {
		return nil, broken("first line", err)
	}
	if string(line) != magic {
		return nil, fault.New(fault.Invalid, "the file is no backup of this format: it does not begin with %q", magic)
	}
	s := &Source{decoder: d}
	if err := d.frame("header", &s.Header); err != nil {
		return nil, err
	}
	if newest := schema.Newest(); s.Header.Schema > newest {
		return nil, fault.New(fault.Invalid, "the backup is of a later release: its schema is %d, this program knows %d", s.Header.Schema, newest).
			WithHint("restore with release %s or later", s.Header.Version)
	}
	return s, nil
}

// Source is an opened backup.
type Source struct {
	Header Header
	*decoder
}

// Check reads a whole backup and holds it against the audit keys, one of which must have signed it. It touches nothing, so
// that what a stranger wrote comes nowhere near a database.
func Check(r io.Reader, identity age.Identity, known []crypto.PublicKey) (Header, error) {
	s, err := Open(r, identity)
	if err != nil {
		return Header{}, err
	}
	_, err = s.walk(known, func(f tableFrame) (rows int64, err error) {
		for {
			row, err := s.row(len(f.Columns))
			if row == nil || err != nil {
				return rows, err
			}
			rows++
		}
	})
	return s.Header, err
}

// Load fills an empty, migrated database in the caller's transaction and returns how many rows it wrote. An error, also that
// the backup is signed by none of the known keys, is to end the transaction.
func (s *Source) Load(ctx context.Context, tx *db.Tx, known []crypto.PublicKey) (rows int64, err error) {
	tables, err := db.Tables(ctx, tx)
	if err != nil {
		return 0, err
	}
	for _, t := range tables {
		if slices.Contains(notCopied, t.Name) {
			continue
		}
		n, err := t.Count(ctx, tx)
		if err != nil {
			return 0, err
		}
		if n > 0 {
			return 0, fault.New(fault.Conflict, "the database is not empty: table %s has %d rows; restore into a new one", t.Name, n)
		}
	}
	return s.walk(known, func(f tableFrame) (int64, error) { return s.table(ctx, tx, f, tables) })
}

// walk reads all of a backup, with take for the rows of each table.
func (s *Source) walk(known []crypto.PublicKey, take func(tableFrame) (int64, error)) (rows int64, err error) {
	loaded := trailer{Rows: map[string]int64{}}
	for {
		var f tableFrame
		if err := s.frame("table", &f); err != nil {
			return 0, err
		}
		if f.Name == "" {
			break
		}
		n, err := take(f)
		if err != nil {
			return 0, err
		}
		if _, twice := loaded.Rows[f.Name]; twice {
			return 0, broken("table "+f.Name, fmt.Errorf("it comes twice"))
		}
		loaded.Rows[f.Name] = n
		loaded.Tables++
		rows += n
	}
	return rows, s.end(loaded, known)
}

// end compares what was read with what the writer counted, wants the signature of one of the keys, and nothing behind it.
func (s *Source) end(loaded trailer, known []crypto.PublicKey) error {
	var want trailer
	if err := s.frame("trailer", &want); err != nil {
		return err
	}
	if want.Tables != loaded.Tables {
		return broken("trailer", fmt.Errorf("%d tables were written, %d read", want.Tables, loaded.Tables))
	}
	for name, n := range want.Rows {
		if loaded.Rows[name] != n {
			return broken("trailer", fmt.Errorf("table %s was written with %d rows, %d were read", name, n, loaded.Rows[name]))
		}
	}
	if err := s.signature(known); err != nil {
		return err
	}
	if _, err := s.r.ReadByte(); err != io.EOF {
		return broken("end", fmt.Errorf("something follows the signature"))
	}
	return nil
}

func (s *Source) table(ctx context.Context, tx *db.Tx, f tableFrame, tables []db.Table) (rows int64, err error) {
	i := slices.IndexFunc(tables, func(t db.Table) bool { return t.Name == f.Name })
	if i < 0 || slices.Contains(notCopied, f.Name) {
		return 0, fault.New(fault.Invalid, "the backup has a table %s, which this release does not know", f.Name)
	}
	table, err := tables[i].Only(f.Columns)
	if err != nil {
		return 0, err
	}
	const step = 200
	var batch [][]any
	for {
		row, err := s.row(len(f.Columns))
		if err != nil {
			return 0, err
		}
		if row != nil {
			batch = append(batch, row)
		}
		if len(batch) == step || (row == nil && len(batch) > 0) {
			if err := table.Insert(ctx, tx, batch); err != nil {
				return 0, err
			}
			rows += int64(len(batch))
			batch = batch[:0]
		}
		if row == nil {
			return rows, nil
		}
	}
}
