// Package consumer starts real programs on loopback, in a directory of the caller's, and stops them by their process ID:
// the peers of the benchmark, and the servers of the demo and of tests.
//
// A program that is started here is told to listen on 127.0.0.1 only. It lives until Stop, or until the context that
// Start was given ends. When the process that started it dies, the kernel ends it too (PR_SET_PDEATHSIG), so that a
// killed test leaves nothing behind.
package consumer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Program is a command to run.
type Program struct {
	Path  string   // looked up in PATH when it has no slash
	Args  []string // without the program's name; never a secret
	Dir   string   // working directory; empty means the caller's
	Env   []string // added to the caller's environment
	User  *syscall.Credential
	Ready func(ctx context.Context) error // returns nil once the program answers; nil means at once
	Says  string                          // what it prints before Ready is asked: who else has its addresses would answer as well
	Stop  syscall.Signal                  // what ends it in an orderly way; zero means SIGTERM
}

// Process is a running Program.
type Process struct {
	name   string
	cmd    *exec.Cmd
	signal syscall.Signal
	done   chan struct{} // closed when the program has ended
	err    error         // why it ended; read after done

	mu     sync.Mutex
	output bytes.Buffer // the first megabyte that it printed, guarded by mu
}

// outputLimit bounds what is kept of a program's output.
const outputLimit = 1 << 20

// Start runs a program and waits until it is ready. On any error the program has been ended.
func Start(ctx context.Context, p Program) (*Process, error) {
	path, err := exec.LookPath(p.Path)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", p.Path, err)
	}
	run := &Process{name: p.Path, signal: p.Stop, done: make(chan struct{})}
	if run.signal == 0 {
		run.signal = syscall.SIGTERM
	}
	run.cmd = exec.Command(path, p.Args...)
	run.cmd.Dir = p.Dir
	run.cmd.Env = append(os.Environ(), p.Env...)
	run.cmd.Stdout, run.cmd.Stderr = run, run
	run.cmd.WaitDelay = 2 * time.Second // children of the program may hold its output open after its end
	run.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.User, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go run.wait(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Path, err)
	}
	context.AfterFunc(ctx, func() { _ = run.Stop() })
	if p.Ready == nil {
		return run, nil
	}
	ready := func(ctx context.Context) error {
		if !strings.Contains(run.Output(), p.Says) {
			return fmt.Errorf("it has not said %q", p.Says)
		}
		return p.Ready(ctx)
	}
	if err := run.await(ctx, ready); err != nil {
		_ = run.Stop()
		return nil, fmt.Errorf("wait for %s: %w; it printed: %s", p.Path, err, run.Output())
	}
	return run, nil
}

// wait starts the program and reaps it. The kernel sends the death signal when the starting thread ends, not the process,
// so the thread is held until the program has ended.
func (p *Process) wait(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

// await asks ready until it succeeds, the program ends, or four minutes have gone by: programs start slowly where much else runs.
func (p *Process) await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %w", errors.Join(p.err, err))
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Write keeps what the program prints; it makes Process an io.Writer for exec and is not meant for callers.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if room := outputLimit - p.output.Len(); room > 0 {
		p.output.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

// Output returns what the program has printed so far, on both streams.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.TrimSpace(p.output.String())
}

// PID is the program's process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the program, for example SIGHUP to make it reload.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Stop ends the program: first in an orderly way, after ten seconds by SIGKILL. A program that has ended is no error.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(p.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(10 * time.Second):
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// systemProgram is where Debian keeps a daemon: in /usr/sbin, which an ordinary user's PATH leaves out.
func systemProgram(name string) string {
	if path := "/usr/sbin/" + name; exists(path) {
		return path
	}
	return name
}

// number is a version as programs print it.
var number = regexp.MustCompile(`[0-9]+(?:\.[0-9]+)+`)

// Version returns the version of an installed program: nginx, libvirtd or postgres. An error says that it is not there, or
// not fit to be started here.
func Version(ctx context.Context, program string) (string, error) {
	path, flag := systemProgram(program), "--version"
	switch program {
	case "nginx":
		flag = "-v"
	case "postgres":
		bin, err := postgreSQLPrograms()
		if err != nil {
			return "", err
		}
		if _, err := postgreSQLUser(); err != nil {
			return "", err
		}
		path = filepath.Join(bin, program)
	}
	out, err := exec.CommandContext(ctx, path, flag).CombinedOutput()
	if err != nil {
		return "", err
	}
	return number.FindString(string(out)), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// FreeAddress returns a loopback address, host:port, on which nothing listens at the moment, and which no other call returns as long as
// this process lives: neither the time before a program listens nor that of its restart makes it another's. Its port is below those that
// Linux gives to whoever asks for any, outgoing connections too (32768 and up), since one of these would now and then take it.
func FreeAddress() (string, error) {
	const first, ports, tries = 20000, 12000, 100
	var err error
	for range tries {
		port := first + rand.IntN(ports)
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
			continue
		}
		err = errors.Join(reserve(port), l.Close())
		if err == nil {
			return l.Addr().String(), nil
		}
	}
	return "", fmt.Errorf("find a free port: %w", err)
}

// reserve keeps a port from the other callers of FreeAddress, in whatever process. The sign of it is an abstract Unix socket, which is of
// the same network namespace as the port, and which the kernel takes away when this process ends: nothing else closes it.
func reserve(port int) error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: "@chancery-port-" + strconv.Itoa(port)}); err != nil {
		return errors.Join(fmt.Errorf("port %d is reserved: %w", port, err), syscall.Close(fd))
	}
	return nil
}

// Listening returns a Ready that passes once something accepts connections at address.
func Listening(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}
