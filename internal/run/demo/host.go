package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/pki/cert"
	"chancery/internal/run/consumer"
)

// host is a directory that stands for a machine: what its agent places is below root.
type host struct {
	name, poolName string
	root, state    string
	ip             []string
	pool           *client.Pool
	trust          string // file with the pool's root
	orders         []client.PlacementOrder
	daemon         *daemon
	agent          *loop.Agent
	stop           context.CancelFunc // of the agent
	ended          chan error         // what the agent's loop returned
}

// path is where a path of the host lies.
func (h *host) path(p string) string { return filepath.Join(h.root, p) }

// mkdir makes a directory of the host, and those above it, that other users may pass, whatever the umask.
func (h *host) mkdir(p string) error {
	if p != "/" {
		if err := h.mkdir(filepath.Dir(p)); err != nil {
			return err
		}
	}
	err := os.Mkdir(h.path(p), 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return errors.Join(err, os.Chmod(h.path(p), 0o755))
}

// write writes a file of the host that other users may read.
func (h *host) write(p, text string) error {
	if err := h.mkdir(filepath.Dir(p)); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(h.path(p), []byte(text), 0o644), os.Chmod(h.path(p), 0o644))
}

// join is the chapter in which the hosts get their consumers, join, and place.
func (s *story) join(ctx context.Context) error {
	s.hosts = []*host{
		{name: "hyper1.example", poolName: "hypervisors", ip: []string{"127.0.0.1"}},
		{name: "web1.example", poolName: "web"},
		{name: "db1.example", poolName: "databases"},
	}
	for i, prepare := range []func(context.Context, *host) error{s.hypervisor, s.web, s.database} {
		h := s.hosts[i]
		short, _, _ := strings.Cut(h.name, ".")
		h.root, h.state = filepath.Join(s.dir, short), filepath.Join(s.dir, short+"-agent")
		if err := h.mkdir("/etc"); err != nil {
			return err
		}
		address, err := consumer.FreeAddress()
		if err != nil {
			return err
		}
		h.daemon = &daemon{address: address, home: h.path("/srv")}
		if err := prepare(ctx, h); err != nil {
			return fmt.Errorf("prepare %s: %w", h.name, err)
		}
	}
	group, joining := errgroup.WithContext(ctx)
	for _, h := range s.hosts {
		group.Go(func() error {
			if err := s.bringUp(ctx, joining, h); err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	table := tabwriter.NewWriter(s.Out, 0, 8, 2, ' ', 0)
	for _, h := range s.hosts {
		var recipes []string
		for _, o := range h.orders {
			recipes = append(recipes, o.Recipe)
		}
		fmt.Fprintf(table, "  %s\tpool %s\t%s\t%s\n", h.name, h.poolName, strings.Join(recipes, ", "), h.daemon.title())
	}
	if err := table.Flush(); err != nil {
		return err
	}
	var missing []string
	for _, h := range s.hosts {
		if h.daemon.why != nil {
			missing = append(missing, h.daemon.product())
		}
	}
	if len(missing) > 0 {
		s.line("Not installed here: %s. A small TLS server of ours stands in, and reads the same files.", strings.Join(missing, ", "))
	}
	s.line("Each agent redeemed a one-time token, made its keys, had them certified, placed the files and saw them served.")
	return nil
}

// bringUp adds a host to the authority and takes it from its token to a consumer that serves. What it starts lives as long
// as ctx; joining ends when another host fails.
func (s *story) bringUp(ctx, joining context.Context, h *host) error {
	if err := s.addPool(joining, h); err != nil {
		return err
	}
	added, err := s.api.AddHost(joining, client.AddHostRequest{Name: h.name, Pool: h.poolName, IP: h.ip, Placements: h.orders})
	if err != nil {
		return err
	}
	if _, err := loop.Join(joining, loop.JoinOptions{State: h.state, Root: h.root, Token: added.Token, Version: s.Version}); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	agent, err := loop.New(loop.Options{State: h.state, Version: s.Version, Self: s.Readable, Pace: loop.Pace{Pass: 5 * time.Second}})
	if err != nil {
		return err
	}
	h.agent = agent
	// The files come first: no consumer starts without its certificate.
	if err := converge(joining, agent); err != nil {
		return err
	}
	if err := h.daemon.run(ctx); err != nil {
		return err
	}
	if err := converge(joining, agent); err != nil {
		return err
	}
	h.ended = make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	h.stop = stop
	go func() { h.ended <- agent.Run(running) }()
	return nil
}

// addPool makes the host's pool, whose root is kept by the authority.
func (s *story) addPool(ctx context.Context, h *host) (err error) {
	if h.pool, err = s.api.AddPool(ctx, client.AddPoolRequest{Name: h.poolName, Online: true}); err != nil {
		return err
	}
	for _, issuer := range []*client.Issuer{h.pool.Root, h.pool.Issuer} {
		if _, err := s.api.IssueCRL(ctx, issuer.Name, client.IssueCRLRequest{}); err != nil {
			return err
		}
	}
	h.trust = filepath.Join(s.dir, h.poolName+"-root.pem")
	return os.WriteFile(h.trust, []byte(h.pool.Root.PEM), 0o644)
}

func converge(ctx context.Context, agent *loop.Agent) error {
	result, err := agent.Once(ctx)
	if err != nil {
		return err
	}
	if result.Done() {
		return nil
	}
	wrong := []error{errors.New(result.String())}
	for _, o := range result.Observations {
		wrong = append(wrong, fmt.Errorf("%s is %s: %s", o.Placement, o.State, o.Message))
	}
	return errors.Join(wrong...)
}

// end stops the agent and the consumer of a host, as far as they run.
func (h *host) end() error {
	var wrong []error
	if h.stop != nil {
		h.stop()
		wrong = append(wrong, <-h.ended)
	}
	if h.agent != nil {
		wrong = append(wrong, h.agent.Close())
	}
	if h.daemon != nil {
		wrong = append(wrong, h.daemon.stop())
	}
	return errors.Join(wrong...)
}

// configure writes the host's agent.yaml: that the daemon's own directory holds its configuration and pid file, and the
// argument vectors that take the place of a recipe's steps here, where there is no systemd and a stand-in may serve.
func (h *host) configure(recipe string, steps map[string][]string) error {
	says := map[string]any{"reads": []string{h.daemon.home}}
	if steps != nil {
		says["steps"] = map[string]any{recipe: steps}
	}
	text, err := json.Marshal(says) // YAML too
	if err != nil {
		return err
	}
	return h.write(loop.ConfigFile, string(text)+"\n")
}

// hypervisor prepares libvirtd. It takes its files from below the host's directory, so its configuration names all four; then
// it has to be restarted for new ones.
func (s *story) hypervisor(ctx context.Context, h *host) error {
	pki := map[string]string{
		"key_file": "/etc/pki/libvirt/private/serverkey.pem", "cert_file": "/etc/pki/libvirt/servercert.pem",
		"ca_file": "/etc/pki/CA/cacert.pem", "crl_file": "/etc/pki/CA/cacrl.pem",
	}
	var lines []string
	for name, path := range pki {
		if err := h.mkdir(filepath.Dir(path)); err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%s = %q", name, h.path(path)))
	}
	virt, err := consumer.PrepareLibvirtd(h.daemon.home, h.daemon.address, lines...)
	if err != nil {
		return err
	}
	h.daemon.log = virt.Log
	h.daemon.restarts = true
	h.daemon.start = func(ctx context.Context) (*consumer.Process, error) {
		err := virt.Start(ctx)
		return virt.Process, err
	}
	restart := append(s.Program, "restart", virt.PIDFile)
	if s.missing(ctx, h.daemon, "libvirtd", kindLibvirtd) {
		h.daemon.standIn(s.Program, files{h.path(pki["key_file"]), h.path(pki["cert_file"]), h.path(pki["ca_file"]), h.path(pki["crl_file"])}, virt.PIDFile)
		restart = append(s.Program, "hup", virt.PIDFile)
	}
	h.orders = []client.PlacementOrder{
		{Recipe: "libvirt-server", Parameters: map[string]string{"conf": virt.Config, "address": h.daemon.address, "label": ""}},
		{Recipe: "libvirt-client", Parameters: map[string]string{"beside_server": "true", "label": ""}},
	}
	return h.configure("libvirt-server", map[string][]string{"restart": restart})
}

func (s *story) web(ctx context.Context, h *host) error {
	const key, certificate = "/etc/nginx/tls/server.key", "/etc/nginx/tls/server.pem"
	nginx, err := consumer.PrepareNginx(h.daemon.home, h.daemon.address,
		consumer.NginxServer{Names: []string{h.name}, Certificate: h.path(certificate), Key: h.path(key)})
	if err != nil {
		return err
	}
	h.daemon.start = func(ctx context.Context) (*consumer.Process, error) {
		err := nginx.Start(ctx)
		return nginx.Process, err
	}
	h.orders = []client.PlacementOrder{{Recipe: "nginx", Parameters: map[string]string{
		"address": h.daemon.address, "conf": nginx.Config, "pid_file": nginx.PIDFile,
	}}}
	if !s.missing(ctx, h.daemon, "nginx", kindNginx) {
		return h.configure("nginx", nil)
	}
	h.daemon.standIn(s.Program, files{h.path(key), h.path(certificate), "", ""}, nginx.PIDFile)
	return h.configure("nginx", map[string][]string{
		"check":  append(s.Program, "check", h.path(key), h.path(certificate)),
		"reload": append(s.Program, "hup", nginx.PIDFile),
	})
}

func (s *story) database(ctx context.Context, h *host) error {
	of := files{h.path("/etc/postgresql/tls/server.key"), h.path("/etc/postgresql/tls/server.crt"), h.path("/etc/postgresql/tls/root.crt"),
		h.path("/etc/postgresql/tls/root.crl")}
	pidFile := filepath.Join(h.daemon.home, "data", "postmaster.pid")
	missing := s.missing(ctx, h.daemon, "postgres", kindPostgreSQL)
	owner, group := "postgres", "postgres"
	if os.Geteuid() != 0 || missing {
		owner, group = ourselves()
	}
	h.orders = []client.PlacementOrder{{Recipe: "postgresql", Parameters: map[string]string{
		"address": h.daemon.address, "pid_file": pidFile, "user": owner, "group": group,
	}}}
	if missing {
		h.daemon.standIn(s.Program, of, pidFile)
		return h.configure("postgresql", map[string][]string{"reload": append(s.Program, "hup", pidFile)})
	}
	if err := h.configure("postgresql", nil); err != nil {
		return err
	}
	const hba = "/etc/postgresql/pg_hba.conf"
	if err := h.write(hba, "local all postgres trust\nhostssl all all 127.0.0.1/32 cert\n"); err != nil {
		return err
	}
	h.daemon.start = func(ctx context.Context) (*consumer.Process, error) {
		pg, err := consumer.StartPostgreSQL(ctx, h.root, consumer.PostgreSQLOptions{
			Home: h.daemon.home, Address: h.daemon.address, Settings: []string{
				"ssl=on", "ssl_key_file=" + of.key, "ssl_cert_file=" + of.certificate, "ssl_ca_file=" + of.trust, "ssl_crl_file=" + of.crl,
				"hba_file=" + h.path(hba),
			},
		})
		if err != nil {
			return nil, err
		}
		return pg.Process, createRole(ctx, pg.URL("postgres"))
	}
	return nil
}

// ourselves are the names of our user and group.
func ourselves() (owner, group string) {
	owner, group = "root", "root"
	if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil {
		owner = u.Username
	}
	if g, err := user.LookupGroupId(strconv.Itoa(os.Getegid())); err == nil {
		group = g.Name
	}
	return owner, group
}

// placed is the chapter of the table. What the authority says is held against the port itself.
func (s *story) placed(ctx context.Context) error {
	var text bytes.Buffer
	table := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "  HOST\tRECIPE\tFILE\tMODE\tSERVES\tEXPIRES")
	for _, h := range s.hosts {
		known, err := s.api.Host(ctx, h.name)
		if err != nil {
			return err
		}
		name := h.name
		for i, p := range known.Placements {
			serves, recipe, expires := short(p.Observed.Served), p.Recipe, day(p.Observed.NotAfter)
			if i > 0 {
				serves = "(a client)"
			} else if err := s.holds(ctx, h, p.Observed); err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
			if len(p.Observed.Files) == 0 {
				return fmt.Errorf("%s: %s has no files", h.name, p.Recipe)
			}
			for _, f := range p.Observed.Files {
				path := f.Path
				if below, ok := strings.CutPrefix(path, h.root); ok {
					path = below
				}
				st, err := os.Lstat(h.path(path))
				if err != nil || f.Mode != fmt.Sprintf("%04o", st.Mode().Perm()) {
					return fmt.Errorf("%s: %s is not there with mode %s", h.name, path, f.Mode)
				}
				fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\t%s\n", name, recipe, path, f.Mode, serves, expires)
				name, recipe, serves, expires = "", "", "", ""
			}
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(text.String()) {
		s.tell("%s", strings.TrimRight(line, " \n"))
	}
	return nil
}

// holds compares what was reported with what is served.
func (s *story) holds(ctx context.Context, h *host, o client.Observation) error {
	if o.State != client.PlacementServed || o.Served != o.Serial {
		return fmt.Errorf("placement %s is %s, serial %s, and serves %s: %s", o.Placement, o.State, o.Serial, o.Served, o.Message)
	}
	seen, err := h.serves(ctx)
	if err != nil {
		return err
	}
	if got := cert.FormatSerial(seen.SerialNumber); got != o.Served {
		return fmt.Errorf("certificate %s is served, and %s was reported", got, o.Served)
	}
	return nil
}

// serves looks at the live port as a peer does that trusts the pool's root and asks for the host.
func (h *host) serves(ctx context.Context) (*x509.Certificate, error) {
	conn, err := h.daemon.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	t := tls.Client(conn, h.peer(nil))
	if err := t.HandshakeContext(ctx); err != nil && len(t.ConnectionState().PeerCertificates) == 0 {
		return nil, err
	}
	return t.ConnectionState().PeerCertificates[0], nil
}

// peer is the configuration of one who trusts the host's pool, with a certificate of its own or without.
func (h *host) peer(own *tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(h.pool.Root.PEM))
	config := &tls.Config{RootCAs: roots, ServerName: h.name}
	if own != nil { // shown whatever the server asks for
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own, nil }
	}
	return config
}

func hostPort(address string) (host, port string) {
	host, port, _ = net.SplitHostPort(address)
	return host, port
}
