package recipe

import (
	"strings"

	"chancery/internal/fault"
)

// Texts are judged when a recipe is read, with samples in place of what is known on a host only: a port number in a user's
// name, say, is found then and not on the host.

// sampleHost stands for a host.
var sampleHost = Host{Name: "sample.example", DNS: []string{"sample.example"}, IP: []string{"192.0.2.1"}, Authority: "Sample, Root"}

// configSamples are what a setting of a configuration file may be; the kinds are told apart by where it is used.
var configSamples = []string{"/sample/path", "sample", "16514", "sample.example", "1.2.3"}

// factRule returns the rule of a variable fact.NAME or fact.NAME.SETTING.
func (r *Recipe) factRule(name string) (*FactRule, bool) {
	name, setting, hasSetting := strings.Cut(strings.TrimPrefix(name, "fact."), ".")
	for i := range r.Facts {
		f := &r.Facts[i]
		if f.Name == name {
			return f, hasSetting == (f.Config != "") && (!hasSetting || setting != "")
		}
	}
	return nil, false
}

// known refuses a variable that the recipe does not have.
func (r *Recipe) known(name string) error {
	switch {
	case name == "authority" || name == "host.name" || name == "host.names" || name == "host.addresses":
		return nil
	case strings.HasPrefix(name, "param."):
		if r.parameter(strings.TrimPrefix(name, "param.")) != nil {
			return nil
		}
	case strings.HasPrefix(name, "fact."):
		rule, ok := r.factRule(name)
		switch {
		case ok:
			return nil
		case rule != nil && rule.Config != "":
			return fault.New(fault.Invalid, "%s is a file; name a setting of it: fact.%s.SETTING", name, rule.Name)
		case rule != nil:
			return fault.New(fault.Invalid, "%s: the fact %s is no configuration file and has no settings", name, rule.Name)
		}
	}
	var names []string
	for _, p := range r.Parameters {
		names = append(names, "param."+p.Name)
	}
	for _, f := range r.Facts {
		suffix := ""
		if f.Config != "" {
			suffix = ".SETTING"
		}
		names = append(names, "fact."+f.Name+suffix)
	}
	names = append(names, "host.name", "host.names", "host.addresses", "authority")
	return fault.New(fault.Invalid, "there is no variable %s; there are %s", name, strings.Join(names, ", "))
}

// samples are values that a variable may have.
func (r *Recipe) samples(name string) []string {
	switch {
	case name == "authority":
		return []string{sampleHost.Authority}
	case name == "host.addresses":
		return sampleHost.IP
	case strings.HasPrefix(name, "host."):
		return sampleHost.DNS
	case strings.HasPrefix(name, "param."):
		p := r.parameter(strings.TrimPrefix(name, "param."))
		if p == nil {
			return []string{"sample"}
		}
		if p.Type == "choice" && len(p.Choices) > 0 {
			return p.Choices
		}
		return []string{p.sample()}
	}
	rule, _ := r.factRule(name)
	switch {
	case rule == nil || rule.Config != "":
		return configSamples
	case rule.Command != nil:
		return []string{"1.2.3", "sample", "/sample/path"}
	case rule.Paths != nil || rule.Home != "":
		return []string{"/sample/path"}
	}
	return []string{"sample"}
}

// text judges a text: its variables exist, and with samples in their places, known and not known, check passes.
func (v *validation) text(path, text string, escape func(string) string, check func(string) error) {
	pieces, err := parseText(text)
	if err != nil {
		v.problem(path, err)
		return
	}
	good, most := true, 1
	eachVariable(pieces, func(name string) {
		if err := v.recipe.known(name); err != nil {
			v.problem(path, err)
			good = false
			return
		}
		most = max(most, len(v.recipe.samples(name)))
	})
	if !good {
		return
	}
	v.problem(path, v.tryEach(pieces, most, false, escape, check))
	if hasFallback(pieces) {
		v.problem(path, v.tryEach(pieces, most, true, escape, check))
	}
}

func hasFallback(pieces []piece) bool {
	for _, p := range pieces {
		if p.optional {
			return true
		}
	}
	return false
}

// tryEach passes if some choice of samples does; with absent, what has a fallback is not known.
func (v *validation) tryEach(pieces []piece, most int, absent bool, escape func(string) string, check func(string) error) error {
	optional := map[string]bool{}
	var mark func([]piece)
	mark = func(pieces []piece) {
		for _, p := range pieces {
			optional[p.variable] = optional[p.variable] || p.optional
			mark(p.fallback)
		}
	}
	mark(pieces)
	var first error
	for i := range most {
		filled, err := values{
			lookup: func(name string) string {
				if absent && optional[name] {
					return ""
				}
				all := v.recipe.samples(name)
				return all[i%len(all)]
			},
			missing: func(string) error { return nil },
			escape:  escape,
		}.fillPieces(pieces)
		if err == nil {
			err = check(filled)
		}
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}
