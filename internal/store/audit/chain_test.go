package audit_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

const authority = "0197c6a8-authority"

var at = time.Date(2026, 11, 21, 20, 0, 0, 123456000, time.UTC)

func newLog(t testing.TB, d *db.DB, node string) *audit.Log {
	t.Helper()
	l, err := audit.New(d, node)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func event(i int) audit.Event {
	return audit.Event{
		Time: at.Add(time.Duration(i) * time.Second), Actor: "operator:alice", Action: "certificate.issue", Object: fmt.Sprintf("serial-%d", i),
		Detail: map[string]any{"profile": "server", "n": i},
	}
}

func appendEvents(t testing.TB, d *db.DB, l *audit.Log, from, to int) {
	t.Helper()
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		for i := from; i <= to; i++ {
			if err := l.Append(t.Context(), tx, event(i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func exec(t testing.TB, d *db.DB, query string, args ...any) int64 {
	t.Helper()
	var n int64
	err := d.Tx(t.Context(), func(tx *db.Tx) (err error) {
		n, err = tx.Exec(t.Context(), query, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func signers(t testing.TB) (crypto.Signer, crypto.Signer) {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ec, ed
}

func lease(t testing.TB, d *db.DB) db.Lease {
	t.Helper()
	l, ok, err := d.Acquire(t.Context(), audit.Lease, "n1", time.Hour)
	if err != nil || !ok {
		t.Fatalf("lease: %v, %v", ok, err)
	}
	return l
}

func sign(t testing.TB, d *db.DB, l *audit.Log, signer crypto.Signer) *checkpoint.Signed {
	t.Helper()
	s, err := l.Checkpoint(t.Context(), lease(t, d), authority, at, once.Call{}, signer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func verify(t testing.TB, l *audit.Log, key crypto.Signer, shown ...*checkpoint.Signed) ([]audit.Finding, audit.Verified) {
	t.Helper()
	findings, done, err := l.Verify(t.Context(), audit.Evidence{Authority: authority, Keys: []crypto.PublicKey{key.Public()}, Shown: shown})
	if err != nil {
		t.Fatal(err)
	}
	return findings, done
}

func wantClean(t testing.TB, l *audit.Log, key crypto.Signer, events int64, shown ...*checkpoint.Signed) {
	t.Helper()
	findings, done := verify(t, l, key, shown...)
	if len(findings) != 0 || done.Events != events {
		t.Fatalf("findings %+v in %+v; want none in %d events", findings, done, events)
	}
}

// The hash is part of the record's meaning: an auditor with another program must get the same. This is a second
// implementation, from the words of the package's documentation.
func hashOf(node string, seq, micros int64, actor, action, object, detail string, prev []byte) []byte {
	h := sha256.New()
	h.Write([]byte("chancery audit event 1\n"))
	h.Write(prev)
	text := func(s string) {
		binary.Write(h, binary.BigEndian, uint32(len(s)))
		h.Write([]byte(s))
	}
	text(node)
	binary.Write(h, binary.BigEndian, seq)
	binary.Write(h, binary.BigEndian, micros)
	for _, s := range []string{actor, action, object, detail} {
		text(s)
	}
	return h.Sum(nil)
}

func TestHashIsThatOfAnotherImplementation(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		l := newLog(t, d, "n1")
		appendEvents(t, d, l, 1, 2)
		page, err := l.Search(t.Context(), audit.Filter{}, "", 10)
		if err != nil || len(page.Events) != 2 {
			t.Fatalf("got %+v, %v", page, err)
		}
		prev := make([]byte, 32)
		for i, e := range page.Events {
			if string(e.Prev[:]) != string(prev) || e.Seq != int64(i+1) {
				t.Fatalf("event %d: %+v", i, e)
			}
			prev = hashOf("n1", e.Seq, e.Time.UnixMicro(), e.Actor, e.Action, e.Object, string(e.Detail.(json.RawMessage)), prev)
			if string(e.Hash[:]) != string(prev) {
				t.Fatalf("event %d has the hash %x, want %x", i, e.Hash, prev)
			}
		}
		if detail := string(page.Events[0].Detail.(json.RawMessage)); detail != `{"n":1,"profile":"server"}` {
			t.Fatalf("detail %s is not canonical", detail)
		}
	})
}

// Many callers share commits, some fail, and the chain has exactly the events of those that did not.
func TestConcurrentAppendsMakeOneChain(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		l := newLog(t, d, "n1")
		refused := errors.New("refused")
		var group sync.WaitGroup
		for worker := range 16 {
			group.Go(func() {
				for i := range 10 {
					err := d.Tx(context.Background(), func(tx *db.Tx) error {
						if err := l.Append(context.Background(), tx, event(worker*100+i)); err != nil {
							return err
						}
						if i%5 == 4 {
							return refused
						}
						return nil
					})
					if want := i%5 == 4; errors.Is(err, refused) != want || !want && err != nil {
						t.Errorf("append: %v", err)
					}
				}
			})
		}
		group.Wait()
		key, _ := signers(t)
		wantClean(t, l, key, 16*8)
	})
}

// The end of the chain that a log remembers is a hint. Whatever happened to the row since, the chain goes on from the row.
func TestAppendFollowsTheStoredHead(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		l, again := newLog(t, d, "n1"), newLog(t, d, "n1")
		key, _ := signers(t)
		appendEvents(t, d, l, 1, 3)
		appendEvents(t, d, again, 4, 5) // a restarted process
		appendEvents(t, d, l, 6, 6)
		err := d.Tx(ctx, func(tx *db.Tx) error {
			if err := l.Append(ctx, tx, event(7)); err != nil {
				return err
			}
			// A second hook that fails: the transaction is rolled back after the first one has run.
			tx.BeforeCommit("fails", 1, func(context.Context, *db.Tx, []any) error { return errors.New("no") })
			return nil
		})
		if err == nil {
			t.Fatal("the commit passed")
		}
		appendEvents(t, d, l, 8, 80) // more than one INSERT
		wantClean(t, l, key, 6+73)
	})
}

func TestAppendRefusesWhatADatabaseWould(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		l := newLog(t, d, "n1")
		for name, change := range map[string]func(*audit.Event){
			"NUL":          func(e *audit.Event) { e.Object = "a\x00b" },
			"not UTF-8":    func(e *audit.Event) { e.Actor = "a\xffb" },
			"long":         func(e *audit.Event) { e.Object = strings.Repeat("x", 513) },
			"no actor":     func(e *audit.Event) { e.Actor = "" },
			"no action":    func(e *audit.Event) { e.Action = "" },
			"no time":      func(e *audit.Event) { e.Time = time.Time{} },
			"large detail": func(e *audit.Event) { e.Detail = strings.Repeat("x", 65<<10) },
			"no JSON":      func(e *audit.Event) { e.Detail = func() {} },
			"two values":   func(e *audit.Event) { e.Detail = json.RawMessage(`{}{}`) },
		} {
			e := event(1)
			change(&e)
			if err := d.Tx(ctx, func(tx *db.Tx) error { return l.Append(ctx, tx, e) }); err == nil {
				t.Errorf("%s was recorded", name)
			}
		}
		// What is hostile and still text is recorded as it is.
		e := event(1)
		e.Object, e.Detail = "\u202e<script>\n'; DROP TABLE audit_event; --", map[string]any{"b": "\x00\xff", "a": json.Number("1e999")}
		if err := d.Tx(ctx, func(tx *db.Tx) error { return l.Append(ctx, tx, e) }); err != nil {
			t.Fatal(err)
		}
		key, _ := signers(t)
		wantClean(t, l, key, 1)
		page, err := l.Search(ctx, audit.Filter{Object: e.Object}, "", 1)
		if err != nil || len(page.Events) != 1 || string(page.Events[0].Detail.(json.RawMessage)) != `{"a":1e999,"b":"\u0000`+"\ufffd"+`"}` {
			t.Fatalf("got %+v, %v", page, err)
		}
	})
}

func TestNodeNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "a b", "a\n", "ü", strings.Repeat("n", 129)} {
		if _, err := audit.New(nil, name); !fault.Is(err, fault.Invalid) {
			t.Errorf("node %q: %v", name, err)
		}
	}
}
