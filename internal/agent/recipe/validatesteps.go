package recipe

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// signals are those that tell a process to look again; the others end it, and are steps that interrupt.
var (
	reloadSignals = []string{"HUP", "USR1", "USR2", "WINCH"}
	endSignals    = []string{"TERM", "INT", "QUIT"}
)

// actions are what the agent does itself: among which steps each belongs, and what it needs.
var actions = map[string]struct {
	among string
	needs []string
}{
	"check-qemu-credentials":  {"checks", []string{"dir", "program"}},
	"drop-revoked-clients":    {"after", []string{"program", "server", "uri"}},
	"look-at-libvirt-vnc":     {"probe", []string{"program", "uri"}},
	"look-at-qemu-vnc":        {"probe", []string{"dir", "sockets"}},
	"match-pair":              {"checks", nil},
	"reload-libvirt-vnc":      {"reload", []string{"program", "uri"}},
	"reload-qemu-vnc":         {"reload", []string{"dir", "sockets"}},
	"set-haproxy-certificate": {"reload", []string{"pid_file", "socket"}},
	"set-openldap-files":      {"reload", []string{"socket"}},
}

var (
	stepName    = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	processName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,15}$`)
)

func (v *validation) steps() {
	names := map[string]string{}
	for _, group := range []struct {
		field string
		steps []Step
	}{{"checks", v.recipe.Checks}, {"reload", v.recipe.Reload}, {"after", v.recipe.After}} {
		for i := range group.steps {
			s, at := &group.steps[i], fmt.Sprintf("%s[%d]", group.field, i)
			if !stepName.MatchString(s.Name) {
				v.add(at+".name", "%q must be 1 to 32 small letters, digits and hyphens, a letter first", s.Name)
			}
			if other := names[s.Name]; other != "" {
				v.add(at+".name", "%q is %s already; a host replaces steps by name", s.Name, other)
			}
			names[s.Name] = at
			v.step(group.field, at, s)
			if group.field == "reload" && s.When == "" && i < len(group.steps)-1 {
				v.add(at, "the steps after it are never reached, since it has no condition; the first that holds is taken")
			}
		}
	}
}

func (v *validation) step(field, at string, s *Step) {
	kinds := 0
	for _, set := range []bool{len(s.Command) > 0, s.Signal != nil, s.Action != ""} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		v.add(at, "exactly one of command, signal and action is wanted; %d are there", kinds)
	}
	v.condition(at+".when", s.When)
	for i, word := range s.Command {
		v.text(fmt.Sprintf("%s.command[%d]", at, i), word, nil, func(string) error { return nil })
	}
	v.vector(at+".command", s.Command)
	v.user(at+".user", s.User, len(s.Command) > 0)
	v.timeout(at+".timeout", s.Timeout)
	if s.Interrupts && field != "reload" {
		v.add(at+".interrupts", "only a step of reload may interrupt connections")
	}
	if s.Signal != nil {
		v.signal(field, at, s)
	}
	v.actionWith(field, at, s.Action, s.With)
}

func (v *validation) signal(field, at string, s *Step) {
	if field == "checks" {
		v.add(at+".signal", "a signal checks nothing: it has no answer")
	}
	v.text(at+".signal.pid_file", s.Signal.PIDFile, nil, func(value string) error { return checkPath("pid_file", value) })
	if !processName.MatchString(s.Signal.Process) {
		v.add(at+".signal.process", "%q is no name of a command as the kernel has it: 1 to 15 letters, digits and ._-", s.Signal.Process)
	}
	switch {
	case slices.Contains(reloadSignals, s.Signal.Signal):
	case !slices.Contains(endSignals, s.Signal.Signal):
		v.add(at+".signal.signal", "%q is not one of %s", s.Signal.Signal, strings.Join(slices.Concat(reloadSignals, endSignals), ", "))
	case !s.Interrupts:
		v.add(at+".signal.signal", "%s ends a process: say interrupts: true", s.Signal.Signal)
	}
}

// actionWith judges an action of a step or of the probe, and what it is given.
func (v *validation) actionWith(field, at, name string, with map[string]string) {
	action, ok := actions[name]
	switch {
	case name == "":
		if len(with) > 0 {
			v.add(at+".with", "only an action has with")
		}
		return
	case !ok:
		v.add(at+".action", "%q is not one of %s", name, strings.Join(slices.Sorted(maps.Keys(actions)), ", "))
		return
	case field != action.among:
		v.add(at+".action", "%s is no step of %s: put it into %s", name, field, action.among)
	}
	if given := slices.Sorted(maps.Keys(with)); !slices.Equal(given, action.needs) {
		v.add(at+".with", "%s needs %s; there are %s", name, cmp.Or(strings.Join(action.needs, ", "), "nothing"), strings.Join(given, ", "))
	}
	for key, text := range with {
		check := func(string) error { return nil }
		if isPathOfWith(key) {
			check = func(value string) error { return checkPath(key, value) }
		}
		v.text(at+".with."+key, text, nil, check)
	}
}

// isPathOfWith reports whether what an action is given under the key is a path.
func isPathOfWith(key string) bool {
	return slices.Contains([]string{"socket", "sockets", "pid_file", "dir"}, key)
}

// shells run their -c argument as a program.
var shells = []string{"sh", "bash", "dash", "ash", "ksh", "zsh", "fish", "csh", "tcsh", "busybox"}

// vector judges an argument vector: what is run is the recipe's word and no variable, but for a parameter that is a path
// or one of the recipe's choices, and no variable becomes part of a program.
func (v *validation) vector(at string, command []string) {
	if len(command) == 0 {
		return
	}
	if len(command) > maxAll {
		v.add(at, "%d arguments: %d at most", len(command), maxAll)
	}
	program := command[0]
	if pieces, _ := parseText(program); len(pieces) == 1 && pieces[0].variable != "" {
		p := v.recipe.parameter(strings.TrimPrefix(pieces[0].variable, "param."))
		if !strings.HasPrefix(pieces[0].variable, "param.") || p == nil || (p.Type != "path" && p.Type != "choice") {
			v.add(at+"[0]", "%q: what is run is a word, or a parameter of type path or choice", program)
		}
	} else if strings.HasPrefix(program, "/") {
		v.problem(at+"[0]", checkPath("program", program))
	} else if !plainName.MatchString(program) {
		v.add(at+"[0]", "%q: what is run is an absolute path or the name of a program", program)
	}
	v.units(at, command)
	for i, word := range command {
		if len(word) > maxText {
			return // found where the text was read
		}
		if slices.Contains(shells, path.Base(program)) && strings.Contains(word, "${") && i > 0 && isShellProgram(command, i) {
			v.add(fmt.Sprintf("%s[%d]", at, i), "a variable in a shell's program would be read as part of it; hand it over as an "+
				"argument: [sh, -c, 'echo \"$1\"', sh, \"${param.name}\"]")
		}
	}
}

// isShellProgram reports whether the argument i is the one after -c, or -c joined with other letters.
func isShellProgram(command []string, i int) bool {
	before := command[i-1]
	return strings.HasPrefix(before, "-") && !strings.HasPrefix(before, "--") && strings.Contains(before, "c")
}
