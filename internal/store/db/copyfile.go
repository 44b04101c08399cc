package db

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"chancery/internal/fault"
)

// CopyFile writes a consistent copy of a SQLite database to path, which must not exist, while writers go on. The copy is
// compact, readable by its owner only, and on the disk when CopyFile returns.
func (d *DB) CopyFile(ctx context.Context, path string) error {
	if d.dialect != SQLite {
		return fault.New(fault.Invalid, "only a SQLite database can be copied as a file; back PostgreSQL up by its rows")
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // VACUUM INTO accepts an empty file, and keeps its mode
	if err != nil {
		return d.explainFile("create", path, err)
	}
	defer f.Close()
	if err := d.vacuumInto(ctx, path); err != nil {
		return errors.Join(d.explain(err), os.Remove(path))
	}
	if err := f.Sync(); err != nil {
		return d.explainFile("sync", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func (d *DB) vacuumInto(ctx context.Context, path string) error {
	conn, err := d.reader.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// The source is only read, but query_only forbids the statement all the same.
	if _, err := conn.ExecContext(ctx, "PRAGMA query_only = 0"); err != nil {
		return err
	}
	defer discard(conn)
	_, err = conn.ExecContext(ctx, "VACUUM INTO '"+strings.ReplaceAll(path, "'", "''")+"'")
	return err
}
