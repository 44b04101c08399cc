package loop

import (
	"strings"
	"testing"

	"chancery/internal/agent/recipe"
)

func TestOnlyFactsThatTheRecipeSpeaksOfAreTold(t *testing.T) {
	r, ok := recipe.Builtin("postgresql")
	if !ok {
		t.Fatal("there is no recipe postgresql")
	}
	rules, err := r.FactRules(map[string]string{"conf": "/etc/postgresql/15/main/postgresql.conf"})
	must(t, err)
	conf := ""
	for _, rule := range rules {
		if rule.Config != "" {
			conf = rule.Name
		}
	}
	if conf == "" {
		t.Fatal("the recipe reads no configuration")
	}
	facts := recipe.Facts{conf + ".primary_conninfo": "password=hunter2", conf + ".port": "5432", conf + ".ssl": "on"}
	if told := mentioned(r, facts); told[conf+".port"] != "5432" || told[conf+".primary_conninfo"] != "" {
		t.Fatalf("told: %v", told)
	}
}

func TestMessagesAreCutBetweenCharacters(t *testing.T) {
	if got := cut(strings.Repeat("ä", 2000), mostMessage); len(got) > mostMessage || !strings.HasSuffix(got, "ä…") {
		t.Fatalf("%d octets, ending in %q", len(got), got[len(got)-6:])
	}
	if got := cut("short", 10); got != "short" {
		t.Fatal(got)
	}
	if got := grouped([]string{"/a: x", "/b: x", "/c: y", "z"}); strings.Join(got, "|") != "x: /a, /b|y: /c|z" {
		t.Fatalf("%q", got)
	}
}
