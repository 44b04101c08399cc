package audit

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// Filter selects events. Zero fields select all.
type Filter struct {
	Since, Until time.Time // Since <= event < Until
	Actor        string
	Action       string // whole, or a prefix that ends in a dot: "certificate."
	Object       string
	Node         string
	Newest       bool // newest first
}

// Page is some events and the key of the page after them.
type Page struct {
	Events []Event
	Next   string // empty on the last page
}

const maxPage = 1000

// Search returns up to limit events in the order of their times, beginning after the page key that an earlier page gave.
// Who may read the record is the caller's to decide, here and in Export.
func (l *Log) Search(ctx context.Context, f Filter, after string, limit int) (Page, error) {
	if limit <= 0 || limit > maxPage {
		return Page{}, fault.New(fault.Invalid, "a page of %d events was asked for; from 1 to %d can be had", limit, maxPage).At("limit")
	}
	key, err := parseKey(after)
	if err != nil {
		return Page{}, err
	}
	var entries []entry
	err = l.db.Read(ctx, func(tx *db.Tx) error {
		entries, err = page(ctx, tx, f, key, limit+1)
		return err
	})
	if err != nil {
		return Page{}, fmt.Errorf("search audit events: %w", err)
	}
	var p Page
	if len(entries) > limit {
		entries = entries[:limit]
		p.Next = keyOf(entries[limit-1]).String()
	}
	p.Events = make([]Event, len(entries))
	for i := range entries {
		p.Events[i] = entries[i].event()
	}
	return p, nil
}

// pageKey is the place of an event in the order of times.
type pageKey struct {
	time int64
	node string
	seq  int64
}

func keyOf(n entry) *pageKey { return &pageKey{n.time, n.node, n.seq} }

func (k *pageKey) String() string {
	text := strconv.FormatInt(k.time, 10) + " " + strconv.FormatInt(k.seq, 10) + " " + k.node
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

func parseKey(text string) (*pageKey, error) {
	if text == "" {
		return nil, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		if parts := strings.SplitN(string(raw), " ", 3); len(parts) == 3 {
			t, err1 := strconv.ParseInt(parts[0], 10, 64)
			seq, err2 := strconv.ParseInt(parts[1], 10, 64)
			if err1 == nil && err2 == nil {
				return &pageKey{t, parts[2], seq}, nil
			}
		}
	}
	return nil, fault.New(fault.Invalid, "%.80q is not a page key; give the one that the page before returned", text).At("after")
}

// page reads one page in a transaction. The conditions name only what is asked for, so that the index that fits is used.
func page(ctx context.Context, tx *db.Tx, f Filter, after *pageKey, limit int) ([]entry, error) {
	var where []string
	var args []any
	add := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", "$"+strconv.Itoa(len(args)), 1)
		}
		where = append(where, condition)
	}
	// Where a page key bounds the times already, a second bound would only lead the planner to begin at the wrong one.
	if !f.Since.IsZero() && (after == nil || f.Newest || after.time < db.Micros(f.Since)) {
		add("time >= ?", db.Micros(f.Since))
	}
	if !f.Until.IsZero() && (after == nil || !f.Newest || after.time >= db.Micros(f.Until)) {
		add("time < ?", db.Micros(f.Until))
	}
	if f.Actor != "" {
		add("actor = ?", f.Actor)
	}
	if prefix, ok := strings.CutSuffix(f.Action, "."); ok {
		// Not a range: how text sorts depends on the database's collation.
		add("substr(action, 1, "+strconv.Itoa(utf8.RuneCountInString(prefix)+1)+") = ?", prefix+".")
	} else if f.Action != "" {
		add("action = ?", f.Action)
	}
	if f.Object != "" {
		add("object = ?", f.Object)
	}
	if f.Node != "" {
		// An expression, so that the order of times is read from its index instead of sorting the whole chain for each page.
		add("node || '' = ?", f.Node)
	}
	order, beyond := "time, node, seq", ">"
	if f.Newest {
		order, beyond = "time DESC, node DESC, seq DESC", "<"
	}
	if after != nil {
		add("(time, node, seq) "+beyond+" (?, ?, ?)", after.time, after.node, after.seq)
	}
	query := `SELECT ` + eventColumns + ` FROM audit_event`
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, " AND ")
	}
	args = append(args, limit)
	rows, err := tx.Query(ctx, query+` ORDER BY `+order+` LIMIT $`+strconv.Itoa(len(args)), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	entries := make([]entry, 0, min(limit, maxPage+1))
	for rows.Next() {
		n, err := scan(rows)
		if err != nil {
			return nil, err
		}
		entries = append(entries, n)
	}
	return entries, rows.Err()
}

// Export writes the events that f selects as JSON lines, a page at a time, so that neither a slow reader nor a long record
// holds a transaction open. It covers what was committed when it began: an event that is committed meanwhile is left out
// even where its time would put it between others.
func (l *Log) Export(ctx context.Context, w io.Writer, f Filter) (written int64, err error) {
	var ends map[string]head
	err = l.db.Read(ctx, func(tx *db.Tx) error {
		ends, err = heads(ctx, tx)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("export audit events: %w", err)
	}
	out := bufio.NewWriter(w)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	var after *pageKey
	for {
		var entries []entry
		err := l.db.Read(ctx, func(tx *db.Tx) error {
			entries, err = page(ctx, tx, f, after, maxPage)
			return err
		})
		if err != nil {
			return written, fmt.Errorf("export audit events: %w", err)
		}
		for i := range entries {
			if entries[i].seq > ends[entries[i].node].seq {
				continue
			}
			if err := enc.Encode(entries[i].event()); err != nil {
				return written, fmt.Errorf("export audit events: %w", err)
			}
			written++
		}
		if len(entries) < maxPage {
			return written, out.Flush()
		}
		after = keyOf(entries[len(entries)-1])
	}
}

// Each yields the events that f selects, the oldest first, in the caller's transaction. No row is open while it yields, so
// the caller may ask the database meanwhile; a page is in memory.
func Each(ctx context.Context, tx *db.Tx, f Filter) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		f.Newest = false
		var after *pageKey
		for {
			entries, err := page(ctx, tx, f, after, maxPage)
			if err != nil {
				yield(Event{}, fmt.Errorf("read audit events: %w", err))
				return
			}
			for i := range entries {
				if !yield(entries[i].event(), nil) {
					return
				}
			}
			if len(entries) < maxPage {
				return
			}
			after = keyOf(entries[len(entries)-1])
		}
	}
}

// heads reads where every chain ends.
func heads(ctx context.Context, tx *db.Tx) (map[string]head, error) {
	return places(ctx, tx, "audit_head")
}

// places reads a table of (node, seq, hash): the heads, or the bases.
func places(ctx context.Context, tx *db.Tx, table string) (map[string]head, error) {
	rows, err := tx.Query(ctx, `SELECT node, seq, hash FROM `+table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]head{}
	for rows.Next() {
		var node string
		var h head
		var hash []byte
		if err := rows.Scan(&node, &h.seq, &hash); err != nil {
			return nil, err
		}
		if len(hash) == len(h.hash) {
			copy(h.hash[:], hash)
		}
		found[node] = h
	}
	return found, rows.Err()
}

// names returns the chains of some places, in order.
func names(places ...map[string]head) []string {
	var all []string
	for _, p := range places {
		for node := range p {
			all = append(all, node)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
