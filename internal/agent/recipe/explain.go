package recipe

import (
	"fmt"
	"io/fs"
	"maps"
	"strings"

	"chancery/internal/fault"
)

// Explanation is a recipe in words: what it places where, when, and why.
type Explanation struct {
	Name         string               `json:"name"`
	Title        string               `json:"title,omitempty"`
	About        string               `json:"about,omitempty"`
	Parameters   []ExplainedParameter `json:"parameters,omitempty"`
	Facts        []ExplainedFact      `json:"facts,omitempty"`
	Requires     []string             `json:"requires,omitempty"`
	Keys         []ExplainedKey       `json:"keys"`
	Certificates []ExplainedLeaf      `json:"certificates"`
	Trust        []string             `json:"trust,omitempty"`
	Directories  []ExplainedPath      `json:"directories,omitempty"`
	Files        []ExplainedPath      `json:"files"`
	Reader       string               `json:"reader,omitempty"`
	Steps        []ExplainedStep      `json:"steps,omitempty"`
	Probe        string               `json:"probe"`
	AllowList    bool                 `json:"allow_list,omitempty"`
	Notes        []string             `json:"notes,omitempty"`
	Conflicts    []string             `json:"conflicts,omitempty"`
	Traps        []string             `json:"traps,omitempty"`
}

// ExplainedParameter is a parameter with what it takes, and its value where parameters were given.
type ExplainedParameter struct {
	Name    string `json:"name"`
	Accepts string `json:"accepts"`
	Default string `json:"default,omitempty"`
	Value   string `json:"value,omitempty"`
	About   string `json:"about"`
}

// ExplainedFact is what is found out on the host, and how.
type ExplainedFact struct {
	Name  string `json:"name"`
	How   string `json:"how"`
	About string `json:"about,omitempty"`
}

// ExplainedKey is a kind of key with the hosts that get it. The first that fits is taken.
type ExplainedKey struct {
	Certificate string `json:"certificate"`
	When        string `json:"when,omitempty"`
	Algorithm   string `json:"algorithm"`
	Encoding    string `json:"encoding"`
	Pinned      bool   `json:"pinned,omitempty"`
	Because     string `json:"because,omitempty"`
}

// ExplainedLeaf is a certificate.
type ExplainedLeaf struct {
	ID      string   `json:"id"`
	When    string   `json:"when,omitempty"`
	Profile string   `json:"profile"`
	Subject string   `json:"subject,omitempty"`
	Names   []string `json:"names,omitempty"`
	Usages  []string `json:"usages,omitempty"`
	// Announced is the purpose under which peers pin it.
	Announced string `json:"announced,omitempty"`
}

// ExplainedPath is a file or a directory.
type ExplainedPath struct {
	Path         string   `json:"path"`
	When         string   `json:"when,omitempty"`
	Of           string   `json:"of,omitempty"`
	Content      []string `json:"content,omitempty"`
	Format       string   `json:"format,omitempty"`
	Merge        bool     `json:"merge,omitempty"`
	PasswordFile string   `json:"password_file,omitempty"`
	Owner        string   `json:"owner"`
	Group        string   `json:"group"`
	Mode         string   `json:"mode"`
	Label        string   `json:"label,omitempty"`
}

// ExplainedStep is something that is done, with its time: check, reload (the first that fits), after.
type ExplainedStep struct {
	Stage      string `json:"stage"`
	Name       string `json:"name"`
	When       string `json:"when,omitempty"`
	Does       string `json:"does"`
	Interrupts bool   `json:"interrupts,omitempty"`
	Because    string `json:"because,omitempty"`
}

// explainer says texts and conditions in words. Parameters stand with their values, given or by default, in texts; what is
// known on a host only is named. Conditions on parameters are decided if some were given, and else said.
type explainer struct {
	*scope
	decide bool
	blank  map[string]bool // parameters without a value, for which a word in capitals stands
}

// Explain says the recipe in words, for the parameters if there are any.
func (r *Recipe) Explain(parameters map[string]string) (*Explanation, error) {
	return r.explain(parameters, len(parameters) > 0)
}

func (r *Recipe) explain(parameters map[string]string, decide bool) (*Explanation, error) {
	for name, value := range parameters {
		p := r.parameter(name)
		if p == nil {
			return nil, fault.New(fault.Invalid, "recipe %s: %s", r.Name, noParameter(r, name))
		}
		if err := p.check(value); err != nil {
			return nil, fmt.Errorf("recipe %s: %w", r.Name, err)
		}
	}
	e := &explainer{scope: &scope{recipe: r, parameters: maps.Clone(parameters)}, decide: decide,
		blank: map[string]bool{}}
	if e.parameters == nil {
		e.parameters = map[string]string{}
	}
	x := &Explanation{Name: r.Name, Title: r.Title, About: strings.TrimSpace(r.About), Traps: r.Traps, AllowList: r.AllowList,
		Conflicts: r.Conflicts}
	for i := range r.Parameters {
		p := &r.Parameters[i]
		explained := ExplainedParameter{Name: p.Name, Accepts: p.short(), Default: e.text(e.defaultOf(p)), About: p.About, Value: parameters[p.Name]}
		if p.Required {
			explained.Default = "required"
		}
		if _, given := parameters[p.Name]; !given {
			e.parameters[p.Name] = explained.Default
			if len(p.Defaults) > 0 && !e.decide {
				explained.Default = e.defaults(p)
				e.parameters[p.Name] = strings.ToUpper(p.Name)
			} else if p.Default == "" && !e.decide {
				e.parameters[p.Name], e.blank[p.Name] = strings.ToUpper(p.Name), true // as in a manual
			}
		}
		x.Parameters = append(x.Parameters, explained)
	}
	for i := range r.Facts {
		f := &r.Facts[i]
		x.Facts = append(x.Facts, ExplainedFact{Name: f.Name, How: e.how(f), About: f.About})
	}
	for _, q := range r.Require {
		if text, possible := e.when(q.When); possible {
			that, _ := e.said(q.That)
			x.Requires = append(x.Requires, prefixed(text, that))
		}
	}
	e.certificates(x)
	e.files(x)
	e.steps(x)
	x.Probe = e.probe()
	for _, n := range r.Notes {
		if text, possible := e.when(n.When); possible {
			x.Notes = append(x.Notes, prefixed(text, e.text(n.Text)))
		}
	}
	return x, nil
}

// defaultOf is the default of a parameter by what is known of the others.
func (e *explainer) defaultOf(p *Parameter) string {
	return p.defaultText(func(name string) string { value, _ := e.known(name); return value })
}

// defaults are all of a parameter's defaults in words, for a manual.
func (e *explainer) defaults(p *Parameter) string {
	var all []string
	for _, d := range p.Defaults {
		said, _ := e.said(d.When)
		all = append(all, e.text(d.Value)+" where "+said)
	}
	if p.Default != "" {
		all = append(all, "else "+e.text(p.Default))
	}
	return strings.Join(all, "; ")
}

func prefixed(when, text string) string {
	if when == "always" {
		return text
	}
	return "where " + when + ": " + text
}

// name says a variable.
func (e *explainer) name(variable string) string {
	switch variable {
	case "host.name":
		return "the host's name"
	case "host.names":
		return "each name of the host"
	case "host.addresses":
		return "each address of the host"
	case "authority":
		return "the common name of the pool's root"
	}
	if p, ok := strings.CutPrefix(variable, "param."); ok {
		return p
	}
	rule, ok := e.recipe.factRule(variable)
	switch {
	case !ok:
		return variable
	case rule.Config != "":
		return strings.TrimPrefix(variable, "fact."+rule.Name+".") + " in " + e.text(rule.Config)
	case rule.About != "":
		about, _, _ := strings.Cut(rule.About, ":")
		return about
	}
	return rule.Name
}

// when says a condition, and whether it is possible at all with the parameters given.
func (e *explainer) when(text string) (string, bool) {
	c, err := parseCondition(text)
	if err != nil {
		return text, true // it was judged when the recipe was read
	}
	if e.decide {
		var decided verdict
		if c, decided = c.simplify(e.known); decided == holdsNot {
			return "never", false
		}
	}
	return c.words(e.name), true
}

// said is a condition in words, undecided.
func (e *explainer) said(text string) (string, bool) {
	c, err := parseCondition(text)
	if err != nil {
		return text, true
	}
	return c.words(e.name), true
}

// known is the value of a parameter that does not depend on the host.
func (e *explainer) known(variable string) (string, bool) {
	name, isParam := strings.CutPrefix(variable, "param.")
	if !isParam || strings.ContainsAny(e.parameters[name], "<>") {
		return "", false
	}
	return e.parameters[name], true
}

// simplify decides what can be decided by the values that are known. What is left is returned as unknown; nil holds.
func (c *condition) simplify(known func(string) (string, bool)) (*condition, verdict) {
	if c == nil {
		return nil, holds
	}
	if c.terms == nil {
		for _, side := range []operand{c.left, c.right} {
			if _, ok := known(side.variable); side.variable != "" && !ok {
				return c, unknown
			}
		}
		decided := c.compare(func(name string) string { value, _ := known(name); return value })
		if decided == unknown { // a version that is none: it stays a condition that never holds
			return c, unknown
		}
		return nil, decided
	}
	if c.operator == "not" {
		term, decided := c.terms[0].simplify(known)
		switch decided {
		case holds:
			return nil, holdsNot
		case holdsNot:
			return nil, holds
		}
		return &condition{operator: "not", terms: []*condition{term}}, unknown
	}
	end, other := holdsNot, holds
	if c.operator == "or" {
		end, other = holds, holdsNot
	}
	var left []*condition
	for _, term := range c.terms {
		rest, decided := term.simplify(known)
		switch decided {
		case end:
			return nil, end
		case unknown:
			left = append(left, rest)
		}
	}
	switch len(left) {
	case 0:
		return nil, other
	case 1:
		return left[0], unknown
	}
	return &condition{operator: c.operator, terms: left}, unknown
}

// text fills a text with what is known, and names the rest in angle brackets.
func (e *explainer) text(text string) string {
	pieces, err := parseText(text)
	if err != nil {
		return text
	}
	return strings.TrimSpace(e.pieces(pieces))
}

func (e *explainer) pieces(pieces []piece) string {
	var b strings.Builder
	for _, p := range pieces {
		name, isParam := strings.CutPrefix(p.variable, "param.")
		switch {
		case b.Len() > maxText: // defaults of defaults could grow without end; nothing so long is ever placed
			return b.String()[:maxText] + " …"
		case p.variable == "":
			b.WriteString(p.literal)
		case isParam && e.blank[name] && len(p.fallback) > 0:
			b.WriteString("<" + e.parameters[name] + ", else " + strings.Trim(e.pieces(p.fallback), "<>") + ">")
		case isParam && (e.parameters[name] != "" || !p.optional):
			b.WriteString(e.parameters[name])
		case isParam:
			b.WriteString(e.pieces(p.fallback))
		case p.optional && len(p.fallback) > 0:
			b.WriteString("<" + e.name(p.variable) + ", else " + strings.Trim(e.pieces(p.fallback), "<>") + ">")
		default:
			b.WriteString("<" + e.name(p.variable) + ">")
		}
	}
	return b.String()
}

func (e *explainer) how(f *FactRule) string {
	join := func(texts []string) string {
		var all []string
		for _, text := range texts {
			all = append(all, e.text(text))
		}
		return strings.Join(all, ", ")
	}
	switch {
	case len(f.Command) > 0:
		return "what " + strings.ReplaceAll(join(f.Command), ",", "") + " prints"
	case f.Config != "":
		return "the settings in " + e.text(f.Config)
	case len(f.Groups) > 0:
		return "the first group that is there of " + join(f.Groups)
	case len(f.Users) > 0:
		return "the first user who is there of " + join(f.Users)
	case len(f.Paths) > 0:
		return "the first that is there of " + join(f.Paths)
	}
	return "the home directory of " + e.text(f.Home)
}

func (e *explainer) certificates(x *Explanation) {
	for i := range e.recipe.Certificates {
		c := &e.recipe.Certificates[i]
		when, possible := e.when(c.When)
		if !possible {
			continue
		}
		leaf := ExplainedLeaf{ID: c.id(), When: when, Profile: e.text(c.Profile), Subject: e.text(c.Subject), Usages: c.Usages}
		for _, name := range c.Names {
			leaf.Names = append(leaf.Names, e.text(name))
		}
		leaf.Announced = e.announced(c)
		x.Certificates = append(x.Certificates, leaf)
		for _, rule := range c.Key {
			when, possible := e.when(rule.When)
			if !possible {
				continue
			}
			x.Keys = append(x.Keys, ExplainedKey{Certificate: c.id(), When: when, Algorithm: e.text(rule.Algorithm),
				Encoding: sayEncoding(rule.Encoding), Pinned: rule.Pinned, Because: rule.Because})
			if when == "always" {
				break
			}
		}
	}
	x.Trust = e.recipe.Trust.says(e.text(e.recipe.Trust.Purpose))
	x.Trust = append(x.Trust, sayAnnounced(x.Certificates)...)
}

func (e *explainer) files(x *Explanation) {
	look := func(p *ExplainedPath, owner, group, label string, mode fs.FileMode) {
		p.Owner, p.Group, p.Label, p.Mode = e.text(owner), e.text(group), e.text(label), fmt.Sprintf("%04o", mode.Perm())
		if p.Owner == "" {
			p.Owner = "root"
		}
		if p.Group == "" && p.Owner == "root" {
			p.Group = "root"
		}
	}
	for _, d := range e.recipe.Directories {
		if when, possible := e.when(d.When); possible {
			mode, _ := parseMode(d.Mode, 0o755, 0o755) // judged when the recipe was read
			p := ExplainedPath{Path: e.text(d.Path), When: when}
			look(&p, d.Owner, d.Group, d.Label, mode)
			x.Directories = append(x.Directories, p)
		}
	}
	for i := range e.recipe.Files {
		f := &e.recipe.Files[i]
		if when, possible := e.when(f.When); possible {
			mode, _ := f.mode()
			p := ExplainedPath{Path: e.text(f.Path), When: when, Content: f.Content, Format: f.format(), Merge: f.Merge, PasswordFile: e.text(f.PasswordFile)}
			if len(x.Certificates) > 1 && ofCertificate(f.Content) {
				p.Of = e.recipe.of(f)
			}
			look(&p, f.Owner, f.Group, f.Label, mode)
			x.Files = append(x.Files, p)
		}
	}
	if e.recipe.User != "" {
		x.Reader = e.text(e.recipe.User)
	}
}

func (e *explainer) steps(x *Explanation) {
	for _, stage := range []struct {
		name  string
		steps []Step
	}{{"check", e.recipe.Checks}, {"reload", e.recipe.Reload}, {"after", e.recipe.After}} {
		for i := range stage.steps {
			s := &stage.steps[i]
			when, possible := e.when(s.When)
			if !possible {
				continue
			}
			x.Steps = append(x.Steps, ExplainedStep{Stage: stage.name, Name: s.Name, When: when, Does: s.does(e.text), Interrupts: s.Interrupts,
				Because: s.Because})
			if stage.name == "reload" && when == "always" {
				break
			}
		}
	}
}
