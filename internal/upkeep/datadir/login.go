package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"chancery/internal/pki/keyfile"
)

// The files of a node's own login at PostgreSQL, where it has one: a client certificate of the pool database whose common name is the
// login, its key (mode 0600), and the roots that certify the servers.
func (d Dir) DatabaseCert() string  { return filepath.Join(string(d), "database", "cert.pem") }
func (d Dir) DatabaseKey() string   { return filepath.Join(string(d), "database", "key.pem") }
func (d Dir) DatabaseRoots() string { return filepath.Join(string(d), "database", "roots.pem") }
func (d Dir) databaseRole() string  { return filepath.Join(string(d), "database", "role") }

// SetDatabaseRole keeps the name of the node's own login beside its certificate.
func (d Dir) SetDatabaseRole(role string) error {
	return os.WriteFile(d.databaseRole(), []byte(role+"\n"), 0o644)
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
	if _, err := os.Stat(d.DatabaseCert()); err == nil {
		for _, f := range [][2]string{{"sslcert", d.DatabaseCert()}, {"sslkey", d.DatabaseKey()}} {
			if query.Get(f[0]) == "" {
				query.Set(f[0], f[1])
			}
		}
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
