package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// factTimeout bounds a command that tells a fact.
const factTimeout = 10 * time.Second

// mostFact bounds the length of a fact.
const mostFact = 4096

// Gather finds out what the rules ask for. What could not be found out is said and left out of the facts: a program, file
// or account that is not there is no error, because a recipe's conditions decide what that means. The error is for rules
// that cannot be followed on any host, for a configuration that is there and cannot be read to its end (half of it would
// make a plan for another machine), and for a context that ended.
func Gather(ctx context.Context, sys System, rules []recipe.FactRule) (recipe.Facts, []string, error) {
	facts := recipe.Facts{}
	var unknown []string
	for _, rule := range rules {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		err := gather(ctx, sys, rule, facts)
		switch {
		case err == nil:
		case fault.Is(err, fault.Invalid):
			return nil, nil, fmt.Errorf("fact %s: %w", rule.Name, err)
		default:
			unknown = append(unknown, fmt.Sprintf("%s: %s", rule.Name, err))
		}
	}
	return facts, unknown, nil
}

// gather adds what one rule finds to the facts.
func gather(ctx context.Context, sys System, rule recipe.FactRule, facts recipe.Facts) error {
	set := func(value string, err error) error {
		if err == nil && value != "" {
			facts[rule.Name] = value
		}
		return err
	}
	switch {
	case len(rule.Command) > 0:
		return set(factOfCommand(ctx, sys, rule))
	case rule.Config != "":
		return factsOfConfig(sys, rule, facts)
	case len(rule.Groups) > 0:
		return set(firstOf(rule.Groups, func(name string) error { _, err := sys.Group(name); return err }))
	case len(rule.Users) > 0:
		return set(firstOf(rule.Users, func(name string) error { _, err := sys.User(name); return err }))
	case len(rule.Paths) > 0:
		return set(firstOf(rule.Paths, func(path string) error { _, err := os.Stat(sys.Path(path)); return err }))
	case rule.Home != "":
		u, err := sys.User(rule.Home)
		return set(u.Home, err)
	}
	return fault.New(fault.Invalid, "the rule has none of command, config, groups, users, paths and home")
}

// factsOfConfig adds what a configuration file says.
func factsOfConfig(sys System, rule recipe.FactRule, facts recipe.Facts) error {
	if _, err := os.Stat(sys.Path(rule.Config)); errors.Is(err, fs.ErrNotExist) {
		return err
	}
	found, err := readConfig(sys, rule.Config, rule.Syntax)
	if err != nil {
		return fault.New(fault.Invalid, "the configuration cannot be read: %w", err)
	}
	for name, value := range found {
		facts[rule.Name+"."+name] = value
	}
	return nil
}

// factOfCommand is the pattern's first group in what the command prints, or all that the pattern matches where it has no
// group; without a pattern, the first line.
func factOfCommand(ctx context.Context, sys System, rule recipe.FactRule) (string, error) {
	pattern := rule.Pattern
	if pattern == "" {
		pattern = `\A\s*(\S[^\n]*)`
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return "", fault.New(fault.Invalid, "the pattern %q is no regular expression: %w", rule.Pattern, err)
	}
	out, err := sys.Run(ctx, Command{Args: rule.Command, Timeout: factTimeout})
	if err != nil {
		return "", err
	}
	found := re.FindSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("%s printed nothing that matches %q, but: %s", rule.Command[0], pattern, lastLines(string(out)))
	}
	value := strings.TrimSpace(string(found[min(1, len(found)-1)]))
	return value, plain(value)
}

// firstOf returns the first candidate that is there.
func firstOf(candidates []string, there func(string) error) (string, error) {
	for _, c := range candidates {
		err := there(c)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !fault.Is(err, fault.NotFound) {
			return "", err
		}
	}
	return "", fmt.Errorf("none of %s is on this host", strings.Join(candidates, ", "))
}

// plain refuses a value that could not go into a path, a file or an argument without harm.
func plain(value string) error {
	if len(value) > mostFact {
		return fmt.Errorf("the value has %d octets, of which %d may be", len(value), mostFact)
	}
	if i := strings.IndexFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }); i >= 0 {
		return fmt.Errorf("the value has a control character, or is not UTF-8, at octet %d", i)
	}
	return nil
}
