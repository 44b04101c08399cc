package recipe

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestExplanationsFitATerminal: no line of any explanation is wider than a terminal, whichever parameters are given, and no word of
// a table is lost by it.
func TestExplanationsFitATerminal(t *testing.T) {
	given := map[string][]map[string]string{
		"qemu":                   {{"service": "vnc"}, {"service": "default", "sockets": "/run/a-directory-with-a-long-name/of/sockets/of/machines"}},
		"systemd-journal-remote": {{"service": "upload"}},
		"java":                   {{"service": "a-service-with-a-very-long-name-that-somebody-chose.service"}},
		"nss":                    {{"dir": "/etc/" + strings.Repeat("long-", 60) + "name"}},
	}
	lines := 0
	for _, r := range Builtins() {
		for _, parameters := range append(given[r.Name], nil) {
			x, err := r.Explain(parameters)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			if err := x.Text(&b, func(s string) string { return s }); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(b.String()) {
				lines++
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > pageWidth {
					t.Errorf("recipe explain %s prints a line of %d characters: %s", r.Name, n, line)
				}
			}
			squeezed := strings.Join(strings.Fields(b.String()), "")
			for _, p := range x.Parameters {
				if !strings.Contains(squeezed, strings.Join(strings.Fields(p.Name), "")) {
					t.Errorf("recipe explain %s has lost the parameter %s", r.Name, p.Name)
				}
			}
		}
	}
	if lines < 1000 {
		t.Errorf("%d lines were looked at", lines)
	}
}

func TestBroken(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{
		{"a bc def", 4, "a bc|def"}, {"", 4, ""}, {"abcdefgh", 4, "abcd|efgh"}, {"/etc/ssl/own", 6, "/etc/|ssl/|own"}, {"äöü äöü", 3, "äöü|äöü"},
		{"one /a/very/long/path two", 10, "one|/a/very/|long/path|two"},
	} {
		if got := strings.Join(broken(c.text, c.width), "|"); got != c.want {
			t.Errorf("%q in %d is %q, not %q", c.text, c.width, got, c.want)
		}
	}
	if got := strings.Join(paragraphs("one\ntwo three four\n\n    as  it is\n    set so wide\nfive", 14), "|"); got != "one two three|four||    as  it is|    set so|        wide|five" {
		t.Errorf("%q", got)
	}
	if got := columnWidths([][]string{{"aaaaaaaaaaaaaaaaaaaa", "bb"}, {"a", strings.Repeat("b", 30)}}, 40); got[0]+got[1]+2 > 40 || got[0] != 20 {
		t.Errorf("%v", got)
	}
}
