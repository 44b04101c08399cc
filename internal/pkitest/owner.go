package pkitest

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"testing"
)

// The user and the group that a service runs as, where the test runs as root.
const (
	serviceUID = 65534
	serviceGID = 65533
)

func service() (uid, gid int) {
	if os.Geteuid() == 0 {
		return serviceUID, serviceGID
	}
	return os.Geteuid(), os.Getegid()
}

// Leave makes a directory, if need be, and leaves it to the user of a service, as far as the caller may.
func Leave(t testing.TB, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	uid, gid := service()
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
}

// IsLeft holds a file against what Leave left: it is the service's, and nobody else reads it.
func IsLeft(t testing.TB, path string) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := service()
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) != uid || int(owner.Gid) != gid || st.Mode() != 0o600 {
		t.Errorf("%s has %v of %+v; the service is %d:%d", path, st.Mode(), owner, uid, gid)
	}
}
