package db

import (
	"context"
	"database/sql"
	"fmt"
	"math/bits"
	"runtime/debug"
)

// Ahead is what a function of TxAhead wants to have been read when it runs. Read is called with the items of all functions
// that wait with the same Key, and sets in each what it found, anew on each call. It is called in their transaction, and again
// if anything was written since: a function finds its item as if it had read it itself. Read (of the first of them) must not
// write. If it fails, the transaction is rolled back and its functions are run again one by one. Key must be comparable and
// unique to its owner.
type Ahead struct {
	Key  any
	Item any
	Read func(ctx context.Context, tx *Tx, items []any) error
}

// view is a moment of the transaction between two writes; only its address counts.
type view struct{ _ byte }

// readAhead reads what the first of the calls wants, and in passing what those behind it want under the same key. Where a
// function has written meanwhile, the next one may too: then it reads for the first alone.
func (b *batch) readAhead(conn *sql.Conn, calls []*call) (disposition, error) {
	first := calls[0]
	if first.ahead == nil || first.seen != nil && first.seen == b.view {
		return final, nil
	}
	if b.view == nil {
		if b.viewed {
			calls = calls[:1]
		}
		b.view, b.viewed = new(view), true
	}
	var items []any
	for _, c := range calls {
		if c.ahead != nil && c.ahead.Key == first.ahead.Key && c.seen != b.view {
			items = append(items, c.ahead.Item)
			c.seen = b.view
		}
	}
	_, kind, err := b.together(conn, first.ahead.Read, items)
	return kind, err
}

// together runs what is done for several functions at once.
func (b *batch) together(conn *sql.Conn, do func(context.Context, *Tx, []any) error, items []any) (*Tx, disposition, error) {
	tx := &Tx{d: b.d, conn: conn, batch: b, write: true}
	err := b.shielded(do, tx, items)
	if err == nil {
		err = tx.failed
	}
	if err == nil {
		return tx, final, nil
	}
	kind := judge(tx.failed)
	if kind == final {
		kind = judge(err)
	}
	return tx, kind, err
}

// shielded turns a panic into an error: it would unwind the leader, whose function did nothing wrong.
func (b *batch) shielded(do func(context.Context, *Tx, []any) error, tx *Tx, items []any) (err error) {
	defer tx.finish()
	defer func() {
		if v := recover(); v != nil {
			b.d.log.Error("reader or writer of a shared transaction panicked", "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("db: the reader or writer of a shared transaction panicked: %v", v)
		}
	}()
	return do(context.Background(), tx, items)
}

// Pending are the items that this function, and those of the shared transaction before it, gave to BeforeCommit under key.
// They are not in the database yet.
func (tx *Tx) Pending(key any) []any {
	var items []any
	for _, added := range [][]addition{tx.batch.items, tx.added} {
		for _, a := range added {
			if a.key == key {
				items = append(items, a.item)
			}
		}
	}
	return items
}

// Padded repeats the last of the values that a SELECT looks for until they are as many as a power of two, so that few texts of
// it are prepared on a connection. There must be one.
func Padded[T any](values []T) []T {
	n := len(values)
	if n&(n-1) == 0 {
		return values
	}
	padded := make([]T, 1<<bits.Len(uint(n)))
	for i := range padded {
		padded[i] = values[min(i, n-1)]
	}
	return padded
}
