package loop

import (
	"path"
	"slices"
	"strings"
	"testing"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// TestServicesAreTheHostsWord: which unit root restarts is chosen by the host alone; the refusal says the line of agent.yaml that
// would allow it, and that line does.
func TestServicesAreTheHostsWord(t *testing.T) {
	root := t.TempDir()
	for _, c := range []struct {
		config, recipe, unit string
		refused              bool
	}{
		{"", "java", "tomcat9", true},
		{"", "java", "ssh.service", true},
		{"", "nss", "dirsrv@EXAMPLE", true},
		{"", "nss", "systemd-poweroff", true},
		{"", "java", "slapd", false}, // a recipe names it itself
		{"services: []", "java", "slapd.service", true},
		{"services: [tomcat9]", "java", "tomcat9.service", false},
		{"services: [tomcat9.service]", "java", "tomcat9", false},
		{"services: [tomcat9.service]", "java", "slapd", true},
		{"services: [dirsrv@a]", "nss", "dirsrv@b", true},
		{"services: ['dirsrv@*']", "nss", "dirsrv@b", false},
		{"services: ['dirsrv@*']", "nss", "dirsrv2@b", true},
		{"reads: [/]", "java", "tomcat9", true},
	} {
		if strings.HasPrefix(c.config, "reads") {
			c.config = "reads: [/etc]"
		}
		given := map[string]string{"service": c.unit}
		err := judgeReads(t, c.config, c.recipe, root, given, nil)
		if !c.refused {
			must(t, err)
			continue
		}
		if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "parameter service: ") || !strings.Contains(err.Error(), recipe.UnitName(c.unit)) {
			t.Errorf("%s with %q: %v", c.unit, c.config, err)
			continue
		}
		hint := hints(err)
		if len(hint) != 1 {
			t.Errorf("%s: the hints are %q", c.unit, hint)
			continue
		}
		_, line, found := strings.Cut(hint[0], "write into "+ConfigFile+": ")
		if !found {
			t.Errorf("%s: the hint is %q", c.unit, hint[0])
		}
		if err := judgeReads(t, line, c.recipe, root, given, nil); err != nil {
			t.Errorf("%s is refused with the line %q that would allow it: %v", c.unit, line, err)
		}
	}
	for _, unit := range []string{"poweroff.target", "*", "a/b", "sshd.socket", "-x", "dirsrv@"} {
		if _, err := ParseConfig([]byte("services: ['" + unit + "']")); err == nil || !strings.Contains(err.Error(), "no service of systemd") {
			t.Errorf("services takes %q: %v", unit, err)
		}
	}
}

// TestServicesOfAnAnswerNobodyGave: the default of a recipe of the host's own is held to services, too.
func TestServicesOfAnAnswerNobodyGave(t *testing.T) {
	r, err := recipe.Parse([]byte(strings.Replace(ownUnit, "DEFAULT", "ssh", 1)), "own.yaml")
	must(t, err)
	reads, err := r.Reads(nil, nil)
	must(t, err)
	if err := DefaultConfig().acceptsReads(reads, ""); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "ssh.service") {
		t.Errorf("%v", err)
	}
}

const ownUnit = `
name: own
title: a recipe of the host's own
about: It restarts a unit.
parameters:
  - {name: unit, type: unit, default: DEFAULT, about: what is restarted}
certificates: [{profile: server, key: [{algorithm: ecdsa-p256}], names: ["dns:${host.names}"]}]
files:
  - {path: /etc/ssl/a.pem, content: [key, path], mode: "0600"}
reload: [{name: restart, command: [systemctl, try-restart, "${param.unit}"]}]
`

// TestDefaultServices: the default list holds what the built-in recipes name themselves and nothing else.
func TestDefaultServices(t *testing.T) {
	var named []string
	for _, r := range recipe.Builtins() {
		for _, s := range slices.Concat(r.Checks, r.Reload, r.After) {
			if len(s.Command) != 3 || path.Base(s.Command[0]) != "systemctl" {
				continue
			}
			all := []string{s.Command[2]}
			for _, p := range r.Parameters {
				variable := "${param." + p.Name + "}"
				var filled []string
				for _, unit := range all {
					if !strings.Contains(unit, variable) {
						filled = append(filled, unit)
					}
					for _, choice := range p.Choices {
						if strings.Contains(unit, variable) {
							filled = append(filled, strings.ReplaceAll(unit, variable, choice))
						}
					}
				}
				all = filled
			}
			named = append(named, all...)
		}
	}
	slices.Sort(named)
	if named = slices.Compact(named); len(named) < 5 || !slices.Equal(named, DefaultServices()) {
		t.Errorf("the recipes name %q, and the default is %q", named, DefaultServices())
	}
}
