package setup

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
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
}

// Brought says what an authority came back with.
type Brought struct {
	Administrator string   `json:"administrator"`
	Pools         []string `json:"pools"`     // that have a new issuer
	NewRoots      []string `json:"new_roots"` // of them, those with a new root
	Files         []string `json:"files"`     // that were written
	Offline       []string `json:"offline"`   // of them, those that belong off this machine
	AgentsJoin    bool     `json:"agents_join_again"`
}

// RescueExpired brings an authority back whose own certificates have ended, all of them or some: issuers and roots of identities and of
// the pool of PostgreSQL, the node's TLS certificate, the administrator's, this node's login at PostgreSQL, and its servers'. It needs
// the node's key, and so may be run by who runs the node, or root; nobody else is let in by it. Whoever has that key could issue all
// of this anyway, and the audit shows it.
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
	s, err := Open(ctx, o.Dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, o.wayIn(err)
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

// wayIn says which door is left where the one that node.yaml names is shut by certificates.
func (o *ExpiredOptions) wayIn(err error) error {
	cause := deepest(err)
	text := strings.ToLower(cause)
	if o.DatabaseFile != "" || !strings.Contains(text, "certificate") && !strings.Contains(text, "tls") && !strings.Contains(text, "ssl") {
		return err
	}
	return fault.New(fault.Unavailable, "the database does not let this node in by TLS: %s", cause).
		WithHint("its Unix socket needs no certificate: on the machine of the primary, write postgres:///NAME?host=/var/run/postgresql&user=OWNER into a file of " +
			"mode 0600, and name it by --database-file; pg_hba.conf lets that user in by a line such as: local NAME OWNER peer map=chancery")
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

func (o *ExpiredOptions) bring(ctx context.Context, s *Services, done *Brought) error {
	by, now := access.System(s.Audit.Node()), time.Now()
	if err := s.DB.CheckClock(now); err != nil {
		return err
	}
	// First, so that a rescue that is cut short is known of too; what it did is in the events of each step.
	if err := s.recordRescue(ctx, by, now, map[string]any{"begins": true, "servers": o.Servers, "root_keys": len(o.RootKeys)}); err != nil {
		return err
	}
	for _, name := range []string{pool.Identity, DatabasePool} {
		if err := o.revive(ctx, s, by, name, done, now); err != nil {
			return err
		}
	}
	if err := s.writeIdentityRoots(ctx, o.Dir, now, done); err != nil {
		return err
	}
	admin, err := s.administrator(ctx, by)
	if err != nil {
		return err
	}
	if err := enrolInto(ctx, s, by, o.Dir, admin, keyfile.ReplaceFile); err != nil {
		return err
	}
	done.Administrator = admin.Name
	done.Files = append(done.Files, o.Dir.AdminCert(), o.Dir.AdminKey())
	// The node makes its own anew when it starts and finds none.
	if err := os.Remove(o.Dir.TLS()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.renewLogin(ctx, o.Dir, done); err != nil {
		return err
	}
	if err := o.certifyServers(ctx, s, by, done); err != nil {
		return err
	}
	return s.recordRescue(ctx, by, now, done)
}

func (s *Services) recordRescue(ctx context.Context, by access.Principal, now time.Time, detail any) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "authority.rescue", Object: by.Name, Detail: detail})
	})
}

func (o *ExpiredOptions) revive(ctx context.Context, s *Services, by access.Principal, name string, done *Brought, now time.Time) error {
	r, err := s.Pools.Revive(ctx, by, name, &rootKeys{o, done}, now)
	if fault.Is(err, fault.NotFound) && name == DatabasePool {
		return nil // not every authority has it
	}
	if r == nil || err != nil {
		return err
	}
	done.Pools = append(done.Pools, name)
	if r.Root == nil {
		return nil
	}
	done.NewRoots = append(done.NewRoots, r.Root.Name)
	if name == pool.Identity {
		done.AgentsJoin = true
	}
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
	if err := os.MkdirAll(k.o.Dir.Offline(), 0o700); err != nil {
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
		if err := keyfile.ReplaceFile(k.file(root)+".passphrase", append(bytes.Clone(passphrase), '\n'), 0o600); err != nil {
			return nil, err
		}
		k.told(k.file(root) + ".passphrase")
	}
	sealed, err := keys.SealOffline(key, passphrase)
	if err != nil {
		return nil, err
	}
	if err := keyfile.WriteFile(k.file(root), sealed, 0o600); err != nil {
		return nil, err
	}
	k.told(k.file(root))
	return key, nil
}

// writeIdentityRoots writes the roots of identities that have not ended: what commands with --dir pin.
func (s *Services) writeIdentityRoots(ctx context.Context, dir datadir.Dir, now time.Time, done *Brought) error {
	roots, err := s.Identity.RootCertificates(ctx)
	if err != nil {
		return err
	}
	var good []*x509.Certificate
	for _, c := range roots {
		if now.Before(c.NotAfter) {
			good = append(good, c)
		}
	}
	if len(good) == 0 {
		return fault.New(fault.Conflict, "every root of identities has ended")
	}
	text := keyfile.EncodeCertificates(good...)
	if there, err := os.ReadFile(dir.IdentityRoot()); err == nil && bytes.Equal(there, text) {
		return nil
	}
	done.Files = append(done.Files, dir.IdentityRoot())
	return keyfile.ReplaceFile(dir.IdentityRoot(), text, 0o644)
}

// renewLogin certifies this node's own login at PostgreSQL anew, where it has one.
func (s *Services) renewLogin(ctx context.Context, dir datadir.Dir, done *Brought) error {
	role, err := dir.DatabaseRole()
	if err != nil || role == "" {
		return err
	}
	text, csr, err := newRequest()
	if err != nil {
		return err
	}
	defer clear(text)
	login, err := s.openLogin(ctx, s.Keys.Self(), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})))
	if err != nil || login.Role == "" {
		return err
	}
	done.Files = append(done.Files, dir.DatabaseLogin(), dir.DatabaseRoots())
	return dir.KeepDatabaseLogin(login.Role, text, login.Certificate, login.Roots)
}

// certifyServers makes keys and certificates for the members of the database, for the operator to put there: their agents cannot ask for any
// before the node is back, and the node does not come back before they have some.
func (o *ExpiredOptions) certifyServers(ctx context.Context, s *Services, by access.Principal, done *Brought) error {
	if len(o.Servers) == 0 {
		return nil
	}
	if _, err := s.Pools.Pool(ctx, DatabasePool); err != nil {
		return err
	}
	if err := os.MkdirAll(o.ServerDir, 0o700); err != nil {
		return err
	}
	// Whoever runs this has the node's key; as a node he would have no host's name.
	owner := access.Principal{ID: by.ID, Name: by.Name, Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
	for _, server := range o.Servers {
		called := strings.Split(server, "/")
		var names []string
		for _, name := range called {
			if name == "" || name == "." || name == ".." {
				return fault.New(fault.Invalid, "%q names no server; NAME or NAME/OTHER-NAME/ADDRESS would pass", server)
			}
			names = append(names, generalName(name))
		}
		// What its PostgreSQL and Patroni show to who calls, what its etcd shows to members, and what its Patroni shows to etcd and to others.
		for suffix, order := range map[string]ca.Order{
			"":        {Profile: "server", Names: names},
			"-peer":   {Profile: "peer", Names: names},
			"-client": {Profile: "client", Subject: cert.CommonName(called[0]).String()},
		} {
			if err := o.certifyOne(ctx, s, owner, order, filepath.Join(o.ServerDir, called[0]+suffix), done); err != nil {
				return fmt.Errorf("certify the server %s (profile %s): %w", server, order.Profile, err)
			}
		}
	}
	roots, err := s.DatabaseRoots(ctx)
	if err != nil {
		return err
	}
	file := filepath.Join(o.ServerDir, "roots.crt")
	done.Files = append(done.Files, file)
	return keyfile.ReplaceFile(file, []byte(roots), 0o644)
}

// certifyOne makes a key and has it certified in the pool of the database. What a run before made is replaced.
func (o *ExpiredOptions) certifyOne(ctx context.Context, s *Services, by access.Principal, order ca.Order, base string, done *Brought) error {
	text, csr, err := newRequest()
	if err != nil {
		return err
	}
	defer clear(text)
	order.Pool, order.CSR = DatabasePool, csr
	issued, err := s.CA.Issue(ctx, by, order)
	if err != nil {
		return err
	}
	var path []byte
	for _, der := range identity.Path(issued) {
		path = append(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if err := keyfile.ReplaceFile(base+".key", text, 0o600); err != nil {
		return err
	}
	done.Files = append(done.Files, base+".key", base+".crt")
	return keyfile.ReplaceFile(base+".crt", path, 0o644)
}

// newRequest makes a key, as PEM, and a request for it.
func newRequest() (text, csr []byte, err error) {
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		return nil, nil, err
	}
	if text, err = keyfile.EncodePKCS8(key); err != nil {
		return nil, nil, err
	}
	csr, err = cert.CreateCSR(&cert.CSRTemplate{}, key)
	return text, csr, err
}

// generalName is a server's name as a certificate has it.
func generalName(name string) string {
	if _, err := netip.ParseAddr(name); err == nil {
		return "ip:" + name
	}
	return "dns:" + name
}
