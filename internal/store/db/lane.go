package db

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/internal/fault"
)

const (
	batchSize = 64
	batchTime = time.Millisecond // from the first function's start; after it no more are taken in
	// nestingCheck is how long a call waits before it suspects itself.
	nestingCheck = 20 * time.Millisecond
)

// lane is the queue of write functions. Whoever finds it free leads: it runs a batch and passes the lane to the first in
// the queue.
type lane struct {
	mu    sync.Mutex
	queue []*call   // guarded by mu
	busy  bool      // guarded by mu: somebody leads
	idle  sync.Cond // guarded by mu: signalled when busy falls
	shut  bool      // guarded by mu: no new calls
	// guarded by mu: why no new calls for now
	onlyRead error
}

// call is one function that waits, runs, and gets its answer.
type call struct {
	ctx      context.Context
	fn       func(*Tx) error
	alone    bool
	ahead    *Ahead     // what is read before fn runs; nil for nothing
	seen     *view      // in which ahead was read; owned by the leader
	orders   chan order // capacity 1: what the leader tells the caller
	ran      chan run   // capacity 1: what the caller's function came to
	err      error      // the answer; written before the order finish, or by the leader for itself
	repeated bool       // the function had its second run after a duplicate key
	gone     bool       // the function panicked or left its goroutine: it has no caller to answer any more
}

type order struct {
	verb verb
	tx   *Tx
}

type verb int

const (
	lead verb = iota
	execute
	finish
)

// run is what one execution of a function came to.
type run struct {
	err  error
	gone bool
}

// Tx runs fn in a serializable transaction and returns when its writes are durable, or not done. Functions of several
// callers share a transaction (see the package comment); a lone one does not wait for company. fn may run more than once.
//
// A caller whose ctx ends while it waits, in the queue or for a connection, is dropped; once fn has started, the transaction runs to its end.
func (d *DB) Tx(ctx context.Context, fn func(tx *Tx) error) error {
	return d.submit(&call{ctx: ctx, fn: fn})
}

// TxAlone is Tx for a big maintenance write: it shares its transaction with nobody, so that it delays only by its own time.
func (d *DB) TxAlone(ctx context.Context, fn func(tx *Tx) error) error {
	return d.submit(&call{ctx: ctx, fn: fn, alone: true})
}

// TxAhead is Tx for a function that begins with the same small reads as its neighbours in the queue: they are done for all of
// them together, before the first runs.
func (d *DB) TxAhead(ctx context.Context, ahead Ahead, fn func(tx *Tx) error) error {
	return d.submit(&call{ctx: ctx, fn: fn, ahead: &ahead})
}

func (d *DB) submit(c *call) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if err := d.Away(); err != nil {
		return err
	}
	if err := d.guarded(c.ctx); err != nil {
		return err
	}
	leads, err := d.lane.join(c)
	if err != nil {
		return err
	}
	if leads {
		return d.outcome(d.lead(c))
	}
	cancelled := c.ctx.Done()
	nesting := time.NewTimer(nestingCheck)
	defer nesting.Stop()
	for {
		select {
		case <-nesting.C:
			if insideFunction() && d.lane.leave(c) {
				return errors.New("db: a transaction inside a transaction: pass the *Tx on instead")
			}
		case o := <-c.orders:
			switch o.verb {
			case lead:
				return d.outcome(d.lead(c))
			case execute:
				cancelled = nil // it has started
				c.obey(o.tx)
			case finish:
				return d.outcome(c.err)
			}
		case <-cancelled:
			if d.lane.leave(c) {
				return c.ctx.Err()
			}
			cancelled = nil
		}
	}
}

// obey runs the function on its own caller's goroutine. A panic goes on unwinding there, after the leader has been told.
func (c *call) obey(tx *Tx) {
	result := run{gone: true}
	defer func() { c.ran <- result }()
	err := c.invoke(tx)
	result = run{err: err}
}

// invoke calls the function. Its frame is what insideFunction looks for, and so it is never inlined.
//
//go:noinline
func (c *call) invoke(tx *Tx) error { return c.fn(tx) }

// insideFunction reports whether a function of a write transaction is on our stack. A Tx there would wait for itself for ever;
// its context cannot tell, being the outer caller's. The stack is looked at only by who has waited for nestingCheck already,
// because looking costs more than a queued insert.
func insideFunction() bool {
	pc := make([]uintptr, 256)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "/internal/store/db.(*call).invoke") {
			return true
		}
		if !more {
			return false
		}
	}
}

// join puts c into the lane, and says whether it leads.
func (l *lane) join(c *call) (leads bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return false, fault.New(fault.Unavailable, "the database is being closed")
	}
	if l.onlyRead != nil {
		return false, l.onlyRead
	}
	if !l.busy {
		l.busy = true
		return true, nil
	}
	c.orders, c.ran = make(chan order, 1), make(chan run, 1)
	l.queue = append(l.queue, c)
	return false, nil
}

// leave takes c out of the queue, unless a leader has taken it already.
func (l *lane) leave(c *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.queue, c)
	if i < 0 {
		return false
	}
	l.queue = slices.Delete(l.queue, i, i+1)
	return true
}

// take gives the next call that may share a batch, or nil.
func (l *lane) take() *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 || l.queue[0].alone {
		return nil
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c
}

// pass makes the first in the queue the leader.
func (l *lane) pass() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		l.queue = nil // let go of the array
		l.busy = false
		l.idle.Broadcast()
		return
	}
	next := l.queue[0]
	l.queue = l.queue[1:]
	next.orders <- order{verb: lead}
}

// drain refuses new calls and waits until those in the lane have their answers.
func (l *lane) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
	if l.idle.L == nil {
		l.idle.L = &l.mu
	}
	for l.busy {
		l.idle.Wait()
	}
}

// lead runs a batch that starts with c's own function, answers its followers, and passes the lane on.
func (d *DB) lead(c *call) error {
	b := &batch{d: d, leader: c, calls: []*call{c}}
	defer func() { // on the way out of a panic too: the followers' answers do not depend on the leader's fate
		if c.gone {
			b.calls = slices.DeleteFunc(b.calls, func(other *call) bool { return other == c })
			if len(b.calls) > 0 {
				b.settle()
			}
		}
		d.lane.pass()
	}()
	b.settle()
	return c.err
}
