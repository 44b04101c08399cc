package probe

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// host is a directory that stands for a machine, with files by their path.
func host(t testing.TB, files map[string]string) System {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		at := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return System{Root: root}
}

const passwd = "root:x:0:0:root:/root:/bin/sh\n# a comment\nlibvirt-qemu:x:64055:108:Libvirt Qemu,,,:/var/lib/libvirt:/usr/sbin/nologin\nshort:x:1\nbroken:x:-1:0::/:\n"

const group = "root:x:0:\nkvm:x:108:\nlibvirt-qemu:x:64055:libvirt-qemu,web\nssl-cert:x:110:postgres,libvirt-qemu\n"

func TestAccountsBelowRoot(t *testing.T) {
	sys := host(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	u, err := sys.User("libvirt-qemu")
	if err != nil {
		t.Fatal(err)
	}
	if u.UID != 64055 || u.GID != 108 || u.Home != "/var/lib/libvirt" || !slices.Equal(u.Groups, []int{108, 64055, 110}) {
		t.Errorf("%+v", u)
	}
	if gid, err := sys.Group("kvm"); err != nil || gid != 108 {
		t.Errorf("kvm: %d, %v", gid, err)
	}
	for _, name := range []string{"nobody", "qemu", "", "short", "-1", "libvirt"} {
		if _, err := sys.User(name); !fault.Is(err, fault.NotFound) {
			t.Errorf("user %q: %v", name, err)
		}
		if _, err := sys.Group(name); !fault.Is(err, fault.NotFound) {
			t.Errorf("group %q: %v", name, err)
		}
	}
	if _, err := sys.User("broken"); err == nil || fault.Is(err, fault.NotFound) {
		t.Errorf("an account with a number below 0: %v", err)
	}
}

// TestAccountsOfTheMachine: without files below the root the machine's own are asked.
func TestAccountsOfTheMachine(t *testing.T) {
	for _, sys := range []System{{}, {Root: "/"}, {Root: t.TempDir()}} {
		u, err := sys.User("root")
		if err != nil || u.UID != 0 || u.Name != "root" {
			t.Errorf("%q: %+v, %v", sys.Root, u, err)
		}
		if gid, err := sys.Group("root"); err != nil || gid != 0 {
			t.Errorf("%q: %d, %v", sys.Root, gid, err)
		}
		if _, err := sys.User("no-such-user"); !fault.Is(err, fault.NotFound) {
			t.Errorf("%q: %v", sys.Root, err)
		}
	}
}

func TestPathIsPrefixedOnce(t *testing.T) {
	for _, c := range []struct{ root, path, want string }{
		{"", "/etc/x", "/etc/x"}, {"/", "/etc/x", "/etc/x"}, {"/r", "/etc/x", "/r/etc/x"}, {"/r", "/r/etc/x", "/r/etc/x"}, {"/r/", "/r", "/r"},
		{"/r", "/rest", "/r/rest"}, {"/r", "/../etc", "/r/etc"},
	} {
		if got := (System{Root: c.root}).Path(c.path); got != c.want {
			t.Errorf("%q %q: %s, want %s", c.root, c.path, got, c.want)
		}
	}
}

func TestRun(t *testing.T) {
	sys := System{AsRoot: os.Geteuid() == 0}
	t.Setenv("CHANCERY_SECRET", "hush")
	out, err := sys.Run(t.Context(), Command{Args: []string{"env"}})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(lines)
	if !slices.Equal(lines, []string{"LC_ALL=C", "PATH=" + searchPath}) {
		t.Errorf("the environment is %q", lines)
	}
	// An argument stays one argument, whatever it holds.
	out, err = sys.Run(t.Context(), Command{Args: []string{"printf", "%s|", "a b;$(id)", "*"}})
	if err != nil || string(out) != "a b;$(id)|*|" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = sys.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo this is wrong >&2; exit 3"}})
	wantError(t, err, "this is wrong", "exit status 3")
	_, err = sys.Run(t.Context(), Command{Args: []string{"sh", "-c", "sleep 600 & sleep 600"}, Timeout: 100 * time.Millisecond})
	wantError(t, err, "killed after 100ms")
	out, err = sys.Run(t.Context(), Command{Args: []string{"head", "-c", "10000000", "/dev/zero"}})
	if err != nil || len(out) != outputLimit {
		t.Errorf("kept %d octets, %v", len(out), err)
	}
	for _, c := range []Command{{}, {Args: []string{"./here"}}, {Args: []string{"../bin/sh"}}} {
		if _, err := sys.Run(t.Context(), c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", c.Args, err)
		}
	}
	for _, name := range []string{"no-such-command", "/no/such/command", "/etc", "/etc/passwd"} {
		if _, err := sys.Run(t.Context(), Command{Args: []string{name}}); !errors.Is(err, ErrNoCommand) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestRunLeavesADaemon: a command that started something which holds its output open has ended all the same.
func TestRunLeavesADaemon(t *testing.T) {
	out, err := System{}.Run(t.Context(), Command{Args: []string{"sh", "-c", "sleep 3 & echo started"}})
	if err != nil || strings.TrimSpace(string(out)) != "started" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestRunAsAnother(t *testing.T) {
	c := Command{Args: []string{"id", "-un"}, User: "nobody"}
	if os.Geteuid() == 0 {
		out, err := System{AsRoot: true}.Run(t.Context(), c)
		if err != nil || strings.TrimSpace(string(out)) != "nobody" {
			t.Errorf("%q, %v", out, err)
		}
		c.Args, c.Group = []string{"id", "-gn"}, "daemon"
		if out, err = (System{AsRoot: true}).Run(t.Context(), c); err != nil || strings.TrimSpace(string(out)) != "daemon" {
			t.Errorf("%q, %v", out, err)
		}
	}
	// Below a root our own user stands for all; without one, what cannot be done is refused.
	if _, err := (System{Root: t.TempDir()}).Run(t.Context(), Command{Args: []string{"true"}, User: "nobody"}); err != nil {
		t.Error(err)
	}
	if _, err := (System{}).Run(t.Context(), Command{Args: []string{"true"}, User: "daemon"}); !fault.Is(err, fault.Denied) {
		t.Errorf("error %v", err)
	}
	if _, err := (System{AsRoot: true}).Run(t.Context(), Command{Args: []string{"true"}, User: "no-such-user"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("error %v", err)
	}
}

func TestInUse(t *testing.T) {
	dir := t.TempDir()
	p := recipe.Probe{Command: []string{"test", "-e", dir + "/ready"}, Timeout: recipe.Duration(10 * time.Second)}
	go func() { _ = os.WriteFile(dir+"/ready", nil, 0o600) }()
	if err := InUse(t.Context(), System{}, p); err != nil {
		t.Fatal(err)
	}
	p = recipe.Probe{Command: []string{"test", "-e", dir + "/never"}, Timeout: recipe.Duration(300 * time.Millisecond)}
	if err := InUse(t.Context(), System{}, p); !errors.Is(err, ErrTimeout) {
		t.Fatalf("error %v", err)
	}
	p.Command = []string{"no-such-command"}
	if err := InUse(t.Context(), System{}, p); !errors.Is(err, ErrNoCommand) {
		t.Fatalf("error %v", err)
	}
}
