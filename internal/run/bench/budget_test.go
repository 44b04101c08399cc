package bench

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

func TestPercentiles(t *testing.T) {
	var l latencies
	for i := 100; i >= 1; i-- {
		l = append(l, time.Duration(i)*time.Millisecond)
	}
	for p, want := range map[float64]time.Duration{0: 1, 50: 50, 99: 99, 99.5: 100, 100: 100} {
		if got := l.percentile(p); got != want*time.Millisecond {
			t.Errorf("percentile %v is %v, want %vms", p, got, int(want))
		}
	}
	if l[0] != 100*time.Millisecond {
		t.Error("percentile sorted what it was given")
	}
	if got := latencies(nil).percentile(99); got != 0 {
		t.Errorf("percentile of nothing is %v", got)
	}
	if got := (latencies{7}).percentile(1); got != 7 {
		t.Errorf("percentile of one is %v", got)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 100}, 3}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.values, got, c.want)
		}
	}
}

func TestBudgetLines(t *testing.T) {
	for _, c := range []struct {
		budget Budget
		line   string
	}{
		{Budget{Name: "a.sqlite.empty", Measured: 3.456, Unit: "x", AtLeast: true, Bound: 3}, "BUDGET a.sqlite.empty 3.46x >=3x ok"},
		{Budget{Name: "a", Measured: 0.0349, Unit: "x", AtLeast: true, Bound: 0.35}, "BUDGET a 0.0349x >=0.35x missed"},
		{Budget{Name: "b", Measured: 1234.5, Unit: "ms", Bound: 1000}, "BUDGET b 1234ms <=1000ms missed"},
		{Budget{Name: "b", Measured: 1000, Unit: "ms", Bound: 1000}, "BUDGET b 1000ms <=1000ms ok"},
		{Budget{Name: "d", Measured: 0.000034, Unit: "x", AtLeast: true, Bound: 0.5}, "BUDGET d 0.000034x >=0.5x missed"},
		{Budget{Name: "c", Unit: "MB", Bound: 100, Unknown: true}, "BUDGET c unmeasured <=100MB missed"},
	} {
		if got := c.budget.String(); got != c.line {
			t.Errorf("got  %s\nwant %s", got, c.line)
		}
		back, err := ParseBudget(c.line)
		if err != nil {
			t.Error(err)
			continue
		}
		if math.Abs(back.Measured-c.budget.Measured) > c.budget.Measured/100 {
			t.Errorf("%s was read as %v", c.line, back.Measured)
		}
		back.Measured = c.budget.Measured
		if back != c.budget {
			t.Errorf("%s was read as %+v", c.line, back)
		}
	}
	for _, line := range []string{"", "BUDGET a 1x >=1x", "BUDGET a 1x >=1x fine", "budget a 1x >=1x ok", "BUDGET a one >=1x ok", "BUDGET a 1x >=onex ok"} {
		if b, err := ParseBudget(line); err == nil {
			t.Errorf("%q was read as %+v", line, b)
		}
	}
}

// A budget that is rounded to its bound must not be printed as missed, or as met, against what its line says.
func TestVerdictIsOfTheValueAndNotOfItsDigits(t *testing.T) {
	b := Budget{Name: "a", Measured: 0.3499, Unit: "x", AtLeast: true, Bound: 0.35}
	if b.OK() || !strings.HasSuffix(b.String(), "missed") {
		t.Errorf("%s", b)
	}
}

func TestWantedBudgets(t *testing.T) {
	everything := func(string) bool { return true }
	all := wanted([]string{sqliteEngine, postgresEngine}, everything, everything)
	names := map[string]bool{}
	for _, b := range all {
		if !b.Unknown || b.OK() {
			t.Errorf("%s is there before it was measured", b)
		}
		names[b.Name] = true
	}
	if len(names) != len(all) || len(all) != 57 {
		t.Errorf("%d budgets, %d names", len(all), len(names))
	}
	some := wanted([]string{sqliteEngine}, func(part string) bool { return part == partStart }, everything)
	if len(some) != 1 || some[0].Name != "start.sqlite.full" {
		t.Errorf("only start: %v", some)
	}
}

// TestOnly: what is asked for by name is what is measured, and what would measure nothing has no budgets, so that Run refuses it.
func TestOnly(t *testing.T) {
	cluster := []string{"clones-issue.postgres.cluster", "clones-promote.postgres.cluster", "clones-revoke-visible.postgres.cluster",
		"clones-join.postgres.cluster", "clones-ocsp-lost.postgres.cluster", "clones-ocsp-frozen.postgres.cluster"}
	for _, c := range []struct {
		only string
		want []string
	}{
		{"start", []string{"start.sqlite.full", "start.postgres.full"}},
		{"start sqlite", []string{"start.sqlite.full"}},
		{"cluster", cluster},
		{"clones cluster", cluster},
		{"clones cluster postgres", cluster},
		{"clones", append([]string{"clones-issue.postgres.empty", "clones-promote.postgres.empty", "clones-revoke-visible.postgres.empty", "clones-join.postgres.full"}, cluster...)},
		{"clones sqlite", nil},
		{"cluster sqlite", nil},
		{"cluster issuance", nil},
	} {
		b := &bench{Options: Options{Only: strings.Fields(c.only)}}
		var got []string
		for _, budget := range wanted(b.engines(), b.part, b.store) {
			got = append(got, budget.Name)
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("--only %s measures %q, want %q", c.only, got, c.want)
		}
	}
}

// TestParametersAreThoseShipped holds the cluster that is measured against the one that operators are given.
func TestParametersAreThoseShipped(t *testing.T) {
	text, err := os.ReadFile("../../../deploy/patroni/patroni.yml")
	if err != nil {
		t.Fatal(err)
	}
	var given struct {
		Bootstrap struct {
			DCS struct {
				PostgreSQL struct {
					Parameters map[string]any `yaml:"parameters"`
				} `yaml:"postgresql"`
			} `yaml:"dcs"`
		} `yaml:"bootstrap"`
	}
	if err := yaml.Unmarshal(text, &given); err != nil {
		t.Fatal(err)
	}
	for name, value := range shipped {
		if want := given.Bootstrap.DCS.PostgreSQL.Parameters[name]; name != "shared_buffers" && fmt.Sprint(want) != value {
			t.Errorf("%s is %s, and %v is shipped", name, value, want)
		}
	}
}
