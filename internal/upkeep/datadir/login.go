package datadir

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"chancery/internal/pki/keyfile"
)

// The files of a node's own login at PostgreSQL, where it has one: its key and its client certificate of the pool database, whose common
// name is the login, in one file (mode 0600), so that they are always a pair; and the roots that certify the servers.
func (d Dir) DatabaseLogin() string { return filepath.Join(string(d), "database", "login.pem") }
func (d Dir) DatabaseRoots() string { return filepath.Join(string(d), "database", "roots.pem") }
func (d Dir) databaseRole() string  { return filepath.Join(string(d), "database", "role") }

// KeepDatabaseLogin keeps the node's own login at PostgreSQL: its name, its key and its certificate with what is above it, and the
// roots, all PEM. New connections use it. Where root calls, all of it is the data directory's owner's.
func (d Dir) KeepDatabaseLogin(role string, key []byte, certificate []string, roots string) error {
	if err := keyfile.MkdirBeside(filepath.Dir(d.DatabaseLogin()), 0o700); err != nil {
		return err
	}
	pair := append(bytes.Clone(key), strings.Join(certificate, "")...)
	defer clear(pair)
	if _, err := tls.X509KeyPair(pair, pair); err != nil {
		return fmt.Errorf("the login at the database: %w", err)
	}
	if roots != "" {
		if err := keyfile.ReplaceBeside(d.DatabaseRoots(), []byte(roots), 0o644); err != nil {
			return err
		}
	}
	if err := keyfile.ReplaceBeside(d.DatabaseLogin(), pair, 0o600); err != nil {
		return err
	}
	return keyfile.ReplaceBeside(d.databaseRole(), []byte(role+"\n"), 0o644)
}

// NextDatabaseLogin is where a login waits that was not tried yet; it has the files of one as a data directory has them.
func (d Dir) NextDatabaseLogin() Dir { return Dir(filepath.Join(string(d), "database.next")) }

// TakeDatabaseLogin puts what NextDatabaseLogin holds in the place of the node's login. Cut short, it may be called again.
func (d Dir) TakeDatabaseLogin() error {
	next := d.NextDatabaseLogin()
	if err := keyfile.MkdirBeside(filepath.Dir(d.DatabaseLogin()), 0o700); err != nil {
		return err
	}
	// The name comes last: without it, the others are not looked at.
	for _, move := range [][2]string{
		{next.DatabaseRoots(), d.DatabaseRoots()}, {next.DatabaseLogin(), d.DatabaseLogin()}, {next.databaseRole(), d.databaseRole()},
	} {
		if err := os.Rename(move[0], move[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.RemoveAll(string(next))
}

// CopyDatabaseLogin copies another directory's login into this one.
func (d Dir) CopyDatabaseLogin(from Dir) error {
	if err := keyfile.MkdirBeside(filepath.Dir(d.DatabaseLogin()), 0o700); err != nil {
		return err
	}
	pair, err := keyfile.ReadSecret(from.DatabaseLogin(), keyfile.MaxFile)
	if err != nil {
		return err
	}
	defer clear(pair)
	role, err := from.DatabaseRole()
	if err != nil {
		return err
	}
	if err := keyfile.ReplaceBeside(d.DatabaseLogin(), pair, 0o600); err != nil {
		return err
	}
	return keyfile.ReplaceBeside(d.databaseRole(), []byte(role+"\n"), 0o644)
}

// LoginCertificate is the certificate of the node's own login at PostgreSQL, and nil where it has none.
func (d Dir) LoginCertificate() (*x509.Certificate, error) {
	role, err := d.DatabaseRole()
	if err != nil || role == "" {
		return nil, err
	}
	text, err := keyfile.ReadSecret(d.DatabaseLogin(), keyfile.MaxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's login at the database: %w", err)
	}
	defer clear(text)
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("the node's login at the database, %s: %w", d.DatabaseLogin(), err)
	}
	return pair.Leaf, nil
}

// LeavesLogin reports whether the database's URL leaves it to the node how it logs in: it leads over TCP, has no password and no
// certificate, and names no user, or the one of the login.
func (c *Config) LeavesLogin(d Dir, role string) (bool, error) {
	if c.DatabaseFile == "" {
		return false, nil
	}
	text, err := lineFromFile(d, c.DatabaseFile)
	if err != nil {
		return false, err
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return false, nil
	}
	query := u.Query()
	user := u.User.Username()
	if user == "" {
		user = query.Get("user")
	}
	_, password := u.User.Password()
	socket := u.Host == "" && query.Get("host") == "" || strings.HasPrefix(query.Get("host"), "/")
	return !password && !socket && query.Get("password") == "" && query.Get("sslcert") == "" && (user == "" || user == role), nil
}

// DatabaseRole is the name of the node's own login, and empty where it has none.
func (d Dir) DatabaseRole() (string, error) {
	text, err := keyfile.ReadFile(d.databaseRole(), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the node's login at the database: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// withLogin completes a database's URL by the node's own login: what the URL says itself stands. A URL with a password names a login of
// its own, and over a Unix socket there is no TLS.
func withLogin(d Dir, text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return text, nil // db.Open says what is wrong with it
	}
	role, err := d.DatabaseRole()
	if err != nil || role == "" {
		return text, err
	}
	if _, password := u.User.Password(); password {
		return text, nil
	}
	query := u.Query()
	if u.User.Username() == "" && query.Get("user") == "" {
		u.User = url.User(role)
	}
	if strings.HasPrefix(query.Get("host"), "/") {
		return u.String(), nil
	}
	if _, err := os.Stat(d.DatabaseLogin()); err == nil && query.Get("sslcert") == "" && query.Get("sslkey") == "" {
		query.Set("sslcert", d.DatabaseLogin())
		query.Set("sslkey", d.DatabaseLogin())
	}
	if _, err := os.Stat(d.DatabaseRoots()); err == nil && query.Get("sslrootcert") == "" {
		query.Set("sslrootcert", d.DatabaseRoots())
		if query.Get("sslmode") == "" {
			query.Set("sslmode", "verify-full")
		}
	}
	u.RawQuery = query.Encode()
	return u.String(), nil
}
