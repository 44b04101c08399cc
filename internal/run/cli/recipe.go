package cli

import (
	"net/netip"
	"os"
	"strings"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

type recipeCommands struct {
	List    recipeListCommand    `cmd:"" help:"List the built-in recipes."`
	Show    recipeShowCommand    `cmd:"" help:"Print a built-in recipe: where to begin with one of your own."`
	Explain recipeExplainCommand `cmd:"" help:"Say in words what a recipe places where, when, and what goes wrong in the field."`
	Test    recipeTestCommand    `cmd:"" help:"Judge a recipe, and print what it would place on a sample host."`
}

type recipeListCommand struct{}

// Run prints a line for each recipe.
func (recipeListCommand) Run(g *globals) error {
	type line struct {
		Name  string `json:"name"`
		Title string `json:"title"`
	}
	each := func(yield func(line, error) bool) {
		for _, r := range recipe.Builtins() {
			if !yield(line{r.Name, r.Title}, nil) {
				return
			}
		}
	}
	return list(g, each, "NAME TITLE", func(l line) []string { return []string{l.Name, l.Title} })
}

type recipeShowCommand struct {
	Name string `arg:"" help:"Name of a built-in recipe."`
}

// Run prints the recipe as it was written, comments included.
func (c *recipeShowCommand) Run(g *globals) error {
	text, ok := recipe.BuiltinYAML(c.Name)
	if !ok {
		return noRecipe(c.Name)
	}
	if g.Output == "json" {
		return g.json(map[string]string{"name": c.Name, "document": string(text)})
	}
	_, err := g.Out.Write(text)
	return err
}

func noRecipe(name string) error {
	var names []string
	for _, r := range recipe.Builtins() {
		names = append(names, r.Name)
	}
	return fault.New(fault.NotFound, "there is no built-in recipe %q; there are %s", name, strings.Join(names, ", ")).
		WithHint("a recipe of your own is a file: chancery recipe test FILE")
}

// load returns a built-in recipe, or one in a file where the name has a slash or ends in .yaml.
func (g *globals) load(name string) (*recipe.Recipe, error) {
	if name != "-" && !strings.Contains(name, "/") && !strings.HasSuffix(name, ".yaml") {
		r, ok := recipe.Builtin(name)
		if !ok {
			return nil, noRecipe(name)
		}
		return r, nil
	}
	text, err := g.readAll(name)
	if err != nil {
		return nil, err
	}
	return recipe.Parse(text, name)
}

type recipeExplainCommand struct {
	Name  string            `arg:"" name:"NAME|FILE" help:"A built-in recipe; or a file, whose name ends in .yaml or has a slash."`
	Param map[string]string `mapsep:"none" placeholder:"KEY=VALUE" help:"A parameter; conditions on it are decided then. May be repeated."`
}

// Run prints the explanation.
func (c *recipeExplainCommand) Run(g *globals) error {
	r, err := g.load(c.Name)
	if err != nil {
		return err
	}
	explanation, err := r.Explain(c.Param)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(explanation)
	}
	return explanation.Text(g.Out, printable)
}

type recipeTestCommand struct {
	File      string            `arg:"" help:"The recipe's file, or - for standard input."`
	Param     map[string]string `mapsep:"none" placeholder:"KEY=VALUE" help:"A parameter. May be repeated."`
	Fact      map[string]string `mapsep:"none" placeholder:"NAME=VALUE" help:"What the sample host answers, such as version=9.0.0 or conf.ssl=on. May be repeated."`
	Host      string            `default:"host1.example.com" help:"The sample host's name."`
	DNS       []string          `name:"dns" placeholder:"NAME" help:"Another name of it. May be repeated."`
	IP        []string          `name:"ip" default:"192.0.2.1" placeholder:"ADDRESS" help:"Its address. May be repeated."`
	Authority string            `default:"default Root" help:"The common name of its pool's root."`
}

// testedRecipe is what recipe test prints as JSON.
type testedRecipe struct {
	Asked  []string            `json:"asked,omitempty"` // facts
	Places *recipe.Explanation `json:"places"`
}

// Run judges the recipe and prints what it would place.
func (c *recipeTestCommand) Run(g *globals) error {
	text, err := g.readAll(c.File)
	if err != nil {
		if os.IsNotExist(err) {
			if _, ok := recipe.Builtin(c.File); ok {
				return fault.New(fault.NotFound, "there is no file %s", c.File).
					WithHint("chancery recipe show %s > %s.yaml writes the built-in recipe into one", c.File, c.File)
			}
		}
		return err
	}
	r, err := recipe.Parse(text, c.File)
	if err != nil {
		return err
	}
	asked, err := r.FactRules(c.Param)
	if err != nil {
		return err
	}
	names, err := c.checkFacts(asked)
	if err != nil {
		return err
	}
	host := recipe.Host{Name: c.Host, DNS: append([]string{c.Host}, c.DNS...), Authority: c.Authority}
	for _, text := range c.IP {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return fault.New(fault.Invalid, "--ip %s is no address", text)
		}
		host.IP = append(host.IP, address.String())
	}
	plan, err := r.Resolve(host, c.Param, c.Fact)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(testedRecipe{Asked: names, Places: plan.Explain()})
	}
	return plan.Explain().Text(g.Out, printable)
}

// checkFacts refuses facts that the recipe asks nobody for: a misspelt one would make a test that proves nothing.
func (c *recipeTestCommand) checkFacts(asked []recipe.FactRule) (names []string, err error) {
	for _, rule := range asked {
		name := rule.Name
		if rule.Config != "" {
			name += ".SETTING"
		}
		names = append(names, name)
	}
	for name := range c.Fact {
		known := false
		for _, rule := range asked {
			known = known || name == rule.Name && rule.Config == "" || rule.Config != "" && strings.HasPrefix(name, rule.Name+".")
		}
		if !known {
			return nil, fault.New(fault.Invalid, "--fact %s: the recipe asks for %s", name, orNone(strings.Join(names, ", ")))
		}
	}
	return names, nil
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
