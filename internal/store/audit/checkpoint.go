package audit

import (
	"context"
	"crypto"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// Lease is the name of the lease under which checkpoints are signed and events pruned.
const Lease = "audit"

// Checkpoint signs where all chains end, names the checkpoint before, and stores the result. Only the holder of the lease
// may: two checkpoints with one number would be a fork. If no event was added since the newest checkpoint, that one is
// returned. If a chain ends before where the newest checkpoint saw it, nothing is signed, and the refusal says which. The
// number is the answer that is kept for a repeated call.
func (l *Log) Checkpoint(ctx context.Context, lease db.Lease, authority string, now time.Time, call once.Call, signers ...crypto.Signer) (*checkpoint.Signed, error) {
	var last *checkpoint.Signed
	var ends map[string]head
	err := l.db.Tx(ctx, func(tx *db.Tx) error { // not Read, which may be a standby's
		err := lease.Check(ctx, tx)
		if err != nil {
			return err
		}
		if last, err = newest(ctx, tx); err != nil {
			return err
		}
		ends, err = heads(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sign an audit checkpoint: %w", err)
	}
	next, err := successor(last, ends, authority, now)
	if err != nil {
		return nil, err
	}
	if next == nil {
		return last, l.keepCheckpoint(ctx, lease, last, call, now, nil)
	}
	raw, err := next.Sign(signers...)
	if err != nil {
		return nil, err
	}
	signed, err := checkpoint.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("read back audit checkpoint %d: %w", next.Number, err)
	}
	hash := checkpoint.Hash(raw)
	err = l.keepCheckpoint(ctx, lease, signed, call, now, func(tx *db.Tx) error {
		n, err := tx.Exec(ctx, `INSERT INTO audit_checkpoint (number, time, body, hash) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
			next.Number, db.Micros(next.Time), raw, hash[:])
		if err == nil && n == 0 {
			err = fault.New(fault.Conflict, "audit checkpoint %d was signed meanwhile", next.Number)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store audit checkpoint %d: %w", next.Number, err)
	}
	return signed, nil
}

// keepCheckpoint stores a checkpoint, unless it is stored already, with the answer to a repeated call.
func (l *Log) keepCheckpoint(ctx context.Context, lease db.Lease, signed *checkpoint.Signed, call once.Call, now time.Time, store func(*db.Tx) error) error {
	if store == nil && call.Key == "" {
		return nil
	}
	return l.db.Tx(ctx, func(tx *db.Tx) error {
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		kept, err := once.Act(ctx, tx, call, now, func() (int64, error) {
			if store == nil {
				return signed.Number, nil
			}
			return signed.Number, store(tx)
		})
		if err == nil && kept != signed.Number {
			err = fault.New(fault.Conflict, "this call was answered with audit checkpoint %d meanwhile", kept)
		}
		return err
	})
}

// successor returns the checkpoint that follows last, or nil if nothing happened since.
func successor(last *checkpoint.Signed, ends map[string]head, authority string, now time.Time) (*checkpoint.Checkpoint, error) {
	next := &checkpoint.Checkpoint{Authority: authority, Number: 1, Time: now.UTC().Truncate(time.Microsecond)}
	for _, node := range names(ends) {
		next.Heads = append(next.Heads, checkpoint.Head{Node: node, Seq: ends[node].seq, Hash: ends[node].hash})
	}
	if last == nil {
		if len(next.Heads) == 0 {
			return nil, fault.New(fault.Conflict, "there is no audit event yet, so there is nothing to sign")
		}
		return next, nil
	}
	if slices.Equal(next.Heads, last.Heads) {
		return nil, nil
	}
	next.Number, next.Previous = last.Number+1, checkpoint.Hash(last.Raw)
	if err := (&checkpoint.Signed{Checkpoint: *next}).CheckSuccessor(last); err != nil {
		return nil, fmt.Errorf("sign audit checkpoint %d: %w", next.Number, err)
	}
	return next, nil
}

// Newest returns the newest checkpoint, for agents and operators to keep.
func (l *Log) Newest(ctx context.Context) (signed *checkpoint.Signed, err error) {
	err = l.db.Read(ctx, func(tx *db.Tx) error {
		signed, err = newest(ctx, tx)
		return err
	})
	if err == nil && signed == nil {
		err = fault.New(fault.NotFound, "no audit checkpoint was signed yet").WithHint("chancery audit checkpoint signs one")
	}
	return signed, err
}

// Numbered returns one stored checkpoint.
func (l *Log) Numbered(ctx context.Context, number int64) (*checkpoint.Signed, error) {
	var raw []byte
	err := l.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT body FROM audit_checkpoint WHERE number = $1`, number).Scan(&raw)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "there is no audit checkpoint %d", number)
	}
	if err != nil {
		return nil, fmt.Errorf("load audit checkpoint %d: %w", number, err)
	}
	return checkpoint.Parse(raw)
}

func newest(ctx context.Context, tx *db.Tx) (*checkpoint.Signed, error) {
	return oneCheckpoint(tx.QueryRow(ctx, `SELECT body FROM audit_checkpoint ORDER BY number DESC LIMIT 1`))
}

func oneCheckpoint(row *db.Row) (*checkpoint.Signed, error) {
	var raw []byte
	err := row.Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load an audit checkpoint: %w", err)
	}
	return checkpoint.Parse(raw)
}

// pruneEvent is the detail of the event that says what was removed. Verify wants it for every chain that does not begin
// with its first event.
type pruneEvent struct {
	Checkpoint int64  `json:"checkpoint"`
	Seq        int64  `json:"seq"`
	Hash       string `json:"hash"`
}

const (
	pruneAction = "audit.prune"
	pruneRows   = 1000 // events removed in one transaction
)

// Prune removes the events that the newest checkpoint from before the time given covers, and the checkpoints before that
// one. What remains still verifies: each chain now begins behind a signed head, and an event says so. It returns how many
// events it removed; it may be cut short at any point and run again.
func (l *Log) Prune(ctx context.Context, lease db.Lease, before time.Time, actor string, now time.Time) (removed int64, err error) {
	var from *checkpoint.Signed
	err = l.db.Tx(ctx, func(tx *db.Tx) error {
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		from, err = oneCheckpoint(tx.QueryRow(ctx, `SELECT body FROM audit_checkpoint WHERE time < $1 ORDER BY number DESC LIMIT 1`,
			db.Micros(before)))
		if err != nil || from == nil {
			return err
		}
		return l.rebase(ctx, tx, from, actor, now)
	})
	if err != nil || from == nil {
		return 0, err
	}
	for _, h := range from.Heads {
		n, err := l.removeUpTo(ctx, lease, h)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("prune audit chain %s: %w", h.Node, err)
		}
	}
	return removed, nil
}

// rebase moves the beginning of every chain behind the checkpoint's head of it.
func (l *Log) rebase(ctx context.Context, tx *db.Tx, from *checkpoint.Signed, actor string, now time.Time) error {
	bases, err := places(ctx, tx, "audit_base")
	if err != nil {
		return err
	}
	for _, h := range from.Heads {
		if h.Seq <= bases[h.Node].seq {
			continue
		}
		_, err := tx.Exec(ctx, `INSERT INTO audit_base (node, seq, hash) VALUES ($1, $2, $3)
			ON CONFLICT (node) DO UPDATE SET seq = excluded.seq, hash = excluded.hash`, h.Node, h.Seq, h.Hash[:])
		if err != nil {
			return err
		}
		err = l.Append(ctx, tx, Event{Time: now, Actor: actor, Action: pruneAction, Object: h.Node,
			Detail: pruneEvent{from.Number, h.Seq, fmt.Sprintf("%x", h.Hash)}})
		if err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, `DELETE FROM audit_checkpoint WHERE number < $1`, from.Number)
	return err
}

// prunedMargin is by how much the time of an event may be after that of a checkpoint which covers it: the checkpoint's is read
// from the clock before the heads are.
const prunedMargin = time.Minute

// PrunedBefore is the time before which events may have been pruned; zero where all are here.
func PrunedBefore(ctx context.Context, tx *db.Tx) (time.Time, error) {
	bases, err := places(ctx, tx, "audit_base")
	if err != nil || len(bases) == 0 {
		return time.Time{}, err
	}
	oldest, err := oneCheckpoint(tx.QueryRow(ctx, `SELECT body FROM audit_checkpoint ORDER BY number LIMIT 1`))
	if err != nil || oldest == nil {
		return time.Time{}, err
	}
	return oldest.Time.Add(prunedMargin), nil
}

// removeUpTo deletes from the old end, so that what remains in between is still one piece.
func (l *Log) removeUpTo(ctx context.Context, lease db.Lease, h checkpoint.Head) (removed int64, err error) {
	for {
		var n int64
		err := l.db.Tx(ctx, func(tx *db.Tx) error {
			n = 0
			if err := lease.Check(ctx, tx); err != nil {
				return err
			}
			var first sql.NullInt64
			err := tx.QueryRow(ctx, `SELECT MIN(seq) FROM audit_event WHERE node = $1`, h.Node).Scan(&first)
			if err != nil || !first.Valid || first.Int64 > h.Seq {
				return err
			}
			n, err = tx.Exec(ctx, `DELETE FROM audit_event WHERE node = $1 AND seq <= $2`, h.Node, min(h.Seq, first.Int64+pruneRows-1))
			return err
		})
		removed += n
		if err != nil || n == 0 {
			return removed, err
		}
	}
}
