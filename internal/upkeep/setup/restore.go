package setup

import (
	"context"
	"crypto"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/datadir"
)

// RestoreOptions say from what an authority is made anew.
type RestoreOptions struct {
	Dir          datadir.Dir
	Backup       string // the file
	Recovery     *keys.Recovery
	AuditKeys    []crypto.PublicKey // of the authority's audit, as they were kept: one of them must have signed the backup
	CRLs         [][]byte           // published since the backup, DER or PEM: what they list is revoked again
	DatabaseFile string
	Address      string // empty means Listen's, where that is given, and else the one in the backup
	Listen       string
	PublicListen string
	Metrics      string
	Logger       *slog.Logger
}

// Restored says what was made.
type Restored struct {
	Header backup.Header
	Node   string // the new node's name
	Rows   int64
	Keys   int // that were wrapped to the new node
	Merged ca.Merged

	Warnings []string
}

// Restore makes an authority anew in o.Dir, from a backup and the recovery key. The node is a new one with a name of its
// own, because the audit chains of the nodes in the backup went on after it: their events since then are lost, and a
// checkpoint that was kept elsewhere will say so.
func Restore(ctx context.Context, o RestoreOptions) (*Restored, error) {
	if len(o.AuditKeys) == 0 {
		return nil, fault.New(fault.Invalid, "the audit's public key is needed: without it anybody who knows the recovery recipient could have written "+
			"the backup").WithHint("init wrote it to offline/audit-key.pem, and to ca/audit-key.pem of every data directory")
	}
	final := o.Dir
	staging, err := stagingFor(final)
	if err != nil {
		return nil, err
	}
	o.Dir = staging
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	done, err := o.build(ctx)
	if err != nil {
		_ = os.RemoveAll(string(staging))
		return nil, err
	}
	return done, settle(staging, final)
}

func (o *RestoreOptions) build(ctx context.Context) (*Restored, error) {
	for _, dir := range []string{filepath.Dir(o.Dir.IdentityRoot()), filepath.Dir(o.Dir.AdminKey())} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("load %s: %w", o.Backup, err)
	}
	lists, err := parseCRLs(o.CRLs)
	if err != nil {
		return nil, err
	}
	d, err := o.openDatabase(ctx)
	if err != nil {
		return nil, err
	}
	done, err := o.fillStore(ctx, d, lists)
	if err != nil {
		return nil, closing(d, err)
	}
	return done, d.Close()
}

// check reads the backup before anything is made of it.
func (o *RestoreOptions) check() error {
	file, err := os.Open(o.Backup)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = backup.Check(file, o.Recovery.Identity(), o.AuditKeys)
	return err
}

func parseCRLs(inputs [][]byte) ([]*crl.List, error) {
	var lists []*crl.List
	for i, input := range inputs {
		der, err := crl.FromPEM(input)
		if err != nil {
			return nil, fmt.Errorf("CRL %d: %w", i+1, err)
		}
		list, err := crl.Parse(der)
		if err != nil {
			return nil, fault.New(fault.Invalid, "CRL %d: %w", i+1, err)
		}
		lists = append(lists, list)
	}
	return lists, nil
}

func (o *RestoreOptions) openDatabase(ctx context.Context) (*db.DB, error) {
	config := &datadir.Config{DatabaseFile: o.DatabaseFile}
	if config.DatabaseFile != "" {
		absolute, err := filepath.Abs(config.DatabaseFile)
		if err != nil {
			return nil, err
		}
		config.DatabaseFile = absolute
		o.DatabaseFile = absolute
	}
	url, _, err := config.DatabaseURLs(o.Dir)
	if err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, db.Options{URL: url, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	if err := schema.Migrate(ctx, d); err != nil {
		return nil, closing(d, err)
	}
	return d, nil
}

// fillStore loads the rows, then makes the node that will serve them: its name, its key, its wraps, its administrator.
func (o *RestoreOptions) fillStore(ctx context.Context, d *db.DB, lists []*crl.List) (*Restored, error) {
	done, err := o.load(ctx, d)
	if err != nil {
		return nil, err
	}
	if err := d.LearnClock(ctx); err != nil {
		return nil, err
	}
	if now := time.Now(); now.Before(done.Header.At) {
		return nil, fault.New(fault.Unavailable, "the clock says %s, and the backup was taken at %s: set the clock first",
			now.UTC().Format(time.RFC3339), done.Header.At.UTC().Format(time.RFC3339))
	}
	if done.Node, err = newNodeName(ctx, d); err != nil {
		return nil, err
	}
	nodeKey, err := keys.CreateNodeKey(o.Dir.NodeKey())
	if err != nil {
		return nil, err
	}
	s, err := Assemble(d, done.Node, nodeKey, o.Logger)
	if err != nil {
		return nil, err
	}
	if err := o.replaceNodes(ctx, s, nodeKey, done); err != nil {
		return nil, err
	}
	if err := o.writeNode(ctx, s, done); err != nil {
		return nil, err
	}
	if err := warnOfTokens(ctx, s, done); err != nil {
		return nil, err
	}
	system := access.System(done.Node)
	for _, list := range lists {
		merged, err := s.CA.MergeCRL(ctx, system, list)
		if err != nil {
			return nil, err
		}
		done.Merged.Known += merged.Known
		done.Merged.Revoked += merged.Revoked
		done.Merged.Unknown += merged.Unknown
	}
	admin, err := s.administrator(ctx, system)
	if err != nil {
		return nil, err
	}
	return done, adminIdentity(ctx, s, system, o.Dir, admin)
}

// load reads the backup into the empty database, in one transaction: all of it or nothing.
func (o *RestoreOptions) load(ctx context.Context, d *db.DB) (*Restored, error) {
	file, err := os.Open(o.Backup)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	done := &Restored{}
	err = d.TxAlone(ctx, func(tx *db.Tx) error {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		source, err := backup.Open(file, o.Recovery.Identity())
		if err != nil {
			return err
		}
		done.Header = source.Header
		done.Rows, err = source.Load(ctx, tx, o.AuditKeys)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", o.Backup, err)
	}
	return done, nil
}

// newNodeName finds the first name nodeN that no audit chain has.
func newNodeName(ctx context.Context, d *db.DB) (string, error) {
	var used []string
	err := d.Read(ctx, func(tx *db.Tx) (err error) {
		used, err = db.TextColumn(ctx, tx, `SELECT node FROM audit_head UNION SELECT id FROM key_recipient UNION SELECT name FROM node`)
		return err
	})
	for n := 1; err == nil; n++ {
		if name := "node" + strconv.Itoa(n); !slices.Contains(used, name) {
			return name, nil
		}
	}
	return "", err
}

// replaceNodes makes the new node the only one: the keys are wrapped to it by the recovery key, and the nodes of the backup,
// which would have to be cloned anew, are recipients no longer.
func (o *RestoreOptions) replaceNodes(ctx context.Context, s *Services, nodeKey *keys.NodeKey, done *Restored) error {
	old, err := s.Keys.Recipients(ctx)
	if err != nil {
		return err
	}
	recovery := slices.IndexFunc(old, func(r keys.Recipient) bool { return r.PublicKey == o.Recovery.Public() })
	if recovery < 0 {
		return fault.New(fault.Invalid, "the backup opens with this recovery key, but its keys are not wrapped to it")
	}
	now, by := time.Now(), access.System(done.Node)
	actor := by.Actor()
	issuers, err := s.Identity.Issuers(ctx)
	if err != nil {
		return err
	}
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		err := s.Audit.Append(ctx, tx, audit.Event{
			Time: now, Actor: actor, Action: "authority.restore", Object: done.Header.Authority,
			Detail: map[string]any{"backup_of": done.Header.At.UTC().Format(time.RFC3339), "by_node": done.Header.Node, "rows": done.Rows},
		})
		if err != nil {
			return err
		}
		if err := s.Clones.EndAll(ctx, tx, by, issuers, now); err != nil {
			return err
		}
		for _, r := range old {
			if r.Kind != keys.KindNode {
				continue
			}
			if err := s.Keys.RemoveRecipient(ctx, tx, r.ID, actor, now); err != nil {
				return err
			}
		}
		if err := s.Keys.AddRecipient(ctx, tx, nodeRecipient(done.Node, nodeKey, now), actor, now); err != nil {
			return err
		}
		// The recovery key is at hand, so the new node knows that this recipient is the true one.
		return s.Keys.Endorse(ctx, tx, old[recovery].ID, o.Recovery.Public(), actor, now)
	})
	if err != nil {
		return err
	}
	if done.Keys, err = s.Keys.RecoverAll(ctx, o.Recovery, actor); err != nil {
		return err
	}
	// Whoever the backup's list names, the next one names the new node and the recovery key.
	return s.Keys.ChangeList(ctx, nil, nil, actor, now, func(*db.Tx) error { return nil })
}

// Recovered puts the services of a new node together over a database that was loaded from a backup, and has the recovery key open
// the keys for it, as Restore does. It says how many.
func Recovered(ctx context.Context, d *db.DB, key *keys.NodeKey, recovery *keys.Recovery) (*Services, int, error) {
	o := RestoreOptions{Recovery: recovery, Logger: slog.New(slog.DiscardHandler)}
	if err := d.LearnClock(ctx); err != nil {
		return nil, 0, err
	}
	done := &Restored{}
	var err error
	if done.Node, err = newNodeName(ctx, d); err != nil {
		return nil, 0, err
	}
	s, err := Assemble(d, done.Node, key, o.Logger)
	if err != nil {
		return nil, 0, err
	}
	err = o.replaceNodes(ctx, s, key, done)
	return s, done.Keys, err
}

// writeNode writes what a node needs beside its key.
func (o *RestoreOptions) writeNode(ctx context.Context, s *Services, done *Restored) error {
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return err
	}
	options := Options{
		Dir: o.Dir, Node: done.Node, Organization: set.Organization, Address: o.Address, Listen: o.Listen, PublicListen: o.PublicListen,
		Metrics: o.Metrics, DatabaseFile: o.DatabaseFile,
	}
	if options.Address == "" {
		options.Address = addressOf(o.Listen)
	}
	if options.Address == "" {
		options.Address = set.Address
		done.Warnings = append(done.Warnings, fmt.Sprintf("neither --listen nor --address was given: commands with --dir talk to %s, the address in the "+
			"backup, where the old node may still answer", set.Address))
	}
	if err := options.fill(); err != nil {
		return err
	}
	if _, err := options.writeConfig(); err != nil {
		return err
	}
	p, err := s.Pools.Pool(ctx, ca.IdentityPool)
	if err != nil {
		return err
	}
	if p.Root == nil {
		return fault.New(fault.Invalid, "the backup has no root of identities")
	}
	if err := s.writeAuditKey(ctx, o.Dir); err != nil {
		return err
	}
	return keyfile.WriteFile(o.Dir.IdentityRoot(), keyfile.EncodeCertificates(p.Root.Certificate), 0o644)
}

// addressOf is where a node that listens there is reached from its own machine, and empty where that cannot be said.
func addressOf(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil || port == "" || port == "0" {
		return ""
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "", err == nil && ip.IsUnspecified() && ip.Is4():
		host = "127.0.0.1"
	case err == nil && ip.IsUnspecified():
		host = "::1"
	}
	return "https://" + net.JoinHostPort(host, port)
}

// administrator is the principal whose identity is put into the data directory: admin, or the first by name.
func (s *Services) administrator(ctx context.Context, by access.Principal) (access.Principal, error) {
	var first access.Principal
	for after := ""; ; {
		page, next, err := s.Access.Principals(ctx, by, access.KindOperator, after, 100)
		if err != nil {
			return first, err
		}
		for _, p := range page {
			if p.Disabled || !p.Has(access.Admin) {
				continue
			}
			if p.Name == "admin" {
				return p, nil
			}
			if first.ID == "" || strings.Compare(p.Name, first.Name) < 0 {
				first = p
			}
		}
		if next == "" {
			break
		}
		after = next
	}
	if first.ID == "" {
		return first, fault.New(fault.Conflict, "the backup has no administrator who is not disabled")
	}
	return first, nil
}
