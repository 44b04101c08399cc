package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"chancery/internal/fault"
)

// LoginStanding is how a role stands at PostgreSQL that has the name of a node's login.
type LoginStanding struct {
	ID   int64 // of the role; one that was removed and made anew has another
	Shut bool  // it lets nobody in and has no rights, as ShutLogin leaves it; what somebody has shut otherwise does not count
}

// isShut is true of the role r that ShutLogin has shut.
const isShut = `NOT r.rolcanlogin AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid)
	AND COALESCE(shobj_description(r.oid, 'pg_authid') = 'chancery: a node of ' || current_database(), false)`

// LoginStandings are the roles that have names of nodes' logins, by name. One that DropLogin took away is none of them.
func (d *DB) LoginStandings(ctx context.Context) (map[string]LoginStanding, error) {
	if d.dialect != Postgres {
		return nil, nil
	}
	rows, err := d.writer.QueryContext(ctx, `SELECT r.rolname, CAST(r.oid AS BIGINT), `+isShut+` FROM pg_roles r WHERE starts_with(r.rolname, $1)`, loginPrefix)
	if err != nil {
		return nil, fmt.Errorf("see how logins stand: %w", d.explain(err))
	}
	defer rows.Close()
	all := map[string]LoginStanding{}
	for rows.Next() {
		var role string
		var s LoginStanding
		if err := rows.Scan(&role, &s.ID, &s.Shut); err != nil {
			return nil, fmt.Errorf("see how logins stand: %w", err)
		}
		all[role] = s
	}
	return all, d.explain(rows.Err())
}

// answerTries is how often a change of a login is made whose COMMIT had no answer.
const answerTries = 3

// answered repeats a change of a login whose COMMIT had no answer: made again it finds what the first one did, or waits for it. The error
// says so to the end where that was not seen.
func answered(change func() error) (err error) {
	unknown := false
	for try := range answerTries {
		if try > 0 {
			time.Sleep(backoff(try))
		}
		if err = change(); !errors.Is(err, ErrUnknownOutcome) {
			break
		}
		unknown = true
	}
	if err != nil && unknown {
		err = errors.Join(ErrUnknownOutcome, err)
	}
	return err
}

// ShutLogin takes a login's rights away, lets it in no more, and ends what it has open, whatever that holds. AddLogin and ReopenLogin give all
// back. One that is shut is left so.
func (d *DB) ShutLogin(ctx context.Context, role string) error {
	return answered(func() error {
		return d.asOwner(ctx, func(conn *sql.Conn, _ string) error {
			id, err := shutRole(ctx, conn, role)
			if err != nil || id != 0 { // the function removes one that is shut
				return err
			}
			_, err = conn.ExecContext(ctx, `SELECT chancery_logins.drop($1)`, role)
			return err
		})
	})
}

// ReopenLogin gives back what ShutLogin took, and reports whether there was anything: one that is not shut, or was taken away for good, stays
// as it is.
func (d *DB) ReopenLogin(ctx context.Context, role string, limited bool) (reopened bool, err error) {
	err = answered(func() error {
		return d.asOwner(ctx, func(conn *sql.Conn, owner string) error {
			before, err := shutRole(ctx, conn, role)
			if err != nil || before == 0 {
				return err
			}
			if err := d.addLogin(ctx, conn, owner, role, limited); err != nil {
				return err
			}
			var after int64 // the function makes what it does not find
			if err := conn.QueryRowContext(ctx, `SELECT CAST(oid AS BIGINT) FROM pg_roles WHERE rolname = $1`, role).Scan(&after); err != nil {
				return err
			}
			if after != before {
				return fault.New(fault.Conflict, "the login %s was taken away for good meanwhile", role)
			}
			reopened = true
			return nil
		})
	})
	return reopened && err == nil, err
}

// shutRole is the ID of the role of a login that is shut, 0 of any other.
func shutRole(ctx context.Context, conn *sql.Conn, role string) (id int64, err error) {
	err = conn.QueryRowContext(ctx, `SELECT COALESCE(MAX(CAST(r.oid AS BIGINT)), 0) FROM pg_roles r WHERE r.rolname = $1 AND `+isShut, role).Scan(&id)
	return id, err
}
