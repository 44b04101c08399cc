package recipe

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"chancery/client"
	"chancery/internal/fault"
)

var update = flag.Bool("update", false, "write the golden files")

// aHost is a host of a pool as the authority would describe it.
func aHost() Host {
	return Host{Name: "host1.example.com", DNS: []string{"host1.example.com", "host1"}, IP: []string{"192.0.2.1", "2001:db8::1"}, Authority: "default Root"}
}

// TestGoldenPlans resolves the built-in recipes for hosts as they are found in the field, and holds what comes out against
// testdata/plans.txt.
func TestGoldenPlans(t *testing.T) {
	debian := Facts{"version": "9.0.0", "group": "libvirt-qemu", "socket": "/run/libvirt/libvirt-admin-sock"}
	fedora := func(version string) Facts {
		return Facts{"version": version, "group": "qemu", "socket": "/run/libvirt/virtproxyd-admin-sock"}
	}
	qemu := Facts{"user": "libvirt-qemu", "group": "libvirt-qemu", "libvirt": "/run/libvirt/libvirt-sock"}
	overridden := Facts{"version": "9.0.0", "group": "libvirt-qemu", "conf.key_file": "/opt/libvirt/key.pem", "conf.cert_file": "/opt/libvirt/cert.pem",
		"conf.ca_file": "/opt/libvirt/ca.pem", "conf.crl_file": "/opt/libvirt/crl.pem", "conf.tls_port": "26514", "conf.listen_addr": "127.0.0.1"}
	cases := []struct {
		what, recipe string
		parameters   map[string]string
		facts        Facts
	}{
		{"Debian 12", "libvirt-server", nil, debian},
		{"Debian 12, as older manuals have it", "libvirt-server", map[string]string{"variant": "qemu-group"}, debian},
		{"Debian 12, an EC key asked for", "libvirt-server", map[string]string{"key": "ecdsa-p256", "extra_key": "ecdsa-p256"}, debian},
		{"Fedora with 11.6.0, an EC key asked for", "libvirt-server", map[string]string{"key": "ecdsa-p256", "extra_key": "rsa-3072", "daemon": "virtproxyd"},
			fedora("11.6.0")},
		{"Fedora with 11.6.0, as older manuals have it", "libvirt-server", map[string]string{"variant": "qemu-group"}, fedora("11.6.0")},
		{"Fedora with 11.10.0, two identities", "libvirt-server", map[string]string{"key": "ecdsa-p256", "extra_key": "rsa-3072", "drop_revoked": "true",
			"daemon": "virtproxyd"}, fedora("11.10.0")},
		{"paths set in libvirtd.conf", "libvirt-server", map[string]string{"extra_key": "rsa-3072"}, overridden},
		{"paths set, as older manuals have it, no labels", "libvirt-server", map[string]string{"variant": "qemu-group", "label": ""}, overridden},
		{"nothing known of the host", "libvirt-server", map[string]string{"key": "ecdsa-p256"}, nil},
		{"a libvirt without server-update-tls", "libvirt-server", nil, Facts{"version": "5.10.0"}},
		{"the system's", "libvirt-client", nil, Facts{"version": "9.0.0"}},
		{"beside libvirt-server, for a group", "libvirt-client", map[string]string{"beside_server": "true", "group": "libvirt", "server": "host2.example.com"},
			Facts{"version": "11.6.0"}},
		{"a user's", "libvirt-client", map[string]string{"user": "jane", "key": "ecdsa-p256"}, Facts{"version": "11.6.0", "home": "/home/jane"}},
		{"by default", "nginx", nil, nil},
		{"with clients, another pid", "nginx", map[string]string{"clients": "true", "address": "127.0.0.1:8443", "dir": "/srv/tls"}, Facts{"conf.pid": "/srv/nginx.pid"}},
		{"Fedora", "postgresql", nil, Facts{"data": "/var/lib/pgsql/data"}},
		{"Debian, ssl still off", "postgresql", map[string]string{"conf": "/etc/postgresql/15/main/postgresql.conf"},
			Facts{"data": "/var/lib/postgresql/15/main", "conf.port": "5433", "conf.ssl": "off"}},
		{"Debian, ssl on", "postgresql", map[string]string{"conf": "/etc/postgresql/15/main/postgresql.conf", "label": "system_u:object_r:postgresql_db_t:s0"},
			Facts{"data": "/var/lib/postgresql/15/main", "conf.port": "5433", "conf.ssl": "on"}},
		{"Debian", "apache", nil, Facts{"etc": "/etc/apache2", "ctl": "/usr/sbin/apache2ctl", "conf": "/etc/apache2/apache2.conf"}},
		{"Fedora, with clients", "apache", map[string]string{"clients": "true", "label": "system_u:object_r:cert_t:s0"},
			Facts{"etc": "/etc/httpd", "ctl": "/usr/sbin/httpd", "conf": "/etc/httpd/conf/httpd.conf", "pid": "/run/httpd/httpd.pid"}},
		{"nothing known of the host", "apache", nil, nil},
		{"Debian, with clients", "haproxy", map[string]string{"clients": "true"}, Facts{"socket": "/run/haproxy/admin.sock"}},
		{"another socket", "haproxy", map[string]string{"socket": "/srv/haproxy/sock", "pid_file": "/srv/haproxy/pid", "pem": "/srv/haproxy/all.pem"}, nil},
		{"without a socket", "haproxy", nil, nil},
		{"with a socket that is not to be used", "haproxy", map[string]string{"runtime": "false"}, Facts{"socket": "/run/haproxy/admin.sock"}},
		{"Debian, with clients", "stunnel", map[string]string{"clients": "true", "user": "stunnel4"},
			Facts{"program": "/usr/bin/stunnel4", "pid": "/run/stunnel4/stunnel.pid"}},
		{"Debian, pinned", "stunnel", map[string]string{"pinned": "true", "purpose": "backup"}, Facts{"program": "/usr/bin/stunnel4"}},
		{"Fedora", "stunnel", map[string]string{"address": "localhost:6514"}, Facts{"program": "/usr/bin/stunnel"}},
		{"Debian, started by the other name", "stunnel", map[string]string{"process": "stunnel", "probe": "false"}, Facts{"program": "/usr/bin/stunnel4"}},
		{"Debian, with clients", "openldap", map[string]string{"clients": "true"},
			Facts{"etc": "/etc/ldap", "user": "openldap", "group": "openldap", "socket": "/run/slapd/ldapi", "library": "gnutls"}},
		{"Fedora, with clients, ldaps", "openldap", map[string]string{"clients": "true", "address": "localhost:636", "starttls": "none"},
			Facts{"etc": "/etc/openldap", "user": "ldap", "group": "ldap", "socket": "/run/ldapi", "library": "ssl"}},
		{"a slapd.conf, nothing known of the host", "openldap", map[string]string{"dynamic": "false", "clients": "true"}, nil},
		{"with clients", "rabbitmq", map[string]string{"clients": "true"}, nil},
		{"another rabbitmqctl", "rabbitmq", map[string]string{"ctl": "/opt/rabbitmq/sbin/rabbitmqctl"}, nil},
		{"a user's, tried at a server", "postgresql-client", map[string]string{"user": "jane", "server": "db1.example.com"}, Facts{"home": "/home/jane"}},
		{"a service's, a role's", "postgresql-client", map[string]string{"user": "shop", "dir": "/etc/shop/tls", "role": "app", "profile": "db-app"}, nil},
		{"Debian, both roles", "qemu", nil, qemu},
		{"Debian, VNC under libvirt", "qemu", map[string]string{"service": "vnc"}, qemu},
		{"VNC without libvirt", "qemu", map[string]string{"service": "vnc", "sockets": "/run/qemu", "key": "ecdsa-p256"}, Facts{"user": "qemu", "group": "qemu"}},
		{"Fedora, a directory that is set", "qemu", map[string]string{"service": "migrate"},
			Facts{"user": "qemu", "group": "qemu", "conf.migrate_tls_x509_cert_dir": "/srv/tls/migrate"}},
		{"disks, as a client", "qemu", map[string]string{"service": "nbd"}, qemu},
		{"an export with a port", "qemu", map[string]string{"service": "backup", "address": "host1.example.com:10809"}, qemu},
		{"both stores", "java", nil, nil},
		{"JKS, merged into Java's own", "java", map[string]string{"format": "jks", "merge": "true", "truststore": "/etc/ssl/certs/java/cacerts",
			"truststore_password_file": "/etc/shop/changeit", "service": "shop", "address": "localhost:8443", "user": "shop"}, nil},
		{"a trust store alone", "java", map[string]string{"stores": "truststore", "purpose": "ldaps"}, nil},
		{"a client's key store alone", "java", map[string]string{"stores": "keystore", "profile": "client", "format": "jks"}, nil},
		{"a server's", "nss", map[string]string{"dir": "/etc/dirsrv/slapd-main", "user": "dirsrv", "password_file": "/etc/dirsrv/password", "service": "dirsrv-main"}, nil},
		{"a client's, without a password", "nss", map[string]string{"profile": "client", "nickname": "me"}, nil},
		{"trust alone", "nss", map[string]string{"trust_only": "true", "dir": "/etc/pki/nssdb"}, nil},
		{"Debian", "os-trust", nil, Facts{"dir": "/usr/local/share/ca-certificates", "bundle": "/etc/ssl/certs/ca-certificates.crt"}},
		{"Fedora", "os-trust", nil, Facts{"dir": "/etc/pki/ca-trust/source/anchors", "bundle": "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"}},
		{"SUSE, for a purpose", "os-trust", map[string]string{"purpose": "ldaps"}, Facts{"dir": "/etc/pki/trust/anchors", "bundle": "/var/lib/ca-certificates/ca-bundle.pem"}},
		{"Docker", "certs.d", map[string]string{"registry": "registry.example.com", "port": "5000"}, nil},
		{"Podman of a user, trust alone, without a port", "certs.d", map[string]string{"registry": "registry.example.com", "client": "false",
			"base": "/home/jane/.config/containers/certs.d", "user": "jane"}, nil},
		{"Debian, a receiver", "systemd-journal-remote", map[string]string{"service": "remote"}, Facts{"gnutls": "-"}},
		{"a receiver whose configuration names its files", "systemd-journal-remote", map[string]string{"service": "remote"},
			Facts{"gnutls": "+", "conf.ServerKeyFile": "/etc/pki/journal/key.pem", "conf.ServerCertificateFile": "/etc/pki/journal/cert.pem",
				"conf.TrustedCertificateFile": "/etc/pki/journal/ca.pem"}},
		{"a sender", "systemd-journal-remote", map[string]string{"service": "upload"}, Facts{"gnutls": "-"}},
		{"a gateway with a static user", "systemd-journal-remote", map[string]string{"service": "gatewayd"}, Facts{"gateway": "systemd-journal-gateway"}},
		{"PEM", "plain", map[string]string{"key": "/srv/x/key.pem", "cert": "/srv/x/cert.pem", "chain": "/srv/x/chain.pem", "trust": "/srv/x/ca.pem",
			"crl": "/srv/x/crl.pem", "owner": "svc", "encoding": "traditional"}, nil},
		{"all in one file for a group, pinned, with a port", "plain", map[string]string{"combined": "/srv/x/all.pem", "group": "svc", "pinned": "true",
			"address": "mail.example.com:25", "starttls": "smtp", "profile": "peer"}, nil},
		{"key stores", "plain", map[string]string{"store": "/srv/x/store.p12", "truststore": "/srv/x/trust.p12", "password_file": "/srv/x/password"}, nil},
		{"a bundle of others", "plain", map[string]string{"key": "/srv/x/key.pem", "cert": "/srv/x/cert.pem", "trust": "/srv/x/bundle.pem", "merge": "true"}, nil},
		{"Java's key stores and hash links", "plain", map[string]string{"store": "/srv/x/store.jks", "truststore": "/srv/x/trust.jks", "format": "jks",
			"password_file": "/srv/x/password", "alias": "tomcat", "hashdir": "/srv/x/hashes"}, nil},
	}
	var all bytes.Buffer
	seen := map[string]bool{}
	for _, c := range cases {
		r, ok := Builtin(c.recipe)
		if !ok {
			t.Fatalf("there is no recipe %s", c.recipe)
		}
		plan, err := r.Resolve(aHost(), c.parameters, c.facts)
		if err != nil {
			t.Errorf("%s, %s: %v", c.recipe, c.what, err)
			continue
		}
		seen[c.recipe] = true
		checkPlan(t, plan)
		fmt.Fprintf(&all, "== %s: %s\n", c.recipe, c.what)
		if err := plan.Explain().Text(&all, func(text string) string { return text }); err != nil {
			t.Fatal(err)
		}
		for _, k := range plan.Certificates {
			fmt.Fprintf(&all, "\nkey usages wanted of %s: %s\n", k.ID, strings.Join(k.KeyUsages, " "))
		}
		fmt.Fprintln(&all)
	}
	for _, r := range Builtins() {
		if !seen[r.Name] {
			t.Errorf("no plan of %s is tested", r.Name)
		}
	}
	golden := filepath.Join("testdata", "plans.txt")
	if *update {
		if err := os.WriteFile(golden, all.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), all.String()); diff != "" {
		t.Errorf("go test ./internal/agent/recipe -run Golden -update writes %s anew:\n%s", golden, diff)
	}
}

// TestLibvirtKeys: which key a libvirt host gets by its version. A version that is not known is taken for an old one.
func TestLibvirtKeys(t *testing.T) {
	for _, c := range []struct{ asked, version, want, usages string }{
		{"auto", "9.0.0", "rsa-3072", "digitalSignature keyEncipherment"},
		{"auto", "12.5.0", "rsa-3072", "digitalSignature keyEncipherment"},
		{"ecdsa-p256", "9.0.0", "rsa-3072", "digitalSignature keyEncipherment"},
		{"ecdsa-p256", "11.5.9", "rsa-3072", "digitalSignature keyEncipherment"},
		{"ecdsa-p256", "", "rsa-3072", "digitalSignature keyEncipherment"},
		{"ecdsa-p256", "unknown", "rsa-3072", "digitalSignature keyEncipherment"},
		{"ecdsa-p256", "11.6.0", "ecdsa-p256", "digitalSignature"},
		{"ecdsa-p384", "11.10.0", "ecdsa-p384", "digitalSignature"},
		{"ecdsa-p384", "100.0", "ecdsa-p384", "digitalSignature"},
		{"rsa-4096", "11.6.0", "rsa-4096", "digitalSignature keyEncipherment"},
	} {
		for _, name := range []string{"libvirt-server", "libvirt-client"} {
			r, _ := Builtin(name)
			plan, err := r.Resolve(aHost(), map[string]string{"key": c.asked}, Facts{"version": c.version})
			if err != nil {
				t.Errorf("%s %+v: %v", name, c, err)
				continue
			}
			got := plan.Certificates[0]
			if got.Algorithm != c.want || strings.Join(got.KeyUsages, " ") != c.usages {
				t.Errorf("%s %+v: %s, %v", name, c, got.Algorithm, got.KeyUsages)
			}
			if got.Subject != "O=default Root,CN=host1.example.com" {
				t.Errorf("%s: subject %s", name, got.Subject)
			}
			if noted := len(plan.Notes) > 0; noted != (strings.HasPrefix(c.asked, "ecdsa") && strings.HasPrefix(c.want, "rsa") && c.version != "unknown") {
				t.Errorf("%s %+v: notes %q", name, c, plan.Notes)
			}
		}
	}
}

// TestLibvirtOverrides: all four paths or none, and the words name each.
func TestLibvirtOverrides(t *testing.T) {
	r, _ := Builtin("libvirt-server")
	all := []string{"key_file", "cert_file", "ca_file", "crl_file"}
	tried := 0
	for set := range 1 << len(all) {
		facts, n := Facts{"version": "9.0.0"}, 0
		for i, name := range all {
			if set&(1<<i) != 0 {
				facts["conf."+name] = "/opt/" + name
				n++
			}
		}
		plan, err := r.Resolve(aHost(), nil, facts)
		if n != 0 && n != len(all) {
			tried++
			refused(t, err, "set all four, or none", "(not set)", "/opt/", "/etc/libvirt/libvirtd.conf")
			if !fault.Is(err, fault.Conflict) {
				t.Errorf("%v is no conflict", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 != (plan.Reload.Name == "reload" && !plan.Reload.Interrupts) || n == 0 != (len(plan.Directories) == 4) {
			t.Errorf("%d set: %+v", n, plan)
		}
		if strings.HasPrefix(plan.Files[2].Path, "/opt/key_file") != (n == 4) {
			t.Errorf("%d set: the key is at %s", n, plan.Files[2].Path)
		}
	}
	if tried != 14 {
		t.Fatalf("%d tried", tried)
	}
}

// TestResolveRefuses: what comes from hosts, facts and operators cannot leave the place it is meant for.
func TestResolveRefuses(t *testing.T) {
	r := parsed(t, sound)
	facts := func(extra ...string) Facts {
		f := Facts{"version": "2.0", "owner": "sample"}
		for i := 0; i < len(extra); i += 2 {
			f[extra[i]] = extra[i+1]
		}
		return f
	}
	if _, err := r.Resolve(aHost(), nil, facts()); err != nil {
		t.Fatal(err)
	}
	host := func(change func(*Host)) Host { h := aHost(); change(&h); return h }
	for what, c := range map[string]struct {
		host       Host
		parameters map[string]string
		facts      Facts
		says       string
	}{
		"host's name":                    {host(func(h *Host) { h.Name = "a b" }), nil, facts(), "a b"},
		"host without name":              {host(func(h *Host) { h.Name = "" }), nil, facts(), "host"},
		"another name":                   {host(func(h *Host) { h.DNS = []string{"$(id)"} }), nil, facts(), "$(id)"},
		"address":                        {host(func(h *Host) { h.IP = []string{"1.2.3"} }), nil, facts(), "is no address"},
		"authority":                      {host(func(h *Host) { h.Authority = "a\nb" }), nil, facts(), "control characters"},
		"fact of two lines":              {aHost(), nil, facts("owner", "a\nb"), "control characters"},
		"fact in a user":                 {aHost(), nil, facts("owner", "root:root"), "a user's name"},
		"fact as an option":              {aHost(), nil, facts("owner", "-x"), "a user's name"},
		"unknown parameter":              {aHost(), map[string]string{"x": "y"}, facts(), "no parameter"},
		"requirement":                    {aHost(), map[string]string{"on": "true"}, facts("version", "1.9"), "version 1.9 is too old"},
		"requirement, version not known": {aHost(), map[string]string{"on": "true"}, facts("version", ""), "version unknown is too old"},
		"files at one path":              {aHost(), map[string]string{"dir": "/run"}, facts(), ""},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := r.Resolve(c.host, c.parameters, c.facts)
			if c.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, c.says)
		})
	}

	pg, _ := Builtin("postgresql")
	_, err := pg.Resolve(aHost(), map[string]string{"key": "/etc/x", "cert": "/etc/x"}, nil)
	refused(t, err, "file is there already; give it another path")
	_, err = pg.Resolve(aHost(), map[string]string{"key": "/etc/x", "cert": "/etc/x/cert"}, nil)
	refused(t, err, "it would be below the file /etc/x")
	_, err = pg.Resolve(aHost(), nil, Facts{"data": "/var/../etc"})
	refused(t, err, "the default of parameter data", "has a component ..", "give the parameter")
	_, err = pg.Resolve(aHost(), map[string]string{"conf": "/etc/pg.conf"}, Facts{"conf.port": "5432; rm"})
	refused(t, err, "parameter address", "HOST:PORT")
	lv, _ := Builtin("libvirt-server")
	_, err = lv.Resolve(aHost(), map[string]string{"variant": "qemu-group"}, Facts{"version": "9.0.0"})
	refused(t, err, "there is none of the groups libvirt-qemu, qemu")
	if strings.Count(err.Error(), "libvirt-qemu, qemu") != 1 {
		t.Errorf("one cause is named more than once: %v", err)
	}
	_, err = lv.Resolve(aHost(), nil, Facts{"version": "9.0.0", "conf.key_file": "/etc/../x", "conf.cert_file": "relative", "conf.ca_file": "/dev/sda",
		"conf.crl_file": "/a b"})
	refused(t, err, "has a component ..", "is not absolute", "the kernel's", "other characters")
	cl, _ := Builtin("libvirt-client")
	_, err = cl.Resolve(aHost(), map[string]string{"user": "jane"}, nil)
	refused(t, err, "there is no user")
	plain, _ := Builtin("plain")
	_, err = plain.Resolve(aHost(), map[string]string{"store": "/x/store", "chain": "/x/chain"}, nil)
	refused(t, err, "give cert=PATH too", "give password_file=PATH")
}

// TestProbeAddress: where libvirtd listens is where the probe looks.
func TestProbeAddress(t *testing.T) {
	r, _ := Builtin("libvirt-server")
	for want, facts := range map[string]Facts{
		"localhost:16514": {},
		"localhost:26514": {"conf.tls_port": "26514"},
		"192.0.2.1:16514": {"conf.listen_addr": "192.0.2.1"},
		"[::1]:16514":     {"conf.listen_addr": "::1"},
		"[::]:1":          {"conf.listen_addr": "::", "conf.tls_port": "1"},
	} {
		plan, err := r.Resolve(aHost(), nil, facts)
		if err != nil || plan.Probe.Address != want {
			t.Errorf("%v: %+v, %v; want %s", facts, plan, err, want)
		}
	}
}

// TestSubjectIsEscaped: a root's name with a comma stays one attribute.
func TestSubjectIsEscaped(t *testing.T) {
	h := aHost()
	h.Authority = `#Example, Inc. + "Sons"; <x>=\ `
	r, _ := Builtin("libvirt-server")
	plan, err := r.Resolve(h, nil, Facts{"version": "9.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	if want := `O=\#Example\, Inc. \+ \"Sons\"\; \<x\>\=\\\ ,CN=host1.example.com`; plan.Certificates[0].Subject != want {
		t.Errorf("%s, want %s", plan.Certificates[0].Subject, want)
	}
}

func TestFactRules(t *testing.T) {
	r, _ := Builtin("libvirt-server")
	rules, err := r.FactRules(map[string]string{"daemon": "virtproxyd"})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]FactRule{}
	for _, f := range rules {
		got[f.Name] = f
	}
	if len(got) != 4 || !slices.Equal(got["version"].Command, []string{"virtproxyd", "--version"}) || got["conf"].Config != "/etc/libvirt/virtproxyd.conf" ||
		got["socket"].Paths[0] != "/run/libvirt/virtproxyd-admin-sock" {
		t.Errorf("%+v", got)
	}
	cl, _ := Builtin("libvirt-client")
	if rules, err = cl.FactRules(nil); err != nil || len(rules) != 1 {
		t.Errorf("without a user nobody's home is asked for: %+v, %v", rules, err)
	}
	if rules, err = cl.FactRules(map[string]string{"user": "jane"}); err != nil || len(rules) != 2 || rules[1].Home != "jane" {
		t.Errorf("%+v, %v", rules, err)
	}
	_, err = cl.FactRules(map[string]string{"user": "jane;id"})
	refused(t, err, "parameter user")
}

// TestTogether: what the parameters alone show not to fit on one host is refused before the host is asked.
func TestTogether(t *testing.T) {
	order := func(text string) client.PlacementOrder {
		o, err := ParseOrder(text)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, c := range []struct{ a, b, says string }{
		{"nginx", "postgresql", ""},
		{"libvirt-server", "libvirt-client:beside_server=true", ""},
		{"libvirt-server", "libvirt-client:user=jane", ""},
		{"nginx", "local/mine", ""},
		{"nginx", "nginx", "both write /etc/nginx/tls/server.key"},
		{"nginx", "nginx:dir=/etc/nginx/tls2", ""},
		{"nginx", "nginx:key=/srv/a,cert=/srv/b", ""},
		{"nginx:dir=/etc/tls", "postgresql:dir=/etc/tls,key=/etc/tls/pg.key,cert=/etc/tls/pg.crt", "directory /etc/tls is to be root:root 0755 for"},
		{"nginx", "plain:key=/srv/key,cert=/etc/nginx/tls/server.pem", "both write /etc/nginx/tls/server.pem"},
		{"nginx", "plain:key=/etc/nginx/tls,cert=/srv/cert", "/etc/nginx/tls is a directory for"},
		{"libvirt-client", "plain:key=/srv/key,cert=/srv/cert,trust=/etc/pki/CA/cacert.pem", "both write /etc/pki/CA/cacert.pem"},
	} {
		for _, orders := range [][]client.PlacementOrder{{order(c.a), order(c.b)}, {order(c.b), order(c.a)}} {
			orders[0].Name, orders[1].Name = "first", "second"
			err := Together(orders, Builtin)
			if c.says != "" {
				if strings.Contains(c.says, "directory") && orders[0].Recipe != "nginx" {
					continue
				}
				refused(t, err, c.says)
			} else if err != nil {
				t.Errorf("%s beside %s: %v", c.a, c.b, err)
			}
		}
	}
	lookup := func(name string) (*Recipe, bool) {
		if name == "sample" {
			return parsed(t, sound), true
		}
		return parsed(t, strings.NewReplacer("name: sample\n", "name: other\n", "[other]", "[third]", "/etc/sample", "/etc/other").Replace(sound)), true
	}
	refused(t, Together([]client.PlacementOrder{{Name: "a", Recipe: "other"}, {Name: "b", Recipe: "sample"}}, lookup),
		"recipe sample cannot stand beside recipe other on one host")
}

// TestDefaultsCannotGrow: defaults of defaults double and double; neither reading, explaining nor resolving takes long.
func TestDefaultsCannotGrow(t *testing.T) {
	var b strings.Builder
	b.WriteString("name: x\ntitle: x\nparameters:\n  - {name: p0, type: path, default: /a}\n")
	for i := 1; i < 60; i++ {
		fmt.Fprintf(&b, "  - {name: p%d, type: path, default: \"%s\"}\n", i, strings.Repeat(fmt.Sprintf("${param.p%d}", i-1), 20))
	}
	b.WriteString("certificates: [{profile: server, key: [{algorithm: rsa-3072}]}]\nfiles: [{path: \"${param.p59}\", content: [key, path]}]\n")
	r := parsed(t, b.String())
	if _, err := r.Explain(nil); err != nil {
		t.Error(err)
	}
	_, err := r.Resolve(aHost(), nil, nil)
	refused(t, err, "longer than")
	_, err = r.FactRules(nil)
	refused(t, err, "longer than")
}
