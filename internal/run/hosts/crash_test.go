package hosts_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chancery/internal/pki/cert"
)

// changes tells of what happens in some directories.
type changes struct {
	t  testing.TB
	fd int
}

func watch(t testing.TB, dirs ...string) *changes {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	for _, d := range dirs {
		_, err := unix.InotifyAddWatch(fd, d, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_ATTRIB|unix.IN_CLOSE_WRITE)
		must(t, err)
	}
	return &changes{t: t, fd: fd}
}

// next waits for events, and returns how many came; 0 where none did for a while.
func (c *changes) next(wait time.Duration) int {
	c.t.Helper()
	poll := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, int(wait.Milliseconds())); n == 0 || errors.Is(err, unix.EINTR) {
		return 0
	}
	buffer := make([]byte, 1<<16)
	n, err := unix.Read(c.fd, buffer)
	if errors.Is(err, unix.EAGAIN) {
		return 0
	}
	must(c.t, err)
	count := 0
	for at := 0; at < n; count++ {
		at += unix.SizeofInotifyEvent + int(uint32(buffer[at+12])|uint32(buffer[at+13])<<8|uint32(buffer[at+14])<<16)
	}
	return count
}

// killedAfter runs the agent and kills it after a number of changes to the daemon's files. It reports whether it came to
// that, and not to the agent's own end.
func (h *host) killedAfter(changes int) bool {
	h.t.Helper()
	see := watch(h.t, h.path("/etc/pki/CA"), h.path("/etc/pki/libvirt"), h.path("/etc/pki/libvirt/private"))
	cmd := h.agent("run", "--once")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	must(h.t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for seen := 0; seen < changes; seen += see.next(50 * time.Millisecond) {
		select {
		case err := <-ended:
			if err != nil {
				h.t.Fatalf("the agent ended with %v: %s", err, said.String())
			}
			return false
		default:
		}
	}
	must(h.t, cmd.Process.Kill())
	exit, killed := errors.AsType[*exec.ExitError](<-ended)
	return killed && exit.ProcessState.ExitCode() == -1
}

// TestKilledAgent kills the agent with every change that it makes to the daemon's files while it renews them. Whatever it
// leaves, its repair makes a matching pair of, without the network and before the daemon is told anything; the daemon takes
// that pair.
func TestKilledAgent(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).rollsBack) {
		return
	}
	w := theWorld(t)
	pool := w.pool(t)
	h := w.newHost(t, "host", machine{pool: pool.Name})
	port := h.configure()
	h.join(order("libvirt-server"))
	h.converge()
	d, c := h.libvirtd(port), w.peer(t, pool, "client")
	kills, apart, n := 0, 0, 0
	for round := range 12 {
		if n == 0 { // what was wanted is placed
			w.chancery(t, "host", "set", h.name, "--dns", fmt.Sprintf("%s-%d", h.name, round))
		}
		if n++; !h.killedAfter(n) {
			n = 0
			continue
		}
		kills++
		if _, err := tls.LoadX509KeyPair(h.path(serverCert), h.path(serverKey)); err != nil {
			apart++
		}
		output(t, h.agent("repair"))
		pair, err := tls.LoadX509KeyPair(h.path(serverCert), h.path(serverKey))
		if err != nil {
			t.Fatalf("killed after %d changes and repaired: %v", n, err)
		}
		h.tidy(n)
		h.run("virt-admin", "-q", "server-update-tls", "libvirtd")
		d.serves(c, pair.Leaf)
	}
	if kills < 4 {
		t.Errorf("the agent was killed %d times; that proves little", kills)
	}
	t.Logf("killed %d times, %d times with a key and a certificate that do not match until the repair", kills, apart)
	h.converge()
	last := parsed(t, h.read(serverCert))
	d.serves(c, last)
	if seen := h.observed("libvirt-server"); seen.Served != cert.FormatSerial(last.SerialNumber) {
		t.Errorf("reported is %+v", seen)
	}
}

// tidy wants nothing but the daemon's files beside them.
func (h *host) tidy(n int) {
	h.t.Helper()
	for dir, want := range map[string]int{"/etc/pki/CA": 2, "/etc/pki/libvirt": 2, "/etc/pki/libvirt/private": 1} {
		entries, err := os.ReadDir(h.path(dir))
		must(h.t, err)
		if len(entries) != want {
			h.t.Errorf("killed after %d changes and repaired, %s holds %v", n, dir, entries)
		}
	}
}
