package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// Log appends to one node's chain and reads all of them.
type Log struct {
	db   *db.DB
	node string

	mu   sync.Mutex // guards last
	last tail       // where the chain is believed to end; only a hint, the database decides
}

// tail is the end of a chain, with the time of its event.
type tail struct {
	head
	time int64
}

// head is the last event of a chain.
type head struct {
	seq  int64
	hash [32]byte
}

// New returns the log of the node so named. Two processes must not use the same name.
func New(d *db.DB, node string) (*Log, error) {
	if node == "" || len(node) > 128 || strings.ContainsFunc(node, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fault.New(fault.Invalid, "node name %q is not 1 to 128 printable ASCII characters", node)
	}
	return &Log{db: d, node: node}, nil
}

// Node returns the name of the chain that Append writes to.
func (l *Log) Node() string { return l.node }

// Append records e in the transaction of what it reports. The event gets its place in the chain right before COMMIT, together
// with all others of the shared transaction: one INSERT and one change of the chain's head for all of them.
func (l *Log) Append(_ context.Context, tx *db.Tx, e Event) error {
	n, err := newEntry(l.node, e)
	if err != nil {
		return err
	}
	tx.BeforeCommit(l, &n, l.write)
	return nil
}

// rowsPerInsert is a lane's whole batch. A function that records more events than that costs several statements.
const rowsPerInsert = 64

// write chains the items and stores them. The head is moved by compare-and-set from where this process last left it; when
// that was wrong (a commit that failed, or an outcome that was unknown), it is read and the set is tried once more.
func (l *Log) write(ctx context.Context, tx *db.Tx, items []any) error {
	entries := make([]*entry, len(items))
	for i, item := range items {
		entries[i] = item.(*entry)
	}
	l.mu.Lock()
	from := l.last
	l.mu.Unlock()
	to := chain(from, entries)
	moved, err := l.move(ctx, tx, from.head, to.head)
	if err != nil {
		return err
	}
	if !moved {
		if from, err = l.readHead(ctx, tx); err != nil {
			return err
		}
		to = chain(from, entries)
		if moved, err = l.move(ctx, tx, from.head, to.head); err != nil {
			return err
		}
		if !moved {
			return fault.New(fault.Conflict, "the audit chain of node %s is being written by another process", l.node).
				WithHint("two nodes run under one name; stop one of them")
		}
	}
	for start := 0; start < len(entries); start += rowsPerInsert {
		if err := insert(ctx, tx, entries[start:min(start+rowsPerInsert, len(entries))]); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.last = to
	l.mu.Unlock()
	return nil
}

// reordered is by how much two acts may have read the clock in another order than they were committed in.
const reordered = time.Minute

// chain gives the entries their places after from, and returns where the chain then ends. An act that read the clock before
// the one that was committed ahead of it gets that one's time: so the order of times is the order of the chain, and whoever
// reads page after page misses nothing that was committed meanwhile. What lies further back is a clock that was set, which
// the record shows as it is.
func chain(from tail, entries []*entry) tail {
	for _, n := range entries {
		n.seq, n.prev = from.seq+1, from.hash
		if late := from.time - n.time; late > 0 && late <= reordered.Microseconds() {
			n.time = from.time
		}
		n.hash = n.sum()
		from = tail{head{n.seq, n.hash}, n.time}
	}
	return from
}

func (l *Log) move(ctx context.Context, tx *db.Tx, from, to head) (bool, error) {
	if from.seq == 0 {
		n, err := tx.Exec(ctx, `INSERT INTO audit_head (node, seq, hash) VALUES ($1, $2, $3) ON CONFLICT (node) DO NOTHING`,
			l.node, to.seq, to.hash[:])
		return n == 1, err
	}
	n, err := tx.Exec(ctx, `UPDATE audit_head SET seq = $1, hash = $2 WHERE node = $3 AND seq = $4 AND hash = $5`,
		to.seq, to.hash[:], l.node, from.seq, from.hash[:])
	return n == 1, err
}

func (l *Log) readHead(ctx context.Context, tx *db.Tx) (tail, error) {
	var h tail
	var hash []byte
	err := tx.QueryRow(ctx, `SELECT h.seq, h.hash, COALESCE(e.time, 0) FROM audit_head h
		LEFT JOIN audit_event e ON e.node = h.node AND e.seq = h.seq WHERE h.node = $1`, l.node).Scan(&h.seq, &hash, &h.time)
	if errors.Is(err, sql.ErrNoRows) {
		return tail{}, nil
	}
	if err != nil {
		return tail{}, err
	}
	if copy(h.hash[:], hash) != len(h.hash) || len(hash) != len(h.hash) {
		return tail{}, fmt.Errorf("the head of audit chain %s has a hash of %d octets", l.node, len(hash))
	}
	return h, nil
}

const eventColumns = `node, seq, time, actor, action, object, detail, prev, hash`

func insert(ctx context.Context, tx *db.Tx, entries []*entry) error {
	var query strings.Builder
	query.WriteString(`INSERT INTO audit_event (` + eventColumns + `) VALUES `)
	args := make([]any, 0, 9*len(entries))
	for i, n := range entries {
		if i > 0 {
			query.WriteString(", ")
		}
		p := len(args)
		fmt.Fprintf(&query, "($%d, $%d, $%d, $%d, $%d, $%d, $%d, $%d, $%d)", p+1, p+2, p+3, p+4, p+5, p+6, p+7, p+8, p+9)
		args = append(args, n.node, n.seq, n.time, n.actor, n.action, n.object, n.detail, n.prev[:], n.hash[:])
	}
	_, err := tx.Exec(ctx, query.String(), args...)
	return err
}

// scan reads one row of eventColumns.
func scan(row interface{ Scan(...any) error }) (entry, error) {
	var n entry
	var prev, hash []byte
	err := row.Scan(&n.node, &n.seq, &n.time, &n.actor, &n.action, &n.object, &n.detail, &prev, &hash)
	if err != nil {
		return entry{}, err
	}
	// A hash of another length is left zero: it then fits no event, and Verify says so.
	if len(prev) == len(n.prev) {
		copy(n.prev[:], prev)
	}
	if len(hash) == len(n.hash) {
		copy(n.hash[:], hash)
	}
	return n, nil
}
