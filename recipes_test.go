package chancery_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"chancery/internal/agent/recipe"
)

const recipesPage = "docs/recipes.md"

// TestGoldenReferenceRecipes makes the page of the built-in recipes from the recipes themselves. It fails where the committed
// page says anything else.
func TestGoldenReferenceRecipes(t *testing.T) {
	p := &page{T: t}
	p.text("# Recipes", "",
		"A recipe says how one consumer wants its certificates: which key, which files in which form, with which owner, mode and",
		"label, how it is told of them, and how it is seen that it serves them. This page is made from the built-in recipes by",
		"`make golden`, and a test fails while it says anything else. `chancery recipe explain NAME --param KEY=VALUE` says the same for",
		"parameters that you give; `chancery recipe show NAME` prints the recipe, which is where to begin with one of your own, and",
		"`chancery recipe test FILE` judges that. How the language works is in the [guide to recipes](recipe-language.md).", "")
	all := recipe.Builtins()
	p.atLeast("built-in recipes", len(all), 8)
	p.head("recipe", "for")
	for _, r := range all {
		p.row("["+r.Name+"](#"+r.Name+")", r.Title)
	}
	for _, r := range all {
		explanation, err := r.Explain(nil)
		if err != nil {
			t.Fatal(err)
		}
		p.text("")
		if err := explanation.Markdown(p); err != nil {
			t.Fatal(err)
		}
	}
	if *update {
		if err := os.WriteFile(recipesPage, p.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(recipesPage)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, p.Bytes()) {
		t.Errorf("%s is not what the recipes say; make golden writes it anew. First difference:\n%s", recipesPage,
			firstDifference(string(got), p.String()))
	}
}

// TestRecipeLanguageExample: the recipe in the guide is sound, and does on a host what the guide says of it.
func TestRecipeLanguageExample(t *testing.T) {
	_, text, found := strings.Cut(string(mustRead(t, "docs/recipe-language.md")), "```yaml\n")
	text, _, closed := strings.Cut(text, "```")
	if !found || !closed {
		t.Fatal("the guide has no example")
	}
	r, err := recipe.Parse([]byte(text), "docs/recipe-language.md")
	if err != nil {
		t.Fatal(err)
	}
	host := recipe.Host{Name: "host1.example.com", DNS: []string{"host1.example.com"}, Authority: "default Root"}
	for version, want := range map[string]string{"": "rsa-3072", "1.9": "rsa-3072", "2.0": "ecdsa-p256", "10.1": "ecdsa-p256"} {
		plan, err := r.Resolve(host, nil, recipe.Facts{"version": version, "group": "proxy"})
		if err != nil || plan.Certificates[0].Algorithm != want {
			t.Errorf("version %q: %+v, %v", version, plan, err)
		}
	}
	if _, err := r.Resolve(host, nil, nil); err == nil || !strings.Contains(err.Error(), "none of the groups proxy, www-data") {
		t.Errorf("without a group: %v", err)
	}
}
