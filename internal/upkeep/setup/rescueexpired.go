package setup

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
)

// ExpiredOptions say how an authority whose own certificates ended comes back.
type ExpiredOptions struct {
	Dir datadir.Dir
	// DatabaseFile is another way into PostgreSQL than node.yaml names, for this act: over a Unix socket there is no TLS whose
	// certificates may have ended, and PostgreSQL knows who calls by the kernel's word (peer).
	DatabaseFile string
	// RootKeys are keys of roots that are offline, where only the issuers under them ended.
	RootKeys []crypto.Signer
	// Passphrase seals the key of a new root that is offline; empty makes one, which is written beside it.
	Passphrase []byte
	// Servers are the members of the database that get new certificates, with their keys, in files of ServerDir: each is its name, as the
	// others know it, and after slashes the other names and addresses that it is reached by.
	Servers   []string
	ServerDir string
	// Pools are more pools to bring back, whose hosts are others than the database's: without a word of who looks after them, they stay as
	// they are, and are named in Brought.Ended.
	Pools []string

	work int // of sealing, as Options.RecoveryWork has it: nothing but a test sets it
}

// Brought says what an authority came back with.
type Brought struct {
	Administrator string   `json:"administrator"`      // empty where the directory has no place for his identity
	Kept          bool     `json:"administrator_kept"` // his identity is a good one, and stays
	Pools         []string `json:"pools"`              // that have a new issuer
	NewRoots      []string `json:"new_roots"`          // of them, those with a new root
	Files         []string `json:"files"`              // that were written
	TLSRemoved    bool     `json:"tls_removed"`        // the node's TLS certificate was no good one
	Offline       []string `json:"offline"`            // of them, those that belong off this machine
	LoginLeft     string   `json:"login_left"`         // why the login that the database's URL names was left as it is
	Ended         []string `json:"ended"`              // pools whose issuer has ended and that nobody asked to bring back
	AgentsJoin    bool     `json:"agents_join_again"`
}

// RescueExpired brings an authority back whose own certificates have ended, all of them or some: issuers and roots of identities and of
// the pools of PostgreSQL and of etcd, the node's TLS certificate, the administrator's, this node's login at PostgreSQL, and its servers'.
// It needs the node's key, and so may be run by who runs the node, or root; nobody else is let in by it. Whoever has that key could issue
// all of this anyway, and the audit shows it.
//
// It may be cut anywhere and run again: each step looks first whether what it would make is there and good. Run once more on an authority
// of which nothing has ended, it issues nothing.
func RescueExpired(ctx context.Context, o ExpiredOptions) (*Brought, error) {
	config, err := o.Dir.Load()
	if err != nil {
		return nil, err
	}
	if o.DatabaseFile != "" {
		if config.DatabaseFile == "" {
			return nil, fault.New(fault.Invalid, "node.yaml names no PostgreSQL, and SQLite needs no other way in")
		}
		config.DatabaseFile, config.ReadDatabaseFile = o.DatabaseFile, ""
	}
	if err := takeLogin(o.Dir, config.Name); err != nil { // one that was cut there has a name and a certificate that are no pair
		return nil, err
	}
	s, err := Open(ctx, o.Dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, o.wayIn(config, err)
	}
	done := &Brought{}
	if err = s.ready(ctx); err == nil {
		err = o.bring(ctx, s, done)
	}
	if end := s.Close(); err == nil {
		err = end
	}
	if err != nil {
		return nil, err
	}
	return done, nil
}

// wayIn says which door is left where the one that node.yaml names is shut by certificates: by those of PostgreSQL, or by those of etcd,
// without which Patroni starts none.
func (o *ExpiredOptions) wayIn(config *datadir.Config, err error) error {
	cause := deepest(err)
	text := strings.ToLower(cause)
	certificates := strings.Contains(text, "certificate") || strings.Contains(text, "tls") || strings.Contains(text, "ssl")
	if config.DatabaseFile == "" || o.DatabaseFile != "" || !certificates && !fault.Is(err, fault.Unavailable) {
		return err
	}
	said := "the database cannot be reached: %s"
	if certificates {
		said = "the database does not let this node in by TLS: %s"
	}
	return fault.New(fault.Unavailable, said, cause).
		WithHint("its Unix socket needs no certificate: on the machine of the primary, or of the member that Patroni does not start any more, write " +
			"postgres:///NAME?host=/var/run/postgresql&user=OWNER into a file of mode 0600, and name it by --database-file; pg_hba.conf lets that user in by a " +
			"line such as: local NAME OWNER peer map=chancery; docs/move-and-rescue.md has all steps for a cluster")
}

// deepest is what an error says at its root, which a refusal for operators leaves out.
func deepest(err error) string {
	for {
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			if inner := e.Unwrap(); inner != nil {
				err = inner
				continue
			}
		case interface{ Unwrap() []error }:
			if inner := e.Unwrap(); len(inner) > 0 {
				err = inner[0]
				continue
			}
		}
		return err.Error()
	}
}

// overlap is more than a new root is dated back by, and less than any root's is made ahead of the end of another's by.
const overlap = time.Hour

func (o *ExpiredOptions) bring(ctx context.Context, s *Services, done *Brought) error {
	by, now := access.System(s.Audit.Node()), time.Now()
	if err := s.DB.CheckClock(now); err != nil {
		return err
	}
	if err := o.check(ctx, s); err != nil {
		return err
	}
	// First, so that a rescue that is cut short is known of too; what it did is in the events of each step.
	if err := s.recordRescue(ctx, by, now, map[string]any{"begins": true, "servers": o.Servers, "root_keys": len(o.RootKeys)}); err != nil {
		return err
	}
	for _, name := range append([]string{pool.Identity, DatabasePool, ControlPool}, o.Pools...) {
		if err := o.revive(ctx, s, by, name, done, now); err != nil {
			return err
		}
	}
	if err := s.listEnded(ctx, done, now); err != nil {
		return err
	}
	if err := o.renewAdministrator(ctx, s, by, done, now); err != nil {
		return err
	}
	if err := o.dropTLS(ctx, s, done, now); err != nil {
		return err
	}
	for _, step := range []func(context.Context, *Services, access.Principal, *Brought, time.Time) error{o.renewLogin, o.renewNamedLogin, o.certifyServers} {
		if err := step(ctx, s, by, done, now); err != nil {
			return err
		}
	}
	roots, err := s.identityRoots(ctx, o.Dir, now, done)
	if err != nil {
		return err
	}
	if err := s.recordRescue(ctx, by, now, done); err != nil || roots == nil {
		return err
	}
	return keyfile.ReplaceBeside(o.Dir.IdentityRoot(), roots, 0o644)
}

// listEnded names the pools that go without an issuer still.
func (s *Services) listEnded(ctx context.Context, done *Brought, now time.Time) error {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	for _, i := range issuers {
		if i.Default && i.Certificate != nil && !now.Before(i.Certificate.NotAfter) {
			done.Ended = append(done.Ended, i.Pool)
		}
	}
	return nil
}

// renewAdministrator gives an administrator a new identity in the data directory, where the one that is there is no good one. A directory
// without a place for it stays so: a clone never had one, and from elsewhere it was taken away on purpose.
func (o *ExpiredOptions) renewAdministrator(ctx context.Context, s *Services, by access.Principal, done *Brought, now time.Time) error {
	if _, err := os.Stat(filepath.Dir(o.Dir.AdminKey())); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	admin, err := s.administrator(ctx, by)
	if err != nil {
		return err
	}
	done.Administrator = admin.Name
	if pair, err := adminPair(o.Dir); err == nil {
		if issuer := s.signerOf(ctx, pair.Leaf, pool.Identity, now); issuer != nil && s.Identity.Good(ctx, issuer.ID, pair.Leaf.SerialNumber) == nil {
			done.Kept = true
			return nil
		}
	}
	done.Files = append(done.Files, o.Dir.AdminCert(), o.Dir.AdminKey())
	return enrolInto(ctx, s, by, o.Dir, admin, keyfile.ReplaceBeside)
}

// dropTLS takes the node's TLS certificate away where it is not good any more: the node makes another when it starts and finds none.
func (o *ExpiredOptions) dropTLS(ctx context.Context, s *Services, done *Brought, now time.Time) error {
	if text, err := keyfile.ReadSecret(o.Dir.TLS(), keyfile.MaxFile); err == nil {
		defer clear(text)
		if s.stands(ctx, text, text, pool.Identity, nil, now) {
			return nil
		}
	}
	err := os.Remove(o.Dir.TLS())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	done.TLSRemoved = err == nil
	return err
}

func (s *Services) recordRescue(ctx context.Context, by access.Principal, now time.Time, detail any) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "authority.rescue", Object: by.Name, Detail: detail})
	})
}

func (o *ExpiredOptions) revive(ctx context.Context, s *Services, by access.Principal, name string, done *Brought, now time.Time) error {
	r, err := s.Pools.Revive(ctx, by, name, &rootKeys{o, done}, now)
	if fault.Is(err, fault.NotFound) && (name == DatabasePool || name == ControlPool) {
		return nil // not every authority has them
	}
	if r == nil || err != nil {
		return err
	}
	done.Pools = append(done.Pools, name)
	if r.Root == nil {
		return nil
	}
	done.NewRoots = append(done.NewRoots, r.Root.Name)
	return nil
}

// rootKeys are the keys of offline roots: those that were named, and those that this or an earlier run sealed into files of offline.
type rootKeys struct {
	o    *ExpiredOptions
	done *Brought
}

func (k *rootKeys) file(root string) string { return filepath.Join(k.o.Dir.Offline(), root+".key") }

func (k *rootKeys) Find(root *ca.Issuer) (crypto.Signer, error) {
	for _, key := range k.o.RootKeys {
		if keyfile.CheckPair(key.Public(), root.Certificate) == nil {
			return key, nil
		}
	}
	key, err := k.open(root.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return key, err
}

// open opens a file that an earlier run wrote and that was not taken away yet: by the passphrase that was given, or by the one beside it.
func (k *rootKeys) open(root string) (crypto.Signer, error) {
	text, err := os.ReadFile(k.file(root))
	if err != nil {
		return nil, err
	}
	passphrase := k.o.Passphrase
	if len(passphrase) == 0 {
		if passphrase, err = os.ReadFile(k.file(root) + ".passphrase"); err != nil {
			return nil, fault.New(fault.Conflict, "%s is there, and no passphrase that opens it", k.file(root)).
				WithHint("name its passphrase by --passphrase-file; or take the file away, if nobody has that passphrase")
		}
		passphrase = bytes.TrimRight(passphrase, "\r\n")
		k.told(k.file(root) + ".passphrase")
	}
	key, err := keys.OpenOffline(text, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.file(root), err)
	}
	k.told(k.file(root))
	return key, nil
}

func (k *rootKeys) told(file string) {
	if !slices.Contains(k.done.Offline, file) {
		k.done.Offline = append(k.done.Offline, file)
	}
}

// Make seals the key into its file as init does, before anybody hears of it: a root whose key nobody has can be given no issuer ever again.
func (k *rootKeys) Make(root string) (crypto.Signer, error) {
	if key, err := k.open(root); !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := keyfile.MkdirBeside(k.o.Dir.Offline(), 0o700); err != nil {
		return nil, err
	}
	key, err := keyfile.Generate(keyfile.ECDSA, 0)
	if err != nil {
		return nil, err
	}
	passphrase := k.o.Passphrase
	if len(passphrase) == 0 {
		passphrase = newPassphrase()
		// One that a run before wrote, and then no key, opens nothing.
		if err := keyfile.ReplaceBeside(k.file(root)+".passphrase", append(bytes.Clone(passphrase), '\n'), 0o600); err != nil {
			return nil, err
		}
		k.told(k.file(root) + ".passphrase")
	}
	sealed, err := sealOffline(key, passphrase, k.o.work)
	if err != nil {
		return nil, err
	}
	if err := keyfile.WriteBeside(k.file(root), sealed, 0o600); err != nil {
		return nil, err
	}
	k.told(k.file(root))
	return key, nil
}

// identityRoots are the roots of identities that have not ended, for the file that commands with --dir pin; nil where it has them. That file
// is the last that a rescue writes, and so knows whether the one that made a new root has come to its end: until then each run says
// that hosts join again, also where one before was cut, and no later one does.
func (s *Services) identityRoots(ctx context.Context, dir datadir.Dir, now time.Time, done *Brought) ([]byte, error) {
	roots, err := s.Identity.RootCertificates(ctx)
	if err != nil {
		return nil, err
	}
	good, again := heardOf(roots, now)
	if len(good) == 0 {
		return nil, fault.New(fault.Conflict, "every root of identities has ended")
	}
	text := keyfile.EncodeCertificates(good...)
	there, err := keyfile.ReadFile(dir.IdentityRoot(), keyfile.MaxFile)
	if err == nil && bytes.Equal(there, text) {
		return nil, nil
	}
	// One that is not there, or holds something else, says nothing of runs before.
	before, _ := keyfile.ParseCertificates(there)
	done.AgentsJoin = again && !slices.ContainsFunc(before, func(c *x509.Certificate) bool { return slices.ContainsFunc(good, c.Equal) })
	done.Files = append(done.Files, dir.IdentityRoot())
	return text, nil
}

// heardOf is which of the roots are good, and whether hosts can have heard of none of them: they do while the one before is good.
func heardOf(roots []*x509.Certificate, now time.Time) (good []*x509.Certificate, again bool) {
	var begun, ended time.Time // of the first that is good, and of the last that is not
	for _, c := range roots {
		if !now.Before(c.NotAfter) {
			if c.NotAfter.After(ended) {
				ended = c.NotAfter
			}
			continue
		}
		if len(good) == 0 || c.NotBefore.Before(begun) {
			begun = c.NotBefore
		}
		good = append(good, c)
	}
	return good, !ended.IsZero() && begun.Add(overlap).After(ended)
}
