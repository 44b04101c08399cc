package cluster_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/internal/pkitest"
)

const launcher = "patroni-fenced"

// TestLauncherIsTheOneShipped holds what clusters of tests start against what operators are given.
func TestLauncherIsTheOneShipped(t *testing.T) {
	ours, err := os.ReadFile(launcher)
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile(filepath.Join("../../../deploy/patroni", launcher))
	if err != nil || !bytes.Equal(ours, shipped) {
		t.Errorf("deploy/patroni/%[1]s is not internal/run/cluster/%[1]s: %[2]v", launcher, err)
	}
}

// TestThawedPrimaryTakesNothingBack has Patroni's client of etcd do what a primary does that stood still while another was promoted: by
// itself it writes over the other's lock, or takes it while it is free; with the fence it does not, and who was promoted leads on.
func TestThawedPrimaryTakesNothingBack(t *testing.T) {
	etcd := startEtcd(t)
	before := `n1 takes the lock: True, and the lock is n1
n1 enters n2 as its standby: True, and the lock is n1
n1 keeps the lock: True, and the lock is n1
n1 keeps it under another lease: True, and the lock is n1
n2 takes the lock: True, and the lock is n2
n2 enters itself: True, and the lock is n2
`
	for how, want := range map[string]string{
		"plain": `n1 goes on and keeps the lock: True, and the lock is n1
n1, a primary still, is fit to lead: True, and the lock is n1
`,
		"fenced": `n1 goes on and keeps the lock: False, and the lock is n2
n1 goes on while it is free: False, and the lock is free
n1 takes the free lock by what it saw before: False, and the lock is free
n1 enters n3 without the lock: False, and the lock is free
n1, a primary still, is fit to lead: False, and the lock is free
n2 takes it again: True, and the lock is n2
`,
	} {
		cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "testdata/thaw.py", launcher, etcd, how)
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil || string(out) != before+want {
			t.Errorf("%s: %v\n%s\n%s", how, err, out, said.String())
		}
	}
}

// TestEtcdWithoutItsPort: another program that listens where etcd was to is not taken for it, so that startEtcd tries other ports.
func TestEtcdWithoutItsPort(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if at, log := tryEtcd(t, other.Addr().String(), pickAddress(t)); at != "" || !strings.Contains(log, "address already in use") {
		t.Errorf("it is at %q, and says:\n%s", at, log)
	}
}

// startEtcd starts an etcd of one, and returns its address.
func startEtcd(t *testing.T) string {
	t.Helper()
	var said string
	for range 10 { // another program may take the ports first
		at, log := tryEtcd(t, pickAddress(t), pickAddress(t))
		if at != "" {
			return at
		}
		said = log
	}
	t.Fatalf("start etcd:\n%s", said)
	return ""
}

// pickAddress is one where nobody listens now.
func pickAddress(t *testing.T) string {
	t.Helper()
	port, err := pkitest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("127.0.0.1:", port)
}

// tryEtcd returns the address once this etcd says that it serves there, or what it said before it ended.
func tryEtcd(t *testing.T, client, peer string) (at, log string) {
	t.Helper()
	cmd := exec.Command("etcd", "--name", "one", "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--listen-client-urls", "http://"+client,
		"--advertise-client-urls", "http://"+client, "--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer,
		"--initial-cluster", "one=http://"+peer)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = cmd.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, serves, ended := make(chan error), make(chan struct{}), make(chan string, 1)
	go func() { // the kernel sends the signal of Pdeathsig when the thread ends that started the program
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		var said strings.Builder
		for lines, once := bufio.NewScanner(out), sync.OnceFunc(func() { close(serves) }); lines.Scan(); {
			fmt.Fprintln(&said, lines.Text())
			if strings.Contains(lines.Text(), "ready to serve client requests") {
				once()
			}
		}
		fmt.Fprintln(&said, cmd.Wait())
		ended <- said.String()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	select {
	case log := <-ended:
		return "", log
	case <-serves:
	case <-time.After(2 * time.Minute):
		t.Error("etcd neither serves nor ends")
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	return client, ""
}
