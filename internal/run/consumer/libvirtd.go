package consumer

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Libvirtd is a libvirt daemon of our own that listens for TLS on a loopback port. It has libvirt's test driver only, so
// that it needs neither systemd, D-Bus, QEMU nor an account of its own.
type Libvirtd struct {
	*Process
	Address string // host:port on loopback
	Config  string // path of its libvirtd.conf
	Log     string // path of its log
	PIDFile string
	admin   string // path of its administration socket
	sockets string // directory
	drivers string // directory
}

// StartLibvirtd writes a configuration with more settings, lines as in libvirtd.conf, into a new directory below dir and
// starts the daemon. Without settings for its files it takes its certificates from the default places: /etc/pki for root.
func StartLibvirtd(ctx context.Context, dir string, more ...string) (*Libvirtd, error) {
	home, err := os.MkdirTemp(dir, "virt")
	if err != nil {
		return nil, err
	}
	address, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	d, err := PrepareLibvirtd(home, address, more...)
	if err != nil {
		return nil, err
	}
	return d, d.Start(ctx)
}

// PrepareLibvirtd writes the configuration into home, which is made if need be, and starts nothing: its certificates may be
// missing.
func PrepareLibvirtd(home, address string, more ...string) (*Libvirtd, error) {
	host, port, _ := strings.Cut(address, ":")
	d := &Libvirtd{
		Address: address, Config: filepath.Join(home, "libvirtd.conf"), Log: filepath.Join(home, "log"), PIDFile: filepath.Join(home, "pid"),
		sockets: filepath.Join(home, "sock"), drivers: filepath.Join(home, "drivers"),
	}
	// The test driver is built in; no other is found in an empty directory.
	for _, dir := range []string{d.sockets, d.drivers} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	d.admin = filepath.Join(d.sockets, "libvirt-admin-sock")
	place := fmt.Sprintf("unix_sock_dir = %q", d.sockets)
	if os.Geteuid() != 0 { // an ordinary user's daemon with that setting has no administration socket
		place = "# sockets are under XDG_RUNTIME_DIR"
		d.admin = filepath.Join(d.sockets, "libvirt", "libvirt-admin-sock")
	}
	if len(d.admin) > 107 {
		return nil, fmt.Errorf("start libvirtd: the path of its socket, %s, has more than 107 octets; take a shorter directory", d.admin)
	}
	lines := append([]string{
		"listen_tls = 1", "listen_tcp = 0", fmt.Sprintf("listen_addr = %q", host), fmt.Sprintf("tls_port = %q", port),
		`auth_unix_ro = "none"`, `auth_unix_rw = "none"`, `auth_tls = "none"`,
		place, fmt.Sprintf("log_outputs = \"3:file:%s\"", d.Log),
	}, more...)
	return d, os.WriteFile(d.Config, []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

// Start starts what was prepared.
func (d *Libvirtd) Start(ctx context.Context) (err error) {
	home := filepath.Dir(d.Config)
	d.Process, err = Start(ctx, Program{
		Path: systemProgram("libvirtd"), Args: []string{"-f", d.Config, "--listen", "-p", d.PIDFile}, Dir: home,
		Env:   append(d.Env(), "LIBVIRT_DRIVER_DIR="+d.drivers),
		Ready: Listening(d.Address),
	})
	if err != nil {
		log, _ := os.ReadFile(d.Log)
		return fmt.Errorf("%w; its log: %s", err, log)
	}
	return nil
}

// Env keeps libvirt's programs from what the caller has at home, which may not be there at all.
func (d *Libvirtd) Env() []string {
	home := filepath.Dir(d.Config)
	return []string{"HOME=" + home, "XDG_RUNTIME_DIR=" + d.sockets, "XDG_CONFIG_HOME=" + home, "XDG_CACHE_HOME=" + home, "XDG_DATA_HOME=" + home}
}

// URI is where virsh reaches the daemon under a name of this host, with the client's files in the directory pki; libvirt's
// own places where it is empty.
func (d *Libvirtd) URI(host, pki string) string {
	_, port, _ := strings.Cut(d.Address, ":")
	uri := "test+tls://" + host + ":" + port + "/default"
	if pki != "" {
		uri += "?pkipath=" + url.QueryEscape(pki)
	}
	return uri
}

// AdminURI is where virt-admin reaches the daemon.
func (d *Libvirtd) AdminURI() string {
	mode := "system"
	if os.Geteuid() != 0 {
		mode = "session"
	}
	return "libvirtd:///" + mode + "?socket=" + d.admin
}
