package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"chancery/internal/fault"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/store/db"
)

// Rule names what a Finding is about.
type Rule string

// The rules that Verify holds the record against.
const (
	Edited     Rule = "edited"      // an event's hash is not that of its fields
	Unlinked   Rule = "unlinked"    // an event does not name the one before it: reordered, replaced or inserted
	Gap        Rule = "gap"         // events are missing between two others, or at the beginning
	Truncated  Rule = "truncated"   // a chain ends before where a checkpoint saw it
	Rewritten  Rule = "rewritten"   // an event has another hash than a checkpoint saw
	WrongHead  Rule = "wrong-head"  // the stored end of a chain is not its last event
	Unsigned   Rule = "unsigned"    // a checkpoint is not signed by a key of this authority, or cannot be read
	Discord    Rule = "discord"     // a checkpoint does not follow from the one before it
	Lost       Rule = "lost"        // a checkpoint is missing among the stored ones
	RolledBack Rule = "rolled-back" // the newest stored checkpoint is older than one that was shown
	Forked     Rule = "forked"      // a checkpoint that was shown and the stored one of that number differ
	Unpruned   Rule = "unpruned"    // a chain begins later than at its first event, and no pruning explains it
	More       Rule = "more"        // a chain has more findings than are listed
)

// Finding is one rule that the record breaks, and where.
type Finding struct {
	Node    string `json:"node,omitempty"` // empty if it is about a checkpoint
	Seq     int64  `json:"seq"`            // of the event, or the number of the checkpoint
	Rule    Rule   `json:"rule"`
	Message string `json:"message"`
}

// Evidence is what the record is held against: the keys of the authority, as somebody other than the database knows them,
// and checkpoints that were kept elsewhere.
type Evidence struct {
	Authority string
	Keys      []crypto.PublicKey
	Shown     []*checkpoint.Signed
}

// Verified says how much was looked at, so that "no findings" can be told from "nothing there".
type Verified struct {
	Chains      int
	Events      int64
	Checkpoints int   // stored, with a good signature
	Unsealed    int64 // events behind the newest checkpoint, which nobody has signed yet
}

// maxFindings bounds the findings for one chain; a chain that was replaced would have one for each event.
const maxFindings = 100

// Verify reads the whole record, in one snapshot and as a stream, and holds it against itself and the evidence. An error
// means that it could not be read; what is wrong with it are findings.
func (l *Log) Verify(ctx context.Context, e Evidence) ([]Finding, Verified, error) {
	v := &verifier{evidence: e, marks: map[string][]mark{}, announced: map[string]pruneEvent{}}
	err := l.db.ReadSnapshot(ctx, func(tx *db.Tx) error { return v.run(ctx, tx) })
	if err != nil {
		return v.findings, v.done, fmt.Errorf("verify the audit record: %w", err)
	}
	return v.findings, v.done, nil
}

// mark is what a checkpoint, or the place where a chain was pruned, says of one event.
type mark struct {
	seq  int64
	hash [32]byte
	by   string
}

// prunedHere is what a base says; it is no checkpoint.
const prunedHere = "the place where the chain was pruned"

type verifier struct {
	evidence  Evidence
	findings  []Finding
	done      Verified
	marks     map[string][]mark     // by node
	bases     map[string]head       // where pruned chains begin
	announced map[string]pruneEvent // what the events say was pruned, by node
	signed    map[string]head       // the heads of the newest good checkpoint
	first     int64                 // the oldest stored checkpoint
}

func (v *verifier) find(node string, seq int64, rule Rule, format string, args ...any) {
	v.findings = append(v.findings, Finding{node, seq, rule, fmt.Sprintf(format, args...)})
}

func (v *verifier) run(ctx context.Context, tx *db.Tx) error {
	ends, err := heads(ctx, tx)
	if err != nil {
		return err
	}
	if v.bases, err = places(ctx, tx, "audit_base"); err != nil {
		return err
	}
	newest, err := v.stored(ctx, tx)
	if err != nil {
		return err
	}
	for _, shown := range v.evidence.Shown {
		if err := v.shown(ctx, tx, shown, newest); err != nil {
			return err
		}
	}
	for node, base := range v.bases {
		v.marks[node] = append(v.marks[node], mark{base.seq, base.hash, prunedHere})
	}
	nodes, err := chains(ctx, tx)
	if err != nil {
		return err
	}
	for node := range v.marks {
		nodes = append(nodes, node)
	}
	nodes = append(nodes, names(ends)...)
	slices.Sort(nodes)
	for _, node := range slices.Compact(nodes) {
		if err := v.chain(ctx, tx, node, ends[node]); err != nil {
			return err
		}
	}
	v.pruned()
	return nil
}

// chains finds the chains that have events by jumping through the index, since nobody else may know of one.
func chains(ctx context.Context, tx *db.Tx) ([]string, error) {
	var all []string
	for after := ""; ; {
		rows, err := tx.Query(ctx, `SELECT node FROM audit_event WHERE node > $1 ORDER BY node LIMIT 1`, after)
		if err != nil {
			return nil, err
		}
		found := rows.Next()
		if found {
			err = rows.Scan(&after)
		}
		rows.Close()
		if err == nil {
			err = rows.Err()
		}
		if err != nil || !found {
			return all, err
		}
		all = append(all, after)
	}
}

// stored reads the checkpoints, holds each against the one before, and returns the newest good one.
func (v *verifier) stored(ctx context.Context, tx *db.Tx) (*checkpoint.Signed, error) {
	rows, err := tx.Query(ctx, `SELECT number, body, hash FROM audit_checkpoint ORDER BY number`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var last *checkpoint.Signed
	expected := int64(0)
	for rows.Next() {
		var number int64
		var raw, stored []byte
		if err := rows.Scan(&number, &raw, &stored); err != nil {
			return nil, err
		}
		if expected == 0 {
			v.first = number
		} else if number != expected {
			v.find("", expected, Lost, "checkpoint %d is missing; after %d comes %d", expected, expected-1, number)
		}
		expected = number + 1
		hash := checkpoint.Hash(raw)
		s, err := checkpoint.Parse(raw)
		if err == nil && (s.Number != number || !bytes.Equal(stored, hash[:])) {
			err = fault.New(fault.Invalid, "it is stored under another number or hash than its own")
		}
		if err == nil {
			err = v.signature(s)
		}
		if err != nil {
			v.find("", number, Unsigned, "checkpoint %d: %v", number, err)
			continue
		}
		if last != nil {
			if err := s.CheckSuccessor(last); err != nil {
				v.find("", number, Discord, "%v", err)
			}
		}
		v.done.Checkpoints++
		v.take(s, fmt.Sprintf("checkpoint %d", number))
		last = s
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	v.signed = map[string]head{}
	if last != nil {
		for _, h := range last.Heads {
			v.signed[h.Node] = head{h.Seq, h.Hash}
		}
	}
	return last, nil
}

func (v *verifier) signature(s *checkpoint.Signed) error {
	if s.Authority != v.evidence.Authority {
		return fault.New(fault.Invalid, "it is of authority %s, not %s", s.Authority, v.evidence.Authority)
	}
	return s.Verify(v.evidence.Keys...)
}

// take remembers what a checkpoint says of the chains. A chain that stood still since the last one costs nothing.
func (v *verifier) take(s *checkpoint.Signed, by string) {
	for _, h := range s.Heads {
		known := v.marks[h.Node]
		if n := len(known); n > 0 && known[n-1].seq == h.Seq && known[n-1].hash == h.Hash {
			continue
		}
		v.marks[h.Node] = append(known, mark{h.Seq, h.Hash, by})
	}
}

// shown holds a checkpoint that was kept elsewhere against the stored ones.
func (v *verifier) shown(ctx context.Context, tx *db.Tx, s *checkpoint.Signed, newest *checkpoint.Signed) error {
	if err := v.signature(s); err != nil {
		v.find("", s.Number, Unsigned, "the shown checkpoint %d: %v", s.Number, err)
		return nil
	}
	v.take(s, fmt.Sprintf("the shown checkpoint %d", s.Number))
	if newest == nil || s.Number > newest.Number {
		have := int64(0)
		if newest != nil {
			have = newest.Number
		}
		v.find("", s.Number, RolledBack, "checkpoint %d was shown, and the newest that is stored is %d", s.Number, have)
		return nil
	}
	same, err := oneCheckpoint(tx.QueryRow(ctx, `SELECT body FROM audit_checkpoint WHERE number = $1`, s.Number))
	if fault.Is(err, fault.Invalid) {
		return nil // it cannot be read, which is a finding already
	}
	if err != nil {
		return err
	}
	if same != nil && same.CheckSuccessor(s) != nil {
		v.find("", s.Number, Forked, "checkpoint %d was shown and is not the one that is stored under that number", s.Number)
	}
	return nil
}

// chain streams one chain.
func (v *verifier) chain(ctx context.Context, tx *db.Tx, node string, end head) error {
	marks := v.marks[node]
	slices.SortStableFunc(marks, func(a, b mark) int { return cmp.Compare(a.seq, b.seq) })
	// A stored checkpoint and the copy that was shown say the same; once is enough.
	marks = slices.CompactFunc(marks, func(a, b mark) bool { return a.seq == b.seq && a.hash == b.hash && b.by != prunedHere })
	c := &chainCheck{verifier: v, node: node, marks: marks, base: v.bases[node], before: len(v.findings)}
	rows, err := tx.Query(ctx, `SELECT `+eventColumns+` FROM audit_event WHERE node = $1 ORDER BY seq`, node)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		n, err := scan(rows)
		if err != nil {
			return err
		}
		c.event(&n)
		v.done.Events++
		if n.seq > v.signed[node].seq {
			v.done.Unsealed++
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	c.finish(end)
	v.done.Chains++
	return nil
}

// chainCheck is the state of one chain's stream.
type chainCheck struct {
	*verifier
	node   string
	marks  []mark // not yet passed, by seq
	base   head
	before int // findings of other chains

	started bool
	last    head // the event before
}

func (c *chainCheck) find(seq int64, rule Rule, format string, args ...any) {
	switch n := len(c.findings) - c.before; {
	case n < maxFindings:
		c.verifier.find(c.node, seq, rule, format, args...)
	case n == maxFindings:
		c.verifier.find(c.node, seq, More, "chain %s has more findings from event %d on", c.node, seq)
	}
}

func (c *chainCheck) event(n *entry) {
	switch {
	case !c.started && n.seq <= c.base.seq:
		// The rest of a pruning that was cut short: it begins anywhere, and must lead to where the chain was pruned.
	case !c.started && c.base.seq > 0 && n.seq == c.base.seq+1:
		c.link(n, c.base)
	case n.seq != c.last.seq+1:
		from := c.last.seq + 1
		if !c.started && c.base.seq > 0 {
			from = c.base.seq + 1
		}
		c.find(from, Gap, "events %d to %d of chain %s are missing", from, n.seq-1, c.node)
	default:
		c.link(n, c.last)
	}
	if sum := n.sum(); sum != n.hash {
		c.find(n.seq, Edited, "event %d of chain %s (%s %s by %s) was changed: its fields have the hash %.8x…, stored is %.8x…",
			n.seq, c.node, n.action, n.object, n.actor, sum, n.hash)
	}
	for len(c.marks) > 0 && c.marks[0].seq <= n.seq {
		m := c.marks[0]
		c.marks = c.marks[1:]
		if m.seq == n.seq && m.hash != n.hash {
			c.find(n.seq, Rewritten, "event %d of chain %s has the hash %.8x…; %s says %.8x…", n.seq, c.node, n.hash, m.by, m.hash)
		}
	}
	if n.action == pruneAction {
		var p pruneEvent
		if json.Unmarshal([]byte(n.detail), &p) == nil && p.Seq >= c.announced[n.object].Seq {
			c.announced[n.object] = p
		}
	}
	// What follows is linked to what is stored, so that one changed event is one finding and not all that follow it.
	c.started, c.last = true, head{n.seq, n.hash}
}

func (c *chainCheck) link(n *entry, to head) {
	if n.prev != to.hash {
		c.find(n.seq, Unlinked, "event %d of chain %s does not follow event %d: it names %.8x…, which is not %.8x…", n.seq, c.node,
			to.seq, n.prev, to.hash)
	}
}

// finish looks at what must be there after the last event.
func (c *chainCheck) finish(end head) {
	last := c.last
	if last.seq < c.base.seq || !c.started {
		last = c.base
	}
	for _, m := range c.marks {
		if m.seq > last.seq {
			c.find(m.seq, Truncated, "chain %s ends with event %d; %s saw event %d", c.node, last.seq, m.by, m.seq)
		}
	}
	if end != last {
		c.find(last.seq, WrongHead, "chain %s ends with event %d (%.8x…), and its stored end is %d (%.8x…)", c.node, last.seq, last.hash,
			end.seq, end.hash)
	}
}

// pruned wants an explanation for each chain, and for the checkpoints, that do not begin at their beginning: a signed head
// at that very place, and an event that says that it was pruned there.
func (v *verifier) pruned() {
	announced := int64(1)
	for _, p := range v.announced {
		announced = max(announced, p.Checkpoint)
	}
	if v.first > announced {
		v.find("", v.first-1, Lost, "the checkpoints before %d are missing, and no event says that they were pruned", v.first)
	}
	for _, node := range names(v.bases) {
		base, p := v.bases[node], v.announced[node]
		isSigned := slices.ContainsFunc(v.marks[node], func(m mark) bool {
			return m.seq == base.seq && m.hash == base.hash && m.by != prunedHere
		})
		if !isSigned || p.Seq != base.seq || p.Hash != hex.EncodeToString(base.hash[:]) {
			v.find(node, base.seq, Unpruned, "chain %s begins after event %d, but no checkpoint and event explain it", node, base.seq)
		}
	}
}
