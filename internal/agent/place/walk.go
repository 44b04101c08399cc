package place

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"chancery/internal/fault"
)

// maxHops bounds how many links a path may lead over.
const maxHops = 16

// newLayer prepares the layer for a host's files. Links to directories are followed where root made them; below a root of
// its own, an agent that is not root stands for it.
func newLayer(root string, accept Accept, cut func(Operation) error) (*Layer, error) {
	l := &Layer{cut: cut, trusted: []int{0}}
	if root != "" && path.Clean(root) != "/" {
		if l.root = path.Clean(root); !path.IsAbs(l.root) {
			return nil, fault.New(fault.Invalid, "the root %q is not an absolute path", root)
		}
		l.trusted = append(l.trusted, os.Geteuid())
	}
	for _, prefixes := range []struct {
		from []string
		to   *[]string
	}{{accept.Prefixes, &l.accept.Prefixes}, {accept.Except, &l.accept.Except}} {
		for _, prefix := range prefixes.from {
			p, err := l.clean(path.Clean(prefix))
			if err != nil {
				return nil, err
			}
			*prefixes.to = append(*prefixes.to, p)
		}
	}
	return l, nil
}

// Holds reports whether a path is accepted; where it is not, excepted is the exception that it lies in, if that is why.
func (a Accept) Holds(p string) (accepted bool, excepted string) {
	for _, e := range a.Except {
		if within(p, e) && !slices.ContainsFunc(a.Prefixes, func(prefix string) bool { return within(p, prefix) && within(prefix, e) }) {
			return false, e
		}
	}
	return slices.ContainsFunc(a.Prefixes, func(prefix string) bool { return within(p, prefix) }), ""
}

// clean judges the text of a path, and takes the root off one that has it already.
func (l *Layer) clean(p string) (string, error) {
	unfit := func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffd }
	switch {
	case !path.IsAbs(p), path.Clean(p) != p:
		return "", fault.New(fault.Invalid,
			"the path %q is not absolute and clean: one that begins with / and has no //, . or .. would pass", p)
	case strings.IndexFunc(p, unfit) >= 0:
		return "", fault.New(fault.Invalid, "the path %q has a control character, or is not UTF-8", p)
	case len(p) >= unix.PathMax-len(l.root):
		return "", fault.New(fault.Invalid, "the path of %d octets is too long", len(p))
	}
	return l.strip(p), nil
}

func (l *Layer) strip(p string) string {
	if l.root == "" || p != l.root && !strings.HasPrefix(p, l.root+"/") {
		return p
	}
	return path.Clean("/" + strings.TrimPrefix(p, l.root))
}

func within(p, prefix string) bool {
	return p == prefix || prefix == "/" || strings.HasPrefix(p, prefix+"/")
}

// accepted refuses a path that the host's own configuration does not let be placed.
func (l *Layer) accepted(p string) error {
	accepted, excepted := l.accept.Holds(p)
	would := "nothing is accepted here"
	switch {
	case accepted:
		return nil
	case excepted != "":
		would = excepted + " is the system's own, and is accepted only where it is named itself"
	case len(l.accept.Prefixes) > 0:
		would = "paths below " + strings.Join(l.accept.Prefixes, ", ") + " would pass"
	}
	return fault.New(fault.Denied, "this host does not accept files at %s: %s", p, would).
		WithHint("only root on this host can widen it: prefixes in agent.yaml")
}

// view holds directories open while a placement is worked on, so that all of it happens in the directories that were
// judged, whatever is renamed around them.
type view struct {
	layer *Layer
	open  map[string]*directory // by path, links resolved
}

func (l *Layer) view() *view { return &view{layer: l, open: map[string]*directory{}} }

func (v *view) close() {
	for _, d := range v.open {
		d.close()
	}
}

func (v *view) root() (*directory, error) {
	if d, ok := v.open["/"]; ok {
		return d, nil
	}
	real := v.layer.root
	if real == "" {
		real = "/"
	}
	d, err := v.layer.openDirectory(real, "/")
	if err != nil {
		return nil, err
	}
	v.open["/"] = d
	return d, nil
}

// child opens a directory in d, once.
func (v *view) child(d *directory, name string) (*directory, error) {
	if c, ok := v.open[d.at(name)]; ok {
		return c, nil
	}
	c, err := d.child(name)
	if err != nil {
		return nil, err
	}
	v.open[c.path] = c
	return c, nil
}

// walk goes to a directory as far as it is there: deepest is the last that is, missing are the names below it that are not.
func (v *view) walk(p string) (deepest *directory, missing []string, err error) {
	asked := p
	for range maxHops {
		next, d, missing, err := v.walkUntilLink(p)
		if err != nil {
			return nil, nil, err
		}
		if next == "" {
			return d, missing, nil
		}
		if err := v.layer.accepted(next); err != nil {
			return nil, nil, fault.New(fault.Denied, "%s leads over a link to %s: %w", asked, next, err).
				WithHint("name the path without the link, or let root on this host accept where it leads in agent.yaml")
		}
		p = next
	}
	return nil, nil, fault.New(fault.Invalid, "%s leads over more than %d links", asked, maxHops)
}

// walkUntilLink walks to p, or to the first link on the way; next is then p with the link replaced by its target.
func (v *view) walkUntilLink(p string) (next string, d *directory, missing []string, err error) {
	if d, err = v.root(); err != nil {
		return "", nil, nil, err
	}
	names := strings.Split(strings.Trim(p, "/"), "/")
	if p == "/" {
		return "", d, nil, nil
	}
	for i, name := range names {
		c, err := v.child(d, name)
		switch {
		case err == nil:
			d = c
			continue
		case errors.Is(err, fs.ErrNotExist):
			return "", d, names[i:], nil
		case !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP):
			return "", nil, nil, err
		}
		target, err := v.follow(d, name)
		if err != nil {
			return "", nil, nil, err
		}
		return path.Join(append([]string{target}, names[i+1:]...)...), nil, nil, nil
	}
	return "", d, nil, nil
}

// follow returns where a link to a directory leads, if it may be followed.
func (v *view) follow(d *directory, name string) (string, error) {
	st, err := d.stat(name)
	if err != nil {
		return "", err
	}
	if e := entryOf(st); e.kind != unix.S_IFLNK {
		return "", fault.New(fault.Conflict, "%s is %s, and a directory is wanted there", d.at(name), kindName(e.kind))
	}
	if !slices.Contains(v.layer.trusted, int(st.Uid)) {
		return "", fault.New(fault.Denied, "%s is a symbolic link of user %d, and only links that root made are followed",
			d.at(name), st.Uid)
	}
	target, err := d.readlink(name)
	if err != nil {
		return "", err
	}
	if !path.IsAbs(target) {
		return path.Join(d.path, target), nil // Join keeps .. from leaving the root; d.path has no link in it
	}
	return v.layer.strip(path.Clean(target)), nil
}

// judge refuses what must not be replaced by a file.
func judge(p string, e entry) error {
	switch {
	case !e.exists():
		return nil
	case e.kind == unix.S_IFLNK:
		return fault.New(fault.Conflict, "%s is a symbolic link to %s; a regular file or none would pass", p, e.link).
			WithHint("name the file that the link leads to in the recipe's parameters, or remove the link")
	case e.kind != unix.S_IFREG:
		return fault.New(fault.Conflict, "%s is %s; a regular file or none would pass", p, kindName(e.kind))
	case e.names > 1:
		return fault.New(fault.Conflict, "%s has %d hard links; a file with one name would pass", p, e.names).
			WithHint("whoever has another name of the file would keep the old content: find it by find -samefile %s", p)
	}
	return nil
}

func kindName(kind uint32) string {
	switch kind {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	default:
		return "a device"
	}
}
