package place

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"chancery/internal/agent/probe"
)

// errCut is what a cut operation returns.
var errCut = errors.New("cut")

// scene is a host below a directory, with a state directory beside it.
type scene struct {
	root, state string
	busy        bool // what is staged is no fault
}

func newScene(t testing.TB) scene {
	t.Helper()
	dir := quickDir(t)
	s := scene{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state")}
	if err := os.MkdirAll(filepath.Join(s.root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// quickDir is a directory in memory where there is such a thing: thousands of placements would wait for a disk.
func quickDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "place")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (s scene) options() Options {
	return Options{
		State: s.state, System: probe.System{Root: s.root, AsRoot: os.Geteuid() == 0},
		Accept: Accept{Prefixes: []string{"/etc/pki", "/srv"}},
	}
}

func (s scene) placer(t testing.TB, change ...func(*Options)) *Placer {
	t.Helper()
	o := s.options()
	for _, c := range change {
		c(&o)
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func (s scene) path(p string) string { return filepath.Join(s.root, p) }

// generation is a set of four files in two directories whose contents name the generation and bind the files to one
// another: each says the digest of the key, as a certificate does.
func generation(n int) Set {
	key := fmt.Appendf(nil, "key of generation %d %s", n, strings.Repeat("k", 100*n))
	sum := sha256.Sum256(key)
	bound := func(what string) []byte {
		return fmt.Appendf(nil, "%s for the key %s", what, hex.EncodeToString(sum[:]))
	}
	return Set{
		Name: "web",
		Directories: []Directory{
			{Path: "/etc/pki/web", Mode: 0o755}, {Path: "/etc/pki/web/private", Mode: 0o700},
		},
		Files: []File{
			{Path: "/etc/pki/web/private/key.pem", Data: key, Mode: 0o400},
			{Path: "/etc/pki/web/cert.pem", Data: bound("certificate"), Mode: 0o444},
			{Path: "/etc/pki/web/chain.pem", Data: bound("path"), Mode: 0o644},
			{Path: "/etc/pki/web/ca.pem", Data: bound("anchors"), Mode: 0o644},
		},
	}
}

// holds reports which of the sets is on disk, whole, with nothing else beside it.
func (s scene) holds(sets ...*Set) (int, error) {
	var all []error
	for i, set := range sets {
		if err := s.is(set); err != nil {
			all = append(all, fmt.Errorf("set %d: %w", i, err))
			continue
		}
		return i, nil
	}
	return -1, errors.Join(all...)
}

// is reports whether exactly the files of a set are below the root; a nil set has none.
func (s scene) is(set *Set) error {
	want := map[string]File{}
	if set != nil {
		for _, f := range set.Files {
			want[s.path(f.Path)] = f
		}
	}
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), nestPrefix) {
			if s.busy {
				return fs.SkipDir
			}
			return fmt.Errorf("%s is there", path)
		}
		if err != nil || d.IsDir() {
			return err
		}
		f, ok := want[path]
		if !ok {
			return fmt.Errorf("%s is there", path)
		}
		delete(want, path)
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if f.Link != "" {
			if target, err := os.Readlink(path); err != nil || target != f.Link {
				return fmt.Errorf("%s leads to %q: %w", path, target, err)
			}
			return nil
		}
		if st.Mode() != f.Mode {
			return fmt.Errorf("%s has mode %v", path, st.Mode())
		}
		data, err := os.ReadFile(path)
		if err == nil && !bytes.Equal(data, f.Data) {
			err = fmt.Errorf("%s has another content", path)
		}
		return err
	})
	if err == nil && len(want) > 0 {
		err = fmt.Errorf("%d files are missing", len(want))
	}
	return err
}

// consumer is a program that takes what is said of it. It reads the files when it is told to, as a real one does.
type consumer struct {
	down                 bool
	check, reload, probe func() error
	calls                []string
}

func (c *consumer) say(what string, f func() error) error {
	c.calls = append(c.calls, what)
	if f == nil {
		return nil
	}
	return f()
}

func (c *consumer) Down(context.Context) bool    { return c.down }
func (c *consumer) Check(context.Context) error  { return c.say("check", c.check) }
func (c *consumer) Reload(context.Context) error { return c.say("reload", c.reload) }
func (c *consumer) Probe(context.Context) error  { return c.say("probe", c.probe) }

// story is what a cut test cuts: a placement onto a host that has before, by a consumer that refuses or not.
type story struct {
	name    string
	before  *Set // what was placed; nil: nothing
	old     *Set // what is given as the last good set
	refuses bool
	adopts  bool
}

func stories() []story {
	first := generation(1)
	return []story{
		{name: "first placement"},
		{name: "renewal", before: &first, old: &first},
		{name: "renewal without an old set", before: &first},
		{name: "renewal that is refused", before: &first, old: &first, refuses: true},
		{name: "adoption that is refused", before: &first, refuses: true, adopts: true},
	}
}

// prepare brings a scene to where the story begins.
func (st story) prepare(t testing.TB) scene {
	t.Helper()
	s := newScene(t)
	if st.before != nil {
		p := s.placer(t)
		if _, err := p.Place(t.Context(), *st.before, nil, nil); err != nil {
			t.Fatal(err)
		}
		if st.adopts {
			if err := os.RemoveAll(s.state); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func (st story) next() Set {
	set := generation(2)
	set.Adopt = st.adopts
	return set
}

func (st story) place(ctx context.Context, p *Placer) error {
	c := &consumer{}
	if st.refuses {
		c.probe = func() error { return errors.New("the old certificate is served") }
	}
	_, err := p.Place(ctx, st.next(), st.old, c)
	return err
}

// operations counts the cut points of a story.
func (st story) operations(t testing.TB) int {
	t.Helper()
	s := st.prepare(t)
	n := 0
	p := s.placer(t, func(o *Options) {
		o.Cut = func(Operation) error { n++; return nil }
	})
	n = 0
	if err := st.place(t.Context(), p); (err != nil) != st.refuses {
		t.Fatalf("uncut: %v", err)
	}
	return n
}

// sound reports whether a cut and a repair left one whole set with nothing beside it, and a further run reaches the new one.
func (st story) sound(ctx context.Context, s scene) error {
	p, err := New(s.options())
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := p.Repair(ctx); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	next := st.next()
	if err := st.copies(s); err != nil {
		return err
	}
	if _, err := s.holds(st.before, &next); err != nil {
		return fmt.Errorf("after the repair there is no matching set: %w", err)
	}
	left, err := os.ReadDir(filepath.Join(s.state, journals))
	if err != nil || len(left) != 0 {
		return fmt.Errorf("%d files are left in the journal's directory: %w", len(left), err)
	}
	if _, err := p.Place(ctx, next, st.old, &consumer{}); err != nil {
		return fmt.Errorf("the next run: %w", err)
	}
	if err := errors.Join(st.copies(s), s.is(&next)); err != nil {
		return fmt.Errorf("after the next run: %w", err)
	}
	if words, err := p.Difference(next); err != nil || len(words) > 0 {
		return fmt.Errorf("after the next run: %v, %w", words, err)
	}
	return nil
}

// copies removes the copies of what was adopted, of which there are four or none.
func (st story) copies(s scene) error {
	if !st.adopts {
		return nil
	}
	n := 0
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(path, ".chancery-before-") {
			n, err = n+1, os.Remove(path)
		}
		return err
	})
	if err == nil && n != 0 && n != len(st.before.Files) {
		err = fmt.Errorf("%d copies were kept", n)
	}
	return err
}

// TestCutEverywhere cuts a placement of four files before and after each operation, in two ways: from there on everything
// fails, as when the machine dies; and this one operation fails, as when a disk is full for a moment.
func TestCutEverywhere(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 7
	}
	var total atomic.Int64
	for _, st := range stories() {
		n := st.operations(t)
		var wait sync.WaitGroup
		for _, dead := range []bool{true, false} {
			wait.Go(func() {
				t.Run(fmt.Sprintf("%s,dead=%v", st.name, dead), func(t *testing.T) {
					for cut := 1; cut <= n; cut += step {
						if err := st.cut(t, cut, dead); err != nil {
							t.Fatalf("cut %d of %d: %v", cut, n, err)
						}
						total.Add(1)
					}
				})
			})
		}
		wait.Wait()
	}
	t.Logf("%d cut points", total.Load())
	if least := int64(3000 / step); total.Load() < least {
		t.Fatalf("only %d cut points: the test proves too little", total.Load())
	}
}

// cut plays a story with one operation cut, or all from there on, and looks at what is left.
func (st story) cut(t *testing.T, cut int, dead bool) error {
	s := st.prepare(t)
	seen, armed, at := 0, false, ""
	p := s.placer(t, func(o *Options) {
		o.Cut = func(op Operation) error {
			if !armed {
				return nil
			}
			seen++
			if seen == cut {
				at = fmt.Sprintf("%s %s, after %v", op.Name, op.Path, op.After)
			}
			if seen == cut || dead && seen > cut {
				return errCut
			}
			return nil
		}
	})
	armed = true
	err := st.place(t.Context(), p)
	p.Close()
	if seen < cut || dead && err == nil {
		return fmt.Errorf("of %d operations, and the error was %w", seen, err)
	}
	if err := st.sound(t.Context(), s); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

// TestCutWhileRepairing cuts a placement, and then the repair of it at each of its operations: a repair can be repaired.
func TestCutWhileRepairing(t *testing.T) {
	step := 9
	if testing.Short() {
		step = 41
	}
	total, phases := 0, map[phase]int{}
	for _, st := range stories() {
		n := st.operations(t)
		for first := 1; first <= n; first += step {
			for second, ended := 1, false; !ended; second += step {
				s := st.prepare(t)
				st.placeUntil(t, s, first)
				var err error
				if ended, err = s.repairUntil(t, second, phases); err == nil {
					err = st.sound(t.Context(), s)
				}
				if err != nil {
					t.Fatalf("%s, cut at %d, its repair at %d: %v", st.name, first, second, err)
				}
				total++
			}
		}
	}
	t.Logf("%d cuts of repairs: %v", total, phases)
	if total < 20_000/step/step || len(phases) != 3 {
		t.Fatal("the test proves too little")
	}
}

// until fails every operation from the number given on.
func until(n int) (cut func(Operation) error, cutOff *bool) {
	seen := 0
	cutOff = new(bool)
	return func(Operation) error {
		if seen++; seen >= n {
			*cutOff = true
			return errCut
		}
		return nil
	}, cutOff
}

// placeUntil plays a story until the operation of the number given, from which on everything fails.
func (st story) placeUntil(t *testing.T, s scene, n int) {
	t.Helper()
	var cut func(Operation) error
	p := s.placer(t, func(o *Options) {
		o.Cut = func(op Operation) error {
			if cut == nil {
				return nil
			}
			return cut(op)
		}
	})
	cut, _ = until(n)
	st.place(t.Context(), p) //nolint:errcheck // it is cut
	p.Close()
}

// repairUntil repairs until the operation of the number given; ended says that the repair came to its end before.
func (s scene) repairUntil(t *testing.T, n int, phases map[phase]int) (ended bool, err error) {
	t.Helper()
	var cut func(Operation) error
	p := s.placer(t, func(o *Options) {
		o.Cut = func(op Operation) error {
			if cut == nil {
				return nil
			}
			return cut(op)
		}
	})
	defer p.Close()
	j, err := p.readJournal("web")
	if err != nil {
		return false, err
	}
	if j != nil {
		phases[j.phase]++
	}
	var cutOff *bool
	cut, cutOff = until(n)
	_, err = p.Repair(t.Context())
	if *cutOff != (err != nil) {
		return false, fmt.Errorf("cut %v, error: %w", *cutOff, err)
	}
	return !*cutOff, nil
}
