package doctor

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestNodeRulesAreAll: whatever a node is looked at for, or a finding of it is called, is among the rules, which the page has, and no rule
// is of something that nobody looks at.
func TestNodeRulesAreAll(t *testing.T) {
	names := slices.Collect(maps.Keys((&Node{}).looks(t.Context(), time.Now())))
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	check := regexp.MustCompile(`\bCheck(?::| =) *"([^"]+)"`)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "database") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range check.FindAllStringSubmatch(string(text), -1) {
			names = append(names, found[1])
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	var rules []string
	for _, r := range NodeRules() {
		rules = append(rules, r.ID)
	}
	if len(names) < 20 || !slices.Equal(names, rules) {
		t.Errorf("looked at is\n%q, and the rules are\n%q", names, rules)
	}
}
