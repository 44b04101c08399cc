package keyfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
	temporary, err := writeTemporary(path, data, mode)
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
		err = writeExclusive(path, data, mode)
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
	temporary, err := writeTemporary(path, data, mode)
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
func writeTemporary(path string, data []byte, mode fs.FileMode) (string, error) {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()[:10])
	if err := writeExclusive(name, data, mode); err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return name, nil
}

// writeExclusive creates path and makes its content durable. The mode is given to open, so that the kernel applies the
// umask and no later chmod opens a gap; a mode without write permission does not hinder the descriptor that created it.
func writeExclusive(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode.Perm())
	if err != nil {
		return err
	}
	_, err = f.Write(data)
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
