package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chancery/internal/fault"
)

// maxRole is how long PostgreSQL lets a role's name be, in octets.
const maxRole = 63

// insufficientPrivilege is the SQLSTATE of what the role may not do.
const insufficientPrivilege = "42501"

// AddLogin gives a node a login of its own at PostgreSQL: a role that may do what the owner of the tables may, and whose tables are that
// owner's (ALTER ROLE … SET role), so that they stay when the login goes. It has no password: pg_hba.conf lets it in by certificate.
// Where this node's own login may not make others, the error's hint is the SQL for one who may. What is there already is left as it is.
func (d *DB) AddLogin(ctx context.Context, role string) error {
	if role == "" || len(role) > maxRole {
		return fault.New(fault.Invalid, "the login %q has %d octets; PostgreSQL takes 1 to %d", role, len(role), maxRole)
	}
	return d.asLogin(ctx, func(tx *sql.Tx, self, owner string) error {
		var there bool
		err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member JOIN pg_roles o ON o.oid = m.roleid
			WHERE r.rolname = $1 AND o.rolname = $2 AND r.rolcanlogin)`, role, owner).Scan(&there)
		if err != nil || there {
			return err
		}
		statements := loginStatements(role, owner)
		for _, statement := range statements {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return refusedLogin(err, self, statements)
			}
		}
		return nil
	})
}

// loginStatements are what gives a node its login. It may give others theirs, since every node may be the one that approves.
func loginStatements(role, owner string) []string {
	quoted, of := pgx.Identifier{role}.Sanitize(), pgx.Identifier{owner}.Sanitize()
	return []string{
		"CREATE ROLE " + quoted + " LOGIN CREATEROLE",
		"GRANT " + of + " TO " + quoted + " WITH ADMIN OPTION",
		"ALTER ROLE " + quoted + " SET role = " + of,
	}
}

func refusedLogin(err error, self string, statements []string) error {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != insufficientPrivilege {
		return err
	}
	text := ""
	for _, s := range statements {
		text += s + "; "
	}
	return fault.New(fault.Denied, "the database's role %s may not change logins (it needs CREATEROLE, and membership of the tables' owner with ADMIN OPTION): %s",
		self, refused.Message).WithHint("have the database's administrator run: %s", text)
}

// DropLogin takes a node's login away: it may no longer do what the owner of the tables may, no longer connects, and its connections are
// ended. left says what could not be done and does not matter for the tables: a login without rights may stay.
func (d *DB) DropLogin(ctx context.Context, role string) (left []string, err error) {
	quoted := pgx.Identifier{role}.Sanitize()
	err = d.asLogin(ctx, func(tx *sql.Tx, self, owner string) error {
		var there bool
		if err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)`, role).Scan(&there); err != nil || !there {
			return err
		}
		revoke := "REVOKE " + pgx.Identifier{owner}.Sanitize() + " FROM " + quoted
		if _, err := tx.ExecContext(ctx, revoke); err != nil {
			return refusedLogin(err, self, []string{revoke, "DROP ROLE " + quoted})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, statement := range []string{
		"ALTER ROLE " + quoted + " NOLOGIN",
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = " + quoteText(role),
		"DROP ROLE IF EXISTS " + quoted,
	} {
		err := d.asLogin(ctx, func(tx *sql.Tx, _, _ string) error {
			_, err := tx.ExecContext(ctx, statement)
			return err
		})
		var refused *pgconn.PgError
		switch {
		case errors.As(err, &refused) && refused.Code == insufficientPrivilege:
			left = append(left, fmt.Sprintf("%s: %s", statement, refused.Message))
		case errors.As(err, &refused) && refused.Code == "42704": // there is no such role: done before
		case err != nil:
			return left, err
		}
	}
	return left, nil
}

// Reach connects once to the primary that a URL of PostgreSQL leads to, and has it answer: a login is tried before it is relied on.
func Reach(ctx context.Context, url string) error {
	cfg, err := configure(url, true)
	if err != nil {
		return fault.New(fault.Invalid, "the database URL cannot be read: %w", err) // pgx leaves the password out
	}
	ctx = context.WithValue(ctx, connecting{}, true)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(conn.Ping(ctx), conn.Close(ctx))
}

// quoteText is a text as a literal; the name of a role has been a quoted identifier before.
func quoteText(text string) string {
	quoted := []byte{'\''}
	for _, c := range []byte(text) {
		if c == '\'' {
			quoted = append(quoted, '\'')
		}
		quoted = append(quoted, c)
	}
	return string(append(quoted, '\''))
}

// asLogin runs fn in a transaction as the role that logged in, and not as the owner of the tables that it stands for.
func (d *DB) asLogin(ctx context.Context, fn func(tx *sql.Tx, self, owner string) error) error {
	if d.dialect != Postgres {
		return fault.New(fault.Conflict, "SQLite has no logins: its file is this node's alone")
	}
	tx, err := d.writer.BeginTx(ctx, nil)
	if err != nil {
		return d.explain(err)
	}
	defer tx.Rollback()
	var self, owner string
	if err := tx.QueryRowContext(ctx, `SELECT session_user, current_user`).Scan(&self, &owner); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `SET LOCAL ROLE NONE`); err != nil {
		return err
	}
	if err := fn(tx, self, owner); err != nil {
		return err
	}
	return tx.Commit()
}
