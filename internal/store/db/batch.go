package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"chancery/internal/fault"
)

const (
	sharedTries = 3  // runs of a batch as a whole before each function runs alone
	aloneTries  = 10 // runs of one function alone, at least
	brokenTries = 5  // connections tried before all are told that the database is away

	// aloneFor is how long one function alone is run again where others' transactions got ahead of it: of several nodes that write side by
	// side, with a standby to wait for, one may lose many times in a row.
	aloneFor = 5 * time.Second
)

// batch is the functions that share a transaction. The leader's goroutine owns it.
type batch struct {
	d       *DB
	leader  *call
	calls   []*call    // without those that are answered
	begun   bool       // a connection was had, so that functions may have run
	closed  bool       // no more are taken in
	careful bool       // a savepoint for each function
	sent    []sent     // statements that wait for the next flush
	items   []addition // what functions that succeeded gave to BeforeCommit
	view    *view      // what reading ahead has seen; nil since a function wrote
	viewed  bool       // something was read ahead in this transaction
	wrote   bool       // something was sent that may have written
	marked  bool       // the mark was sent
	number  int64      // the transaction's, where it has one
	fence   *fence     // that a function took
	stuck   *stuck     // the first statement of this transaction that waited for a lock in vain
	seen    sight      // whom the last try waited for
	since   time.Time  // when the first try began
	blind   int        // how many tries waited for a lock, and nobody was seen to have it
}

// stuck is whose statement waited in vain; nil for one of all.
type stuck struct{ call *call }

// keptFrom notes whose statement it was that failed, if that is because another session has what it wants.
func (b *batch) keptFrom(c *call, err error) {
	if b != nil && b.stuck == nil && judge(err) == held {
		b.stuck = &stuck{c}
		b.d.held.Store(time.Now().UnixNano())
	}
}

// stuckFor is how long after a lock was waited for in vain others are waited for briefly.
const stuckFor = 15 * time.Second

// giveUp answers the function that waited for a lock in vain, so that its neighbours do not wait for it again; all of them, where it was
// what all write.
func (b *batch) giveUp(err error) {
	at := -1
	if b.stuck != nil && b.stuck.call != nil {
		at = slices.Index(b.calls, b.stuck.call)
	}
	if at < 0 {
		b.answer(err)
		return
	}
	b.reply(b.calls[at], err)
	b.calls = slices.Delete(b.calls, at, at+1)
}

// errRetry makes settle run the batch again: a function failed after it had written, and nothing separates its writes
// from its neighbours'.
var errRetry = errors.New("a function of the batch failed after writing")

// settle runs the batch until each of its calls has an answer.
func (b *batch) settle() {
	b.since = time.Now()
	for attempt := 1; len(b.calls) > 0; attempt++ {
		kind, err := b.try()
		switch {
		case err == nil: // what is left in b.calls asked to be repeated
		case err == errRetry:
			b.careful = true
		case kind == unknown:
			b.d.log.Error("commit without an answer", "functions", len(b.calls), "error", err)
			b.answer(errors.Join(ErrUnknownOutcome, err))
		case kind == broken && attempt < brokenTries, kind == again && b.triesOn(attempt):
			time.Sleep(jittered(backoff(attempt - 1)))
		case kind == held && b.waitsOn():
			attempt-- // of waits there are as many as it takes
		case kind == held:
			b.giveUp(b.inVain(err))
		case len(b.calls) == 1:
			b.conclude([]verdict{{b.calls[0], err}})
		case kind == broken:
			b.answer(err)
		default:
			b.separate()
		}
		b.closed = true
	}
}

func (b *batch) triesOn(attempt int) bool {
	if len(b.calls) > 1 {
		return attempt < sharedTries
	}
	return attempt < aloneTries || time.Since(b.since) < aloneFor
}

// jittered is between half of a pause and all of it, so that two who were in each other's way do not meet again.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// separate runs each call in a transaction of its own.
func (b *batch) separate() {
	calls := b.calls
	b.calls = nil
	for i, c := range calls {
		one := &batch{d: b.d, leader: b.leader, calls: []*call{c}, begun: true, closed: true}
		if c == b.leader {
			b.calls = calls[i+1:] // whom lead settles if this function panics
		}
		one.settle()
	}
	b.calls = nil
}

// answer gives err to all calls that have no answer yet.
func (b *batch) answer(err error) {
	for _, c := range b.calls {
		b.reply(c, err)
	}
	b.calls = nil
}

func (b *batch) reply(c *call, err error) {
	c.err = err
	if c != b.leader && !c.gone {
		c.orders <- order{verb: finish}
	}
}

// verdict is a function that failed in a transaction that may yet commit; its error counts only if it does, because it
// may come from a neighbour's write.
type verdict struct {
	call *call
	err  error
}

// try runs the batch in one transaction. After a commit it has answered all calls but those to repeat, which stay in b.calls.
func (b *batch) try() (kind disposition, err error) {
	if err := b.d.Away(); err != nil {
		return broken, err
	}
	conn, kind, err := b.connection()
	if err != nil {
		return kind, err
	}
	b.sent, b.items, b.view, b.viewed, b.wrote = nil, nil, nil, false, false
	b.marked, b.number, b.fence, b.stuck = false, 0, nil, nil
	defer b.d.kept.end()
	clean := false
	defer func() {
		if !clean {
			discard(conn)
		}
		conn.Close()
	}()
	if _, err := conn.ExecContext(context.Background(), b.d.beginWrite); err != nil {
		return judge(err), err
	}
	looks, err := b.limitWaits(conn)
	if err != nil {
		return judge(err), err
	}
	defer looks.stop()
	// rollback leaves a connection that can be used again, or else a discarded one
	rollback := func() {
		_, end := conn.ExecContext(context.Background(), "ROLLBACK")
		clean = end == nil
	}
	defer func() { // the leader's own function panicked
		if b.leader.gone && !clean {
			rollback()
		}
	}()
	failed, kind, err := b.runAll(conn)
	if err == nil && len(failed) < len(b.calls) { // else nothing is committed, and a statement may have ended the transaction
		if kind, err = b.writeItems(conn, b.items); err == nil {
			kind, err = b.flushLast(conn)
		}
	}
	b.seen = looks.stop()
	if err != nil {
		if kind != broken {
			rollback()
		}
		return kind, err
	}
	if len(failed) == len(b.calls) {
		rollback()
	} else if _, err := conn.ExecContext(context.Background(), "COMMIT"); err != nil {
		kind = judgeCommit(err)
		if kind == final || kind == again {
			rollbackQuietly(conn, b.d.dialect)
			clean = true
		}
		return kind, err
	} else {
		clean = true
		b.d.acknowledged(b.number)
		if b.fence != nil {
			b.d.fence.Store(b.fence)
		}
	}
	b.conclude(failed)
	return final, nil
}

// connection waits for one. Until there is one nothing has begun, and the batch is its leader alone, who waits for no longer than his
// ctx lasts: snapshots may have all that there are.
func (b *batch) connection() (conn *sql.Conn, kind disposition, err error) {
	ctx := context.Background()
	if !b.begun {
		ctx = b.leader.ctx
	}
	conn, err = b.d.writer.Conn(ctx)
	switch {
	case err == nil:
		b.begun = true
		return conn, final, nil
	case ctx.Err() != nil && errors.Is(err, context.DeadlineExceeded):
		return nil, final, (&fault.Error{Kind: fault.Unavailable, Err: err,
			Message: "no connection to the database was to be had in time; nothing was changed"}).
			WithHint("repeat the call later; chancery doctor database says what is wrong")
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, final, ctx.Err()
	}
	return nil, judge(err), err
}

// conclude answers the calls of a transaction that has ended. Those whose row another node wrote in the same moment are kept
// for one more run: PostgreSQL reports that as a duplicate key rather than as a conflict, and the next look sees the row. An ID that two
// have drawn is another one in that run, on either engine.
func (b *batch) conclude(failed []verdict) {
	var repeat []*call
	for _, c := range b.calls {
		var err error
		if i := slices.IndexFunc(failed, func(v verdict) bool { return v.call == c }); i >= 0 {
			err = failed[i].err
		}
		if _, refusal := errors.AsType[*fault.Error](err); !c.repeated && !refusal && IsUnique(err) {
			c.repeated = true
			repeat = append(repeat, c)
			continue
		}
		b.reply(c, err)
	}
	b.calls = repeat
}

// rollbackQuietly ends what a refused COMMIT may have left open: SQLite stays in the transaction when it is busy or full,
// PostgreSQL never does.
func rollbackQuietly(conn *sql.Conn, dialect Dialect) {
	if dialect == SQLite {
		conn.ExecContext(context.Background(), "ROLLBACK")
	}
}

// runAll runs the functions one after the other, and takes in those that queue up meanwhile.
func (b *batch) runAll(conn *sql.Conn) (failed []verdict, kind disposition, err error) {
	start := time.Now()
	b.takeIn(start)
	for i := 0; i < len(b.calls); i++ {
		c := b.calls[i]
		if kind, err := b.readAhead(conn, b.calls[i:]); err != nil {
			return nil, kind, err
		}
		tx := &Tx{d: b.d, conn: conn, batch: b, mark: len(b.sent), write: true, call: c}
		// A savepoint is two round trips on PostgreSQL, and makes SQLite keep a copy of each page that is changed after it.
		guard := b.careful
		if guard {
			if _, err := conn.ExecContext(context.Background(), "SAVEPOINT f"); err != nil {
				return nil, judge(err), err
			}
		}
		kind, err := b.runOne(c, tx)
		if guard && err == nil && !c.gone {
			if _, err = b.flush(conn); err != nil {
				b.keptFrom(c, err)
				tx.failed, kind = err, judge(err)
			}
		}
		if err != nil || c.gone {
			b.sent = b.sent[:min(tx.mark, len(b.sent))]
		}
		if c.gone {
			b.calls = slices.DeleteFunc(b.calls, func(other *call) bool { return other == c })
			i--
		}
		if kind != final {
			return nil, kind, err
		}
		if err == nil && !c.gone {
			b.items = append(b.items, tx.added...)
		} else if !c.gone {
			failed = append(failed, verdict{c, err})
		}
		if err := b.separateWrites(conn, tx, guard, err != nil || c.gone); err != nil {
			if err == errRetry {
				return nil, again, err
			}
			return nil, judge(err), err
		}
		b.takeIn(start)
		if i == len(b.calls)-1 && !b.closed {
			runtime.Gosched() // whoever is about to queue up may still come along
			b.takeIn(start)
		}
	}
	return failed, final, nil
}

// takeIn adds those who wait to the batch.
func (b *batch) takeIn(start time.Time) {
	for !b.closed && !b.leader.alone && len(b.calls) < batchSize && time.Since(start) < batchTime {
		c := b.d.lane.take()
		if c == nil {
			return
		}
		b.calls = append(b.calls, c)
	}
}

// separateWrites ends the savepoint of a function, or undoes what a failed one wrote.
func (b *batch) separateWrites(conn *sql.Conn, tx *Tx, guard, failed bool) error {
	switch {
	case guard && failed:
		if _, err := conn.ExecContext(context.Background(), "ROLLBACK TO f"); err != nil {
			return err
		}
		fallthrough
	case guard:
		_, err := conn.ExecContext(context.Background(), "RELEASE f")
		return err
	case failed && (tx.wrote || tx.failed != nil):
		b.closed = true // nobody may join these writes
		if slices.ContainsFunc(b.calls, func(other *call) bool { return other != tx.call }) {
			return errRetry
		}
	}
	return nil
}

// runOne runs one function. kind is final unless the transaction itself is lost.
func (b *batch) runOne(c *call, tx *Tx) (kind disposition, err error) {
	defer tx.finish()
	if c == b.leader {
		c.gone = true
		err = c.invoke(tx)
		c.gone = false
	} else {
		c.orders <- order{verb: execute, tx: tx}
		result := <-c.ran
		err, c.gone = result.err, result.gone
	}
	if err == nil && tx.failed != nil {
		err = fmt.Errorf("db: the function went on after a statement failed: %w", tx.failed)
	}
	if kind = judge(tx.failed); kind == final {
		kind = judge(err) // rows that broke off while they were read
	}
	return kind, err
}

// writeItems calls each key's writer once with all items of the functions that succeeded.
func (b *batch) writeItems(conn *sql.Conn, items []addition) (disposition, error) {
	for len(items) > 0 {
		first := items[0]
		var mine []any
		items = slices.DeleteFunc(items, func(a addition) bool {
			if a.key != first.key {
				return false
			}
			mine = append(mine, a.item)
			return true
		})
		tx, kind, err := b.together(conn, first.write, mine)
		if err != nil {
			return kind, err
		}
		items = append(items, tx.added...)
	}
	return final, nil
}
