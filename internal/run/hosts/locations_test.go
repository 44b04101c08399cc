package hosts_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pki/cert"
)

// elsewhere are settings that move the daemon's files below a directory.
func elsewhere(dir string) []string {
	return []string{
		fmt.Sprintf("key_file = %q", dir+"/private/serverkey.pem"), fmt.Sprintf("cert_file = %q", dir+"/servercert.pem"),
		fmt.Sprintf("ca_file = %q", dir+"/cacert.pem"), fmt.Sprintf("crl_file = %q", dir+"/cacrl.pem"),
	}
}

// TestOverriddenLocations: the daemon's own settings say where files are, all four or none; it is restarted, because what
// reloads would load the default places; and what lies there is not served.
func TestOverriddenLocations(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	h := w.newHost(t, "host", machine{pool: pool.Name})
	dir := h.inside("/opt/libvirt")
	settings := elsewhere(dir)
	port := h.configure(settings[:2]...)
	h.write("/etc/chancery/agent.yaml", "paths: [/opt/libvirt]\n"+h.restarts())
	h.join(order("libvirt-server", "conf="+h.conf()))
	h.refuses("set all four, or none")
	h.absent("/opt/libvirt/servercert.pem", "/etc/pki")
	h.configurePort(port, settings...)
	for _, d := range []string{"/opt/libvirt", "/opt/libvirt/private"} {
		must(t, os.MkdirAll(h.path(d), 0o755))
	}
	h.converge()
	h.absent("/etc/pki")
	cert1 := parsed(t, h.read("/opt/libvirt/servercert.pem"))
	d, c := h.libvirtd(port), w.peer(t, pool, "client")
	d.serves(c, cert1)
	if h.root == "" {
		stale(t, w, h)
	}
	pid := d.pid()
	h.converge()
	if d.pid() != pid {
		t.Error("a look that changes nothing restarts the daemon")
	}
	w.chancery(t, "host", "set", h.name, "--dns", "also-"+h.name)
	h.converge()
	cert2 := parsed(t, h.read("/opt/libvirt/servercert.pem"))
	if cert2.Equal(cert1) || !slices.Contains(cert2.DNSNames, "also-"+h.name) {
		t.Errorf("placed is a certificate of %s", cert2.DNSNames)
	}
	d.serves(c, cert2)
	if d.pid() == pid {
		t.Error("the daemon was not restarted")
	}
	if seen := h.observed("libvirt-server"); seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(cert2.SerialNumber) {
		t.Errorf("reported is %+v", seen)
	}
}

// TestLocationsOfTheProxyDaemon: where virtproxyd listens it is its configuration that says where files are, and its
// version that counts.
func TestLocationsOfTheProxyDaemon(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	h := theWorld(t).newHost(t, "host", machine{})
	h.write(libvirtConf, "")
	h.write("/etc/libvirt/virtproxyd.conf", strings.Join(elsewhere("/opt/libvirt"), "\n")+"\n")
	must(t, os.MkdirAll(h.path("/opt/libvirt/private"), 0o755))
	programs := filepath.Join(h.home, "programs")
	must(t, os.Mkdir(programs, 0o755))
	must(t, os.WriteFile(filepath.Join(programs, "virtproxyd"), []byte("#!/bin/sh\necho 'virtproxyd (libvirt) 11.9.0'\n"), 0o755))
	h.run("mount", "--bind", programs, "/usr/local/sbin")
	h.write("/etc/chancery/agent.yaml", "paths: [/opt/libvirt]\n")
	h.join(order("libvirt-server", "daemon=virtproxyd"))
	h.converge()
	h.absent("/etc/pki")
	h.run("openssl", "verify", "-CAfile", "/opt/libvirt/cacert.pem", "/opt/libvirt/servercert.pem")
	if seen := h.observed("libvirt-server"); seen.State != client.PlacementDown || seen.Facts["version"] != "11.9.0" {
		t.Errorf("reported is %+v", seen)
	}
}

// stale fills the default places with another pool's files, from the time before the settings were made.
func stale(t *testing.T, w *world, h *host) {
	t.Helper()
	pool := w.pool(t)
	other := w.peerOf(t, pool, "libvirt-server", h.name)
	for path, text := range map[string]string{caFile: string(trustOf(pool)), serverCert: pems(other.pair.Certificate), serverKey: string(encodeKey(t))} {
		h.write(path, text)
	}
	must(t, os.Chmod(h.path(serverKey), 0o600))
}

// TestIntermediates: with an issuer below the root the daemon starts and takes both sides' paths; who holds nothing but
// the root believes it.
func TestIntermediates(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	w := theWorld(t)
	pool := w.pool(t)
	h := w.newHost(t, "host", machine{pool: pool.Name})
	port := h.configure()
	h.join(order("libvirt-server"))
	h.converge()
	root, issuer := parsed(t, []byte(pool.Root.PEM)), parsed(t, []byte(pool.Issuer.PEM))
	if got := string(h.read(caFile)); strings.Count(got, "BEGIN CERTIFICATE") != 2 || !strings.Contains(got, strings.TrimSpace(pool.Root.PEM)) ||
		!strings.Contains(got, strings.TrimSpace(pool.Issuer.PEM)) {
		t.Errorf("cacert.pem does not hold %s and %s:\n%s", root.Subject, issuer.Subject, got)
	}
	if got := string(h.read(serverCert)); strings.Count(got, "BEGIN CERTIFICATE") != 2 || !strings.HasSuffix(strings.TrimSpace(got), strings.TrimSpace(pool.Issuer.PEM)) {
		t.Errorf("servercert.pem does not hold the leaf and %s:\n%s", issuer.Subject, got)
	}
	d, c := h.libvirtd(port), w.peer(t, pool, "client")
	d.lets(h.name, c)
	file := filepath.Join(t.TempDir(), "root.pem")
	must(t, os.WriteFile(file, []byte(pool.Root.PEM), 0o644))
	out := output(t, exec.Command("openssl", "s_client", "-connect", h.at+":"+port, "-CAfile", file, "-verify_return_error", "-verify_hostname", h.name,
		"-cert", c.dir+"/clientcert.pem", "-cert_chain", c.dir+"/clientcert.pem", "-key", c.dir+"/clientkey.pem"))
	if !strings.Contains(out, "Verify return code: 0 (ok)") {
		t.Errorf("openssl, with the root alone:\n%s", out)
	}
}
