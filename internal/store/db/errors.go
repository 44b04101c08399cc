package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"chancery/internal/fault"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrUnknownOutcome says that a COMMIT was sent and its answer is missing or cannot be trusted: the writes may be there,
// or not, or appear later. Only a look at the data can tell; repeat the call with the same idempotency key.
var ErrUnknownOutcome = errors.New("the outcome of the commit is unknown")

// ErrHeld is within what a write is refused with that needs a row, or a table, which another session of the database does not let go of.
var ErrHeld = errors.New("another session holds it")

// errLost marks the end of a connection that the driver reports as a bare EOF, which a function may also have read elsewhere.
var errLost = errors.New("the connection to the database was lost")

func markLost(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return err
}

// IsUnique reports whether err says that a row with the same key is there already.
func IsUnique(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "23505"
	}
	switch sqliteCode(err) {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return true
	}
	return false
}

// IsPrimaryKey reports whether err says that a table's primary key is taken already, and not another of its unique columns.
func IsPrimaryKey(err error, table string) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "23505" && e.ConstraintName == table+"_pkey"
	}
	return sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// sqliteCode is SQLite's extended result code, or 0.
func sqliteCode(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}

// disposition says what the lane does about an error.
type disposition int

const (
	final   disposition = iota // the caller's own affair
	again                      // nothing was done; the same transaction may pass when it is run again
	broken                     // nothing was done and the connection is useless; run again on a new one
	unknown                    // COMMIT was sent, and whether it took effect is not known
	held                       // nothing was done; a function of the transaction wants what another session does not let go of
)

// lockNotAvailable is PostgreSQL's code for a lock that was waited for in vain.
const lockNotAvailable = "55P03"

// judge classifies an error of BEGIN or of a statement before COMMIT, when nothing can be durable yet.
func judge(err error) disposition {
	if err == nil {
		return final
	}
	if errors.Is(err, errForeign) || errors.Is(err, errApart) {
		return broken
	}
	if errors.Is(err, errStandby) || errors.Is(err, errReplaced) || errors.Is(err, errDemoted) {
		return broken
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case e.Code == "40001", e.Code == "40P01", e.Code == "40003":
			return again
		case e.Code == lockNotAvailable:
			return held
		case e.Code == "25006": // read_only_sql_transaction: the primary became a standby under us
			return broken
		case e.Severity == "FATAL", e.Severity == "PANIC", strings.HasPrefix(e.Code, "08"), strings.HasPrefix(e.Code, "57P"):
			return broken
		}
		return final
	}
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return again
	}
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || isNetwork(err) {
		return broken
	}
	return final
}

// judgeCommit classifies an error of COMMIT. Only an answer that says "rolled back" counts as one.
func judgeCommit(err error) disposition {
	switch {
	case err == nil:
		return final
	case errors.Is(err, ErrUnknownOutcome):
		return unknown
	case errors.Is(err, errRolledBack):
		return again
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone):
		return broken // the driver promises that it sent nothing
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case e.Code == "40001", e.Code == "40P01":
			return again
		case e.Code == "40003", e.Severity != "ERROR", strings.HasPrefix(e.Code, "08"), strings.HasPrefix(e.Code, "57"):
			return unknown
		}
		return final
	}
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return again
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_CONSTRAINT:
		return final
	}
	return unknown // an I/O error in the sync, a connection that died
}

func isNetwork(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true // whoever ended the attempt, there is no connection
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false // the caller's own clock, though it looks like a network's
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return pgconn.SafeToRetry(err) || errors.Is(err, errLost)
}

// outcome notes whether the store took what was written, for CheckWrites, and explains an error.
func (d *DB) outcome(err error) error {
	explained := d.explain(err)
	if refusesWrites(err) {
		d.refused.Store(&explained)
	}
	return explained
}

// CheckWrites says why the store refused a write since the last heartbeat that passed: a full disk, a file or a database that only
// reads. It writes nothing and costs nothing, so a probe may ask as often as it likes.
func (d *DB) CheckWrites() error {
	if err := d.refusedAll(); err != nil {
		return err
	}
	if refused := d.refused.Load(); refused != nil {
		return *refused
	}
	return nil
}

// refusesWrites tells a store that takes no writes from one that is away, busy, or refuses just this one.
func refusesWrites(err error) bool {
	if err == nil {
		return false
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return cannotWrite(e.Code) != ""
	}
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT,
		sqlite3.SQLITE_NOTADB:
		return true
	}
	return false
}

// cannotWrite says what PostgreSQL's codes of errors that end all writing mean, "" for others.
func cannotWrite(code string) string {
	switch code {
	case "53100": // disk_full
		return "the disk of the database is full"
	case "58030": // io_error
		return "the disk of the database answered with an error"
	case "25006": // read_only_sql_transaction
		return "the database only reads: it is a standby, or was set to"
	}
	return ""
}

// explain turns what the machine or the network did into a refusal that an operator can act on; other errors pass as
// they are.
func (d *DB) explain(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if errors.Is(err, ErrUnknownOutcome) {
		return (&fault.Error{Kind: fault.Unavailable, Err: err,
			Message: "the database did not say whether the change was made"}).
			WithHint("repeat the call with the same idempotency key; it answers with what was done")
	}
	switch code := sqliteCode(err); code & 0xff {
	case sqlite3.SQLITE_FULL:
		return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: "the disk that holds " + d.path + " is full; nothing was changed"}).
			WithHint("free space there; the node goes on by itself")
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: d.path + " or its directory cannot be written; nothing was changed"}).
			WithHint("check the mount and the owner of the data directory")
	case sqlite3.SQLITE_IOERR:
		return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: "the disk that holds " + d.path + " answered with an error; nothing was changed"}).
			WithHint("check the disk and its free space (code %d)", code)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: d.path + " is damaged or no database"}).
			WithHint("restore the newest backup")
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && cannotWrite(e.Code) != "" {
		return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: cannotWrite(e.Code) + "; nothing was changed"}).
			WithHint("see to the database server; the node goes on by itself")
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == "42501" { // insufficient_privilege
		return &fault.Error{Kind: fault.Conflict, Err: fmt.Errorf("%w: %w", ErrReadsOnly, err),
			Message: "this node's login at the database may not write that; nothing was changed"}
	}
	if LoginRefused(err) {
		e, _ := errors.AsType[*pgconn.PgError](err)
		return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: "PostgreSQL does not let this login in (" + e.Message + "); nothing was changed"}).
			WithHint("the login of a node that left or was removed has ended: chancery clone list, on another node; else see to pg_hba.conf and the login's certificate")
	}
	switch judge(err) {
	case broken:
		if errors.Is(err, errReplaced) {
			return (&fault.Error{Kind: fault.Unavailable, Err: err,
				Message: "the database server that takes writes was replaced by another, which does not answer; nothing was changed"}).
				WithHint("after a failover the node goes on by itself; if the database was put back to an earlier time, restart the node; " +
					"chancery doctor database says who takes writes")
		}
		if errors.Is(err, errStandby) {
			return (&fault.Error{Kind: fault.Unavailable, Err: err,
				Message: "no database server that answers takes writes: the one that was given is a standby; nothing was changed"}).
				WithHint("name all servers in the database URL; after a failover the node goes on by itself; chancery doctor database")
		}
		return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: "the database cannot be reached; nothing was changed"}).
			WithHint("chancery doctor")
	case held:
		var seen sight
		if waited, ok := errors.AsType[*lockError](err); ok {
			seen = waited.seen
		}
		return refusedLock(err, seen)
	case again:
		return &fault.Error{Kind: fault.Unavailable, Err: err, Message: "the database is too busy with other changes of the same objects; try again"}
	}
	return err
}

// IsNoTable reports whether err says that a table of the statement does not exist.
func IsNoTable(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "42P01"
	}
	return sqliteCode(err) == sqlite3.SQLITE_ERROR && strings.Contains(err.Error(), "no such table") // SQLite has no code for it
}
