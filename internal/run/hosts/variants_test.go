package hosts_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"chancery/client"
)

const selinuxLabel = "system_u:object_r:cert_t:s0"

// TestQEMUGroupVariant is the placement of older manuals: owners, modes and labels; a second look that changes nothing;
// and each kind of change by somebody else, told and mended.
func TestQEMUGroupVariant(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).mendsDrift) {
		return
	}
	w := theWorld(t)
	h := w.newHost(t, "host1", machine{groups: []string{"libvirt-qemu"}})
	h.write(libvirtConf, "")
	h.join(order("libvirt-server", "variant=qemu-group"))
	h.converge()
	four := []string{"/etc/pki/libvirt", serverCert, "/etc/pki/libvirt/private", serverKey}
	want := "root:libvirt-qemu 755 /etc/pki/libvirt\nroot:libvirt-qemu 440 " + serverCert +
		"\nroot:libvirt-qemu 750 /etc/pki/libvirt/private\nroot:libvirt-qemu 440 " + serverKey + "\n"
	look := func() string { return h.run(append([]string{"stat", "-c", "%U:%G %a %n"}, four...)...) }
	labelled := func() {
		t.Helper()
		for _, path := range four {
			if got := h.run("getfattr", "--absolute-names", "--only-values", "-n", "security.selinux", path); got != selinuxLabel {
				t.Errorf("the label of %s is %q", path, got)
			}
		}
	}
	if got := look(); got != want {
		t.Errorf("placed is\n%s, not\n%s", got, want)
	}
	labelled()
	inodes := func() (all []uint64) {
		for _, path := range slices.Concat(four, []string{caFile, crlFile}) {
			all = append(all, h.inode(path))
		}
		return all
	}
	before := inodes()
	h.converge()
	if after := inodes(); !slices.Equal(before, after) {
		t.Errorf("a second look replaced files: %v, then %v", before, after)
	}
	key := string(h.read(serverKey))
	changes := map[string][]string{
		"mode of the key":        {"chmod", "0444", serverKey},
		"group of the key":       {"chgrp", "root", serverKey},
		"label of the key":       {"setfattr", "-n", "security.selinux", "-v", "system_u:object_r:tmp_t:s0", serverKey},
		"content":                {"sh", "-c", "echo >>" + serverCert},
		"mode of a directory":    {"chmod", "0777", "/etc/pki/libvirt/private"},
		"group of a directory":   {"chgrp", "root", "/etc/pki/libvirt"},
		"label of a directory":   {"setfattr", "-n", "security.selinux", "-v", "system_u:object_r:tmp_t:s0", "/etc/pki/libvirt"},
		"a file that is gone":    {"rm", serverCert},
		"owner of a certificate": {"chown", "12345", serverCert},
	}
	for what, change := range changes {
		h.run(change...)
		h.converge()
		path := change[len(change)-1]
		path = path[strings.Index(path, "/"):]
		if mended := h.observed("libvirt-server").Repaired; !strings.Contains(strings.Join(mended, "\n"), path) {
			t.Errorf("%s: of %s is reported %q", what, path, mended)
		}
		if got := look(); got != want {
			t.Errorf("%s: it was not mended:\n%s", what, got)
		}
		labelled()
	}
	if string(h.read(serverKey)) != key {
		t.Error("drift led to a new key")
	}
}

// TestMissingGroup: without the group nothing is written, asked for or left behind, and what is missing is named.
func TestMissingGroup(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).refuses) {
		return
	}
	h := theWorld(t).newHost(t, "host1", machine{})
	h.write(libvirtConf, "")
	h.join(order("libvirt-server", "variant=qemu-group"))
	h.refuses("group")
	h.absent("/etc/pki")
	if seen := h.observed("libvirt-server"); seen.State != client.PlacementFailed || !strings.Contains(seen.Message, "group") {
		t.Errorf("reported is %+v", seen)
	}
	for c, err := range h.world.admin.Certificates(t.Context(), client.CertificateFilter{Name: h.name}) {
		must(t, err)
		if c.Profile == "libvirt-server" {
			t.Errorf("certificate %s was asked for in vain", c.Serial)
		}
	}
	named := theWorld(t).newHost(t, "host2", machine{})
	named.write(libvirtConf, "")
	named.join(order("libvirt-server", "variant=qemu-group", "group=nowhere"))
	named.refuses("nowhere")
	named.absent("/etc/pki")
}

// TestUpstreamVariant: libvirt's own tool finds nothing to complain of, in both of its ages. The old one reads every
// certificate of a file and takes them for one, so the CA is the one of the manual: made by certtool, with nothing below it.
func TestUpstreamVariant(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	w := ownWorld(t, "", func(w *world) { importCA(t, w, "lab") })
	h := w.newHost(t, "host1", machine{pool: "lab", plainName: true})
	h.write(libvirtConf, "")
	h.join(order("libvirt-server"))
	h.converge()
	// What it says of a host that is no client is no complaint.
	complains(t, h, "Did not find /etc/pki/libvirt/clientcert.pem client certificate", "The machine cannot act as a client",
		"see https://libvirt.org/kbase/tlscerts.html#issuing-client-certificates", "on how to regenerate it")
	if wrong := validate(h); len(wrong) > 0 {
		t.Errorf("the checks since 10.5 complain: %q", wrong)
	}
	o := order("libvirt-server")
	_, err := w.admin.ChangeHost(t.Context(), h.name, client.ChangeHostRequest{Placements: &[]client.PlacementOrder{o, order("libvirt-client", "beside_server=true")}})
	must(t, err)
	h.converge()
	// It wants every user to be this host: the recipe does not, and says so.
	complains(t, h, "The client private key need to be read by client tools", "as root do: chmod 644 /etc/pki/libvirt/private/clientkey.pem")

	other := w.newHost(t, "host2", machine{pool: "lab", plainName: true, groups: []string{"qemu"}})
	other.write(libvirtConf, "")
	other.join(order("libvirt-server", "variant=qemu-group"))
	other.converge()
	complains(t, other, "Did not find /etc/pki/libvirt/clientcert.pem client certificate", "The machine cannot act as a client",
		"see https://libvirt.org/kbase/tlscerts.html#issuing-client-certificates", "on how to regenerate it",
		"The server private key need to be read only by root", "as root do: chmod 600 /etc/pki/libvirt/private/serverkey.pem")
	wrong := strings.Join(validate(other), "\n")
	for _, path := range []string{"/etc/pki/libvirt is of", "/etc/pki/libvirt/private has mode 0750", serverCert + " has mode 0440", serverKey + " has mode 0440"} {
		if !strings.Contains(wrong, path) {
			t.Errorf("the checks since 10.5 do not say %q:\n%s", path, wrong)
		}
	}
}

// complains wants virt-pki-validate to find a server's certificate and key, and to print certain other lines and no more.
func complains(t *testing.T, h *host, want ...string) {
	t.Helper()
	text := h.run("virt-pki-validate")
	var got []string
	found := 0
	for line := range strings.Lines(text) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "Found "):
			found++
		case line != "":
			got = append(got, line)
		}
	}
	if found < 4 || !slices.Equal(got, want) {
		t.Errorf("virt-pki-validate says\n%s, where\n%s\nis expected", text, strings.Join(want, "\n"))
	}
}

// importCA brings a CA that certtool made into a pool of its name.
func importCA(t *testing.T, w *world, name string) {
	t.Helper()
	dir := t.TempDir()
	template, key, certificate := filepath.Join(dir, "ca.info"), filepath.Join(dir, "ca.key"), filepath.Join(dir, "ca.pem")
	must(t, os.WriteFile(template, []byte("cn = "+name+"\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 1000\n"), 0o644))
	output(t, exec.Command("certtool", "--generate-privkey", "--key-type=ecdsa", "--no-text", "--outfile", key))
	output(t, exec.Command("certtool", "--generate-self-signed", "--load-privkey", key, "--template", template, "--outfile", certificate))
	w.chancery(t, "import", certificate, "--key", key, "--name", name, "--pool", name, "--default")
}

// validate does what virt-pki-validate does since 10.5.0 for the files of a server, as far as it concerns owners and modes;
// any complaint of it is a failure of that tool.
func validate(h *host) (wrong []string) {
	rules := []struct {
		path string
		mode os.FileMode
	}{
		{"/etc/pki", 0o755}, {"/etc/pki/CA", 0o755}, {"/etc/pki/libvirt", 0o755}, {"/etc/pki/libvirt/private", 0o755},
		{caFile, 0o644}, {serverCert, 0o644}, {serverKey, 0o600},
	}
	for _, r := range rules {
		st, err := os.Lstat(h.path(r.path))
		if err != nil {
			wrong = append(wrong, err.Error())
			continue
		}
		if st.Mode().Perm() != r.mode {
			wrong = append(wrong, fmt.Sprintf("%s has mode %04o, not %04o", r.path, st.Mode().Perm(), r.mode))
		}
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 0 || sys.Gid != 0 {
			wrong = append(wrong, fmt.Sprintf("%s is of %d:%d, not 0:0", r.path, sys.Uid, sys.Gid))
		}
	}
	return wrong
}
