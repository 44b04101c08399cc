package drill

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// scratch opens the database that is restored into; remove takes it away, once that is closed. What a backup holds is rows of no
// particular engine, so SQLite tries it as well as PostgreSQL does, and needs nothing; a drill on PostgreSQL tries besides that such a
// server takes them.
func (r *run) scratch(ctx context.Context) (d *db.DB, remove func() error, err error) {
	quiet := slog.New(slog.DiscardHandler)
	if r.Scratch == "" {
		d, err = db.Open(ctx, db.Options{URL: "sqlite:" + filepath.Join(r.dir, "chancery.db"), Logger: quiet})
		return d, func() error { return nil }, err // it goes with the directory
	}
	if !strings.HasPrefix(r.Scratch, "postgres://") && !strings.HasPrefix(r.Scratch, "postgresql://") {
		return nil, nil, fault.New(fault.Invalid, "the scratch database is none of PostgreSQL: its URL begins with postgres:// or postgresql://").
			WithHint("without one a drill restores into SQLite, in the data directory")
	}
	around, err := db.Open(ctx, db.Options{URL: r.Scratch, Logger: quiet})
	if err != nil {
		return nil, nil, fmt.Errorf("open the scratch database: %w", err)
	}
	own, err := r.makeSchema(ctx, around)
	if err != nil {
		_ = around.Close()
		return nil, nil, err
	}
	remove = func() error {
		defer around.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return dropSchema(ctx, around, own)
	}
	if d, err = db.Open(ctx, db.Options{URL: within(r.Scratch, own), Logger: quiet}); err != nil {
		if gone := remove(); gone != nil {
			err = fmt.Errorf("%w; %w", err, gone)
		}
		return nil, nil, err
	}
	return d, remove, nil
}

// makeSchema makes a schema that nobody else knows of, after those are gone that earlier drills of this node left when they were killed. The
// rest of the database is not touched.
func (r *run) makeSchema(ctx context.Context, around *db.DB) (name string, err error) {
	set, err := r.from.Settings.Get(ctx)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(set.Authority + "\n" + r.from.Audit.Node()))
	ours := "chancery_drill_" + hex.EncodeToString(sum[:6]) + "_"
	name = ours + strings.ToLower(rand.Text()[:12])
	var left []string
	err = around.TxAlone(ctx, func(tx *db.Tx) error {
		left = nil
		rows, err := tx.Query(ctx, `SELECT nspname FROM pg_namespace WHERE starts_with(nspname, $1)`, ours)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var one string
			if err := rows.Scan(&one); err != nil {
				return err
			}
			left = append(left, one)
		}
		return rows.Err()
	})
	for _, one := range left {
		if err == nil {
			err = dropSchema(ctx, around, one)
		}
	}
	if err != nil {
		return "", fmt.Errorf("look at the scratch database: %w", err)
	}
	err = around.TxAlone(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `CREATE SCHEMA `+name) // letters, digits and _
		return err
	})
	if err != nil {
		return "", fmt.Errorf("make a schema in the scratch database: %w", err)
	}
	return name, nil
}

func dropSchema(ctx context.Context, around *db.DB, name string) error {
	err := around.TxAlone(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `DROP SCHEMA IF EXISTS `+name+` CASCADE`)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove the schema %s of the scratch database: %w", name, err)
	}
	return nil
}

// within is the URL whose tables are those of the schema. Of two values the first one counts.
func within(url, schema string) string {
	before, after, _ := strings.Cut(url, "?")
	return before + "?search_path=" + schema + "&" + after
}
