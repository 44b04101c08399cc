package recipe

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	"chancery/internal/fault"
)

// general is the purpose of what is trusted where none is named.
const general = "general"

// purposeName is how a purpose is written.
var purposeName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// CheckPurpose refuses what is no name of a purpose.
func CheckPurpose(value string) error { return checkPurpose(value) }

func checkPurpose(value string) error {
	if !purposeName.MatchString(value) {
		return fault.New(fault.Invalid, "purpose %q must be 1 to 32 small letters, digits and -, a letter or digit first", value)
	}
	return nil
}

func checkPurposeOrNone(value string) error {
	if value == "" {
		return nil
	}
	return checkPurpose(value)
}

// purpose decides what the consumer's trust is for; general is written as none.
func (b *builder) purpose() {
	t := &b.plan.Trust
	if t.Purpose = b.optional("trust", t.Purpose, checkPurposeOrNone); t.Purpose == general {
		t.Purpose = ""
	}
}

func (v *validation) announce(at string, c *Certificate) {
	v.condition(at+".announce_when", c.AnnounceWhen)
	if c.Announce == "" {
		if c.AnnounceWhen != "" {
			v.add(at+".announce_when", "it is a condition of announce, which names the purpose, and there is none")
		}
		return
	}
	v.text(at+".announce", c.Announce, nil, checkPurpose)
}

// Announces are the purposes under which peers pin certificates of a placement with these parameters, which were checked
// before. What only the host decides is taken to hold.
func (r *Recipe) Announces(parameters map[string]string) []string {
	e := r.given(parameters)
	var all []string
	for i := range r.Certificates {
		c := &r.Certificates[i]
		if _, possible := e.when(c.When); !possible {
			continue
		}
		if purpose := e.announced(c); checkPurpose(purpose) == nil && !slices.Contains(all, purpose) {
			all = append(all, purpose)
		}
	}
	return all
}

// Pins is the purpose of the pinned certificates that such a placement holds; empty where it holds none.
func (r *Recipe) Pins(parameters map[string]string) string {
	e := r.given(parameters)
	for i := range r.Files {
		f := &r.Files[i]
		if !slices.Contains(f.Content, "pinned") {
			continue
		}
		if _, possible := e.when(f.When); !possible {
			continue
		}
		if purpose := e.text(r.Trust.Purpose); checkPurpose(purpose) == nil {
			return purpose
		}
		return general
	}
	return ""
}

// given explains a recipe to who has only its parameters.
func (r *Recipe) given(parameters map[string]string) *explainer {
	e := &explainer{scope: &scope{recipe: r, parameters: maps.Clone(parameters)}, decide: true, blank: map[string]bool{}}
	if e.parameters == nil {
		e.parameters = map[string]string{}
	}
	for i := range r.Parameters {
		p := &r.Parameters[i]
		if _, is := parameters[p.Name]; !is {
			e.parameters[p.Name] = e.text(e.defaultOf(p))
		}
	}
	return e
}

// announced is the purpose under which peers pin a certificate; empty where they do not.
func (e *explainer) announced(c *Certificate) string {
	if _, possible := e.when(c.AnnounceWhen); !possible || c.Announce == "" {
		return ""
	}
	return e.text(c.Announce)
}

// sayAnnounced says which certificates others pin.
func sayAnnounced(all []ExplainedLeaf) []string {
	var said []string
	for _, c := range all {
		if c.Announced != "" {
			said = append(said, fmt.Sprintf("peers pin certificate %s under %s: a new one is placed once all of them hold it", c.ID, c.Announced))
		}
	}
	return said
}
