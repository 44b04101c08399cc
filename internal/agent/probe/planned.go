package probe

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// Planned refuses a plan whose consumer could not read what is to be placed for it: it is asked before a certificate is, and
// before a file is touched. What is to be made is judged by the owners and modes of the plan; where a directory hands an
// access control list on to its files, modes do not decide, and nothing is said of them. The directories above, which are
// there, are tried by the kernel, in a child that takes the user's place. Readable tries the files once they are there.
func Planned(ctx context.Context, sys System, plan *recipe.Plan) error {
	if !sys.AsRoot || plan.User == "" || plan.User == "root" {
		return nil
	}
	u, err := sys.credential(plan.User, plan.Group)
	if err != nil {
		return err
	}
	if err := planned(sys, plan, u); err != nil || u.UID == os.Geteuid() {
		return err
	}
	for _, directory := range standing(sys, plan) {
		if err := sys.tryReading(ctx, sys.Path(directory)+"/", u); err != nil {
			return fmt.Errorf("what is to be placed in %s: %w", directory, err)
		}
	}
	return nil
}

// planned judges owners and modes of what is to be made.
func planned(sys System, plan *recipe.Plan, u User) error {
	for _, d := range plan.Directories {
		above := false
		for _, f := range plan.Files {
			above = above || strings.HasPrefix(f.Path, d.Path+"/")
		}
		if !above || hasList(sys, d.Path, "system.posix_acl_access") {
			continue
		}
		if err := u.may(sys, "search", d.Path, d.Owner, d.Group, d.Mode, maySearch); err != nil {
			return err
		}
	}
	for _, f := range plan.Files {
		if f.IsDirectory() || hasList(sys, path.Dir(f.Path), "system.posix_acl_default") {
			continue
		}
		if err := u.may(sys, "read", f.Path, f.Owner, f.Group, f.Mode, mayRead); err != nil {
			return err
		}
	}
	return nil
}

// standing are the directories, each the lowest that is there and not the plan's own, in which the plan's files come to lie.
func standing(sys System, plan *recipe.Plan) []string {
	var all []string
	for _, f := range plan.Files {
		at := path.Dir(f.Path)
		for at != "/" {
			own := slices.ContainsFunc(plan.Directories, func(d recipe.PlannedDirectory) bool { return d.Path == at })
			if _, err := os.Stat(sys.Path(at)); !own && err == nil {
				break
			}
			at = path.Dir(at)
		}
		if !slices.Contains(all, at) {
			all = append(all, at)
		}
	}
	return all
}

// may decides by the mode alone, as the kernel does for a user without capabilities: the first class that he is in counts.
func (u User) may(sys System, what, path, owner, group string, mode fs.FileMode, want fs.FileMode) error {
	if u.UID == 0 {
		return nil
	}
	of, err := sys.credential(owner, group)
	if err != nil {
		return nil // that the account is missing is said where the file is placed
	}
	bits := mode
	switch {
	case of.UID == u.UID:
		bits = mode >> 6
	case u.in(of.GID):
		bits = mode >> 3
	}
	if bits&want == want {
		return nil
	}
	if group == "" {
		group = "his own group"
	}
	return fault.New(fault.Invalid, "%s could not %s %s, which is to be %s:%s with mode %04o; a group that he is in, or another mode, would pass", u.Name, what,
		path, owner, group, mode.Perm()).WithHint("chancery recipe explain shows the parameters that say so")
}

func (u User) in(gid int) bool { return u.GID == gid || slices.Contains(u.Groups, gid) }

// hasList reports whether a directory that is there has an access control list of the kind.
func hasList(sys System, path, attribute string) bool {
	n, err := unix.Getxattr(sys.Path(path), attribute, nil)
	return err == nil && n > 0
}
