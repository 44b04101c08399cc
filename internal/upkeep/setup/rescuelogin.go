package setup

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
)

// namedLogin is a login at the database as its URL names it, in files. Whose word that URL is matters where root runs the rescue: who writes
// it could name any file of the machine.
type namedLogin struct {
	file             string // of the URL
	owner            int    // the user whose file that is
	cert, key, roots *keyfile.Place
	text             []byte // the roots that are to be written; nil where those that are there suffice
	known            bool   // that there are roots of the pool
}

// renewNamedLogin certifies anew what the node's URL names itself, in the files that it names: the first node of a cluster logs in as
// a host of the pool, by what its agent places, and neither that agent nor the node could begin before the other has. A certificate that
// is not of the pool is somebody else's affair. Where it cannot be done it is left and told of, since the members of the database, which
// come after, do without.
func (o *ExpiredOptions) renewNamedLogin(ctx context.Context, s *Services, by access.Principal, done *Brought, now time.Time) error {
	if err := o.tryNamedLogin(ctx, s, by, done, now); err != nil {
		done.LoginLeft = err.Error()
		if refused := (*fault.Error)(nil); errors.As(err, &refused) && refused.Hint != "" {
			done.LoginLeft += " (" + refused.Hint + ")"
		}
	}
	return nil
}

func (o *ExpiredOptions) tryNamedLogin(ctx context.Context, s *Services, by access.Principal, done *Brought, now time.Time) error {
	n := &namedLogin{}
	defer n.close()
	if named, err := o.openNamedLogin(n); err != nil || !named {
		return err
	}
	old, all, err := certificatesIn(n.cert)
	if err != nil {
		return fmt.Errorf("the certificate that %s names: %w", n.file, err)
	}
	if ours, err := s.ofPool(ctx, all[0], DatabasePool); err != nil || !ours {
		return err
	}
	if !slices.Contains(all[0].ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return fault.New(fault.Invalid, "the certificate that %s names, %s, is not a client's", n.file, n.cert.Path())
	}
	var secret []byte
	if n.key.Taken() {
		// Who may read it is libpq's affair, which lets a group.
		if secret, err = n.key.Read(keyfile.MaxFile); err != nil {
			return fmt.Errorf("the key that %s names: %w", n.file, err)
		}
		defer clear(secret)
	}
	if err := s.nameRoots(ctx, n, now); err != nil {
		return fmt.Errorf("the roots that %s names: %w", n.file, err)
	}
	stands := s.stands(ctx, secret, old, DatabasePool, nil, now)
	if err := n.mayReplace(old, secret, stands); err != nil {
		return err
	}
	if n.text != nil {
		err := n.roots.Prepare(0o644)
		if err == nil {
			err = n.roots.Fill(n.text)
		}
		if err != nil {
			return fmt.Errorf("the roots that %s names: %w", n.file, err)
		}
	}
	if !stands {
		order := ca.Order{Pool: DatabasePool, Profile: loginProfile, Subject: cert.CommonName(all[0].Subject.CommonName).String()}
		if err := certify(ctx, s, asOperator(by), order, n.cert, n.key, done); err != nil {
			return fmt.Errorf("certify the node's login, %s: %w", n.cert.Path(), err)
		}
	}
	if n.text == nil {
		return nil
	}
	done.Files = append(done.Files, n.roots.Path())
	return n.roots.Put()
}

// openNamedLogin opens the places that the URL names; it reports whether it names a certificate and a key, in files of their own.
func (o *ExpiredOptions) openNamedLogin(n *namedLogin) (named bool, err error) {
	config, err := o.Dir.Load()
	if err != nil || config.DatabaseFile == "" {
		return false, err
	}
	n.file = o.Dir.Within(config.DatabaseFile)
	text, owner, err := keyfile.ReadOwned(n.file, keyfile.MaxSecret)
	if err != nil {
		return false, fmt.Errorf("read database URL: %w", err)
	}
	defer clear(text)
	n.owner = owner
	u, err := url.Parse(strings.TrimSpace(string(text)))
	if err != nil {
		return false, fault.New(fault.Invalid, "%s holds no URL", n.file)
	}
	query := u.Query()
	path, key, roots := query.Get("sslcert"), query.Get("sslkey"), query.Get("sslrootcert")
	if path == "" || key == "" || path == key {
		return false, nil
	}
	if roots == "system" { // which is no file
		roots = ""
	}
	for _, one := range []struct {
		what, path string
		place      **keyfile.Place
	}{{"certificate", path, &n.cert}, {"key", key, &n.key}, {"roots", roots, &n.roots}} {
		if one.path == "" {
			continue
		}
		if *one.place, err = keyfile.OpenPlace(one.path); err != nil {
			return false, fmt.Errorf("the %s that %s names: %w", one.what, n.file, err)
		}
	}
	if n.cert.Is(n.key) || n.roots != nil && (n.roots.Is(n.key) || n.roots.Is(n.cert)) {
		return false, fault.New(fault.Conflict, "%s names one file for two things; certificate, key and roots in files of their own would pass", n.file)
	}
	return true, nil
}

func (n *namedLogin) close() {
	for _, p := range []*keyfile.Place{n.cert, n.key, n.roots} {
		if p != nil {
			p.Close()
		}
	}
}

// mayReplace refuses, where root runs the rescue, to write what the URL names by somebody's word who could not write it himself: it must be
// his, or what lies there must be what it is named for. That the certificate is of the pool was seen before.
func (n *namedLogin) mayReplace(cert, key []byte, stands bool) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if !stands {
		_, err := tls.X509KeyPair(cert, key)
		if err := n.may(n.key, err == nil, "the key of the certificate "+n.cert.Path()); err != nil {
			return err
		}
		if err := n.may(n.cert, err == nil || n.owner == 0, "the certificate of the key "+n.key.Path()); err != nil {
			return err
		}
	}
	if n.text != nil {
		return n.may(n.roots, n.known, "a file with roots of the database")
	}
	return nil
}

func (n *namedLogin) may(p *keyfile.Place, is bool, what string) error {
	switch {
	case is, n.owner == 0 && !p.Taken(), n.owner != 0 && n.owner == p.Owner():
		return nil
	case !p.Taken():
		return fault.New(fault.Denied, "%s is named by %s, whose owner is user %d, and is to be made in a directory of user %d, which root does not do for him",
			p.Path(), n.file, n.owner, p.Owner()).WithHint("install -o %d -m 0600 /dev/null %s, then run this again", n.owner, p.Path())
	case n.owner == 0:
		return fault.New(fault.Denied, "%s, which %s names, is not %s, and is not replaced", p.Path(), n.file, what).
			WithHint("see what it is, move it away, and run this again")
	}
	return fault.New(fault.Denied, "%s is user %d's and not %s; %s, whose owner is user %d, names it, and root does not replace it for him",
		p.Path(), p.Owner(), what, n.file, n.owner).WithHint("where it is the login's own: chown %d %s, then run this again", n.owner, p.Path())
}

// certificatesIn reads what lies in a place.
func certificatesIn(p *keyfile.Place) (text []byte, all []*x509.Certificate, err error) {
	if text, err = p.Read(keyfile.MaxFile); err != nil {
		return nil, nil, err
	}
	if all, err = keyfile.ParseCertificates(text); err != nil {
		return text, nil, fmt.Errorf("%s: %w", p.Path(), err)
	}
	if len(all) == 0 {
		return text, nil, fault.New(fault.Invalid, "%s holds no certificate", p.Path())
	}
	return text, all, nil
}

// nameRoots finds whether the file that the URL names for the servers' roots is to be written: where it has some of the pool's and lacks
// one, or has none at all. It looks at the file alone, so that a run which was cut before it is made good by the next. Other roots are
// somebody else's affair: a file of those alone is left, and beside the pool's they stay.
func (s *Services) nameRoots(ctx context.Context, n *namedLogin, now time.Time) error {
	if n.roots == nil {
		return nil
	}
	var there, others []*x509.Certificate
	fresh := !n.roots.Taken()
	if !fresh {
		text, all, err := certificatesIn(n.roots)
		if fresh = text != nil && len(bytes.TrimSpace(text)) == 0; err != nil && !fresh {
			return err
		}
		there = all
	}
	for _, c := range there {
		ours, err := s.ofPool(ctx, c, DatabasePool)
		if err != nil {
			return err
		}
		if !ours {
			others = append(others, c)
		}
	}
	n.known = len(others) < len(there)
	if !fresh && !n.known {
		return nil
	}
	good, err := s.goodRoots(ctx, DatabasePool, now)
	if err != nil {
		return err
	}
	if fresh || slices.ContainsFunc(good, func(c *x509.Certificate) bool { return !slices.ContainsFunc(there, c.Equal) }) {
		n.text = keyfile.EncodeCertificates(append(good, others...)...)
	}
	return nil
}
