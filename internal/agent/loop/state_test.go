package loop

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
)

func TestSecondAgentIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := OpenState(dir, nil)
	must(t, err)
	if _, err := OpenState(dir, nil); !fault.Is(err, fault.Conflict) {
		t.Fatalf("a second agent: %v", err)
	}
	if s, err := Look(dir, time.Now()); err != nil || !s.Running {
		t.Fatalf("status %+v, %v", s, err)
	}
	must(t, first.Close())
	second, err := OpenState(dir, nil)
	must(t, err)
	must(t, second.Close())
	if s, err := Look(dir, time.Now()); err != nil || s.Running {
		t.Fatalf("status %+v, %v", s, err)
	}
}

func TestStateIsPrivate(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "x"), 0o700))
	if _, err := OpenState(dir, nil); !fault.Is(err, fault.Invalid) {
		t.Fatalf("a directory that others may enter: %v", err)
	}
	s, err := OpenState(filepath.Join(dir, "s"), nil)
	must(t, err)
	defer s.Close()
	must(t, s.write([]byte("x"), "placements", "web", "main.json"))
	n := 0
	must(t, filepath.WalkDir(s.dir, func(path string, e os.DirEntry, err error) error {
		must(t, err)
		st, err := e.Info()
		must(t, err)
		if st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %04o", path, st.Mode().Perm())
		}
		n++
		return nil
	}))
	if n < 5 {
		t.Fatalf("only %d names were looked at", n)
	}
}

func TestWhatACrashLeftIsSweptAway(t *testing.T) {
	s, err := OpenState(filepath.Join(t.TempDir(), "s"), nil)
	must(t, err)
	must(t, s.write([]byte("x"), "placements", "web", "main.json"))
	left := s.path("placements", "web", ".main.json.ABCDEFGHIJ")
	must(t, os.WriteFile(left, []byte("half"), 0o600))
	// A key and its password, beside a database that was being made.
	must(t, s.write([]byte("key"), dirScratch, "nss", "key.p12"))
	must(t, s.write([]byte("password"), dirScratch, "nss", "key.password"))
	must(t, s.Close())
	s, err = OpenState(s.dir, nil)
	must(t, err)
	defer s.Close()
	for _, gone := range []string{left, s.path(dirScratch)} {
		if _, err := os.Stat(gone); !os.IsNotExist(err) {
			t.Fatalf("%s is still there: %v", gone, err)
		}
	}
	if text, err := s.read("placements", "web", "main.json"); err != nil || string(text) != "x" {
		t.Fatalf("%q, %v", text, err)
	}
}

func TestRootIsSettledOnce(t *testing.T) {
	dir, root := filepath.Join(t.TempDir(), "s"), t.TempDir()
	s, err := OpenState(dir, nil)
	must(t, err)
	defer s.Close()
	must(t, s.settleRoot(root))
	must(t, s.settleRoot(""))
	must(t, s.settleRoot(root+"/."))
	if err := s.settleRoot(t.TempDir()); !fault.Is(err, fault.Conflict) {
		t.Fatalf("another root: %v", err)
	}
	if got, err := s.settings(); err != nil || got.Root != root {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestNamesFromTheNetworkNameNoPaths(t *testing.T) {
	s := &State{dir: t.TempDir()}
	for _, name := range []string{"", "..", ".", "a/b", "a\x00", "-x", ".hidden", strings.Repeat("a", 65), "a b", "ä"} {
		if _, err := s.folder(name); err == nil {
			t.Errorf("%q is taken for a placement's name", name)
		}
	}
	for _, name := range []string{"nginx", "web-1", "a.b_c"} {
		if _, err := s.folder(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestRenewalIsSpreadBeforeTwoThirds(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(90 * 24 * time.Hour)}
	days := map[int]int{}
	for n := range 1000 {
		holder := "host" + string(rune('a'+n%26)) + time.Duration(n).String()
		due := dueAt(c, holder)
		if !due.Equal(dueAt(c, holder)) {
			t.Fatal("the instant changes")
		}
		if due.After(begin.Add(60*24*time.Hour)) || due.Before(begin.Add(52*24*time.Hour)) {
			t.Fatalf("due %s", due)
		}
		days[int(due.Sub(begin).Hours()/24)]++
	}
	if len(days) < 7 {
		t.Fatalf("1000 hosts renew on %d days", len(days))
	}
}

func TestBackoffGrowsAndNeverIsNothing(t *testing.T) {
	p := Pace{}.filled()
	last := time.Duration(0)
	for n := 1; n < 100; n++ {
		d := p.backoff(n)
		if d < p.First/2 || d > p.Longest*5/4 {
			t.Fatalf("after %d failures it waits %s", n, d)
		}
		if n == 12 {
			last = d
		}
	}
	if last < p.Longest/2 {
		t.Fatalf("after 12 failures it waits %s", last)
	}
	tries, now := attempts{}, time.Now()
	if !tries.may("x", now) {
		t.Fatal("what never failed may not be tried")
	}
	tries.failed("x", now, p)
	if tries.may("x", now.Add(10*time.Second)) || !tries.may("x", now.Add(2*time.Minute)) {
		t.Fatalf("%+v", tries)
	}
	if tries.succeeded("x"); !tries.may("x", now) {
		t.Fatal("what succeeded may not be tried")
	}
}
