package db

import (
	"context"
	"errors"

	"chancery/internal/fault"
)

// A fence is what one process writes by. Others raise it when its node is taken away, and another process of the same name takes it over;
// from the commit of either on, nothing that this one still sends is committed: the row is written in each transaction, so of two at once
// the later begins anew and finds the other's. What a process merely remembers of its right to write would be true until it looks again,
// and one that was frozen after its look goes on where it stood.
type fence struct {
	node   string
	number int64
}

// ErrFenced is within what a process hears that writes as a node and is none any more.
var ErrFenced = errors.New("the fence is another's")

func fenced() error {
	return (&fault.Error{Kind: fault.Denied, Err: ErrFenced,
		Message: "this process no longer writes for its node: the node was removed, or another process has started as it; nothing was changed"}).
		WithHint("chancery clone list, at another node")
}

type fenceKey struct{}

// TakeFence has this process alone write as a node from the commit of tx on; number is greater than that of any process before. SQLite,
// which one process has open, needs none.
func TakeFence(tx *Tx, node string, number int64) {
	if tx.d.dialect != Postgres {
		return
	}
	tx.BeforeCommit(fenceKey{}, &fence{node, number}, func(ctx context.Context, tx *Tx, items []any) error {
		f := items[len(items)-1].(*fence)
		_, err := tx.Exec(ctx, `INSERT INTO write_mark (node, number, fence) VALUES ($1, 0, $2)
			ON CONFLICT (node) DO UPDATE SET fence = excluded.fence`, f.node, f.number)
		if err == nil {
			tx.batch.fence = f
		}
		return err
	})
}

// RaiseFence has nobody write as a node from the commit of tx on, until another process takes its fence.
func RaiseFence(ctx context.Context, tx *Tx, node string) error {
	_, err := tx.Exec(ctx, `INSERT INTO write_mark (node, number, fence) VALUES ($1, 0, -1)
		ON CONFLICT (node) DO UPDATE SET fence = excluded.fence`, node)
	return err
}
