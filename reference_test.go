package chancery_test

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/run/cli"
	"chancery/internal/store/access"
	"chancery/internal/store/settings"
	"chancery/internal/surface/problem"
	"chancery/internal/upkeep/datadir"
)

var update = flag.Bool("update", false, "write docs/reference.md anew")

const reference = "docs/reference.md"

// TestGoldenReference makes the reference from the code: flags from the command line's grammar, settings and node.yaml from
// the comments of their fields, operations from the table of routes. It fails where the committed page says anything else.
func TestGoldenReference(t *testing.T) {
	p := &page{T: t}
	p.text("# Reference", "",
		"This page is made from the code by `make golden`, and a test fails while it says anything else. What to do with all of it",
		"is in the [operator guide](operator-guide.md).", "")
	p.commands()
	p.nodeYAML()
	p.settings()
	p.roles()
	p.operations()
	p.problems()
	p.profiles()
	p.lints()
	if *update {
		if err := os.WriteFile(reference, p.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, p.Bytes()) {
		t.Errorf("%s is not what the code says; make golden writes it anew. First difference:\n%s", reference, firstDifference(string(got), p.String()))
	}
}

func firstDifference(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(a), len(b)) {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return fmt.Sprintf("line %d\npage: %s\ncode: %s", i+1, x, y)
		}
	}
	return "(none)"
}

// page is the reference as it is written.
type page struct {
	*testing.T
	bytes.Buffer
}

func (p *page) text(lines ...string) {
	for _, line := range lines {
		p.WriteString(line + "\n")
	}
}

// row writes a line of a table.
func (p *page) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = strings.ReplaceAll(strings.Join(strings.Fields(cell), " "), "|", `\|`)
	}
	p.text("| " + strings.Join(cells, " | ") + " |")
}

func (p *page) head(cells ...string) {
	p.row(cells...)
	p.text("|" + strings.Repeat(" --- |", len(cells)))
}

// atLeast fails a section that was made of less than there must be.
func (p *page) atLeast(what string, n, least int) {
	if n < least {
		p.Errorf("the reference has %d %s; at least %d exist", n, what, least)
	}
}

func (p *page) commands() {
	grammar, err := cli.Grammar()
	if err != nil {
		p.Fatal(err)
	}
	p.text("## Commands", "", "Flags of every command:", "")
	p.flags(grammar.Model.Flags)
	leaves := grammar.Model.Leaves(true)
	p.atLeast("commands", len(leaves), 50)
	for _, leaf := range leaves {
		p.text("", "### chancery "+leaf.Path(), "", leaf.Help, "")
		usage := "chancery " + leaf.Path()
		for _, a := range leaf.Positional {
			usage += " " + a.Summary()
		}
		p.text("```text", usage+" [flags]", "```")
		for _, a := range leaf.Positional {
			p.text("", "`"+a.Name+"`: "+a.Help)
		}
		var own []*kong.Flag
		for n := leaf; n != nil && n.Parent != nil; n = n.Parent {
			own = append(own, n.Flags...)
		}
		if len(own) > 0 {
			p.text("")
			p.flags(own)
		}
	}
}

func (p *page) flags(all []*kong.Flag) {
	p.head("flag", "meaning")
	for _, f := range all {
		name := "`--" + f.Name
		if !f.IsBool() {
			name += " " + f.FormatPlaceHolder()
		}
		name += "`"
		if f.Short != 0 {
			name = "`-" + string(f.Short) + "`, " + name
		}
		help := f.Help
		if f.Required {
			help += " Required."
		}
		for _, env := range f.Envs {
			help += " Also from `" + env + "`."
		}
		p.row(name, help)
	}
}

func (p *page) nodeYAML() {
	p.text("", "## node.yaml", "", "What concerns one node alone. An unknown field is an error.", "")
	p.head("field", "type", "meaning")
	structs := parseStructs(p.T, "internal/upkeep/datadir/datadir.go")
	n := 0
	var walk func(t reflect.Type, path string)
	walk = func(t reflect.Type, path string) {
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if name == "" || name == "-" {
				continue
			}
			n++
			p.row("`"+path+name+"`", kindOf(f.Type), p.comment(structs, t, f))
			switch {
			case f.Type.Kind() == reflect.Struct:
				walk(f.Type, path+name+".")
			case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
				walk(f.Type.Elem(), path+name+"[].")
			}
		}
	}
	walk(reflect.TypeFor[datadir.Config](), "")
	p.atLeast("fields of node.yaml", n, 12)
}

// kindOf says what is written into a field.
func kindOf(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t.Kind() == reflect.Struct:
		return "group"
	case t.Kind() == reflect.Slice:
		return "list"
	case t.Kind() == reflect.Int:
		return "number"
	}
	return t.Kind().String()
}

func (p *page) settings() {
	p.text("", "## Settings", "", "What concerns the authority: `chancery settings show`, `chancery settings set NAME=VALUE`.", "")
	p.head("setting", "default", "meaning")
	structs := parseStructs(p.T, "internal/store/settings/settings.go")
	fields, err := settings.Defaults().Fields()
	if err != nil {
		p.Fatal(err)
	}
	p.atLeast("settings", len(fields), 30)
	for _, f := range fields {
		p.row("`"+f.Path+"`", code(f.Value), p.settingComment(structs, f.Path))
	}
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}

// settingComment follows a path such as crl.validity through the types. A field without a comment of its own shares the
// one before it.
func (p *page) settingComment(structs map[string]map[string]string, path string) string {
	t, comment := reflect.TypeFor[settings.Settings](), ""
	for name := range strings.SplitSeq(path, ".") {
		found := false
		for f := range t.Fields() {
			if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
				if own := structs[t.Name()][f.Name]; own != "" {
					comment = inYAML(own, t, f)
				}
				t, found = f.Type, true
				break
			}
		}
		if !found {
			p.Fatalf("setting %s has no field", path)
		}
	}
	if comment == "" {
		p.Errorf("setting %s has no comment", path)
	}
	return comment
}

func (p *page) comment(structs map[string]map[string]string, t reflect.Type, f reflect.StructField) string {
	text := structs[t.Name()][f.Name]
	if text == "" {
		p.Errorf("%s.%s has no comment", t.Name(), f.Name)
	}
	return inYAML(text, t, f)
}

var inner = regexp.MustCompile(`\b[A-Z][a-z]+[A-Z]\w+\b`)

// inYAML writes the names of fields as they stand in the file or the setting, and not as Go has them: the one that the
// comment begins with, and those that no English word can be.
func inYAML(text string, t reflect.Type, field reflect.StructField) string {
	tag := func(f reflect.StructField) string {
		name, _, _ := strings.Cut(cmp.Or(f.Tag.Get("yaml"), f.Tag.Get("json")), ",")
		return "`" + name + "`"
	}
	if rest, ok := strings.CutPrefix(text, field.Name+" "); ok {
		text = tag(field) + " " + rest
	}
	return inner.ReplaceAllStringFunc(text, func(word string) string {
		if f, ok := t.FieldByName(word); ok {
			return tag(f)
		}
		return word
	})
}

// parseStructs reads the comments of the fields of a file's structs; a field shares the comment of the group it stands in.
func parseStructs(t *testing.T, file string) map[string]map[string]string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	structs := map[string]map[string]string{}
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		body, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		fields, last := map[string]string{}, ""
		for _, f := range body.Fields.List {
			if text := strings.TrimSpace(f.Doc.Text()); text != "" {
				last = text
			}
			for _, name := range f.Names {
				fields[name.Name] = last
			}
		}
		structs[spec.Name.Name] = fields
		return true
	})
	return structs
}

func (p *page) roles() {
	p.text("", "## Roles", "", "A role that stands here may do the thing at all; how far is the service's decision.", "")
	names := []string{"action", "what"}
	for _, r := range access.Roles {
		names = append(names, string(r))
	}
	p.head(names...)
	permissions := access.Permissions()
	p.atLeast("permissions", len(permissions), 20)
	for _, permission := range permissions {
		cells := []string{"`" + string(permission.Action) + "`", permission.What}
		for _, r := range access.Roles {
			mark := ""
			if slices.Contains(permission.Roles, r) {
				mark = "yes"
			}
			cells = append(cells, mark)
		}
		p.row(cells...)
	}
}

var (
	routePattern  = regexp.MustCompile(`op\((get|post|put|patch|del), "([^"]+)", "([^"]+)", (access\.\w+|anyone|stranger),\s*"([^"]+)"\)`)
	actionPattern = regexp.MustCompile(`(\w+)\s+Action = "([^"]+)"`)
)

func (p *page) operations() {
	p.text("", "## API", "",
		"Under `/api/v1`; `GET /api/v1/openapi.json` describes requests and answers. Every mutating call takes an `Idempotency-Key`.", "")
	p.head("operation", "path", "action", "what")
	text, err := os.ReadFile("internal/surface/api/routes.go")
	if err != nil {
		p.Fatal(err)
	}
	actions := map[string]string{"anyone": "any known caller", "stranger": "nobody need be known"}
	permissions, err := os.ReadFile("internal/store/access/permissions.go")
	if err != nil {
		p.Fatal(err)
	}
	for _, m := range actionPattern.FindAllStringSubmatch(string(permissions), -1) {
		actions["access."+m[1]] = "`" + m[2] + "`"
	}
	routes := routePattern.FindAllStringSubmatch(string(text), -1)
	if registered := bytes.Count(text, []byte("op(")) - 1; registered != len(routes) {
		p.Errorf("routes.go has %d operations and %d were understood", registered, len(routes))
	}
	p.atLeast("operations", len(routes), 60)
	for _, m := range routes {
		method := strings.ToUpper(m[1])
		if m[1] == "del" {
			method = "DELETE"
		}
		p.row("`"+m[3]+"`", "`"+method+" "+m[2]+"`", actions[m[4]], m[5])
	}
}

func (p *page) problems() {
	p.text("", "## Refusals", "", "RFC 9457 problems; the type is a name and not a page.", "")
	p.head("type", "status")
	p.atLeast("kinds of refusal", len(fault.Kinds), 9)
	for _, kind := range fault.Kinds {
		w := problem.Of(fault.New(kind, "an example"), "")
		p.row("`"+w.Type+"`", fmt.Sprint(w.Status))
	}
}

func (p *page) profiles() {
	p.text("", "## Built-in profiles", "", "In force as version 0 until a profile of that name is saved.")
	names := cert.BuiltinProfiles()
	p.atLeast("built-in profiles", len(names), 5)
	for _, name := range names {
		text, err := cert.BuiltinYAML(name)
		if err != nil {
			p.Fatal(err)
		}
		p.text("", "### "+name, "", "```yaml", strings.TrimSpace(string(text)), "```")
	}
}

func (p *page) lints() {
	p.text("", "## Lints", "", "Each judges the octets that are about to be signed. A profile may turn off those that are not fixed.", "")
	p.head("lint", "fixed")
	names, fixed := cert.LintNames()
	p.atLeast("lints", len(names), 20)
	for _, name := range names {
		mark := ""
		if fixed[name] {
			mark = "yes"
		}
		p.row("`"+name+"`", mark)
	}
}

// parseCommand parses a command line by the grammar, and runs nothing. Help counts as parsed.
func parseCommand(args []string) error {
	grammar, err := cli.Grammar()
	if err != nil {
		return err
	}
	grammar.Stdout, grammar.Stderr = new(bytes.Buffer), new(bytes.Buffer)
	if slices.Contains(args, "--help") {
		return nil
	}
	if _, err := grammar.Parse(args); err != nil {
		return errors.New(err.Error())
	}
	return nil
}
