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

// Findings are what was found out of a host.
type Findings struct {
	Facts recipe.Facts
	// Unknown says what this host does not have, and why it is not known.
	Unknown []string
	// Assumed says which facts are what they were known to be before, because their commands failed, and how.
	Assumed []string
}

// Gather finds out what the rules ask for. What the host does not have is said and left out of the facts: a program, file
// or account that is not there is no error, because a recipe's conditions decide what that means. A program that is there
// and fails, or does not end, says nothing of the host: the fact is what it last was, and where that is not known it is
// an error, for a plan made without it could be one for another machine. The error is also for rules that cannot be
// followed on any host, for a configuration that is there and cannot be read to its end, and for a context that ended.
func Gather(ctx context.Context, sys System, rules []recipe.FactRule, last recipe.Facts) (*Findings, error) {
	f := &Findings{Facts: recipe.Facts{}}
	for _, rule := range rules {
		err := gather(ctx, sys, rule, f.Facts)
		if ended := ctx.Err(); ended != nil {
			return nil, ended
		}
		broken, failed := errors.AsType[commandFailed](err)
		value, known := last[rule.Name]
		switch {
		case err == nil:
		case failed && known:
			f.Facts[rule.Name] = value
			f.Assumed = append(f.Assumed, fmt.Sprintf("%s could not be found out now and is taken to be %s, as before: %s", rule.Name, value, broken))
		case failed:
			return nil, fmt.Errorf("fact %s could not be found out, and what it was before is not known: %w", rule.Name, broken)
		case fault.Is(err, fault.Invalid):
			return nil, fmt.Errorf("fact %s: %w", rule.Name, err)
		default:
			f.Unknown = append(f.Unknown, fmt.Sprintf("%s: %s", rule.Name, err))
		}
	}
	return f, nil
}

// commandFailed is the error of a command that is there and did not do what it is for: its exit status was not 0, it was
// killed when its time was over, or it could not be started. An exit with 0 is an answer, whatever was printed.
type commandFailed struct{ error }

func (c commandFailed) Unwrap() error { return c.error }

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
	_, err := os.Stat(sys.Path(rule.Config))
	if rule.Syntax == "systemd" && err != nil {
		_, err = os.Stat(sys.Path(rule.Config + ".d")) // the file itself may lie in /usr, with nothing but defaults
	}
	if errors.Is(err, fs.ErrNotExist) {
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
	switch {
	case err == nil:
	case errors.Is(err, ErrNoCommand), fault.Is(err, fault.Invalid):
		return "", err
	default:
		return "", commandFailed{err}
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
