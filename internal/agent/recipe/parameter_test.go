package recipe

import (
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"chancery/client"
	"chancery/internal/fault"
)

// TestParameterTypes: what each type takes, and what it refuses.
func TestParameterTypes(t *testing.T) {
	long := strings.Repeat("a", 33)
	types := map[string]struct{ good, bad []string }{
		"path": {[]string{"/etc/x", "/a.b/c_d-e+f@g:h=i,j%k", "/x"},
			[]string{"", "/", "etc", "./x", "/a/../b", "/..", "/a/./b", "/a//b", "/a/", "/a/-rf", "/a b", "/a\nb", "/a\x00", "/$(id)", "/`x`", "/a;b", "/a|b",
				"/a*", "/a\\b", "/ä", "/proc/self/mem", "/sys/x", "/dev/sda", "/a'b", `/a"b`, "/~x", "/" + strings.Repeat("a", 1100)}},
		"address": {[]string{"localhost:443", "192.0.2.1:1", "[::1]:65535", "a.b.example:16514"},
			[]string{"", "localhost", "localhost:", ":443", "localhost:0", "localhost:65536", "localhost:https", "::1:443", "a b:1", "-x:1", "localhost:0443",
				"localhost:443\n", "[::1%eth0]:443", "user@host:1", "[localhost]:443"}},
		"host":  {[]string{"localhost", "a.example.com", "192.0.2.1", "::1"}, []string{"", "-a", "a b", "a..b", "a:1", "a/b", "*.a", "::1%eth0", "$(x)", "a\n"}},
		"port":  {[]string{"1", "443", "65535"}, []string{"", "0", "65536", "-1", "+1", "0443", "4 3", "https", "4.3", "１"}},
		"user":  {[]string{"root", "libvirt-qemu", "_apt", "a.b"}, []string{"", "0", "-x", "a b", "a:b", "../x", "a\n", "a$", long, ".."}},
		"group": {[]string{"qemu"}, []string{"", "1", "a/b", long}},
		"name":  {[]string{"a", "0", "a.b_c-d"}, []string{"", "-a", ".a", "a/b", "a b", "a\n", "a,b", strings.Repeat("a", 65)}},
		"unit": {[]string{"tomcat9", "tomcat9.service", "dirsrv@EXAMPLE-COM", "pki-tomcatd@pki-tomcat.service", "a.b", "dbus-org.x_y"},
			[]string{"", "poweroff.target", "sshd.socket", "a.mount", "a.timer", "a.slice", "-a", "@x", "x@", "x@.service", ".service", "a/b", "a b", "a\n", "a*", "x@*",
				"[a]", "a?", `a\x2d`, "a@b@c", "a.target.service.target", strings.Repeat("a", 129)}},
		"duration":  {[]string{"30s", "5m", "90d", "1d12h"}, []string{"", "-1s", "soon", "1", "1s ", "1 s"}},
		"bool":      {[]string{"true", "false"}, []string{"", "yes", "True", "1"}},
		"choice":    {[]string{"one", "two"}, []string{"", "three", "One", "one "}},
		"algorithm": {[]string{"rsa-3072", "ecdsa-p256", "ed25519"}, []string{"", "dsa", "rsa-512", "rsa-3072 ", "rsa:3072"}},
		"label": {[]string{"", "system_u:object_r:cert_t:s0", "a:b:c", "system_u:object_r:cert_t:s0-s0:c0.c1023"},
			[]string{"a", "a:b", "a:b:c\n", "a:b:c d", "a:$x:c", "::"}},
	}
	for _, kind := range parameterTypes {
		cases, ok := types[kind.name]
		if !ok || len(cases.good) == 0 || len(cases.bad) < 4 {
			t.Errorf("type %s is not tested", kind.name)
		}
		p := Parameter{Name: "p", Type: kind.name}
		if kind.name == "choice" {
			p.Choices = []string{"one", "two"}
		}
		for _, value := range append(cases.good, p.sample()) {
			if err := p.check(value); err != nil {
				t.Errorf("%s refuses %q: %v", kind.name, value, err)
			}
		}
		for _, value := range cases.bad {
			if err := p.check(value); err == nil {
				t.Errorf("%s takes %q", kind.name, value)
			} else if !strings.Contains(err.Error(), "parameter p") {
				t.Errorf("%s: the refusal of %q does not name the parameter: %v", kind.name, value, err)
			}
		}
	}
}

func TestCheckParameters(t *testing.T) {
	r := parsed(t, strings.Replace(sound, `{name: port, type: port, default: "443"}`, "{name: port, type: port, required: true}", 1))
	if err := r.CheckParameters(map[string]string{"port": "1", "kind": "two"}); err != nil {
		t.Error(err)
	}
	refused(t, r.CheckParameters(nil), "parameter port is required: a number from 1 to 65535")
	err := r.CheckParameters(map[string]string{"port": "x", "knid": "two", "dir": "/a/../b"})
	refused(t, err, `parameter port: "x"`, `no parameter "knid"; there are dir, kind`, "has a component ..")
	if f, ok := err.(*fault.Error); !ok || f.Hint != "chancery recipe explain sample" {
		t.Errorf("no hint: %v", err)
	}
}

func TestCheckCharacters(t *testing.T) {
	good := map[string]string{"a": "", "b_2": "/etc/x", "c": "a,b:c=d", "d": "10.0.0.0/8", "e": "Größe", "f": "a..b"}
	if err := CheckCharacters(good); err != nil {
		t.Error(err)
	}
	for _, value := range []string{"a\nb", "a\x00", "a\rb", "\x1b[31m", "a\u2028b", "\xff", "$(id)", "`id`", "a;b", "a|b", "a&b", "a>b", "a<b", "a*", "a?", "{a}", "[a]",
		"a b", "a'b", `a"b`, `a\b`, "~root", "#a", "!a", "-rf", "../x", "/a/../b", "..", strings.Repeat("a", 1025)} {
		if err := CheckCharacters(map[string]string{"p": value}); err == nil {
			t.Errorf("%q is taken", value)
		}
	}
	for _, name := range []string{"", "A", "1a", "a-b", "a b", strings.Repeat("a", 33)} {
		if err := CheckCharacters(map[string]string{name: "x"}); err == nil {
			t.Errorf("the name %q is taken", name)
		}
	}
	many := map[string]string{}
	for _, a := range "abcdefghi" {
		for _, b := range "abcdefghi" {
			many[string(a)+string(b)] = "x"
		}
	}
	refused(t, CheckCharacters(many), "64 at most")
}

func TestParseOrder(t *testing.T) {
	for text, want := range map[string]client.PlacementOrder{
		"nginx":                         {Recipe: "nginx"},
		"local/mine":                    {Recipe: "local/mine"},
		"nginx:dir=/etc/tls":            {Recipe: "nginx", Parameters: map[string]string{"dir": "/etc/tls"}},
		"x:a=b=c:d,e=":                  {Recipe: "x", Parameters: map[string]string{"a": "b=c:d", "e": ""}},
		`x:a=b\,c\\d`:                   {Recipe: "x", Parameters: map[string]string{"a": `b,c\d`}},
		"libvirt-server:label=a:b:c:s0": {Recipe: "libvirt-server", Parameters: map[string]string{"label": "a:b:c:s0"}},
	} {
		got, err := ParseOrder(text)
		if err != nil || got.Recipe != want.Recipe || !maps.Equal(got.Parameters, want.Parameters) {
			t.Errorf("%q is read as %+v, %v", text, got, err)
		}
	}
	for text, says := range map[string]string{
		"":                                 "a name is letters",
		":a=b":                             "a name is letters",
		"../etc":                           "a name is letters",
		"local/../x":                       "a name is letters",
		"local/":                           "a name is letters",
		"a b":                              "a name is letters",
		"x\n":                              "a name is letters",
		strings.Repeat("a", 65):            "a name is letters",
		"x:":                               "is not key=value",
		"x:a":                              "is not key=value",
		"x:a=b,":                           "is not key=value",
		"x:A=b":                            "is not key=value",
		"x:=b":                             "is not key=value",
		"x:a=b,a=c":                        "given twice",
		`x:a=b\n`:                          "a backslash stands before",
		`x:a=b\`:                           "a backslash stands before",
		"x:" + strings.Repeat("a", 65<<10): "65536 at most",
	} {
		_, err := ParseOrder(text)
		refused(t, err, says)
	}
	rapid.Check(t, func(t *rapid.T) {
		order := client.PlacementOrder{Recipe: rapid.StringMatching(`(local/)?[a-z0-9][a-z0-9.-]{0,20}`).Draw(t, "recipe"),
			Parameters: rapid.MapOfN(rapid.StringMatching(`[a-z][a-z0-9_]{0,8}`), rapid.StringMatching(`[a-z,\\:=/ ]{0,12}`), 0, 6).Draw(t, "parameters")}
		again, err := ParseOrder(FormatOrder(order))
		if err != nil || again.Recipe != order.Recipe || !maps.Equal(again.Parameters, order.Parameters) {
			t.Fatalf("%q is read as %+v, %v", FormatOrder(order), again, err)
		}
	})
}

// FuzzParseOrder: what is read can be written, and is read as the same.
func FuzzParseOrder(f *testing.F) {
	for _, text := range []string{"nginx", "local/x:a=b", `x:a=b\,c\\d,e=f:g=h`, "x:a=b,,", `x:a=\`, "::::", "x:a=" + strings.Repeat(",", 10)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		order, err := ParseOrder(text)
		if err != nil {
			if fault.KindOf(err) == fault.Internal {
				t.Fatalf("%q: %v is no refusal", text, err)
			}
			return
		}
		again, err := ParseOrder(FormatOrder(order))
		if err != nil || again.Recipe != order.Recipe || !maps.Equal(again.Parameters, order.Parameters) {
			t.Fatalf("%q was written as %q and read as %+v, %v", text, FormatOrder(order), again, err)
		}
	})
}

func parsed(t testing.TB, text string) *Recipe {
	t.Helper()
	r, err := Parse([]byte(text), "test")
	if err != nil {
		t.Fatal(err)
	}
	return r
}
