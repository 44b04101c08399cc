package place

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/internal/fault"
)

// mustPlace places files alone.
func mustPlace(t *testing.T, p *Placer, set Set) Outcome {
	t.Helper()
	out, err := p.Place(t.Context(), set, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustBe(t *testing.T, s scene, set Set) {
	t.Helper()
	if err := s.is(&set); err != nil {
		t.Fatal(err)
	}
}

// inodes are those of a set's files, which change when a file is written.
func (s scene) inodes(t *testing.T, set Set) []uint64 {
	t.Helper()
	var all []uint64
	for _, f := range set.Files {
		st, err := os.Lstat(s.path(f.Path))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, st.Sys().(*syscall.Stat_t).Ino)
	}
	return all
}

// TestSecondPassWritesNothing: no inode changes, no operation that writes is done, and the consumer is left alone.
func TestSecondPassWritesNothing(t *testing.T) {
	s := newScene(t)
	set := generation(1)
	writing := 0
	operations := 0
	p := s.placer(t, func(o *Options) {
		o.Cut = func(op Operation) error {
			operations++
			switch op.Name {
			case "open", "stat", "read", "readlink", "getxattr", "lock", "list":
			default:
				writing++
			}
			return nil
		}
	})
	out := mustPlace(t, p, set)
	if len(out.Changed) != 4+3 { // the files, and /etc/pki, web and private
		t.Fatalf("changed: %v", out.Changed)
	}
	was := s.inodes(t, set)
	writing, operations = 0, 0
	c := &consumer{}
	words, err := p.Difference(set)
	if err != nil || len(words) != 0 {
		t.Fatalf("differences: %v, %v", words, err)
	}
	if writing != 0 || operations == 0 {
		t.Fatalf("of %d operations of Difference %d write", operations, writing)
	}
	if out, err = p.Place(t.Context(), set, &set, c); err != nil || len(out.Changed) > 0 || len(c.calls) > 0 || out.Reloaded {
		t.Fatalf("second pass: %+v, %v, calls %v", out, err, c.calls)
	}
	if now := s.inodes(t, set); !slices.Equal(was, now) {
		t.Fatalf("inodes changed from %v to %v", was, now)
	}
	next := generation(1)
	next.Files[3].Data = []byte("other anchors")
	mustPlace(t, p, next)
	now := s.inodes(t, next)
	if !slices.Equal(was[:3], now[:3]) || was[3] == now[3] {
		t.Fatalf("one file was to be written: inodes from %v to %v", was, now)
	}
}

func TestConsumerIsToldInOrder(t *testing.T) {
	s := newScene(t)
	p := s.placer(t)
	set, meanwhile := generation(1), s
	meanwhile.busy = true
	c := &consumer{check: func() error { return meanwhile.is(&set) }}
	out, err := p.Place(t.Context(), generation(1), nil, c)
	if err != nil || !out.Reloaded || !out.Probed || out.Down {
		t.Fatalf("%+v, %v", out, err)
	}
	if want := []string{"check", "reload", "probe"}; !slices.Equal(c.calls, want) {
		t.Fatalf("calls: %v, want %v", c.calls, want)
	}
}

func TestConsumerThatIsDownStaysDown(t *testing.T) {
	s := newScene(t)
	p := s.placer(t)
	c := &consumer{down: true}
	out, err := p.Place(t.Context(), generation(1), nil, c)
	if err != nil || !out.Down || out.Reloaded || out.Probed || !slices.Equal(c.calls, []string{"check"}) {
		t.Fatalf("%+v, %v, calls %v", out, err, c.calls)
	}
	mustBe(t, s, generation(1))
}

// TestRefusalBringsTheOldSetBack: whichever step refuses, the old files are there again, whole, and a consumer that was told of
// the new ones is told again.
func TestRefusalBringsTheOldSetBack(t *testing.T) {
	for _, step := range []string{"check", "reload", "probe"} {
		t.Run(step, func(t *testing.T) {
			s := newScene(t)
			p := s.placer(t)
			first, second := generation(1), generation(2)
			mustPlace(t, p, first)
			reloads := 0
			var whenReloaded []int
			c := &consumer{}
			refuse := func() error { return errors.New(step + " says no") }
			c.reload = func() error {
				meanwhile := s
				meanwhile.busy = true
				is, err := meanwhile.holds(&first, &second)
				whenReloaded = append(whenReloaded, is)
				if reloads++; step == "reload" {
					return refuse()
				}
				return err
			}
			if step == "check" {
				c.check = refuse
			}
			if step == "probe" {
				c.probe = refuse
			}
			out, err := p.Place(t.Context(), second, &first, c)
			if err == nil || !out.RolledBack || !strings.Contains(err.Error(), step+" says no") || len(out.Changed) > 0 {
				t.Fatalf("%+v, %v", out, err)
			}
			mustBe(t, s, first)
			want := []int{1, 0} // told of the new set, then of the old
			if step == "check" {
				want = nil
			}
			if !slices.Equal(whenReloaded, want) {
				t.Fatalf("at the reloads these sets were there: %v, want %v", whenReloaded, want)
			}
			if step == "reload" && strings.Count(err.Error(), "says no") != 2 {
				t.Fatalf("both reasons are to be told: %v", err)
			}
			list, err := p.Placed()
			if err != nil || len(list) != 1 || list[0].Unconfirmed != (step == "reload") {
				t.Fatalf("the record says %+v, %v", list, err)
			}
			if words, err := p.Difference(second); err != nil || len(words) < 4 {
				t.Fatalf("differences: %v, %v", words, err)
			}
		})
	}
}

// TestNoValidOldSet: the new set stays, and the next pass asks the consumer again although no file changes.
func TestNoValidOldSet(t *testing.T) {
	s := newScene(t)
	p := s.placer(t)
	set := generation(1)
	c := &consumer{reload: func() error { return errors.New("exit status 1") }}
	out, err := p.Place(t.Context(), set, nil, c)
	if err == nil || out.RolledBack || !strings.Contains(err.Error(), "no valid old set") {
		t.Fatalf("%+v, %v", out, err)
	}
	mustBe(t, s, set)
	if words, err := p.Difference(set); err != nil || len(words) != 1 {
		t.Fatalf("differences: %v, %v", words, err)
	}
	was := s.inodes(t, set)
	c = &consumer{}
	if out, err = p.Place(t.Context(), set, nil, c); err != nil || !out.Probed || len(out.Changed) > 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	if now := s.inodes(t, set); !slices.Equal(was, now) {
		t.Fatal("files were written that did not change")
	}
	if words, err := p.Difference(set); err != nil || len(words) != 0 {
		t.Fatalf("differences: %v, %v", words, err)
	}
}

// TestCancelled: wherever the caller gives up, a whole set is there, and no reload is left out for good.
func TestCancelled(t *testing.T) {
	for _, step := range []string{"before", "check", "reload", "probe"} {
		t.Run(step, func(t *testing.T) {
			s := newScene(t)
			p := s.placer(t)
			first, second := generation(1), generation(2)
			mustPlace(t, p, first)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stop := func() error { cancel(); return ctx.Err() }
			c := &consumer{}
			switch step {
			case "before":
				cancel()
			case "check":
				c.check = stop
			case "reload":
				c.reload = stop
			case "probe":
				c.probe = stop
			}
			_, err := p.Place(ctx, second, &first, c)
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("error: %v", err)
			}
			is, err := s.holds(&first, &second)
			if err != nil || (step == "before") != (is == 0) {
				t.Fatalf("set %d is there, %v", is, err)
			}
			c = &consumer{}
			if out, err := p.Place(t.Context(), second, &first, c); err != nil || !out.Probed {
				t.Fatalf("the next run: %+v, %v", out, err)
			}
			mustBe(t, s, second)
		})
	}
}

// TestReloadThatHangs is bounded by the Placer where the consumer has no bound of its own.
func TestReloadThatHangs(t *testing.T) {
	s := newScene(t)
	p := s.placer(t, func(o *Options) { o.Limit = 20 * time.Millisecond })
	first := generation(1)
	mustPlace(t, p, first)
	out, err := p.Place(t.Context(), generation(2), &first, hangs{})
	if !errors.Is(err, context.DeadlineExceeded) || !out.RolledBack {
		t.Fatalf("%+v, %v", out, err)
	}
	mustBe(t, s, first)
}

type hangs struct{ *consumer }

func (hangs) Down(context.Context) bool   { return false }
func (hangs) Check(context.Context) error { return nil }
func (hangs) Reload(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestAdoption(t *testing.T) {
	s := newScene(t)
	p := s.placer(t)
	set := generation(1)
	at := s.path(set.Files[0].Path)
	if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		t.Fatal(err)
	}
	theirs := []byte("a key that somebody put there")
	if err := os.WriteFile(at, theirs, 0o440); err != nil {
		t.Fatal(err)
	}
	changed := time.Unix(1_500_000_000, 0)
	if err := os.Chtimes(at, changed, changed); err != nil {
		t.Fatal(err)
	}
	_, err := p.Place(t.Context(), set, nil, nil)
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "was not placed by this agent") {
		t.Fatalf("a stranger's file: %v", err)
	}
	if entries, err := os.ReadDir(s.path("/etc/pki/web")); err != nil || len(entries) != 1 {
		t.Fatalf("something was written: %v, %v", entries, err)
	}
	set.Adopt = true
	c := &consumer{probe: func() error { return errors.New("not served") }}
	if out, err := p.Place(t.Context(), set, nil, c); err == nil || !out.RolledBack || len(out.Kept) != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	if got, err := os.ReadFile(at); err != nil || string(got) != string(theirs) {
		t.Fatalf("after going back: %q, %v", got, err)
	}
	out := mustPlace(t, p, set)
	if len(out.Kept) != 1 || !strings.HasPrefix(out.Kept[0], set.Files[0].Path+".chancery-before-2") {
		t.Fatalf("kept: %v", out.Kept)
	}
	got, err := os.ReadFile(s.path(out.Kept[0]))
	st, err2 := os.Stat(s.path(out.Kept[0]))
	if err := errors.Join(err, err2); err != nil || string(got) != string(theirs) {
		t.Fatalf("the copy: %q, %v", got, err)
	}
	if st.Mode() != 0o440 || !st.ModTime().Equal(changed) {
		t.Fatalf("the copy has mode %v and time %v", st.Mode(), st.ModTime())
	}
	if out := mustPlace(t, p, set); len(out.Changed)+len(out.Kept) > 0 {
		t.Fatalf("adopted twice: %+v", out)
	}
}

// TestEarlierCopyStays: two adoptions within a second keep two copies, and one that fails takes none away.
func TestEarlierCopyStays(t *testing.T) {
	s := newScene(t)
	set := one("/srv/key")
	set.Adopt = true
	p := s.placer(t)
	if err := os.Mkdir(s.path("/srv"), 0o755); err != nil {
		t.Fatal(err)
	}
	copies := func() int {
		all, err := filepath.Glob(s.path("/srv/key.chancery-before-*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	for n := 1; n <= 3; n++ {
		mustPlace(t, p, Set{Name: "web"})
		if err := os.WriteFile(s.path("/srv/key"), []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &consumer{check: func() error { return errors.New("no") }}
		if _, err := p.Place(t.Context(), set, nil, c); err == nil || copies() != n-1 {
			t.Fatalf("%d copies after a failure, %v", copies(), err)
		}
		if mustPlace(t, p, set); copies() != n {
			t.Fatalf("%d copies, want %d", copies(), n)
		}
	}
}

// TestWhatIsThereAlreadyIsOurs: files of a lost record, which are as wanted, need no adoption.
func TestWhatIsThereAlreadyIsOurs(t *testing.T) {
	s := newScene(t)
	set := generation(1)
	mustPlace(t, s.placer(t), set)
	if err := os.RemoveAll(s.state); err != nil {
		t.Fatal(err)
	}
	p := s.placer(t)
	mustPlace(t, p, set)
	mustPlace(t, p, Set{Name: set.Name})
	if err := s.is(nil); err != nil {
		t.Fatalf("they were not ours after all: %v", err)
	}
}

// TestNoLongerWanted: what is ours goes when it is unchanged, and stays when somebody changed it.
func TestNoLongerWanted(t *testing.T) {
	s := newScene(t)
	p := s.placer(t)
	set := generation(1)
	mustPlace(t, p, set)
	changed := s.path(set.Files[3].Path)
	if err := os.WriteFile(changed, []byte("mine now"), 0o644); err != nil {
		t.Fatal(err)
	}
	stranger := s.path("/etc/pki/web/stranger.pem")
	if err := os.WriteFile(stranger, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	next := generation(1)
	next.Files = next.Files[:2]
	next.Absent = []string{"/etc/pki/web/stranger.pem", "/etc/pki/web/never.pem"}
	words, err := p.Difference(next)
	if err != nil || len(words) != 2 {
		t.Fatalf("differences: %v, %v", words, err)
	}
	out := mustPlace(t, p, next)
	if !slices.Equal(out.Changed, []string{set.Files[2].Path}) || len(out.Left) != 2 {
		t.Fatalf("%+v", out)
	}
	for _, path := range []string{changed, stranger} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	mustBe(t, s, next)
	if words, err := p.Difference(next); err != nil || len(words) != 0 {
		t.Fatalf("differences: %v, %v", words, err)
	}
}

// TestMovedPaths: a placement whose paths change takes the old files away, and going back brings them again.
func TestMovedPaths(t *testing.T) {
	s := newScene(t)
	p := s.placer(t)
	first := generation(1)
	mustPlace(t, p, first)
	second := generation(2)
	second.Directories = nil
	for i := range second.Files {
		second.Files[i].Path = "/srv/tls/" + filepath.Base(second.Files[i].Path)
	}
	c := &consumer{probe: func() error { return errors.New("not served") }}
	if _, err := p.Place(t.Context(), second, &first, c); err == nil {
		t.Fatal("no error")
	}
	mustBe(t, s, first)
	if _, err := os.Stat(s.path("/srv")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a directory was left: %v", err)
	}
	if _, err := p.Place(t.Context(), second, &first, &consumer{}); err != nil {
		t.Fatal(err)
	}
	mustBe(t, s, second)
}
