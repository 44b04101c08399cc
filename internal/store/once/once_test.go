package once_test

import (
	"errors"
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

func do(t *testing.T, d *db.DB, caller, key, request, answer string, ran *atomic.Int32) (string, error) {
	t.Helper()
	var got []byte
	err := d.Tx(t.Context(), func(tx *db.Tx) (err error) {
		got, err = once.Do(t.Context(), tx, caller, key, once.Hash([]byte(request)), time.Now(), func() ([]byte, error) {
			ran.Add(1)
			return []byte(answer), nil
		})
		return err
	})
	return string(got), err
}

func TestRepeatedCallGetsTheFirstAnswer(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		var ran atomic.Int32
		for _, answer := range []string{"first", "second"} {
			if got, err := do(t, d, "c", "k", "request", answer, &ran); err != nil || got != "first" {
				t.Errorf("%q, %v", got, err)
			}
		}
		if n := ran.Load(); n != 1 {
			t.Errorf("it was done %d times", n)
		}
		if _, err := do(t, d, "c", "k", "another request", "x", &ran); !fault.Is(err, fault.Conflict) {
			t.Errorf("the key with another request: %v", err)
		}
		if got, err := do(t, d, "other caller", "k", "request", "theirs", &ran); err != nil || got != "theirs" {
			t.Errorf("another caller: %q, %v", got, err)
		}
		if _, err := do(t, d, "c", strings.Repeat("k", 256), "request", "x", &ran); !fault.Is(err, fault.Invalid) {
			t.Errorf("a long key: %v", err)
		}
		for range 2 {
			before := ran.Load()
			if _, err := do(t, d, "c", "", "request", "x", &ran); err != nil || ran.Load() != before+1 {
				t.Errorf("without a key: %v", err)
			}
		}
		if got, err := do(t, d, "c", "empty", "request", "", &ran); err != nil || got != "" {
			t.Errorf("an empty answer: %q, %v", got, err)
		}
	})
}

func TestActKeepsItsAnswerWithWhatItDoes(t *testing.T) {
	type answer struct{ Name string }
	for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
		pkitest.EachURL(t, func(t *testing.T, url string) {
			var faults pkitest.Faults
			d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
			call := once.Call{Caller: "c", Key: "k", Request: once.Hash([]byte("request"))}
			act := func(call once.Call, name string) (got answer, err error) {
				err = d.Tx(t.Context(), func(tx *db.Tx) error {
					got, err = once.Act(t.Context(), tx, call, time.Now(), func() (answer, error) { return answer{name}, nil })
					return err
				})
				return got, err
			}
			faults.FailCommit(1, outcome)
			if _, err := act(call, "first"); !errors.Is(err, db.ErrUnknownOutcome) {
				t.Fatalf("%s: %v", outcome, err)
			}
			want := map[pkitest.Outcome]string{pkitest.NotPersisted: "second", pkitest.PersistedAnyway: "first"}[outcome]
			if got, err := act(call, "second"); err != nil || got.Name != want {
				t.Errorf("%s: %q, %v", outcome, got, err)
			}
			if got, err := act(once.Call{}, "third"); err != nil || got.Name != "third" {
				t.Errorf("without a key: %q, %v", got, err)
			}
			faults.FailCommit(1, pkitest.NotPersisted) // an answer that was found is told only once something was written after it
			if _, err := act(call, "fourth"); !errors.Is(err, db.ErrUnknownOutcome) {
				t.Errorf("found, and nothing written: %v", err)
			}
		})
	}
}

func TestRefusalIsNotRemembered(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		refused := errors.New("refused")
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := once.Do(t.Context(), tx, "c", "k", once.Hash(nil), time.Now(), func() ([]byte, error) { return nil, refused })
			return err
		})
		var ran atomic.Int32
		if got, later := do(t, d, "c", "k", "request", "done", &ran); !errors.Is(err, refused) || later != nil || got != "done" {
			t.Errorf("%v; then %q, %v", err, got, later)
		}
	})
}

// TestSameKeyAtTheSameTime has one key used by many at once, on two nodes where the engine allows: the act is done once, and
// all get its answer.
func TestSameKeyAtTheSameTime(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		nodes := []*db.DB{pkitest.Open(t, db.Options{URL: url})}
		if nodes[0].Dialect() == db.Postgres {
			nodes = append(nodes, pkitest.Open(t, db.Options{URL: url}))
		}
		var wg sync.WaitGroup
		var ran atomic.Int32
		answers := make([]string, 20)
		for i := range answers {
			wg.Go(func() {
				var err error
				if answers[i], err = do(t, nodes[i%len(nodes)], "c", "k", "request", fmt.Sprint("answer ", i), &ran); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, a := range answers {
			if a == "" || a != answers[0] {
				t.Fatalf("answers differ: %q", answers)
			}
		}
	})
}

// TestUnknownOutcomeIsResolved: the commit's answer is lost; repeating the call finds what was done, or does it.
func TestUnknownOutcomeIsResolved(t *testing.T) {
	for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
		pkitest.EachURL(t, func(t *testing.T, url string) {
			var faults pkitest.Faults
			d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
			var ran atomic.Int32
			faults.FailCommit(1, outcome)
			if _, err := do(t, d, "c", "k", "request", "first", &ran); !errors.Is(err, db.ErrUnknownOutcome) {
				t.Fatalf("%s: %v", outcome, err)
			}
			want := map[pkitest.Outcome]string{pkitest.NotPersisted: "second", pkitest.PersistedAnyway: "first"}[outcome]
			if got, err := do(t, d, "c", "k", "request", "second", &ran); err != nil || got != want {
				t.Errorf("%s: %q, %v", outcome, got, err)
			}
		})
	}
}

func TestPrune(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		now := time.Now()
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			for i := range 10 {
				at := now.Add(-time.Duration(i) * time.Hour)
				if err := once.Remember(t.Context(), tx, "c", fmt.Sprint(i), once.Hash(nil), nil, at); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var gone []int64
		for len(gone) == 0 || gone[len(gone)-1] > 0 {
			err := d.Tx(t.Context(), func(tx *db.Tx) error {
				n, err := once.Prune(t.Context(), tx, now.Add(-5*time.Hour+time.Minute), 3)
				gone = append(gone, n)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if fmt.Sprint(gone) != "[3 2 0]" {
			t.Errorf("pruned %v", gone)
		}
	})
}

func TestHashKeepsPartsApart(t *testing.T) {
	if string(once.Hash([]byte("ab"), []byte("c"))) == string(once.Hash([]byte("a"), []byte("bc"))) {
		t.Error("parts run together")
	}
}
