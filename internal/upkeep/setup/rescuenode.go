package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/move"
	"chancery/internal/store/schema"
	"chancery/internal/upkeep/datadir"
)

// nodeRescue makes a new node of a data directory. Its name and its key lie in a directory of their own, written before the database
// hears of either and there until all is done: cut anywhere, the same command goes on with them. The one transaction that makes
// this node the only one is found again by the key, whether its outcome was known or not.
type nodeRescue struct {
	dir      datadir.Dir
	old      string // the name in node.yaml
	name     string // of the new node
	key      *keys.NodeKey
	recovery *keys.Recovery
}

// RescueNode makes a new node of a data directory whose node.key is lost, while its database is whole: the recovery key opens the
// authority's keys for it, and the old node's wraps, identity and leases end, as in a restore. Nothing that was issued since the newest
// backup is lost by it. It is for the only node: where another one runs, that removes this one and lets the machine join anew.
func RescueNode(ctx context.Context, dir datadir.Dir, recovery *keys.Recovery) (name string, opened int, err error) {
	config, err := dir.Load()
	if err != nil {
		return "", 0, err
	}
	r := &nodeRescue{dir: dir, old: config.Name, recovery: recovery}
	if err := r.begun(); err != nil {
		return "", 0, err
	}
	write, _, err := config.DatabaseURLs(dir)
	if err != nil {
		return "", 0, err
	}
	d, err := db.Open(ctx, db.Options{URL: write, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", 0, err
	}
	if opened, err = r.run(ctx, d); err != nil {
		return "", 0, closing(d, err)
	}
	return r.name, opened, d.Close()
}

func (r *nodeRescue) file(name string) string {
	return filepath.Join(string(r.dir), "rescue-node", name)
}

// begun takes up what a rescue that was cut short left, and refuses where the node's key is there.
func (r *nodeRescue) begun() error {
	key, err := keys.LoadNodeKey(r.file("node.key"))
	if err == nil {
		text, err := os.ReadFile(r.file("name"))
		if err != nil {
			return fmt.Errorf("read what an earlier rescue left: %w", err)
		}
		r.key, r.name = key, string(bytes.TrimSpace(text))
	} else if !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("read what an earlier rescue left: %w", err)
	}
	return r.freePlace()
}

// freePlace wants no key in the node's place, or the new one that an earlier run put there.
func (r *nodeRescue) freePlace() error {
	if _, err := os.Lstat(r.dir.NodeKey()); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if r.key != nil {
		if there, err := keys.LoadNodeKey(r.dir.NodeKey()); err == nil && there.Public() == r.key.Public() {
			return nil
		}
	}
	return fault.New(fault.Conflict, "%s is there: this is for a node whose key is lost", r.dir.NodeKey()).
		WithHint("where it is there but of no use, move it elsewhere first")
}

func (r *nodeRescue) run(ctx context.Context, d *db.DB) (opened int, err error) {
	if err := move.Guard(ctx, d); err != nil {
		return 0, err
	}
	if err := schema.Migrate(ctx, d); err != nil {
		return 0, err
	}
	if err := d.LearnClock(ctx); err != nil {
		return 0, err
	}
	taken, err := r.otherNodes(ctx, d)
	if err != nil {
		return 0, err
	}
	if !taken {
		if err := r.stage(ctx, d); err != nil {
			return 0, err
		}
	}
	s, err := Assemble(d, r.name, r.key, slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, err
	}
	if opened, err = r.take(ctx, s, taken); err != nil {
		return 0, err
	}
	return opened, r.place()
}

// otherNodes refuses where another node is known: what is done here would end it too. It says whether the database knows the new one,
// with its key, and so this node's place is taken already.
func (r *nodeRescue) otherNodes(ctx context.Context, d *db.DB) (taken bool, err error) {
	public := ""
	if r.key != nil {
		public = r.key.Public()
	}
	var other string
	var ours int64
	err = d.ReadSnapshot(ctx, func(tx *db.Tx) error {
		err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM key_recipient WHERE kind = $1 AND id = $2 AND public_key = $3`, string(keys.KindNode), r.name, public).Scan(&ours)
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT COALESCE(MIN(id), '') FROM key_recipient WHERE kind = $1 AND id <> $2 AND public_key <> $3`,
			string(keys.KindNode), r.old, public).Scan(&other)
	})
	if err != nil {
		return false, fmt.Errorf("look for other nodes: %w", err)
	}
	if other != "" {
		return false, fault.New(fault.Conflict, "node %s is of this authority too, and has its keys", other).
			WithHint("there: chancery clone remove %s, then chancery clone invite; here: chancery clone join, into a new directory", r.old)
	}
	return ours > 0, nil
}

// stage writes the name and the key of the new node, which nobody else knows of yet. A key of an earlier run is used again: its
// transaction may still be on its way, and the database takes one key once.
func (r *nodeRescue) stage(ctx context.Context, d *db.DB) (err error) {
	if r.name, err = newNodeName(ctx, d); err != nil {
		return err
	}
	if err := keyfile.MkdirBeside(filepath.Dir(r.file("name")), 0o700); err != nil {
		return err
	}
	if err := keyfile.ReplaceBeside(r.file("name"), []byte(r.name+"\n"), 0o600); err != nil {
		return err
	}
	if r.key != nil {
		return nil
	}
	if r.key, err = keys.CreateNodeKey(r.file("node.key")); err != nil {
		return err
	}
	return syncDir(string(r.dir))
}

// take makes the new node the only one, where it is not, and has the recovery key open all keys for it.
func (r *nodeRescue) take(ctx context.Context, s *Services, taken bool) (opened int, err error) {
	if !taken {
		o, done := RestoreOptions{Recovery: r.recovery}, &Restored{Node: r.name}
		err := o.replaceNodes(ctx, s, r.key, done)
		return done.Keys, err
	}
	actor := access.System(r.name).Actor()
	if opened, err = s.Keys.RecoverAll(ctx, r.recovery, actor); err != nil {
		return 0, err
	}
	return opened, s.Keys.ChangeList(ctx, nil, nil, actor, time.Now(), func(*db.Tx) error { return nil })
}

// place puts name and key where the node looks for them. What was staged goes last.
func (r *nodeRescue) place() error {
	text, err := os.ReadFile(r.file("node.key"))
	if err != nil {
		return err
	}
	defer clear(text)
	if err := keyfile.WriteBeside(r.dir.NodeKey(), text, 0o600); err != nil {
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := r.freePlace(); err != nil {
			return err
		}
	}
	if err := r.dir.SetName(r.name); err != nil {
		return err
	}
	// The old node's certificate is revoked; the new one makes its own when it starts.
	if err := os.Remove(r.dir.TLS()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, path := range []string{r.file("node.key"), r.file("name"), filepath.Dir(r.file("name"))} {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return syncDir(string(r.dir))
}
