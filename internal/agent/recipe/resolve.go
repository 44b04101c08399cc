package recipe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// FactRules are what is to be found out for the parameters: variables are filled, and what asks about nothing, because a
// parameter is empty, is left out.
func (r *Recipe) FactRules(parameters map[string]string) ([]FactRule, error) {
	if err := r.CheckParameters(parameters); err != nil {
		return nil, err
	}
	s := &scope{recipe: r, parameters: map[string]string{}}
	static := r.staticParameters()
	for i := range r.Parameters {
		p := &r.Parameters[i]
		given, ok := parameters[p.Name]
		switch {
		case ok:
			s.parameters[p.Name] = p.full(given)
		case static[p.Name]:
			value, err := s.values(nil).fill(p.defaultText(s.value))
			if err == nil && value != "" {
				err = p.check(value)
			}
			if err != nil {
				return nil, fmt.Errorf("recipe %s: parameter %s: %w", r.Name, p.Name, err)
			}
			s.parameters[p.Name] = p.full(value)
		}
	}
	var rules []FactRule
	for _, f := range r.Facts {
		filled, err := s.factRule(f)
		if err != nil {
			return nil, fmt.Errorf("recipe %s: fact %s: %w", r.Name, f.Name, err)
		}
		if filled != nil {
			rules = append(rules, *filled)
		}
	}
	return rules, nil
}

// factRule fills a rule. It is nil where nothing is left to ask about.
func (s *scope) factRule(f FactRule) (*FactRule, error) {
	fill := func(text string, check func(string) error) (string, error) {
		filled, err := s.values(nil).fill(text)
		if err != nil || filled == "" {
			return "", err
		}
		return filled, check(filled)
	}
	all := func(texts []string, check func(string) error) ([]string, error) {
		var filled []string
		for _, text := range texts {
			one, err := fill(text, check)
			if err != nil {
				return nil, err
			}
			if one != "" {
				filled = append(filled, one)
			}
		}
		return filled, nil
	}
	aPath := func(value string) error { return checkPath("file", value) }
	var errs [6]error
	if f.Command != nil {
		f.Command, errs[0] = s.vector(f.Command)
	}
	f.Config, errs[1] = fill(f.Config, aPath)
	f.Groups, errs[2] = all(f.Groups, checkAccount)
	f.Users, errs[3] = all(f.Users, checkAccount)
	f.Paths, errs[4] = all(f.Paths, aPath)
	f.Home, errs[5] = fill(f.Home, checkAccount)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if f.Command == nil && f.Config == "" && f.Groups == nil && f.Users == nil && f.Paths == nil && f.Home == "" {
		return nil, nil
	}
	return &f, nil
}

// scope is what variables stand for.
type scope struct {
	recipe     *Recipe
	host       Host
	parameters map[string]string
	facts      Facts
}

// value is what a variable stands for; empty where it is not known.
func (s *scope) value(name string) string {
	switch name {
	case "host.name":
		return s.host.Name
	case "host.names":
		return strings.Join(s.host.DNS, ",")
	case "host.addresses":
		return strings.Join(s.host.IP, ",")
	case "authority":
		return s.host.Authority
	}
	if p, ok := strings.CutPrefix(name, "param."); ok {
		return s.parameters[p]
	}
	return s.facts[strings.TrimPrefix(name, "fact.")]
}

func (s *scope) values(escape func(string) string) values {
	return values{lookup: s.value, missing: s.missing, escape: escape}
}

// missing refuses a text that needs a fact which was not found. A parameter may be empty.
func (s *scope) missing(name string) error {
	if !strings.HasPrefix(name, "fact.") {
		return nil
	}
	rule, _ := s.recipe.factRule(name)
	if rule == nil {
		return fault.New(fault.Invalid, "%s is not known", name)
	}
	return fault.New(fault.Conflict, "%s is not known on this host: %s", name, rule.source(name))
}

// source says where a fact is from.
func (f *FactRule) source(name string) string {
	switch {
	case len(f.Command) > 0:
		return fmt.Sprintf("%q printed nothing that matches %s", strings.Join(f.Command, " "), f.Pattern)
	case f.Config != "":
		return "there is no setting " + strings.TrimPrefix(name, "fact."+f.Name+".") + " in " + f.Config
	case len(f.Groups) > 0:
		return "there is none of the groups " + strings.Join(f.Groups, ", ")
	case len(f.Users) > 0:
		return "there is none of the users " + strings.Join(f.Users, ", ")
	case len(f.Paths) > 0:
		return "there is none of " + strings.Join(f.Paths, ", ")
	}
	return "there is no user " + f.Home
}

// holds decides a condition.
func (s *scope) holds(text string) (bool, error) {
	c, err := parseCondition(text)
	if err != nil {
		return false, err
	}
	return c.judge(s.value) == holds, nil
}

// Resolve decides every condition of the recipe for a host and fills every variable. Paths are as the consumer sees them.
func (r *Recipe) Resolve(h Host, parameters map[string]string, facts Facts) (*Plan, error) {
	if err := r.CheckParameters(parameters); err != nil {
		return nil, err
	}
	s := &scope{recipe: r, host: h, parameters: map[string]string{}, facts: facts}
	if err := s.checkSources(); err != nil {
		return nil, fmt.Errorf("recipe %s: %w", r.Name, err)
	}
	if err := s.fillParameters(parameters); err != nil {
		return nil, fmt.Errorf("recipe %s: %w", r.Name, err)
	}
	if err := s.requirements(); err != nil {
		return nil, err
	}
	b := &builder{scope: s, causes: map[string]bool{}, plan: &Plan{Recipe: r.Name, Trust: r.Trust, AllowList: r.AllowList}}
	b.certificates()
	b.purpose()
	b.directories()
	b.files()
	if r.User != "" {
		b.plan.User, b.plan.Group, _ = strings.Cut(b.fill("user", r.User, checkUserAndGroup), ":")
	}
	b.steps()
	b.probe()
	b.notes()
	b.overlaps()
	if len(b.found) > 0 {
		kind := fault.Invalid
		if b.missing {
			kind = fault.Conflict
		}
		return nil, fault.New(kind, "recipe %s: %s", r.Name, strings.Join(b.found, "; ")).WithHint("chancery recipe explain %s", r.Name)
	}
	return b.plan, nil
}

// checkSources refuses a host that has no name, or whose names are none. Facts are judged where a text takes one: a
// configuration file has many settings that nobody asks for.
func (s *scope) checkSources() error {
	if err := cert.CheckDNSName(s.host.Name, false); err != nil {
		return fault.New(fault.Invalid, "host: %w", err)
	}
	for _, name := range s.host.DNS {
		if err := cert.CheckDNSName(name, true); err != nil {
			return fault.New(fault.Invalid, "host %s: %w", s.host.Name, err)
		}
	}
	for _, address := range s.host.IP {
		if _, err := netip.ParseAddr(address); err != nil {
			return fault.New(fault.Invalid, "host %s: %q is no address", s.host.Name, address)
		}
	}
	return printableText("authority", s.host.Authority)
}

// fillParameters takes what was given, and defaults for the rest, which are held to the type as well.
func (s *scope) fillParameters(given map[string]string) error {
	for i := range s.recipe.Parameters {
		p := &s.recipe.Parameters[i]
		if value, ok := given[p.Name]; ok {
			s.parameters[p.Name] = p.full(value)
			continue
		}
		value, err := s.values(nil).fill(p.defaultText(s.value))
		if p.Type == "address" {
			value = bracketed(value)
		}
		if err == nil && value != "" {
			err = p.check(value)
		}
		if err != nil {
			return fmt.Errorf("the default of parameter %s: %w; give the parameter", p.Name, err)
		}
		s.parameters[p.Name] = p.full(value)
	}
	return nil
}

// bracketed writes ::1:443, as it comes of a setting that is an address and one that is a port, as [::1]:443.
func bracketed(value string) string {
	i := strings.LastIndexByte(value, ':')
	if i < 0 {
		return value
	}
	if a, err := netip.ParseAddr(value[:i]); err == nil && a.Is6() {
		return net.JoinHostPort(value[:i], value[i+1:])
	}
	return value
}

func (s *scope) requirements() error {
	var found []string
	for _, q := range s.recipe.Require {
		applies, err := s.holds(q.When)
		if err != nil {
			return err
		}
		met, err := s.holds(q.That)
		if err != nil {
			return err
		}
		if !applies || met {
			continue
		}
		lenient := s.values(nil)
		lenient.missing = func(string) error { return nil }
		message, err := lenient.fill(q.Message)
		if err != nil {
			return err
		}
		found = append(found, strings.TrimSpace(message))
	}
	if len(found) > 0 {
		return fault.New(fault.Conflict, "recipe %s: %s", s.recipe.Name, strings.Join(found, "; "))
	}
	return nil
}

// vector fills an argument vector. Each variable stays within its argument, and none makes an argument an option.
func (s *scope) vector(command []string) ([]string, error) {
	filled := make([]string, len(command))
	for i, word := range command {
		value, err := s.values(nil).fill(word)
		if err != nil {
			return nil, err
		}
		if err := printableText("argument", value); err != nil {
			return nil, err
		}
		if beginsWithVariable(word) && strings.HasPrefix(value, "-") {
			return nil, fault.New(fault.Invalid, "argument %q becomes %q, which would be read as an option", word, value)
		}
		if i == 0 && value == "" {
			return nil, fault.New(fault.Invalid, "%q, which is to be run, is empty", word)
		}
		filled[i] = value
	}
	return filled, nil
}

// builder makes a plan, and collects what is wrong with it.
type builder struct {
	*scope
	plan    *Plan
	found   []string
	causes  map[string]bool
	missing bool // something is wrong with the host rather than with what was asked
}

func (b *builder) problem(what string, err error) {
	if err == nil || b.causes[err.Error()] {
		return // one cause, a group that is not there say, is named once, however many files want it
	}
	b.causes[err.Error()] = true
	b.found = append(b.found, what+": "+err.Error())
	b.missing = b.missing || fault.Is(err, fault.Conflict)
}

// fill fills a text that is then checked; it is empty where something is wrong.
func (b *builder) fill(what, text string, check func(string) error) string {
	value, err := b.scope.values(nil).fill(text)
	if err == nil {
		err = check(value)
	}
	b.problem(what, err)
	return value
}

// optional is fill for a text that may be left out.
func (b *builder) optional(what, text string, check func(string) error) string {
	if text == "" {
		return ""
	}
	return b.fill(what, text, check)
}

func (b *builder) applies(what, when string) bool {
	holds, err := b.scope.holds(when)
	b.problem(what, err)
	return holds
}

func (b *builder) certificates() {
	for i := range b.recipe.Certificates {
		c := &b.recipe.Certificates[i]
		what := "certificate " + c.id()
		if !b.applies(what, c.When) {
			continue
		}
		planned := PlannedCertificate{ID: c.id(), Usages: c.Usages, Profile: b.fill(what, c.Profile, checkProfileName)}
		if c.Subject != "" {
			subject, err := b.values(escapeDN).fill(c.Subject)
			if err == nil {
				err = checkSubject(subject)
			}
			b.problem(what, err)
			planned.Subject = subject
		}
		for _, name := range c.Names {
			planned.Names = append(planned.Names, b.each(what, name, checkName)...)
		}
		if c.Announce != "" && b.applies(what, c.AnnounceWhen) {
			planned.Announce = b.fill(what, c.Announce, checkPurpose)
		}
		if !b.key(what, c, &planned) {
			b.problem(what, fault.New(fault.Conflict, "no key rule holds on this host"))
		}
		b.plan.Certificates = append(b.plan.Certificates, planned)
	}
}

func (b *builder) key(what string, c *Certificate, planned *PlannedCertificate) bool {
	for _, rule := range c.Key {
		if !b.applies(what, rule.When) {
			continue
		}
		text := b.fill(what, rule.Algorithm, checkAlgorithm)
		if algorithm, err := keyfile.ParseAlgorithm(text); err == nil {
			text = string(algorithm)
		}
		planned.Algorithm, planned.Encoding, planned.Pinned, planned.KeyUsages = text, rule.Encoding, rule.Pinned, rule.KeyUsages
		if planned.Encoding == "" {
			planned.Encoding = "pkcs8"
		}
		return true
	}
	return false
}

// each fills a text once for every value of a list in it: dns:${host.names} makes as many names as the host has.
func (b *builder) each(what, text string, check func(string) error) []string {
	lists := map[string][]string{"host.names": b.host.DNS, "host.addresses": b.host.IP}
	for _, list := range []string{"host.names", "host.addresses"} {
		if !strings.Contains(text, "${"+list+"}") {
			continue
		}
		var all []string
		for _, value := range lists[list] {
			all = append(all, b.each(what, strings.ReplaceAll(text, "${"+list+"}", value), check)...)
		}
		return all
	}
	value := b.fill(what, text, check)
	if value == "" {
		return nil
	}
	return []string{value}
}
