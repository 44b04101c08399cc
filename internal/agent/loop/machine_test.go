package loop_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
)

// TestReplacedOnTheSameMachine joins a machine anew that kept its state: what it held was revoked, so all of it is new.
func TestReplacedOnTheSameMachine(t *testing.T) {
	m := newMachine(t, plain(nil))
	before := m.settled().Observations[0]
	key := m.read("/etc/ssl/a.key")
	token, err := m.node.admin.ReplaceHost(t.Context(), m.name, client.ReplaceHostRequest{})
	must(t, err)
	_, err = loop.Join(t.Context(), loop.JoinOptions{State: m.state, Token: token.Token, Again: true, Version: "test"})
	must(t, err)
	after := m.settled().Observations[0]
	if after.Serial == before.Serial || string(key) == string(m.read("/etc/ssl/a.key")) {
		t.Fatalf("it holds %s still, which was revoked when the machine was replaced", after.Serial)
	}
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
	old, err := m.node.admin.Certificate(t.Context(), "", before.Serial)
	must(t, err)
	if old.State != client.StateRevoked {
		t.Errorf("the old certificate is %s", old.State)
	}
}

// TestClonedMachineShows copies a machine's state: the second to renew carries a generation that was used.
func TestClonedMachineShows(t *testing.T) {
	m := newMachine(t, plain(nil))
	m.settled()
	clone := *m
	clone.state, clone.root = filepath.Join(t.TempDir(), "state"), m.root
	must(t, os.CopyFS(clone.state, os.DirFS(m.state)))
	must(t, filepath.WalkDir(clone.state, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	}))
	clone.options.State = clone.state
	status, err := loop.Look(m.state, time.Now())
	must(t, err)
	m.clockAt(status.IdentityDue.Add(time.Hour))
	clone.clockAt(status.IdentityDue.Add(time.Hour))
	m.once()
	result := clone.once()
	host, err := m.node.admin.Host(t.Context(), m.name)
	must(t, err)
	if host.State != client.HostSuspect || host.Message == "" {
		t.Fatalf("the host is %s (%s), and the clone was told %q", host.State, host.Message, result.Problems)
	}
	m.options.Now = nil
	m.rename("more.example")
	o := m.once().Observations[0]
	if o.State != client.PlacementFailed || !strings.Contains(o.Message, "suspect") {
		t.Errorf("a suspect host got what it asked for: %+v", o)
	}
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key") // what is there is kept
}

// TestStateThatWasLostIsJoinedAgain: the files of before are nobody's then, and are taken over in one pass that is told to.
func TestStateThatWasLostIsJoinedAgain(t *testing.T) {
	m := newMachine(t, plain(nil))
	m.settled()
	key := m.read("/etc/ssl/a.key")
	must(t, os.RemoveAll(m.state))
	token, err := m.node.admin.ReplaceHost(t.Context(), m.name, client.ReplaceHostRequest{})
	must(t, err)
	_, err = loop.Join(t.Context(), loop.JoinOptions{State: m.state, Root: m.root, Token: token.Token, Version: "test"})
	must(t, err)
	for _, adopt := range []string{"", "other"} {
		m.options.Adopt = adopt
		o := m.once().Observations[0]
		if o.State != client.PlacementFailed || !strings.Contains(o.Message, "chancery agent run --once --adopt=plain") {
			t.Errorf("adopting %q: %+v", adopt, o)
		}
		if string(key) != string(m.read("/etc/ssl/a.key")) {
			t.Fatalf("adopting %q: the file of before is not there any more", adopt)
		}
	}
	m.options.Adopt = "plain"
	m.settled()
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
	copies, err := filepath.Glob(m.path("/etc/ssl/a.key.chancery-before-*"))
	must(t, err)
	if len(copies) != 1 {
		t.Errorf("%d copies of the key of before", len(copies))
	}
	m.options.Adopt = ""
	must(t, os.WriteFile(m.path("/etc/ssl/a.pem"), nil, 0o644)) // it is ours again
	m.settled()
}
