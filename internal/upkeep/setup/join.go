package setup

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
	"chancery/internal/upkeep/datadir"
)

// JoinOptions say how this machine becomes a node of an authority that is there already.
type JoinOptions struct {
	Dir     datadir.Dir
	Token   string // the text that clone invite made
	Release string // of this program

	Name     string // of the node; empty means this machine's
	Address  string // https://HOST:PORT; where clients reach it
	Listen   string // where the API listens; empty means Address, where it is an IP address, else loopback
	Public   string
	Metrics  string
	TLSNames []string

	DatabaseFile     string // holds the database's URL
	ReadDatabaseFile string // holds the URL of the local standby; may be empty

	// Tokens are the PKCS #11 tokens that this node reaches, each by its URI (RFC 7512) with library and PIN file; where it names a key, the authority must
	// have that one there. ReplicaOf is the serial number under which the authority knows the keys of the one, where it is a copy.
	Tokens      []string
	ReplicaOf   string
	TokenHelper string // path of chancery-pkcs11; empty means as node.yaml without it

	// Waiting is told the fingerprint that an administrator has to compare, once.
	Waiting func(name, fingerprint string)
	Logger  *slog.Logger
}

// askAgain is how often a node that waits asks whether it was approved.
const askAgain = 2 * time.Second

// Join makes the data directory of a new node: it shows the authority its public keys, waits until an administrator has approved them
// and ctx has not ended, and checks that the database is that authority's and gives this node its keys. Its keys are made here and stay
// here. What was cut short goes on with the same keys when it is called again with the same directory and token; until all is well,
// nothing in Dir looks like a node.
func Join(ctx context.Context, o JoinOptions) (*client.CloneJoined, error) {
	token, err := client.ParseCloneToken(strings.TrimSpace(o.Token))
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	config, err := o.config()
	if err != nil {
		return nil, err
	}
	j := &joining{JoinOptions: o, token: token, config: config}
	if err := j.begin(); err != nil {
		return nil, err
	}
	joined, err := j.ask(ctx)
	if err != nil {
		return nil, j.forget(err)
	}
	if err := j.keep(joined); err != nil {
		return nil, err
	}
	if err := j.tryDatabase(ctx, joined); err != nil {
		return nil, err
	}
	return joined, j.settle()
}

// config is the node's node.yaml.
func (o *JoinOptions) config() (datadir.Config, error) {
	c := datadir.Config{
		Name: o.Name, Address: o.Address, TLSNames: o.TLSNames,
		Listen: datadir.Listen{API: o.Listen, Public: o.Public, Metrics: o.Metrics},
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("find this machine's name: %w", err)
		}
		c.Name, _, _ = strings.Cut(strings.ToLower(host), ".")
	}
	if c.Listen.API == "" {
		if u, err := url.Parse(c.Address); err == nil && net.ParseIP(u.Hostname()) != nil {
			c.Listen.API = u.Host
		}
	}
	if o.DatabaseFile == "" {
		return c, fault.New(fault.Invalid, "a node of an authority that has several needs its database: --database-file F, a file (mode 0600) with its URL")
	}
	var err error
	if c.DatabaseFile, err = filepath.Abs(o.DatabaseFile); err != nil {
		return c, err
	}
	if o.ReadDatabaseFile != "" {
		if c.ReadDatabaseFile, err = filepath.Abs(o.ReadDatabaseFile); err != nil {
			return c, err
		}
	}
	if c.PKCS11, err = o.pkcs11(); err != nil {
		return c, err
	}
	if err := c.Filled().Validate(); err != nil {
		return c, err
	}
	if _, _, err := c.DatabaseURLs(o.Dir); err != nil { // before anybody is asked to approve
		return c, err
	}
	return c, nil
}

// joining is a join in progress. What it makes lies in a directory of its own until it is whole; see place.
type joining struct {
	JoinOptions
	token  *client.CloneToken
	config datadir.Config
	at     datadir.Dir
	root   string // of identities: the one that the token names
	node   *keys.NodeKey
	tls    crypto.Signer
	base   crypto.Signer // of the login at the database
}

// begin makes the node's keys, or takes up those of a join that was cut short.
func (j *joining) begin() error {
	if err := j.place(); err != nil {
		return err
	}
	for _, dir := range []string{string(j.at), filepath.Dir(j.at.IdentityRoot()), filepath.Dir(j.at.DatabaseLogin())} {
		if err := keyfile.MkdirBeside(dir, 0o700); err != nil {
			return j.closed(err)
		}
	}
	if err := j.sameToken(); err != nil {
		return err
	}
	_, err := os.Lstat(j.at.NodeKey())
	if errors.Is(err, fs.ErrNotExist) {
		j.node, err = keys.CreateNodeKey(j.at.NodeKey())
	} else {
		j.node, err = keys.LoadNodeKey(j.at.NodeKey())
	}
	if err != nil {
		return err
	}
	if j.tls, err = ownKey(filepath.Join(string(j.at), "tls.key"), j.at.TLS()); err != nil {
		return err
	}
	j.base, err = ownKey(filepath.Join(string(j.at), "database.key"), j.at.DatabaseLogin())
	return err
}

// ownKey reads the key in file, or makes one there. Where the file is gone, as a join that was cut short by an earlier release leaves it, it
// is the one of the pair that was kept before: the authority has certified no other.
func ownKey(file, pair string) (crypto.Signer, error) {
	text, err := os.ReadFile(file)
	if err == nil {
		return keyfile.ParsePrivateKey(text, nil)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := keyOfPair(pair)
	if err == nil && key == nil {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, keyfile.WriteBeside(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// keyOfPair is the key in a file that has its certificate as well; nil where there is no such file.
func keyOfPair(file string) (crypto.Signer, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer clear(text)
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds a key that does not sign", file)
	}
	return key, nil
}

// ask shows the keys and waits for the approval.
func (j *joining) ask(ctx context.Context) (*client.CloneJoined, error) {
	root, err := client.JoinRoots(ctx, j.token.Address, j.token.Fingerprint)
	if err != nil {
		return nil, err
	}
	// One that is there may be of a token before, of another authority: what counts is what this token names.
	if err := keyfile.ReplaceBeside(j.at.IdentityRoot(), []byte(root), 0o644); err != nil {
		return nil, err
	}
	j.root = root
	if err := j.lookAhead(ctx, root); err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(root))
	api, err := client.New(client.Options{Address: j.token.Address, Roots: pool})
	if err != nil {
		return nil, err
	}
	defer api.Close()
	in := client.CloneJoin{
		Secret: j.token.Secret, Name: j.config.Name, Address: j.config.Address, PublicKey: j.node.Public(),
		Release: j.Release, Schema: schema.Newest(), Names: generalNames(j.config),
	}
	if in.CSR, err = cert.ProofOfPossession(j.tls); err != nil {
		return nil, err
	}
	if in.DatabaseCSR, err = cert.ProofOfPossession(j.base); err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(j.tls.Public())
	if err != nil {
		return nil, err
	}
	databaseSPKI, err := x509.MarshalPKIXPublicKey(j.base.Public())
	if err != nil {
		return nil, err
	}
	mine, told := client.CloneFingerprint(in, spki, databaseSPKI), false
	for {
		in.Time = time.Now()
		joined, err := api.JoinClone(ctx, in)
		if err == nil {
			if err := j.taken(); err != nil {
				return nil, err
			}
		}
		switch {
		case err != nil && told && passes(err): // a node is started anew, or another takes over
			joined = nil
		case err != nil:
			return nil, err
		case joined.Fingerprint != mine:
			return nil, fault.New(fault.Conflict, "the authority shows the fingerprint %s, and what this node asks for has %s: do not approve it", joined.Fingerprint, mine).
				WithHint("if this machine asked before, with another address or other names: give those again, or remove %s and join with a new token", string(j.at))
		case joined.State == client.CloneActive:
			return joined, nil
		case joined.State != client.CloneWaiting:
			return nil, fault.New(fault.Denied, "node %s was refused by an administrator", in.Name).
				WithHint("chancery clone invite makes a new token; remove %s first", string(j.at))
		}
		if !told && j.Waiting != nil {
			told = true
			j.Waiting(in.Name, mine)
		}
		select {
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "node %s was not approved while this waited; the same command goes on with the same keys: %w",
				in.Name, context.Cause(ctx)).WithHint("chancery clone approve %s %s", in.Name, mine)
		case <-time.After(askAgain):
		}
	}
}

// passes reports whether an error may be gone when the same is asked again: nothing answered, or a node that cannot do it now.
func passes(err error) bool {
	problem, ok := errors.AsType[*client.Problem](err)
	return !ok || problem.Status >= 500 || problem.Status == http.StatusTooManyRequests
}

// generalNames are the names of the node's TLS certificate that the configuration adds to its address.
func generalNames(c datadir.Config) []string {
	var names []string
	for _, host := range c.TLSNames {
		names = append(names, cert.HostName(host))
	}
	return names
}

// keep writes what the authority gave.
func (j *joining) keep(joined *client.CloneJoined) error {
	der, err := x509.MarshalPKCS8PrivateKey(j.tls)
	if err != nil {
		return err
	}
	identity := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	identity = append(identity, strings.Join(joined.Certificate, "")...)
	files := []struct {
		path string
		text []byte
		mode fs.FileMode
	}{
		{j.at.TLS(), identity, 0o600},
		{j.at.AuditKey(), []byte(joined.AuditKeys), 0o644},
	}
	if joined.DatabaseRole != "" && len(joined.DatabaseCertificate) > 0 {
		key, err := os.ReadFile(filepath.Join(string(j.at), "database.key"))
		if err != nil {
			return err
		}
		defer clear(key)
		if err := j.at.KeepDatabaseLogin(joined.DatabaseRole, key, joined.DatabaseCertificate, joined.DatabaseRoots); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err // of an attempt that was cut short
		}
		if err := keyfile.WriteBeside(f.path, f.text, f.mode); err != nil {
			return err
		}
	}
	return nil
}
