package probe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

func TestGather(t *testing.T) {
	sys := host(t, map[string]string{
		"etc/passwd": passwd, "etc/group": group, "etc/libvirt/libvirtd.conf": "listen_tls = 1\ncert_file = \"/opt/libvirt/server.pem\"\n",
		"run/there": "",
	})
	found, err := Gather(t.Context(), sys, []recipe.FactRule{
		{Name: "version", Command: []string{"echo", "libvirtd (libvirt) 9.0.0"}, Pattern: `libvirt\) ([0-9.]+)`},
		{Name: "whole", Command: []string{"echo", "one two"}, Pattern: `t..`},
		{Name: "line", Command: []string{"printf", "\n first \n second\n"}},
		{Name: "absent", Command: []string{"no-such-command"}},
		{Name: "unmatched", Command: []string{"echo", "something"}, Pattern: "else"},
		{Name: "forged", Command: []string{"printf", "1\t2"}, Pattern: `1.2`},
		{Name: "conf", Config: "/etc/libvirt/libvirtd.conf", Syntax: "libvirt"},
		{Name: "proxy", Config: "/etc/libvirt/virtproxyd.conf", Syntax: "libvirt"},
		{Name: "group", Groups: []string{"qemu", "libvirt-qemu", "kvm"}},
		{Name: "nogroup", Groups: []string{"qemu"}},
		{Name: "user", Users: []string{"qemu", "libvirt-qemu"}},
		{Name: "path", Paths: []string{"/run/not-there", "/run/there"}},
		{Name: "home", Home: "libvirt-qemu"},
		{Name: "homeless", Home: "qemu"},
	}, recipe.Facts{"absent": "of a program that was removed"})
	if err != nil {
		t.Fatal(err)
	}
	want := recipe.Facts{
		"version": "9.0.0", "whole": "two", "line": "first", "conf.listen_tls": "1", "conf.cert_file": "/opt/libvirt/server.pem", "group": "libvirt-qemu",
		"user": "libvirt-qemu", "path": "/run/there", "home": "/var/lib/libvirt",
	}
	if diff := cmp.Diff(want, found.Facts); diff != "" {
		t.Error(diff)
	}
	said := strings.Join(found.Unknown, "\n")
	for _, name := range []string{"absent: ", "unmatched: ", "forged: ", "proxy: ", "nogroup: ", "homeless: "} {
		if !strings.Contains(said, name) {
			t.Errorf("nothing is said of %s\n%s", name, said)
		}
	}
	if len(found.Unknown) != 6 || len(found.Assumed) > 0 {
		t.Errorf("%d facts are unknown:\n%s\n%q", len(found.Unknown), said, found.Assumed)
	}
}

// TestGatherKeepsWhatItKnew: a program that is there and fails says nothing of the host.
func TestGatherKeepsWhatItKnew(t *testing.T) {
	for name, command := range map[string][]string{
		"exit status": {"sh", "-c", "echo 1.0.0; exit 1"}, "killed": {"sh", "-c", "kill -9 $$"}, "cannot be started": {brokenProgram(t)},
	} {
		t.Run(name, func(t *testing.T) {
			rules := []recipe.FactRule{{Name: "version", Command: command, Pattern: `([0-9.]+)`}}
			found, err := Gather(t.Context(), System{}, rules, recipe.Facts{"version": "11.6.0"})
			if err != nil {
				t.Fatal(err)
			}
			if found.Facts["version"] != "11.6.0" || len(found.Unknown) > 0 || len(found.Assumed) != 1 || !strings.Contains(found.Assumed[0], "11.6.0") {
				t.Errorf("%+v", found)
			}
			if _, err := Gather(t.Context(), System{}, rules, nil); err == nil || fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "version") {
				t.Errorf("without one that was known: %v", err)
			}
		})
	}
	rule := recipe.FactRule{Name: "version", Command: []string{"sleep", "600"}}
	if err := gatherFor(t, 50*time.Millisecond, rule); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a context that ended meanwhile: %v", err)
	}
}

func gatherFor(t *testing.T, d time.Duration, rule recipe.FactRule) error {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	_, err := Gather(ctx, System{}, []recipe.FactRule{rule}, recipe.Facts{rule.Name: "1"})
	return err
}

// brokenProgram is a program whose interpreter is not there, as in the middle of an upgrade.
func brokenProgram(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "broken")
	write(t, path, []byte("#!/no/such/interpreter\n"))
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestGatherRefusesRulesThatNoHostCanFollow(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.conf") // what it says before the fault is not half of the truth
	write(t, broken, []byte("cert_file = \"/a\"\ncrl_file = \n"))
	for _, rule := range []recipe.FactRule{
		{Name: "empty"}, {Name: "pattern", Command: []string{"true"}, Pattern: "("}, {Name: "syntax", Config: "/etc/passwd", Syntax: "yaml"},
		{Name: "relative", Command: []string{"bin/true"}}, {Name: "broken", Config: broken, Syntax: "libvirt"},
	} {
		if _, err := Gather(t.Context(), System{}, []recipe.FactRule{rule}, recipe.Facts{rule.Name: "1"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), rule.Name) {
			t.Errorf("%s: %v", rule.Name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Gather(ctx, System{}, []recipe.FactRule{{Name: "a", Command: []string{"true"}}}, nil); err == nil {
		t.Error("a context that ended is no error")
	}
}

func TestConfigurations(t *testing.T) {
	cases := []struct {
		name, syntax string
		files        map[string]string // the first that is read is conf
		want         settings
		wrong        string // of the error; empty: none
	}{
		{name: "libvirt", syntax: "libvirt", files: map[string]string{"etc/conf": "# Master\r\n\nlisten_tls = 0   # not this\nlisten_tls=1\r\n" +
			"tls_port = \"16514\"\nkey_file = '/a #b'\nlist = [\"one\", # first\n  \"two\" ,\n]\nempty = []\nnegative = -3\nlong = \"\"\"a\"b\"\"\"\nback = \"C:\\x\"\n"},
			want: settings{"listen_tls": "1", "tls_port": "16514", "key_file": "/a #b", "list": "one,two", "empty": "", "negative": "-3", "long": `a"b`, "back": `C:\x`}},
		{name: "libvirt without its end", syntax: "libvirt", files: map[string]string{"etc/conf": `a = "b"`}, want: settings{"a": "b"}},
		{name: "libvirt open text", syntax: "libvirt", files: map[string]string{"etc/conf": "a = 1\nb = \"c\nd = 2\n"}, want: settings{"a": "1"}, wrong: "line 2: a text does not end"},
		{name: "libvirt two values", syntax: "libvirt", files: map[string]string{"etc/conf": "\na = 1 2\n"}, want: settings{}, wrong: "line 2: something follows"},
		{name: "libvirt word", syntax: "libvirt", files: map[string]string{"etc/conf": "a = yes\n"}, want: settings{}, wrong: "line 1"},
		{name: "libvirt list", syntax: "libvirt", files: map[string]string{"etc/conf": "a = [\"b\" \"c\"]\n"}, want: settings{}, wrong: "in a list"},

		{name: "postgresql", syntax: "postgresql", files: map[string]string{
			"etc/conf": "# comment\nSSL = on\nssl_cert_file '/a b''c\\'d' # x\nport=5433\nssl_key_file = server.key\ninclude 'more.conf'\n" +
				"include_if_exists = 'none.conf'\ninclude_dir 'conf.d'\nmy.class = 1\n" +
				"octal = '\\101\\0602'\ndata_directory = '/data'\n",
			"data/postgresql.auto.conf": "# by ALTER SYSTEM\nssl_key_file = 'auto.key'\n",
			"etc/more.conf":             "port = 5434\n", "etc/conf.d/2.conf": "x = 2\n", "etc/conf.d/10.conf": "x = 10\ny = 10\n", "etc/conf.d/.hidden.conf": "x = 0\n", "etc/conf.d/n.txt": "bad",
		}, want: settings{"ssl": "on", "ssl_cert_file": "/a b'c'd", "port": "5434", "ssl_key_file": "auto.key", "octal": "A02", "data_directory": "/data", "x": "2", "y": "10", "my.class": "1"}},
		{name: "postgresql secret", syntax: "postgresql", files: map[string]string{
			"etc/conf": "primary_conninfo = 'password=hush'\nssl_passphrase_command = 'echo hush'\npassword_encryption = md5\nldap_secret = x\nssl = on\n",
		}, want: settings{"ssl": "on", "password_encryption": "md5"}},
		{name: "postgresql loop", syntax: "postgresql", files: map[string]string{"etc/conf": "a = 1\ninclude 'conf'\n"}, want: settings{"a": "1"}, wrong: "10 deep"},
		{name: "postgresql many", syntax: "postgresql", files: map[string]string{"etc/conf": strings.Repeat("include 'e'\n", 1000), "etc/e": ""}, want: settings{}, wrong: "1000 files"},
		{name: "postgresql long", syntax: "postgresql", files: map[string]string{"etc/conf": strings.Repeat("include 'e'\n", 20), "etc/e": strings.Repeat("#\n", configFile/2)},
			want: settings{}, wrong: "16777216 octets"},
		{name: "postgresql no value", syntax: "postgresql", files: map[string]string{"etc/conf": "a = 1\nport =\n"}, want: settings{"a": "1"}, wrong: "line 2"},
		{name: "postgresql include that is not there", syntax: "postgresql", files: map[string]string{"etc/conf": "include 'x'\n"}, want: settings{}, wrong: "no such file"},

		{name: "nginx", syntax: "nginx", files: map[string]string{
			"etc/conf": "user www-data;\npid /run/nginx.pid; # one\nhttp {\n include mime.types;\n include sites/*;\n include none/*;\n log_format main '$remote_addr \"$request\"';\n" +
				" map $a $b { default 0; \"~x{2}\" 1; }\n location ~ '^/a{1,2}$' { }\n ssl_protocols TLSv1.2 TLSv1.3;\n}\n",
			"etc/mime.types": "types { text/html html; }\n",
			"etc/sites/a":    "server { listen 443 ssl; server_name a.test; ssl_certificate \"/a b/${x}\"; ssl_certificate_key '/k'; ssl_password_file /pw; }\n",
			"etc/sites/b":    "server { listen 444 ssl; ssl_certificate /other; proxy_set_header Authorization hush; set $x hush; add_header X hush; }\n",
		}, want: settings{"user": "www-data", "pid": "/run/nginx.pid", "log_format": "main", "listen": "443", "server_name": "a.test", "ssl_certificate": "/a b/${x}",
			"ssl_certificate_key": "/k", "ssl_password_file": "/pw", "ssl_protocols": "TLSv1.2"}},
		{name: "nginx lua", syntax: "nginx", files: map[string]string{"etc/conf": "content_by_lua_block { local t = { a = \"}\" } }\npid /p;\n"}, want: settings{"pid": "/p"}},
		{name: "nginx open block", syntax: "nginx", files: map[string]string{"etc/conf": "pid /p;\nhttp {\n"}, want: settings{"pid": "/p"}, wrong: "line 3: the file ends"},
		{name: "nginx stray brace", syntax: "nginx", files: map[string]string{"etc/conf": "pid /p;\n}\n"}, want: settings{"pid": "/p"}, wrong: "line 2"},
		{name: "nginx loop", syntax: "nginx", files: map[string]string{"etc/conf": "include conf;"}, want: settings{}, wrong: "10 deep"},
		{name: "nginx open text", syntax: "nginx", files: map[string]string{"etc/conf": "pid '/p;\n"}, want: settings{}, wrong: "does not end"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := readConfig(host(t, c.files), "/etc/conf", c.syntax)
			if c.wrong == "" && err != nil {
				t.Fatal(err)
			}
			if c.wrong != "" {
				wantError(t, err, c.wrong)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestConfigurationsOfDebian reads what the packages install.
func TestConfigurationsOfDebian(t *testing.T) {
	for path, syntax := range map[string]string{
		"/etc/nginx/nginx.conf": "nginx", "/usr/share/postgresql/15/postgresql.conf.sample": "postgresql",
	} {
		got, err := readConfig(System{}, path, syntax)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if syntax == "nginx" && got["user"] != "www-data" {
			t.Errorf("%s: %v", path, got)
		}
	}
}

func TestConfigurationThatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "long"), make([]byte, configFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fifo", "long", ".", "none"} {
		if _, err := readConfig(System{}, filepath.Join(dir, name), "libvirt"); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}
