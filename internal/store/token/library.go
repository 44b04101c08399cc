package token

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"chancery/internal/fault"
)

// turn is a lock that is not waited for beyond a context: whoever holds one may be waiting for a token that hangs.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	default:
	}
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }

// library is a PKCS #11 library and the helper that has it loaded.
type library struct {
	path  string
	turns int

	starting turn // held while a helper is being started

	mu      sync.Mutex // guards what follows
	current *helper
	fails   int // helpers in a row that were lost before they did anything
	again   time.Time
	closed  bool
}

func (t *Tokens) library(r *reach) (*library, error) {
	if err := checkModule(r.Module); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, t.ending()
	}
	l := t.libraries[r.Module]
	if l == nil {
		turns := 0
		for _, other := range t.places {
			if other.Module == r.Module {
				turns += other.Sessions
			}
		}
		l = &library{path: r.Module, turns: min(turns, MaxSessions), starting: newTurn()}
		t.libraries[r.Module] = l
	}
	return l, nil
}

func (t *Tokens) ending() error { return fault.New(fault.Unavailable, "node %s is ending", t.node) }

// maxRest is how long nothing is started at most, after helpers were lost one after the other.
const maxRest = 5 * time.Second

// alive returns the helper, where one runs.
func (l *library) alive() *helper {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil && !l.current.isLost() {
		return l.current
	}
	return nil
}

// running returns the helper, and starts one where none runs.
func (l *library) running(ctx context.Context, t *Tokens) (*helper, error) {
	if h := l.alive(); h != nil {
		return h, nil
	}
	if err := l.starting.take(ctx); err != nil {
		return nil, fault.New(fault.Unavailable, "the PKCS #11 helper is being started anew, and does not listen yet")
	}
	defer l.starting.give()
	if h := l.alive(); h != nil { // who was here before started it
		return h, nil
	}
	l.mu.Lock()
	old, fails, again, closed := l.current, l.fails, l.again, l.closed
	l.current = nil
	l.mu.Unlock()
	if closed {
		return nil, t.ending()
	}
	if old != nil {
		old.stop()
	}
	if err := rest(ctx, time.Until(again)); err != nil {
		return nil, fault.New(fault.Unavailable, "the PKCS #11 helper was lost %d times in a row, and the next one is not started yet", fails)
	}
	return l.start(ctx, t)
}

// start starts a helper. The caller has its turn.
func (l *library) start(ctx context.Context, t *Tokens) (*helper, error) {
	program, err := t.program()
	if err != nil {
		return nil, err
	}
	dir, err := t.sockets()
	if err != nil {
		return nil, err
	}
	l.lost()
	h, err := start(ctx, starting{program: program, dir: dir, library: l.path, turns: l.turns, answer: t.answer, logger: t.logger})
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		h.stop()
		return nil, t.ending()
	}
	l.current = h
	return h, nil
}

// lost counts a helper as lost until it did something.
func (l *library) lost() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails++; l.fails > 1 {
		l.again = time.Now().Add(min(maxRest, 25*time.Millisecond<<min(l.fails, 16)))
	}
}

// works is told when a helper did something.
func (l *library) works(h *helper) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == h {
		l.fails, l.again = 0, time.Time{}
	}
}

// drop ends a helper that is of no use any more.
func (l *library) drop(h *helper) {
	h.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == h {
		l.current = nil
	}
}

func (l *library) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.current != nil {
		l.current.stop()
		l.current = nil
	}
}

func rest(ctx context.Context, pause time.Duration) error {
	if pause <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const programName = "chancery-pkcs11"

// program finds the helper, and refuses one that somebody else could exchange: it is given the PIN.
func (t *Tokens) program() (string, error) {
	path, err := t.findProgram()
	if err != nil {
		return "", err
	}
	return path, trusted("helper", path)
}

func (t *Tokens) findProgram() (string, error) {
	if t.helper != "" {
		return filepath.Abs(t.helper)
	}
	if own, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(own), programName)
		if stat, err := os.Stat(beside); err == nil && stat.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(programName)
	if err != nil {
		return "", fault.New(fault.Unavailable, "the helper %s, which keys in PKCS #11 tokens need, is neither beside this program nor in PATH", programName).
			WithHint("install it, or name it in node.yaml: pkcs11.helper")
	}
	return filepath.Abs(path)
}

// sockets is the directory of the helpers' sockets.
func (t *Tokens) sockets() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == "" {
		dir, err := os.MkdirTemp("", "chancery-pkcs11-")
		if err != nil {
			return "", err
		}
		t.dir, t.temporary = dir, true
	}
	return t.dir, nil
}
