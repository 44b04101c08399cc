package server

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// writes keeps each write by itself.
type writes struct {
	mu    sync.Mutex
	all   []string
	block chan struct{} // nil, or held until it is closed
}

func (w *writes) Write(b []byte) (int, error) {
	if w.block != nil {
		<-w.block
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(b))
	return len(b), nil
}

// soFar are the writes until now.
func (w *writes) soFar() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

func TestLinesAreGroupedAndNoneIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &writes{}
		l := NewLines(out)
		fmt.Fprintln(l, "alone")
		synctest.Wait()
		if got := out.soFar(); len(got) != 1 || got[0] != "alone\n" {
			t.Fatalf("the first line had to wait: %q", got)
		}
		var want strings.Builder
		for i := range 1000 {
			fmt.Fprintln(l, i)
			fmt.Fprintln(&want, i)
		}
		time.Sleep(2 * linesWait)
		if got := out.soFar(); len(got) != 2 || got[1] != want.String() {
			t.Fatalf("%d writes", len(got))
		}
		fmt.Fprintln(l, "last")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(l, "after the end")
		if got := strings.Join(out.soFar()[2:], ""); got != "last\nafter the end\n" {
			t.Fatalf("at the end: %q", got)
		}
	})
}

func TestLinesHoldUpWhoWritesTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &writes{block: make(chan struct{})}
		l := NewLines(out)
		line := bytes.Repeat([]byte("x"), 1000)
		var written atomic.Int64
		go func() {
			for range 3000 {
				l.Write(line)
				written.Add(1)
			}
		}()
		time.Sleep(time.Second)
		if n := written.Load(); n > int64(2*linesMost/len(line)+2) {
			t.Fatalf("%d lines of 1000 octets were taken although none was written", n)
		}
		close(out.block)
		time.Sleep(time.Second)
		l.Close()
		if total := len(strings.Join(out.soFar(), "")); written.Load() != 3000 || total != 3000*len(line) {
			t.Fatalf("%d lines were taken, %d octets were written", written.Load(), total)
		}
	})
}
