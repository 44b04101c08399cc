package loop

import (
	"crypto/x509"
	"fmt"

	"chancery/client"
	"chancery/internal/agent/recipe"
)

// Placed is a placement as it lies on the host: what was planned, and which certificates are to be in its files.
type Placed struct {
	Name     string
	Recipe   string
	Gone     bool
	Plan     *recipe.Plan // as it was placed
	Leaves   map[string]*x509.Certificate
	Observed client.Observation
}

// LookPlaced reads what was placed from a state directory: nothing is locked, written or reached, and no key is handed out.
// Placements of which nothing was placed yet are left out.
func LookPlaced(dir string) ([]Placed, error) {
	s, err := lookState(dir)
	if err != nil {
		return nil, err
	}
	names, err := s.folders()
	if err != nil {
		return nil, err
	}
	var all []Placed
	for _, name := range names {
		f, err := s.folder(name)
		if err != nil {
			return nil, err
		}
		r, err := f.record()
		if err != nil {
			return nil, err
		}
		if r.Plan == nil {
			continue
		}
		p := Placed{Name: name, Recipe: r.Recipe, Gone: r.Gone, Plan: r.Plan, Observed: r.Observed, Leaves: map[string]*x509.Certificate{}}
		for _, c := range r.Plan.Certificates {
			h, err := f.held(c.ID, suffixHeld)
			if err != nil {
				return nil, fmt.Errorf("certificate %s of placement %s: %w", c.ID, name, err)
			}
			if h != nil {
				p.Leaves[c.ID] = h.leaf()
			}
		}
		all = append(all, p)
	}
	return all, nil
}
