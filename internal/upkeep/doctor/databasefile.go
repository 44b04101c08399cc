package doctor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"chancery/internal/upkeep/finding"
)

// leastFree is the free space below which a disk counts as nearly full.
const leastFree = 1 << 30

// networkFileSystem names what statfs(2) says of a file system that is elsewhere.
func networkFileSystem(magic uint32) string {
	switch magic {
	case 0x6969:
		return "NFS"
	case 0xff534d42, 0xfe534d42:
		return "SMB"
	case 0x01021997:
		return "9P"
	case 0x00c36400:
		return "Ceph"
	case 0x0bd00bd0:
		return "Lustre"
	case 0x5346414f, 0x6b414653:
		return "AFS"
	}
	return ""
}

// lookAtSQLite says what is true of a store in one file.
func lookAtSQLite(ctx context.Context, path string) ([]finding.Finding, error) {
	r := &databaseReport{}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		r.tell("file.missing", path, err.Error(), "", "chancery restore")
		return r.found, nil
	}
	if err != nil {
		return nil, err
	}
	if err := r.lookAtDisk(path); err != nil {
		return nil, err
	}
	version, journal, err := askSQLite(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("ask the store %s: %w", path, err)
	}
	if journal != "wal" {
		r.tell("file.journal", path, "journal_mode "+journal, "", "")
	} else {
		r.ok("durability", path, "SQLite %s in WAL mode, %s; each commit is synced to the disk before it is acknowledged (synchronous=FULL)", version, bytes(st.Size()))
	}
	r.ok("failover", path, "one file on one machine: there is no standby, and what its disk loses, only a backup has; clones need PostgreSQL (chancery migrate)")
	return r.found, nil
}

func (r *databaseReport) lookAtDisk(path string) error {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &disk); err != nil {
		return fmt.Errorf("ask for the file system of %s: %w", path, err)
	}
	if kind := networkFileSystem(uint32(disk.Type)); kind != "" {
		r.tell("file.network", path, kind, "", "")
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < leastFree {
		r.tell("file.space", path, bytes(free)+" are free", "", "")
	} else {
		r.ok("file", path, "%s are free on its disk", bytes(free))
	}
	return nil
}

// askSQLite opens the file for reading only, beside the node that has it.
func askSQLite(ctx context.Context, path string) (version, journal string, err error) {
	pool, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: "mode=ro"}).String())
	if err != nil {
		return "", "", err
	}
	defer pool.Close()
	if err = pool.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&version); err == nil {
		err = pool.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal)
	}
	return version, journal, err
}
