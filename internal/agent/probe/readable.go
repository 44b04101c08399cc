package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chancery/internal/fault"
)

// Readable reports whether user, and group in the place of its primary one where it is given, can read the file at path:
// the directories above it count. A user that is not us is tried by the kernel, in a child that takes that user's place.
// Where this process may not do that, it is computed from the mode bits, and the refusal says so; below a Root our own user
// stands for all. The refusal names the component that is in the way.
func Readable(ctx context.Context, sys System, path, user, group string) error {
	path = sys.Path(path)
	if !filepath.IsAbs(path) {
		return fault.New(fault.Invalid, "the path %q is not absolute", path)
	}
	if !sys.AsRoot && sys.Root != "" {
		return unreadable(open(path), "the agent's own user", "")
	}
	u, err := sys.credential(user, group)
	if err != nil {
		return err
	}
	switch {
	case u.UID == os.Geteuid() && group == "":
		return unreadable(open(path), u.Name, "")
	case sys.AsRoot:
		return sys.tryReading(ctx, path, u)
	}
	return unreadable(walk(path, modeBits(u)), u.Name, "; computed from the mode bits, because this process may not act as that user")
}

// unreadable says whom a component stops.
func unreadable(err error, user, how string) error {
	if err == nil {
		return nil
	}
	return fault.New(fault.Invalid, "%s cannot read it: %w%s", user, err, how)
}

// open tries whether this process can read the file, and otherwise finds what is in the way.
func open(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err == nil {
		var one [1]byte
		_, err = f.Read(one[:])
		_ = f.Close()
		if err == nil || errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	if found := walk(path, func(component string, _ fs.FileInfo, want uint32) error {
		return syscall.Access(component, want)
	}); found != nil {
		return found
	}
	return err
}

// reach tries whether this process may look for files in a directory, whose path ends with a slash.
func reach(directory string) error {
	err := syscall.Access(directory, maySearch)
	if err == nil {
		return nil
	}
	if found := walk(directory, func(component string, _ fs.FileInfo, _ uint32) error {
		return syscall.Access(component, maySearch)
	}); found != nil {
		return found
	}
	return err
}

// The bits of access(2).
const (
	mayRead   = 4
	maySearch = 1
)

// walk goes down path component by component, over symbolic links, and asks at each directory whether it may be searched
// and at the file whether it may be read.
func walk(path string, allowed func(path string, st fs.FileInfo, want uint32) error) error {
	const mostLinks = 40
	rest := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	at, links := "/", 0
	for {
		st, err := os.Lstat(at)
		if err != nil {
			return err
		}
		if st.Mode()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(at)
			if err != nil {
				return err
			}
			if links++; links > mostLinks {
				return fmt.Errorf("%s: too many symbolic links", at)
			}
			if at = filepath.Dir(at); filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
			continue
		}
		want := uint32(mayRead)
		if len(rest) > 0 {
			want = maySearch
		}
		if len(rest) > 0 && !st.IsDir() {
			return fmt.Errorf("%s is no directory", at)
		}
		if err := allowed(at, st, want); err != nil {
			return fmt.Errorf("%s, mode %04o of user %s and group %s, is in the way: %w", at, st.Mode().Perm(), owner(st, true), owner(st, false), err)
		}
		if len(rest) == 0 {
			return nil
		}
		switch next := rest[0]; next {
		case "", ".":
		case "..":
			at = filepath.Dir(at)
		default:
			at = filepath.Join(at, next)
		}
		rest = rest[1:]
	}
}

// owner is the number of a file's user or group.
func owner(st fs.FileInfo, user bool) string {
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return "?"
	case user:
		return strconv.Itoa(int(sys.Uid))
	}
	return strconv.Itoa(int(sys.Gid))
}

// modeBits decides as the kernel does for a user without capabilities, as far as the mode says it: the first class that
// the user is in decides. Access control lists and labels are not looked at.
func modeBits(u User) func(string, fs.FileInfo, uint32) error {
	return func(_ string, st fs.FileInfo, want uint32) error {
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("its owner is not known")
		}
		if u.UID == 0 {
			return nil
		}
		bits := sys.Mode & 7
		switch {
		case int(sys.Uid) == u.UID:
			bits = sys.Mode >> 6 & 7
		case int(sys.Gid) == u.GID, slices.Contains(u.Groups, int(sys.Gid)):
			bits = sys.Mode >> 3 & 7
		}
		if bits&want != want {
			return syscall.EACCES
		}
		return nil
	}
}

// readableTimeout bounds the child; a file on a network that hangs must not hold up the host's other placements.
const readableTimeout = 20 * time.Second

// The ends of ReadableMain.
const (
	exitReadable   = 0
	exitUnreadable = 3
	exitFailed     = 4
)

// tryReading starts the child and hands on what it says.
func (s System) tryReading(ctx context.Context, path string, u User) error {
	ctx, cancel := context.WithTimeout(ctx, readableTimeout)
	defer cancel()
	self := s.Self
	if len(self) == 0 {
		self = []string{"/proc/self/exe", "agent", "readable"}
	}
	var groups []string
	for _, g := range u.Groups {
		groups = append(groups, strconv.Itoa(g))
	}
	args := append(slices.Clone(self[1:]), strconv.Itoa(u.UID), strconv.Itoa(u.GID), strings.Join(groups, ","), path)
	cmd := exec.CommandContext(ctx, self[0], args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + searchPath, "LC_ALL=C"}
	cmd.WaitDelay = time.Second
	var said, wrong bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &wrong
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == exitUnreadable:
		return unreadable(errors.New(strings.TrimSpace(said.String())), u.Name, "")
	}
	return fmt.Errorf("try to read %s as %s: %w: %s", path, u.Name, err, lastLines(said.String()+wrong.String()))
}

// ReadableMain is the child's whole life: UID, GID, GID[,GID…] and PATH are its arguments. It gives up what it is, becomes
// that user for good, and tries to read the file, or to look for files in a directory whose path ends with a slash. It prints what is in the way, and returns the exit status.
func ReadableMain(args []string) int {
	if len(args) != 4 {
		fmt.Println("usage: UID GID GID[,GID…] PATH")
		return exitFailed
	}
	var numbers []int
	for text := range strings.SplitSeq(args[0]+","+args[1]+","+args[2], ",") {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			fmt.Println("not the number of a user or group:", text)
			return exitFailed
		}
		numbers = append(numbers, int(n))
	}
	uid, gid, groups := numbers[0], numbers[1], numbers[2:]
	err := syscall.Setgroups(groups)
	if err == nil {
		err = syscall.Setresgid(gid, gid, gid)
	}
	if err == nil {
		err = syscall.Setresuid(uid, uid, uid)
	}
	if err == nil && (syscall.Geteuid() != uid || syscall.Getegid() != gid) {
		err = errors.New("the kernel kept the old user")
	}
	if err != nil {
		fmt.Println("become the user:", err)
		return exitFailed
	}
	try := open
	if strings.HasSuffix(args[3], "/") {
		try = reach
	}
	if err := try(args[3]); err != nil {
		fmt.Println(err)
		return exitUnreadable
	}
	return exitReadable
}
