package probe

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"chancery/internal/agent/recipe"
)

// TestPlanned: what a consumer's user could not read is refused before it is there, by the plan alone, and where directories
// that are there stand in the way.
func TestPlanned(t *testing.T) {
	other := stranger(t)
	dir := openTree(t)
	if err := os.Mkdir(filepath.Join(dir, "closed"), 0o700); err != nil {
		t.Fatal(err)
	}
	group, err := groupOf(other.GID)
	if err != nil {
		t.Fatal(err)
	}
	file := func(path, owner, group string, mode os.FileMode) recipe.PlannedFile {
		return recipe.PlannedFile{Path: path, Content: []string{"key"}, Format: "pem", Owner: owner, Group: group, Mode: mode}
	}
	own := recipe.PlannedDirectory{Path: dir + "/new", Owner: "root", Group: group, Mode: 0o750}
	shut := recipe.PlannedDirectory{Path: dir + "/new", Owner: "root", Group: "root", Mode: 0o700}
	for _, c := range []struct {
		name  string
		dirs  []recipe.PlannedDirectory
		file  recipe.PlannedFile
		stops string
	}{
		{"his group's", []recipe.PlannedDirectory{own}, file(dir+"/new/key", "root", group, 0o440), ""},
		{"his own", nil, file(dir+"/a/new", other.Name, group, 0o400), ""},
		{"for all", nil, file(dir+"/a/new", "root", "root", 0o644), ""},
		{"root's alone", nil, file(dir+"/a/new", "root", "root", 0o400), "could not read " + dir + "/a/new, which is to be root:root with mode 0400"},
		{"his own, and not his to read", nil, file(dir+"/a/new", other.Name, group, 0o040), "could not read"},
		{"in a directory to be shut", []recipe.PlannedDirectory{shut}, file(dir+"/new/key", "root", group, 0o440), "could not search " + dir + "/new, which is to be root:root with mode 0700"},
		{"of an account that is not there", nil, file(dir+"/a/new", "nobody-has-this-name", "", 0o400), ""}, // placing it says so
	} {
		t.Run(c.name, func(t *testing.T) {
			plan := &recipe.Plan{User: other.Name, Directories: c.dirs, Files: []recipe.PlannedFile{c.file}}
			err := Planned(context.Background(), System{AsRoot: os.Geteuid() == 0}, plan)
			if os.Geteuid() != 0 {
				err = planned(System{}, plan, other) // modes are judged by anybody
			}
			if c.stops == "" && err != nil || c.stops != "" && (err == nil || !strings.Contains(err.Error(), c.stops)) {
				t.Errorf("%v, where %q is expected", err, c.stops)
			}
		})
	}
	if os.Geteuid() != 0 {
		return // the kernel is asked by root alone
	}
	plan := &recipe.Plan{User: other.Name, Files: []recipe.PlannedFile{file(dir+"/closed/below/key", other.Name, group, 0o400)}}
	if err := Planned(t.Context(), System{AsRoot: true}, plan); err == nil || !strings.Contains(err.Error(), "/closed, mode 0700 of user 0 and group 0, is in the way") {
		t.Errorf("below a closed directory: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, "closed"), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := Planned(t.Context(), System{AsRoot: true}, plan); err != nil {
		t.Errorf("below one that can be searched: %v", err)
	}
}

// groupOf is the name of a group.
func groupOf(gid int) (string, error) {
	lines, err := System{}.accounts("group", "")
	for _, f := range lines {
		if err == nil && len(f) > 2 && f[2] == strconv.Itoa(gid) {
			return f[0], nil
		}
	}
	return "", err
}
