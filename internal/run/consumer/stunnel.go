package consumer

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// StunnelServer is a server's end of a tunnel of ours, and where its files are.
type StunnelServer struct {
	Accept, Connect  string // host:port: where it listens, and whom it hands on to
	Certificate, Key string
	PIDFile, Log     string
	More             []string // options of the service
}

// Config is its configuration.
func (s StunnelServer) Config() string {
	return fmt.Sprintf("foreground = yes\npid = %s\noutput = %s\ndebug = 5\n[tunnel]\naccept = %s\nconnect = %s\ncert = %s\nkey = %s\n%s\n",
		s.PIDFile, s.Log, s.Accept, s.Connect, s.Certificate, s.Key, strings.Join(s.More, "\n"))
}

// Program is a stunnel that stays in the foreground, with a configuration.
func (s StunnelServer) Program(config string) Program {
	return Program{Path: "/usr/bin/stunnel4", Args: []string{config}, Ready: Listening(s.Accept)}
}

// Stunnel is a tunnel of our own on a loopback port.
type Stunnel struct {
	*Process
	Server StunnelServer
}

// StartStunnel starts stunnel in a new directory below dir, on a free port, in front of a server.
func StartStunnel(ctx context.Context, dir string, s StunnelServer) (*Stunnel, error) {
	home, err := os.MkdirTemp(dir, "stunnel")
	if err != nil {
		return nil, err
	}
	if s.Accept, err = FreeAddress(); err != nil {
		return nil, err
	}
	s.PIDFile, s.Log = home+"/pid", home+"/log"
	config := home + "/stunnel.conf"
	if err := os.WriteFile(config, []byte(s.Config()), 0o644); err != nil {
		return nil, err
	}
	run := &Stunnel{Server: s}
	run.Process, err = Start(ctx, s.Program(config))
	return run, err
}

// Reload makes it read its configuration and files again; it goes on with the old where the new is wrong.
func (s *Stunnel) Reload() error { return s.Signal(syscall.SIGHUP) }
