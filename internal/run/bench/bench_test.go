package bench_test

import (
	"bytes"
	"context"
	"maps"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/run/bench"
	"chancery/internal/run/cli"
)

// TestEveryBudgetIsMeasured runs the whole benchmark on SQLite with next to nothing in it. Its figures judge nothing; what
// counts is that every program runs, every answer passes, and every budget has a line.
func TestEveryBudgetIsMeasured(t *testing.T) {
	t.Parallel()
	measured := run(t, "sqlite", "issuance", "ocsp", "revocation", "crl", "start")
	for _, store := range []string{"empty", "full"} {
		// step-ca was not given, so only what is compared with it is not measured.
		name := "issuance-vs-step-ca.sqlite." + store
		if b, ok := measured[name]; !ok || !b.Unknown {
			t.Errorf("%s, in %v", b, ok)
		}
		delete(measured, name)
	}
	each(t, measured, "full-crl-memory.sqlite.revoked", "full-crl-time.sqlite.revoked", "issuance-vs-bare.sqlite.empty", "issuance-vs-bare.sqlite.full",
		"ocsp-cached.sqlite.empty", "ocsp-cached.sqlite.full", "ocsp-nonce.sqlite.empty", "ocsp-nonce.sqlite.full", "revoke-cost.sqlite.revoked",
		"revoke-visible.sqlite.empty", "revoke-visible.sqlite.full", "revoke-visible.sqlite.revoked", "start.sqlite.full")
}

// TestClonesOnACluster measures an authority of three nodes on three members, whose primary stands still for a moment, and then dies. That no answer
// is lost meanwhile is judged where the primary is away until another is promoted: by the benchmark, and by what the chaos of make check does.
func TestClonesOnACluster(t *testing.T) {
	t.Parallel()
	measured := run(t, "clones", "cluster")
	for _, name := range []string{"clones-ocsp-frozen.postgres.cluster", "clones-ocsp-lost.postgres.cluster"} {
		if b, ok := measured[name]; !ok || b.Unknown || b.Measured < 0 {
			t.Errorf("%s, in %v", b, ok)
		}
		delete(measured, name) // nothing may be lost
	}
	each(t, measured, "clones-issue.postgres.cluster", "clones-join.postgres.cluster", "clones-promote.postgres.cluster", "clones-revoke-visible.postgres.cluster")
}

// TestAgents runs some agents: all of them join, place and report, and are re-keyed twice, once because the authority says so
// and once because all their certificates are due. Run refuses unless each ends with a pair that is valid and under its trust,
// an agent with nothing to do writes nothing, and those that wait hear of what concerns them.
func TestAgents(t *testing.T) {
	t.Parallel()
	measured := run(t, "sqlite", "agents")
	if b := measured["agents-storm.sqlite.empty"]; b.Measured != 1 {
		t.Errorf("a storm lost something: %s", b)
	}
	steady := measured["agents-steady.sqlite.empty"]
	if steady.Unknown || steady.Measured < 0 {
		t.Errorf("%s", steady)
	}
	delete(measured, "agents-steady.sqlite.empty") // in so short a time a node may take less than the kernel counts
	each(t, measured, "agent-memory.sqlite.empty", "agent-pass.sqlite.empty", "agents-held-memory.sqlite.empty", "agents-join.sqlite.empty", "agents-storm.sqlite.empty")
}

// run measures parts of the benchmark with next to nothing in them, and returns the budgets by name. It wants an answer within a quarter of an hour, on
// however busy a machine, and nothing to be left behind.
func run(t *testing.T, only ...string) map[string]bench.Budget {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var out, talk bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 14*time.Minute)
	defer cancel()
	err = bench.Run(ctx, bench.Options{
		Program: program, Dir: dir, Profiles: filepath.Join(dir, "profiles"), Only: only, Scale: bench.Tiny, Out: &out, Err: &talk,
	})
	t.Log(out.String(), talk.String()) // which is shown where the test fails
	if err != nil {
		t.Fatal(err)
	}
	measured := map[string]bench.Budget{}
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "BUDGET ") {
			continue
		}
		b, err := bench.ParseBudget(strings.TrimSpace(line))
		if _, twice := measured[b.Name]; err != nil || twice {
			t.Errorf("%s: %v", line, err)
		}
		measured[b.Name] = b
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "chancery-bench-*")); len(left) > 0 {
		t.Errorf("%q was left behind", left)
	}
	return measured
}

// each wants these budgets, and no others, to be measured, each with a figure that something can have.
func each(t *testing.T, measured map[string]bench.Budget, names ...string) {
	t.Helper()
	if got := slices.Sorted(maps.Keys(measured)); !slices.Equal(got, names) {
		t.Errorf("budgets %q\nwant %q", got, names)
	}
	for _, b := range measured {
		if b.Unknown || b.Measured <= 0 || math.IsInf(b.Measured, 0) || math.IsNaN(b.Measured) {
			t.Errorf("%s", b)
		}
	}
}

// TestMain lets the test binary be the program that is measured, which it holds: linking another takes minutes on a busy machine, of the time
// that tests have. Whoever runs tests gives flags, and no command.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}

func TestOnlyRefusesWhatMeasuresNothing(t *testing.T) {
	for only, want := range map[string]string{"sqlite everything": `"everything"`, "clones sqlite": "measures nothing", "cluster issuance": "measures nothing"} {
		err := bench.Run(t.Context(), bench.Options{Only: strings.Fields(only), Out: &bytes.Buffer{}, Err: &bytes.Buffer{}})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("--only %s: got %v", only, err)
		}
	}
}
