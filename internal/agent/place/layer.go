package place

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The extended attributes that are looked at. A file of ours never has an access control list: its entries would let in
// others than owner, group and mode say.
const (
	labelAttribute = "security.selinux"
	listAttribute  = "system.posix_acl_access"
)

// maxFile bounds a file that is placed or replaced. A CRL of half a million entries fits.
const maxFile = 32 << 20

// Layer does every operation on files: of the host's below its root, and of the state directory. Operations name one
// component in an open directory and never follow a link.
type Layer struct {
	root     string // what / of the host's paths is; "" is /
	accept   Accept
	reserved string // the agent's own directory, if it lies below the root
	trusted  []int  // whose links to directories are followed
	cut      func(Operation) error
}

// do runs one operation, between the two cuts.
func (l *Layer) do(name, at string, operation func() error) error {
	if l.cut != nil {
		if err := l.cut(Operation{Name: name, Path: at}); err != nil {
			return &fs.PathError{Op: name, Path: at, Err: err}
		}
	}
	err := operation()
	for errors.Is(err, unix.EINTR) {
		err = operation()
	}
	if err == nil && l.cut != nil {
		err = l.cut(Operation{Name: name, Path: at, After: true})
	}
	if err != nil {
		return &fs.PathError{Op: name, Path: at, Err: err}
	}
	return nil
}

// descriptor is do for what opens something. What was opened is closed if it is not handed on.
func (l *Layer) descriptor(name, at string, open func() (int, error)) (int, error) {
	fd := -1
	err := l.do(name, at, func() (err error) {
		fd, err = open()
		return err
	})
	if err != nil && fd >= 0 {
		unix.Close(fd)
	}
	return fd, err
}

// directory is an open directory.
type directory struct {
	layer *Layer
	fd    int
	path  string // without the root, links resolved
}

func (d *directory) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

func (d *directory) at(name string) string { return path.Join(d.path, name) }

// openDirectory opens a directory by a path that is trusted: the root, or the state directory.
func (l *Layer) openDirectory(real, shown string) (*directory, error) {
	fd, err := l.descriptor("open", shown, func() (int, error) {
		return unix.Open(real, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	return &directory{l, fd, shown}, nil
}

// child opens a directory that lies in d. One that may be entered and not read is opened for that.
func (d *directory) child(name string) (*directory, error) {
	fd, err := d.layer.descriptor("open", d.at(name), func() (int, error) {
		const flags = unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|flags, 0)
		if errors.Is(err, unix.EACCES) {
			fd, err = unix.Openat(d.fd, name, unix.O_PATH|flags, 0)
		}
		return fd, err
	})
	if err != nil {
		return nil, err
	}
	return &directory{d.layer, fd, d.at(name)}, nil
}

func (d *directory) mkdir(name string, mode fs.FileMode) error {
	return d.layer.do("mkdir", d.at(name), func() error { return unix.Mkdirat(d.fd, name, uint32(mode.Perm())) })
}

func (d *directory) rmdir(name string) error {
	return d.layer.do("rmdir", d.at(name), func() error { return unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR) })
}

func (d *directory) unlink(name string) error {
	return d.layer.do("unlink", d.at(name), func() error { return unix.Unlinkat(d.fd, name, 0) })
}

// rename moves what lies in d to a name in another directory.
func (d *directory) rename(from string, into *directory, to string) error {
	return d.layer.do("rename", into.at(to), func() error { return unix.Renameat(d.fd, from, into.fd, to) })
}

func (d *directory) symlink(target, name string) error {
	return d.layer.do("symlink", d.at(name), func() error { return unix.Symlinkat(target, d.fd, name) })
}

// setTime sets when a file was last changed.
func (d *directory) setTime(name string, changed time.Time) error {
	return d.layer.do("utimes", d.at(name), func() error {
		t := unix.NsecToTimespec(changed.UnixNano())
		return unix.UtimesNanoAt(d.fd, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (d *directory) readlink(name string) (string, error) {
	buffer := make([]byte, unix.PathMax)
	var n int
	err := d.layer.do("readlink", d.at(name), func() (err error) {
		n, err = unix.Readlinkat(d.fd, name, buffer)
		return err
	})
	if err != nil {
		return "", err
	}
	return string(buffer[:n]), nil
}

func (d *directory) stat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := d.layer.do("stat", d.at(name), func() error {
		return unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return st, err
}

// sync makes the names in the directory durable.
func (d *directory) sync() error {
	return d.layer.do("fsync", d.path, func() error { return unix.Fsync(d.fd) })
}

// names lists what lies in the directory.
func (d *directory) names() ([]string, error) {
	var names []string
	err := d.layer.do("list", d.path, func() error {
		fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), d.path)
		defer f.Close()
		names, err = f.Readdirnames(-1)
		return err
	})
	return names, err
}

// self is the open directory as a file, for its attributes.
func (d *directory) self() *file { return &file{layer: d.layer, fd: d.fd, path: d.path} }

// file is an open file.
type file struct {
	layer *Layer
	fd    int
	path  string
}

func (f *file) close() error { return unix.Close(f.fd) }

// create makes a file that nobody but this process's user can open.
func (d *directory) create(name string) (*file, error) {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL
	return d.openFile("create", name, func() (int, error) {
		return unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
}

// open opens a regular file. What is no regular file is not opened: a FIFO would wait, a device might act.
func (d *directory) open(name string, flags int) (*file, error) {
	return d.openFile("open", name, func() (int, error) {
		return unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
}

func (d *directory) openFile(operation, name string, open func() (int, error)) (*file, error) {
	fd, err := d.layer.descriptor(operation, d.at(name), open)
	if err != nil {
		return nil, err
	}
	return &file{d.layer, fd, d.at(name)}, nil
}

func (f *file) stat() (unix.Stat_t, error) {
	var st unix.Stat_t
	err := f.layer.do("stat", f.path, func() error { return unix.Fstat(f.fd, &st) })
	return st, err
}

func (f *file) chown(uid, gid int) error {
	return f.layer.do("chown", f.path, func() error { return unix.Fchown(f.fd, uid, gid) })
}

func (f *file) chmod(mode fs.FileMode) error {
	return f.layer.do("chmod", f.path, func() error { return unix.Fchmod(f.fd, uint32(mode.Perm())) })
}

func (f *file) setLabel(label string) error {
	return f.layer.do("label", f.path, func() error {
		return unix.Fsetxattr(f.fd, labelAttribute, []byte(label), 0)
	})
}

// dropList takes an access control list away that came from the directory's default.
func (f *file) dropList() error {
	return f.layer.do("removexattr", f.path, func() error { return unix.Fremovexattr(f.fd, listAttribute) })
}

func (f *file) write(data []byte) error {
	return f.layer.do("write", f.path, func() error {
		for len(data) > 0 {
			n, err := unix.Write(f.fd, data)
			if err != nil {
				return err
			}
			data = data[n:]
		}
		return nil
	})
}

// overwrite puts data at the beginning of the file.
func (f *file) overwrite(data []byte) error {
	return f.layer.do("overwrite", f.path, func() error {
		n, err := unix.Pwrite(f.fd, data, 0)
		if err == nil && n < len(data) {
			err = io.ErrShortWrite
		}
		return err
	})
}

func (f *file) sync() error {
	return f.layer.do("fsync", f.path, func() error { return unix.Fsync(f.fd) })
}

// read returns what the file holds, up to a limit that no key or certificate file reaches.
func (f *file) read(limit int) ([]byte, error) {
	var data []byte
	err := f.layer.do("read", f.path, func() error {
		data = data[:0]
		buffer := make([]byte, 16<<10)
		for {
			n, err := unix.Read(f.fd, buffer)
			if err != nil {
				return err
			}
			if n == 0 {
				return nil
			}
			if data = append(data, buffer[:n]...); len(data) > limit {
				return fmt.Errorf("it is longer than %d octets", limit)
			}
		}
	})
	return data, err
}

// attribute returns an extended attribute; known is false where the file has none, or cannot have it.
func (f *file) attribute(name string) (value string, known bool, err error) {
	err = f.layer.do("getxattr", f.path, func() error {
		buffer := make([]byte, 4096)
		n, err := unix.Fgetxattr(f.fd, name, buffer)
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EBADF):
			return nil // EBADF: a directory that may only be entered
		case err != nil:
			return err
		}
		value, known = strings.TrimRight(string(buffer[:n]), "\x00"), true
		return nil
	})
	return value, known, err
}

// entry is what is at a path.
type entry struct {
	kind     uint32 // S_IFREG, S_IFDIR, S_IFLNK …; 0 where nothing is
	mode     fs.FileMode
	uid, gid int
	names    uint64 // how many hard links
	changed  time.Time
	label    string
	listed   bool   // it has an access control list
	link     string // the target, of a link
	data     []byte
	closed   bool // it cannot be read by this process
}

func entryOf(st unix.Stat_t) entry {
	return entry{
		kind: st.Mode & unix.S_IFMT, mode: fs.FileMode(st.Mode & 0o7777), uid: int(st.Uid), gid: int(st.Gid),
		names: uint64(st.Nlink), changed: time.Unix(st.Mtim.Unix()),
	}
}

func (e entry) exists() bool { return e.kind != 0 }

// look reads what is at a name: attributes, and content of a regular file or a link.
func (d *directory) look(name string) (entry, error) {
	st, err := d.stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return entry{}, nil
	}
	if err != nil {
		return entry{}, err
	}
	e := entryOf(st)
	switch e.kind {
	case unix.S_IFLNK:
		e.link, err = d.readlink(name)
	case unix.S_IFREG:
		err = d.lookInside(name, &e)
	}
	return e, err
}

func (d *directory) lookInside(name string, e *entry) error {
	f, err := d.open(name, unix.O_RDONLY)
	if errors.Is(err, fs.ErrPermission) {
		e.closed = true
		return nil
	}
	if err != nil {
		return err
	}
	defer f.close()
	st, err := f.stat()
	if err != nil {
		return err
	}
	if *e = entryOf(st); e.kind != unix.S_IFREG {
		return nil // it was exchanged since; the caller sees what it is now
	}
	if err := f.lookAttributes(e); err != nil {
		return err
	}
	e.data, err = f.read(maxFile)
	return err
}

func (f *file) lookAttributes(e *entry) (err error) {
	if e.label, _, err = f.attribute(labelAttribute); err != nil {
		return err
	}
	_, e.listed, err = f.attribute(listAttribute)
	return err
}
