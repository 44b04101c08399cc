package hosts_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/run/consumer"
)

// domain is a machine without a guest as libvirt has it. It is paused from the beginning.
const domain = `<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator><graphics type='vnc' port='%s' autoport='no' listen='%s'/><memballoon model='none'/></devices></domain>`

// qemuDriver starts libvirtd with its driver of QEMU on a host, with directories of its own for what libvirt keeps below /var.
// It needs neither systemd nor D-Bus, and emulates.
func (h *host) qemuDriver() {
	t := h.t
	t.Helper()
	for _, dir := range []string{"lib", "cache", "log"} {
		at := "/var/" + dir + "/libvirt"
		own := h.path("/opt/var-" + dir)
		must(t, os.Mkdir(own, 0o755))
		if err := os.Mkdir(at, 0o755); err == nil {
			t.Cleanup(func() { os.Remove(at) }) // a place to mount at, which stays empty
		}
		h.run("mount", "--bind", own, at)
	}
	h.write("/etc/libvirt/qemu.conf", `user = "libvirt-qemu"
group = "libvirt-qemu"
vnc_tls = 1
vnc_tls_x509_verify = 1
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
remember_owner = 0
`)
	h.write(libvirtConf, "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nlog_outputs = \"3:file:/run/libvirtd.log\"\n")
	drivers, err := filepath.Glob("/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so")
	must(t, err)
	if len(drivers) != 1 {
		t.Fatalf("the driver of QEMU: %v", drivers)
	}
	must(t, os.Mkdir(h.path("/opt/drivers"), 0o755))
	must(t, os.Symlink(drivers[0], h.path("/opt/drivers/libvirt_driver_qemu.so")))
	// Its machines are nobody's children. Where process 1 does not wait for those, libvirt takes each that ended for one that
	// cannot be killed; so it has a process 1 of its own.
	h.start(consumer.Program{
		Path: "unshare", Args: []string{"--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "/usr/sbin/libvirtd -p /run/libvirtd.pid & wait"},
		Env: []string{"LIBVIRT_DRIVER_DIR=/opt/drivers"}, Ready: consumer.Accepting(h.path("/run/libvirt/libvirt-sock")), Stop: syscall.SIGKILL,
	})
}

// TestQEMUUnderLibvirt, scenario S14: machines that libvirt runs show the new certificate after a renewal, and are the same
// processes.
func TestQEMUUnderLibvirt(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		displaysOfNobody(t)
		return
	}
	w := theWorld(t)
	h := w.qemuHost(t, "hyper", machine{})
	h.join(h.qemuOrder("default", qemuDir))
	h.converge()
	if seen := h.observed("qemu-default"); seen.State != client.PlacementPlaced {
		t.Errorf("without libvirt: %+v", seen)
	}
	h.qemuDriver()
	var displays []string
	for _, name := range []string{"web1", "web2"} {
		address, port := h.freeAt()
		h.write("/opt/"+name+".xml", fmt.Sprintf(domain, name, port, h.at))
		h.run("virsh", "-q", "-c", "qemu:///system", "create", "--paused", "/opt/"+name+".xml")
		t.Cleanup(func() { h.run("virsh", "-q", "-c", "qemu:///system", "destroy", name) })
		displays = append(displays, address)
	}
	pids := func() string {
		return h.run("sh", "-c", "cat /run/libvirt/qemu/*.pid; ls /run/libvirt/qemu/*.pid")
	}
	before := pids()
	h.converge()
	first := parsed(t, h.read(qemuDir+"/server-cert.pem"))
	if seen := h.observed("qemu-default"); seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(first.SerialNumber) {
		t.Errorf("under libvirt: %+v", seen)
	}
	w.chancery(t, "host", "set", h.name, "--dns", "console-"+h.name)
	h.converge()
	second := parsed(t, h.read(qemuDir+"/server-cert.pem"))
	if second.Equal(first) {
		t.Error("it was not re-keyed")
	}
	for _, d := range displays {
		h.displays(d, second)
	}
	if now := pids(); now != before || len(now) < 2 {
		t.Errorf("processes were %q and are %q", before, now)
	}
	if seen := h.observed("qemu-default"); seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(second.SerialNumber) {
		t.Errorf("after a renewal: %+v", seen)
	}
}

// displaysOfNobody is what can be seen without root: libvirt's system is not there, and nothing is told.
func displaysOfNobody(t *testing.T) {
	h := theWorld(t).qemuHost(t, "hyper", machine{})
	h.join(h.qemuOrder("default", qemuDir))
	h.converge()
	if seen := h.observed("qemu-default"); seen.State != client.PlacementPlaced {
		t.Errorf("without libvirt: %+v", seen)
	}
}
