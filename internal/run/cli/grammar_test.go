package cli_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"chancery/internal/run/cli"
)

// TestCommandIsReadAlone: the parser of one command knows that command alone, and all of it as the parser of the whole line does.
func TestCommandIsReadAlone(t *testing.T) {
	whole, err := cli.Grammar()
	if err != nil {
		t.Fatal(err)
	}
	alone := 0
	for _, command := range whole.Model.Children {
		one, err := cli.GrammarFor(command.Name, "--output", "json")
		if err != nil {
			t.Fatal(err)
		}
		if len(one.Model.Children) == 1 {
			alone++
		}
		at := slices.IndexFunc(one.Model.Children, func(n *kong.Node) bool { return n.Name == command.Name })
		if at < 0 {
			t.Fatalf("%s: its own parser does not know it", command.Name)
		}
		if diff := cmp.Diff(described(command), described(one.Model.Children[at])); diff != "" {
			t.Errorf("%s: as of the whole line, and read alone:\n%s", command.Name, diff)
		}
		if diff := cmp.Diff(flags(whole.Model.Node), flags(one.Model.Node)); diff != "" {
			t.Errorf("%s: flags of every command, as of the whole line, and read alone:\n%s", command.Name, diff)
		}
	}
	if all := len(whole.Model.Children); alone < all-1 || alone < 28 {
		t.Errorf("%d of %d commands are read alone", alone, all)
	}
	for _, args := range [][]string{nil, {"--help"}, {"--dir", "D", "pool"}, {"certt"}, {"dir"}, {"globals"}} {
		if some, err := cli.GrammarFor(args...); err != nil || len(some.Model.Children) != len(whole.Model.Children) {
			t.Errorf("%q begins with no command, and yet not the whole line is read: %v", args, err)
		}
	}
}

// described is a command with all that is below it.
func described(n *kong.Node) []string {
	all := append([]string{fmt.Sprintf("%s %v %q %q hidden %t", n.FullPath(), n.Aliases, n.Help, n.Detail, n.Hidden)}, flags(n)...)
	for _, p := range n.Positional {
		all = append(all, fmt.Sprintf("%s <%s> %q %q required %t %s", n.FullPath(), p.Name, p.Help, p.Default, p.Required, p.Enum))
	}
	for _, child := range n.Children {
		all = append(all, described(child)...)
	}
	return all
}

func flags(n *kong.Node) (all []string) {
	for _, f := range n.Flags {
		all = append(all, fmt.Sprintf("%s --%s %v -%c %q default %q enum %q required %t hidden %t %s %s %v %v", n.FullPath(), f.Name, f.Aliases, f.Short, f.Help,
			f.Default, f.Enum, f.Required, f.Hidden, f.FormatPlaceHolder(), strings.Join(f.Envs, ","), f.Xor, f.And))
	}
	return all
}
