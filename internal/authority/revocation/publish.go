package revocation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// chunkSize is how many octets of a list are one row: few enough to be held in memory, and written without holding up the
// issuance that waits for the same lane.
const chunkSize = 1 << 20

// chunkWriter stores a list's octets while they are made. A list of one chunk is not stored before it is published.
type chunkWriter struct {
	ctx    context.Context
	s      *Service
	list   *List
	fence  func(context.Context, *db.Tx) error // checked wherever something is stored
	buffer []byte
	stored int64 // chunks
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		if len(w.buffer) == chunkSize {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
		if w.buffer == nil {
			w.buffer = make([]byte, 0, min(chunkSize, max(len(p), 4096)))
		}
		n := min(chunkSize-len(w.buffer), len(p))
		w.buffer = append(w.buffer, p[:n]...)
		p = p[n:]
	}
	return written, nil
}

// flush stores a chunk. The list's row is there first, so that whoever sweeps finds the chunks of a list that came to
// nothing.
func (w *chunkWriter) flush() error {
	err := w.s.db.TxAlone(w.ctx, func(tx *db.Tx) error {
		if err := w.fence(w.ctx, tx); err != nil {
			return err
		}
		if w.stored == 0 {
			if err := w.list.insert(w.ctx, tx, building); err != nil {
				return err
			}
		}
		return w.insertChunk(w.ctx, tx)
	})
	if err != nil {
		return err
	}
	w.stored++
	w.buffer = w.buffer[:0]
	return nil
}

func (w *chunkWriter) insertChunk(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, `INSERT INTO crl_chunk (crl, seq, octets) VALUES ($1, $2, $3)`, w.list.ID, w.stored, w.buffer)
	if err != nil {
		return fmt.Errorf("store chunk %d of CRL %s: %w", w.stored, w.list.ID, err)
	}
	return nil
}

// whole refuses to publish a list whose octets are not all there: every node would serve it as far as it goes.
func (w *chunkWriter) whole(ctx context.Context, tx *db.Tx) error {
	want := w.stored
	if len(w.buffer) > 0 {
		want++
	}
	var chunks int64
	if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM crl_chunk WHERE crl = $1`, w.list.ID).Scan(&chunks); err != nil {
		return fmt.Errorf("count the chunks of CRL %s: %w", w.list.ID, err)
	}
	if chunks != want {
		return fmt.Errorf("of CRL %s, %d chunks are stored, and %d were written: it is made anew", w.list.ID, chunks, want)
	}
	return nil
}

func (l *List) insert(ctx context.Context, tx *db.Tx, state string) error {
	base := ""
	if l.Base != nil {
		base = l.Base.String()
	}
	_, err := tx.Exec(ctx, `INSERT INTO crl (`+listColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		l.ID, l.Issuer, string(l.Scope), state, l.Number.String(), base, db.Micros(l.ThisUpdate), db.Micros(l.NextUpdate),
		l.Entries, l.Size, l.change, l.scheduled, orEmpty(l.head), orEmpty(l.tail))
	if err != nil {
		return fmt.Errorf("store CRL %s: %w", l.ID, err)
	}
	return nil
}

func orEmpty(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// publish makes the lists that writers stored current. It is the one step that is seen, and all of it is in one transaction
// with the fence: the lease's epoch or, for an uploaded list, what it must hold against the records.
func (s *Service) publish(ctx context.Context, actor string, now time.Time, writers ...*chunkWriter) error {
	return s.db.Tx(ctx, func(tx *db.Tx) error {
		for _, w := range writers {
			if err := s.publishOne(ctx, tx, actor, now, w); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Service) publishOne(ctx context.Context, tx *db.Tx, actor string, now time.Time, w *chunkWriter) error {
	l := w.list
	if err := w.fence(ctx, tx); err != nil {
		return err
	}
	before, err := currentList(ctx, tx, l.Issuer, l.Scope)
	if err != nil {
		return err
	}
	if before != nil && l.Number.Cmp(before.Number) <= 0 {
		return fault.New(fault.Conflict, "CRLNumber %v is not greater than %v, the current one of issuer %s "+
			"(RFC 5280 §5.2.3)", l.Number, before.Number, l.Issuer)
	}
	if len(w.buffer) > 0 {
		if err := w.insertChunk(ctx, tx); err != nil {
			return err
		}
	}
	if err := w.whole(ctx, tx); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE crl SET state = 'past' WHERE issuer = $1 AND scope = $2 AND state = 'current'`,
		l.Issuer, string(l.Scope))
	if err != nil {
		return fmt.Errorf("retire the CRL before %v: %w", l.Number, err)
	}
	// The row that the first chunk needed (flush) says nothing yet of length and signature.
	if _, err := tx.Exec(ctx, `DELETE FROM crl WHERE id = $1 AND state = 'building'`, l.ID); err != nil {
		return fmt.Errorf("store CRL %s: %w", l.ID, err)
	}
	if err := l.insert(ctx, tx, current); err != nil {
		return err
	}
	return s.audit.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "crl.issue", Object: l.Issuer,
		Detail: map[string]any{
			"crl": l.ID, "scope": l.Scope, "number": l.Number.String(), "entries": l.Entries, "size": l.Size,
			"thisUpdate": l.ThisUpdate, "nextUpdate": l.NextUpdate, "change": l.change,
		},
	})
}

// reserveNumber takes the next CRLNumber of an issuer, before the statuses are read: so a list with a greater number knows
// of more, even where a long list is still being made when a short one is published. An operator's wish is used where it is
// still greater.
func (s *Service) reserveNumber(ctx context.Context, lease db.Lease, issuer string, wish *big.Int) (number *big.Int,
	err error) {
	now := time.Now()
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		last, err := lastNumber(ctx, tx, issuer)
		if err != nil {
			return err
		}
		number = nextNumber(last, now)
		if wish != nil && wish.Cmp(last) > 0 { // otherwise it was taken since, by a list that did not come to be
			number = wish
		}
		return raiseNumber(ctx, tx, issuer, number)
	})
	return number, err
}

// nextNumber is greater than every number before, and, since it follows the clock, than any that a backup forgot.
func nextNumber(last *big.Int, now time.Time) *big.Int {
	next := new(big.Int).Add(last, big.NewInt(1))
	if clock := big.NewInt(now.UnixMilli()); clock.Cmp(next) > 0 {
		return clock
	}
	return next
}

// lastNumber is the greatest CRLNumber that an issuer used; 0 where it used none.
func lastNumber(ctx context.Context, tx *db.Tx, issuer string) (*big.Int, error) {
	var text string
	err := tx.QueryRow(ctx, `SELECT number FROM crl_number WHERE issuer = $1`, issuer).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return new(big.Int), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the last CRLNumber of issuer %s: %w", issuer, err)
	}
	return parseNumber(text)
}

// raiseNumber records number, and refuses one that is not the greatest so far.
func raiseNumber(ctx context.Context, tx *db.Tx, issuer string, number *big.Int) error {
	last, err := lastNumber(ctx, tx, issuer)
	if err != nil {
		return err
	}
	if number.Cmp(last) <= 0 && last.Sign() > 0 {
		return fault.New(fault.Conflict, "CRLNumber %v is not greater than %v, the last one of issuer %s (RFC 5280 §5.2.3)", number, last, issuer)
	}
	_, err = tx.Exec(ctx, `INSERT INTO crl_number (issuer, number) VALUES ($1, $2)
		ON CONFLICT (issuer) DO UPDATE SET number = excluded.number`, issuer, number.String())
	if err != nil {
		return fmt.Errorf("record CRLNumber %v of issuer %s: %w", number, issuer, err)
	}
	return nil
}
