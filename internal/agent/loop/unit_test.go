package loop_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/agent/loop"
)

// fakeSystemctl is a systemctl that knows one service, and does as systemd does: try-restart starts nothing. A file "broken" has the
// service fail when it starts. What was asked of it but show is kept.
const fakeSystemctl = `#!/bin/sh
cd DIR
case "$1" in
show) [ "$3" = tomcat9.service ] && echo LoadState=loaded || echo LoadState=not-found
  echo ActiveState=$(cat state); exit 0;;
esac
echo "$*" >>told
[ "$2" = tomcat9.service ] || { echo "Unit $2 not found." >&2; exit 5; }
case "$1 $(cat state)" in
"try-restart active" | "restart "*)
  if [ -e broken ]; then rm broken; echo failed >state; exit 1; fi
  echo active >state;;
esac
`

// serviceHost is a host with a program that systemd runs, without a port and a pid file.
type serviceHost struct {
	*machine
	dir string
}

func newServiceHost(t *testing.T, unit string, services string) *serviceHost {
	t.Helper()
	m := newMachine(t, client.PlacementOrder{Recipe: "java", Parameters: map[string]string{"service": unit, "dir": "/etc/ssl/java-own"}})
	s := &serviceHost{machine: m, dir: t.TempDir()}
	must(t, os.WriteFile(s.dir+"/systemctl", []byte(strings.ReplaceAll(fakeSystemctl, "DIR", s.dir)), 0o755))
	s.is("active")
	full := unit
	if !strings.HasSuffix(full, ".service") {
		full += ".service"
	}
	text := fmt.Sprintf("%ssteps:\n  java:\n    restart: [%s/systemctl, try-restart, %s]\n", services, s.dir, full)
	must(t, os.WriteFile(m.path(loop.ConfigFile), []byte(text), 0o644))
	must(t, os.MkdirAll(m.path("/etc/ssl/java-own"), 0o755))
	return s
}

func (s *serviceHost) is(state string) {
	s.t.Helper()
	must(s.t, os.WriteFile(s.dir+"/state", []byte(state+"\n"), 0o644))
}

func (s *serviceHost) state() string {
	s.t.Helper()
	text, err := os.ReadFile(s.dir + "/state")
	must(s.t, err)
	return strings.TrimSpace(string(text))
}

// told is what systemd was told since it was asked last.
func (s *serviceHost) told() string {
	s.t.Helper()
	file := filepath.Join(s.dir, "told")
	text, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return ""
	}
	must(s.t, err)
	must(s.t, os.Remove(file))
	return strings.Join(strings.Split(strings.TrimSpace(string(text)), "\n"), "; ")
}

// TestStoppedServiceStaysStopped is law 3 for a program without a port and a pid file: its files are placed, it is not started, and
// it is reported as down; once it runs it is restarted.
func TestStoppedServiceStaysStopped(t *testing.T) {
	s := newServiceHost(t, "tomcat9", "services: [tomcat9.service]\n")
	for _, state := range []string{"inactive", "failed", "deactivating"} {
		s.is(state)
		s.rename(state + ".example")
		o := s.settled().Observations[0]
		if o.State != client.PlacementDown || o.Serial == "" || s.told() != "" || s.state() != state {
			t.Errorf("%s: %+v", state, o)
		}
		if o := s.settled().Observations[0]; o.State != client.PlacementDown || s.told() != "" {
			t.Errorf("%s, looked at again: %+v", state, o)
		}
	}
	for _, state := range []string{"active", "activating", "reloading"} {
		s.is(state)
		s.rename(state + ".example")
		if o := s.settled().Observations[0]; o.State != client.PlacementPlaced || s.told() != "try-restart tomcat9.service" {
			t.Errorf("%s: %+v", state, o)
		}
	}
	if o := s.settled().Observations[0]; o.State != client.PlacementPlaced || s.told() != "" {
		t.Errorf("when nothing changed: %+v", o)
	}
}

// TestServiceThatDoesNotComeUpIsStartedWithTheOldFiles: what ran before the agent told it runs again when it has its old files back.
func TestServiceThatDoesNotComeUpIsStartedWithTheOldFiles(t *testing.T) {
	s := newServiceHost(t, "tomcat9.service", "services: [tomcat9]\n")
	s.settled()
	before := s.read("/etc/ssl/java-own/keystore.p12")
	s.told()
	must(t, os.WriteFile(s.dir+"/broken", nil, 0o644))
	s.rename("new.example")
	o := s.once().Observations[0]
	if told := s.told(); o.State != client.PlacementFailed || told != "try-restart tomcat9.service; restart tomcat9.service" || s.state() != "active" {
		t.Errorf("it is %s, told %q: %+v", s.state(), told, o)
	}
	if string(s.read("/etc/ssl/java-own/keystore.p12")) != string(before) {
		t.Error("the old files are not back")
	}
}

// TestServiceThatIsNotAccepted: a unit that the host does not name is neither restarted nor anything placed for it; one that is
// misspelt fails and says so.
func TestServiceThatIsNotAccepted(t *testing.T) {
	s := newServiceHost(t, "tomcat9", "")
	o := s.once().Observations[0]
	if o.State != client.PlacementFailed || !strings.Contains(o.Message, "parameter service: this host does not let a parameter name tomcat9.service") ||
		!strings.Contains(o.Message, "write into /etc/chancery/agent.yaml: services: [") {
		t.Errorf("%+v", o)
	}
	if _, err := os.Stat(s.path("/etc/ssl/java-own/keystore.p12")); !os.IsNotExist(err) || len(s.issued()) != 0 || s.told() != "" {
		t.Errorf("something was done for it: %v", err)
	}
	s = newServiceHost(t, "tomcat", "services: [tomcat]\n")
	s.is("inactive")
	if o := s.once().Observations[0]; o.State != client.PlacementFailed || !strings.Contains(o.Message, "Unit tomcat.service not found") {
		t.Errorf("a unit that is not there: %+v", o)
	}
}
