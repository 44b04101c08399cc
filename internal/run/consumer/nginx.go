package consumer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Nginx is a web server of our own on a loopback port.
type Nginx struct {
	*Process
	Address string // host:port on loopback
	Config  string // path of its nginx.conf
	PIDFile string
}

// NginxServer is one of its servers; the first answers for names that none has.
type NginxServer struct {
	Names            []string
	Certificate, Key string   // paths
	More             []string // directives, with their semicolons
}

// StartNginx writes a configuration into a new directory below dir and starts nginx with one worker. Each server answers
// 200 and its first name; GET /slow answers at once and then takes half an hour, at two octets a second, so that a
// reload can be watched from within a connection.
func StartNginx(ctx context.Context, dir string, servers ...NginxServer) (*Nginx, error) {
	home, err := os.MkdirTemp(dir, "nginx")
	if err != nil {
		return nil, err
	}
	address, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	n, err := PrepareNginx(home, address, servers...)
	if err != nil {
		return nil, err
	}
	return n, n.Start(ctx)
}

// PrepareNginx writes the configuration into home, which is made if need be, and starts nothing: its files may be missing.
func PrepareNginx(home, address string, servers ...NginxServer) (*Nginx, error) {
	if err := os.MkdirAll(home, 0o755); err != nil {
		return nil, err
	}
	n := &Nginx{Address: address, Config: filepath.Join(home, "nginx.conf"), PIDFile: filepath.Join(home, "nginx.pid")}
	return n, os.WriteFile(n.Config, []byte(nginxConfig(home, n.PIDFile, address, servers)), 0o644)
}

// Start starts what was prepared.
func (n *Nginx) Start(ctx context.Context) (err error) {
	n.Process, err = Start(ctx, Program{
		Path: systemProgram("nginx"), Args: []string{"-e", "stderr", "-c", n.Config}, Dir: filepath.Dir(n.Config),
		Ready: Listening(n.Address),
	})
	return err
}

// Reload makes nginx read its configuration and certificates again; it goes on with the old where the new is wrong.
func (n *Nginx) Reload() error { return n.Signal(syscall.SIGHUP) }

func nginxConfig(home, pidFile, address string, servers []NginxServer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "daemon off;\nworker_processes 1;\npid %s;\nerror_log stderr notice;\n", pidFile)
	b.WriteString("events { worker_connections 64; }\nhttp {\n  access_log off;\n")
	for _, temporary := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&b, "  %s_temp_path %s/%s;\n", temporary, home, temporary)
	}
	for _, s := range servers {
		name := strings.Join(s.Names, " ")
		if name == "" {
			name = "_"
		}
		first, _, _ := strings.Cut(name, " ")
		fmt.Fprintf(&b, "  server {\n    listen %s ssl;\n    server_name %s;\n    ssl_certificate %s;\n    ssl_certificate_key %s;\n", address, name,
			s.Certificate, s.Key)
		for _, line := range s.More {
			b.WriteString("    " + line + "\n")
		}
		fmt.Fprintf(&b, "    location / { return 200 \"%s\\n\"; }\n", first)
		fmt.Fprintf(&b, "    location /slow { limit_rate_after 1k; limit_rate 2; default_type text/plain; return 200 %q; }\n  }\n",
			strings.Repeat("slow ", 780))
	}
	b.WriteString("}\n")
	return b.String()
}
