package place

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// The test binary starts itself again: to be killed, to be somebody else, to have mounts of its own.
const (
	envKill    = "PLACE_TEST_KILL"     // STORY ROOT STATE CUT: place, and die at the cut
	envKillNSS = "PLACE_TEST_KILL_NSS" // JSON: place a database, and die
	envNobody  = "PLACE_TEST_NOBODY"   // give up root first
	envMounts  = "PLACE_TEST_MOUNTS"   // mounts are this process's own
)

// nobody is a user that owns nothing.
const nobody = 65534

func TestMain(m *testing.M) {
	if words := os.Getenv(envKill); words != "" {
		placeAndDie(words)
		os.Exit(0)
	}
	if words := os.Getenv(envKillNSS); words != "" {
		placeNSSAndDie(words)
		os.Exit(0)
	}
	if os.Getenv(envNobody) != "" && os.Geteuid() == 0 {
		for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)} {
			if err != nil {
				panic(err)
			}
		}
	}
	if os.Getenv(envMounts) != "" {
		if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// again runs the calling test in a process of its own that differs as env says, and reports whether this is that process.
func again(t *testing.T, env string, change func(*exec.Cmd)) (there bool) {
	t.Helper()
	if os.Getenv(env) != "" {
		fmt.Println("ran as", env)
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"=1")
	if change != nil {
		change(cmd)
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ran as "+env) || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in a process of its own (%s): %v\n%s", env, err, out)
	}
	return false
}

// withoutRoot reports whether the test runs as an ordinary user, which it makes come about.
func withoutRoot(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv(envNobody) == "" {
		return true
	}
	return again(t, envNobody, nil)
}

// withMounts reports whether the process may mount, which it makes come about: root in a mount namespace, or anybody who is
// root in a user namespace.
func withMounts(t *testing.T) bool {
	t.Helper()
	return again(t, envMounts, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if uid := os.Geteuid(); uid != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		}
	})
}
