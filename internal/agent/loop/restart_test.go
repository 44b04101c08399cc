package loop_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/run/consumer"
)

// supervised is a libvirtd of a host, and whoever starts it again when it has ended, as systemd does with Restart=.
type supervised struct {
	*machine
	daemon *consumer.Libvirtd

	mu      sync.Mutex
	again   bool // guarded by mu
	started int  // how often it was started; guarded by mu
	wrong   error
	done    chan struct{}
}

// crash ends the daemon as server-update-tls does in version 9.0 when it falls into handshakes: virt-admin loses its connection.
// quiet ends it a moment after who told it has gone.
const (
	crash = "kill -SEGV $(cat %[1]s)\nexec virt-admin -q -c %[2]s server-update-tls libvirtd\n"
	quiet = "kill -TERM $(cat %[1]s)\n"
)

// libvirtdThatEnds is a host with a libvirtd that ends in some way when it is told of new files.
func libvirtdThatEnds(t *testing.T, way string, patience time.Duration) *supervised {
	t.Helper()
	address, err := consumer.FreeAddress()
	must(t, err)
	_, port, _ := strings.Cut(address, ":")
	m := newMachine(t, client.PlacementOrder{Recipe: "libvirt-server", Parameters: map[string]string{
		"address": address, "conf": "/etc/virt/libvirtd.conf", "label": "", "socket": "/run/libvirt-admin-sock",
	}})
	_, err = m.node.admin.ChangeHost(t.Context(), m.name, client.ChangeHostRequest{Profiles: &[]string{"libvirt-server"}})
	must(t, err)
	m.options.Pace.Restart = patience
	s := &supervised{machine: m, done: make(chan struct{})}
	home := m.path("/etc/virt")
	var lines []string
	for setting, file := range map[string]string{"cert_file": "cert.pem", "key_file": "key.pem", "ca_file": "ca.pem", "crl_file": "crl.pem"} {
		lines = append(lines, fmt.Sprintf("%s = %q", setting, filepath.Join(home, file)))
	}
	s.daemon, err = consumer.PrepareLibvirtd(home, "127.0.0.1:"+port, lines...)
	must(t, err)
	script := "#!/bin/sh\nexport " + strings.Join(s.daemon.Env(), " ") + "\n" + fmt.Sprintf(way, s.daemon.PIDFile, s.daemon.AdminURI())
	must(t, os.WriteFile(m.path("/etc/tell"), []byte(script), 0o755))
	text := fmt.Sprintf("recipes: [libvirt-server]\npaths: [/etc]\nreads: [/etc/virt, /run]\nsteps:\n  libvirt-server:\n    restart: [%s]\n", m.path("/etc/tell"))
	must(t, os.WriteFile(m.path(loop.ConfigFile), []byte(text), 0o644))
	return s
}

// run starts the daemon, and starts it again for as long as it is told to. The end of the test's context, which comes before its clean-up, does
// not end it: that would be one more end to start it again after.
func (s *supervised) run() {
	s.t.Helper()
	must(s.t, s.daemon.Start(context.WithoutCancel(s.t.Context())))
	s.again, s.started = true, 1
	go s.supervise()
	s.t.Cleanup(func() {
		s.restarts(false)
		s.mu.Lock()
		s.daemon.Stop()
		s.mu.Unlock()
		<-s.done
		if s.wrong != nil {
			s.t.Error(s.wrong)
		}
	})
}

func (s *supervised) supervise() {
	defer close(s.done)
	for {
		<-s.daemon.Done()
		s.mu.Lock()
		if !s.again {
			s.mu.Unlock()
			return
		}
		s.started++
		s.wrong = s.daemon.Start(context.WithoutCancel(s.t.Context()))
		s.mu.Unlock()
		if s.wrong != nil {
			return
		}
	}
}

func (s *supervised) restarts(again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again = again
}

func (s *supervised) starts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

// TestConsumerThatEndsAndIsStartedAgain: a libvirtd that ends when it is told of new files, and is started again by its
// supervisor, serves them; it is not given the old ones for that.
func TestConsumerThatEndsAndIsStartedAgain(t *testing.T) {
	for name, way := range map[string]string{"within the reload": crash, "after it": quiet} {
		t.Run(name, func(t *testing.T) {
			s := libvirtdThatEnds(t, way, 2*time.Minute)
			before := s.settled().Observations[0]
			s.run()
			s.rename("again.example")
			after := s.settled().Observations[0]
			shown := shownAt(t, s.daemon.Address)
			if after.State != client.PlacementServed || after.Serial == before.Serial || after.Served != after.Serial || shown != after.Serial {
				t.Errorf("before %s, shown %s: %+v", before.Serial, shown, after)
			}
			if n := s.starts(); n != 2 {
				t.Errorf("it was started %d times", n)
			}
			if way == crash && !strings.Contains(after.Message, "ended when it was told of new files, and was started again within") {
				t.Errorf("it is not told: %s", after.Message)
			}
			if o := s.settled().Observations[0]; o.State != client.PlacementServed || s.starts() != 2 {
				t.Errorf("when nothing changed it was started %d times: %+v", s.starts(), o)
			}
		})
	}
}

// TestConsumerThatEndsAndStaysDown: nobody starts it again, so the old files are put back and it is said which process it
// was. They stay until it runs again, and then it is given the new ones.
func TestConsumerThatEndsAndStaysDown(t *testing.T) {
	s := libvirtdThatEnds(t, crash, 500*time.Millisecond)
	before := s.settled().Observations[0]
	s.run()
	s.restarts(false)
	pid := s.daemon.PID()
	old := s.read("/etc/virt/cert.pem")
	s.rename("down.example")
	o := s.once().Observations[0]
	<-s.done
	if o.State != client.PlacementFailed || o.Serial != before.Serial || string(s.read("/etc/virt/cert.pem")) != string(old) {
		t.Errorf("the old files are not back: %+v", o)
	}
	for _, says := range []string{"the old files are back", fmt.Sprintf("libvirtd (process %d) ended then, and nothing has started it again within", pid)} {
		if !strings.Contains(o.Message, says) {
			t.Errorf("it does not say %q: %s", says, o.Message)
		}
	}
	if o := s.once().Observations[0]; o.State != client.PlacementFailed || !strings.Contains(o.Message, "does not run since") ||
		string(s.read("/etc/virt/cert.pem")) != string(old) {
		t.Errorf("while it is down: %+v", o)
	}
	s.done = make(chan struct{})
	s.options.Pace.Restart = 2 * time.Minute // from now on it is to come back, however slowly
	s.run()
	if o := s.settled().Observations[0]; o.State != client.PlacementServed || o.Serial == before.Serial || shownAt(t, s.daemon.Address) != o.Serial {
		t.Errorf("once it runs: %+v", o)
	}
}
