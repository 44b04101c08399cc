package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chancery/internal/run/cluster"
	"chancery/internal/upkeep/datadir"
)

// The ports of every node; the addresses are those of the members.
const (
	apiPort     = 18443
	publicPort  = 18080
	metricsPort = 19443
)

// node is a node on the machine of a member.
type node struct {
	name    string
	member  *cluster.Member
	dir     datadir.Dir
	program string
	log     string
	api     *door // for clients on the same machine, whom a cut does not part from the node
	public  *door

	life   atomic.Int64 // how often it was started
	cutOff atomic.Bool  // it can reach nobody

	mu     sync.Mutex // guards what follows
	cmd    *exec.Cmd  // nil while it shall not run
	done   chan struct{}
	failed int // how often it ended by itself, and was started again
}

func (n *node) at(port int) string { return net.JoinHostPort(n.member.Address, strconv.Itoa(port)) }

// command is one to run on the node's machine.
func (n *node) command(ctx context.Context, args ...string) *exec.Cmd {
	name := n.program
	if n.member.Link != nil {
		name, args = "ip", append([]string{"netns", "exec", n.member.Link.Namespace, n.program}, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start starts the node; its first words are waited for by nobody. When it ends by itself it is started again after a second, as its unit
// of systemd says: at its start it may find no database.
func (n *node) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		return fmt.Errorf("node %s runs", n.name)
	}
	return n.run()
}

// run starts the program; mu is held.
func (n *node) run() error {
	out, err := os.OpenFile(n.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := n.command(context.Background(), "serve", "--dir", string(n.dir))
	cmd.Stdout, cmd.Stderr = out, out
	done, started := make(chan struct{}), make(chan error)
	go func() { // the kernel sends the signal of Pdeathsig when the thread ends that started the program
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(done)
		if err == nil {
			time.Sleep(time.Second)
			n.again(cmd)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	n.cmd, n.done = cmd, done
	n.life.Add(1)
	return nil
}

// again starts the node after its program has ended, unless it was killed.
func (n *node) again(ended *exec.Cmd) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != ended {
		return
	}
	n.failed++
	if err := n.run(); err != nil {
		fmt.Fprintf(os.Stderr, "start node %s again: %v\n", n.name, err)
	}
}

// failures is how often the node ended by itself.
func (n *node) failures() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failed
}

// signal sends the node a signal; SIGKILL is waited for.
func (n *node) signal(s syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if s == syscall.SIGKILL {
		<-n.done
		n.cmd = nil
	}
	return nil
}

// logged are the node's lines that say that it signs CRLs, and in which epoch.
func (n *node) logged() (epochs []int64, err error) {
	f, err := os.Open(n.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !strings.Contains(lines.Text(), `"signing CRLs"`) {
			continue
		}
		var epoch int64
		_, rest, ok := strings.Cut(lines.Text(), `epoch`)
		if _, err := fmt.Sscanf(strings.TrimLeft(rest, `":= `), "%d", &epoch); !ok || err != nil {
			return nil, fmt.Errorf("the log of node %s has %q", n.name, lines.Text())
		}
		epochs = append(epochs, epoch)
	}
	return epochs, lines.Err()
}

// door accepts connections on loopback and leads each to an address, from within the namespace of a member.
type door struct {
	address string
	to      string
	link    *cluster.Link // nil: from where we are
	l       net.Listener
	all     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]bool
	shut  bool
}

func openDoor(link *cluster.Link, to string) (*door, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &door{address: l.Addr().String(), to: to, link: link, l: l, conns: map[net.Conn]bool{}}
	d.all.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			d.all.Go(func() { d.carry(from) })
		}
	})
	return d, nil
}

func (d *door) carry(from net.Conn) {
	defer from.Close()
	to, err := d.dial()
	if err != nil {
		return
	}
	defer to.Close()
	if !d.enter(from, to) {
		return
	}
	d.all.Go(func() { _, _ = io.Copy(to, from); to.Close() })
	_, _ = io.Copy(from, to)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, from)
	delete(d.conns, to)
}

func (d *door) enter(conns ...net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range conns {
		if d.shut {
			return false
		}
		d.conns[c] = true
	}
	return true
}

// dial connects from a thread that enters the namespace, and ends with it.
func (d *door) dial() (net.Conn, error) {
	if d.link == nil {
		return net.DialTimeout("tcp", d.to, time.Second)
	}
	type dialled struct {
		conn net.Conn
		err  error
	}
	answer := make(chan dialled)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		f, err := os.Open(filepath.Join("/run/netns", d.link.Namespace))
		if err != nil {
			answer <- dialled{nil, err}
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			answer <- dialled{nil, fmt.Errorf("enter namespace %s: %w", d.link.Namespace, err)}
			return
		}
		conn, err := net.DialTimeout("tcp", d.to, time.Second)
		answer <- dialled{conn, err}
	}()
	got := <-answer
	return got.conn, got.err
}

func (d *door) close() {
	d.l.Close()
	d.mu.Lock()
	d.shut = true
	for c := range d.conns {
		c.Close()
	}
	d.mu.Unlock()
	d.all.Wait()
}
