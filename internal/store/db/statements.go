package db

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

const errReadOnly = syscall.EROFS

// maxStatements bounds the prepared statements of one SQLite connection.
const maxStatements = 256

// sqliteConnector adds to modernc's connections what pgx has built in: statements are prepared once per connection.
type sqliteConnector struct{ driver.Connector }

func (c sqliteConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	raw, ok := conn.(sqliteDriverConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("the SQLite driver's %T lacks a method that database/sql needs", conn)
	}
	return &sqliteConn{sqliteDriverConn: raw, prepared: map[string]*prepared{}}, nil
}

type sqliteDriverConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// sqliteConn is one connection. database/sql lets one goroutine at a time use it.
type sqliteConn struct {
	sqliteDriverConn
	prepared map[string]*prepared
}

type prepared struct {
	exec  driver.StmtExecContext
	query driver.StmtQueryContext
	stmt  driver.Stmt
	busy  bool // its rows are still open
}

func (c *sqliteConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	p, err := c.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return c.sqliteDriverConn.ExecContext(ctx, query, args)
	}
	return p.exec.ExecContext(ctx, args)
}

func (c *sqliteConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	p, err := c.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return c.sqliteDriverConn.QueryContext(ctx, query, args)
	}
	rows, err := p.query.QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	p.busy = true
	return &preparedRows{Rows: rows, prepared: p}, nil
}

// prepare finds or makes the prepared form of query. It returns nil where that form is in use by rows that are still open.
func (c *sqliteConn) prepare(ctx context.Context, query string) (*prepared, error) {
	if p := c.prepared[query]; p != nil {
		if p.busy {
			return nil, nil
		}
		return p, nil
	}
	stmt, err := c.sqliteDriverConn.PrepareContext(ctx, anonymous(query))
	if err != nil {
		return nil, err
	}
	exec, canExec := stmt.(driver.StmtExecContext)
	rows, canQuery := stmt.(driver.StmtQueryContext)
	if !canExec || !canQuery {
		stmt.Close()
		return nil, nil
	}
	if len(c.prepared) >= maxStatements {
		c.forget()
	}
	p := &prepared{exec: exec, query: rows, stmt: stmt}
	c.prepared[query] = p
	return p, nil
}

// anonymous writes ? for $1, $2 … where these stand in their order, once each, and mean the same therefore. SQLite looks
// the name of a parameter up by going through all of them each time that one is bound, which for the rows of a batch took as
// long as to insert them.
func anonymous(query string) string {
	var b strings.Builder
	b.Grow(len(query))
	count := 1
	for rest := query; ; {
		at := strings.IndexAny(rest, `$?'"`)
		if at < 0 {
			b.WriteString(rest)
			return b.String()
		}
		b.WriteString(rest[:at])
		switch sign := rest[at]; sign {
		case '$':
			number := strconv.Itoa(count)
			after, ok := strings.CutPrefix(rest[at+1:], number)
			if !ok || after != "" && '0' <= after[0] && after[0] <= '9' {
				return query
			}
			b.WriteByte('?')
			rest = after
			count++
		case '?':
			return query
		default: // a quoted text, which may hold what looks like a parameter
			end := strings.IndexByte(rest[at+1:], sign)
			if end < 0 {
				return query
			}
			b.WriteString(rest[at : at+end+2])
			rest = rest[at+end+2:]
		}
	}
}

// forget closes one statement that is not in use; which one is left to chance, so no access pattern can be the worst.
func (c *sqliteConn) forget() {
	for query, p := range c.prepared {
		if !p.busy {
			p.stmt.Close()
			delete(c.prepared, query)
			return
		}
	}
}

func (c *sqliteConn) Close() error {
	for _, p := range c.prepared {
		p.stmt.Close()
	}
	clear(c.prepared)
	return c.sqliteDriverConn.Close()
}

// preparedRows hands the statement back when the rows are closed.
type preparedRows struct {
	driver.Rows
	prepared *prepared
}

func (r *preparedRows) Close() error {
	err := r.Rows.Close()
	r.prepared.busy = false
	return err
}
