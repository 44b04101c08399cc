package examine

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chancery/internal/agent/loop"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
)

// local looks at what was placed on this machine.
type local struct {
	*report
	placed loop.Placed
	system probe.System
	state  string
	now    time.Time
}

func (l *local) once() string { return "chancery agent run --once --state " + quoted(l.state) }

// look looks at each file of a placement, and at the port that reads them.
func (l *local) look(ctx context.Context, timeout time.Duration) error {
	plan := l.placed.Plan
	keys, leaves := map[string]crypto.Signer{}, map[string]*x509.Certificate{}
	before := len(l.found)
	for _, f := range plan.Files {
		held, err := l.file(ctx, f, plan)
		if err != nil {
			return err
		}
		if held == nil || f.Format == "hashdir" || !speaks(f) {
			continue
		}
		of := orElse(f.Of, plan.Certificates[0].ID)
		if len(held.Keys) > 0 && slices.Contains(f.Content, "key") {
			keys[of] = held.Keys[0]
		}
		if len(held.Certificates) > 0 && (slices.Contains(f.Content, "leaf") || slices.Contains(f.Content, "path")) {
			leaves[of] = held.Certificates[0]
			l.drift(f, held.Certificates[0], l.placed.Leaves[of])
		}
	}
	for id, key := range keys {
		leaf := leaves[id]
		if leaf == nil {
			continue
		}
		if keyfile.CheckPair(key.Public(), leaf) != nil {
			l.tell("local.pair", "two public keys", fmt.Sprintf("the placed key is not that of %s", named(leaf)), l.once())
		}
	}
	if !slices.ContainsFunc(l.found[before:], isWrong) {
		l.ok("local", "%s as placed: mode, owner, label, content, and readable by %s", count(len(plan.Files), "file is", "files are"), orElse(plan.User, "root"))
	}
	return l.stale(ctx, leaves[plan.Certificates[0].ID], timeout)
}

// speaks reports whether a file holds something that can be compared: a key or a certificate of the host.
func speaks(f recipe.PlannedFile) bool {
	return slices.ContainsFunc(f.Content, func(c string) bool { return c == "key" || c == "leaf" || c == "path" })
}

// file looks at one file, and reads it where it holds what can be compared.
func (l *local) file(ctx context.Context, f recipe.PlannedFile, plan *recipe.Plan) (*Held, error) {
	path := l.system.Path(f.Path)
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.tell("local.missing", "no such file", fmt.Sprintf("%s is not there", path), l.once())
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look at %s: %w; on the host doctor is run as root", path, err)
	}
	l.attributes(path, st, f)
	if plan.User != "" || plan.Group != "" {
		if err := probe.Readable(ctx, l.system, f.Path, orElse(plan.User, "root"), plan.Group); err != nil {
			l.tell("local.readable", shorten(sentence(err), 300), fmt.Sprintf("the consumer runs as %s and cannot read %s", orElse(plan.User, "root"), path), "namei -l "+quoted(path))
		}
	}
	if st.IsDir() || !speaks(f) {
		return nil, nil
	}
	text, err := readFile(path, keyfile.MaxFile)
	if err != nil {
		return nil, err
	}
	var password []byte
	if f.PasswordFile != "" {
		if password, err = readFile(l.system.Path(f.PasswordFile), 1<<16); err != nil {
			return nil, err
		}
		password = []byte(strings.TrimRight(string(password), "\r\n"))
	}
	held, err := Read(text, password)
	if err != nil {
		l.tell("local.drift", shorten(clean(sentence(err)), 200), fmt.Sprintf("%s cannot be read any more", path), l.once())
		return nil, nil
	}
	return held, nil
}

// attributes holds mode, owner and label against the plan.
func (l *local) attributes(path string, st fs.FileInfo, f recipe.PlannedFile) {
	if has, want := st.Mode().Perm(), f.Mode.Perm(); !st.IsDir() && has != want {
		l.tell("local.mode", fmt.Sprintf("%04o, not %04o", has, want), fmt.Sprintf("%s has another mode", path), l.once())
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if ok && l.system.AsRoot && l.system.Root == "" {
		if u, err := l.system.User(f.Owner); err == nil && u.UID != int(sys.Uid) {
			l.tell("local.owner", ownerName(sys.Uid)+", not "+f.Owner, fmt.Sprintf("%s has another owner", path), l.once())
		}
		if f.Group != "" {
			if gid, err := l.system.Group(f.Group); err == nil && gid != int(sys.Gid) {
				l.tell("local.owner", "group "+strconv.Itoa(int(sys.Gid))+", not "+f.Group, fmt.Sprintf("%s has another group", path), l.once())
			}
		}
	}
	if has := labelOf(path); f.Label != "" && has != "" && has != f.Label {
		l.tell("local.label", has+", not "+f.Label, fmt.Sprintf("%s has another label", path), l.once())
	}
}

func ownerName(uid uint32) string {
	number := strconv.Itoa(int(uid))
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return number
}

// drift holds the certificate in a file against the one that the agent holds.
func (l *local) drift(f recipe.PlannedFile, has, want *x509.Certificate) {
	if want == nil || has.Equal(want) {
		return
	}
	seen := fmt.Sprintf("serial %s, not %s", serial(has), serial(want))
	l.tell("local.drift", seen, fmt.Sprintf("%s holds %s, which the agent did not place", l.system.Path(f.Path), named(has)), l.once())
}

// stale looks whether the consumer serves what its file holds.
func (l *local) stale(ctx context.Context, leaf *x509.Certificate, timeout time.Duration) error {
	p := l.placed.Plan.Probe
	if p == nil || p.Address == "" || leaf == nil {
		return nil
	}
	one := *p
	one.Timeout = recipe.Duration(timeout)
	seen, err := probe.Look(ctx, one, nil)
	switch {
	case probe.IsDown(err):
		return nil // the agent's report says so
	case err != nil:
		l.tell("port.unreachable", shorten(clean(err.Error()), 200), fmt.Sprintf("%s cannot be looked at from this host", p.Address), "")
	case seen.Leaf().Equal(leaf):
		l.ok("local.served", "%s serves what the file holds", p.Address)
	default:
		l.tell("local.stale", fmt.Sprintf("serial %s, not %s", serial(seen.Leaf()), serial(leaf)), fmt.Sprintf("the process at %s has not read the certificate that is on disk", p.Address),
			reloadOf(l.placed.Plan, l.once()))
	}
	return nil
}

// reloadOf is the command by which the consumer reads its files.
func reloadOf(plan *recipe.Plan, otherwise string) string {
	if s := plan.Reload; s != nil && len(s.Command) > 0 {
		var words []string
		for _, word := range s.Command {
			words = append(words, argument(word))
		}
		return strings.Join(words, " ")
	}
	return otherwise
}

// argument is a word of a recipe's own command, which may be an option.
func argument(word string) string {
	if option, ok := strings.CutPrefix(word, "-"); ok && option != "" {
		rest := strings.TrimLeft(option, "-")
		return word[:len(word)-len(rest)] + quoted(rest)
	}
	return quoted(word)
}
