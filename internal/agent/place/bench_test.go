package place

import (
	"fmt"
	"testing"
)

// BenchmarkNoChange is a pass over a placement of eight files that finds all as it should be, on a disk.
func BenchmarkNoChange(b *testing.B) {
	dir := b.TempDir()
	s := scene{root: dir, state: dir + "/state"}
	p := s.placer(b)
	set := Set{Name: "web"}
	for i := range 8 {
		set.Files = append(set.Files, File{Path: fmt.Sprintf("/srv/web/%d.pem", i), Data: make([]byte, 4096), Mode: 0o600})
	}
	if _, err := p.Place(b.Context(), set, nil, nil); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if words, err := p.Difference(set); err != nil || len(words) > 0 {
			b.Fatal(words, err)
		}
		if out, err := p.Place(b.Context(), set, &set, nil); err != nil || len(out.Changed) > 0 {
			b.Fatal(out, err)
		}
	}
}
