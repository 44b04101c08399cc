package recipe

import (
	"fmt"
	"slices"
	"strings"
)

// Use is what a parameter's path is used for on the host, beside the files that are placed.
type Use string

// Uses, the gravest first. What lies at the path decides what root runs, reads, is connected to or signals.
const (
	UseProgram  Use = "program"  // it is run
	UseArgument Use = "argument" // a program that runs is given it: a configuration may load code
	UseSocket   Use = "socket"   // it is connected to, and may be told keys
	UseConfig   Use = "config"   // its settings become facts
	UseUnit     Use = "unit"     // systemd restarts it, or does with it whatever else the recipe says
	UsePIDFile  Use = "pid_file" // its first line is the number of the process that is signalled, if its name is right
)

var gravity = []Use{UseProgram, UseArgument, UseSocket, UseConfig, UseUnit, UsePIDFile}

// Read is a path that a parameter names and that is used on the host other than by placing files there, or a unit of
// systemd. The host must accept it before it is used: the authority's word alone would let whoever gives parameters choose
// what root runs.
type Read struct {
	Parameter, Path string // of a unit its full name, NAME.service
	Uses            []Use  // the gravest first
	// Own says that the path is the recipe's own word: the parameter was not given, and its default holds no path that was.
	Own bool
}

// Reads are the paths of parameters that are used so, and the units of all. Without facts those whose defaults need one are left out: it is asked
// before facts are gathered, for what they are gathered from, and again with them.
func (r *Recipe) Reads(parameters map[string]string, facts Facts) ([]Read, error) {
	if err := r.CheckParameters(parameters); err != nil {
		return nil, err
	}
	s := &scope{recipe: r, parameters: map[string]string{}, facts: facts}
	static, uses := r.staticParameters(), r.uses()
	own := map[string]bool{}
	var reads []Read
	for i := range r.Parameters {
		p := &r.Parameters[i]
		value, given := parameters[p.Name]
		own[p.Name] = !given || p.Type != "path"
		if !given {
			if facts == nil && !static[p.Name] {
				continue
			}
			text := p.defaultText(s.value)
			eachPathOf(text, func(name string) { own[p.Name] = own[p.Name] && own[name] })
			var err error
			if value, err = s.values(nil).fill(text); err != nil {
				continue // Resolve says what is not known of this host
			}
		}
		s.parameters[p.Name] = value
		if p.Type == "unit" && value != "" { // wherever it stands, and whoever gave it
			reads = append(reads, Read{Parameter: p.Name, Path: UnitName(value), Uses: []Use{UseUnit}})
		}
		if p.Type == "path" && value != "" && len(uses[p.Name]) > 0 {
			reads = append(reads, Read{Parameter: p.Name, Path: value, Uses: uses[p.Name], Own: own[p.Name]})
		}
	}
	return reads, nil
}

// eachPathOf calls f for each parameter in a text.
func eachPathOf(text string, f func(parameter string)) {
	pieces, _ := parseText(text) // an error is found where the text is read
	eachVariable(pieces, func(used piece) {
		if name, ok := strings.CutPrefix(used.variable, "param."); ok {
			f(name)
		}
	})
}

// uses says of each parameter of type path what it is used for: where it stands in such a place itself, or in the default
// of one that does, or in what a fact that does is found by.
func (r *Recipe) uses() map[string][]Use {
	found := map[string][]Use{}
	seen := map[string]bool{} // of a variable and a use
	var note func(text string, use Use)
	note = func(text string, use Use) {
		pieces, _ := parseText(text)
		eachVariable(pieces, func(used piece) {
			key := used.variable + " " + string(use)
			if seen[key] {
				return
			}
			seen[key] = true
			name, isParameter := strings.CutPrefix(used.variable, "param.")
			if p := r.parameter(name); isParameter && p != nil {
				if p.Type == "path" {
					found[name] = append(found[name], use)
				}
				for _, text := range p.defaultTexts() {
					note(text, use)
				}
			} else if rule, _ := r.factRule(used.variable); !isParameter && rule != nil {
				for _, source := range slices.Concat(rule.Paths, []string{rule.Config}) {
					note(source, use)
				}
			}
		})
	}
	vector := func(command []string) {
		for i, word := range command {
			if i == 0 {
				note(word, UseProgram)
			} else {
				note(word, UseArgument)
			}
		}
	}
	for i := range r.Facts {
		vector(r.Facts[i].Command)
		note(r.Facts[i].Config, UseConfig)
	}
	for _, s := range slices.Concat(r.Checks, r.Reload, r.After) {
		vector(s.Command)
		if s.Signal != nil {
			note(s.Signal.PIDFile, UsePIDFile)
		}
		for key, text := range s.With {
			if use := useOfWith(key); use != "" {
				note(text, use)
			}
		}
	}
	for p := r.Probe; p != nil; p = p.Else {
		vector(p.Command)
		note(p.Holds, UseConfig)
		for key, text := range p.With {
			if use := useOfWith(key); use != "" {
				note(text, use)
			}
		}
	}
	for _, uses := range found {
		slices.SortFunc(uses, func(a, b Use) int { return slices.Index(gravity, a) - slices.Index(gravity, b) })
	}
	return found
}

// useOfWith is what an action does with what it is given; empty for the directory in which files are placed.
func useOfWith(key string) Use {
	switch key {
	case "dir":
		return ""
	case "program":
		return UseProgram
	case "socket", "sockets":
		return UseSocket
	case "pid_file":
		return UsePIDFile
	}
	return UseArgument
}

// reads holds the mark of each parameter against its use, so that whoever writes a recipe has seen that the parameter is
// more than a place for a file.
func (v *validation) reads() {
	uses := v.recipe.uses()
	for i := range v.recipe.Parameters {
		p := &v.recipe.Parameters[i]
		at := fmt.Sprintf("parameters[%d].trusted", i)
		switch used := uses[p.Name]; {
		case len(used) > 0 && !p.Trusted:
			v.add(at, "%s is used as %s: say trusted: true, and a host takes only paths that it accepts for reading and whose owners it trusts",
				p.Name, sayUses(used))
		case len(used) == 0 && p.Trusted:
			v.add(at, "%s is no path that a program is given, that is read, connected to or signalled by: leave trusted out", p.Name)
		}
	}
}

func sayUses(uses []Use) string {
	var words []string
	for _, u := range uses {
		words = append(words, string(u))
	}
	return strings.Join(words, ", ")
}
