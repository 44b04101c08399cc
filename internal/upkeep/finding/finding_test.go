package finding

import (
	"errors"
	"slices"
	"testing"
)

func TestOneFailureHidesNothing(t *testing.T) {
	looks := map[string]Look{
		"a": func(tell func(Finding)) error { tell(Finding{Level: OK}); return errors.New("broken") },
		"b": func(tell func(Finding)) error { tell(Finding{Level: OK, Check: "own"}); return nil },
	}
	var got []string
	for f, err := range Run(looks, "a", "b") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(f.Level)+" "+f.Check)
	}
	if want := []string{"ok a", "error a", "ok own"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTheReaderMayStop(t *testing.T) {
	looked := 0
	look := func(tell func(Finding)) error {
		looked++
		tell(Finding{Level: OK})
		tell(Finding{Level: OK})
		return nil
	}
	for range Run(map[string]Look{"a": look, "b": look}, "a", "b") {
		break
	}
	if looked != 1 {
		t.Errorf("looked %d times after the reader had stopped", looked)
	}
}
