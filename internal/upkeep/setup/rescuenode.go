package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/move"
	"chancery/internal/store/schema"
	"chancery/internal/upkeep/datadir"
)

// RescueNode makes a new node of a data directory whose node.key is lost, while its database is whole: the recovery key opens the
// authority's keys for it, and the old node's wraps, identity and leases end, as in a restore. Nothing that was issued since the newest
// backup is lost by it. It is for the only node: where another one runs, that removes this one and lets the machine join anew.
func RescueNode(ctx context.Context, dir datadir.Dir, recovery *keys.Recovery) (name string, opened int, err error) {
	config, err := dir.Load()
	if err != nil {
		return "", 0, err
	}
	if _, err := os.Lstat(dir.NodeKey()); !errors.Is(err, fs.ErrNotExist) {
		return "", 0, fault.New(fault.Conflict, "%s is there: this is for a node whose key is lost", dir.NodeKey()).
			WithHint("where it is there but of no use, take it away first")
	}
	write, _, err := config.DatabaseURLs(dir)
	if err != nil {
		return "", 0, err
	}
	d, err := db.Open(ctx, db.Options{URL: write, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", 0, err
	}
	if err = move.Guard(ctx, d); err == nil {
		err = schema.Migrate(ctx, d)
	}
	if err == nil {
		err = otherNodes(ctx, d, config.Name)
	}
	if err == nil {
		name, opened, err = rescueNode(ctx, d, dir, recovery)
	}
	if err != nil {
		return "", 0, closing(d, err)
	}
	return name, opened, d.Close()
}

func rescueNode(ctx context.Context, d *db.DB, dir datadir.Dir, recovery *keys.Recovery) (name string, opened int, err error) {
	key, err := keys.CreateNodeKey(dir.NodeKey())
	if err != nil {
		return "", 0, err
	}
	s, opened, err := Recovered(ctx, d, key, recovery)
	if err != nil {
		return "", 0, errors.Join(err, os.Remove(dir.NodeKey())) // nothing is wrapped to it
	}
	name = s.Audit.Node()
	if err := dir.SetName(name); err != nil {
		return "", 0, err
	}
	// The old node's certificate is revoked; the new one makes its own when it starts.
	if err := os.Remove(dir.TLS()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", 0, err
	}
	return name, opened, nil
}

// otherNodes refuses where another node is known: what is done here would end it too.
func otherNodes(ctx context.Context, d *db.DB, own string) error {
	var other string
	err := d.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MIN(id), '') FROM key_recipient WHERE kind = $1 AND id <> $2`, string(keys.KindNode), own).Scan(&other)
	})
	if err != nil {
		return fmt.Errorf("look for other nodes: %w", err)
	}
	if other != "" {
		return fault.New(fault.Conflict, "node %s is of this authority too, and has its keys", other).
			WithHint("there: chancery clone remove %s, then chancery clone invite; here: chancery clone join, into a new directory", own)
	}
	return nil
}
