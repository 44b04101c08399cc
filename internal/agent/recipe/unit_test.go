package recipe

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// harmless says of each type why its values can do no harm as an argument, or as a part of one, of what root runs. A type that
// is not here must not get there.
var harmless = map[string]string{
	"path":      "absolute, without a leading hyphen; trusted: true is demanded, and the host holds it to reads and to its owners",
	"unit":      "a service alone, and the host holds it to services",
	"choice":    "the recipe's own words",
	"bool":      "true or false",
	"port":      "a number",
	"duration":  "a number with a letter",
	"algorithm": "a name of our own list",
}

// insideOf are arguments that hold a value of another type, each with why that can do no harm: it stays within a word of the
// recipe's, and its characters end none.
var insideOf = map[string]string{
	"libvirt-client ${param.driver}+tls://${param.server}/system": "a host name within a URI whose scheme and path are given; virsh looks at the server's certificate",
	"postgresql-client host=${param.server} port=${param.port} dbname=${param.database} user=${param.login|${param.role|${host.name}}} sslmode=verify-full": "names " +
		"without blanks, quotes and = as values of libpq's own words; the server must be who it says (verify-full), and psql asks for nothing but 1",
}

// freeArguments are the arguments of a recipe's commands in which a parameter of a type stands that is not harmless, be it
// by a default or by what a fact is found by.
func freeArguments(r *Recipe) (free []string, seen int) {
	var look func(argument, text string, done map[string]bool)
	look = func(argument, text string, done map[string]bool) {
		pieces, err := parseText(text)
		if err != nil {
			free = append(free, argument+": "+err.Error())
		}
		eachVariable(pieces, func(used piece) {
			if done[used.variable] {
				return
			}
			done[used.variable] = true
			if name, is := strings.CutPrefix(used.variable, "param."); is {
				seen++
				p := r.parameter(name)
				if harmless[p.Type] == "" && insideOf[r.Name+" "+argument] == "" {
					free = append(free, argument+": "+name+" is of type "+p.Type)
				}
				for _, text := range p.defaultTexts() {
					look(argument, text, done)
				}
				return
			}
			if f, ok := r.factRule(used.variable); ok {
				for _, text := range append(slices.Concat(f.Command, f.Paths), f.Config) {
					look(argument, text, done)
				}
			}
		})
	}
	vector := func(words []string) {
		for _, word := range words {
			look(word, word, map[string]bool{})
		}
	}
	for i := range r.Facts {
		vector(r.Facts[i].Command)
	}
	steps := slices.Concat(r.Checks, r.Reload, r.After)
	for i := range steps {
		vector(steps[i].Command)
		if s := steps[i].Signal; s != nil {
			look("signal", s.PIDFile+s.Process+s.Signal, map[string]bool{})
		}
		for key, text := range steps[i].With {
			look(key, text, map[string]bool{})
		}
	}
	for p := r.Probe; p != nil; p = p.Else {
		vector(p.Command)
		for key, text := range p.With {
			look(key, text, map[string]bool{})
		}
	}
	return free, seen
}

// TestNoFreeParameterReachesACommand: what an operator of the authority gives a built-in recipe reaches a command, a signal or a
// socket only as a type that cannot harm, and nothing that is used so but a path that the host accepts.
func TestNoFreeParameterReachesACommand(t *testing.T) {
	seen := 0
	for _, r := range Builtins() {
		free, n := freeArguments(r)
		seen += n
		for _, f := range free {
			t.Errorf("recipe %s: %s", r.Name, f)
		}
		for name := range r.uses() {
			if p := r.parameter(name); !p.Trusted {
				t.Errorf("recipe %s: the path %s is used and not trusted", r.Name, name)
			}
		}
	}
	if seen < 20 {
		t.Errorf("%d parameters in commands were looked at", seen)
	}
	for name := range insideOf {
		recipe, argument, _ := strings.Cut(name, " ")
		r, ok := Builtin(recipe)
		if !ok || r.Probe == nil || !slices.Contains(r.Probe.Command, argument) {
			t.Errorf("%s has no such argument any more: %s", recipe, argument)
		}
	}
}

// changed is a built-in recipe's text with one change.
func changed(t *testing.T, name, from, to string) string {
	t.Helper()
	text, ok := BuiltinYAML(name)
	if !ok || !strings.Contains(string(text), from) {
		t.Fatalf("recipe %s does not hold %q", name, from)
	}
	return strings.ReplaceAll(string(text), from, to)
}

// TestRestartOfWhatAnOperatorNames: java and nss as they once were, with a service of type name, are refused when they are read,
// and the look at all recipes finds them.
func TestRestartOfWhatAnOperatorNames(t *testing.T) {
	for _, name := range []string{"java", "nss"} {
		_, err := Parse([]byte(changed(t, name, "{name: service, type: unit,", "{name: service, type: name,")), "test")
		refused(t, err, "param.service names what systemctl acts upon", "type unit")
		r, _ := Builtin(name)
		before := *r
		before.Parameters = slices.Clone(r.Parameters)
		for i := range before.Parameters {
			if before.Parameters[i].Type == "unit" {
				before.Parameters[i].Type = "name"
			}
		}
		if free, _ := freeArguments(&before); len(free) != 1 || !strings.Contains(free[0], "service is of type name") {
			t.Errorf("%s as it was: %q", name, free)
		}
	}
	for _, argument := range []string{`"${param.service}.target"`, `"x-${param.service}"`, `"${param.service|}"`, `"${host.name}"`, `"${param.alias}"`} {
		_, err := Parse([]byte(changed(t, "java", `try-restart, "${param.service}"]`, "try-restart, "+argument+"]")), "test")
		refused(t, err, "acts upon")
	}
}

// TestRestartsLeaveWhatIsStopped: no built-in recipe has systemd start anything, and each unit is named in full.
func TestRestartsLeaveWhatIsStopped(t *testing.T) {
	restarts := 0
	for _, r := range Builtins() {
		steps := slices.Concat(r.Checks, r.Reload, r.After)
		for i := range steps {
			s := &steps[i]
			if len(s.Command) == 0 || !slices.Contains(commanders, path.Base(s.Command[0])) {
				continue
			}
			restarts++
			filled := *s
			filled.Command = slices.Clone(s.Command)
			for j, word := range filled.Command {
				for _, p := range r.Parameters {
					word = strings.ReplaceAll(word, "${param."+p.Name+"}", p.sample())
				}
				filled.Command[j] = word
			}
			if _, unit := filled.Service(); unit == "" || !strings.HasSuffix(filled.Command[2], dotService) {
				t.Errorf("recipe %s: %q is no try-restart of one service", r.Name, s.Command)
			}
		}
	}
	if restarts < 6 {
		t.Errorf("%d restarts were found", restarts)
	}
}

func TestUnits(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"tomcat9.service", "tomcat9", true}, {"tomcat9", "tomcat9.service", true}, {"tomcat9", "tomcat9x", false}, {"tomcat9", "tomcat", false},
		{"dirsrv@*", "dirsrv@EXAMPLE-COM", true}, {"dirsrv@*", "dirsrv@x.service", true}, {"dirsrv@*", "dirsrv", false}, {"dirsrv@*", "dirsrv2@x", false},
		{"dirsrv@a", "dirsrv@a.service", true}, {"dirsrv@a", "dirsrv@b", false}, {"dirsrv@*", "dirsrv@", false},
	} {
		if !CheckUnit(c.pattern) || MatchUnit(c.pattern, c.name) != c.want {
			t.Errorf("%s takes %s: %v", c.pattern, c.name, !c.want)
		}
	}
	for _, pattern := range []string{"", "*", "@*", "a*", "a*@x", "poweroff.target", "dirsrv@a*", "dirsrv@*.service", "-a", "a/b", "a b", "dirsrv@", "x.socket", ".service"} {
		if CheckUnit(pattern) {
			t.Errorf("%q passes as services", pattern)
		}
	}
	r, _ := Builtin("nss")
	reads, err := r.Reads(map[string]string{"service": "dirsrv@X"}, nil)
	if err != nil || len(reads) != 1 || reads[0].Path != "dirsrv@X.service" || reads[0].Uses[0] != UseUnit {
		t.Errorf("%+v, %v", reads, err)
	}
	plan, err := r.Resolve(sampleHost, map[string]string{"service": "dirsrv@X"}, Facts{})
	if err != nil || plan.Reload == nil || plan.Reload.Command[2] != "dirsrv@X.service" {
		t.Errorf("%+v, %v", plan, err)
	}
	if s, unit := plan.Reload.Service(); s != "systemctl" || unit != "dirsrv@X.service" {
		t.Errorf("%s %s", s, unit)
	}
}

// TestPathsInURIs: a path that root's program decodes again could lead elsewhere than the path that the host looked at.
func TestPathsInURIs(t *testing.T) {
	r, _ := Builtin("libvirt-server")
	err := r.CheckParameters(map[string]string{"socket": "/run/%2e%2e/tmp/x"})
	refused(t, err, "decode")
}
