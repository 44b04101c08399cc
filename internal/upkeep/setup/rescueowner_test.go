package setup_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"

	"chancery/internal/pkitest"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// left leaves a data directory to a service's user, and wants all in it to be his afterwards: a node that finds one file of root's there
// may not begin.
func left(t *testing.T, dir datadir.Dir, rescue func() error) {
	t.Helper()
	each := func(look func(path string, owner *syscall.Stat_t) error) (all int) {
		err := filepath.WalkDir(string(dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := os.Lstat(path)
			if err != nil {
				return err
			}
			all++
			return look(path, st.Sys().(*syscall.Stat_t))
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	pkitest.Leave(t, string(dir))
	st, err := os.Stat(string(dir))
	if err != nil {
		t.Fatal(err)
	}
	service := st.Sys().(*syscall.Stat_t)
	each(func(path string, _ *syscall.Stat_t) error { return os.Lchown(path, int(service.Uid), int(service.Gid)) })
	if err := rescue(); err != nil {
		t.Fatal(err)
	}
	all := each(func(path string, owner *syscall.Stat_t) error {
		if owner.Uid != service.Uid || owner.Gid != service.Gid {
			t.Errorf("%s is of %d:%d, and the directory of %d:%d", path, owner.Uid, owner.Gid, service.Uid, service.Gid)
		}
		return nil
	})
	if all < 8 {
		t.Errorf("the directory has %d files", all)
	}
}

func TestNodeRescueOfAService(t *testing.T) {
	made, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), Online: true})
	if err != nil {
		t.Fatal(err)
	}
	key := recovery(t, made)
	lose(t, made.Dir)
	left(t, made.Dir, func() error {
		_, err := setup.RescueNode(t.Context(), setup.NodeRescue{Dir: made.Dir, Recovery: key})
		return err
	})
	// And where it is cut short, what is staged is his too.
	lose(t, made.Dir)
	left(t, made.Dir, func() error {
		if err := os.MkdirAll(filepath.Join(made.Dir.TLS(), "x"), 0o700); err != nil {
			return err
		}
		if _, err := setup.RescueNode(t.Context(), setup.NodeRescue{Dir: made.Dir, Recovery: key}); err == nil {
			return errors.New("nothing was in the way")
		}
		return os.RemoveAll(made.Dir.TLS())
	})
}

func TestExpiredRescueOfAService(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir}); err != nil {
			t.Fatal(err)
		}
	})
	// What was in it is off the machine.
	if err := os.RemoveAll(dir.Offline()); err != nil {
		t.Fatal(err)
	}
	left(t, dir, func() error {
		done, err := setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: dir})
		if err != nil {
			return err
		}
		if len(done.Offline) != 2 {
			t.Errorf("written for another place: %v", done.Offline)
		}
		_, err = setup.RescueAdmin(t.Context(), dir)
		return err
	})
}
