package cert

import (
	"fmt"
	"slices"
	"strings"
)

// grantNames decides subject and subjectAltName. Each name that the caller may not have is refused by itself.
func (p *Profile) grantNames(t *Template, req Request, refused *refusals) {
	names, subject := req.Names, req.Subject
	if req.CSR != nil {
		if names == nil {
			names = req.CSR.SAN
		}
		if subject == nil {
			subject = req.CSR.Subject
		}
	}
	if limit := orDefault(p.Names.Max, defaultCSRNames); len(names) > limit {
		refused.add("subjectAltName", "%d names are asked for: %d at most", len(names), limit)
		return
	}
	for _, g := range names {
		if g.Kind == DNS {
			g.Value = strings.ToLower(g.Value)
		}
		if err := CheckGeneralName(g); err != nil {
			refused.err("subjectAltName", err)
			continue
		}
		if !p.allows(req.Caller, g) {
			refused.deny("subjectAltName", "%s is not among the names that %s; %s", g, callerMayHave(req.Caller), p.wouldPass(req.Caller, g))
			continue
		}
		t.addName(g)
	}
	p.grantSubject(t, req.Caller, subject, refused)
	if p.Names.Required && len(t.SAN) == 0 && len(refused.problems) == 0 {
		refused.add("subjectAltName", "a DNS name or an address is needed, such as dns:host1.example.com")
	}
	if len(t.Subject) == 0 && len(t.SAN) == 0 && len(refused.problems) == 0 {
		refused.add("subject", "neither a subject nor a subjectAltName is asked for")
	}
}

func callerMayHave(c Caller) string {
	if c.Name == "" {
		return "an unnamed caller may have"
	}
	if len(c.Roles) == 0 {
		return c.Name + " (without a role) may have"
	}
	return c.Name + " (" + strings.Join(c.Roles, ", ") + ") may have"
}

func (t *Template) addName(g GeneralName) {
	if !slices.ContainsFunc(t.SAN, g.same) {
		t.SAN = append(t.SAN, g)
	}
}

func (g GeneralName) same(other GeneralName) bool {
	return g.Kind == other.Kind && g.Value == other.Value && string(g.DER) == string(other.DER) &&
		g.OtherName.Equal(other.OtherName)
}

func (p *Profile) grantSubject(t *Template, caller Caller, asked Name, refused *refusals) {
	fixed, err := ParseName(p.Names.Fixed)
	refused.err("subject", err)
	t.Subject = slices.Clone(fixed)
	var commonNames []string
	for _, rdn := range asked {
		var granted RDN
		for _, a := range rdn {
			switch {
			case a.Type.Equal(OIDCommonName) && p.Names.CommonName != "subject":
				commonNames = append(commonNames, a.Value)
			case fixed.has(a):
			case p.allowsAttribute(caller, a):
				granted = append(granted, Attribute{Type: a.Type, Value: a.Value})
			default:
				refused.deny("subject", "%s is not among the attributes that %s", a, callerMayHave(caller))
			}
		}
		if len(granted) > 0 {
			t.Subject = append(t.Subject, granted)
		}
	}
	if p.Names.CommonName != "subject" {
		p.grantCommonName(t, caller, commonNames, refused)
	}
}

func (n Name) has(a Attribute) bool {
	return slices.ContainsFunc(n, func(rdn RDN) bool { return slices.ContainsFunc(rdn, a.equal) })
}

func (p *Profile) grantCommonName(t *Template, caller Caller, asked []string, refused *refusals) {
	if len(asked) > 1 {
		refused.add("subject", "%d common names are asked for: one at most", len(asked))
		return
	}
	cn := strings.Join(asked, "")
	switch p.Names.CommonName {
	case "none":
		if cn != "" {
			refused.deny("subject", "common name %q is asked for; the profile gives none", cn)
		}
		return
	case "caller":
		switch {
		case cn == "" || cn == caller.Name:
			cn = caller.Name
		case !p.allowsAttribute(caller, Attribute{Type: OIDCommonName, Value: cn}):
			refused.deny("subject", "common name %q is asked for; a caller gets its own, %q", cn, caller.Name)
			return
		}
	default:
		cn = p.commonNameOfNames(t, caller, cn, refused)
	}
	if cn != "" {
		t.Subject = append(t.Subject, RDN{{Type: OIDCommonName, Value: cn}})
	}
}

// commonNameOfNames makes the common name one of the names: consumers that fall back to it must find nothing there that
// the caller may not have.
func (p *Profile) commonNameOfNames(t *Template, caller Caller, asked string, refused *refusals) string {
	if asked == "" {
		for _, g := range t.SAN {
			if g.Kind == DNS && len(g.Value) <= 64 {
				return g.Value
			}
		}
		return ""
	}
	g := addressOrName(asked)
	if err := CheckGeneralName(g); err != nil {
		refused.add("subject", "common name: %s; in this profile it must be a DNS name or an address", err)
		return ""
	}
	if !p.allows(caller, g) {
		refused.deny("subject", "common name %q is not among the names that %s; %s", asked, callerMayHave(caller), p.wouldPass(caller, g))
		return ""
	}
	t.addName(g)
	return g.Value
}

// applies reports whether the rule is for the caller.
func (r *NameRule) applies(caller Caller) bool {
	if len(r.Roles) == 0 && len(r.Callers) == 0 {
		return true
	}
	return slices.Contains(r.Callers, caller.Name) ||
		slices.ContainsFunc(r.Roles, func(role string) bool { return slices.Contains(caller.Roles, role) })
}

// value returns the values of a variable for the caller.
func (c Caller) value(variable string) []string {
	if variable == "caller.name" {
		return []string{c.Name}
	}
	return c.Entitlements[variable]
}

// anyPattern reports whether one of the patterns, with the caller's values in place of variables, matches.
func anyPattern(patterns []string, caller Caller, match func(pattern string) bool) bool {
	for _, pattern := range patterns {
		expanded, err := substitute(pattern, caller.value)
		if err == nil && slices.ContainsFunc(expanded, match) {
			return true
		}
	}
	return false
}

// allows reports whether some rule allows the name to the caller.
func (p *Profile) allows(caller Caller, g GeneralName) bool {
	for i := range p.Names.Rules {
		if rule := &p.Names.Rules[i]; rule.applies(caller) && rule.allows(caller, g) {
			return true
		}
	}
	return false
}

// wouldPass tells which names of the kind of g the caller may have.
func (p *Profile) wouldPass(caller Caller, g GeneralName) string {
	var found []string
	for i := range p.Names.Rules {
		rule := &p.Names.Rules[i]
		if !rule.applies(caller) {
			continue
		}
		for _, pattern := range rule.patterns(g) {
			if expanded, err := substitute(pattern, caller.value); err == nil {
				found = append(found, expanded...)
			}
		}
	}
	slices.Sort(found)
	found = slices.Compact(found)
	const most = 8
	switch {
	case len(found) == 0:
		return "no name of this kind would pass"
	case len(found) > most:
		found = append(found[:most], fmt.Sprintf("and %d more", len(found)-most))
	}
	return "what matches " + strings.Join(found, ", ") + " would pass"
}

// patterns are those that a name of the kind of g is held against.
func (r *NameRule) patterns(g GeneralName) []string {
	switch g.Kind {
	case DNS:
		if !strings.HasPrefix(g.Value, "*.") {
			return r.DNS
		}
		var all []string
		for _, base := range r.Wildcard {
			all = append(all, "*."+base)
		}
		return all
	case IPAddress:
		return r.IP
	case Email:
		return r.Email
	case URI:
		return r.URI
	case DirectoryName:
		return r.DirName
	case OtherName:
		return r.OtherName
	case RegisteredID:
		return r.RegisteredID
	}
	return nil
}

func (r *NameRule) allows(caller Caller, g GeneralName) bool {
	switch g.Kind {
	case DNS:
		if base, ok := strings.CutPrefix(g.Value, "*."); ok {
			return anyPattern(r.Wildcard, caller, func(pattern string) bool { return matchDNS(pattern, base) })
		}
		return anyPattern(r.DNS, caller, func(pattern string) bool { return matchDNS(pattern, g.Value) })
	case IPAddress:
		return anyPattern(r.IP, caller, func(pattern string) bool { return matchIP(pattern, g.Value) })
	case Email:
		return anyPattern(r.Email, caller, func(pattern string) bool { return matchMailbox(pattern, g.Value) })
	case URI:
		return anyPattern(r.URI, caller, func(pattern string) bool { return matchURI(pattern, g.Value) })
	case DirectoryName:
		name, err := ParseNameDER(g.DER)
		return err == nil && anyPattern(r.DirName, caller, func(pattern string) bool {
			base, err := ParseName(pattern)
			return err == nil && name.HasPrefix(base)
		})
	case OtherName:
		return slices.Contains(r.OtherName, g.OtherName.String())
	case RegisteredID:
		return slices.Contains(r.RegisteredID, g.Value)
	}
	return false
}

func (p *Profile) allowsAttribute(caller Caller, a Attribute) bool {
	for i := range p.Names.Rules {
		rule := &p.Names.Rules[i]
		if !rule.applies(caller) {
			continue
		}
		for name, patterns := range rule.Subject {
			oid, err := ParseAttributeType(name)
			if err == nil && oid.Equal(a.Type) && isText(a) &&
				anyPattern(patterns, caller, func(pattern string) bool { return glob(pattern, a.Value, "") }) {
				return true
			}
		}
	}
	return false
}

func isText(a Attribute) bool { return a.Tag == 0 || isStringTag(a.Tag) }
