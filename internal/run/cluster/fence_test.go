package cluster_test

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
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

// startEtcd starts an etcd of one, and returns its address.
func startEtcd(t *testing.T) string {
	var at [2]string
	for i := range at {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		at[i] = l.Addr().String()
		l.Close()
	}
	cmd := exec.Command("etcd", "--name", "one", "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--listen-client-urls", "http://"+at[0],
		"--advertise-client-urls", "http://"+at[0], "--listen-peer-urls", "http://"+at[1], "--initial-advertise-peer-urls", "http://"+at[1],
		"--initial-cluster", "one=http://"+at[1])
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	await(t, "etcd answers", func() error {
		answer, err := http.Get("http://" + at[0] + "/health")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		var text bytes.Buffer
		if _, err := text.ReadFrom(answer.Body); err != nil || !strings.Contains(text.String(), "true") {
			return fmt.Errorf("%s %w", text.String(), err)
		}
		return nil
	})
	return at[0]
}
