package pkitest

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
)

// Faults makes a database fail where a test says so. Its Wrap goes into db.Options. Steps are counted over all connections,
// from the call that orders the fault.
type Faults struct {
	mu           sync.Mutex
	commits      int                      // guarded by mu: COMMITs seen
	statements   int                      // guarded by mu: other statements seen, BEGIN and ROLLBACK too
	onCommit     map[int]Outcome          // guarded by mu
	onStatement  map[int]error            // guarded by mu
	open         map[*faultyConn]struct{} // guarded by mu
	beforeCommit func()                   // guarded by mu: called before each COMMIT
}

// Outcome is what becomes of a commit that seems to fail.
type Outcome string

// The outcomes: both look alike to the caller.
const (
	NotPersisted    Outcome = "not persisted"
	PersistedAnyway Outcome = "persisted anyway"
)

// ErrFault is the error of an injected fault. It looks like no error of an engine.
var ErrFault = errors.New("injected fault")

// FailCommit makes the nth COMMIT from now (1 is the next) fail, with the writes kept or not.
func (f *Faults) FailCommit(n int, o Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onCommit == nil {
		f.onCommit = map[int]Outcome{}
	}
	f.onCommit[f.commits+n] = o
}

// FailStatement makes the nth statement from now fail with err before it is sent; driver.ErrBadConn stands for a
// connection that is dead.
func (f *Faults) FailStatement(n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onStatement == nil {
		f.onStatement = map[int]error{}
	}
	f.onStatement[f.statements+n] = err
}

// Clear calls off the faults that were not met yet.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onCommit, f.onStatement, f.beforeCommit = nil, nil, nil
}

// BeforeCommit has fn called before each COMMIT, for instance to wait or to kill the server.
func (f *Faults) BeforeCommit(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.beforeCommit = fn
}

// Commits is how many COMMITs were seen.
func (f *Faults) Commits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commits
}

// Statements is how many other statements were seen.
func (f *Faults) Statements() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.statements
}

// KillConnections makes every connection that is open now useless, as a server's crash or a cut network does.
func (f *Faults) KillConnections() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.open {
		c.dead = true
	}
}

// Wrap is for db.Options.Wrap.
func (f *Faults) Wrap(c driver.Connector) driver.Connector { return faultyConnector{c, f} }

type faultyConnector struct {
	driver.Connector
	faults *Faults
}

func (c faultyConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	full, ok := conn.(fullConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T lacks a method", conn), conn.Close())
	}
	f := &faultyConn{fullConn: full, faults: c.faults}
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	if c.faults.open == nil {
		c.faults.open = map[*faultyConn]struct{}{}
	}
	c.faults.open[f] = struct{}{}
	return f, nil
}

type fullConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
}

// faultyConn is one connection.
type faultyConn struct {
	fullConn
	faults *Faults
	dead   bool // guarded by faults.mu
}

// step counts a statement and says what fault it meets.
func (c *faultyConn) step(query string) (Outcome, func(), error) {
	f := c.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	if query == "COMMIT" {
		f.commits++
		if c.dead {
			return "", nil, fmt.Errorf("%w: the connection died", ErrFault)
		}
		return f.onCommit[f.commits], f.beforeCommit, nil
	}
	f.statements++
	if c.dead {
		return "", nil, driver.ErrBadConn
	}
	return "", nil, f.onStatement[f.statements]
}

func (c *faultyConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	outcome, before, err := c.step(query)
	if err != nil {
		return nil, err
	}
	if before != nil {
		before()
	}
	switch outcome {
	case NotPersisted:
		_, err := c.fullConn.ExecContext(ctx, "ROLLBACK", nil)
		return nil, errors.Join(fmt.Errorf("%w: %s", ErrFault, outcome), err)
	case PersistedAnyway:
		_, err := c.fullConn.ExecContext(ctx, query, args)
		return nil, errors.Join(fmt.Errorf("%w: %s", ErrFault, outcome), err)
	}
	return c.fullConn.ExecContext(ctx, query, args)
}

func (c *faultyConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if _, _, err := c.step(query); err != nil {
		return nil, err
	}
	return c.fullConn.QueryContext(ctx, query, args)
}

// CheckNamedValue lets pgx take every value, as it does unwrapped, and leaves SQLite's to database/sql.
func (c *faultyConn) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.fullConn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

func (c *faultyConn) ResetSession(ctx context.Context) error {
	c.faults.mu.Lock()
	dead := c.dead
	c.faults.mu.Unlock()
	if dead {
		return driver.ErrBadConn
	}
	return c.fullConn.ResetSession(ctx)
}

func (c *faultyConn) Close() error {
	c.faults.mu.Lock()
	delete(c.faults.open, c)
	c.faults.mu.Unlock()
	return c.fullConn.Close()
}
