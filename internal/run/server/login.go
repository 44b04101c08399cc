package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// login is the node's own login at PostgreSQL, by a certificate of the pool database. It is renewed at two thirds of its life, with a
// new key, and the roots by which the node knows the servers follow those of the pool. What is new is tried at PostgreSQL before it is
// relied on: where it is refused the old one stays, and the log says why. A node that has none, the first one above all, gets one when
// there is such a pool and its URL leaves it to the node how it logs in; it is used from the next start on.
type login struct {
	dir     datadir.Dir
	config  *datadir.Config
	certify func(ctx context.Context, csr string) (clone.Login, error)
	roots   func(ctx context.Context) (string, error)
	reach   func(ctx context.Context, url string) error
	logger  *slog.Logger
	ends    atomic.Pointer[time.Time] // of the certificate; nil where there is none
}

func (n *node) newLogin() *login {
	l := &login{dir: n.Dir, config: n.config, roots: n.services.DatabaseRoots, reach: db.Reach, logger: n.logger, certify: n.services.Clones.OwnLogin}
	if !n.runs(keys.SubsystemCA) {
		l.certify = func(ctx context.Context, csr string) (clone.Login, error) {
			joined, err := n.ask(ctx, client.CloneIdentity{DatabaseCSR: csr})
			if err != nil {
				return clone.Login{}, err
			}
			return clone.Login{Role: joined.DatabaseRole, Certificate: joined.DatabaseCertificate, Roots: joined.DatabaseRoots}, nil
		}
	}
	return l
}

const (
	// lookAtLogin is how often the login and its roots are looked at, loginAgain how soon after it failed, and lookForLogin how often a node
	// that has none looks whether its URL leaves it to the node by now: whoever takes the owner's login out of it waits for that.
	lookAtLogin  = 10 * time.Minute
	loginAgain   = time.Minute
	lookForLogin = 5 * time.Second
)

// Run keeps the login good until ctx ends.
func (l *login) Run(ctx context.Context) error {
	failing := ""
	return again(ctx, 0, func(ctx context.Context) time.Duration {
		err := l.look(ctx, time.Now())
		if err == nil || ctx.Err() != nil {
			failing = ""
			return l.pause()
		}
		if said := err.Error(); said != failing {
			l.logger.Error("the node's login at the database is not as it should be", "error", err)
			failing = said
		}
		return loginAgain
	})
}

func (l *login) pause() time.Duration {
	if l.ends.Load() == nil && l.config.DatabaseFile != "" {
		return lookForLogin
	}
	return lookAtLogin
}

// look renews what is due.
func (l *login) look(ctx context.Context, now time.Time) error {
	leaf, err := l.dir.LoginCertificate()
	if err != nil {
		return err
	}
	l.note(leaf)
	if leaf == nil {
		if wanted, err := l.config.LeavesLogin(l.dir, setup.LoginRole(l.config.Name)); err != nil || !wanted {
			return err
		}
	}
	roots, err := l.roots(ctx)
	if err != nil || roots == "" {
		return err // without the pool, what the URL says is all
	}
	if leaf == nil {
		return l.renew(ctx, roots, now)
	}
	if !now.Before(renewal(leaf)) {
		return l.renew(ctx, roots, now)
	}
	return l.follow(ctx, roots)
}

func (l *login) note(leaf *x509.Certificate) {
	if leaf != nil {
		l.ends.Store(&leaf.NotAfter)
	}
}

// renew gets a certificate for a new key and takes it, where PostgreSQL does.
func (l *login) renew(ctx context.Context, roots string, now time.Time) error {
	next := l.dir.NextDatabaseLogin()
	leaf, err := next.LoginCertificate()
	if err != nil || leaf == nil || !now.Before(renewal(leaf)) { // else it was refused, or not tried
		if leaf, err = l.obtain(ctx, next); err != nil || leaf == nil {
			return err
		}
	}
	if err := keyfile.ReplaceFile(next.DatabaseRoots(), []byte(roots), 0o644); err != nil {
		return err
	}
	if err := l.try(ctx, next); err != nil {
		return fmt.Errorf("PostgreSQL does not let %s in by its new certificate: %w", leaf.Subject.CommonName, err)
	}
	if err := l.dir.TakeDatabaseLogin(); err != nil {
		return err
	}
	l.note(leaf)
	l.logger.Info("new login at the database", "role", leaf.Subject.CommonName, "serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter)
	return nil
}

// obtain has a new key certified, and keeps both in next. It is nil where the authority gives no logins.
func (l *login) obtain(ctx context.Context, next datadir.Dir) (*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := cert.ProofOfPossession(key)
	if err != nil {
		return nil, err
	}
	given, err := l.certify(ctx, csr)
	if err != nil || given.Role == "" {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(text)
	if err := next.KeepDatabaseLogin(given.Role, text, given.Certificate, given.Roots); err != nil {
		return nil, err
	}
	return next.LoginCertificate()
}

// follow takes the pool's roots as they are now, where the servers are known by them.
func (l *login) follow(ctx context.Context, roots string) error {
	have, err := os.ReadFile(l.dir.DatabaseRoots())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && bytes.Equal(have, []byte(roots)) {
		return nil
	}
	next := l.dir.NextDatabaseLogin()
	if err := next.CopyDatabaseLogin(l.dir); err != nil {
		return err
	}
	if err := keyfile.ReplaceFile(next.DatabaseRoots(), []byte(roots), 0o644); err != nil {
		return err
	}
	if err := l.try(ctx, next); err != nil {
		return fmt.Errorf("PostgreSQL is not known by the roots that the pool %s has now, and those from before stay: %w", setup.DatabasePool, err)
	}
	if err := l.dir.TakeDatabaseLogin(); err != nil {
		return err
	}
	l.logger.Info("the roots of the pool of the database are taken over", "pool", setup.DatabasePool)
	return nil
}

// try connects as the node will.
func (l *login) try(ctx context.Context, next datadir.Dir) error {
	config := *l.config
	if config.ReadDatabaseFile = ""; config.DatabaseFile == "" {
		return fault.New(fault.Conflict, "SQLite has no logins")
	}
	config.DatabaseFile = l.dir.Within(config.DatabaseFile)
	url, _, err := config.DatabaseURLs(next)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return l.reach(ctx, url)
}
