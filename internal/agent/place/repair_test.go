package place

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/fault"
)

func TestTwoPlacementsWithOneFile(t *testing.T) {
	s := newScene(t)
	p := s.placer(t)
	first, second := generation(1), generation(2)
	second.Name = "mail"
	inside, finish := make(chan struct{}), make(chan struct{})
	c := &consumer{check: func() error { close(inside); <-finish; return nil }}
	ended := make(chan error)
	go func() {
		_, err := p.Place(context.Background(), first, nil, c)
		ended <- err
	}()
	<-inside
	_, err := p.Place(t.Context(), second, nil, nil)
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "belongs to the placement web") {
		t.Errorf("at the same time: %v", err)
	}
	if _, err := p.Place(t.Context(), first, nil, nil); !fault.Is(err, fault.Conflict) {
		t.Errorf("the same placement at the same time: %v", err)
	}
	other := s.placer(t)
	if _, err := other.Place(t.Context(), second, nil, nil); !fault.Is(err, fault.Conflict) {
		t.Errorf("another agent on the state directory: %v", err)
	}
	if _, err := other.Repair(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Errorf("a repair by another agent: %v", err)
	}
	apart := Set{Name: "mail", Files: []File{{Path: "/srv/mail.pem", Data: []byte("m")}}}
	if _, err := p.Place(t.Context(), apart, nil, nil); err != nil {
		t.Errorf("a placement with other files: %v", err)
	}
	close(finish)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, err := p.Place(t.Context(), second, nil, nil); !fault.Is(err, fault.Conflict) {
		t.Fatalf("afterwards: %v", err)
	}
	if _, err := other.Repair(t.Context()); err != nil {
		t.Fatalf("when the other is done: %v", err)
	}
}

// TestRepairBeforeTheConsumerStarts is what runs at boot: a cut between two renames leaves a pair that does not match, and
// a repair from the journal alone mends it.
func TestRepairBeforeTheConsumerStarts(t *testing.T) {
	s := newScene(t)
	first, second := generation(1), generation(2)
	renames := -1
	p := s.placer(t, func(o *Options) {
		o.Cut = func(op Operation) error {
			if op.Name == "rename" && op.After && strings.HasPrefix(op.Path, "/etc") && renames >= 0 {
				renames++
			}
			if renames >= 1 {
				return errCut
			}
			return nil
		}
	})
	mustPlace(t, p, first)
	renames = 0
	if _, err := p.Place(t.Context(), second, &first, &consumer{}); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	if err := s.is(&second); err == nil || s.is(&first) == nil {
		t.Fatal("the cut came between no two renames")
	}
	again := s.placer(t)
	if words, err := again.Difference(second); err != nil || !strings.Contains(strings.Join(words, "\n"), "interrupted") {
		t.Fatalf("differences: %v, %v", words, err)
	}
	words, err := again.Repair(t.Context())
	if err != nil || len(words) != 1 || !strings.HasPrefix(words[0], "web: the new files were put in place") {
		t.Fatalf("%v, %v", words, err)
	}
	mustBe(t, s, second)
	if words, err := again.Difference(second); err != nil || len(words) != 1 {
		t.Fatalf("the consumer has not been told, and that is a difference: %v, %v", words, err)
	}
	if words, err := again.Repair(t.Context()); err != nil || len(words) != 0 {
		t.Fatalf("a second repair: %v, %v", words, err)
	}
}

func TestStateDirectoryOfOthersIsRefused(t *testing.T) {
	s := newScene(t)
	if err := os.Mkdir(s.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.state, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := New(s.options()); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "0700 would pass") {
		t.Fatalf("error: %v", err)
	}
}

// TestOldSetThatCannotComeBack is said, and hinders nothing: half of an old set is worse than the new one.
func TestOldSetThatCannotComeBack(t *testing.T) {
	moved := func(n int) Set {
		set := generation(n)
		set.Directories = nil
		for i, f := range set.Files {
			set.Files[i].Path = "/srv/tls/" + filepath.Base(f.Path)
		}
		return set
	}
	first, second := generation(1), moved(2)
	cases := map[string]struct {
		happens func(s scene) error
		accept  []string
		left    int // files of the old set that are on disk afterwards
		says    string
	}{
		"its directory is gone":       {func(s scene) error { return os.RemoveAll(s.path("/etc/pki")) }, []string{"/etc/pki", "/srv"}, 0, "is gone"},
		"it is not accepted any more": {func(scene) error { return nil }, []string{"/srv"}, 4, "does not accept"},
		"somebody's file is in its place": {func(s scene) error {
			return os.WriteFile(s.path("/etc/pki/web/ca.pem"), []byte("other"), 0o644)
		}, []string{"/etc/pki", "/srv"}, 1, "is not ours"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			p := s.placer(t)
			mustPlace(t, p, first)
			p.Close()
			if err := c.happens(s); err != nil {
				t.Fatal(err)
			}
			p = s.placer(t, func(o *Options) { o.Accept.Prefixes = c.accept })
			refuses := &consumer{probe: func() error { return errors.New("not served") }}
			out, err := p.Place(t.Context(), second, &first, refuses)
			if err == nil || out.RolledBack || !strings.Contains(strings.Join(out.Left, "\n"), c.says) {
				t.Fatalf("%+v, %v", out, err)
			}
			left := 0
			for _, f := range first.Files {
				if _, err := os.Stat(s.path(f.Path)); err == nil {
					left++
				}
			}
			if left != c.left {
				t.Errorf("%d files of the old set are left, want %d", left, c.left)
			}
			if err := os.RemoveAll(s.path("/etc/pki")); err != nil {
				t.Fatal(err)
			}
			mustBe(t, s, second)
			if out, err := p.Place(t.Context(), second, nil, &consumer{}); err != nil || !out.Probed {
				t.Fatalf("the next run: %+v, %v", out, err)
			}
		})
	}
}

// TestAdoptionGoesBackToWhatWasThere, also where an old set is given: the two would not match.
func TestAdoptionGoesBackToWhatWasThere(t *testing.T) {
	s := newScene(t)
	found, old, next := generation(3), generation(1), generation(2)
	mustPlace(t, s.placer(t), found)
	if err := os.RemoveAll(s.state); err != nil {
		t.Fatal(err)
	}
	next.Adopt = true
	refuses := &consumer{probe: func() error { return errors.New("not served") }}
	if out, err := s.placer(t).Place(t.Context(), next, &old, refuses); err == nil || !out.RolledBack {
		t.Fatalf("%+v, %v", out, err)
	}
	mustBe(t, s, found)
}
