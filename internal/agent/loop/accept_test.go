package loop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// judgeReads is what the default configuration says of a recipe's parameters under a root.
func judgeReads(t *testing.T, config, name, root string, parameters map[string]string, facts recipe.Facts) error {
	t.Helper()
	c, err := ParseConfig([]byte(config))
	must(t, err)
	r, ok := recipe.Builtin(name)
	if !ok {
		t.Fatalf("there is no recipe %s", name)
	}
	reads, err := r.Reads(parameters, facts)
	must(t, err)
	return c.acceptsReads(reads, root)
}

// TestWhatProgramsAreGivenIsTheHostsWord: a parameter, which comes over the network, does not choose what root's programs
// read, where keys are told to, or what is signalled.
func TestWhatProgramsAreGivenIsTheHostsWord(t *testing.T) {
	root := t.TempDir()
	for _, c := range []struct {
		config, recipe, parameter, path string
		want                            string // of the refusal; empty: it passes
	}{
		{"", "nginx", "conf", "/home/mallory/nginx.conf", "parameter conf: this host does not accept /home/mallory/nginx.conf as what a program is given"},
		{"reads: [/home/mallory]", "nginx", "conf", "/home/mallory/nginx.conf", ""},
		{"reads: [/home/mall]", "nginx", "conf", "/home/mallory/nginx.conf", "/home/mall"},
		{"", "nginx", "conf", "/etc/nginx/shop.conf", ""},
		{"", "nginx", "conf", "/etc/ssl/shop.conf", "as what a program is given"}, // files are placed there, and nothing is run with them
		{"", "nginx", "pid_file", "/tmp/nginx.pid", "as a pid file"},
		{"", "nginx", "pid_file", "/run/nginx/pid", ""},
		{"", "postgresql", "conf", "/tmp/postgresql.conf", "as a configuration to read"},
		{"", "postgresql", "pid_file", "/tmp/pid", "as a pid file"},
		{"", "postgresql", "data", "/tmp/data", "parameter data: "},
		{"", "libvirt-server", "conf", "/tmp/libvirtd.conf", "as a configuration to read"},
		{"", "libvirt-server", "socket", "/tmp/admin", "as what a program is given"},
		{"", "haproxy", "socket", "/tmp/haproxy", "as a socket"},
		{"", "haproxy", "conf", "/tmp/haproxy", "as what a program is given"},
		{"", "apache", "ctl", "/usr/bin/bash", "as a program to run"},
		{"", "apache", "conf", "/tmp/apache", "as what a program is given"},
		{"", "stunnel", "pid_file", "/tmp/stunnel", "as a pid file"},
	} {
		err := judgeReads(t, c.config, c.recipe, root, map[string]string{c.parameter: c.path}, nil)
		if c.want == "" && err != nil {
			t.Errorf("%s:%s=%s: %v", c.recipe, c.parameter, c.path, err)
		}
		if c.want != "" && (!fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s:%s=%s: %v, where %q is wanted", c.recipe, c.parameter, c.path, err, c.want)
		}
	}
	// A default that is made of a parameter is not the recipe's own word.
	err := judgeReads(t, "", "postgresql", root, map[string]string{"data": "/tmp/data"}, recipe.Facts{})
	if err == nil || !strings.Contains(err.Error(), "parameter pid_file: this host does not accept /tmp/data/postmaster.pid") {
		t.Errorf("%v", err)
	}
	required := map[string]map[string]string{
		"certs.d": {"registry": "registry.example.com"}, "postgresql-client": {"user": "jane"}, "systemd-journal-remote": {"service": "remote"},
	}
	for _, r := range recipe.Builtins() {
		if !strings.HasPrefix(r.Name, "libvirt-client") {
			if err := judgeReads(t, "reads: [/none]", r.Name, root, required[r.Name], recipe.Facts{}); err != nil && r.Name != "plain" {
				t.Errorf("%s refuses its own defaults: %v", r.Name, err)
			}
		}
	}
}

// TestWhatProgramsAreGivenIsRoots: where another than root could write what is read, it is refused, wherever it lies.
func TestWhatProgramsAreGivenIsRoots(t *testing.T) {
	const path = "/etc/nginx/nginx.conf"
	for name, c := range map[string]struct {
		spoil func(file string) error
		want  string
	}{
		"sound":                    {func(string) error { return nil }, ""},
		"absent":                   {os.Remove, ""},
		"a file all may write":     {func(f string) error { return os.Chmod(f, 0o666) }, "has mode 0666"},
		"a directory of a group's": {func(f string) error { return os.Chmod(filepath.Dir(f), 0o775) }, "has mode 0775"},
		"a file of nobody's":       {func(f string) error { return os.Chown(f, 65534, 65534) }, "belongs to user 65534"},
		"a daemon's file":          {func(f string) error { return os.Chown(f, 33, 33) }, "belongs to user 33"},
		"a directory of nobody's":  {func(f string) error { return os.Chown(filepath.Dir(f), 65534, 65534) }, "belongs to user 65534"},
		"a link to a sound file": {func(f string) error {
			to := filepath.Dir(f) + "/real.conf"
			return joinErrors(os.Rename(f, to), os.Symlink("real.conf", f))
		}, ""},
		"a link to where all may write": {func(f string) error {
			open := filepath.Join(filepath.Dir(filepath.Dir(f)), "open")
			return joinErrors(os.Mkdir(open, 0o755), os.Chmod(open, 0o777), os.Rename(f, open+"/x"), os.Symlink("../open/x", f))
		}, "has mode 0777"},
		"a link to itself": {func(f string) error { return joinErrors(os.Remove(f), os.Symlink("nginx.conf", f)) }, "more than 16 links"},
	} {
		root := t.TempDir()
		file := filepath.Join(root, path)
		must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		must(t, os.WriteFile(file, nil, 0o644))
		err := c.spoil(file)
		if os.IsPermission(err) {
			continue // only root gives files away
		}
		must(t, err)
		for _, given := range []map[string]string{nil, {"conf": path}, {"conf": root + path}} {
			err := judgeReads(t, "", "nginx", root, given, nil)
			if c.want == "" && err != nil || c.want != "" && (!fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s: %v, where %q is wanted", name, err, c.want)
			}
		}
	}
	// PostgreSQL's configuration belongs to its own account on Debian, and only its port and ssl are read.
	root := t.TempDir()
	conf := "/etc/postgresql/15/main/postgresql.conf"
	must(t, os.MkdirAll(filepath.Dir(root+conf), 0o755))
	must(t, os.WriteFile(root+conf, nil, 0o644))
	if os.Geteuid() == 0 {
		must(t, os.Chown(root+conf, 114, 114))
		if err := judgeReads(t, "", "postgresql", root, map[string]string{"conf": conf}, nil); err != nil {
			t.Error(err)
		}
		must(t, os.Chown(root+conf, 1000, 1000))
		if err := judgeReads(t, "", "postgresql", root, map[string]string{"conf": conf}, nil); !fault.Is(err, fault.Denied) {
			t.Errorf("a person's file: %v", err)
		}
	}
}

func joinErrors(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestTheSystemsTrustIsNotAPlacements: no default gives a pool's root to every client of a host, and none gives a service's
// configuration away.
func TestTheSystemsTrustIsNotAPlacements(t *testing.T) {
	refused := func(config, path string) error {
		c, err := ParseConfig([]byte(config))
		must(t, err)
		return c.acceptsPaths(&recipe.Plan{Files: []recipe.PlannedFile{{Path: path}}}, "")
	}
	for _, path := range []string{
		"/etc/ssl/certs/5ad8a5d6.0", "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/etc/pki/ca-trust/source/anchors/x.pem", "/etc/pki/tls/certs/ca-bundle.crt",
		"/etc/pki/java/cacerts", "/etc/pki/nssdb/cert9.db", "/usr/local/share/ca-certificates/x.crt", "/usr/share/ca-certificates/x.crt", "/etc/ca-certificates/x",
	} {
		for _, config := range []string{"", "paths: [/etc, /usr]"} {
			if err := refused(config, path); !fault.Is(err, fault.Denied) || config != "" && !strings.Contains(err.Error(), "every program of this host trusts") {
				t.Errorf("%s, %q: %v", path, config, err)
			}
		}
		if err := refused("paths: ["+filepath.Dir(path)+"]", path); err != nil && path != "/etc/ssl/cert.pem" && path != "/etc/ssl/openssl.cnf" {
			t.Errorf("%s, which is named: %v", path, err)
		}
	}
	for _, path := range []string{
		"/etc/nginx/conf.d/x.conf", "/etc/nginx/modules-enabled/x.conf", "/etc/nginx/nginx.conf", "/etc/apache2/sites-enabled/x", "/etc/libvirt/hooks/qemu",
		"/var/lib/postgresql/15/main/postgresql.auto.conf", "/var/lib/postgresql/.ssh/authorized_keys", "/opt/libvirt/lib/x", "/etc/stunnel/x.conf", "/etc/haproxy/x.cfg",
	} {
		if err := refused("", path); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"/etc/ssl/private/x.key", "/etc/ssl/mail/x.pem", "/etc/ssl/x.pem", "/etc/pki/CA/cacert.pem", "/etc/pki/tls/private/x.key", "/etc/nginx/tls/x"} {
		if err := refused("", path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}
