// Package schema holds the numbered migrations: one text for SQLite and PostgreSQL, of the types TEXT, BIGINT and BYTEA.
//
// A migration is expand-then-contract and never mixes DDL with data. One that programs without it can live with says so by
// the line "-- readers from: N", N being the newest migration such a program must have; without that line, a program that
// does not know the newest migration refuses the database.
package schema

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"strconv"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
)

//go:embed *.sql
var files embed.FS

// migrateTries is how often Migrate looks again when another node migrates at the same time.
const migrateTries = 20

// Migrate brings the schema of d to the newest this program knows. Several nodes may do so at the same time: each migration
// is one transaction that also records its number, so one node's passes and the others look again. While the primary is away,
// nothing is migrated, and the schema that is read must be what this program needs.
func Migrate(ctx context.Context, d *db.DB) error { return migrate(ctx, d, files) }

func migrate(ctx context.Context, d *db.DB, fsys fs.FS) error {
	versions, err := newVersions(fsys)
	if err != nil {
		return err
	}
	if away := d.Away(); away != nil {
		return versions.suffice(ctx, d, away)
	}
	for try := 1; ; try++ {
		err := versions.up(ctx, d, fsys)
		if err == nil || fault.Is(err, fault.Conflict) || try == migrateTries || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try) * 10 * time.Millisecond):
		}
	}
}

// Version is the number of the newest migration that d has, 0 before the first, and whether this program can run on it.
func Version(ctx context.Context, d *db.DB) (int64, error) {
	versions, err := newVersions(files)
	if err != nil {
		return 0, err
	}
	var have, from int64
	err = d.Read(ctx, func(tx *db.Tx) error { return tx.QueryRow(ctx, readVersion).Scan(&have, &from) })
	if db.IsNoTable(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the schema version: %w", err)
	}
	return have, versions.judge(have, from)
}

// Shut has every program refuse the database from now on, also one of a release that knows no better reason: its authority lives
// elsewhere.
func Shut(ctx context.Context, tx *db.Tx, now time.Time) error {
	const never = 1 << 40 // no migration will ever have this number
	_, err := tx.Exec(ctx, `INSERT INTO schema_version (version, readers_from, applied_at) VALUES ($1, $2, $3)
		ON CONFLICT (version) DO NOTHING`, never, never, db.Micros(now))
	return err
}

// Newest is the number of the newest migration that this program knows.
func Newest() int64 {
	versions, err := newVersions(files)
	if err != nil {
		panic(err) // the files are embedded; a test reads them
	}
	return versions.newest
}

// versions is goose's record of what was applied, in a table of portable types.
type versions struct {
	newest      int64
	readersFrom map[int64]int64
}

var (
	fileNumber  = regexp.MustCompile(`^(\d{4})_[a-z0-9_]+\.sql$`)
	readersFrom = regexp.MustCompile(`(?m)^-- readers from: (\d+)$`)
)

func newVersions(fsys fs.FS) (*versions, error) {
	names, err := fs.Glob(fsys, "*.sql")
	if err != nil {
		return nil, err
	}
	v := &versions{readersFrom: map[int64]int64{}}
	for _, name := range names {
		m := fileNumber.FindStringSubmatch(name)
		if m == nil {
			return nil, fmt.Errorf("migration %s is not named NNNN_name.sql", name)
		}
		number, _ := strconv.ParseInt(m[1], 10, 64)
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		v.readersFrom[number] = number
		if from := readersFrom.FindSubmatch(text); from != nil {
			v.readersFrom[number], _ = strconv.ParseInt(string(from[1]), 10, 64)
		}
		v.newest = max(v.newest, number)
	}
	return v, nil
}

func (v *versions) up(ctx context.Context, d *db.DB, fsys fs.FS) error {
	have, err := v.check(ctx, d.Migrator())
	if err != nil || have >= v.newest {
		return err
	}
	p, err := goose.NewProvider(goose.DialectCustom, d.Migrator(), fsys, goose.WithStore(v),
		goose.WithDisableGlobalRegistry(true), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	if _, err := p.Up(ctx); db.Forbidden(err) {
		return fault.New(fault.Conflict, "the database has schema %d and this program's is %d, and this node's login may not change it: %w", have, v.newest, err).
			WithHint("start this release on a node that runs ca first")
	} else if err != nil {
		return fmt.Errorf("migrate the schema: %w", err)
	}
	return nil
}

// check refuses a database that a newer program has changed in a way this one cannot live with.
func (v *versions) check(ctx context.Context, conn database.DBTxConn) (int64, error) {
	var have, from int64
	if exists, err := v.TableExists(ctx, conn); err != nil || !exists {
		return 0, err
	}
	err := conn.QueryRowContext(ctx, readVersion).Scan(&have, &from)
	if err != nil {
		return 0, fmt.Errorf("read the schema version: %w", err)
	}
	return have, v.judge(have, from)
}

const readVersion = "SELECT COALESCE(MAX(version), 0), COALESCE(MAX(readers_from), 0) FROM schema_version"

// suffice refuses a schema that cannot be used as it is, with what keeps it from being migrated.
func (v *versions) suffice(ctx context.Context, d *db.DB, away error) error {
	var have, from int64
	err := d.Read(ctx, func(tx *db.Tx) error { return tx.QueryRow(ctx, readVersion).Scan(&have, &from) })
	if err != nil {
		return fmt.Errorf("read the schema version: %w", err)
	}
	if have < v.newest {
		return fault.New(fault.Unavailable, "the database has schema %d, this program needs %d, and it cannot be migrated: %w", have, v.newest, away).
			WithHint("start the node when the primary is back, or with the program that ran before")
	}
	return v.judge(have, from)
}

func (v *versions) judge(have, from int64) error {
	if from > v.newest {
		return fault.New(fault.Conflict, "the database has schema %d, which needs a program that knows migration %d; this one knows %d",
			have, from, v.newest).WithHint("run the newer chancery; a schema is never taken back")
	}
	return nil
}

// The methods of goose's database.Store.

func (v *versions) Tablename() string { return "schema_version" }

// TableExists asks by reading: the catalogues of the engines differ.
func (v *versions) TableExists(ctx context.Context, conn database.DBTxConn) (bool, error) {
	rows, err := conn.QueryContext(ctx, "SELECT version FROM schema_version WHERE version < 0")
	if err != nil {
		if db.IsNoTable(err) {
			return false, nil
		}
		return false, fmt.Errorf("look for the schema: %w", err)
	}
	return true, rows.Close()
}

func (v *versions) CreateVersionTable(ctx context.Context, conn database.DBTxConn) error {
	_, err := conn.ExecContext(ctx, `CREATE TABLE schema_version (
		version BIGINT NOT NULL PRIMARY KEY, readers_from BIGINT NOT NULL, applied_at BIGINT NOT NULL)`)
	return err
}

func (v *versions) Insert(ctx context.Context, conn database.DBTxConn, r database.InsertRequest) error {
	_, err := conn.ExecContext(ctx, "INSERT INTO schema_version (version, readers_from, applied_at) VALUES ($1, $2, $3)",
		r.Version, v.readersFrom[r.Version], db.Micros(time.Now()))
	return err
}

func (v *versions) Delete(ctx context.Context, conn database.DBTxConn, version int64) error {
	_, err := conn.ExecContext(ctx, "DELETE FROM schema_version WHERE version = $1", version)
	return err
}

func (v *versions) GetMigration(ctx context.Context, conn database.DBTxConn, version int64) (*database.GetMigrationResult, error) {
	all, err := v.list(ctx, conn, "WHERE version = $1", version)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, database.ErrVersionNotFound
	}
	return &database.GetMigrationResult{IsApplied: true}, nil
}

func (v *versions) GetLatestVersion(ctx context.Context, conn database.DBTxConn) (int64, error) {
	all, err := v.ListMigrations(ctx, conn)
	if err != nil {
		return 0, err
	}
	if len(all) == 0 {
		return 0, database.ErrVersionNotFound
	}
	return all[0].Version, nil
}

func (v *versions) ListMigrations(ctx context.Context, conn database.DBTxConn) ([]*database.ListMigrationsResult, error) {
	return v.list(ctx, conn, "")
}

func (v *versions) list(ctx context.Context, conn database.DBTxConn, where string, args ...any) ([]*database.ListMigrationsResult, error) {
	rows, err := conn.QueryContext(ctx, "SELECT version FROM schema_version "+where+" ORDER BY version DESC", args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []*database.ListMigrationsResult
	for rows.Next() {
		r := &database.ListMigrationsResult{IsApplied: true}
		if err := rows.Scan(&r.Version); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}
