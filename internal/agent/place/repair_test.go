package place

import (
	"context"
	"errors"
	"os"
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
