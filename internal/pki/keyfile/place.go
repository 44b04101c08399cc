package keyfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"chancery/internal/fault"
)

// Place is the place of a file, held by a descriptor of its directory: what is looked at, made and put there is in that one directory,
// whatever becomes of the path. So root, who works where others may rename directories and put links, asks whose the place is and
// what lies there, and what he then does is done there and nowhere else.
//
// A write has three steps, so that all that can fail does so early: Prepare makes a file beside the place, Fill makes its content
// durable, Put has it take the place. Close takes away what was prepared and not put.
type Place struct {
	path      string // as people know it
	dir       *os.Root
	name      string // of the file in it
	home      fs.FileInfo
	before    fs.FileInfo // what is there; nil where nothing is
	temporary string
	file      *os.File // what was prepared
}

// OpenPlace opens the place of a file that is there or may be. A link is followed for one step, to a regular file, and root follows none
// that is neither root's nor of who owns what it leads to.
func OpenPlace(path string) (*Place, error) {
	p, err := openPlace(path)
	if err != nil || p.before == nil || p.before.Mode()&fs.ModeSymlink == 0 {
		return p, err
	}
	defer p.Close()
	to, err := p.dir.Readlink(p.name)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(p.path), to)
	}
	led, err := openPlace(to)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (led.before == nil || !led.before.Mode().IsRegular()) {
		if err == nil {
			led.Close()
		}
		return nil, fault.New(fault.Conflict, "%s is a link to %s, which is no regular file; a link to one would pass", path, to)
	}
	if err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 && uidOf(p.before) != 0 && uidOf(p.before) != uidOf(led.before) {
		led.Close()
		return nil, fault.New(fault.Denied, "%s is a link of the user %d to a file of the user %d; one of the same user, or of root, would pass",
			path, uidOf(p.before), uidOf(led.before))
	}
	return led, nil
}

// openPlace follows no link that is at path itself.
func openPlace(path string) (p *Place, err error) {
	path = filepath.Clean(path)
	p = &Place{path: path, name: filepath.Base(path)}
	if p.dir, err = os.OpenRoot(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if p.home, err = p.dir.Stat("."); err == nil {
		p.before, err = p.dir.Lstat(p.name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		p.before, err = nil, nil
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Path is the place as people know it; where a link was followed, what it led to.
func (p *Place) Path() string { return p.path }

// Taken reports whether there was something when the place was opened.
func (p *Place) Taken() bool { return p.before != nil }

// Owner is the user whose file is there; where there is none, the one whose directory it is.
func (p *Place) Owner() int {
	if p.before != nil {
		return uidOf(p.before)
	}
	return uidOf(p.home)
}

// Is reports whether two places are of one file that is there.
func (p *Place) Is(other *Place) bool {
	return p.before != nil && other.before != nil && os.SameFile(p.before, other.before)
}

// Read is ReadFile of what was there when the place was opened.
func (p *Place) Read(limit int64) ([]byte, error) {
	if p.before == nil {
		return nil, &fs.PathError{Op: "read", Path: p.path, Err: fs.ErrNotExist}
	}
	if err := judge(p.path, p.before, limit, 0o777); err != nil {
		return nil, err
	}
	f, err := p.dir.OpenFile(p.name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, text, err := readOpened(f, p.path, limit, 0o777)
	if err == nil && !os.SameFile(st, p.before) {
		clear(text)
		return nil, fault.New(fault.Conflict, "%s became another file while it was looked at", p.path)
	}
	return text, err
}

// Prepare makes a file beside the place for one whose place others chose and that they read: where there was one, its owner, its group
// and the group's reading stay, and where there was none, root leaves it to the directory's owner. A caller other than root who may not
// give the file to that group takes it from the group. It refuses what is no regular file.
func (p *Place) Prepare(mode fs.FileMode) error {
	if p.before == nil {
		return p.prepare(mode, p.likeHome)
	}
	if !p.before.Mode().IsRegular() {
		return fault.New(fault.Conflict, "%s is %s; a regular file would pass", p.path, kindOf(p.before.Mode()))
	}
	return p.prepare(mode, func(f *os.File) error {
		kept := p.before.Mode().Perm()&(mode.Perm()|0o040) | 0o600
		if os.Geteuid() == 0 {
			if err := f.Chown(uidOf(p.before), gidOf(p.before)); err != nil {
				return err
			}
		} else if f.Chown(-1, gidOf(p.before)) != nil {
			kept &^= 0o070
		}
		return f.Chmod(kept)
	})
}

// likeHome leaves root's file to the directory's owner and group. Any other caller's is his own.
func (p *Place) likeHome(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return f.Chown(uidOf(p.home), gidOf(p.home))
}

// prepare gives the mode to open, so that the kernel applies the umask and no later chmod opens a gap; a mode without write permission
// does not hinder the descriptor that created it. Before it has content, own may give it to another.
func (p *Place) prepare(mode fs.FileMode, own func(*os.File) error) (err error) {
	p.temporary = "." + p.name + "." + rand.Text()[:10]
	return p.create(p.temporary, mode, own)
}

func (p *Place) create(name string, mode fs.FileMode, own func(*os.File) error) (err error) {
	if p.file, err = p.dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode.Perm()); err != nil {
		return err
	}
	if own != nil {
		return own(p.file)
	}
	return nil
}

// Fill gives what was prepared its content, and makes that durable.
func (p *Place) Fill(data []byte) error {
	_, err := p.file.Write(data)
	if err == nil {
		err = p.file.Sync()
	}
	if closed := p.file.Close(); err == nil {
		err = closed
	}
	return err
}

// Put has what was filled take the place, in one step.
func (p *Place) Put() error {
	if err := p.dir.Rename(p.temporary, p.name); err != nil {
		return err
	}
	p.temporary = ""
	return p.sync()
}

// sync makes the names in the directory durable.
func (p *Place) sync() error {
	d, err := p.dir.Open(".")
	if err != nil {
		return err
	}
	err = d.Sync()
	if closed := d.Close(); err == nil {
		err = closed
	}
	return err
}

// Close lets go of the place, and takes away what was prepared and not put.
func (p *Place) Close() {
	if p.file != nil {
		_ = p.file.Close() // closed by Fill, mostly
	}
	if p.temporary != "" {
		_ = p.dir.Remove(p.temporary)
	}
	_ = p.dir.Close()
}

// uidOf and gidOf are the owner and the group of a file; -1, which chown takes for no change, where the system does not say.
func uidOf(file fs.FileInfo) int {
	if st, ok := file.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

func gidOf(file fs.FileInfo) int {
	if st, ok := file.Sys().(*syscall.Stat_t); ok {
		return int(st.Gid)
	}
	return -1
}

// MkdirBeside makes a directory, and those above it that are missing, as ReplaceBeside makes files: each is, where root calls, its
// parent's owner's and group's. One that is there is left as it is.
func MkdirBeside(path string, mode fs.FileMode) error {
	st, err := os.Stat(path)
	if err == nil && !st.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := MkdirBeside(filepath.Dir(filepath.Clean(path)), mode); err != nil {
		return err
	}
	p, err := openPlace(path)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.dir.Mkdir(p.name, mode.Perm()); err != nil {
		return fmt.Errorf("make the directory %s: %w", path, err)
	}
	d, err := p.dir.OpenFile(p.name, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	return p.likeHome(d)
}
