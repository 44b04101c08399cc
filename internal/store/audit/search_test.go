package audit_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

func mixed(t *testing.T, d *db.DB) *audit.Log {
	t.Helper()
	l, second := newLog(t, d, "n1"), newLog(t, d, "n2")
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		for i := range 30 {
			e := event(i / 2) // pairs with one time
			if e.Actor = "operator:alice"; i%3 == 0 {
				e.Actor = "host:web"
			}
			if i%5 == 0 {
				e.Action = "certificate.revoke"
			}
			if i == 7 {
				e.Action = "certificates"
			}
			log := l
			if i%4 == 0 {
				log = second
			}
			if err := log.Append(t.Context(), tx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSearch(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		l := mixed(t, d)
		for name, c := range map[string]struct {
			filter audit.Filter
			count  int
		}{
			"all":            {audit.Filter{}, 30},
			"newest":         {audit.Filter{Newest: true}, 30},
			"actor":          {audit.Filter{Actor: "host:web"}, 10},
			"action":         {audit.Filter{Action: "certificate.revoke"}, 6},
			"action prefix":  {audit.Filter{Action: "certificate."}, 29},
			"object":         {audit.Filter{Object: "serial-3"}, 2},
			"node":           {audit.Filter{Node: "n2"}, 8},
			"since":          {audit.Filter{Since: at.Add(10 * time.Second)}, 10},
			"until":          {audit.Filter{Until: at.Add(10 * time.Second)}, 20},
			"all conditions": {audit.Filter{Since: at, Until: at.Add(9 * time.Second), Actor: "host:web", Action: "certificate.", Object: "serial-3", Node: "n1", Newest: true}, 1},
			"none":           {audit.Filter{Actor: "' OR 1=1 --"}, 0},
		} {
			for _, limit := range []int{1, 7, 1000} {
				var all []audit.Event
				for after := ""; ; {
					page, err := l.Search(t.Context(), c.filter, after, limit)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					if len(page.Events) > limit {
						t.Fatalf("%s: a page of %d", name, len(page.Events))
					}
					all = append(all, page.Events...)
					if after = page.Next; after == "" {
						break
					}
				}
				if len(all) != c.count {
					t.Errorf("%s in pages of %d: %d events, want %d", name, limit, len(all), c.count)
				}
				inOrder := slices.IsSortedFunc(all, func(a, b audit.Event) int {
					if c.filter.Newest {
						a, b = b, a
					}
					return a.Time.Compare(b.Time)
				})
				if !inOrder {
					t.Errorf("%s in pages of %d is not in order", name, limit)
				}
			}
		}
		for _, limit := range []int{0, -1, 1001} {
			if _, err := l.Search(t.Context(), audit.Filter{}, "", limit); !fault.Is(err, fault.Invalid) {
				t.Errorf("a page of %d: %v", limit, err)
			}
		}
		for _, key := range []string{"x", "!", "MSAy", "AAAA"} {
			if _, err := l.Search(t.Context(), audit.Filter{}, key, 1); !fault.Is(err, fault.Invalid) {
				t.Errorf("page key %q: %v", key, err)
			}
		}
	})
}

// growing appends an event whenever something is written to it.
type growing struct {
	bytes.Buffer
	grow func()
}

func (g *growing) Write(p []byte) (int, error) {
	g.grow()
	return g.Buffer.Write(p)
}

func TestExport(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		l := mixed(t, d)
		appendEvents(t, d, l, 100, 2200) // more than two pages
		out := &growing{}
		grown := 0
		out.grow = func() {
			grown++
			appendEvents(t, d, l, 5, 5) // early by its time, late by its commit
			appendEvents(t, d, l, 9000, 9000)
		}
		n, err := l.Export(t.Context(), out, audit.Filter{})
		if err != nil || n != 30+2101 || grown < 2 {
			t.Fatalf("%d events, %v; the record grew %d times", n, err, grown)
		}
		// What was exported is enough to check the chains elsewhere.
		type exported struct {
			Node, Time, Actor, Action, Object, Prev, Hash string
			Seq                                           int64
			Detail                                        json.RawMessage
		}
		chains := map[string][]exported{}
		lines := 0
		for line := range bytes.Lines(out.Bytes()) {
			lines++
			var e exported
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			chains[e.Node] = append(chains[e.Node], e)
		}
		if lines != int(n) || len(chains) != 2 {
			t.Fatalf("%d lines, %d chains", lines, len(chains))
		}
		for node, chain := range chains {
			slices.SortFunc(chain, func(a, b exported) int { return int(a.Seq - b.Seq) })
			prev := make([]byte, 32)
			for i, e := range chain {
				at, err := time.Parse(time.RFC3339Nano, e.Time)
				if err != nil || e.Seq != int64(i+1) || e.Prev != hex.EncodeToString(prev) {
					t.Fatalf("chain %s: %+v after %x, %v", node, e, prev, err)
				}
				prev = hashOf(e.Node, e.Seq, at.UnixMicro(), e.Actor, e.Action, e.Object, string(e.Detail), prev)
				if e.Hash != hex.EncodeToString(prev) {
					t.Fatalf("chain %s: %+v has another hash than %x", node, e, prev)
				}
			}
		}
		var some bytes.Buffer
		if n, err := l.Export(t.Context(), &some, audit.Filter{Actor: "host:web"}); err != nil || n != 10 || bytes.Count(some.Bytes(), []byte("\n")) != 10 {
			t.Fatalf("%d events of one actor, %v", n, err)
		}
	})
}

func TestExportTellsOfAWriterThatFails(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		l := mixed(t, d)
		if _, err := l.Export(t.Context(), failing{}, audit.Filter{}); err == nil {
			t.Fatal("no error")
		}
	})
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, bytes.ErrTooLarge }

// Two acts overlap, and the one that read the clock first is committed last. A list by time shows both in the order of the
// chain, in whatever pages it is read, and a reader who had come to the end sees the late one on his next page.
func TestListShowsSequence179After181(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		l := newLog(t, d, "n1")
		add := func(l *audit.Log, after time.Duration) {
			e := event(0)
			e.Time = at.Add(after)
			if err := d.Tx(t.Context(), func(tx *db.Tx) error { return l.Append(t.Context(), tx, e) }); err != nil {
				t.Fatal(err)
			}
		}
		for _, after := range []time.Duration{10, 12, 11, 12, 5, 13} {
			add(l, after*time.Second)
		}
		first, err := l.Search(t.Context(), audit.Filter{}, "", 5)
		if err != nil || first.Next == "" {
			t.Fatal(first, err)
		}
		add(newLog(t, d, "n1"), 9*time.Second) // as a process that was started again
		for _, newest := range []bool{false, true} {
			for limit := 1; limit <= 8; limit++ {
				var order []int64
				for after := ""; ; {
					page, err := l.Search(t.Context(), audit.Filter{Newest: newest}, after, limit)
					if err != nil {
						t.Fatal(err)
					}
					for _, e := range page.Events {
						order = append(order, e.Seq)
					}
					if after = page.Next; after == "" {
						break
					}
				}
				if newest {
					slices.Reverse(order)
				}
				if !slices.Equal(order, []int64{1, 2, 3, 4, 5, 6, 7}) {
					t.Errorf("in pages of %d, newest first %v: %v", limit, newest, order)
				}
			}
		}
		rest, err := l.Search(t.Context(), audit.Filter{}, first.Next, 5)
		if err != nil || len(rest.Events) != 2 || rest.Events[1].Seq != 7 {
			t.Errorf("the page after: %+v, %v", rest, err)
		}
		// A clock that was set back by an hour is no overlap.
		add(l, -time.Hour)
		page, err := l.Search(t.Context(), audit.Filter{}, "", 1)
		if err != nil || page.Events[0].Seq != 8 || !page.Events[0].Time.Equal(at.Add(-time.Hour)) {
			t.Errorf("an event of another hour: %+v, %v", page, err)
		}
		key, _ := signers(t)
		wantClean(t, l, key, 8)
	})
}
