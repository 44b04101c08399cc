package recipe

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"chancery/internal/fault"
)

func judge(t *testing.T, text string, known map[string]string) verdict {
	t.Helper()
	c, err := parseCondition(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return c.judge(func(name string) string { return known[name] })
}

func TestConditions(t *testing.T) {
	known := map[string]string{"fact.version": "11.6.0-1.fc43", "fact.old": "9.0", "fact.conf.path": "/etc/x", "param.kind": "two", "param.on": "true",
		"param.text": "and", "authority": "Root, the"}
	for text, want := range map[string]verdict{
		"":                                    holds,
		"  ":                                  holds,
		"fact.version >= 11.6.0":              holds,
		"fact.version > 11.6.0":               holdsNot,
		"fact.version > 11.6":                 holdsNot,
		"fact.version >= 11.10":               holdsNot, // by numbers, not by letters
		"fact.version < 11.10.0":              holds,
		"fact.old <= 9.0.0":                   holds,
		"fact.old == 9.0.0":                   holds,
		`fact.old == "9.0.0"`:                 holdsNot, // quoted: as text
		"fact.old != 9":                       holdsNot,
		"fact.version == 11.6.0":              holdsNot, // 11.6.0-1.fc43 is not a version alone
		"fact.none >= 1":                      unknown,
		"not fact.none >= 1":                  unknown,
		"fact.none == \"\"":                   holds,
		"not (fact.none == \"\")":             holdsNot,
		"fact.none >= 1 or param.on":          holds,
		"fact.none >= 1 and param.on":         unknown,
		"fact.none >= 1 and not param.on":     holdsNot,
		"fact.conf.path >= 1":                 unknown,
		"fact.conf.path == /etc/x":            holds,
		"param.kind == two and param.on":      holds,
		"param.kind == one or param.on":       holds,
		"param.kind==two":                     holds,
		"not not param.on":                    holds,
		"not param.on or param.on":            holds,
		"not (param.on or param.kind == one)": holdsNot,
		"param.on and param.kind == one or param.kind == two": holds, // and binds closer
		`param.text == "and"`:      holds,
		`authority == "Root, the"`: holds,
		"two == param.kind":        holds,
	} {
		if got := judge(t, text, known); got != want {
			t.Errorf("%q is %d, want %d", text, got, want)
		}
	}
	for text, says := range map[string]string{
		"fact.a =":                             "wanted",
		"fact.a = 1":                           "==, !=, <",
		"fact.a === 1":                         "is wanted at",
		"fact.a == 1 fact.b == 2":              "and, or, or the end",
		"(fact.a == 1":                         `) is wanted at its end`,
		"fact.a == 1)":                         "and, or, or the end",
		"fact.a == $x":                         `"$" belongs to no condition`,
		`fact.a == "x`:                         "no closing quote",
		"and":                                  "a variable such as",
		"fact.a == and":                        "a variable such as",
		"fact.a == (1)":                        "a variable such as",
		"x":                                    "compare it with something",
		"fact.a\x00 == 1":                      "belongs to no condition",
		"fact.a == 1; fact.b":                  `";" belongs to no condition`,
		strings.Repeat("(", 40) + "x":          "nested more than 16 deep",
		strings.Repeat("not ", 40) + "param.x": "nested more than 16 deep",
		strings.Repeat("fact.a == 1 or ", 100): "1000 at most",
	} {
		_, err := parseCondition(text)
		refused(t, err, says)
	}
}

func TestConditionWords(t *testing.T) {
	name := func(variable string) string { _, last, _ := strings.Cut(variable, "."); return last }
	for text, want := range map[string]string{
		"":                       "always",
		"fact.version >= 11.6.0": "version is 11.6.0 or newer",
		"fact.version < 11.6.0":  "version is older than 11.6.0",
		`param.a == ""`:          "a is not set",
		`param.a != ""`:          "a is set",
		"not param.a == b":       "a is not b",
		"not param.on":           "on is not true",
		"not fact.v < 1":         "not (v is older than 1)",
		"param.a == b and (param.c == d or param.e == f)": "a is b and (c is d or e is f)",
		"param.a == b or param.c == d and param.e == f":   "a is b or (c is d and e is f)",
	} {
		c, err := parseCondition(text)
		if err != nil || c.words(name) != want {
			t.Errorf("%q is said as %q, %v; want %q", text, c.words(name), err, want)
		}
	}
}

// conditions draws a condition over few variables, so that they often hold.
func conditions() *rapid.Generator[string] {
	comparison := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom([]string{"param.a", "param.b", "fact.c", "fact.d"}).Draw(t, "variable") + " " +
			rapid.SampledFrom([]string{"==", "!=", "<", "<=", ">", ">="}).Draw(t, "operator") + " " +
			rapid.SampledFrom([]string{"1", "1.10", "x", `""`}).Draw(t, "literal")
	})
	var tree func(depth int) *rapid.Generator[string]
	tree = func(depth int) *rapid.Generator[string] {
		if depth == 0 {
			return comparison
		}
		return rapid.Custom(func(t *rapid.T) string {
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				return "not (" + tree(depth-1).Draw(t, "term") + ")"
			case 1:
				return "(" + tree(depth-1).Draw(t, "left") + ") and (" + tree(depth-1).Draw(t, "right") + ")"
			case 2:
				return "(" + tree(depth-1).Draw(t, "left") + ") or (" + tree(depth-1).Draw(t, "right") + ")"
			}
			return comparison.Draw(t, "comparison")
		})
	}
	return tree(3)
}

// TestSimplifyAgrees: what is left of a condition, when some variables are known, comes to the same as the whole.
func TestSimplifyAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := conditions().Draw(t, "condition")
		all := map[string]string{}
		for _, name := range []string{"param.a", "param.b", "fact.c", "fact.d"} {
			all[name] = rapid.SampledFrom([]string{"", "1", "1.2", "1.10", "x"}).Draw(t, name)
		}
		c, err := parseCondition(text)
		if err != nil {
			t.Fatal(err)
		}
		value := func(name string) string { return all[name] }
		whole := c.judge(value)
		for what, known := range map[string]func(string) (string, bool){
			"parameters": func(name string) (string, bool) { return all[name], strings.HasPrefix(name, "param.") },
			"nothing":    func(string) (string, bool) { return "", false },
		} {
			rest, decided := c.simplify(known)
			if decided == unknown && rest != nil {
				decided = rest.judge(value)
			}
			if (decided == holds) != (whole == holds) {
				t.Fatalf("%q with %s known is %d, whole %d", text, what, decided, whole)
			}
		}
	})
}

// FuzzCondition: no text panics, every error is a refusal, and what is read can be judged and said.
func FuzzCondition(f *testing.F) {
	for _, text := range []string{"", "fact.version >= 11.6.0", `fact.conf.cert_file != "" and not param.on`, "(a == param.b) or authority == x",
		"not not not param.x", `fact.x == "`, "fact.a<=1.2.3.4.5.6.7.8.9"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCondition(text)
		if err != nil {
			if fault.KindOf(err) == fault.Internal {
				t.Fatalf("%q: %v is no refusal", text, err)
			}
			return
		}
		c.judge(func(name string) string { return name })
		c.judge(func(string) string { return "" })
		c.words(func(name string) string { return name })
		if _, decided := c.simplify(func(string) (string, bool) { return "1.0", true }); decided == unknown && c != nil &&
			c.judge(func(string) string { return "1.0" }) != unknown {
			t.Fatalf("%q is decided, and not when everything is known", text)
		}
	})
}
