package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/run/bench"
)

// TestEveryBudgetIsMeasured runs the whole benchmark on SQLite with next to nothing in it. Its figures judge nothing; what
// counts is that every program runs, every answer passes, and every budget has a line.
func TestEveryBudgetIsMeasured(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var out, talk bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := bench.Run(ctx, bench.Options{
		Program: built(t), Dir: dir, Profiles: filepath.Join(dir, "profiles"), Only: []string{"sqlite", "issuance", "ocsp", "revocation", "crl", "start"},
		Scale: bench.Tiny, Out: &out, Err: &talk,
	})
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, talk.String(), out.String())
	}
	var names []string
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "BUDGET ") {
			continue
		}
		b, err := bench.ParseBudget(strings.TrimSpace(line))
		if err != nil {
			t.Error(err)
		}
		if peer := strings.HasPrefix(b.Name, "issuance-vs-step-ca"); b.Unknown != peer || !peer && b.Measured <= 0 {
			t.Errorf("%s", line) // step-ca was not given, so only what is compared with it is not measured
		}
		names = append(names, b.Name)
	}
	want := []string{
		"full-crl-memory.sqlite.revoked", "full-crl-time.sqlite.revoked", "issuance-vs-bare.sqlite.empty", "issuance-vs-bare.sqlite.full",
		"issuance-vs-step-ca.sqlite.empty", "issuance-vs-step-ca.sqlite.full", "ocsp-cached.sqlite.empty", "ocsp-cached.sqlite.full",
		"ocsp-nonce.sqlite.empty", "ocsp-nonce.sqlite.full", "revoke-cost.sqlite.revoked", "revoke-visible.sqlite.empty",
		"revoke-visible.sqlite.full", "revoke-visible.sqlite.revoked", "start.sqlite.full",
	}
	if slices.Sort(names); !slices.Equal(names, want) {
		t.Errorf("budgets %q\nwant %q", names, want)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "chancery-bench-*")); len(left) > 0 {
		t.Errorf("%q was left behind", left)
	}
	if t.Failed() {
		t.Log(out.String(), talk.String())
	}
}

// TestAgents runs some agents: all of them join, place and report, and are re-keyed twice, once because the authority says so
// and once because all their certificates are due. Run refuses unless each ends with a pair that is valid and under its trust,
// an agent with nothing to do writes nothing, and those that wait hear of what concerns them.
func TestAgents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var out, talk bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	err := bench.Run(ctx, bench.Options{
		Program: built(t), Dir: dir, Profiles: filepath.Join(dir, "profiles"), Only: []string{"sqlite", "agents"}, Scale: bench.Tiny, Out: &out, Err: &talk,
	})
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, talk.String(), out.String())
	}
	seen := 0
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "BUDGET ") {
			continue
		}
		b, err := bench.ParseBudget(strings.TrimSpace(line))
		if err != nil {
			t.Error(err)
		}
		if b.Unknown || b.Measured < 0 {
			t.Errorf("%s", line)
		}
		if strings.HasPrefix(b.Name, "agents-storm.") && b.Measured != 1 {
			t.Errorf("a storm lost something: %s", line)
		}
		seen++
	}
	if seen != 6 {
		t.Errorf("%d budgets of 6 were measured", seen)
	}
	if t.Failed() {
		t.Log(out.String(), talk.String())
	}
}

// program is this program: linked once for all tests, since that takes as long as some of them, and without what debuggers read.
var program = sync.OnceValues(func() (string, error) {
	file := filepath.Join(place(), "chancery")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", file, "chancery/cmd/chancery").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return file, nil
})

// place is where this process has it.
func place() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("chancery-built-%d", os.Getpid()))
}

func built(t *testing.T) string {
	t.Helper()
	file, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// TestMain removes what was built.
func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(place())
	os.Exit(code)
}

func TestOnlyRefusesUnknownNames(t *testing.T) {
	err := bench.Run(t.Context(), bench.Options{Only: []string{"sqlite", "everything"}, Out: &bytes.Buffer{}, Err: &bytes.Buffer{}})
	if err == nil || !strings.Contains(err.Error(), `"everything"`) {
		t.Errorf("got %v", err)
	}
}
