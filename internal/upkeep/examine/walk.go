package examine

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// WalkLimits bound the walk through a directory. A field of 0 is the default.
type WalkLimits struct {
	Depth int   // directories below the one that was named; 16
	Files int   // files that are opened; 100,000
	Size  int64 // of a file; 8 MiB
}

func (l WalkLimits) orDefault() WalkLimits {
	if l.Depth <= 0 {
		l.Depth = 16
	}
	if l.Files <= 0 {
		l.Files = 100_000
	}
	if l.Size <= 0 {
		l.Size = keyfile.MaxFile
	}
	return l
}

// sniff is how much of a file is read to see whether it may hold certificates.
const sniff = 16 << 10

// Walk finds the files below a directory that may hold certificates. Links to directories are not followed, so there is no
// loop and nothing outside is walked; a link to a file is, and each file is found once. What may not be read is a target with
// an error. More files than the limit are refused.
func Walk(root string, limits WalkLimits) ([]Target, error) {
	limits = limits.orDefault()
	resolved, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	w := &walk{limits: limits, seen: map[[2]uint64]bool{}}
	err = filepath.WalkDir(resolved, func(path string, d fs.DirEntry, err error) error {
		shown := filepath.Join(root, strings.TrimPrefix(path, resolved))
		if err != nil {
			w.denied(shown, err)
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		below := strings.Count(strings.Trim(strings.TrimPrefix(path, resolved), "/"), "/")
		if d.IsDir() {
			if path != resolved && below+1 > limits.Depth {
				w.found = append(w.found, Target{File: shown, Err: fault.New(fault.TooLarge, "more than %d directories deep; not walked", limits.Depth)})
				return fs.SkipDir
			}
			return nil
		}
		return w.file(path, shown)
	})
	return w.found, err
}

type walk struct {
	limits WalkLimits
	opened int
	seen   map[[2]uint64]bool // device and inode
	found  []Target
}

func (w *walk) denied(path string, err error) {
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathError.Err
	}
	w.found = append(w.found, Target{File: path, Err: err})
}

func (w *walk) file(path, shown string) error {
	st, err := os.Stat(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ELOOP) {
			w.denied(shown, err)
		}
		return nil // a link that leads nowhere
	}
	if !st.Mode().IsRegular() || st.Size() == 0 {
		return nil
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		id := [2]uint64{uint64(sys.Dev), sys.Ino}
		if w.seen[id] {
			return nil
		}
		w.seen[id] = true
	}
	if w.opened++; w.opened > w.limits.Files {
		return fault.New(fault.TooLarge, "there are more than %d files; at %s it was given up", w.limits.Files, shown).WithHint("scan a directory further down")
	}
	if st.Size() > w.limits.Size {
		if certificateName(path) {
			w.found = append(w.found, Target{File: shown, Err: fault.New(fault.TooLarge, "%d octets, of which at most %d are looked at", st.Size(), w.limits.Size)})
		}
		return nil
	}
	head, err := headOf(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		w.denied(shown, err)
	case err != nil:
		w.denied(shown, err)
	case certificateName(path), hasPEM(head):
		w.found = append(w.found, Target{File: shown})
	}
	return nil
}

func headOf(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, sniff))
}
