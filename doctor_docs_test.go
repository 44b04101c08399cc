package chancery_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"chancery/internal/upkeep/doctor"
	"chancery/internal/upkeep/examine"
)

// TestRulesOfDoctorAreListed holds the list of rules in docs/doctor.md against the code; -update writes it.
func TestRulesOfDoctorAreListed(t *testing.T) {
	const page, begin, end = "docs/doctor.md", "<!-- rules -->\n", "<!-- end of rules -->"
	rules := slices.Concat(doctor.NodeRules(), doctor.DatabaseRules(), examine.Rules())
	slices.SortFunc(rules, func(a, b examine.Rule) int { return strings.Compare(a.ID, b.ID) })
	if len(rules) < 100 {
		t.Fatalf("there are %d rules; the check would prove little", len(rules))
	}
	var table strings.Builder
	table.WriteString("\n| rule | level | what is wrong | what to do |\n| --- | --- | --- | --- |\n")
	for i, r := range rules {
		if i > 0 && rules[i-1].ID == r.ID {
			t.Errorf("there are two rules %s", r.ID)
		}
		if r.About == "" || r.Do == "" || r.Level == "" || strings.Contains(r.About+r.Do, "|") {
			t.Errorf("%s says too little: %+v", r.ID, r)
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", r.ID, r.Level, r.About, r.Do)
	}
	table.WriteString("\n")
	text := string(mustRead(t, page))
	before, rest, found := strings.Cut(text, begin)
	has, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no place for the rules", page)
	}
	if *update {
		if err := os.WriteFile(page, []byte(before+begin+table.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(table.String(), has); diff != "" {
		t.Errorf("go test . -run RulesOfDoctor -update writes %s anew:\n%s", page, diff)
	}
}
