package loop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

func TestConfigOfAHostIsReadStrictly(t *testing.T) {
	c, err := ParseConfig([]byte("recipes: [nginx, local/mail]\npaths: [/etc/nginx]\nsteps:\n  nginx:\n    reload: [/sbin/rc-service, nginx, reload]\nadopt: true\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.accepts("nginx") != nil || c.accepts("local/mail") != nil || !c.Adopt {
		t.Fatalf("%+v", c)
	}
	if err := c.accepts("postgresql"); !fault.Is(err, fault.Denied) {
		t.Fatalf("a recipe that is not listed: %v", err)
	}
	for text, want := range map[string]string{
		"recipe: [nginx]":                                "recipe",
		"recipes: [apache9]":                             "apache9",
		"recipes: [local/../x]":                          "local/../x",
		"paths: [/]":                                     `"/"`,
		"paths: [/etc/../etc]":                           "clean",
		"paths: [etc]":                                   "absolute",
		"reads: [/run/]":                                 "reads: ",
		"steps: {nginx: {reload: []}}":                   "argument vector",
		"steps: {nginx: {reload: [reload-nginx]}}":       "absolute path",
		"steps: {apache9: {reload: [/bin/true]}}":        "apache9",
		"steps: {nginx: {relaod: [/bin/true]}}":          "relaod",
		"adopt: true\nadopt: false":                      "adopt",
		"recipes: [apache9]\npaths: [x]\nsteps: {y: {}}": "apache9",
	} {
		_, err := ParseConfig([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v does not name %q", text, err, want)
		}
	}
	if _, err := ParseConfig([]byte("recipes: [apache9]\npaths: [x]")); err == nil || strings.Count(err.Error(), "\n") == 0 {
		t.Errorf("not every fault is named: %v", err)
	}
}

func TestDefaultsAcceptBuiltinRecipesOnly(t *testing.T) {
	c, err := LoadConfig(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, r := range recipe.Builtins() {
		if c.accepts(r.Name) == nil {
			n++
		}
	}
	if n == 0 || n != len(recipe.Builtins()) {
		t.Fatalf("%d built-in recipes are accepted", n)
	}
	if c.accepts("local/x") == nil {
		t.Fatal("a recipe of the host's own is accepted without being listed")
	}
	plan := &recipe.Plan{Files: []recipe.PlannedFile{{Path: "/etc/nginx/tls/x"}, {Path: "/etc/shadow"}, {Path: "/etc/nginxy"}}}
	if err := c.acceptsPaths(plan, ""); err == nil || !strings.Contains(err.Error(), "/etc/shadow, /etc/nginxy") || strings.Contains(err.Error(), "tls/x") {
		t.Fatalf("%v", err)
	}
	plan = &recipe.Plan{Files: []recipe.PlannedFile{{Path: "/r/oot/etc/nginx/tls/x"}, {Path: "/r/oot/etc/shadow"}, {Path: "/r/ooted/etc/nginx/x"}}}
	if err := c.acceptsPaths(plan, "/r/oot"); err == nil || strings.Contains(err.Error(), "tls/x") || !strings.Contains(err.Error(), "and not /etc/shadow, /r/ooted/") {
		t.Fatalf("paths that have the root before them: %v", err)
	}
}

func TestConfigThatOthersCouldWriteIsRefused(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, ConfigFile)
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, []byte("adopt: true\n"), 0o644))
	if c, err := LoadConfig(root); err != nil || !c.Adopt {
		t.Fatalf("%+v, %v", c, err)
	}
	must(t, os.Chmod(file, 0o666))
	if _, err := LoadConfig(root); !fault.Is(err, fault.Denied) {
		t.Errorf("a file that all may write: %v", err)
	}
	must(t, os.Chmod(file, 0o644))
	must(t, os.Chmod(filepath.Dir(file), 0o777))
	if _, err := LoadConfig(root); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), filepath.Dir(file)) {
		t.Errorf("a directory that all may write: %v", err)
	}
	must(t, os.Chmod(filepath.Dir(file), 0o755))
	if os.Geteuid() == 0 {
		must(t, os.Chown(file, 65534, 65534))
		if _, err := LoadConfig(root); !fault.Is(err, fault.Denied) {
			t.Errorf("a file of nobody's: %v", err)
		}
		must(t, os.Chown(file, 0, 0))
	}
	elsewhere := filepath.Join(root, "elsewhere")
	must(t, os.Mkdir(elsewhere, 0o777))
	must(t, os.Chmod(elsewhere, 0o777))
	must(t, os.Rename(file, filepath.Join(elsewhere, "agent.yaml")))
	must(t, os.Symlink(filepath.Join(elsewhere, "agent.yaml"), file))
	if _, err := LoadConfig(root); !fault.Is(err, fault.Denied) {
		t.Errorf("a link to where all may write: %v", err)
	}
}

func TestOwnRecipesComeFromTheHost(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, RecipeDirectory)
	must(t, os.MkdirAll(dir, 0o755))
	text, ok := recipe.BuiltinYAML("plain")
	if !ok {
		t.Fatal("there is no recipe plain")
	}
	must(t, os.WriteFile(filepath.Join(dir, "mail.yaml"), []byte(strings.Replace(string(text), "name: plain", "name: mail", 1)), 0o644))
	c, err := ParseConfig([]byte("recipes: [local/*]"))
	must(t, err)
	if r, err := c.recipe("local/mail", root); err != nil || r.Name != "mail" {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, kind := range map[string]fault.Kind{"local/none": fault.NotFound, "local/../../x": fault.Invalid, "plain": fault.Denied} {
		if _, err := c.recipe(name, root); !fault.Is(err, kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
