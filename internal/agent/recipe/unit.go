package recipe

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// This file is about the services of systemd: what a parameter may name, and which a step tells.

const dotService = ".service"

// maxUnit bounds a unit's name; systemd takes 255 octets.
const maxUnit = 128

// otherUnits are the endings of systemd.unit(5) by which systemctl knows a unit that is no service: poweroff.target ends the host.
var otherUnits = []string{".socket", ".device", ".mount", ".automount", ".swap", ".target", ".path", ".timer", ".slice", ".scope", ".snapshot", ".busname"}

// isUnit accepts the name of a service, without characters by which systemctl would take it for a path, a pattern or an option.
func isUnit(value string) bool {
	other := func(ending string) bool { return strings.HasSuffix(value, ending) }
	name := strings.TrimSuffix(value, dotService)
	return len(value) <= maxUnit && unitName.MatchString(name) && !slices.ContainsFunc(otherUnits, other)
}

// UnitName is a service's full name. systemctl is never left to guess what kind a unit is of.
func UnitName(value string) string {
	if value == "" || strings.HasSuffix(value, dotService) {
		return value
	}
	return value + dotService
}

// CheckUnit accepts the name of a service, or NAME@* for all instances of a template.
func CheckUnit(value string) bool {
	return isUnit(strings.TrimSuffix(value, "*")) && !strings.HasSuffix(value, "*") || strings.HasSuffix(value, "@*") && isUnit(value[:len(value)-1]+"x")
}

// MatchUnit reports whether what CheckUnit accepts means a service.
func MatchUnit(pattern, name string) bool {
	if template, all := strings.CutSuffix(pattern, "*"); all {
		return strings.HasPrefix(name, template) && len(UnitName(name)) > len(template+dotService)
	}
	return UnitName(pattern) == UnitName(name)
}

// full is a value as texts have it.
func (p *Parameter) full(value string) string {
	if p.Type == "unit" {
		return UnitName(value)
	}
	return value
}

// commanders start and stop what a host runs, by the name that they are given.
var commanders = []string{"systemctl", "service", "rc-service", "initctl", "start", "stop", "restart", "sv", "s6-svc", "s6-rc", "rcctl", "svcadm",
	"machinectl", "loginctl", "systemd-run", "busctl", "docker", "podman"}

// units refuses a command that has root start or stop what an operator of the authority, or a fact, names freely: of the
// variables a unit is held to what the host accepts, and a choice is the recipe's own word.
func (v *validation) units(at string, command []string) {
	if !slices.Contains(commanders, path.Base(command[0])) {
		return
	}
	for i, word := range command[1:] {
		pieces, _ := parseText(word) // an error is found where the text is read
		eachVariable(pieces, func(used piece) {
			p := v.recipe.parameter(strings.TrimPrefix(used.variable, "param."))
			if strings.HasPrefix(used.variable, "param.") && p != nil && (p.Type == "choice" || p.Type == "unit" && word == "${param."+p.Name+"}") {
				return
			}
			v.add(fmt.Sprintf("%s[%d]", at, i+1), "%s names what %s acts upon: a word of the recipe's, a parameter of type choice, or one of type unit "+
				"that is the whole argument, which a host holds to its services", used.variable, path.Base(command[0]))
		})
	}
}

// Service returns the one service that a step has systemd restart if it runs, and the systemctl that does so; empty where the
// step does anything else.
func (s *Step) Service() (systemctl, unit string) {
	c := s.Command
	if len(c) != 3 || path.Base(c[0]) != "systemctl" || (c[1] != "try-restart" && c[1] != "try-reload-or-restart") || !isUnit(c[2]) {
		return "", ""
	}
	return c[0], UnitName(c[2])
}
