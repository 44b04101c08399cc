package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"chancery/internal/fault"
	"chancery/internal/upkeep/datadir"
)

// stagingFor makes the directory in which the authority is built: beside its place so that it can be renamed there, or
// inside, where an empty directory was prepared for it, since what is around that may be closed to us.
func stagingFor(final datadir.Dir) (datadir.Dir, error) {
	entries, err := os.ReadDir(string(final))
	switch {
	case err == nil && len(entries) > 0:
		return "", fault.New(fault.Conflict, "%s is not empty; an authority is made in a directory of its own", string(final))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	if err == nil {
		dir, err := os.MkdirTemp(string(final), ".chancery-init-")
		return datadir.Dir(dir), err
	}
	parent := filepath.Dir(filepath.Clean(string(final)))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, ".chancery-init-")
	return datadir.Dir(dir), err
}

// settle puts what was built in its place. In a directory that was there node.yaml comes last: without it nothing takes
// the directory for an authority.
func settle(staging, final datadir.Dir) (err error) {
	defer func() {
		if err != nil {
			_ = os.RemoveAll(string(staging))
			err = fmt.Errorf("put the data directory in its place: %w", err)
		}
	}()
	if filepath.Dir(string(staging)) != filepath.Clean(string(final)) {
		if err := os.Rename(string(staging), string(final)); err != nil {
			return err
		}
		return syncDir(filepath.Dir(string(final)))
	}
	if err := os.Chmod(string(final), 0o700); err != nil {
		return err
	}
	return moveInto(staging, final)
}

// moveInto moves what a directory inside final holds to final, node.yaml last, and removes it.
func moveInto(staging, final datadir.Dir) error {
	entries, err := os.ReadDir(string(staging))
	if err != nil {
		return err
	}
	config := filepath.Base(final.Config())
	var names []string
	for _, e := range entries {
		if e.Name() != config {
			names = append(names, e.Name())
		}
	}
	for _, name := range append(names, config) {
		if err := os.Rename(filepath.Join(string(staging), name), filepath.Join(string(final), name)); err != nil {
			return err
		}
	}
	if err := os.Remove(string(staging)); err != nil {
		return err
	}
	return syncDir(string(final))
}
