package db

import (
	"context"
	"fmt"
	"strings"
)

// DurabilityReport is what the server says about how durable its commits are.
type DurabilityReport struct {
	Engine                Dialect
	Version               string
	Wanted                Durability
	SynchronousCommit     string    // PostgreSQL, as a session of ours has it
	SynchronousStandbys   string    // PostgreSQL: synchronous_standby_names
	Standbys              []Standby // PostgreSQL: those connected now, as far as our role may see
	Fsync, FullPageWrites bool      // SQLite has both by synchronous=FULL and its log
	InRecovery            bool      // PostgreSQL: the server is a standby
}

// Standby is a row of pg_stat_replication.
type Standby struct {
	Name      string
	State     string
	SyncState string // async, potential, sync, quorum
}

// Problems lists what keeps acknowledged commits from being as durable as was wanted.
func (r DurabilityReport) Problems() (problems []string) {
	if !r.Fsync {
		problems = append(problems, "fsync is off: a crash of the machine loses acknowledged commits")
	}
	if !r.FullPageWrites {
		problems = append(problems, "full_page_writes is off: a crash of the machine can damage the database")
	}
	if r.InRecovery {
		problems = append(problems, "the server written to is a standby")
	}
	if r.Wanted != Synchronous {
		return problems
	}
	if strings.TrimSpace(r.SynchronousStandbys) == "" {
		problems = append(problems, "synchronous_standby_names is empty: no standby is waited for, and the node is read-only")
	}
	synchronous := 0
	for _, s := range r.Standbys {
		if s.SyncState == "sync" || s.SyncState == "quorum" {
			synchronous++
		}
	}
	if synchronous == 0 {
		problems = append(problems, "no synchronous standby is connected: commits wait until one is")
	}
	return problems
}

// DurabilityReport asks the server that is written to.
func (d *DB) DurabilityReport(ctx context.Context) (r DurabilityReport, err error) {
	r = DurabilityReport{Engine: d.dialect, Wanted: d.durability.Load().(Durability)}
	if d.dialect == SQLite {
		r.Fsync, r.FullPageWrites = true, true // checkSQLite refused to open otherwise
		err = d.Read(ctx, func(tx *Tx) error { return tx.QueryRow(ctx, "SELECT sqlite_version()").Scan(&r.Version) })
		return r, err
	}
	// On the pool of the lane, so that the server is the one whose commits are at stake.
	err = d.ReadSnapshot(ctx, func(tx *Tx) error {
		var fsync, pages string
		err := tx.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('synchronous_commit'),
			current_setting('synchronous_standby_names'), current_setting('fsync'), current_setting('full_page_writes'),
			pg_is_in_recovery()`).Scan(&r.Version, &r.SynchronousCommit, &r.SynchronousStandbys, &fsync, &pages, &r.InRecovery)
		if err != nil {
			return fmt.Errorf("read the server's settings: %w", err)
		}
		r.Fsync, r.FullPageWrites = fsync == "on", pages == "on"
		rows, err := tx.Query(ctx, `SELECT COALESCE(application_name, ''), COALESCE(state, ''), COALESCE(sync_state, '')
			FROM pg_stat_replication ORDER BY application_name`)
		if err != nil {
			return fmt.Errorf("list the standbys: %w", err)
		}
		defer rows.Close()
		r.Standbys = nil
		for rows.Next() {
			var s Standby
			if err := rows.Scan(&s.Name, &s.State, &s.SyncState); err != nil {
				return err
			}
			r.Standbys = append(r.Standbys, s)
		}
		return rows.Err()
	})
	return r, err
}
