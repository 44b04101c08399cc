package db

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// A node that issues nothing has a login that reads, and writes rows of its own: of node and write_mark those that are the node's, of clock
// and host_heard some that no other node writes. None of its rights is for a whole table, so it may lock none; and who has the login can
// change, hold or set back nothing that another node's write needs. The name of a node's login is chancery_ and the node's.

const ownName = "substr(session_user, 10)"

// readerRow is the name of its row of clock.
const readerRow = "'reader ' || " + ownName

// soon is the latest time that a reader may write: of a mark that has not come all nodes would stop.
const soon = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint + 60000000"

// readerPolicies are which rows the readers may write, and what these may say then: what a row says now may be too late by the clock of a server
// that was promoted since. Policies of rows do not bind the tables' owner, and whoever else may read goes on reading all.
var readerPolicies = []struct{ table, row, said string }{
	{"node", "name = " + ownName, "true"},
	{"write_mark", "node = " + ownName, "true"},
	{"clock", "name = " + readerRow, "high_water <= " + soon},
	{"host_heard", "node = " + ownName, "seen_at <= " + soon},
}

// readerRights are what the tables' owner lets the logins of nodes do that do not issue.
func readerRights(reader string) []string {
	rights := []string{
		"GRANT SELECT ON ALL TABLES IN SCHEMA public TO " + reader,
		"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO " + reader,
		"GRANT UPDATE (report, seen_at, started_at, address) ON node TO " + reader,
		"GRANT INSERT (node, number, fence), UPDATE (number, fence) ON write_mark TO " + reader,
		endsRight(reader),
		"GRANT INSERT (name, high_water), UPDATE (high_water) ON clock TO " + reader,
		"GRANT INSERT (node, host, seen_at), UPDATE (seen_at) ON host_heard TO " + reader,
	}
	for _, p := range readerPolicies {
		rights = append(rights, "ALTER TABLE "+p.table+" ENABLE ROW LEVEL SECURITY",
			"DROP POLICY IF EXISTS readers ON "+p.table, "CREATE POLICY readers ON "+p.table+" FOR SELECT USING (true)",
			"DROP POLICY IF EXISTS own_first ON "+p.table, "CREATE POLICY own_first ON "+p.table+" FOR INSERT TO "+reader+" WITH CHECK ("+p.row+" AND "+p.said+")")
	}
	return append(rights, againRights(reader)...)
}

// againRights let a reader write its rows again, whatever they say.
func againRights(reader string) (rights []string) {
	for _, p := range readerPolicies {
		rights = append(rights, "DROP POLICY IF EXISTS own_again ON "+p.table,
			"CREATE POLICY own_again ON "+p.table+" FOR UPDATE TO "+reader+" USING ("+p.row+") WITH CHECK ("+p.row+" AND "+p.said+")")
	}
	return rights
}

// endsRight lets a reader's marks take the end of a suspension back that is over; programs of a release before have no use for it.
func endsRight(reader string) string {
	return "GRANT UPDATE (suspended_until) ON write_mark TO " + reader
}

// formerRights take back what releases before gave those logins: whole tables, and the one row of clock.
func formerRights(reader string) []string {
	rights := []string{"REVOKE INSERT, UPDATE ON write_mark, clock, host_seen FROM " + reader}
	for _, table := range []string{"node", "write_mark", "clock", "host_seen"} {
		rights = append(rights, "DROP POLICY IF EXISTS first ON "+table, "DROP POLICY IF EXISTS own ON "+table)
	}
	return rights
}

// readers is what the role of the readers may do.
type readers struct{ there, former, own, ends, again bool }

func readersOf(ctx context.Context, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, owner string) (r readers, err error) {
	err = q.QueryRowContext(ctx, `SELECT COUNT(*) > 0, COALESCE(bool_or(has_table_privilege(oid, 'clock', 'UPDATE')), false),
		COALESCE(bool_or(has_column_privilege(oid, 'host_heard', 'seen_at', 'UPDATE')), false),
		COALESCE(bool_or(has_column_privilege(oid, 'write_mark', 'suspended_until', 'UPDATE')), false),
		EXISTS (SELECT 1 FROM pg_policies WHERE schemaname = 'public' AND tablename = 'clock' AND policyname = 'own_again' AND with_check IS NOT NULL)
		FROM pg_roles WHERE rolname = $1`, owner+"_reader").
		Scan(&r.there, &r.former, &r.own, &r.ends, &r.again)
	return r, err
}

// lacking are the rights that the readers do not have and should.
func (r *readers) lacking(reader string) (rights []string) {
	if !r.own {
		return readerRights(reader)
	}
	if !r.ends {
		rights = append(rights, endsRight(reader))
	}
	if !r.again {
		rights = append(rights, againRights(reader)...)
	}
	return rights
}

// grantReaders gives the readers their rights, where they do not have them. Those that they had by a release before they keep, since nodes
// of that release cannot do without.
func (d *DB) grantReaders(ctx context.Context, conn *sql.Conn, owner string) error {
	r, err := readersOf(ctx, conn, owner)
	if err != nil {
		return err
	}
	lacking := r.lacking(pgx.Identifier{owner + "_reader"}.Sanitize())
	if len(lacking) == 0 {
		return nil
	}
	return runRights(ctx, conn, lacking)
}

// runRights has nobody wait for long: who changes the rights of a table waits for all who have it open, and all others wait behind him.
func runRights(ctx context.Context, conn *sql.Conn, statements []string) error {
	for _, statement := range slices.Concat([]string{heldBriefly}, statements) {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// LimitReaders takes back what releases before this one gave the logins of nodes that do not issue, where they have it still, and gives them
// what they lack. It is for when no node of such a release is left.
func (d *DB) LimitReaders(ctx context.Context) error {
	if d.dialect != Postgres {
		return nil
	}
	var user string
	err := d.writer.QueryRowContext(ctx, `SELECT current_user`).Scan(&user)
	var r readers
	if err == nil {
		r, err = readersOf(ctx, d.writer, user)
	}
	if err != nil || !r.there || !r.former && len(r.lacking("")) == 0 {
		return d.explain(err)
	}
	err = d.asOwner(ctx, func(conn *sql.Conn, owner string) error {
		reader := pgx.Identifier{owner + "_reader"}.Sanitize()
		if !r.former {
			return runRights(ctx, conn, r.lacking(reader))
		}
		return runRights(ctx, conn, slices.Concat(formerRights(reader), readerRights(reader)))
	})
	if err != nil {
		return fmt.Errorf("give the logins of nodes that do not issue what they need, and no more: %w", err)
	}
	return nil
}

// Reader reports whether the login of this node writes rows of its own alone.
func (tx *Tx) Reader(ctx context.Context) (reads bool, err error) {
	if !tx.d.nodeLogin {
		return false, nil
	}
	err = tx.QueryRow(ctx, `SELECT NOT has_table_privilege('clock', 'UPDATE')`).Scan(&reads)
	return reads, err
}

// endsSuspensions reports whether the marks of this process may take the end of a suspension back that is over.
func (tx *Tx) endsSuspensions(ctx context.Context) (may bool, err error) {
	if !tx.d.nodeLogin {
		return true, nil
	}
	err = tx.QueryRow(ctx, `SELECT has_column_privilege('write_mark', 'suspended_until', 'UPDATE')`).Scan(&may)
	return may, err
}
