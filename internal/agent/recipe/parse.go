package recipe

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// limits of a recipe
const (
	maxRecipe  = 64 << 10 // octets
	maxLine    = 1 << 10  // octets
	maxFlow    = 16       // depth of brackets
	maxBlock   = 64       // columns of indentation
	maxAll     = 64       // entries of any list
	maxTimeout = 10 * time.Minute
)

// UnmarshalText reads 30s, 5m, 12h, 90d and sums of them.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := cert.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

// MarshalText writes the largest units that leave nothing over.
func (d Duration) MarshalText() ([]byte, error) { return cert.Duration(d).MarshalText() }

// String writes d as MarshalText does.
func (d Duration) String() string { return cert.Duration(d).String() }

// Parse reads a recipe strictly: unknown and repeated fields are refused, and each rule that is broken is named with its
// line. origin is where the text is from, for the messages.
func Parse(text []byte, origin string) (*Recipe, error) {
	if len(text) > maxRecipe {
		return nil, fault.New(fault.TooLarge, "%s: a recipe of %d octets: %d at most", origin, len(text), maxRecipe)
	}
	if err := checkTokens(string(text), origin); err != nil {
		return nil, err
	}
	var r Recipe
	decoder := yaml.NewDecoder(strings.NewReader(string(text)), yaml.Strict())
	if err := decoder.Decode(&r); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Invalid, "%s: the recipe is empty", origin)
		}
		return nil, fault.New(fault.Invalid, "%s: %s", origin, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "%s: the recipe is followed by a second document", origin)
	}
	v := &validation{recipe: &r, lines: sync.OnceValue(func() map[string]int { return lines(text) })}
	v.all()
	return &r, v.err(origin)
}

// checkTokens refuses what costs the decoder more than its length lets expect: aliases of aliases, deep nesting, and long
// lines, which it copies again and again.
func checkTokens(text, origin string) error {
	number := 0
	for line := range strings.Lines(text) {
		if number++; len(line) > maxLine {
			return fault.New(fault.TooLarge, "%s: line %d: %d octets; %d at most", origin, number, len(line), maxLine)
		}
	}
	depth := 0
	for _, t := range lexer.Tokenize(text) {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType, token.TagType:
			return fault.New(fault.Invalid, "%s: line %d: anchors, aliases and tags are not accepted; write the value where it belongs",
				origin, t.Position.Line)
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.SequenceEntryType, token.MappingValueType:
			if t.Position.IndentNum > maxBlock {
				return fault.New(fault.Invalid, "%s: line %d: indented by more than %d columns", origin, t.Position.Line, maxBlock)
			}
		}
		if depth > maxFlow {
			return fault.New(fault.Invalid, "%s: line %d: brackets more than %d deep", origin, t.Position.Line, maxFlow)
		}
	}
	return nil
}

// lines maps each field's path, such as files[2].mode, to its line.
func lines(text []byte) map[string]int {
	found := map[string]int{}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return found // it was decoded before, so this does not happen; a finding then has no line
	}
	var walk func(n ast.Node, path string)
	walk = func(n ast.Node, path string) {
		switch n := n.(type) {
		case *ast.MappingNode:
			for _, pair := range n.Values {
				walk(pair, path)
			}
		case *ast.MappingValueNode:
			name := strings.TrimPrefix(path+"."+n.Key.String(), ".")
			found[name] = n.Key.GetToken().Position.Line
			walk(n.Value, name)
		case *ast.SequenceNode:
			for i, value := range n.Values {
				name := fmt.Sprintf("%s[%d]", path, i)
				found[name] = value.GetToken().Position.Line
				walk(value, name)
			}
		}
	}
	for _, document := range file.Docs {
		walk(document.Body, "")
	}
	return found
}

// finding is a rule that was broken.
type finding struct {
	line int
	text string
}

// line is the line of a field, or of the closest thing around it that was written.
func (v *validation) line(path string) int {
	for path != "" {
		if line, ok := v.lines()[path]; ok {
			return line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return 1
}

func (v *validation) add(path, format string, args ...any) {
	v.found = append(v.found, finding{v.line(path), path + ": " + fmt.Sprintf(format, args...)})
}

func (v *validation) problem(path string, err error) {
	if err != nil {
		v.add(path, "%s", err)
	}
}

// err is all that was found, by line.
func (v *validation) err(origin string) error {
	if len(v.found) == 0 {
		return nil
	}
	slices.SortFunc(v.found, func(a, b finding) int { return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.text, b.text)) })
	var b strings.Builder
	for i, f := range v.found {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s: line %d: %s", origin, f.line, f.text)
	}
	return fault.New(fault.Invalid, "%s", b.String()).At(fmt.Sprintf("%d:1", v.found[0].line))
}
