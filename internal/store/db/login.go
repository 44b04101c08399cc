package db

import (
	"context"
	"database/sql"
	_ "embed" // logins.sql
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chancery/internal/fault"
)

// maxRole is how long PostgreSQL lets a role's name be, in octets.
const maxRole = 63

// LoginFunctions is what the administrator of PostgreSQL installs, so that nodes can have logins of their own. It is also in
// deploy/patroni.
//
//go:embed logins.sql
var LoginFunctions string

// AddLogin gives a node a login of its own at PostgreSQL, or makes the one that it has what it must be: a role that may do what the
// owner of the tables may, and whose tables are that owner's; or, limited, one that reads, and says of itself how it is. No node's
// login may change roles: the functions of LoginFunctions do it, and where they are missing nothing does.
func (d *DB) AddLogin(ctx context.Context, role string, limited bool) error {
	if role == "" || len(role) > maxRole {
		return fault.New(fault.Invalid, "the login %q has %d octets; PostgreSQL takes 1 to %d", role, len(role), maxRole)
	}
	return d.asOwner(ctx, func(conn *sql.Conn, owner string) error { return d.addLogin(ctx, conn, owner, role, limited) })
}

func (d *DB) addLogin(ctx context.Context, conn *sql.Conn, owner, role string, limited bool) error {
	if _, err := conn.ExecContext(ctx, `SELECT chancery_logins.add($1, $2)`, role, limited); err != nil || !limited {
		return err
	}
	return d.grantReaders(ctx, conn, owner)
}

// ErrReadsOnly is within what a write is refused with for which this node's login has no right: a node that does not issue writes of itself
// alone.
var ErrReadsOnly = errors.New("the login of this node reads only")

// dropTries is how often DropLogin calls: once to shut the login, and again until nobody is left who came in before.
const dropTries = 5

// DropLogin takes a node's login away: it has no rights any more, no longer connects, its connections are ended, and it is removed.
// As long as that is not done, it is an error.
func (d *DB) DropLogin(ctx context.Context, role string) error {
	for range dropTries {
		var gone bool
		err := d.asOwner(ctx, func(conn *sql.Conn, _ string) error {
			return conn.QueryRowContext(ctx, `SELECT chancery_logins.drop($1)`, role).Scan(&gone)
		})
		if err != nil || gone {
			return err
		}
	}
	return fault.New(fault.Unavailable, "the login %s is shut, and is not removed yet", role)
}

// Logins are the names of the logins at PostgreSQL that nodes of this database were given, but this node's own; SQLite has none.
func (d *DB) Logins(ctx context.Context) ([]string, error) {
	if d.dialect != Postgres {
		return nil, nil
	}
	// What the functions make, they describe so. A role is of all databases of a server; its description says of which a login is.
	rows, err := d.writer.QueryContext(ctx, `SELECT rolname FROM pg_roles WHERE starts_with(rolname, $1) AND rolname <> session_user
		AND shobj_description(oid, 'pg_authid') = 'chancery: a node of ' || current_database() ORDER BY rolname`, loginPrefix)
	if err != nil {
		return nil, fmt.Errorf("list logins: %w", d.explain(err))
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var role string
		if err := rows.Scan(&role); err != nil {
			return nil, fmt.Errorf("list logins: %w", err)
		}
		all = append(all, role)
	}
	return all, d.explain(rows.Err())
}

// OwnerEnters reports whether PostgreSQL's files let somebody in over the network as the owner of the database, or do not show that they
// let nobody: the functions are not there, or are of a release before.
func (d *DB) OwnerEnters(ctx context.Context) (enters bool, err error) {
	if d.dialect != Postgres {
		return false, nil
	}
	err = d.writer.QueryRowContext(ctx, `SELECT chancery_logins.owner_enters()`).Scan(&enters)
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && slices.Contains([]string{"42883", "3F000", "42501"}, refused.Code) {
		return true, nil // undefined_function, invalid_schema_name, insufficient_privilege
	}
	if err != nil {
		return false, fmt.Errorf("ask who may log in as the owner: %w", d.explain(err))
	}
	return enters, nil
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

// LoginRefused reports whether PostgreSQL answered that it does not let this login in, whyever.
func LoginRefused(err error) bool {
	refused, ok := errors.AsType[*pgconn.PgError](err)
	return ok && strings.HasPrefix(refused.Code, "28") // invalid_authorization_specification, and invalid_password
}

// Forbidden reports whether PostgreSQL answered that this login may not do what was asked of it.
func Forbidden(err error) bool {
	refused, ok := errors.AsType[*pgconn.PgError](err)
	return ok && refused.Code == "42501" // insufficient_privilege
}

// loginPrefix is what the names of nodes' logins begin with.
const loginPrefix = "chancery_"

// standForOwner has a node's login act as the owner of the database, if it may: what it makes is the owner's, and stays when the login goes.
// PostgreSQL lets no function set that for another role.
func standForOwner(ctx context.Context, conn *pgconn.PgConn) error {
	return conn.Exec(ctx, `SELECT set_config('role', o.rolname, false) FROM pg_database d JOIN pg_roles o ON o.oid = d.datdba
		WHERE d.datname = current_database() AND current_user = session_user AND pg_has_role(session_user, o.oid, 'MEMBER')`).Close()
}

// asOwner runs fn in a transaction, as the owner of the tables.
func (d *DB) asOwner(ctx context.Context, fn func(conn *sql.Conn, owner string) error) error {
	if d.dialect != Postgres {
		return fault.New(fault.Conflict, "SQLite has no logins: its file is this node's alone")
	}
	return d.aside(ctx, func(conn *sql.Conn) error {
		var self, owner, database, owns string
		err := conn.QueryRowContext(ctx, `SELECT session_user, current_user, current_database(),
			(SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database())`).Scan(&self, &owner, &database, &owns)
		if err != nil {
			return d.explain(err)
		}
		if err := limitFunctions(ctx, conn, loginsWithin); err != nil {
			return d.explain(err)
		}
		if err := fn(conn, owner); err != nil {
			return d.refusedLogin(err, self, owner, database, owns)
		}
		return d.explain(limitFunctions(ctx, conn, 0)) // a COMMIT that is broken off would be done without a standby
	})
}

// loginsWithin bounds a call of the functions, which wait for others for less.
const loginsWithin = 20 * time.Second

func limitFunctions(ctx context.Context, conn *sql.Conn, within time.Duration) error {
	_, err := conn.ExecContext(ctx, `SELECT set_config('statement_timeout', $1, true)`, fmt.Sprint(within.Milliseconds()))
	return err
}

// refusedLogin says what to do where a login could not be changed.
func (d *DB) refusedLogin(err error, self, owner, database, owns string) error {
	refused, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	switch refused.Code {
	case "42883", "3F000", "42501": // undefined_function, invalid_schema_name, insufficient_privilege
		if owner != owns {
			return fault.New(fault.Denied, "%s stands for %s at the database, and %s, which owns the database %s, alone may change logins",
				self, owner, owns, database).WithHint("have the database's administrator run: ALTER ROLE %s SET role = %s", self, owns)
		}
		return fault.New(fault.Denied, "the database %s lacks the functions by which nodes have logins of their own: %s", database, refused.Message).
			WithHint("have the database's administrator run this there, as a superuser (it is deploy/patroni/logins.sql):\n%s", LoginFunctions)
	case "57014": // query_canceled
		return fault.New(fault.Unavailable, "the database's functions for logins had no answer in %s; nothing was changed", loginsWithin).
			WithHint("try again; if logins.sql was installed before this release, have the database's administrator install it anew: any login could hold the older one up")
	case "P0001": // raise_exception, in the functions
		return fault.New(fault.Conflict, "PostgreSQL refuses: %s", refused.Message).WithHint("%s", refused.Hint)
	}
	return d.explain(err)
}
