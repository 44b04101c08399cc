package token

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chancery/internal/fault"
	"chancery/internal/store/token/wire"
)

// errLost says that the helper, or its way to the token, was lost while it was asked: what was asked may be asked again.
var errLost = errors.New("the helper was lost while it worked")

// answerTime is how long one request may take before the helper is taken for hung, and how long a new one may take until it listens. A hardware module answers in
// milliseconds; generation of keys, which takes longer, is not asked of it.
const answerTime = 10 * time.Second

// helper is one process of chancery-pkcs11.
type helper struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	socket string // a path that works however long the directory's is; see dial
	remove string
	dir    *os.File
	ended  chan struct{} // closed when the process has ended
	logger *slog.Logger

	turns  chan struct{} // one for each request at once
	answer time.Duration // how long one may take

	found atomic.Int64 // keys that it has opened

	mu   sync.Mutex // guards what follows
	idle []*link
	keys map[string]*opened // by URI
	lost bool
}

// link is a connection, on which one request is made at a time.
type link struct {
	*net.UnixConn
	in *bufio.Reader
}

// opened is a key in one helper.
type opened struct {
	opening turn // held while it is being opened; guards key
	key     *wire.Key
}

func (h *helper) opened(uri string) *opened {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys[uri] == nil {
		h.keys[uri] = &opened{opening: newTurn()}
	}
	return h.keys[uri]
}

// starting says how a helper is started.
type starting struct {
	program, dir, library string
	turns                 int
	answer                time.Duration
	logger                *slog.Logger
}

// start runs the helper and waits until it listens. The directory of its socket is private, and the socket is called
// through a descriptor of that directory: the path of a socket may have 107 octets, and a data directory's may be longer.
func start(ctx context.Context, s starting) (*helper, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the helper's socket: %w", err)
	}
	handle, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	if err := clean(s.dir, handle, time.Now()); err != nil {
		_ = handle.Close()
		return nil, fmt.Errorf("clean the directory of the helper's socket: %w", err)
	}
	name := rand.Text() + ".sock"
	cmd := exec.Command(s.program, name, s.library)
	cmd.Dir, cmd.Env = s.dir, environment()
	// A group of its own: what a terminal sends to the node's, such as an interrupt, is not for it; it ends with its input.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	h := &helper{
		cmd: cmd, dir: handle, remove: filepath.Join(s.dir, name), ended: make(chan struct{}), turns: make(chan struct{}, s.turns), keys: map[string]*opened{},
		socket: through(handle, name), answer: s.answer, logger: s.logger,
	}
	if err := h.run(ctx); err != nil {
		h.stop()
		return nil, err
	}
	return h, nil
}

// clean removes sockets that a node which was killed left behind. Young ones are let be: between two system calls a helper
// of another process on the directory has a socket that nobody answers on yet.
func clean(dir string, handle *os.File, now time.Time) error {
	left, err := handle.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range left {
		stat, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), ".sock") || now.Sub(stat.ModTime()) < time.Minute {
			continue
		}
		conn, err := net.Dial("unix", through(handle, e.Name()))
		if err == nil {
			_ = conn.Close()
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	return nil
}

// through is a short path to a file of an opened directory.
func through(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

// environment is the node's, which a vendor's library may read its own configuration from, without what speaks to the
// node's supervisor.
func environment() []string {
	var kept []string
	for _, e := range os.Environ() {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES":
		default:
			kept = append(kept, e)
		}
	}
	return kept
}

func (h *helper) run(ctx context.Context) error {
	var err error
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return err
	}
	ready := make(chan struct{})
	h.cmd.Stdout, h.cmd.Stderr = &readyLine{ready: ready}, &said{logger: h.logger}
	h.cmd.WaitDelay = time.Second // for what a library started, and left our pipes to
	if err := h.cmd.Start(); err != nil {
		return fault.New(fault.Unavailable, "the helper %s cannot be started: %w", h.cmd.Path, err)
	}
	go h.wait()
	timer := time.NewTimer(h.answer)
	defer timer.Stop()
	select {
	case <-ready:
		h.logger.Info("the PKCS #11 helper runs", "pid", h.cmd.Process.Pid)
		return nil
	case <-h.ended:
		return fault.New(fault.Unavailable, "the helper %s ended as soon as it was started; the node's log has what it said", h.cmd.Path)
	case <-timer.C:
		return fault.New(fault.Unavailable, "the helper %s did not listen within %s", h.cmd.Path, h.answer)
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "the helper %s did not listen in the time that was left", h.cmd.Path)
	}
}

// wait has the process reaped when it ends, however it does, and what it started in its group end with it: while the process is not yet
// reaped, the number of its group is nobody else's.
func (h *helper) wait() {
	pid := h.cmd.Process.Pid
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	err := h.cmd.Wait()
	h.logger.Info("the PKCS #11 helper ended", "pid", pid, "state", fmt.Sprint(err))
	close(h.ended)
}

// readyLine waits for the first line, which says that the helper listens; it keeps nothing of what follows.
type readyLine struct {
	ready chan struct{}
	first []byte
	done  bool
}

const readyText = "ready\n"

func (r *readyLine) Write(p []byte) (int, error) {
	if !r.done {
		r.first = append(r.first, p[:min(len(p), len(readyText)-len(r.first))]...)
		if r.done = len(r.first) == len(readyText); r.done && string(r.first) == readyText {
			close(r.ready)
		}
	}
	return len(p), nil
}

// said passes on what the helper and the library in it print: lines of bounded length, and so many in a minute at most.
type said struct {
	logger *slog.Logger
	line   []byte
	since  time.Time
	lines  int
}

const (
	maxLine  = 4 << 10
	maxLines = 100
)

func (s *said) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		text, after, whole := bytes.Cut(rest, []byte{'\n'})
		s.line = append(s.line, text[:min(len(text), maxLine-len(s.line))]...)
		if rest = after; whole {
			s.log(time.Now())
		}
	}
	return len(p), nil
}

func (s *said) log(now time.Time) {
	if now.Sub(s.since) > time.Minute {
		s.since, s.lines = now, 0
	}
	switch s.lines++; {
	case s.lines <= maxLines:
		s.logger.Warn("the PKCS #11 helper says", "text", string(s.line))
	case s.lines == maxLines+1:
		s.logger.Warn("the PKCS #11 helper says more than is kept", "lines a minute", maxLines)
	}
	s.line = s.line[:0]
}

// stopTime is how long the end of a process that was killed is waited for. One that is in a driver which does not come back ends
// whenever that does.
const stopTime = 5 * time.Second

// stop ends the process. It may be called again, and by several.
func (h *helper) stop() {
	h.mu.Lock()
	first := !h.lost
	h.lost = true
	idle := h.idle
	h.idle = nil
	h.mu.Unlock()
	for _, conn := range idle {
		_ = conn.Close()
	}
	if !first {
		return
	}
	if h.stdin != nil {
		_ = h.stdin.Close()
	}
	if h.cmd.Process != nil {
		_ = h.cmd.Process.Kill()
		select {
		case <-h.ended:
		case <-time.After(stopTime):
			h.logger.Error("the PKCS #11 helper was killed and does not end: its library waits in a driver", "pid", h.cmd.Process.Pid)
		}
	}
	_ = os.Remove(h.remove)
	_ = h.dir.Close()
}

func (h *helper) isLost() bool {
	select {
	case <-h.ended:
		return true
	default:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lost
}

// call sends a request when its turn comes. errLost means that the helper is of no use any more; that the caller's own time
// is over means nothing of the kind.
func (h *helper) call(ctx context.Context, verb byte, fields ...[]byte) (wire.Code, []byte, error) {
	select {
	case h.turns <- struct{}{}:
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("%d signatures are being made, and no turn came in time", cap(h.turns))
	}
	defer func() { <-h.turns }()
	conn, err := h.connection()
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errLost, err)
	}
	deadline := time.Now().Add(h.answer)
	own := false
	if until, ok := ctx.Deadline(); ok && until.Before(deadline) {
		deadline, own = until, true
	}
	code, answer, err := ask(conn, deadline, verb, fields)
	if err != nil {
		_ = conn.Close()
		if own && errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil, errors.New("the token did not answer in the time that was left")
		}
		return 0, nil, fmt.Errorf("%w: %w", errLost, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost {
		_ = conn.Close()
	} else {
		h.idle = append(h.idle, conn)
	}
	return code, answer, nil
}

func ask(conn *link, deadline time.Time, verb byte, fields [][]byte) (wire.Code, []byte, error) {
	if err := conn.SetDeadline(deadline); err != nil {
		return 0, nil, err
	}
	if err := wire.Write(conn, verb, fields...); err != nil {
		return 0, nil, err
	}
	code, answer, err := wire.Read(conn.in, wire.MaxAnswer)
	if err == nil && len(answer) != 1 {
		err = wire.ErrFrame
	}
	if err != nil {
		return 0, nil, err
	}
	return wire.Code(code), answer[0], nil
}

// connection takes one that is idle, or makes one.
func (h *helper) connection() (*link, error) {
	h.mu.Lock()
	if n := len(h.idle); n > 0 {
		conn := h.idle[n-1]
		h.idle = h.idle[:n-1]
		h.mu.Unlock()
		return conn, nil
	}
	lost := h.lost
	h.mu.Unlock()
	if lost {
		return nil, net.ErrClosed
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: h.socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := h.checkPeer(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &link{conn, bufio.NewReader(conn)}, nil
}

// checkPeer makes sure that it is the helper that was started who answers: it is given the PIN.
func (h *helper) checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) {
		peer, asked = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, asked); err != nil {
		return err
	}
	if int(peer.Pid) != h.cmd.Process.Pid || int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d answers on the socket of the helper, process %d", peer.Pid, peer.Uid, h.cmd.Process.Pid)
	}
	return nil
}

// look has the helper find a token, without a PIN.
func (h *helper) look(ctx context.Context, s wire.Selector) (wire.Code, string, error) {
	asked, err := json.Marshal(s)
	if err != nil {
		return 0, "", err
	}
	code, answer, err := h.call(ctx, wire.Look, asked)
	return code, printable(answer), err
}

// open has the helper find a key.
func (h *helper) open(ctx context.Context, s wire.Selector, pin string) (wire.Code, string, *wire.Key, error) {
	asked, err := json.Marshal(s)
	if err != nil {
		return 0, "", nil, err
	}
	code, answer, err := h.call(ctx, wire.Open, asked, []byte(pin))
	if err != nil || code != wire.OK {
		return code, printable(answer), nil, err
	}
	var k wire.Key
	if err := json.Unmarshal(answer, &k); err != nil {
		return 0, "", nil, fmt.Errorf("%w: %w", errLost, err)
	}
	return code, "", &k, nil
}

// sign has the helper sign.
func (h *helper) sign(ctx context.Context, number uint32, m wire.Mechanism, data []byte) (wire.Code, []byte, error) {
	return h.call(ctx, wire.Sign, binary.BigEndian.AppendUint32(nil, number), []byte{byte(m)}, data)
}

// printable keeps what a vendor's library says from writing lines of its own.
func printable(text []byte) string {
	if len(text) > 1000 {
		text = text[:1000]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(string(text), "?"))
}
