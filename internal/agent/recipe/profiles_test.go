package recipe

import (
	"slices"
	"testing"
)

func TestProfilesOfARecipe(t *testing.T) {
	for _, c := range []struct {
		recipe     string
		parameters map[string]string
		want       []string
	}{
		{"nginx", nil, []string{"server"}},
		{"libvirt-client", nil, []string{"libvirt-client"}},
		{"libvirt-server", nil, []string{"libvirt-server"}},
		{"plain", nil, []string{"server"}},
		{"plain", map[string]string{"profile": "peer"}, []string{"peer"}},
	} {
		r, ok := Builtin(c.recipe)
		if !ok {
			t.Fatalf("there is no recipe %s", c.recipe)
		}
		if got := r.Profiles(c.parameters); !slices.Equal(got, c.want) {
			t.Errorf("%s with %v is of %q, want %q", c.recipe, c.parameters, got, c.want)
		}
	}
	for _, r := range Builtins() {
		parameters := map[string]string{}
		for _, p := range r.Parameters {
			if p.Required {
				parameters[p.Name] = r.samples("param." + p.Name)[0]
			}
		}
		if len(r.Profiles(parameters)) == 0 && len(r.Certificates) > 0 {
			t.Errorf("recipe %s names no profile, and a host with it would get nothing", r.Name)
		}
	}
}
