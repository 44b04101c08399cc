package setup

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/base32"
	"encoding/pem"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/identity"
	"chancery/internal/authority/importer"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/datadir"
)

// Options say what authority to make. The zero value of each field has a meaning.
type Options struct {
	Dir          datadir.Dir
	Node         string // name of the first node; empty means node1
	Organization string // in the names of roots and issuers
	Address      string // https://HOST:PORT; empty means the default loopback address
	Listen       string // where the API listens; empty means Address, where it is an IP address, else loopback
	PublicURL    string // prefix of CRL, OCSP and CA URLs in certificates; empty leaves them out
	PublicListen string // where they are served
	Metrics      string // where metrics and health are served
	DatabaseFile string // file with a PostgreSQL URL; empty means SQLite in Dir

	Online      bool // keep the roots' keys in the authority
	Algorithm   keyfile.Algorithm
	PathLen     *int // of the default pool's root
	Constraints []string
	Validity    time.Duration // of the roots
	Outside     bool          // the default pool's issuer waits for an outside root
	Import      *importer.CA  // the default pool's issuer is one that exists already

	// Token is the PKCS #11 URI of the key of the default pool's issuer, where it lies in a token; it names the library and the
	// PIN's file too, which go into node.yaml. TokenHelper is the path of chancery-pkcs11, where it is not found by itself.
	Token       string
	TokenHelper string

	pkcs11 datadir.PKCS11 // what Token says of this node

	// Passphrase seals the offline keys. Empty makes one, which is then written beside them.
	Passphrase []byte
	Logger     *slog.Logger

	// RecoveryWork is what guessing the passphrase of the offline files costs, as keys.Recovery.SealAt and keys.SealOfflineAt have it; 0 is
	// what the command gives, which no flag, setting or variable lessens. Tests that make many authorities do.
	RecoveryWork int
}

// Result says what was made.
type Result struct {
	Dir         datadir.Dir
	Offline     []string // files that belong off this machine
	Passphrase  string   // the file that holds the passphrase that was made; empty where one was given
	CSR         []byte   // PEM; the default pool's request for an outside root
	Fingerprint string   // SHA-256 of the identity root's certificate
	Warnings    []string
}

// Init makes an authority in o.Dir, which must not exist or be empty.
func Init(ctx context.Context, o Options) (*Result, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	final := o.Dir
	staging, err := stagingFor(final)
	if err != nil {
		return nil, err
	}
	o.Dir = staging
	result, err := o.build(ctx)
	if err != nil {
		_ = os.RemoveAll(string(staging))
		return nil, err
	}
	if err := settle(staging, final); err != nil {
		return nil, err
	}
	result.moved(staging, final)
	return result, nil
}

// fill puts in what the options leave open, and refuses what does not go together.
func (o *Options) fill() error {
	if o.Node == "" {
		o.Node = "node1"
	}
	if o.Organization == "" {
		o.Organization = "Chancery"
	}
	if o.Address == "" {
		o.Address = "https://" + datadir.DefaultAPI
	}
	if o.Algorithm == "" {
		o.Algorithm = keyfile.ECDSAP256
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Outside && o.Import != nil {
		return fault.New(fault.Invalid, "an imported CA needs no outside root's signature; ask for one of the two")
	}
	if err := o.fillToken(); err != nil {
		return err
	}
	if o.Listen != "" {
		return nil
	}
	u, err := url.Parse(o.Address)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return fault.New(fault.Invalid, "address %q is not of the form https://HOST:PORT", o.Address)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	o.Listen = net.JoinHostPort("127.0.0.1", port)
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		o.Listen = net.JoinHostPort(u.Hostname(), port)
	}
	return nil
}

// moved changes the paths in the result from where things were made to where they are.
func (r *Result) moved(from, to datadir.Dir) {
	move := func(path string) string { return strings.Replace(path, string(from), string(to), 1) }
	r.Dir, r.Passphrase = to, move(r.Passphrase)
	for i := range r.Offline {
		r.Offline[i] = move(r.Offline[i])
	}
}

// build makes everything in o.Dir.
func (o *Options) build(ctx context.Context) (*Result, error) {
	result := &Result{Dir: o.Dir}
	for _, dir := range []string{filepath.Dir(o.Dir.IdentityRoot()), filepath.Dir(o.Dir.AdminKey()), o.Dir.Offline()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	config, err := o.writeConfig()
	if err != nil {
		return nil, err
	}
	if err := o.passphrase(result); err != nil {
		return nil, err
	}
	nodeKey, err := keys.CreateNodeKey(o.Dir.NodeKey())
	if err != nil {
		return nil, err
	}
	s, err := Open(ctx, o.Dir, config, o.Logger)
	if err != nil {
		return nil, err
	}
	if err := o.fillStore(ctx, s, nodeKey, result); err != nil {
		_ = s.Close()
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, fmt.Errorf("close the store: %w", err)
	}
	return result, nil
}

func (o *Options) writeConfig() (*datadir.Config, error) {
	config := datadir.Config{Name: o.Node, Address: o.Address, DatabaseFile: o.DatabaseFile}
	config.Listen = datadir.Listen{API: o.Listen, Public: o.PublicListen, Metrics: o.Metrics}
	config.PKCS11 = o.pkcs11
	if config.DatabaseFile != "" {
		absolute, err := filepath.Abs(config.DatabaseFile)
		if err != nil {
			return nil, err
		}
		config.DatabaseFile = absolute
	}
	if err := o.Dir.Create(config); err != nil {
		return nil, err
	}
	return o.Dir.Load()
}

// passphrase makes one where none was given. It is written beside the keys that it opens, because a passphrase that nobody
// knows is worse; the operator is told to take all of the directory away, and doctor goes on reminding of it.
func (o *Options) passphrase(result *Result) error {
	if len(o.Passphrase) > 0 {
		return nil
	}
	o.Passphrase = newPassphrase()
	result.Passphrase = filepath.Join(o.Dir.Offline(), "passphrase")
	if err := keyfile.WriteFile(result.Passphrase, append(slices.Clone(o.Passphrase), '\n'), 0o600); err != nil {
		return fmt.Errorf("write passphrase: %w", err)
	}
	result.Offline = append(result.Offline, result.Passphrase)
	return nil
}

// newPassphrase is 160 random bits in groups of four letters and digits.
func newPassphrase() []byte {
	raw := make([]byte, 20)
	rand.Read(raw)
	text := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw))
	var groups []string
	for i := 0; i < len(text); i += 4 {
		groups = append(groups, text[i:i+4])
	}
	return []byte(strings.Join(groups, "-"))
}

// fillStore makes the rows: settings, recipients, keys, issuers, the first administrator.
func (o *Options) fillStore(ctx context.Context, s *Services, nodeKey *keys.NodeKey, result *Result) error {
	if err := schema.Migrate(ctx, s.DB); err != nil {
		return err
	}
	if err := s.DB.LearnClock(ctx); err != nil {
		return err
	}
	recovery, err := keys.GenerateRecovery()
	if err != nil {
		return err
	}
	admin, err := o.firstRows(ctx, s, nodeKey, recovery)
	if err != nil {
		return err
	}
	if err := o.offline(result, "recovery.age", func() ([]byte, error) { return sealRecovery(recovery, o.Passphrase, o.RecoveryWork) }); err != nil {
		return err
	}
	system := access.System(o.Node)
	if err := o.auditKey(ctx, s, system, result); err != nil {
		return err
	}
	identities, err := o.pool(ctx, s, system, result, pool.Spec{
		Name: pool.Identity, Organization: o.Organization, Algorithm: o.Algorithm, Validity: o.Validity, Online: o.Online,
	})
	if err != nil {
		return err
	}
	if err := o.defaultPool(ctx, s, system, result); err != nil {
		return err
	}
	if err := s.tellOfTokens(ctx, result); err != nil {
		return err
	}
	above := identities.Root.Certificate
	result.Fingerprint = fingerprint(above.Raw)
	if err := keyfile.WriteFile(o.Dir.IdentityRoot(), keyfile.EncodeCertificates(above), 0o644); err != nil {
		return err
	}
	if o.PublicURL == "" {
		result.Warnings = append(result.Warnings, "no --public-url was given: certificates name no CRL and no OCSP responder until "+
			"chancery settings set public_url=http://NAME")
	}
	return adminIdentity(ctx, s, system, o.Dir, admin)
}

// firstRows makes what everything else needs, in one transaction.
func (o *Options) firstRows(ctx context.Context, s *Services, nodeKey *keys.NodeKey, recovery *keys.Recovery) (access.Principal, error) {
	first := settings.Defaults()
	first.Authority, first.Organization, first.Address, first.PublicURL = db.NewID(), o.Organization, o.Address, o.PublicURL
	now := time.Now()
	actor := access.System(o.Node).Actor()
	var admin access.Principal
	err := s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if err := s.Settings.Create(ctx, tx, first, actor, now); err != nil {
			return err
		}
		for _, r := range []keys.Recipient{
			{ID: "recovery", Kind: keys.KindRecovery, Name: "recovery key", PublicKey: recovery.Public(), Created: now},
			nodeRecipient(o.Node, nodeKey, now),
		} {
			if err := s.Keys.AddRecipient(ctx, tx, r, actor, now); err != nil {
				return err
			}
		}
		admin, err = s.Access.Bootstrap(ctx, tx, "admin", actor, now)
		return err
	})
	return admin, err
}

func nodeRecipient(node string, key *keys.NodeKey, now time.Time) keys.Recipient {
	return keys.Recipient{
		ID: node, Kind: keys.KindNode, Name: node, PublicKey: key.Public(), Created: now,
		Subsystems: []keys.Subsystem{keys.SubsystemCA, keys.SubsystemOCSP},
	}
}

// auditKey makes the key that signs audit checkpoints and backups. Its public half goes with what is kept offline too: restore
// asks for it.
func (o *Options) auditKey(ctx context.Context, s *Services, by access.Principal, result *Result) error {
	key, err := keyfile.Generate(keyfile.Ed25519, 0)
	if err != nil {
		return err
	}
	sealed, err := s.Keys.Seal(ctx, key, keys.Audit, "authority")
	if err != nil {
		return err
	}
	err = s.DB.Tx(ctx, func(tx *db.Tx) error { return s.Keys.Insert(ctx, tx, sealed, by.Actor(), time.Now()) })
	if err != nil {
		return err
	}
	if err := s.writeAuditKey(ctx, o.Dir); err != nil {
		return err
	}
	return o.offline(result, "audit-key.pem", func() ([]byte, error) { return s.auditKeyPEM(ctx) })
}

// defaultPool makes the pool default: with a root of its own, with a request for an outside one, or with a CA that exists.
func (o *Options) defaultPool(ctx context.Context, s *Services, by access.Principal, result *Result) error {
	spec := pool.Spec{
		Name: pool.Default, Organization: o.Organization, Algorithm: o.Algorithm, Validity: o.Validity, PathLen: o.PathLen,
		Constraints: o.Constraints, Online: o.Online, Token: o.Token,
	}
	switch {
	case o.Import != nil:
		if err := s.Pools.Record(ctx, by, pool.Default, o.Organization); err != nil {
			return err
		}
		_, err := o.Import.Import(ctx, s.CA, by, importer.Into{Name: pool.Default, Pool: pool.Default, Default: true})
		result.Warnings = append(result.Warnings, o.Import.Warnings...)
		return err
	case o.Outside:
		spec.Online = false
		p, err := s.Pools.Add(ctx, by, "", spec)
		if err != nil {
			return err
		}
		result.CSR = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: p.Issuer.CSR})
		return nil
	}
	_, err := o.pool(ctx, s, by, result, spec)
	return err
}

// pool makes a pool with its root here; the key of an offline root goes to a sealed file.
func (o *Options) pool(ctx context.Context, s *Services, by access.Principal, result *Result, spec pool.Spec) (*pool.Pool, error) {
	if spec.Online {
		return s.Pools.Add(ctx, by, "", spec)
	}
	p, key, err := s.Pools.AddOffline(ctx, by, spec)
	if err != nil {
		return nil, err
	}
	return p, o.offline(result, pool.RootName(spec.Name)+".key", func() ([]byte, error) { return o.sealRoot(key, p.Root) })
}

// sealRoot puts the certificate behind the sealed key, so that the file alone tells whose key it is.
func (o *Options) sealRoot(key crypto.Signer, root *ca.Issuer) ([]byte, error) {
	sealed, err := sealOffline(key, o.Passphrase, o.RecoveryWork)
	if err != nil {
		return nil, err
	}
	return append(sealed, keyfile.EncodeCertificates(root.Certificate)...), nil
}

// sealOffline seals a key at that work, or, where it is 0, at what nobody lessens.
func sealOffline(key crypto.Signer, passphrase []byte, work int) ([]byte, error) {
	if work == 0 {
		return keys.SealOffline(key, passphrase)
	}
	return keys.SealOfflineAt(key, passphrase, work)
}

// sealRecovery is sealOffline for the recovery key.
func sealRecovery(recovery *keys.Recovery, passphrase []byte, work int) ([]byte, error) {
	if work == 0 {
		return recovery.Seal(passphrase)
	}
	return recovery.SealAt(passphrase, work)
}

// offline writes a file that belongs off this machine.
func (o *Options) offline(result *Result, name string, content func() ([]byte, error)) error {
	text, err := content()
	if err != nil {
		return err
	}
	path := filepath.Join(o.Dir.Offline(), name)
	if err := keyfile.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	result.Offline = append(result.Offline, path)
	return nil
}

// adminIdentity makes the administrator's key in the data directory and has its certificate issued.
func adminIdentity(ctx context.Context, s *Services, by access.Principal, dir datadir.Dir, admin access.Principal) error {
	return enrolInto(ctx, s, by, dir, admin, keyfile.WriteFile)
}

// enrolInto has the certificate issued before either file is written, so that a refusal leaves both as they were.
func enrolInto(ctx context.Context, s *Services, by access.Principal, dir datadir.Dir, admin access.Principal,
	write func(path string, content []byte, mode fs.FileMode) error) error {
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		return err
	}
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		return err
	}
	defer clear(text)
	csr, err := cert.CreateCSR(&cert.CSRTemplate{}, key)
	if err != nil {
		return err
	}
	issued, err := s.Identity.Enrol(ctx, by, admin, csr, "")
	if err != nil {
		return err
	}
	var path bytes.Buffer
	for _, der := range identity.Path(issued) {
		if err := pem.Encode(&path, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	if err := write(dir.AdminKey(), text, 0o600); err != nil {
		return err
	}
	return write(dir.AdminCert(), path.Bytes(), 0o644)
}
