package cli_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"chancery/internal/run/cli"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGoldenHelp holds what --help prints of every command against testdata/help.txt.
func TestGoldenHelp(t *testing.T) {
	grammar, err := cli.Grammar()
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	count := 0
	var walk func(path []string, node *kong.Node)
	walk = func(path []string, node *kong.Node) {
		var out, errs bytes.Buffer
		args := append(path, "--help")
		if code := cli.Run(t.Context(), args, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &errs}); code != 0 || errs.Len() > 0 {
			t.Fatalf("%q ends with %d: %s", args, code, errs.String())
		}
		count++
		fmt.Fprintf(&all, "== chancery %s\n%s\n", strings.Join(args, " "), out.String())
		for _, child := range node.Children {
			if child.Type == kong.CommandNode {
				walk(append(path[:len(path):len(path)], child.Name), child)
			}
		}
	}
	walk(nil, grammar.Model.Node)
	if count < 60 {
		t.Fatalf("there are %d commands; the walk is broken", count)
	}
	golden := filepath.Join("testdata", "help.txt")
	if *update {
		if err := os.WriteFile(golden, all.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), all.String()); diff != "" {
		t.Errorf("go test ./internal/run/cli -run Golden -update writes %s anew:\n%s", golden, diff)
	}
}

// TestEveryCommandIsPlayed looks for every command and every flag of its own in the scripts.
func TestEveryCommandIsPlayed(t *testing.T) {
	grammar, err := cli.Grammar()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join("testdata", "script", "*", "*.txtar"))
	if err != nil || len(files) < 15 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	var lines []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = regexp.MustCompile(`chancery (--dir \S+|-o json) `).ReplaceAll(text, []byte("chancery "))
		lines = append(lines, strings.Split(string(text), "\n")...)
	}
	// These are played elsewhere: by the tests of their packages, or by every script.
	elsewhere := map[string]bool{"serve": true, "demo": true, "demo-consumer": true, "bench": true, "agent readable": true}
	// What shares its flags with another command shares their play; the command node init of the scripts gives some.
	alike := map[string]string{"request submit": "cert issue", "audit export": "audit list", "doctor look": "doctor", "backup whole": "backup"}
	given := map[string]string{"init": "--public-listen --metrics-listen --database-file", "restore": "--database-file"}
	for _, leaf := range grammar.Model.Leaves(false) {
		path := strings.Fields(leaf.FullPath())
		name := strings.Join(path[1:], " ")
		if elsewhere[name] {
			continue
		}
		var own []string
		for _, line := range lines {
			if strings.Contains(line, "chancery "+name) || alike[name] != "" && strings.Contains(line, "chancery "+alike[name]) || name == "init" && strings.Contains(line, "node init") {
				own = append(own, line)
			}
		}
		if len(own) == 0 {
			t.Errorf("no script plays %s", name)
			continue
		}
		played := strings.Join(own, "\n") + given[name]
		for _, f := range leaf.Flags {
			found := strings.Contains(played, "--"+f.Name)
			for _, alias := range f.Aliases {
				found = found || strings.Contains(played, "--"+alias)
			}
			if !found {
				t.Errorf("no script plays %s --%s", name, f.Name)
			}
		}
	}
}
