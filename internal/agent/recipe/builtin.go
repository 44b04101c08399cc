package recipe

import (
	"embed"
	"fmt"
	"slices"
	"strings"
	"sync"
)

//go:embed builtin/*.yaml
var builtinFiles embed.FS

// builtins reads the built-in recipes once. A test parses them, so that none is wrong in a program that was built.
var builtins = sync.OnceValue(func() []*Recipe {
	entries, err := builtinFiles.ReadDir("builtin")
	if err != nil {
		panic(err) // embedded: it is there
	}
	var all []*Recipe
	for _, entry := range entries {
		text, err := builtinFiles.ReadFile("builtin/" + entry.Name())
		if err != nil {
			panic(err)
		}
		r, err := Parse(text, entry.Name())
		if err != nil {
			panic(fmt.Sprintf("built-in recipe: %s", err))
		}
		if r.Name+".yaml" != entry.Name() {
			panic(fmt.Sprintf("built-in recipe %s is in %s", r.Name, entry.Name()))
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *Recipe) int { return strings.Compare(a.Name, b.Name) })
	return all
})

// Builtins returns the built-in recipes by name. They are shared: nobody modifies them.
func Builtins() []*Recipe { return slices.Clone(builtins()) }

// Builtin returns a built-in recipe.
func Builtin(name string) (*Recipe, bool) {
	for _, r := range builtins() {
		if r.Name == name {
			return r, true
		}
	}
	return nil, false
}

// BuiltinYAML returns the text of a built-in recipe, comments included.
func BuiltinYAML(name string) ([]byte, bool) {
	if _, ok := Builtin(name); !ok {
		return nil, false
	}
	text, err := builtinFiles.ReadFile("builtin/" + name + ".yaml")
	return text, err == nil
}
