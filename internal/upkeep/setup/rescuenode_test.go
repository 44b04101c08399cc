package setup_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// lose takes the node's key away for good.
func lose(t *testing.T, dir datadir.Dir) {
	t.Helper()
	if err := os.Remove(dir.NodeKey()); err != nil {
		t.Fatal(err)
	}
}

// serves has the node of a directory issue, which needs its key, its name and its wraps.
func serves(t *testing.T, dir datadir.Dir, name string) {
	t.Helper()
	s := open(t, dir)
	if s.Audit.Node() != name {
		t.Errorf("the node is %s, and was called %s", s.Audit.Node(), name)
	}
	issue(t, s, name+".example")
	if err := s.DB.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(string(dir), "rescue-node*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestNodeRescueIsCutAnywhere fails each commit of a rescue, both ways: the same command makes a node that issues.
func TestNodeRescueIsCutAnywhere(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), DatabaseFile: databaseFile(t, url)})
		if err != nil {
			t.Fatal(err)
		}
		dir, key := result.Dir, recovery(t, result)
		config, err := dir.Load()
		if err != nil {
			t.Fatal(err)
		}
		at, _, err := config.DatabaseURLs(dir)
		if err != nil {
			t.Fatal(err)
		}
		commits := 0
		cut := func(n int, outcome pkitest.Outcome) error {
			var faults pkitest.Faults
			d, err := db.Open(t.Context(), db.Options{URL: at, Wrap: faults.Wrap})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if n > 0 {
				faults.FailCommit(n, outcome)
			}
			err = setup.RescueNodeOn(t.Context(), dir, d, key)
			commits = max(commits, faults.Commits())
			return err
		}
		lose(t, dir)
		if err := cut(0, ""); err != nil {
			t.Fatal(err)
		}
		if commits < 3 {
			t.Fatalf("a rescue took %d commits; the test would prove nothing", commits)
		}
		failed := 0
		for n := 1; n <= commits; n++ {
			for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
				lose(t, dir)
				if cut(n, outcome) == nil {
					continue // it was tried again, or found out
				}
				failed++
				if _, err := os.Lstat(dir.NodeKey()); err == nil {
					t.Errorf("commit %d, %s: node.key is there before the node is", n, outcome)
				}
				done, err := setup.RescueNode(t.Context(), setup.NodeRescue{Dir: dir, Recovery: key})
				if err != nil || done.Keys == 0 {
					t.Fatalf("commit %d, %s: the second run made %+v: %v", n, outcome, done, err)
				}
				serves(t, dir, done.Name)
			}
		}
		if failed == 0 {
			t.Error("no rescue was cut short")
		}
	})
}

// TestNodeRescueIsCutBetweenFiles stops a rescue at each file that it writes in the node's directory.
func TestNodeRescueIsCutBetweenFiles(t *testing.T) {
	t.Parallel()
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	dir, key := result.Dir, recovery(t, result)
	inTheWay := func(path string) (away func()) {
		if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	staged := filepath.Join(string(dir), "rescue-node")
	for what, block := range map[string]func() (away func()){
		"the staged name":       func() func() { return inTheWay(filepath.Join(staged, "name")) },
		"the staged key":        func() func() { return inTheWay(filepath.Join(staged, "node.key")) },
		"the name in node.yaml": func() func() { return reworded(t, dir) },
		"the TLS certificate":   func() func() { return inTheWay(dir.TLS()) },
		"what else is staged":   func() func() { return inTheWay(filepath.Join(staged, "else")) },
	} {
		lose(t, dir)
		away := block()
		if _, err := setup.RescueNode(t.Context(), setup.NodeRescue{Dir: dir, Recovery: key}); err == nil {
			t.Errorf("%s: nothing was in the way", what)
		}
		away()
		name := ""
		done, err := setup.RescueNode(t.Context(), setup.NodeRescue{Dir: dir, Recovery: key})
		if err == nil {
			name = done.Name
		}
		if what == "what else is staged" {
			// The new key was in its place, and all else was done.
			if !fault.Is(err, fault.Conflict) {
				t.Errorf("%s: %v", what, err)
			}
			config, err := dir.Load()
			if err != nil {
				t.Fatal(err)
			}
			name = config.Name
			if err := os.RemoveAll(staged); err != nil {
				t.Fatal(err)
			}
		} else if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		serves(t, dir, name)
	}
	// Another key in the node's place is nobody's to replace, whatever was staged.
	lose(t, dir)
	away := inTheWay(dir.TLS())
	if _, err := setup.RescueNode(t.Context(), setup.NodeRescue{Dir: dir, Recovery: key}); err == nil {
		t.Fatal("nothing was in the way")
	}
	away()
	if err := os.WriteFile(dir.NodeKey(), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.RescueNode(t.Context(), setup.NodeRescue{Dir: dir, Recovery: key}); !fault.Is(err, fault.Conflict) {
		t.Errorf("over another key: %v", err)
	}
}

// reworded writes node.yaml so that it says the same, and its name cannot be changed.
func reworded(t *testing.T, dir datadir.Dir) (back func()) {
	t.Helper()
	before := readFile(t, dir.Config())
	config, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	after := bytes.Replace(before, []byte("name: "+config.Name), fmt.Appendf(nil, "\"name\": %s", config.Name), 1)
	if bytes.Equal(before, after) {
		t.Fatalf("no name in %s", before)
	}
	write := func(text []byte) {
		if err := os.WriteFile(dir.Config(), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(after)
	return func() { write(before) }
}
