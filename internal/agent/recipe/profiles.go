package recipe

import (
	"slices"
	"strings"
)

// Profiles are the authority's profiles that certificates of the recipe may be of under these parameters, which were checked
// before. What only the host decides is taken to hold, since it may.
func (r *Recipe) Profiles(parameters map[string]string) []string {
	e := r.given(parameters)
	var all []string
	for i := range r.Certificates {
		c := &r.Certificates[i]
		if _, possible := e.when(c.When); !possible {
			continue
		}
		name := e.text(c.Profile)
		if checkProfileName(name) != nil || strings.ContainsAny(name, "<>") || slices.Contains(all, name) {
			continue // the host alone knows it, and a profile is not the host's to choose
		}
		all = append(all, name)
	}
	return all
}
