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

// WriteFile creates path with data and refuses to touch what is there already. When it returns nil the file is whole,
// on disk, and has exactly the mode given less the umask; it never had a wider one. When it returns an error, or the
// power fails, there is no file at path, or the whole one.
//
// The system calls: open(temporary, O_CREAT|O_EXCL, mode), write, fsync, link(temporary, path),
// unlink(temporary), fsync(directory). A file system without hard links gets open(path, O_CREAT|O_EXCL) instead, and there
// a power failure can leave an incomplete file.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	temporary, err := writeTemporary(path, data, mode, nil)
	if err != nil {
		return err
	}
	err = os.Link(temporary, path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		if removed := os.Remove(temporary); err == nil && removed != nil {
			err = fmt.Errorf("write %s: %w", path, removed)
		}
	} else {
		os.Remove(temporary)
		err = writeExclusive(path, data, mode, nil)
	}
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "%s exists and is not overwritten: %w", path, fs.ErrExist).
			WithHint("choose another name, or move %s away", path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDirectory(path)
}

// ReplaceFile is WriteFile, but takes the place of what is at path in one step: a reader sees the old file whole or the
// new one whole. The new file has the mode given (less the umask) and the caller as owner, whatever the old one had; a
// symbolic link at path is itself replaced, and where it pointed is left alone.
func ReplaceFile(path string, data []byte, mode fs.FileMode) error {
	return replace(path, data, mode, nil)
}

// ReplaceBeside is ReplaceFile for a file that a command of root's and the service share: where root calls, the new file is the
// directory's owner's and group's, from before it is at path. Any other caller's is his own.
func ReplaceBeside(path string, data []byte, mode fs.FileMode) error {
	home, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replace(path, data, mode, func(f *os.File) error {
		if os.Geteuid() != 0 {
			return nil
		}
		return f.Chown(uidOf(home), gidOf(home))
	})
}

// ReplaceKept is ReplaceFile for a file whose place others chose and that they read: where there is one at path, its owner, its group
// and the group's reading stay, from before the new one is there, and a symbolic link goes on leading to it. Where there is none it is
// ReplaceBeside. A caller other than root who may not give the file to that group takes it from the group. A link is followed for one
// step, and root follows none that is neither root's nor of who owns what it leads to.
func ReplaceKept(path string, data []byte, mode fs.FileMode) error {
	path, before, err := followed(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ReplaceBeside(path, data, mode)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replace(path, data, mode, func(f *os.File) error {
		kept := before.Mode().Perm()&(mode.Perm()|0o040) | 0o600
		if os.Geteuid() == 0 {
			if err := f.Chown(uidOf(before), gidOf(before)); err != nil {
				return err
			}
		} else if f.Chown(-1, gidOf(before)) != nil {
			kept &^= 0o070
		}
		return f.Chmod(kept)
	})
}

// followed is what is at path, or where a link leads that is there.
func followed(path string) (string, fs.FileInfo, error) {
	link, err := os.Lstat(path)
	if err != nil || link.Mode()&fs.ModeSymlink == 0 {
		return path, link, err
	}
	to, err := os.Readlink(path)
	if err != nil {
		return path, nil, err
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(path), to)
	}
	file, err := os.Lstat(to)
	if err == nil && !file.Mode().IsRegular() || errors.Is(err, fs.ErrNotExist) {
		return path, nil, fault.New(fault.Conflict, "it is a link to %s, which is no regular file; a link to one would pass", to)
	}
	if err == nil && os.Geteuid() == 0 && uidOf(link) != 0 && uidOf(link) != uidOf(file) {
		return path, nil, fault.New(fault.Denied, "it is a link of the user %d to a file of the user %d; one of the same user, or of root, would pass",
			uidOf(link), uidOf(file))
	}
	return to, file, err
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

func replace(path string, data []byte, mode fs.FileMode, own func(*os.File) error) error {
	temporary, err := writeTemporary(path, data, mode, own)
	if err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		os.Remove(temporary)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDirectory(path)
}

// writeTemporary writes data to a fresh file beside path and returns its name.
func writeTemporary(path string, data []byte, mode fs.FileMode, own func(*os.File) error) (string, error) {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()[:10])
	if err := writeExclusive(name, data, mode, own); err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return name, nil
}

// writeExclusive creates path and makes its content durable. The mode is given to open, so that the kernel applies the
// umask and no later chmod opens a gap; a mode without write permission does not hinder the descriptor that created it. Before it has
// content, own may give it to another.
func writeExclusive(path string, data []byte, mode fs.FileMode, own func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode.Perm())
	if err != nil {
		return err
	}
	if own != nil {
		err = own(f)
	}
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// syncDirectory makes the name of path durable.
func syncDirectory(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = d.Sync()
	if closed := d.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
