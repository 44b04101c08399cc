package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/clone"
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
	NodeRescue
	dir  datadir.Dir
	old  string // the name in node.yaml
	name string // of the new node
	key  *keys.NodeKey
}

// NodeRescue says of what RescueNode makes a new node.
type NodeRescue struct {
	Dir      datadir.Dir
	Recovery *keys.Recovery
	// Lost are all other nodes of the authority, by name: their keys are lost too, and they end with this one.
	Lost []string
	// DatabaseFile has the URL of the database where no data directory is left: Dir gets a node.yaml with it, and with nothing else.
	DatabaseFile string
}

// RescuedNode is what RescueNode made.
type RescuedNode struct {
	Name  string `json:"node"`
	Keys  int    `json:"keys"` // that are wrapped to it
	Login string `json:"login_left,omitempty"`
}

// RescueNode makes a new node of a data directory whose node.key is lost, while its database is whole: the recovery key opens the
// authority's keys for it, and the old node's wraps, identity and leases end, as in a restore. Nothing that was issued since the newest
// backup is lost by it. It is for who has no other node: where one runs, that removes this one and lets the machine join anew.
func RescueNode(ctx context.Context, o NodeRescue) (*RescuedNode, error) {
	config, err := o.config()
	if err != nil {
		return nil, err
	}
	r := &nodeRescue{NodeRescue: o, dir: o.Dir, old: config.Name}
	if err := r.begun(); err != nil {
		return nil, err
	}
	write, _, err := config.DatabaseURLs(o.Dir)
	if err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, db.Options{URL: write, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	done, err := r.run(ctx, d)
	if err != nil {
		return nil, closing(d, err)
	}
	return done, d.Close()
}

// lostNode is the name in the node.yaml of a directory that had none. No node has it: new ones are numbered.
const lostNode = "lost"

// config is node.yaml, which is made where the data directory is lost as well.
func (o *NodeRescue) config() (*datadir.Config, error) {
	_, err := os.Lstat(o.Dir.Config())
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case missing && o.DatabaseFile == "":
		return nil, fault.New(fault.NotFound, "there is no %s, and so no database to go to", o.Dir.Config()).
			WithHint("where the data directory is lost as well, name a file with the URL of the database: --database-file F")
	case missing:
		if err := keyfile.MkdirBeside(filepath.Dir(o.Dir.IdentityRoot()), 0o700); err != nil {
			return nil, err
		}
		file, err := filepath.Abs(o.DatabaseFile)
		if err != nil {
			return nil, err
		}
		if err := o.Dir.Create(datadir.Config{Name: lostNode, Address: "https://127.0.0.1:8443", DatabaseFile: file}); err != nil {
			return nil, err
		}
	case o.DatabaseFile != "":
		return o.made()
	}
	return o.Dir.Load()
}

// made is the node.yaml that an earlier run of the same command made, which was refused or cut short after that; any other is refused.
func (o *NodeRescue) made() (*datadir.Config, error) {
	config, err := o.Dir.Load()
	if err != nil {
		return nil, err
	}
	file, err := filepath.Abs(o.DatabaseFile)
	if err != nil {
		return nil, err
	}
	name, err := os.ReadFile(staged(o.Dir, "name"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what an earlier rescue left: %w", err)
	}
	if config.DatabaseFile == file && (config.Name == lostNode || config.Name == string(bytes.TrimSpace(name))) {
		return config, nil
	}
	return nil, fault.New(fault.Invalid, "%s is there, and says where the database is", o.Dir.Config()).WithHint("leave --database-file away")
}

// staged is a file of a rescue that is under way.
func staged(dir datadir.Dir, name string) string {
	return filepath.Join(string(dir), "rescue-node", name)
}

func (r *nodeRescue) file(name string) string { return staged(r.dir, name) }

// begun takes up what a rescue that was cut short left, and refuses where the node's key is there.
func (r *nodeRescue) begun() error {
	key, err := keys.LoadNodeKey(r.file("node.key"))
	if err == nil {
		text, err := os.ReadFile(r.file("name"))
		if err != nil {
			return fmt.Errorf("read what an earlier rescue left: %w", err)
		}
		r.key, r.name = key, string(bytes.TrimSpace(text))
		if err := takeLogin(r.dir, r.name); err != nil {
			return err
		}
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

func (r *nodeRescue) run(ctx context.Context, d *db.DB) (*RescuedNode, error) {
	if err := move.Guard(ctx, d); err != nil {
		return nil, err
	}
	if err := schema.Migrate(ctx, d); err != nil {
		return nil, err
	}
	if err := d.LearnClock(ctx); err != nil {
		return nil, err
	}
	taken, err := r.otherNodes(ctx, d)
	if err != nil {
		return nil, err
	}
	if !taken {
		if err := r.stage(ctx, d); err != nil {
			return nil, err
		}
	}
	s, err := Assemble(d, r.name, r.key, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	done := &RescuedNode{Name: r.name}
	if done.Keys, err = r.take(ctx, s, taken); err != nil {
		return nil, err
	}
	if err := r.login(ctx, s); err != nil {
		done.Login = err.Error() // rescue expired does it, and needs the node's key in its place
	}
	if err := r.beside(ctx, s); err != nil {
		return nil, err
	}
	return done, r.place()
}

// otherNodes refuses where another node is known that nobody called lost, or that lives: what is done here would end it too. It says
// whether the database knows the new one, with its key, and so this node's place is taken already.
func (r *nodeRescue) otherNodes(ctx context.Context, d *db.DB) (taken bool, err error) {
	public := ""
	if r.key != nil {
		public = r.key.Public()
	}
	var ours int64
	others := map[string]time.Duration{} // since they were seen, by the database's clock
	err = d.ReadSnapshot(ctx, func(tx *db.Tx) error {
		err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM key_recipient WHERE kind = $1 AND id = $2 AND public_key = $3`, string(keys.KindNode), r.name, public).Scan(&ours)
		if err != nil {
			return err
		}
		now, err := tx.Clock(ctx)
		if err != nil {
			return err
		}
		return r.seen(ctx, tx, public, now, others)
	})
	if err != nil {
		return false, fmt.Errorf("look for other nodes: %w", err)
	}
	if ours > 0 {
		return true, nil
	}
	return false, r.allLost(others)
}

// seen finds the other nodes, and how long ago each was seen.
func (r *nodeRescue) seen(ctx context.Context, tx *db.Tx, public string, now time.Time, others map[string]time.Duration) error {
	rows, err := tx.Query(ctx, `SELECT k.id, COALESCE(MAX(n.seen_at), 0) FROM key_recipient k LEFT JOIN node n ON n.name = k.id
		WHERE k.kind = $1 AND k.id <> $2 AND k.public_key <> $3 GROUP BY k.id`, string(keys.KindNode), r.old, public)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var at int64
		if err := rows.Scan(&name, &at); err != nil {
			return err
		}
		others[name] = now.Sub(db.FromMicros(at))
	}
	return rows.Err()
}

// joinAnew says what passes where another node can be started. That one removes the old node, where its name is known.
func (r *nodeRescue) joinAnew() string {
	if r.old == lostNode {
		return "there: chancery clone invite; here: chancery clone join, into a new directory"
	}
	return fmt.Sprintf("there: chancery clone remove %s, then chancery clone invite; here: chancery clone join, into a new directory", r.old)
}

// allLost judges what an operator says of the other nodes.
func (r *nodeRescue) allLost(others map[string]time.Duration) error {
	for _, name := range r.Lost {
		if _, known := others[name]; !known {
			return fault.New(fault.Invalid, "no other node of this authority is called %q", name).
				WithHint("the others that have its keys: %s", strings.Join(slices.Sorted(maps.Keys(others)), ", "))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(others)) {
		if ago := others[name]; ago < clone.AliveFor {
			return fault.New(fault.Conflict, "node %s is of this authority too, has its keys, and was seen %s ago", name, max(ago, 0).Round(time.Second)).
				WithHint("%s", r.joinAnew())
		}
		if !slices.Contains(r.Lost, name) {
			return fault.New(fault.Conflict, "node %s is of this authority too, and has its keys", name).
				WithHint("where it can be started, %s. Where its key is lost too, and those of all others: --lost %s",
					r.joinAnew(), strings.Join(slices.Sorted(maps.Keys(others)), " --lost "))
		}
	}
	return nil
}

// login gives the new node a login of its own at PostgreSQL in the place of the old one's, which any other node ends, since that node is
// gone.
func (r *nodeRescue) login(ctx context.Context, s *Services) error {
	role, err := r.dir.DatabaseRole()
	if err != nil || role == "" || role == LoginRole(r.name) {
		return err
	}
	config, err := r.dir.Load()
	if err != nil {
		return err
	}
	if err := s.Clones.Register(ctx, config.Address, time.Now()); err != nil { // what remembers the login, so that it ends with the node
		return err
	}
	// Name and certificate change together, and the next run needs a pair of them to come here again: so both are made elsewhere first.
	if made, err := ownLogin(ctx, r.dir.NextDatabaseLogin(), s.Clones.OwnLogin); err != nil || !made {
		return err
	}
	return r.dir.TakeDatabaseLogin()
}

// beside writes what a node needs to know the authority by, where the data directory was lost too.
func (r *nodeRescue) beside(ctx context.Context, s *Services) error {
	if _, err := os.Lstat(r.dir.IdentityRoot()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.writeAuditKey(ctx, r.dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	p, err := s.Pools.Pool(ctx, ca.IdentityPool)
	if err != nil {
		return err
	}
	if p.Root == nil {
		return fault.New(fault.Invalid, "the database has no root of identities")
	}
	return keyfile.WriteFile(r.dir.IdentityRoot(), keyfile.EncodeCertificates(p.Root.Certificate), 0o644)
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
		o, done := RestoreOptions{Recovery: r.Recovery}, &Restored{Node: r.name}
		err := o.replaceNodes(ctx, s, r.key, done)
		return done.Keys, err
	}
	actor := access.System(r.name).Actor()
	if opened, err = s.Keys.RecoverAll(ctx, r.Recovery, actor); err != nil {
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
