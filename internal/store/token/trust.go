package token

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"chancery/internal/fault"
)

// checkModule refuses a library that somebody else could exchange: it runs as this user, and is given the PIN.
func checkModule(path string) error {
	if !filepath.IsAbs(path) {
		return fault.New(fault.Invalid, "the PKCS #11 library %q is not an absolute path", path)
	}
	return trusted("library", path)
}

// maxLinks is how many symbolic links a path may lead over, as for the kernel.
const maxLinks = 40

// trusted refuses code that is not a regular file of root or of this process's user, or that somebody else could put another in place of: every
// component from the root down to it, and of what its symbolic links lead over, belongs to one of the two and is written to by nobody
// else. In a directory with the sticky bit others can write, and cannot touch what is not theirs; /tmp is one.
func trusted(what, path string) error {
	rest := strings.Split(filepath.Clean(path), "/")[1:]
	at, links := "/", 0
	stat, err := component(what, path, at)
	for err == nil && len(rest) > 0 {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		if stat, err = component(what, path, next); err != nil {
			break
		}
		if stat.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return fault.New(fault.Invalid, "the PKCS #11 %s %s leads over more than %d symbolic links", what, path, maxLinks)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return fault.New(fault.Unavailable, "the PKCS #11 %s %s cannot be used: %w", what, path, err)
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		// The target's own "..": the kernel goes up from where the link lies, and at has no link in it.
		rest = append(strings.FieldsFunc(target, func(r rune) bool { return r == '/' }), rest...)
	}
	switch {
	case err != nil:
		return err
	case !stat.Mode().IsRegular():
		return fault.New(fault.Invalid, "the PKCS #11 %s %s is not a regular file", what, path)
	}
	return nil
}

// component judges one component of a path.
func component(what, path, at string) (fs.FileInfo, error) {
	whose := "the PKCS #11 " + what + " " + path
	stat, err := os.Lstat(at)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "%s cannot be used: %w", whose, err)
	}
	if at != path {
		whose += ": " + at
	}
	owner, known := stat.Sys().(*syscall.Stat_t)
	switch mode := stat.Mode(); {
	case !known || owner.Uid != 0 && int(owner.Uid) != os.Geteuid():
		return nil, fault.New(fault.Invalid, "%s belongs to user %d, who could put code there that is given the PIN; it must belong to root or to the user "+
			"that runs the node (%d)", whose, owner.Uid, os.Geteuid()).WithHint("chown root %s", at)
	case mode&fs.ModeSymlink != 0, mode.Perm()&0o022 == 0, mode.IsDir() && mode&fs.ModeSticky != 0:
		return stat, nil
	default:
		return nil, fault.New(fault.Invalid, "%s has mode %04o: others could put code there that is given the PIN", whose, mode.Perm()).
			WithHint("chmod go-w %s", at)
	}
}
