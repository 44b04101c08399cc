package recipe

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// validation collects every rule that a recipe breaks.
type validation struct {
	recipe *Recipe
	lines  func() map[string]int // read where something is found: most recipes are right
	found  []finding
}

func (v *validation) all() {
	r := v.recipe
	v.header()
	v.parameters()
	v.facts()
	for i, q := range r.Require {
		at := fmt.Sprintf("require[%d]", i)
		v.condition(at+".when", q.When)
		if strings.TrimSpace(q.That) == "" {
			v.add(at, "that is missing: the condition that must hold")
		}
		v.condition(at+".that", q.That)
		v.words(at+".message", q.Message)
	}
	for i, n := range r.Notes {
		at := fmt.Sprintf("notes[%d]", i)
		v.condition(at+".when", n.When)
		v.words(at+".text", n.Text)
	}
	v.certificates()
	v.directories()
	v.files()
	v.trust()
	if r.User != "" {
		v.text("user", r.User, nil, checkUserAndGroup)
	}
	v.steps()
	v.probe()
	v.reads()
	for i, name := range r.Conflicts {
		if at := fmt.Sprintf("conflicts[%d]", i); !plainName.MatchString(name) || name == r.Name {
			v.add(at, "%q is not the name of another recipe", name)
		}
	}
}

func (v *validation) header() {
	r := v.recipe
	if !plainName.MatchString(r.Name) || strings.ToLower(r.Name) != r.Name || len(r.Name) > 48 {
		v.add("name", "%q must be 1 to 48 small letters, digits and ._-, a letter or digit first", r.Name)
	}
	if r.Title == "" || len(r.Title) > 120 || strings.ContainsAny(r.Title, "\n\r") {
		v.add("title", "one line of 1 to 120 octets is wanted, for lists")
	}
	for field, n := range map[string]int{"parameters": len(r.Parameters), "facts": len(r.Facts), "require": len(r.Require),
		"certificates": len(r.Certificates), "directories": len(r.Directories), "files": len(r.Files), "checks": len(r.Checks),
		"reload": len(r.Reload), "after": len(r.After), "traps": len(r.Traps), "notes": len(r.Notes), "conflicts": len(r.Conflicts)} {
		if n > maxAll {
			v.add(field, "%d entries: %d at most", n, maxAll)
		}
	}
}

// words judges a sentence that may hold variables.
func (v *validation) words(path, text string) {
	if strings.TrimSpace(text) == "" {
		v.add(path, "a sentence is wanted that tells the operator what to do")
		return
	}
	v.text(path, text, nil, func(string) error { return nil })
}

func (v *validation) parameters() {
	seen := map[string]bool{}
	for i := range v.recipe.Parameters {
		p := &v.recipe.Parameters[i]
		at := fmt.Sprintf("parameters[%d]", i)
		if !identifier.MatchString(p.Name) {
			v.add(at+".name", "%q must be 1 to 32 small letters, digits and _, a letter first", p.Name)
		}
		if seen[p.Name] {
			v.add(at+".name", "%q is there twice", p.Name)
		}
		seen[p.Name] = true
		if p.accepts() == "" {
			v.add(at+".type", "%q is no type; there are %s", p.Type, typeNames())
			continue
		}
		if (p.Type == "choice") != (len(p.Choices) > 0) {
			v.add(at, "choices belong to the type choice, and that type needs them")
			continue
		}
		for j, choice := range p.Choices {
			if !plainName.MatchString(choice) || slices.Index(p.Choices, choice) != j {
				v.add(at+".choices", "%q is there twice, or is not letters, digits and ._-", choice)
			}
		}
		v.defaults(i, at)
	}
}

// defaults judges what a parameter is where it is not given.
func (v *validation) defaults(i int, at string) {
	p := &v.recipe.Parameters[i]
	if p.Required && (p.Default != "" || len(p.Defaults) > 0) {
		v.add(at+".default", "a parameter that is required has no default")
	}
	if len(p.Defaults) > maxAll {
		v.add(at+".defaults", "%d entries: %d at most", len(p.Defaults), maxAll)
		return
	}
	static := v.recipe.staticParameters()
	for j, d := range p.Defaults {
		where := fmt.Sprintf("%s.defaults[%d]", at, j)
		if strings.TrimSpace(d.When) == "" || d.Value == "" {
			v.add(where, "when and value are wanted; what holds everywhere is the default")
		}
		v.condition(where+".when", d.When)
		c, _ := parseCondition(d.When)
		c.comparisons(func(c *condition) {
			for _, side := range []operand{c.left, c.right} {
				name, isParam := strings.CutPrefix(side.variable, "param.")
				earlier := slices.ContainsFunc(v.recipe.Parameters[:i], func(other Parameter) bool { return other.Name == name })
				if side.variable != "" && (!isParam || !earlier || !static[name]) {
					v.add(where+".when", "%s: only earlier parameters whose defaults use no facts can decide a default", side.variable)
				}
			}
		})
		v.defaultText(where+".value", i, d.Value)
	}
	v.defaultText(at+".default", i, p.Default)
}

func (v *validation) defaultText(at string, i int, text string) {
	if text == "" {
		return
	}
	later := v.recipe.Parameters[i:]
	pieces, _ := parseText(text) // an error is found below
	eachVariable(pieces, func(used piece) {
		if slices.ContainsFunc(later, func(other Parameter) bool { return "param."+other.Name == used.variable }) {
			v.add(at, "%s stands later, or is the parameter itself; a default may use earlier parameters and facts", used.variable)
		}
	})
	v.text(at, text, nil, v.recipe.Parameters[i].check)
}

// staticParameters are those whose values are known before any fact is: their defaults use earlier ones that are, and
// nothing else.
func (r *Recipe) staticParameters() map[string]bool {
	static := map[string]bool{}
	for _, p := range r.Parameters {
		good := true
		for _, text := range p.defaultTexts() {
			pieces, _ := parseText(text)
			eachVariable(pieces, func(used piece) {
				name, isParam := strings.CutPrefix(used.variable, "param.")
				good = good && isParam && static[name]
			})
		}
		static[p.Name] = good
	}
	return static
}

var syntaxes = []string{"libvirt", "postgresql", "nginx", "systemd"}

func (v *validation) facts() {
	seen := map[string]bool{}
	for i := range v.recipe.Facts {
		f := &v.recipe.Facts[i]
		at := fmt.Sprintf("facts[%d]", i)
		if !identifier.MatchString(f.Name) {
			v.add(at+".name", "%q must be 1 to 32 small letters, digits and _, a letter first", f.Name)
		}
		if seen[f.Name] {
			v.add(at+".name", "%q is there twice", f.Name)
		}
		seen[f.Name] = true
		kinds := 0
		for _, set := range []bool{len(f.Command) > 0, f.Config != "", len(f.Groups) > 0, len(f.Users) > 0, len(f.Paths) > 0, f.Home != ""} {
			if set {
				kinds++
			}
		}
		if kinds != 1 {
			v.add(at, "exactly one of command, config, groups, users, paths and home is wanted; %d are there", kinds)
		}
		v.pattern(at, f)
		if (f.Config != "") != (f.Syntax != "") || (f.Syntax != "" && !slices.Contains(syntaxes, f.Syntax)) {
			v.add(at+".syntax", "%q: config needs one of %s, and nothing else does", f.Syntax, strings.Join(syntaxes, ", "))
		}
		v.factTexts(at, f)
	}
}

func (v *validation) pattern(at string, f *FactRule) {
	if (len(f.Command) > 0) != (f.Pattern != "") {
		v.add(at+".pattern", "a command needs a pattern whose first group is the fact, and nothing else has one")
		return
	}
	if f.Pattern == "" {
		return
	}
	compiled, err := regexp.Compile(f.Pattern)
	switch {
	case len(f.Pattern) > 500:
		v.add(at+".pattern", "%d octets: 500 at most", len(f.Pattern))
	case err != nil:
		v.add(at+".pattern", "%s", err)
	case compiled.NumSubexp() == 0:
		v.add(at+".pattern", "%q has no group, such as ([0-9.]+), whose text is the fact", f.Pattern)
	}
}

// factTexts judges what a fact is asked with: only parameters that need no fact themselves may stand in it.
func (v *validation) factTexts(at string, f *FactRule) {
	static := v.recipe.staticParameters()
	judge := func(at, text string, check func(string) error) {
		pieces, _ := parseText(text)
		eachVariable(pieces, func(used piece) {
			parameter, ok := strings.CutPrefix(used.variable, "param.")
			if !ok || (v.recipe.known(used.variable) == nil && !static[parameter]) {
				v.add(at, "%s is known only when facts are; what asks for a fact may use parameters whose defaults use none", used.variable)
			}
		})
		v.text(at, text, nil, check)
	}
	for i, word := range f.Command {
		judge(fmt.Sprintf("%s.command[%d]", at, i), word, func(string) error { return nil })
	}
	v.vector(at+".command", f.Command)
	if f.Config != "" {
		judge(at+".config", f.Config, func(value string) error { return checkPath("file", value) })
	}
	for i, path := range f.Paths {
		judge(fmt.Sprintf("%s.paths[%d]", at, i), path, func(value string) error { return checkPath("candidate", value) })
	}
	for field, names := range map[string][]string{"groups": f.Groups, "users": f.Users, "home": {f.Home}} {
		for i, name := range names {
			if name != "" || field != "home" {
				judge(fmt.Sprintf("%s.%s[%d]", at, field, i), name, checkAccount)
			}
		}
	}
}

// condition judges a condition: it can be read, its variables exist, and what it compares can be equal at all.
func (v *validation) condition(path, text string) {
	c, err := parseCondition(text)
	if err != nil {
		v.problem(path, err)
		return
	}
	c.comparisons(func(c *condition) {
		for _, side := range []operand{c.left, c.right} {
			switch {
			case side.variable == "":
			case side.variable == "host.names" || side.variable == "host.addresses":
				v.add(path, "%s is a list, and cannot be compared", side.variable)
			default:
				v.problem(path, v.recipe.known(side.variable))
			}
		}
		if c.left.variable == "" && c.right.variable == "" {
			v.add(path, "%q is compared with %q: one side must be a variable, param.NAME or fact.NAME", c.left.text, c.right.text)
		}
		v.comparison(path, c, c.left, c.right)
		v.comparison(path, c, c.right, c.left)
	})
}

// comparison judges a variable against a literal.
func (v *validation) comparison(path string, c *condition, variable, literal operand) {
	p := v.recipe.parameter(strings.TrimPrefix(variable.variable, "param."))
	isParam := strings.HasPrefix(variable.variable, "param.") && p != nil
	if c.bare && variable.variable != "" && (!isParam || p.Type != "bool") {
		v.add(path, "%s stands alone, and only a parameter of type bool can; compare it with something", variable.variable)
		return
	}
	if variable.variable == "" || literal.variable != "" {
		return
	}
	ordered := c.operator != "==" && c.operator != "!="
	switch {
	case ordered && !wholeVersion().MatchString(literal.text):
		v.add(path, "%s %s %q: only versions such as 11.6.0 have an order", variable.variable, c.operator, literal.text)
	case ordered && isParam && p.Type != "port":
		v.add(path, "%s is a %s, and has no order", variable.variable, p.Type)
	case !ordered && isParam && literal.text != "":
		if err := p.check(literal.text); err != nil {
			v.add(path, "%s is never %q: it takes %s", variable.variable, literal.text, p.accepts())
		}
	}
}

func (v *validation) trust() {
	t := v.recipe.Trust
	has := func(content ...string) bool {
		return slices.ContainsFunc(v.recipe.Files, func(f File) bool {
			return slices.ContainsFunc(f.Content, func(c string) bool { return slices.Contains(content, c) })
		})
	}
	if t.CRLs && !has("crls") {
		v.add("trust.crls", "CRLs are wanted and no file holds them: give one the content crls")
	}
	if t.Intermediates && !has("anchors") {
		v.add("trust.intermediates", "no file holds the anchors, which the intermediates are put with")
	}
	if t.Purpose != "" {
		v.text("trust.purpose", t.Purpose, nil, checkPurposeOrNone)
	}
	if t.Purpose != "" && !has("anchors", "pinned", "crls") {
		v.add("trust.purpose", "no file holds anything of what is trusted for it")
	}
	if t.MaxCertificates < 0 || t.MaxBytes < 0 {
		v.add("trust", "max_certificates and max_bytes are 0, which is no limit, or more")
	}
}

// maxProbes bounds how many probes stand for each other.
const maxProbes = 8

func (v *validation) probe() {
	at, n := "probe", 0
	for p := v.recipe.Probe; p != nil; p = p.Else {
		if n++; n > maxProbes {
			v.add(at, "more than %d probes", maxProbes)
			return
		}
		v.oneProbe(at, p)
		if at += ".else"; p.Else != nil && p.When == "" {
			v.add(at, "it is never reached, since the probe before it has no condition")
		}
	}
}

func (v *validation) oneProbe(at string, p *Probe) {
	v.condition(at+".when", p.When)
	kinds := 0
	for _, set := range []bool{p.Address != "", len(p.Command) > 0, p.Holds != "", p.Action != ""} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		v.add(at, "exactly one of address, command, holds and action is wanted; %d are there", kinds)
	}
	v.actionWith("probe", at, p.Action, p.With)
	if p.Address != "" && len(v.recipe.Certificates) == 0 {
		v.add(at+".address", "there is no certificate that could be seen there: this recipe is of trust alone")
	}
	if p.Holds != "" {
		v.text(at+".holds", p.Holds, nil, func(value string) error { return checkPath("file", value) })
	}
	if p.Address != "" {
		v.text(at+".address", p.Address, nil, checkAddress)
	}
	v.text(at+".starttls", p.StartTLS, nil, checkStartTLS)
	for i, name := range p.Names {
		v.each(fmt.Sprintf("%s.names[%d]", at, i), name, checkHost)
	}
	if p.ClientCertificate != "" && v.certificate(p.ClientCertificate) == nil {
		v.add(at+".client_certificate", "there is no certificate %q; there are %s", p.ClientCertificate, v.recipe.certificateIDs())
	}
	for i, word := range p.Command {
		v.text(fmt.Sprintf("%s.command[%d]", at, i), word, nil, func(string) error { return nil })
	}
	v.vector(at+".command", p.Command)
	v.user(at+".user", p.User, len(p.Command) > 0)
	v.timeout(at+".timeout", p.Timeout)
	if p.Accepts != "" && !slices.Contains(accepts, p.Accepts) {
		v.add(at+".accepts", "%q is not one of %s", p.Accepts, strings.Join(accepts, ", "))
	}
	if p.Address == "" && (p.StartTLS != "" || p.Accepts != "" || len(p.Names) > 0 || p.CommonName || p.ClientCertificate != "" || p.AcceptRefusal) {
		v.add(at, "starttls, accepts, names, common_name, client_certificate and accept_refusal belong to an address")
	}
}

// accepts are the ways in which a consumer shows that it takes a client's certificate.
var accepts = []string{"http", "libvirt", "postgres", "tls"}

// startTLS are the protocols in which a connection becomes TLS.
var startTLS = []string{"postgres", "smtp", "imap", "pop3", "ldap", "xmpp", "vnc", "nbd"}

func checkStartTLS(value string) error {
	if value == "" || value == "none" || slices.Contains(startTLS, value) {
		return nil
	}
	return fault.New(fault.Invalid, "starttls %q is not one of none, %s", value, strings.Join(startTLS, ", "))
}

func (v *validation) timeout(path string, d Duration) {
	if d < 0 || time.Duration(d) > maxTimeout {
		v.add(path, "%s: at most %s", d, Duration(maxTimeout))
	}
}

// user judges who runs a command.
func (v *validation) user(path, user string, hasCommand bool) {
	if user == "" {
		return
	}
	if !hasCommand {
		v.add(path, "a user runs a command, and there is none")
	}
	v.text(path, user, nil, checkUserAndGroup)
}

func (v *validation) certificate(id string) *Certificate {
	for i := range v.recipe.Certificates {
		if c := &v.recipe.Certificates[i]; c.id() == id {
			return c
		}
	}
	return nil
}

func (c *Certificate) id() string {
	if c.ID == "" {
		return "main"
	}
	return c.ID
}

func (r *Recipe) certificateIDs() string {
	var ids []string
	for i := range r.Certificates {
		ids = append(ids, r.Certificates[i].id())
	}
	return strings.Join(ids, ", ")
}

// checkSubject refuses what is no distinguished name.
func checkSubject(value string) error {
	_, err := cert.ParseName(value)
	return err
}

// checkName refuses what is no name of a subjectAltName: dns:NAME, ip:ADDRESS.
func checkName(value string) error {
	kind, _, _ := strings.Cut(value, ":")
	if !slices.Contains([]string{"dns", "ip", "email", "uri"}, kind) {
		return fault.New(fault.Invalid, "name %q does not say its kind: write dns:NAME, ip:ADDRESS, email:MAILBOX or uri:URI", value)
	}
	name, err := cert.ParseGeneralName(value)
	if err == nil {
		err = cert.CheckGeneralName(name)
	}
	return err
}
