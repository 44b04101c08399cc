package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"chancery/internal/fault"
)

// WriteFile creates path with data and refuses to touch what is there already. When it returns nil the file is whole,
// on disk, and has exactly the mode given less the umask; it never had a wider one. When it returns an error, or the
// power fails, there is no file at path, or the whole one.
//
// The system calls, all relative to a descriptor of the directory: open(temporary, O_CREAT|O_EXCL, mode), write, fsync,
// link(temporary, path), unlink(temporary), fsync(directory). A file system without hard links gets open(path, O_CREAT|O_EXCL)
// instead, and there a power failure can leave an incomplete file.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return writeNew(path, data, mode, func(*Place) func(*os.File) error { return nil })
}

// WriteBeside is WriteFile for a file that a command of root's and the service share, as ReplaceBeside is.
func WriteBeside(path string, data []byte, mode fs.FileMode) error {
	return writeNew(path, data, mode, func(p *Place) func(*os.File) error { return p.likeHome })
}

// ReplaceFile is WriteFile, but takes the place of what is at path in one step: a reader sees the old file whole or the
// new one whole. The new file has the mode given (less the umask) and the caller as owner, whatever the old one had; a
// symbolic link at path is itself replaced, and where it pointed is left alone.
func ReplaceFile(path string, data []byte, mode fs.FileMode) error {
	return replace(path, data, openPlace, func(p *Place) error { return p.prepare(mode, nil) })
}

// ReplaceBeside is ReplaceFile for a file that a command of root's and the service share: where root calls, the new file is the
// directory's owner's and group's, from before it is at path. Any other caller's is his own.
func ReplaceBeside(path string, data []byte, mode fs.FileMode) error {
	return replace(path, data, openPlace, func(p *Place) error { return p.prepare(mode, p.likeHome) })
}

// ReplaceKept is ReplaceFile for a file whose place others chose and that they read: see OpenPlace for where that is, and Prepare for
// whose it is then.
func ReplaceKept(path string, data []byte, mode fs.FileMode) error {
	return replace(path, data, OpenPlace, func(p *Place) error { return p.Prepare(mode) })
}

func replace(path string, data []byte, open func(string) (*Place, error), prepare func(*Place) error) error {
	p, err := open(path)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer p.Close()
	if err = prepare(p); err == nil {
		err = p.Fill(data)
	}
	if err == nil {
		err = p.Put()
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// writeNew puts a file where none is.
func writeNew(path string, data []byte, mode fs.FileMode, own func(*Place) func(*os.File) error) error {
	p, err := openPlace(path)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer p.Close()
	if err = p.prepare(mode, own(p)); err == nil {
		err = p.Fill(data)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = p.dir.Link(p.temporary, p.name)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		if err = p.create(p.name, mode, own(p)); err == nil {
			err = p.Fill(data)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			_ = p.dir.Remove(p.name)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "%s exists and is not overwritten: %w", path, fs.ErrExist).
			WithHint("choose another name, or move %s away", path)
	}
	if err == nil {
		err = p.dir.Remove(p.temporary)
		p.temporary = ""
	}
	if err == nil {
		err = p.sync()
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
