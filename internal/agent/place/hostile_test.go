package place

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chancery/internal/agent/probe"
	"chancery/internal/fault"
)

// one is a set of one file.
func one(path string) Set {
	return Set{Name: "web", Files: []File{{Path: path, Data: []byte("new"), Mode: 0o600}}}
}

// snapshot is everything below a directory, with what tells that it was written.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		sys := st.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&b, strings.TrimPrefix(path, dir), st.Mode(), sys.Ino, sys.Uid, sys.Gid, st.ModTime())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestHostilePaths: each is refused by name with what would pass, and nothing below the root is written.
func TestHostilePaths(t *testing.T) {
	steps := func(all ...error) error { return errors.Join(all...) }
	cases := []struct {
		name    string
		prepare func(s scene) error
		set     Set
		says    string
	}{
		{"outside of what is accepted", nil, one("/etc/passwd"), "paths below /etc/pki, /srv would pass"},
		{"a prefix's name only begins alike", nil, one("/etc/pki-other/x"), "does not accept files at /etc/pki-other/x"},
		{"the prefix itself", func(s scene) error { return os.MkdirAll(s.path("/srv"), 0o755) }, one("/srv"), "is a directory"},
		{"dots", nil, one("/etc/pki/../passwd"), "not absolute and clean"},
		{"a relative path", nil, one("etc/pki/x"), "not absolute and clean"},
		{"two slashes", nil, one("/etc/pki//x"), "not absolute and clean"},
		{"a newline", nil, one("/etc/pki/a\nb"), "control character"},
		{"an octet that is no UTF-8", nil, one("/etc/pki/a\xff"), "is not UTF-8"},
		{"a zero octet", nil, one("/etc/pki/a\x00b"), "control character"},
		{"a path that is too long", nil, one("/etc/pki/" + strings.Repeat("a/", 2100) + "x"), "too long"},
		{"no path", nil, one(""), "not absolute and clean"},
		{"no name", nil, Set{Files: one("/srv/x").Files}, "the placement's name"},
		{"a link in the file's place", func(s scene) error {
			return steps(os.MkdirAll(s.path("/srv"), 0o755), os.Symlink("elsewhere", s.path("/srv/key")))
		}, one("/srv/key"), "/srv/key is a symbolic link to elsewhere; a regular file or none would pass"},
		{"a hard link", func(s scene) error {
			return steps(os.MkdirAll(s.path("/srv"), 0o755), os.WriteFile(s.path("/srv/key"), nil, 0o600),
				os.Link(s.path("/srv/key"), s.path("/etc/other")))
		}, one("/srv/key"), "has 2 hard links; a file with one name would pass"},
		{"a directory", func(s scene) error { return os.MkdirAll(s.path("/srv/key"), 0o755) }, one("/srv/key"), "is a directory"},
		{"a FIFO", func(s scene) error {
			return steps(os.MkdirAll(s.path("/srv"), 0o755), syscall.Mkfifo(s.path("/srv/key"), 0o600))
		}, one("/srv/key"), "is a FIFO"},
		{"a socket", func(s scene) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path("/etc/socket"), Net: "unix"})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return steps(l.Close(), os.MkdirAll(s.path("/srv"), 0o755), os.Rename(s.path("/etc/socket"), s.path("/srv/key")))
		}, one("/srv/key"), "is a socket"},
		{"a file where a directory is wanted", func(s scene) error {
			return steps(os.MkdirAll(s.path("/srv"), 0o755), os.WriteFile(s.path("/srv/web"), nil, 0o600))
		}, one("/srv/web/key"), "/srv/web is a regular file, and a directory is wanted there"},
		{"a link that leads outside", func(s scene) error {
			return steps(os.MkdirAll(s.path("/srv"), 0o755), os.MkdirAll(s.path("/var"), 0o755), os.Symlink("/var", s.path("/srv/web")))
		}, one("/srv/web/key"), "/srv/web leads over a link to /var"},
		{"a link that climbs out", func(s scene) error {
			return steps(os.MkdirAll(s.path("/srv"), 0o755), os.Symlink("../../../../../../../../etc", s.path("/srv/web")))
		}, one("/srv/web/key"), "/srv/web leads over a link to /etc:"},
		{"links in a circle", func(s scene) error {
			return steps(os.MkdirAll(s.path("/srv"), 0o755), os.Symlink("b", s.path("/srv/a")), os.Symlink("a", s.path("/srv/b")))
		}, one("/srv/a/key"), "more than 16 links"},
		{"setuid", nil, Set{Name: "web", Files: []File{{Path: "/srv/x", Mode: 0o644 | fs.ModeSetuid}}}, "reading and writing bits alone"},
		{"setgid as C has it", nil, Set{Name: "web", Files: []File{{Path: "/srv/x", Mode: 0o2644}}}, "reading and writing bits alone"},
		{"execution", nil, Set{Name: "web", Files: []File{{Path: "/srv/x", Mode: 0o700}}}, "reading and writing bits alone"},
		{"a sticky directory", nil, Set{Name: "web", Directories: []Directory{{Path: "/srv/x", Mode: 0o1777}}}, "permission bits alone"},
		{"a directory outside", nil, Set{Name: "web", Directories: []Directory{{Path: "/var/x"}}}, "does not accept"},
		{"a missing user", nil, Set{Name: "web", Files: []File{{Path: "/srv/x", Owner: "no-such-user"}}}, `no user "no-such-user"`},
		{"a missing group", nil, Set{Name: "web", Files: []File{
			{Path: "/srv/first", Data: []byte("x")}, {Path: "/srv/x", Group: "no-such-group"}}}, `no group "no-such-group"`},
		{"a missing group of a directory", nil, Set{Name: "web", Directories: []Directory{{Path: "/srv/x", Group: "no-such-group"}},
			Files: []File{{Path: "/srv/first"}}}, `no group "no-such-group"`},
		{"a file twice", nil, Set{Name: "web", Files: []File{{Path: "/srv/x"}, {Path: "/srv/x"}}}, "twice"},
		{"a file twice, over a link", func(s scene) error {
			return steps(os.MkdirAll(s.path("/srv/real"), 0o755), os.Symlink("real", s.path("/srv/also")))
		}, Set{Name: "web", Files: []File{{Path: "/srv/real/x"}, {Path: "/srv/also/x"}}}, "twice"},
		{"a file that is also a directory", nil, Set{Name: "web", Files: []File{{Path: "/srv/x"}, {Path: "/srv/x/y"}}},
			"as a file and as a directory"},
		{"a link to another directory", nil, Set{Name: "web", Files: []File{{Path: "/srv/x", Link: "../etc/passwd"}}},
			"a name in its own directory would pass"},
		{"too much", nil, Set{Name: "web", Files: []File{{Path: "/srv/x", Data: make([]byte, maxFile+1)}}}, "octets"},
	}
	if len(cases) < 30 {
		t.Fatal("cases are missing")
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t)
			if c.prepare != nil {
				if err := c.prepare(s); err != nil {
					t.Fatal(err)
				}
			}
			p := s.placer(t)
			was := snapshot(t, s.root)
			out, err := p.Place(t.Context(), c.set, nil, nil)
			var refusal *fault.Error
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%+v, error: %v", out, err)
			}
			c.set.Adopt = true
			if _, err = p.Place(t.Context(), c.set, nil, nil); err == nil {
				t.Fatal("adopting made it pass")
			}
			if _, err := p.Difference(c.set); err == nil {
				t.Fatal("Difference finds nothing wrong with it")
			}
			if now := snapshot(t, s.root); now != was {
				t.Fatalf("something was written:\n%s\nwas:\n%s", now, was)
			}
		})
	}
}

// TestDeviceIsRefused: what is at a device's name is not opened, which might act.
func TestDeviceIsRefused(t *testing.T) {
	s := newScene(t)
	p := s.placer(t, func(o *Options) {
		o.System.Root = ""
		o.Accept.Prefixes = []string{"/dev"}
		o.Cut = func(op Operation) error {
			if op.Name == "open" && op.Path == "/dev/null" {
				return errors.New("the device was opened")
			}
			return nil
		}
	})
	set := one("/dev/null")
	set.Adopt = true
	if _, err := p.Place(t.Context(), set, nil, nil); err == nil || !strings.Contains(err.Error(), "is a device") {
		t.Fatalf("error: %v", err)
	}
}

// TestStateDirectoryIsNoTarget: not even where it lies below an accepted prefix.
func TestStateDirectoryIsNoTarget(t *testing.T) {
	s := newScene(t)
	s.state = s.path("/srv/agent")
	if err := os.Mkdir(s.path("/srv"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := s.placer(t)
	for _, path := range []string{"/srv/agent/record.json", "/srv/agent/journal/web.journal"} {
		if _, err := p.Place(t.Context(), one(path), nil, nil); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestLinksThatAreFollowed: a directory's link by root, or by the agent's own user below a root, to where files are accepted.
func TestLinksThatAreFollowed(t *testing.T) {
	for _, target := range []string{"real", "/srv/real", "../srv/real", "ROOT/srv/real"} {
		s := newScene(t)
		if err := os.MkdirAll(s.path("/srv/real"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(strings.Replace(target, "ROOT", s.root, 1), s.path("/srv/also")); err != nil {
			t.Fatal(err)
		}
		p := s.placer(t)
		mustPlace(t, p, one("/srv/also/key"))
		mustBe(t, scene{root: s.path("/srv/real")}, one("/key"))
	}
}

// TestExceptions are not accepted under a wider prefix, not over a link either, and are where they are named.
func TestExceptions(t *testing.T) {
	s := newScene(t)
	if err := os.MkdirAll(s.path("/srv/trust"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("trust", s.path("/srv/also")); err != nil {
		t.Fatal(err)
	}
	for path, passes := range map[string]map[string]bool{
		"/srv/trust/x": {"/srv": false, "/srv/trust": true, "/srv/trust/x": true}, "/srv/also/x": {"/srv": false, "/srv/trust": false},
		"/srv/trusty/x": {"/srv": true}, "/srv/trust": {"/srv": false},
	} {
		for prefix, pass := range passes {
			p := s.placer(t, func(o *Options) { o.Accept = Accept{Prefixes: []string{prefix}, Except: []string{"/srv/trust"}} })
			_, err := p.Difference(one(path))
			if refused := fault.Is(err, fault.Denied); refused == pass {
				t.Errorf("%s where %s is accepted: %v", path, prefix, err)
			}
		}
	}
}

// TestLinkOfAnotherUser is refused wherever it leads. For root that is a link of nobody; for anybody else, his own link where
// no root of his own makes him stand for root.
func TestLinkOfAnotherUser(t *testing.T) {
	s := newScene(t)
	if err := os.MkdirAll(s.path("/srv/real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", s.path("/srv/also")); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(s.path("/srv/also"), nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	p := s.placer(t, func(o *Options) {
		o.System.Root = ""
		o.Accept.Prefixes = []string{s.path("/srv")}
	})
	_, err := p.Place(t.Context(), one(s.path("/srv/also/key")), nil, nil)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "only links that root made are followed") {
		t.Fatalf("error: %v", err)
	}
}

// TestPathsBelowTheRootAreNotPrefixedAgain: the operator may write them either way.
func TestPathsBelowTheRootAreNotPrefixedAgain(t *testing.T) {
	s := newScene(t)
	p := s.placer(t, func(o *Options) { o.Accept.Prefixes = []string{s.path("/srv") + "/"} })
	mustPlace(t, p, one(s.path("/srv/web/key")))
	mustBe(t, s, one("/srv/web/key"))
	if _, err := p.Place(t.Context(), one(s.root+"-other/key"), nil, nil); !fault.Is(err, fault.Denied) {
		t.Fatalf("a directory whose name begins like the root's: %v", err)
	}
}

// TestExchangedUnderway puts, at each step of a placement, a link to a directory outside in the place of the files' directory,
// and a link to a file outside in the place of each file. Nothing outside is ever written.
func TestExchangedUnderway(t *testing.T) {
	exchanges := map[string]func(s scene, outside string) error{
		"directory": func(s scene, outside string) error {
			if err := os.Rename(s.path("/etc/pki/web"), s.path("/etc/away")); err != nil {
				return err
			}
			return os.Symlink(outside, s.path("/etc/pki/web"))
		},
		"file": func(s scene, outside string) error {
			var all []error
			for _, f := range generation(1).Files {
				os.Remove(s.path(f.Path))
				all = append(all, os.Symlink(filepath.Join(outside, "victim"), s.path(f.Path)))
			}
			return errors.Join(all...)
		},
	}
	total, refused := 0, 0
	for name, exchange := range exchanges {
		for cut, n := 1, 2; cut < n; cut++ {
			s := newScene(t)
			outside := quickDir(t)
			if err := os.WriteFile(filepath.Join(outside, "victim"), []byte("as it was"), 0o644); err != nil {
				t.Fatal(err)
			}
			was := snapshot(t, outside)
			seen, armed := 0, false
			p := s.placer(t, func(o *Options) {
				o.Cut = func(op Operation) error {
					if armed && !op.After {
						if seen++; seen == cut {
							return exchange(s, outside)
						}
					}
					return nil
				}
			})
			first := generation(1)
			mustPlace(t, p, first)
			armed = true
			if _, err := p.Place(t.Context(), generation(2), &first, nil); err != nil {
				refused++
			}
			p.Close()
			if now := snapshot(t, outside); now != was {
				t.Fatalf("%s exchanged at %d: written outside:\n%s\nwas:\n%s", name, cut, now, was)
			}
			n = seen
			total++
		}
	}
	t.Logf("%d exchanges, of which %d were refused", total, refused)
	if total < 150 || refused == 0 || refused == total {
		t.Fatal("the test proves too little")
	}
}

func TestAcceptNothing(t *testing.T) {
	s := newScene(t)
	p := s.placer(t, func(o *Options) { o.Accept = Accept{} })
	if _, err := p.Place(t.Context(), one("/etc/pki/x"), nil, nil); !fault.Is(err, fault.Denied) {
		t.Fatalf("error: %v", err)
	}
	o := s.options()
	o.System = probe.System{Root: "relative"}
	if _, err := New(o); !fault.Is(err, fault.Invalid) {
		t.Fatalf("a relative root: %v", err)
	}
}
