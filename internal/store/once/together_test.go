package once_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

type questions struct{}

func lookupAll(ctx context.Context, tx *db.Tx, items []any) error {
	all := make([]*once.Question, len(items))
	for i, item := range items {
		all[i] = item.(*once.Question)
	}
	return once.LookupAll(ctx, tx, all)
}

func together(t *testing.T, d *db.DB, q *once.Question, answer string, ran *atomic.Int32) (string, error) {
	t.Helper()
	var got []byte
	err := d.TxAhead(t.Context(), db.Ahead{Key: questions{}, Item: q, Read: lookupAll}, func(tx *db.Tx) error {
		response, found, err := q.Answer(tx)
		if got = response; err != nil || found {
			return err
		}
		ran.Add(1)
		got = []byte(answer)
		q.RememberLast(tx, got, time.Now())
		return nil
	})
	return string(got), err
}

// TestCallsTogetherAreDoneOnce asks with every key from several callers at once, in both ways, and again with what was kept.
func TestCallsTogetherAreDoneOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		const keys, times = 20, 6
		request := once.Hash([]byte("request"))
		for round := range 2 {
			var all sync.WaitGroup
			var ran atomic.Int32
			answers := [keys][times]string{}
			for i := range keys * times {
				all.Go(func() {
					key, try := i%keys, i/keys
					answer := fmt.Sprintf("answer %d of round %d", try, round)
					var err error
					if try == 0 {
						answers[key][try], err = do(t, d, "c", fmt.Sprint("key ", key), "request", answer, &atomic.Int32{})
					} else {
						q := &once.Question{Caller: "c", Key: fmt.Sprint("key ", key), Request: request}
						answers[key][try], err = together(t, d, q, answer, &ran)
					}
					if err != nil {
						t.Errorf("key %d, try %d: %v", key, try, err)
					}
				})
			}
			all.Wait()
			for key, got := range answers {
				for _, answer := range got {
					if answer != got[0] || !strings.HasSuffix(answer, "round 0") {
						t.Errorf("key %d got %q", key, got)
						break
					}
				}
			}
			if round == 1 && ran.Load() != 0 {
				t.Errorf("%d calls were done again", ran.Load())
			}
		}
	})
}

func TestQuestionRefusesAndForgetsAsLookupDoes(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		var ran atomic.Int32
		if _, err := do(t, d, "c", "k", "request", "first", &ran); err != nil {
			t.Fatal(err)
		}
		other := &once.Question{Caller: "c", Key: "k", Request: once.Hash([]byte("another request"))}
		if _, err := together(t, d, other, "x", &ran); !fault.Is(err, fault.Conflict) {
			t.Errorf("the key with another request: %v", err)
		}
		long := &once.Question{Caller: "c", Key: strings.Repeat("k", 256), Request: once.Hash([]byte("request"))}
		if _, err := together(t, d, long, "x", &ran); !fault.Is(err, fault.Invalid) {
			t.Errorf("a long key: %v", err)
		}
		for range 2 {
			before := ran.Load()
			if _, err := together(t, d, &once.Question{Caller: "c"}, "x", &ran); err != nil || ran.Load() != before+1 {
				t.Errorf("without a key: %v", err)
			}
		}
		if got, err := together(t, d, &once.Question{Caller: "d", Key: "k", Request: other.Request}, "", &ran); err != nil || got != "" {
			t.Errorf("an empty answer: %q, %v", got, err)
		}
	})
}
