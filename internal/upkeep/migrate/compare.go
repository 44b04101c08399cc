package migrate

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/verify"

	"golang.org/x/sync/errgroup"
)

// sameRows holds every row of both sides against each other.
func (m *mover) sameRows(ctx context.Context, tables []db.Table) error {
	m.Tell("comparing every row")
	m.done.Rows = 0
	digests := [2]map[string]digest{}
	g, inner := errgroup.WithContext(ctx)
	for i, d := range []*db.DB{m.source, m.target} {
		g.Go(func() (err error) {
			digests[i], err = digestsOf(inner, d, tables)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, t := range tables {
		ours, theirs := digests[0][t.Name], digests[1][t.Name]
		if ours != theirs {
			return fault.New(fault.Conflict, "table %s differs: %d rows with the digest %x here, %d with %x in %s", t.Name, ours.rows, ours.sum.octets(),
				theirs.rows, theirs.sum.octets(), m.done.Target).WithHint("somebody else writes to that database: give the move up, and move into a new one")
		}
		m.done.Rows += ours.rows
		if t.Name == "certificate" {
			m.done.Certificates = ours.rows
		}
	}
	return nil
}

// compare is sameRows, and has both sides verified.
func (m *mover) compare(ctx context.Context, tables []db.Table) error {
	if err := m.sameRows(ctx, tables); err != nil {
		return err
	}
	m.Tell("verifying both")
	var found [2]map[finding.Finding]bool
	g, inner := errgroup.WithContext(ctx)
	for i, s := range []*setup.Services{m.from, m.to} {
		g.Go(func() (err error) {
			found[i], err = errorsIn(inner, s)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	both := 0
	for f := range found[1] {
		if !found[0][f] {
			return fault.New(fault.Conflict, "chancery verify finds what it does not find in the source: %s %s: %s", f.Check, f.Object, f.Message)
		}
		if both++; both <= maxBoth {
			m.done.Warnings = append(m.done.Warnings, fmt.Sprintf("chancery verify finds on both sides: %s %s: %s", f.Check, f.Object, f.Message))
		}
	}
	if both > maxBoth {
		m.done.Warnings = append(m.done.Warnings, fmt.Sprintf("chancery verify finds %d more errors on both sides", both-maxBoth))
	}
	return nil
}

// counts are of the tables that are moved, in the source.
func (m *mover) counts(ctx context.Context) (map[string]int64, error) {
	tables, err := m.sourceTables(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string]int64{}
	err = m.source.ReadSnapshot(ctx, func(tx *db.Tx) error {
		for _, t := range tables {
			if all[t.Name], err = t.Count(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
	return all, err
}

// errLost is in the chain of an error that says that rows were there and are no longer.
var errLost = errors.New("another server took the place of the one that had them")

// stillThere counts the target's rows once more: all were there when they were compared, but a standby that was promoted since may not
// have had the last of them.
func (m *mover) stillThere(ctx context.Context, tx *db.Tx, want map[string]int64) error {
	tables, err := db.Tables(ctx, tx)
	if err != nil {
		return err
	}
	counted := 0
	for _, t := range tables {
		rows, moved := want[t.Name]
		if !moved {
			continue
		}
		n, err := t.Count(ctx, tx)
		if err != nil {
			return err
		}
		if n != rows {
			return fault.New(fault.Unavailable, "table %s had %d rows in %s when they were compared, and has %d: %w", t.Name, rows, m.done.Target, n, errLost)
		}
		counted++
	}
	if counted != len(want) {
		return fault.New(fault.Unavailable, "%d of %d tables are in %s: %w", counted, len(want), m.done.Target, errLost)
	}
	return nil
}

// maxBoth is how many errors are named that were there before the move.
const maxBoth = 10

// errorsIn are the errors that verify finds; that it found anything good shows that it ran on something.
func errorsIn(ctx context.Context, s *setup.Services) (map[finding.Finding]bool, error) {
	seq, err := verify.Store(ctx, s, verify.Shown{})
	if err != nil {
		return nil, err
	}
	wrong, good := map[finding.Finding]bool{}, 0
	for f, err := range seq {
		switch {
		case err != nil:
			return nil, err
		case f.Level == finding.Error:
			wrong[f] = true
		case f.Level == finding.OK:
			good++
		}
	}
	if good == 0 {
		return nil, fmt.Errorf("verify looked at nothing")
	}
	return wrong, nil
}

// digest is of a table's rows whatever their order, which is not the same on both engines: the sum, modulo 2^256, of the SHA-256 of
// each. It shows what a copy changed, lost or doubled; against who chooses rows so that they sum up it is not made.
type digest struct {
	rows int64
	sum  sum
}

// sum is a number of 256 bits, the least word first.
type sum [4]uint64

func (s *sum) add(h [sha256.Size]byte) {
	var carry uint64
	for i := range s {
		s[i], carry = bits.Add64(s[i], binary.LittleEndian.Uint64(h[8*i:]), carry)
	}
}

func (s sum) octets() []byte {
	var b []byte
	for _, word := range s {
		b = binary.LittleEndian.AppendUint64(b, word)
	}
	return b
}

func digestsOf(ctx context.Context, d *db.DB, tables []db.Table) (map[string]digest, error) {
	all := map[string]digest{}
	err := d.ReadSnapshot(ctx, func(tx *db.Tx) error {
		theirs, err := db.Tables(ctx, tx)
		if err != nil {
			return err
		}
		byName := map[string]db.Table{}
		for _, t := range theirs {
			byName[t.Name] = t
		}
		for _, t := range tables {
			names := make([]string, len(t.Columns))
			for i, c := range t.Columns {
				names[i] = c.Name
			}
			there, err := byName[t.Name].Only(names)
			if err != nil {
				return err
			}
			if all[t.Name], err = digestOf(ctx, tx, there); err != nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
			}
		}
		return nil
	})
	return all, err
}

func digestOf(ctx context.Context, tx *db.Tx, t db.Table) (g digest, err error) {
	var buf []byte
	for row, err := range t.Unordered(ctx, tx) {
		if err != nil {
			return g, err
		}
		buf = appendRow(buf[:0], row)
		g.sum.add(sha256.Sum256(buf))
		g.rows++
	}
	return g, nil
}

// appendRow writes values so that no two different rows look alike.
func appendRow(b []byte, row []any) []byte {
	for _, v := range row {
		switch v := v.(type) {
		case nil:
			b = append(b, 0)
		case int64:
			b = binary.BigEndian.AppendUint64(append(b, 1), uint64(v))
		case string:
			b = append(binary.AppendUvarint(append(b, 2), uint64(len(v))), v...)
		case []byte:
			b = append(binary.AppendUvarint(append(b, 3), uint64(len(v))), v...)
		default:
			panic(fmt.Sprintf("db gave a value of type %T", v))
		}
	}
	return b
}
