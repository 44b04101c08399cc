package recipe

import (
	"slices"
	"strings"

	"chancery/internal/fault"
)

// Texts are judged when a recipe is read, with samples in place of what is known on a host only: a port number in a user's
// name, say, is found then and not on the host.

// sampleHost stands for a host.
var sampleHost = Host{Name: "sample.example", DNS: []string{"sample.example", "sample"}, IP: []string{"192.0.2.1", "2001:db8::1"},
	Authority: "Sample, Root"}

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
		return []string{strings.Join(sampleHost.IP, ",")}
	case name == "host.names":
		return []string{strings.Join(sampleHost.DNS, ",")}
	case name == "host.name":
		return []string{sampleHost.Name}
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

// maxTries bounds how many combinations of samples are tried for one text.
const maxTries = 400

// text judges a text: its variables exist, and with samples in their places, known and not known, check passes.
func (v *validation) text(path, text string, escape func(string) string, check func(string) error) {
	pieces, err := parseText(text)
	if err != nil {
		v.problem(path, err)
		return
	}
	good := true
	var names []string
	optional := map[string]bool{}
	eachVariable(pieces, func(p piece) {
		if err := v.recipe.known(p.variable); err != nil {
			v.problem(path, err)
			good = false
		}
		if !slices.Contains(names, p.variable) {
			names = append(names, p.variable)
		}
		optional[p.variable] = optional[p.variable] || p.optional
	})
	if !good {
		return
	}
	v.problem(path, v.tryEach(pieces, names, nil, escape, check))
	if slices.ContainsFunc(names, func(name string) bool { return optional[name] }) {
		v.problem(path, v.tryEach(pieces, names, optional, escape, check))
	}
}

// each judges an entry of a list of names, which a list of the host's makes as many entries of.
func (v *validation) each(path, text string, check func(string) error) {
	one := strings.NewReplacer("${host.names}", sampleHost.DNS[0], "${host.addresses}", sampleHost.IP[0]).Replace(text)
	v.text(path, one, nil, check)
}

// tryEach passes if some combination of samples does; those in absent are not known.
func (v *validation) tryEach(pieces []piece, names []string, absent map[string]bool, escape func(string) string,
	check func(string) error) error {
	samples := make([][]string, len(names))
	tries := 1
	for i, name := range names {
		if samples[i] = v.recipe.samples(name); absent[name] {
			samples[i] = []string{""}
		}
		tries = min(maxTries, tries*len(samples[i]))
	}
	var first error
	for try := range tries {
		chosen := map[string]string{}
		for i, rest := 0, try; i < len(names); i++ {
			chosen[names[i]] = samples[i][rest%len(samples[i])]
			rest /= len(samples[i])
		}
		filled, err := values{
			lookup:  func(name string) string { return chosen[name] },
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
