package loop_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/client"
)

// TestPasswordFileThatIsNoneHangsNobody gives a key store password files that somebody else chose. The other placement of
// the host is made all the same.
func TestPasswordFileThatIsNoneHangsNobody(t *testing.T) {
	const password = "/etc/ssl/s.password"
	store := client.PlacementOrder{Name: "a-store", Recipe: "plain", Parameters: map[string]string{"store": "/etc/ssl/s.p12", "password_file": password}}
	m := newMachine(t, store, plain(nil))
	for says, put := range map[string]func(path string) error{
		"is a FIFO":                    func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"is a directory":               func(path string) error { return os.Mkdir(path, 0o755) },
		"is a symbolic link":           func(path string) error { return os.Symlink("/dev/zero", path) },
		"is a symbolic link; a":        func(path string) error { return os.Symlink("../shadow", path) },
		"has 1048576 octets":           func(path string) error { return os.WriteFile(path, make([]byte, 1<<20), 0o600) },
		"its first line is the passwo": func(path string) error { return os.WriteFile(path, []byte("\n"), 0o600) },
	} {
		must(t, os.WriteFile(m.path("/etc/shadow"), []byte("of root alone\n"), 0o600))
		must(t, put(m.path(password)))
		began := make(chan struct{})
		go func() {
			defer close(began)
			result, err := m.pass()
			if err != nil {
				t.Errorf("%s: %v", says, err)
				return
			}
			for _, o := range result.Observations {
				switch {
				case o.Placement == "a-store" && (o.State != client.PlacementFailed || !strings.Contains(o.Message, password) || !strings.Contains(o.Message, says)):
					t.Errorf("%s: %s %q", says, o.State, o.Message)
				case o.Placement != "a-store" && o.State != client.PlacementPlaced:
					t.Errorf("%s: the other placement: %+v", says, o)
				}
			}
		}()
		select {
		case <-began:
		case <-time.After(time.Minute):
			t.Fatalf("%s: the agent hangs", says)
		}
		must(t, os.Remove(m.path(password)))
	}
	must(t, os.WriteFile(m.path(password), []byte("secret\n"), 0o600))
	m.settled()
}

// TestLoopTellsThatItLives listens as systemd does.
func TestLoopTellsThatItLives(t *testing.T) {
	m := newMachine(t, plain(nil))
	m.settled()
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(int(30*time.Millisecond/time.Microsecond)))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	m.options.Alone = true
	m.running()
	must(t, l.SetReadDeadline(time.Now().Add(time.Minute)))
	for n := range 20 { // of which a pass makes but a few: the others come while it waits
		var text [64]byte
		got, err := l.Read(text[:])
		if err != nil || string(text[:got]) != "WATCHDOG=1" {
			t.Fatalf("after %d it says %q, %v", n, text[:got], err)
		}
	}
}
