package loop

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/goccy/go-yaml"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// ConfigFile is where agent.yaml lies, under the root.
const ConfigFile = "/etc/chancery/agent.yaml"

// RecipeDirectory is where a host's own recipes lie, under the root. The authority knows NAME.yaml as local/NAME.
const RecipeDirectory = "/etc/chancery/recipes"

// local is before the name of a recipe of the host's own.
const local = "local/"

// maxConfig bounds agent.yaml, and a recipe of the host's own.
const maxConfig = 1 << 20

// Config is agent.yaml: the host's own word on what the authority may have done to it. What comes from the network never
// leaves it. Only root can write it; under --root the agent's own user stands for root.
type Config struct {
	// Recipes are accepted by name; local/NAME for the host's own, and local/* for all of them. The built-in ones where absent.
	Recipes []string `yaml:"recipes,omitempty"`
	// Paths are prefixes, whole components, under which files may be placed. DefaultPaths where absent.
	Paths []string `yaml:"paths,omitempty"`
	// Reads are files, or directories above them, that a recipe's parameters may name to be run, handed to a program, read,
	// connected to or signalled by. DefaultReads where absent.
	Reads []string `yaml:"reads,omitempty"`
	// Services are units of systemd that a recipe's parameters may name: NAME, NAME.service, or NAME@* for all instances of a
	// template. DefaultServices where absent.
	Services []string `yaml:"services,omitempty"`
	// Steps replace a recipe's steps: recipe, name of the step, argument vector. For another init system, say.
	Steps map[string]map[string][]string `yaml:"steps,omitempty"`
	// Adopt takes over files that are there and are not the agent's; a copy is kept beside each.
	Adopt bool `yaml:"adopt,omitempty"`
}

// DefaultConfig is what holds where there is no agent.yaml.
func DefaultConfig() *Config {
	c := &Config{}
	c.fill()
	return c
}

// LoadConfig reads agent.yaml under root, and refuses one that another than root could have written.
func LoadConfig(root string) (*Config, error) {
	text, err := readTrusted(filepath.Join(root, ConfigFile), root)
	if errors.Is(err, fs.ErrNotExist) {
		return DefaultConfig(), nil
	}
	if err != nil {
		return nil, err
	}
	c, err := ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(root, ConfigFile), err)
	}
	return c, nil
}

// ParseConfig reads the text of agent.yaml strictly.
func ParseConfig(text []byte) (*Config, error) {
	c := &Config{}
	decoder := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict(), yaml.DisallowUnknownField())
	if err := decoder.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "%s", yaml.FormatError(err, false, true))
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	c.fill()
	return c, nil
}

func (c *Config) fill() {
	if c.Recipes == nil {
		c.Recipes = recipe.BuiltinNames()
	}
	if c.Paths == nil {
		c.Paths = DefaultPaths()
	}
	if c.Reads == nil {
		c.Reads = DefaultReads()
	}
	if c.Services == nil {
		c.Services = DefaultServices()
	}
}

// validate names every fault, not the first.
func (c *Config) validate() error {
	var wrong []error
	refuse := func(format string, args ...any) { wrong = append(wrong, fault.New(fault.Invalid, format, args...)) }
	for _, name := range c.Recipes {
		if name == local+"*" {
			continue
		}
		if own, is := strings.CutPrefix(name, local); is {
			if !plainName(own) {
				refuse("recipes: %q is no name of a recipe; letters, digits and - pass", name)
			}
		} else if _, known := recipe.Builtin(name); !known {
			refuse("recipes: %q is no built-in recipe; one of the host's own is %s%s", name, local, name)
		}
	}
	for key, paths := range map[string][]string{"paths": c.Paths, "reads": c.Reads} {
		for _, p := range paths {
			if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsAny(p, "\x00\n") {
				refuse("%s: %q is no clean absolute path below /; /etc/pki would pass", key, p)
			}
		}
	}
	for _, unit := range c.Services {
		if !recipe.CheckUnit(unit) {
			refuse("services: %q is no service of systemd; tomcat9.service would pass, and dirsrv@* for all instances of dirsrv@.service", unit)
		}
	}
	for name, steps := range c.Steps {
		if _, known := recipe.Builtin(name); !known && !strings.HasPrefix(name, local) {
			refuse("steps: %q is no recipe", name)
		}
		for step, vector := range steps {
			if names := stepsOf(name); names != nil && !slices.Contains(names, step) {
				refuse("steps: %s: the recipe has no step %q; it has %s", name, step, strings.Join(names, ", "))
			}
			if len(vector) == 0 || !path.IsAbs(vector[0]) {
				refuse("steps: %s: %s: an argument vector whose first is an absolute path is wanted", name, step)
			}
			if slices.ContainsFunc(vector, func(a string) bool { return strings.ContainsRune(a, 0) }) {
				refuse("steps: %s: %s: an argument holds an octet of zero", name, step)
			}
		}
	}
	return errors.Join(wrong...)
}

// stepsOf are the names of a built-in recipe's steps; nil of one of the host's own, which may not be there yet.
func stepsOf(name string) []string {
	r, ok := recipe.Builtin(name)
	if !ok {
		return nil
	}
	var names []string
	for _, s := range slices.Concat(r.Checks, r.Reload, r.After) {
		if !slices.Contains(names, s.Name) {
			names = append(names, s.Name)
		}
	}
	if r.Probe != nil {
		names = append(names, "probe")
	}
	return names
}

// accepts refuses a recipe that this host does not take.
func (c *Config) accepts(name string) error {
	if slices.Contains(c.Recipes, name) || strings.HasPrefix(name, local) && slices.Contains(c.Recipes, local+"*") {
		return nil
	}
	return fault.New(fault.Denied, "this host does not accept the recipe %q; it accepts %s", name, strings.Join(c.Recipes, ", ")).
		WithHint("add it to recipes in %s", ConfigFile)
}

// recipe finds a recipe by its name: a built-in one, or one of the host's own.
func (c *Config) recipe(name, root string) (*recipe.Recipe, error) {
	if err := c.accepts(name); err != nil {
		return nil, err
	}
	own, is := strings.CutPrefix(name, local)
	if !is {
		r, ok := recipe.Builtin(name)
		if !ok {
			return nil, fault.New(fault.NotFound, "there is no built-in recipe %q in this agent; a newer one may have it", name)
		}
		return r, nil
	}
	if !plainName(own) {
		return nil, fault.New(fault.Invalid, "%q is no name of a recipe; letters, digits and - pass", name)
	}
	file := filepath.Join(root, RecipeDirectory, own+".yaml")
	text, err := readTrusted(file, root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "the recipe %s is not on this host: %s does not exist", name, file)
	}
	if err != nil {
		return nil, err
	}
	return recipe.Parse(text, file)
}

// plainName reports whether a name is safe as a part of a path.
func plainName(name string) bool {
	if name == "" || len(name) > 64 || name[0] == '-' || name[0] == '.' {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

// readTrusted reads a file that says what may be run or placed, after checking that none but root could have written it or
// put another in its place: the file, and each directory above it. Below the root no symbolic link is followed, because
// whoever owns what it leads to, or could change the link, would have the word.
func readTrusted(file, root string) ([]byte, error) {
	if root != "" {
		real, err := filepath.EvalSymlinks(root)
		if err != nil {
			return nil, fmt.Errorf("look at the root: %w", err)
		}
		file = real + strings.TrimPrefix(file, root)
	}
	if err := trustedUpwards(file, root); err != nil {
		return nil, err
	}
	return keyfile.ReadFile(file, maxConfig) // root alone could have put something else there meanwhile
}

// trustedUpwards checks owner, mode and kind of a file and of each directory above it.
func trustedUpwards(name, root string) error {
	for p := name; ; p = filepath.Dir(p) {
		st, err := os.Lstat(p)
		if err != nil {
			return err // fs.ErrNotExist is looked for
		}
		if st.Mode()&fs.ModeSymlink != 0 {
			return fault.New(fault.Denied, "%s is a symbolic link, and %s is used only where it is reached without one", p, name).
				WithHint("put the file itself there")
		}
		owner := st.Sys().(*syscall.Stat_t).Uid
		if owner != 0 && (root == "" || int(owner) != os.Geteuid()) {
			return fault.New(fault.Denied, "%s belongs to user %d, who could say what is done on this host; %s is used only where root owns it and all above it",
				p, owner, name).WithHint("chown root %s", p)
		}
		// Others may write to a sticky directory and cannot put another file in place of ours; under --root, which is
		// for trying things out, such a directory may be above.
		sticky := root != "" && st.IsDir() && st.Mode()&fs.ModeSticky != 0
		if st.Mode().Perm()&0o022 != 0 && !sticky {
			return fault.New(fault.Denied, "%s has mode %04o, so others than its owner can write there; %s is used only where none can",
				p, st.Mode().Perm(), name).WithHint("chmod go-w %s", p)
		}
		if p == "/" {
			return nil
		}
	}
}
