package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/internal/fault"
)

// System is the machine that is looked at, or a directory that stands for one.
type System struct {
	// Root is put before every path; empty for the machine itself. A path that is below Root already is left as it is.
	Root string
	// AsRoot says that this process may own files as others do and act as them.
	AsRoot bool
	// Self starts the child that ends in ReadableMain: a program and the words before ReadableMain's arguments. Where it is
	// empty, that is this very program with the words agent and readable.
	Self []string
}

// User is an account of the system.
type User struct {
	Name     string
	UID, GID int
	Groups   []int // all of them, the primary one included
	Home     string
}

// accountLimit bounds what is read of a passwd or group file.
const accountLimit = 16 << 20

// Path is where the system's path lies.
func (s System) Path(path string) string {
	if s.Root == "" || s.Root == "/" {
		return path
	}
	root, path := filepath.Clean(s.Root), filepath.Clean("/"+path) // so that .. does not lead out of the root
	if path == root || strings.HasPrefix(path, root+"/") {
		return path
	}
	return filepath.Join(root, path)
}

// User looks an account up: in etc/passwd below Root where there is one, else in the machine's own.
func (s System) User(name string) (User, error) {
	lines, err := s.accounts("passwd", name)
	if err != nil {
		return User{}, err
	}
	for _, f := range lines {
		if len(f) < 7 || f[0] != name {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 31)
		gid, err2 := strconv.ParseUint(f[3], 10, 31)
		if err := errors.Join(err1, err2); err != nil {
			return User{}, fmt.Errorf("read the account of %s: %w", name, err)
		}
		u := User{Name: name, UID: int(uid), GID: int(gid), Home: f[5]}
		u.Groups, err = s.groupsOf(u)
		return u, err
	}
	return User{}, fault.New(fault.NotFound, "this host has no user %q", name).
		WithHint("install the package that makes the user, or name another user in the recipe's parameters")
}

// Group looks the number of a group up, where User looks.
func (s System) Group(name string) (int, error) {
	lines, err := s.accounts("group", name)
	if err != nil {
		return 0, err
	}
	for _, f := range lines {
		if len(f) < 4 || f[0] != name {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 31)
		if err != nil {
			return 0, fmt.Errorf("read the group %s: %w", name, err)
		}
		return int(gid), nil
	}
	return 0, fault.New(fault.NotFound, "this host has no group %q", name).
		WithHint("install the package that makes the group, or name another group in the recipe's parameters")
}

// groupsOf are the numbers of the groups that the user is in.
func (s System) groupsOf(u User) ([]int, error) {
	groups := []int{u.GID}
	lines, err := s.accounts("group", "")
	if err != nil {
		return nil, err
	}
	for _, f := range lines {
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), u.Name) {
			continue
		}
		if gid, err := strconv.ParseUint(f[2], 10, 31); err == nil && !slices.Contains(groups, int(gid)) {
			groups = append(groups, int(gid))
		}
	}
	return groups, nil
}

// accounts returns the fields of the lines of etc/passwd or etc/group. Where the machine's own file does not have the
// name, which may then come from a directory service, getent is asked.
func (s System) accounts(database, name string) ([][]string, error) {
	if below := s.Path("/etc/" + database); below != "/etc/"+database {
		lines, err := accountFile(below)
		if !errors.Is(err, fs.ErrNotExist) {
			return lines, err
		}
	}
	lines, err := accountFile("/etc/" + database)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	known := func(f []string) bool { return f[0] == name }
	if name == "" || strings.HasPrefix(name, "-") || slices.ContainsFunc(lines, known) {
		return lines, nil
	}
	out, err := s.Run(context.Background(), Command{Args: []string{"getent", database, name}, Timeout: 5 * time.Second})
	if err == nil {
		lines = append(lines, strings.Split(strings.TrimSpace(string(out)), ":"))
	}
	return lines, nil
}

func accountFile(path string) ([][]string, error) {
	text, err := readBounded(path, accountLimit)
	if err != nil {
		return nil, err
	}
	var lines [][]string
	scan := bufio.NewScanner(strings.NewReader(string(text)))
	scan.Buffer(nil, accountLimit) // a group may have thousands of members
	for scan.Scan() {
		if line := scan.Text(); line != "" && line[0] != '#' {
			lines = append(lines, strings.Split(line, ":"))
		}
	}
	return lines, scan.Err()
}

// credential says who a process is that acts for a user, or for a group of its own: "user" with its groups, and the group
// in the place of the primary one where it is given.
func (s System) credential(user, group string) (User, error) {
	u := User{Name: "root", Groups: []int{0}}
	if user != "" && user != "root" {
		var err error
		if u, err = s.User(user); err != nil {
			return User{}, err
		}
	}
	if group == "" {
		return u, nil
	}
	gid, err := s.Group(group)
	if err != nil {
		return User{}, err
	}
	u.GID = gid
	if !slices.Contains(u.Groups, gid) {
		u.Groups = append(u.Groups, gid)
	}
	return u, nil
}

// readBounded reads a regular file of at most limit octets. It does not wait for a FIFO or a device.
func readBounded(path string, limit int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s has %d octets, of which %d would be read", path, st.Size(), limit)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAtMost(f, limit)
}
