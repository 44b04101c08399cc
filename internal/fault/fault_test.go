package fault

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
)

func TestKindSurvivesWrapping(t *testing.T) {
	err := fmt.Errorf("issue: %w", New(Denied, "name %q is not allowed", "x").WithHint("ask %s", "an officer").At("/names/0"))
	if KindOf(err) != Denied || !Is(err, Denied) || Is(err, Invalid) {
		t.Fatalf("kind of %v = %s", err, KindOf(err))
	}
	e, _ := errors.AsType[*Error](err)
	if e.Hint != "ask an officer" || e.Pointer != "/names/0" || e.Error() != `name "x" is not allowed` {
		t.Fatalf("got %+v", e)
	}
}

func TestPlainErrorsAreInternal(t *testing.T) {
	if KindOf(io.EOF) != Internal || Is(io.EOF, Internal) {
		t.Fatal("a plain error must be Internal and not a refusal")
	}
	if !errors.Is(New(Invalid, "read: %w", io.EOF), io.EOF) {
		t.Fatal("the cause is lost")
	}
}

func TestKindsAreDistinct(t *testing.T) {
	if len(slices.Compact(slices.Sorted(slices.Values(Kinds)))) != len(Kinds) || len(Kinds) < 9 {
		t.Fatalf("Kinds = %v", Kinds)
	}
}
