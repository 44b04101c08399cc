package place

import (
	"errors"
	"path"

	"golang.org/x/sys/unix"

	"chancery/internal/fault"
)

// ReadPlain reads a whole file of the host that is not the placer's, such as one with a password or a process's number. It
// waits for nobody, and reads nothing but a regular file of at most limit octets that is reached without a link of somebody
// else than root: who may write to a directory says by a link in it what is read, and by a FIFO for how long. One that is
// not there is fs.ErrNotExist.
func ReadPlain(root, name string, limit int) ([]byte, error) {
	l, err := newLayer(root, Accept{Prefixes: []string{"/"}}, nil)
	if err != nil {
		return nil, err
	}
	p, err := l.clean(name)
	if err != nil {
		return nil, err
	}
	v := l.view()
	defer v.close()
	d, err := v.parent(p)
	if err != nil {
		return nil, err
	}
	base := path.Base(p)
	st, err := d.stat(base)
	if err != nil {
		return nil, err
	}
	if err := plain(name, st, limit); err != nil { // before it is opened, which a device may notice
		return nil, err
	}
	f, err := d.open(base, unix.O_RDONLY)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, fault.New(fault.Invalid, "%s changed while it was looked at; a regular file would pass", name)
	}
	if err != nil {
		return nil, err
	}
	defer f.close()
	if st, err = f.stat(); err != nil {
		return nil, err
	}
	if err := plain(name, st, limit); err != nil {
		return nil, err
	}
	return f.read(limit)
}

func plain(name string, st unix.Stat_t, limit int) error {
	switch kind := entryOf(st).kind; {
	case kind == unix.S_IFLNK:
		return fault.New(fault.Invalid, "%s is a symbolic link; a regular file of at most %d octets would pass", name, limit).
			WithHint("name the file that the link leads to")
	case kind != unix.S_IFREG:
		return fault.New(fault.Invalid, "%s is %s; a regular file of at most %d octets would pass", name, kindName(kind), limit)
	case st.Size > int64(limit):
		return fault.New(fault.TooLarge, "%s has %d octets; a regular file of at most %d would pass", name, st.Size, limit)
	}
	return nil
}
