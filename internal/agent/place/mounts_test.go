package place

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// mounted is a scene whose accepted directory, or state, is a file system of its own.
func mounted(t *testing.T, at func(s scene) string, kind, options string) scene {
	t.Helper()
	s := newScene(t)
	dir := at(s)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", dir, kind, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return s
}

func targets(s scene) string { return s.path("/etc/pki") }

// fill takes all room of a file system but that of so many pages, and returns how to give it back.
func fill(t *testing.T, dir string, pages int) (empty func()) {
	t.Helper()
	ballast := filepath.Join(dir, ".ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	n := 0
	for ; ; n++ {
		if _, err := f.Write(page); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			break
		}
	}
	if err := f.Truncate(int64(max(n-pages, 0) * len(page))); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullTarget: with every amount of room that is not enough, nothing is changed and nothing left; with enough it is done.
func TestFullTarget(t *testing.T) {
	if !withMounts(t) {
		return
	}
	for _, state := range []bool{false, true} {
		full := 0
		for pages := 0; ; pages++ {
			at := targets
			if state {
				at = func(s scene) string { return s.state }
			}
			s := mounted(t, at, "tmpfs", "size=256k,mode=0700")
			p := s.placer(t)
			first, second := generation(1), generation(2)
			mustPlace(t, p, first)
			empty := fill(t, at(s), pages)
			c := &consumer{}
			_, err := p.Place(t.Context(), second, &first, c)
			if err == nil {
				empty()
				mustBe(t, s, second)
				break
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("%d pages: %v", pages, err)
			}
			full++
			empty()
			// A full state directory may come to light after the files: what was placed could not be recorded. Then they are whole.
			if is, err := s.holds(&first, &second); err != nil || !state && (is != 0 || len(c.calls) > 0) {
				t.Fatalf("state %v, %d pages: set %d, calls %v, %v", state, pages, is, c.calls, err)
			}
			if _, err := p.Place(t.Context(), second, &first, c); err != nil {
				t.Fatalf("with room again: %v", err)
			}
			mustBe(t, s, second)
		}
		t.Logf("state %v: full %d times", state, full)
		if full < 1 {
			t.Fatal("it was never full")
		}
	}
}

// TestFullWhileGoingBack: what going back needs was taken before, so a disk that fills up meanwhile does not hinder it.
func TestFullWhileGoingBack(t *testing.T) {
	if !withMounts(t) {
		return
	}
	s := mounted(t, targets, "tmpfs", "size=256k,mode=0700")
	p := s.placer(t)
	first := generation(1)
	mustPlace(t, p, first)
	var empty func()
	c := &consumer{probe: func() error { empty = fill(t, targets(s), 0); return errors.New("not served") }}
	out, err := p.Place(t.Context(), generation(2), &first, c)
	if !out.RolledBack || errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%+v, %v", out, err)
	}
	empty()
	mustBe(t, s, first)
}

// TestReadOnlyTarget: refused before anything is changed, for the consumer as well.
func TestReadOnlyTarget(t *testing.T) {
	if !withMounts(t) {
		return
	}
	s := mounted(t, targets, "tmpfs", "size=256k,mode=0700")
	p := s.placer(t)
	first, second := generation(1), generation(2)
	mustPlace(t, p, first)
	remount := func(flags uintptr) {
		if err := syscall.Mount("none", targets(s), "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	was := snapshot(t, s.root)
	c := &consumer{}
	for range 2 {
		if _, err := p.Place(t.Context(), second, &first, c); !errors.Is(err, syscall.EROFS) || len(c.calls) > 0 {
			t.Fatalf("error: %v, calls %v", err, c.calls)
		}
	}
	if now := snapshot(t, s.root); now != was {
		t.Fatalf("changed:\n%s\nwas:\n%s", now, was)
	}
	if out := mustPlace(t, p, first); len(out.Changed) > 0 {
		t.Fatalf("a pass that changes nothing needs no writing: %+v", out)
	}
	remount(0)
	mustPlace(t, p, second)
	mustBe(t, s, second)
}

// TestFileSystemWithoutLabels: they are reported, and are no drift.
func TestFileSystemWithoutLabels(t *testing.T) {
	if !withMounts(t) {
		return
	}
	s := mounted(t, targets, "ramfs", "mode=0700")
	p := s.placer(t)
	set := generation(1)
	for i := range set.Files {
		set.Files[i].Label = certLabel
	}
	for range 2 {
		out := mustPlace(t, p, set)
		if len(out.Unset) != len(set.Files) {
			t.Fatalf("unset: %v", out.Unset)
		}
		if words, err := p.Difference(set); err != nil || len(words) > 0 {
			t.Fatalf("drift for ever: %v, %v", words, err)
		}
	}
	if out := mustPlace(t, p, set); len(out.Changed) > 0 {
		t.Fatal(fmt.Sprint(out.Changed))
	}
}
