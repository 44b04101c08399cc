package consumer

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// ApacheServer is what an Apache of ours serves, and where its files are.
type ApacheServer struct {
	Address          string // host:port
	Name             string
	Run              string // a directory for its pid file (httpd.pid), log (error.log) and pages
	Certificate, Key string
	More             []string // directives of the virtual host
}

// apacheModules is where Debian keeps Apache's modules.
const apacheModules = "/usr/lib/apache2/modules"

// Config is its configuration. GET / answers "hello", and GET /slow a long text at 1 KiB a second, so that a graceful
// restart can be watched from within a download. Pages writes both.
func (s ApacheServer) Config() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("ServerRoot %s\nServerName %s\nListen %s\nPidFile %s/httpd.pid\nErrorLog %s/error.log\nLogLevel info", s.Run, s.Name, s.Address, s.Run, s.Run)
	for _, module := range []string{"mpm_event", "authz_core", "dir", "env", "ratelimit", "socache_shmcb", "ssl"} {
		line("LoadModule %s_module %s/mod_%s.so", module, apacheModules, module)
	}
	line("StartServers 1\nServerLimit 4\nThreadsPerChild 4\nMaxRequestWorkers 16\nMinSpareThreads 1\nMaxSpareThreads 16")
	if os.Geteuid() == 0 {
		line("User www-data\nGroup www-data")
	}
	line("DefaultRuntimeDir %s\nMutex file:%s default\nSSLSessionCache shmcb:%s/sessions(512000)", s.Run, s.Run, s.Run)
	line("DocumentRoot %s/pages\n<Directory %s/pages>\n  Require all granted\n  DirectoryIndex index\n</Directory>", s.Run, s.Run)
	line("<Location /slow>\n  SetOutputFilter RATE_LIMIT\n  SetEnv rate-limit 1\n</Location>")
	line("<VirtualHost *:*>\n  SSLEngine on\n  SSLCertificateFile %s\n  SSLCertificateKeyFile %s", s.Certificate, s.Key)
	for _, more := range s.More {
		line("  %s", more)
	}
	line("</VirtualHost>")
	return b.String()
}

// Pages writes the pages into the directory that the server knows as Run.
func (s ApacheServer) Pages(run string) error {
	if err := os.MkdirAll(run+"/pages", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(run+"/pages/index", []byte("hello world\n"), 0o644); err != nil {
		return err
	}
	return os.WriteFile(run+"/pages/slow", []byte(strings.Repeat("slow ", 20000)), 0o644)
}

// Program is an Apache that stays in the foreground, with a configuration.
func (s ApacheServer) Program(config string) Program {
	return Program{Path: systemProgram("apache2"), Args: []string{"-f", config, "-DFOREGROUND"}, Ready: Listening(s.Address)}
}

// Apache is a web server of our own on a loopback port.
type Apache struct {
	*Process
	Server ApacheServer
	Config string // path of its configuration
}

// StartApache starts Apache in a new directory below dir, on a free port.
func StartApache(ctx context.Context, dir string, s ApacheServer) (*Apache, error) {
	home, err := os.MkdirTemp(dir, "apache")
	if err != nil {
		return nil, err
	}
	if s.Address, err = FreeAddress(); err != nil {
		return nil, err
	}
	s.Run = home
	a := &Apache{Server: s, Config: home + "/httpd.conf"}
	if err := os.Chmod(home, 0o755); err != nil { // its processes are another user's
		return nil, err
	}
	if err := s.Pages(home); err != nil {
		return nil, err
	}
	if err := os.WriteFile(a.Config, []byte(s.Config()), 0o644); err != nil {
		return nil, err
	}
	a.Process, err = Start(ctx, s.Program(a.Config))
	return a, err
}

// Reload restarts it gracefully: it reads its files again, and ends where they are wrong.
func (a *Apache) Reload() error { return a.Signal(syscall.SIGUSR1) }
