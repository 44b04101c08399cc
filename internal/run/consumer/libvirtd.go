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
	admin   string // path of its administration socket
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
	host, port, _ := strings.Cut(address, ":")
	// The test driver is built in; no other is found in an empty directory.
	sockets, drivers := filepath.Join(home, "sock"), filepath.Join(home, "drivers")
	for _, d := range []string{sockets, drivers} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	d := &Libvirtd{Address: address, Config: filepath.Join(home, "libvirtd.conf"), Log: filepath.Join(home, "log")}
	d.admin = filepath.Join(sockets, "libvirt-admin-sock")
	place := fmt.Sprintf("unix_sock_dir = %q", sockets)
	if os.Geteuid() != 0 { // an ordinary user's daemon with that setting has no administration socket
		place = "# sockets are under XDG_RUNTIME_DIR"
		d.admin = filepath.Join(sockets, "libvirt", "libvirt-admin-sock")
	}
	if len(d.admin) > 107 {
		return nil, fmt.Errorf("start libvirtd: the path of its socket, %s, has more than 107 octets; take a shorter directory", d.admin)
	}
	lines := append([]string{
		"listen_tls = 1", "listen_tcp = 0", fmt.Sprintf("listen_addr = %q", host), fmt.Sprintf("tls_port = %q", port),
		`auth_unix_ro = "none"`, `auth_unix_rw = "none"`, `auth_tls = "none"`,
		place, fmt.Sprintf("log_outputs = \"3:file:%s\"", d.Log),
	}, more...)
	if err := os.WriteFile(d.Config, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	d.Process, err = Start(ctx, Program{
		Path: systemProgram("libvirtd"), Args: []string{"-f", d.Config, "--listen", "-p", filepath.Join(home, "pid")}, Dir: home,
		Env:   []string{"LIBVIRT_DRIVER_DIR=" + drivers, "XDG_RUNTIME_DIR=" + sockets},
		Ready: Listening(address),
	})
	if err != nil {
		log, _ := os.ReadFile(d.Log)
		return nil, fmt.Errorf("%w; its log: %s", err, log)
	}
	return d, nil
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
