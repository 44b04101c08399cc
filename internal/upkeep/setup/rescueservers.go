package setup

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/clone"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/upkeep/datadir"
)

// ControlPool is the pool of what etcd and Patroni show, in which no node is: whoever is let in there rules the database's machines. An
// authority whose members were set up without it has them in DatabasePool.
const ControlPool = ca.ControlPool

// spare is what must be left of a certificate's life for it to be kept: enough for an operator to bring the rest back.
const spare = 24 * time.Hour

// signerOf is the issuer of a pool that signed a certificate which is good for a while yet; nil where there is none.
func (s *Services) signerOf(ctx context.Context, c *x509.Certificate, pool string, now time.Time) *ca.Issuer {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil || now.Add(spare).After(c.NotAfter) {
		return nil
	}
	for _, i := range issuers {
		if i.Pool == pool && i.State == ca.IssuerActive && i.Certificate != nil && now.Before(i.Certificate.NotAfter) && c.CheckSignatureFrom(i.Certificate) == nil {
			return i
		}
	}
	return nil
}

// stands reports whether a key and a certification path, as files hold them, need no successors: what a run before made, or what has
// not ended.
func (s *Services) stands(ctx context.Context, key, path []byte, pool string, names []string, now time.Time) bool {
	pair, err := tls.X509KeyPair(path, key)
	if err != nil {
		return false
	}
	i := s.signerOf(ctx, pair.Leaf, pool, now)
	if i == nil {
		return false
	}
	found, err := s.CA.Find(ctx, access.System(s.Keys.Self()), ca.Ref{Issuer: i.ID, Serial: pair.Leaf.SerialNumber})
	if err != nil || found.State != ca.Valid {
		return false
	}
	return !slices.ContainsFunc(names, func(name string) bool {
		return pair.Leaf.VerifyHostname(strings.TrimPrefix(strings.TrimPrefix(name, "dns:"), "ip:")) != nil
	})
}

// adminPair is the identity of the administrator in the data directory.
func adminPair(dir datadir.Dir) (tls.Certificate, error) {
	return tls.LoadX509KeyPair(dir.AdminCert(), dir.AdminKey())
}

// renewLogin certifies this node's own login at PostgreSQL anew, where it has one that has ended.
func (o *ExpiredOptions) renewLogin(ctx context.Context, s *Services, _ access.Principal, done *Brought, now time.Time) error {
	role, err := o.Dir.DatabaseRole()
	if err != nil || role == "" {
		return err
	}
	if pair, err := keyfile.ReadSecret(o.Dir.DatabaseLogin(), keyfile.MaxFile); err == nil {
		defer clear(pair)
		if role == LoginRole(s.Keys.Self()) && s.stands(ctx, pair, pair, DatabasePool, nil, now) {
			return nil
		}
	}
	certify := func(ctx context.Context, csr string) (clone.Login, error) {
		return s.openLogin(ctx, s.Keys.Self(), csr)
	}
	into := o.Dir
	if role != LoginRole(s.Keys.Self()) { // name and certificate change together, and PostgreSQL lets nobody in by one of them
		into = o.Dir.NextDatabaseLogin()
	}
	if made, err := ownLogin(ctx, into, certify); err != nil || !made {
		return err
	}
	if err := takeLogin(o.Dir, s.Keys.Self()); err != nil {
		return err
	}
	done.Files = append(done.Files, o.Dir.DatabaseLogin(), o.Dir.DatabaseRoots())
	return nil
}

// takeLogin takes the login that was made for a node while its directory has that of another name, and finishes where that was cut short.
func takeLogin(dir datadir.Dir, node string) error {
	have, err := dir.DatabaseRole()
	if err != nil || have == "" || have == LoginRole(node) {
		return err
	}
	if next, err := dir.NextDatabaseLogin().DatabaseRole(); err != nil || next != LoginRole(node) {
		return err
	}
	return dir.TakeDatabaseLogin()
}

// ownLogin certifies a new key for this node's own login at PostgreSQL, and keeps both in a data directory. It makes none where the
// authority has no pool for logins.
func ownLogin(ctx context.Context, dir datadir.Dir, certify func(ctx context.Context, csr string) (clone.Login, error)) (made bool, err error) {
	text, csr, err := newRequest()
	if err != nil {
		return false, err
	}
	defer clear(text)
	login, err := certify(ctx, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})))
	if err != nil || login.Role == "" {
		return false, err
	}
	return true, dir.KeepDatabaseLogin(login.Role, text, login.Certificate, login.Roots)
}

// ofPool reports whether an issuer of the pool signed a certificate, ended or not.
func (s *Services) ofPool(ctx context.Context, c *x509.Certificate, pool string) (bool, error) {
	issuers, err := s.CA.Issuers(ctx)
	return slices.ContainsFunc(issuers, func(i *ca.Issuer) bool {
		return i.Pool == pool && i.Certificate != nil && c.CheckSignatureFrom(i.Certificate) == nil
	}), err
}

// asOperator is the node as an administrator: as a node it would have no host's name.
func asOperator(by access.Principal) access.Principal {
	return access.Principal{ID: by.ID, Name: by.Name, Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
}

// check looks at what an operator asked for before anything is changed.
func (o *ExpiredOptions) check(ctx context.Context, s *Services) error {
	pools := o.Pools
	if len(o.Servers) > 0 {
		pools = append(slices.Clone(pools), DatabasePool)
	}
	for _, name := range pools {
		if _, err := s.Pools.Pool(ctx, name); err != nil {
			return err
		}
	}
	return checkServers(o.Servers)
}

// certifyServers makes keys and certificates for the members of the database, for the operator to put there: their agents cannot ask for any
// before the node is back, and the node does not come back before they have some.
func (o *ExpiredOptions) certifyServers(ctx context.Context, s *Services, by access.Principal, done *Brought, now time.Time) error {
	if len(o.Servers) == 0 {
		return nil
	}
	control := ControlPool
	if _, err := s.Pools.Pool(ctx, control); fault.Is(err, fault.NotFound) {
		control = DatabasePool
	} else if err != nil {
		return err
	}
	if err := os.MkdirAll(o.ServerDir, 0o700); err != nil {
		return err
	}
	for _, server := range o.Servers {
		called := strings.Split(server, "/")
		var names []string
		for _, name := range called {
			names = append(names, generalName(name))
		}
		for _, one := range []struct {
			suffix string
			order  ca.Order
		}{
			{"", ca.Order{Pool: DatabasePool, Profile: "server", Names: names}},                                            // PostgreSQL's
			{"-client", ca.Order{Pool: DatabasePool, Profile: loginProfile, Subject: cert.CommonName(called[0]).String()}}, // by which it and Patroni log in at the others
			{"-peer", ca.Order{Pool: control, Profile: "peer", Names: names}},                                              // etcd's and Patroni's
		} {
			base := filepath.Join(o.ServerDir, called[0]+one.suffix)
			if err := o.certifyOne(ctx, s, by, one.order, base, done, now); err != nil {
				return fmt.Errorf("certify the server %s (profile %s): %w", server, one.order.Profile, err)
			}
		}
	}
	if err := s.writeRoots(ctx, DatabasePool, filepath.Join(o.ServerDir, "roots.crt"), now, done); err != nil {
		return err
	}
	if err := s.writeRoots(ctx, control, filepath.Join(o.ServerDir, "peer-roots.crt"), now, done); err != nil {
		return err
	}
	return o.packMembers(done)
}

// certifyOne makes a key and has it certified, where no run before has.
func (o *ExpiredOptions) certifyOne(ctx context.Context, s *Services, by access.Principal, order ca.Order, base string, done *Brought, now time.Time) error {
	if path, err := keyfile.ReadFile(base+".crt", keyfile.MaxFile); err == nil {
		if key, err := keyfile.ReadSecret(base+".key", keyfile.MaxFile); err == nil {
			defer clear(key)
			if s.stands(ctx, key, path, order.Pool, order.Names, now) {
				done.Files = append(done.Files, base+".key", base+".crt")
				return nil
			}
		}
	}
	certPlace, err := keyfile.OpenPlace(base + ".crt")
	if err != nil {
		return err
	}
	defer certPlace.Close()
	keyPlace, err := keyfile.OpenPlace(base + ".key")
	if err != nil {
		return err
	}
	defer keyPlace.Close()
	return certify(ctx, s, asOperator(by), order, certPlace, keyPlace, done)
}

// certify makes a key, has it certified, and puts both into their places. All that can fail in those is done before anything is issued: each
// run of a rescue that always fails would leave one more certificate whose key nobody has.
func certify(ctx context.Context, s *Services, by access.Principal, order ca.Order, certPlace, keyPlace *keyfile.Place, done *Brought) error {
	text, csr, err := newRequest()
	if err != nil {
		return err
	}
	defer clear(text)
	if err := keyPlace.Prepare(0o600); err != nil {
		return err
	}
	if err := keyPlace.Fill(text); err != nil {
		return err
	}
	if err := certPlace.Prepare(0o644); err != nil {
		return err
	}
	order.CSR = csr
	issued, err := s.CA.Issue(ctx, by, order)
	if err != nil {
		return err
	}
	var path []byte
	for _, der := range identity.Path(issued) {
		path = append(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if err := certPlace.Fill(path); err != nil {
		return err
	}
	done.Files = append(done.Files, keyPlace.Path(), certPlace.Path())
	if err := keyPlace.Put(); err != nil {
		return err
	}
	return certPlace.Put()
}

// goodRoots are the roots of a pool that have not ended.
func (s *Services) goodRoots(ctx context.Context, pool string, now time.Time) (roots []*x509.Certificate, err error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range issuers {
		if i.Pool == pool && i.Root() && i.State == ca.IssuerActive && now.Before(i.Certificate.NotAfter) {
			roots = append(roots, i.Certificate)
		}
	}
	if len(roots) == 0 {
		return nil, fault.New(fault.Conflict, "every root of pool %s has ended", pool)
	}
	return roots, nil
}

// writeRoots writes the roots of a pool that have not ended.
func (s *Services) writeRoots(ctx context.Context, pool, file string, now time.Time, done *Brought) error {
	roots, err := s.goodRoots(ctx, pool, now)
	if err != nil {
		return err
	}
	done.Files = append(done.Files, file)
	text := keyfile.EncodeCertificates(roots...)
	if there, err := os.ReadFile(file); err == nil && bytes.Equal(there, text) {
		return nil
	}
	return keyfile.ReplaceKept(file, text, 0o644)
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
