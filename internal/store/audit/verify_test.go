package audit_test

import (
	"crypto"
	"fmt"
	"slices"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// record is what each tampering starts from: two chains, two stored checkpoints, and events after them.
//
//	n1: 1…4 | 5…8 | 9, 10      n2: 1…3 | 4 | 5
type record struct {
	d             *db.DB
	l             *audit.Log
	key, stranger crypto.Signer
	shown         []*checkpoint.Signed // what an agent kept
}

func newRecord(t *testing.T, d *db.DB) *record {
	t.Helper()
	r := &record{d: d, l: newLog(t, d, "n1")}
	r.key, r.stranger = signers(t)
	n2 := newLog(t, d, "n2")
	appendEvents(t, d, r.l, 1, 4)
	appendEvents(t, d, n2, 1, 3)
	r.shown = append(r.shown, sign(t, d, r.l, r.key))
	appendEvents(t, d, r.l, 5, 8)
	appendEvents(t, d, n2, 4, 4)
	r.shown = append(r.shown, sign(t, d, r.l, r.key))
	appendEvents(t, d, r.l, 9, 10)
	appendEvents(t, d, n2, 5, 5)
	return r
}

// forge makes the chain n1 consistent again from seq on, as the owner of the database could.
func (r *record) forge(t *testing.T, from int64) {
	t.Helper()
	page, err := r.l.Search(t.Context(), audit.Filter{Node: "n1"}, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(page.Events, func(a, b audit.Event) int { return int(a.Seq - b.Seq) })
	var prev []byte
	for _, e := range page.Events {
		if e.Seq < from {
			prev = e.Hash[:]
			continue
		}
		hash := hashOf("n1", e.Seq, e.Time.UnixMicro(), e.Actor, e.Action, e.Object, fmt.Sprintf("%s", e.Detail), prev)
		exec(t, r.d, `UPDATE audit_event SET prev = $1, hash = $2 WHERE node = 'n1' AND seq = $3`, prev, hash, e.Seq)
		exec(t, r.d, `UPDATE audit_head SET seq = $1, hash = $2 WHERE node = 'n1'`, e.Seq, hash)
		prev = hash
	}
}

func (r *record) signAs(t *testing.T, key crypto.Signer, c checkpoint.Checkpoint) {
	t.Helper()
	raw, err := c.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	hash := checkpoint.Hash(raw)
	exec(t, r.d, `DELETE FROM audit_checkpoint WHERE number = $1`, c.Number)
	exec(t, r.d, `INSERT INTO audit_checkpoint (number, time, body, hash) VALUES ($1, $2, $3, $4)`, c.Number, db.Micros(c.Time), raw, hash[:])
}

func TestEveryTamperingIsFound(t *testing.T) {
	t.Parallel()
	type want struct {
		node string
		seq  int64
		rule audit.Rule
	}
	cases := map[string]struct {
		tamper func(*testing.T, *record)
		want   []want // all findings, in order
		blind  bool   // only a checkpoint that was shown reveals it
	}{
		"truncated tail behind a stored checkpoint": {func(t *testing.T, r *record) {
			exec(t, r.d, `DELETE FROM audit_event WHERE node = 'n1' AND seq > 6`)
			exec(t, r.d, `UPDATE audit_head SET seq = 6, hash = (SELECT hash FROM audit_event WHERE node = 'n1' AND seq = 6) WHERE node = 'n1'`)
		}, []want{{"n1", 8, audit.Truncated}}, false},
		"truncated tail after the checkpoints, head left": {func(t *testing.T, r *record) {
			exec(t, r.d, `DELETE FROM audit_event WHERE node = 'n1' AND seq > 9`)
		}, []want{{"n1", 9, audit.WrongHead}}, false},
		"gap": {func(t *testing.T, r *record) {
			exec(t, r.d, `DELETE FROM audit_event WHERE node = 'n1' AND seq IN (3, 4)`)
		}, []want{{"n1", 3, audit.Gap}}, false},
		"missing beginning": {func(t *testing.T, r *record) {
			exec(t, r.d, `DELETE FROM audit_event WHERE node = 'n1' AND seq <= 2`)
		}, []want{{"n1", 1, audit.Gap}}, false},
		"gap closed by renumbering": {func(t *testing.T, r *record) {
			exec(t, r.d, `DELETE FROM audit_event WHERE node = 'n1' AND seq = 9`)
			exec(t, r.d, `UPDATE audit_event SET seq = 9 WHERE node = 'n1' AND seq = 10`)
		}, []want{{"n1", 9, audit.Unlinked}, {"n1", 9, audit.Edited}, {"n1", 9, audit.WrongHead}}, false},
		"reordered": {func(t *testing.T, r *record) {
			exec(t, r.d, `UPDATE audit_event SET seq = 100 WHERE node = 'n1' AND seq = 2`)
			exec(t, r.d, `UPDATE audit_event SET seq = 2 WHERE node = 'n1' AND seq = 3`)
			exec(t, r.d, `UPDATE audit_event SET seq = 3 WHERE node = 'n1' AND seq = 100`)
		}, []want{{"n1", 2, audit.Unlinked}, {"n1", 2, audit.Edited}, {"n1", 3, audit.Unlinked}, {"n1", 3, audit.Edited},
			{"n1", 4, audit.Unlinked}}, false},
		"moved to another chain": {func(t *testing.T, r *record) {
			exec(t, r.d, `UPDATE audit_event SET node = 'n2', seq = 6 WHERE node = 'n1' AND seq = 10`)
		}, []want{{"n1", 9, audit.WrongHead}, {"n2", 6, audit.Unlinked}, {"n2", 6, audit.Edited}, {"n2", 6, audit.WrongHead}}, false},
		"inserted at the end": {func(t *testing.T, r *record) {
			exec(t, r.d, `INSERT INTO audit_event (node, seq, time, actor, action, object, detail, prev, hash)
				SELECT node, 11, time, actor, action, object, detail, prev, hash FROM audit_event WHERE node = 'n1' AND seq = 10`)
		}, []want{{"n1", 11, audit.Unlinked}, {"n1", 11, audit.Edited}, {"n1", 11, audit.WrongHead}}, false},
		"a chain of its own": {func(t *testing.T, r *record) {
			exec(t, r.d, `INSERT INTO audit_event (node, seq, time, actor, action, object, detail, prev, hash)
				SELECT 'n3', 1, time, actor, action, object, detail, prev, hash FROM audit_event WHERE node = 'n1' AND seq = 10`)
		}, []want{{"n3", 1, audit.Unlinked}, {"n3", 1, audit.Edited}, {"n3", 1, audit.WrongHead}}, false},
		"rewritten with all hashes": {func(t *testing.T, r *record) {
			exec(t, r.d, `UPDATE audit_event SET actor = 'operator:bob' WHERE node = 'n1' AND seq = 6`)
			r.forge(t, 6)
		}, []want{{"n1", 8, audit.Rewritten}}, false},
		"a whole chain dropped": {func(t *testing.T, r *record) {
			exec(t, r.d, `DELETE FROM audit_event WHERE node = 'n2'`)
			exec(t, r.d, `DELETE FROM audit_head WHERE node = 'n2'`)
		}, []want{{"n2", 3, audit.Truncated}, {"n2", 4, audit.Truncated}}, false},
		"head moved": {func(t *testing.T, r *record) {
			exec(t, r.d, `UPDATE audit_head SET seq = 11 WHERE node = 'n1'`)
		}, []want{{"n1", 10, audit.WrongHead}}, false},
		"checkpoint re-signed by a stranger": {func(t *testing.T, r *record) {
			r.signAs(t, r.stranger, r.shown[1].Checkpoint)
		}, []want{{"", 2, audit.Unsigned}, {"", 2, audit.RolledBack}}, false},
		"checkpoint edited": {func(t *testing.T, r *record) {
			exec(t, r.d, `UPDATE audit_checkpoint SET body = $1 WHERE number = 2`, append([]byte("x"), r.shown[1].Raw...))
		}, []want{{"", 2, audit.Unsigned}, {"", 2, audit.RolledBack}}, false},
		"checkpoint under another number": {func(t *testing.T, r *record) {
			exec(t, r.d, `UPDATE audit_checkpoint SET number = 3 WHERE number = 2`)
		}, []want{{"", 2, audit.Lost}, {"", 3, audit.Unsigned}, {"", 2, audit.RolledBack}}, false},
		"checkpoint of another authority": {func(t *testing.T, r *record) {
			c := r.shown[1].Checkpoint
			c.Authority = "other"
			r.signAs(t, r.key, c)
		}, []want{{"", 2, audit.Unsigned}, {"", 2, audit.RolledBack}}, false},
		"checkpoint that does not follow": {func(t *testing.T, r *record) {
			c := r.shown[1].Checkpoint
			c.Previous[0] ^= 1
			r.signAs(t, r.key, c)
		}, []want{{"", 2, audit.Discord}, {"", 2, audit.Forked}}, false},
		"first checkpoint removed": {func(t *testing.T, r *record) {
			exec(t, r.d, `DELETE FROM audit_checkpoint WHERE number = 1`)
		}, []want{{"", 1, audit.Lost}}, false},
		"pruned by hand": {func(t *testing.T, r *record) {
			exec(t, r.d, `INSERT INTO audit_base (node, seq, hash) SELECT node, seq, hash FROM audit_event WHERE node = 'n1' AND seq = 4`)
			exec(t, r.d, `DELETE FROM audit_event WHERE node = 'n1' AND seq <= 4`)
		}, []want{{"n1", 4, audit.Unpruned}}, false},
		"newest checkpoint and the tail removed": {func(t *testing.T, r *record) {
			exec(t, r.d, `DELETE FROM audit_checkpoint WHERE number = 2`)
			exec(t, r.d, `DELETE FROM audit_event WHERE node = 'n1' AND seq > 5`)
			exec(t, r.d, `UPDATE audit_head SET seq = 5, hash = (SELECT hash FROM audit_event WHERE node = 'n1' AND seq = 5) WHERE node = 'n1'`)
		}, []want{{"", 2, audit.RolledBack}, {"n1", 8, audit.Truncated}}, true},
		"everything rewritten and the checkpoints removed": {func(t *testing.T, r *record) {
			exec(t, r.d, `DELETE FROM audit_checkpoint`)
			exec(t, r.d, `UPDATE audit_event SET object = 'innocent' WHERE node = 'n1' AND seq = 2`)
			r.forge(t, 2)
		}, []want{{"", 1, audit.RolledBack}, {"", 2, audit.RolledBack}, {"n1", 4, audit.Rewritten}, {"n1", 8, audit.Rewritten}}, true},
		"checkpoint forked by the key's owner": {func(t *testing.T, r *record) {
			exec(t, r.d, `UPDATE audit_event SET actor = 'operator:bob' WHERE node = 'n1' AND seq = 8`)
			r.forge(t, 8)
			c := r.shown[1].Checkpoint
			c.Heads = slices.Clone(c.Heads)
			page, err := r.l.Search(t.Context(), audit.Filter{Node: "n1", Object: "serial-8"}, "", 1)
			if err != nil || len(page.Events) != 1 {
				t.Fatalf("%+v, %v", page, err)
			}
			c.Heads[0].Hash = page.Events[0].Hash
			r.signAs(t, r.key, c)
		}, []want{{"", 2, audit.Forked}, {"n1", 8, audit.Rewritten}}, true},
	}
	for _, column := range []string{"actor", "action", "object", "detail"} {
		c := cases["gap"]
		c.tamper = func(t *testing.T, r *record) {
			exec(t, r.d, `UPDATE audit_event SET `+column+` = `+column+` || ' ' WHERE node = 'n1' AND seq = 3`)
		}
		c.want = []want{{"n1", 3, audit.Edited}}
		cases["edited "+column] = c
	}
	cases["edited time"] = cases["edited actor"]
	c := cases["edited time"]
	c.tamper = func(t *testing.T, r *record) {
		exec(t, r.d, `UPDATE audit_event SET time = time + 1 WHERE node = 'n1' AND seq = 3`)
	}
	cases["edited time"] = c
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				for _, table := range []string{"audit_event", "audit_head", "audit_base", "audit_checkpoint"} {
					exec(t, d, `DELETE FROM `+table)
				}
				r := newRecord(t, d)
				wantClean(t, r.l, r.key, 15, r.shown...)
				wantClean(t, r.l, r.key, 15)
				c.tamper(t, r)
				var got []want
				findings, _ := verify(t, r.l, r.key, r.shown...)
				for _, f := range findings {
					if f.Message == "" {
						t.Errorf("%+v has no message", f)
					}
					got = append(got, want{f.Node, f.Seq, f.Rule})
				}
				if !slices.Equal(got, c.want) {
					t.Fatalf("found %+v\nwant %+v", findings, c.want)
				}
				if alone, _ := verify(t, r.l, r.key); (len(alone) == 0) != c.blind {
					t.Fatalf("without what was shown: %+v", alone)
				}
			})
		}
	})
	if len(cases) < 25 {
		t.Fatalf("%d cases", len(cases))
	}
}

func TestAFloodOfFindingsIsBounded(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		l := newLog(t, d, "n1")
		appendEvents(t, d, l, 1, 300)
		exec(t, d, `UPDATE audit_event SET actor = 'x'`)
		key, _ := signers(t)
		findings, done := verify(t, l, key)
		if len(findings) != 101 || findings[100].Rule != audit.More || done.Events != 300 {
			t.Fatalf("%d findings in %+v", len(findings), done)
		}
	})
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		l := newLog(t, d, "n1")
		key, other := signers(t)
		held := lease(t, d)
		if _, err := l.Checkpoint(ctx, held, authority, at, once.Call{}, key); !fault.Is(err, fault.Conflict) {
			t.Fatalf("an empty record: %v", err)
		}
		if _, err := l.Newest(ctx); !fault.Is(err, fault.NotFound) {
			t.Fatalf("newest of none: %v", err)
		}
		appendEvents(t, d, l, 1, 3)
		first := sign(t, d, l, key)
		if again := sign(t, d, l, key); again.Number != 1 || string(again.Raw) != string(first.Raw) {
			t.Fatalf("a second checkpoint of the same record: %+v", again)
		}
		appendEvents(t, d, l, 4, 4)
		second, err := l.Checkpoint(ctx, held, authority, at, once.Call{}, key, other) // a key changes hands: both sign
		if err != nil || second.Number != 2 || second.Previous != checkpoint.Hash(first.Raw) || second.Heads[0].Seq != 4 {
			t.Fatalf("got %+v, %v", second, err)
		}
		if newest, err := l.Newest(ctx); err != nil || newest.Number != 2 {
			t.Fatalf("newest: %+v, %v", newest, err)
		}
		if one, err := l.Numbered(ctx, 1); err != nil || string(one.Raw) != string(first.Raw) {
			t.Fatalf("first: %+v, %v", one, err)
		}
		if _, err := l.Numbered(ctx, 9); !fault.Is(err, fault.NotFound) {
			t.Fatalf("ninth: %v", err)
		}
		findings, done := verify(t, l, other)
		if len(findings) != 1 || findings[0].Rule != audit.Unsigned || done.Checkpoints != 1 {
			t.Fatalf("with the second key alone: %+v, %+v", findings, done)
		}
		stolen := held
		stolen.Epoch++
		appendEvents(t, d, l, 5, 5)
		if _, err := l.Checkpoint(ctx, stolen, authority, at, once.Call{}, key); !fault.Is(err, fault.Conflict) {
			t.Fatalf("without the lease: %v", err)
		}
		// A chain that was cut back is not signed for.
		exec(t, d, `UPDATE audit_head SET seq = 3, hash = (SELECT hash FROM audit_event WHERE node = 'n1' AND seq = 3)`)
		if _, err := l.Checkpoint(ctx, held, authority, at, once.Call{}, key); !fault.Is(err, fault.Conflict) {
			t.Fatalf("a rolled-back chain was signed: %v", err)
		}
	})
}

func TestPrunedRecordVerifies(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		r := newRecord(t, d)
		held := lease(t, d)
		if n, err := r.l.Prune(ctx, held, at, "system:n1", at); err != nil || n != 0 {
			t.Fatalf("nothing is old: %d, %v", n, err)
		}
		n, err := r.l.Prune(ctx, held, at.Add(time.Second), "system:n1", at.Add(time.Minute))
		if err != nil || n != 8+4 {
			t.Fatalf("removed %d, %v", n, err)
		}
		wantClean(t, r.l, r.key, 3+2, r.shown...) // two events of n1, one of n2, and two about the pruning
		if n, err := r.l.Prune(ctx, held, at.Add(time.Second), "system:n1", at.Add(time.Minute)); err != nil || n != 0 {
			t.Fatalf("again: %d, %v", n, err)
		}
		wantClean(t, r.l, r.key, 5, r.shown...)
		appendEvents(t, d, r.l, 20, 25)
		third := sign(t, d, r.l, r.key)
		wantClean(t, r.l, r.key, 11, append(r.shown, third)...)
		exec(t, d, `DELETE FROM audit_event WHERE node = 'n1' AND seq = 9`)
		findings, _ := verify(t, r.l, r.key)
		if len(findings) != 1 || findings[0].Rule != audit.Gap || findings[0].Seq != 9 {
			t.Fatalf("a gap behind the place where the chain was pruned: %+v", findings)
		}
	})
}

// Pruning that was cut short after any number of events leaves a record that verifies, and the next run ends it.
func TestPruningCutShort(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		r := newRecord(t, d)
		held := lease(t, d)
		gone, err := r.l.Prune(t.Context(), held, at.Add(time.Second), "system:n1", at.Add(time.Minute))
		if err != nil || gone != 12 {
			t.Fatalf("removed %d, %v", gone, err)
		}
		// Put back what a run that was stopped in the middle would have left: the last three of n1.
		var rows [][]any
		other := pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})
		twin := newRecord(t, other)
		page, err := twin.l.Search(t.Context(), audit.Filter{Node: "n1"}, "", 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events[5:8] {
			rows = append(rows, []any{e.Seq, e.Time.UnixMicro(), e.Actor, e.Action, e.Object, fmt.Sprintf("%s", e.Detail), e.Prev[:], e.Hash[:]})
		}
		for _, row := range rows {
			exec(t, d, `INSERT INTO audit_event (node, seq, time, actor, action, object, detail, prev, hash)
				VALUES ('n1', $1, $2, $3, $4, $5, $6, $7, $8)`, row...)
		}
		wantClean(t, r.l, r.key, 5+3, r.shown...)
		gone, err = r.l.Prune(t.Context(), held, at.Add(time.Second), "system:n1", at.Add(time.Minute))
		if err != nil || gone != 3 {
			t.Fatalf("the rest: %d, %v", gone, err)
		}
		wantClean(t, r.l, r.key, 5, r.shown...)
	})
}
