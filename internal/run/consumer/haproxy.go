package consumer

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// HAProxyServer is what an HAProxy of ours serves, and where its files are.
type HAProxyServer struct {
	Address     string // host:port
	Certificate string // one PEM file: certificate, path, key
	Bind        string // more words of the bind line
	PIDFile     string
	Socket      string // of the stats; none where it is empty
	Level       string // of that socket; admin where it is empty
}

// Config is its configuration. It answers "hello" and the subject of the client.
func (s HAProxyServer) Config() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("global\n  pidfile %s\n  maxconn 64", s.PIDFile)
	if s.Socket != "" {
		level := s.Level
		if level == "" {
			level = "admin"
		}
		line("  stats socket %s mode 600 level %s", s.Socket, level)
	}
	line("defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s")
	line("frontend web\n  bind %s ssl crt %s %s", s.Address, s.Certificate, s.Bind)
	line(`  http-request return status 200 content-type text/plain lf-string "hello %%[ssl_c_s_dn]\n"`)
	return b.String()
}

// Program is an HAProxy in master-worker mode that stays in the foreground, with a configuration.
func (s HAProxyServer) Program(config string) Program {
	return Program{Path: systemProgram("haproxy"), Args: []string{"-W", "-f", config}, Ready: Listening(s.Address)}
}

// HAProxy is a proxy of our own on a loopback port, which answers by itself.
type HAProxy struct {
	*Process
	Server HAProxyServer
}

// StartHAProxy starts HAProxy in a new directory below dir, on a free port. The directory's path must be short enough for a
// socket.
func StartHAProxy(ctx context.Context, dir string, s HAProxyServer) (*HAProxy, error) {
	home, err := os.MkdirTemp(dir, "haproxy")
	if err != nil {
		return nil, err
	}
	if s.Address, err = FreeAddress(); err != nil {
		return nil, err
	}
	s.PIDFile, s.Socket = home+"/pid", home+"/sock"
	config := home + "/haproxy.cfg"
	if err := os.WriteFile(config, []byte(s.Config()), 0o644); err != nil {
		return nil, err
	}
	h := &HAProxy{Server: s}
	h.Process, err = Start(ctx, s.Program(config))
	return h, err
}

// Reload has the master start a new worker with what the files hold now.
func (h *HAProxy) Reload() error { return h.Signal(syscall.SIGUSR2) }
