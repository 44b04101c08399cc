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

// builtins reads each built-in recipe when it is first asked for, and once: to parse all of them costs an agent that places two
// more than everything else it does when nothing is due. A test parses them all, so that none is wrong in a program that was
// built.
var builtins = sync.OnceValue(func() map[string]func() *Recipe {
	entries, err := builtinFiles.ReadDir("builtin")
	if err != nil {
		panic(err) // embedded: it is there
	}
	all := map[string]func() *Recipe{}
	for _, entry := range entries {
		name := strings.TrimSuffix(entry.Name(), ".yaml")
		all[name] = sync.OnceValue(func() *Recipe { return readBuiltin(name) })
	}
	return all
})

func readBuiltin(name string) *Recipe {
	file := name + ".yaml"
	text, err := builtinFiles.ReadFile("builtin/" + file)
	if err != nil {
		panic(err)
	}
	r, err := Parse(text, file)
	if err != nil {
		panic(fmt.Sprintf("built-in recipe: %s", err))
	}
	if r.Name != name {
		panic(fmt.Sprintf("built-in recipe %s is in %s", r.Name, file))
	}
	return r
}

// BuiltinNames returns the names of the built-in recipes, sorted. It parses none.
func BuiltinNames() []string {
	var names []string
	for name := range builtins() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Builtins returns the built-in recipes by name. They are shared: nobody modifies them.
func Builtins() []*Recipe {
	var all []*Recipe
	for _, name := range BuiltinNames() {
		all = append(all, builtins()[name]())
	}
	return all
}

// Builtin returns a built-in recipe.
func Builtin(name string) (*Recipe, bool) {
	read, ok := builtins()[name]
	if !ok {
		return nil, false
	}
	return read(), true
}

// BuiltinYAML returns the text of a built-in recipe, comments included.
func BuiltinYAML(name string) ([]byte, bool) {
	if _, ok := builtins()[name]; !ok {
		return nil, false
	}
	text, err := builtinFiles.ReadFile("builtin/" + name + ".yaml")
	return text, err == nil
}
