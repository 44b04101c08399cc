package place

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// placeAndDie plays a story in a process that SIGKILL ends before the operation of the number given.
func placeAndDie(words string) {
	var story, cut, seen int
	var s scene
	if _, err := fmt.Sscan(words, &story, &s.root, &s.state, &cut); err != nil {
		panic(err)
	}
	o := s.options()
	armed := false
	o.Cut = func(Operation) error {
		if armed {
			if seen++; seen == cut {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // the signal is on its way
			}
		}
		return nil
	}
	p, err := New(o)
	if err != nil {
		panic(err)
	}
	armed = true
	stories()[story].place(context.Background(), p)
}

// TestKilledEverywhere kills a process that places four files at each of its operations.
func TestKilledEverywhere(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 9
	}
	var kills atomic.Int64
	for i, st := range stories() {
		if st.before == nil || st.old == nil {
			continue
		}
		n := st.operations(t)
		var wait sync.WaitGroup
		for worker := range 4 {
			wait.Go(func() {
				t.Run(fmt.Sprintf("%s,%d", st.name, worker), func(t *testing.T) {
					for cut := 1 + worker*step; cut <= n; cut += 4 * step {
						st.killed(t, i, cut)
						kills.Add(1)
					}
				})
			})
		}
		wait.Wait()
	}
	t.Logf("%d kills", kills.Load())
	if least := int64(600 / step); kills.Load() < least {
		t.Fatalf("only %d kills: the test proves too little", kills.Load())
	}
}

// killed plays a story until a kill and looks at what is left.
func (st story) killed(t *testing.T, number, cut int) {
	s := st.prepare(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %s %d", envKill, number, s.root, s.state, cut))
	out, err := cmd.CombinedOutput()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	at := fmt.Sprintf("%s, killed at %d", st.name, cut)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("%s: the process ended by itself: %v\n%s", at, err, out)
	}
	if err := st.sound(t.Context(), s); err != nil {
		t.Fatalf("%s: %v", at, err)
	}
}
