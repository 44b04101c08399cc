package recipe

import (
	"slices"
	"strings"

	"chancery/client"
	"chancery/internal/fault"
)

// claim is what a placement does with a path, as far as its parameters tell.
type claim struct {
	placement string
	directory bool
	look      string // owner, group, mode
}

// Together refuses placements of one host that cannot stand beside each other: recipes that say so, and paths that two of
// them write, or want in two ways. Only what the parameters decide is known here; the host finds the rest when it places.
// builtin finds a recipe; one that is a file of the host is passed over.
func Together(orders []client.PlacementOrder, builtin func(name string) (*Recipe, bool)) error {
	claims := map[string]claim{}
	for _, order := range orders {
		r, ok := builtin(order.Recipe)
		if !ok {
			continue
		}
		for _, other := range orders {
			if slices.Contains(r.Conflicts, other.Recipe) {
				return fault.New(fault.Conflict, "recipe %s cannot stand beside recipe %s on one host; place one of them only", r.Name, other.Recipe)
			}
		}
		x, err := r.explain(order.Parameters, true)
		if err != nil {
			return err
		}
		for _, d := range x.Directories {
			if err := d.take(claims, claim{order.Name, true, d.Owner + ":" + d.Group + " " + d.Mode}); err != nil {
				return err
			}
		}
		for _, f := range x.Files {
			if err := f.take(claims, claim{order.Name, false, ""}); err != nil {
				return err
			}
		}
	}
	return nil
}

// take claims the path if it is certain.
func (p *ExplainedPath) take(claims map[string]claim, mine claim) error {
	if p.When != "always" || strings.Contains(p.Path+mine.look, "<") {
		return nil
	}
	other, taken := claims[p.Path]
	claims[p.Path] = mine
	switch {
	case !taken || other.placement == mine.placement:
	case other.directory != mine.directory:
		if mine.directory {
			other, mine = mine, other
		}
		return fault.New(fault.Conflict, "%s is a directory for placement %s and a file for %s; give one of them another path", p.Path,
			other.placement, mine.placement)
	case !mine.directory:
		return fault.New(fault.Conflict, "placements %s and %s both write %s; give one of them another path", other.placement, mine.placement, p.Path)
	case other.look != mine.look:
		return fault.New(fault.Conflict, "directory %s is to be %s for placement %s and %s for %s; give one of them another path", p.Path,
			other.look, other.placement, mine.look, mine.placement)
	}
	return nil
}
