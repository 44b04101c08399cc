package token

import (
	"bufio"
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

	"chancery/internal/fault"
	"chancery/internal/store/token/wire"
)

// errLost says that the helper, or its way to the token, was lost while it was asked: what was asked may be asked again.
var errLost = errors.New("the helper was lost while it worked")

// answerTime is how long one request may take before the helper is taken for hung. A hardware module answers in
// milliseconds; generation of keys, which takes longer, is not asked of it.
const answerTime = 10 * time.Second

// startTime is how long a helper may take until it listens.
const startTime = 10 * time.Second

// helper is one process of chancery-pkcs11.
type helper struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	socket string // a path that works however long the directory's is; see dial
	remove string
	dir    *os.File
	ended  chan struct{} // closed when the process has ended

	turns chan struct{} // one for each request at once

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
	mu  sync.Mutex // guards key, and is held while it is being opened
	key *wire.Key
}

func (h *helper) opened(uri string) *opened {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys[uri] == nil {
		h.keys[uri] = &opened{}
	}
	return h.keys[uri]
}

// start runs the helper and waits until it listens. The directory of its socket is private, and the socket is called
// through a descriptor of that directory: the path of a socket may have 107 octets, and a data directory's may be longer.
func start(ctx context.Context, program, dir, library string, turns int, logger *slog.Logger) (*helper, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the helper's socket: %w", err)
	}
	handle, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := clean(dir, handle, time.Now()); err != nil {
		_ = handle.Close()
		return nil, fmt.Errorf("clean the directory of the helper's socket: %w", err)
	}
	name := rand.Text() + ".sock"
	cmd := exec.Command(program, name, library)
	cmd.Dir, cmd.Env = dir, environment()
	// A group of its own: what a terminal sends to the node's, such as an interrupt, is not for it; it ends with its input.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	h := &helper{
		cmd: cmd, dir: handle, remove: filepath.Join(dir, name), ended: make(chan struct{}), turns: make(chan struct{}, turns), keys: map[string]*opened{},
		socket: through(handle, name),
	}
	if err := h.run(ctx, logger); err != nil {
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

func (h *helper) run(ctx context.Context, logger *slog.Logger) error {
	var err error
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	errs, err := h.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := h.cmd.Start(); err != nil {
		return fault.New(fault.Unavailable, "the helper %s cannot be started: %w", h.cmd.Path, err)
	}
	var reading sync.WaitGroup
	ready := make(chan struct{})
	reading.Go(func() {
		lines := bufio.NewReader(out)
		if line, _ := lines.ReadString('\n'); line == "ready\n" {
			close(ready)
		}
		_, _ = io.Copy(io.Discard, lines)
	})
	reading.Go(func() { logLines(errs, logger) })
	go func() {
		reading.Wait()
		err := h.cmd.Wait()
		logger.Info("the PKCS #11 helper ended", "pid", h.cmd.Process.Pid, "state", fmt.Sprint(err))
		close(h.ended)
	}()
	timer := time.NewTimer(startTime)
	defer timer.Stop()
	select {
	case <-ready:
		logger.Info("the PKCS #11 helper runs", "pid", h.cmd.Process.Pid)
		return nil
	case <-h.ended:
		return fault.New(fault.Unavailable, "the helper %s ended as soon as it was started; the node's log has what it said", h.cmd.Path)
	case <-timer.C:
		return fault.New(fault.Unavailable, "the helper %s did not listen within %s", h.cmd.Path, startTime)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// logLines passes on what the helper and the library in it print, in lines of bounded length.
func logLines(r io.Reader, logger *slog.Logger) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 4<<10), 4<<10)
	for lines.Scan() {
		logger.Warn("the PKCS #11 helper says", "text", lines.Text())
	}
	_, _ = io.Copy(io.Discard, r) // a line that is too long ends the scanner; the helper must not wait for a reader
}

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
		<-h.ended
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
		return 0, nil, errors.Join(errLost, err)
	}
	deadline := time.Now().Add(answerTime)
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
		return 0, nil, errors.Join(errLost, err)
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
	code, answer, err := wire.Read(conn.in)
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
		return 0, "", nil, errors.Join(errLost, err)
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
