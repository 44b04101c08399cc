package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"chancery/internal/fault"

	"github.com/gofrs/flock"
	"modernc.org/sqlite"
)

// openSQLite takes the directory for this process, then opens one connection to write and a pool to read.
func (d *DB) openSQLite(ctx context.Context, o Options) error {
	d.dialect = SQLite
	d.beginWrite, d.beginRead = "BEGIN IMMEDIATE", "BEGIN"
	d.path = strings.TrimPrefix(o.URL, "sqlite:")
	if !filepath.IsAbs(d.path) {
		return fault.New(fault.Invalid, "the database file %q is not an absolute path; write sqlite:/dir/chancery.db", d.path)
	}
	if o.Beside {
		if _, err := os.Stat(d.path); err != nil {
			return d.explainFile("open", d.path, err)
		}
	} else if err := d.takeDirectory(); err != nil {
		return err
	}
	writer, err := sqlitePool(d.path, []string{"cache_size(-8192)"}, 1, o.Wrap)
	if err != nil {
		return err
	}
	d.writer = writer
	if err := d.checkSQLite(ctx); err != nil {
		return d.explain(err)
	}
	// Each connection has a cache of its own, and the kernel has one for all: a large one here would be there eight times.
	d.reader, err = sqlitePool(d.path, []string{"query_only(1)", "cache_size(-2048)"}, o.ReadConns, o.Wrap)
	return err
}

// takeDirectory makes sure of the directory, of the modes, and that no other process has the database open: two writers
// would be safe for SQLite, but not for the leases, caches and loops of two nodes that do not know of each other.
func (d *DB) takeDirectory() error {
	dir := filepath.Dir(d.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.New(fault.Unavailable, "create the data directory: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fault.New(fault.Unavailable, "look at the data directory: %w", err)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fault.New(fault.Invalid, "the data directory %s has mode %04o: others may write to it", dir, st.Mode().Perm()).
			WithHint("chmod 0700 %s", dir)
	}
	lock := flock.New(d.path+".lock", flock.SetPermissions(0o600))
	ok, err := lock.TryLock()
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, errReadOnly):
		return fault.New(fault.Unavailable, "the data directory %s cannot be written: %w", dir, err).
			WithHint("check the mount, and that its owner is the user that runs chancery")
	case err != nil:
		return fault.New(fault.Unavailable, "lock the database: %w", err)
	case !ok:
		return fault.New(fault.Conflict, "%s is in use by process %s", d.path, lockHolder(d.path+".lock")).
			WithHint("stop that process, or reach it over its API")
	}
	d.lock = lock
	// The file is truncated and written in place, never replaced: the lock is on the inode.
	if err := os.WriteFile(d.path+".lock", fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		return d.explainFile("write", d.path+".lock", err)
	}
	f, err := os.OpenFile(d.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return d.explainFile("open", d.path, err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return err
	} else if st.Mode().Perm()&0o077 != 0 {
		if err := f.Chmod(0o600); err != nil { // SQLite gives its -wal and -shm the mode of the file
			return d.explainFile("narrow the mode of", d.path, err)
		}
	}
	// SQLite syncs the contents; the names are ours to make durable, or a power cut could take a new authority as a whole.
	for _, dir := range []string{dir, filepath.Dir(dir)} {
		if err := syncDir(dir); err != nil && !errors.Is(err, fs.ErrPermission) {
			return d.explainFile("sync", dir, err)
		}
	}
	return nil
}

func (d *DB) explainFile(verb, path string, err error) error {
	return fault.New(fault.Unavailable, "%s %s: %w", verb, path, err).
		WithHint("check the free space, the mount and the owner of the data directory")
}

// lockHolder reads the process id that the holder of the lock wrote into it.
func lockHolder(path string) string {
	text, err := os.ReadFile(path)
	if pid := strings.TrimSpace(string(text)); err == nil && pid != "" {
		return pid
	}
	return "(it has not written its id yet)"
}

// checkSQLite proves that the file can be written and has the settings that durability rests on.
func (d *DB) checkSQLite(ctx context.Context) error {
	var mode string
	var sync int
	if err := d.writer.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return err
	}
	if err := d.writer.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&sync); err != nil {
		return err
	}
	if mode != "wal" || sync != 2 {
		return fault.New(fault.Unavailable, "SQLite has journal_mode=%s and synchronous=%d for %s, not wal and 2 (FULL)", mode, sync, d.path).
			WithHint("the file system must support shared memory; network file systems do not")
	}
	return nil
}

// sqlitePool opens connections with our pragmas. synchronous=FULL makes each commit sync the log before it is acknowledged.
func sqlitePool(path string, pragmas []string, conns int, wrap func(driver.Connector) driver.Connector) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}}
	for _, p := range append([]string{
		"busy_timeout(10000)", "journal_mode(wal)", "synchronous(full)", "foreign_keys(1)", "trusted_schema(0)",
		"temp_store(memory)", "wal_autocheckpoint(4000)", "journal_size_limit(67108864)",
	}, pragmas...) {
		q.Add("_pragma", p)
	}
	inner, err := sqlite.NewConnector((&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	var c driver.Connector = sqliteConnector{inner}
	if wrap != nil {
		c = wrap(c)
	}
	pool := sql.OpenDB(c)
	pool.SetMaxOpenConns(conns)
	pool.SetMaxIdleConns(conns)
	return pool, nil
}
