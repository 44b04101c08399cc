package keyfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"chancery/internal/fault"
)

// MaxSecret bounds a file with one secret: a password, a PIN, a database's URL.
const MaxSecret = 4 << 10

// ReadFile reads a regular file of at most limit octets, and nothing else: a FIFO would be waited for without an end, a device
// has none, and a file that is larger than it can honestly be is not read to see. It is looked at before it is opened, which a
// device may notice, and again after, since it may be another by then. Links are followed: whoever may put one in the place of
// the file may put a file there. One that is not there is fs.ErrNotExist.
func ReadFile(path string, limit int64) ([]byte, error) {
	_, text, err := readRegular(path, limit, 0o777)
	return text, err
}

// ReadSecret is ReadFile for a secret: one that others than its owner may read or write is refused, since it may have been read
// already.
func ReadSecret(path string, limit int64) ([]byte, error) {
	_, text, err := readRegular(path, limit, 0o700)
	return text, err
}

// ReadOwned is ReadSecret, and tells which user's the file was that was read.
func ReadOwned(path string, limit int64) (text []byte, owner int, err error) {
	st, text, err := readRegular(path, limit, 0o700)
	if err != nil {
		return nil, 0, err
	}
	return text, uidOf(st), nil
}

func readRegular(path string, limit int64, allowed fs.FileMode) (fs.FileInfo, []byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if err := judge(path, st, limit, allowed); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	return readOpened(f, path, limit, allowed)
}

func readOpened(f *os.File, path string, limit int64, allowed fs.FileMode) (fs.FileInfo, []byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if err := judge(path, st, limit, allowed); err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(text)) > limit { // it grew, or is a file whose size is not told
		return nil, nil, tooLarge(path, fmt.Sprintf("more than %d octets", limit), limit)
	}
	return st, text, nil
}

func judge(path string, st fs.FileInfo, limit int64, allowed fs.FileMode) error {
	switch mode := st.Mode(); {
	case !mode.IsRegular():
		e := fault.New(fault.Invalid, "%s is %s; a regular file of at most %d octets would pass", path, kindOf(mode), limit)
		e.Err = ErrNotRegular
		return e
	case st.Size() > limit:
		return tooLarge(path, fmt.Sprintf("%d octets", st.Size()), limit)
	case mode.Perm()&^allowed != 0:
		return fault.New(fault.Invalid, "%s has mode %04o and holds a secret, which others may have read; 0600 is wanted", path, mode.Perm()).
			WithHint("change the secret if they could, then chmod 0600 %s", path)
	}
	return nil
}

// ErrNotRegular is in the chain of the refusal of what is no regular file.
var ErrNotRegular = errors.New("no regular file")

func tooLarge(path, has string, limit int64) error {
	return fault.New(fault.TooLarge, "%s has %s; a regular file of at most %d would pass", path, has, limit)
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "no regular file"
}
