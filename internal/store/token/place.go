package token

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"chancery/internal/fault"
)

// Place is a token as one node reaches it.
type Place struct {
	Token     string // its label
	Serial    string
	ReplicaOf string // the serial number under which keys of this token are known, where it is a copy of another
	Module    string // path of the library
	PINFile   string
	Sessions  int // signatures at once; 0 means 8
}

// The bounds of Sessions.
const (
	defaultSessions = 8
	MaxSessions     = 64
)

// holds reports whether a key that is known by the URI may lie in the token.
func (p *Place) holds(u *URI) bool {
	if p.ReplicaOf != "" && u.Serial != "" {
		return p.ReplicaOf == u.Serial
	}
	same := func(a, b string) bool { return a == "" || b == "" || a == b }
	return same(p.Token, u.Token) && same(p.Serial, u.Serial)
}

// here is the URI as this place's library is asked.
func (p *Place) here(u *URI) *URI {
	asked := *u
	if p.ReplicaOf != "" {
		asked.Serial = p.Serial
	}
	if p.Token != "" {
		asked.Token = p.Token
	}
	if asked.Serial == "" {
		asked.Serial = p.Serial
	}
	return &asked
}

func (p *Place) String() string {
	switch {
	case p.Token == "":
		return "with serial number " + p.Serial
	case p.Serial == "":
		return fmt.Sprintf("%q", p.Token)
	}
	return fmt.Sprintf("%q, serial number %s", p.Token, p.Serial)
}

// maxPIN is more than any token takes.
const maxPIN = 256

// readPIN reads the first line of the PIN's file. No error quotes it.
func readPIN(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return "", fault.New(fault.Invalid, "the PIN file %s is a symbolic link; a regular file is wanted", path)
	}
	if err != nil {
		return "", fault.New(fault.Unavailable, "the PIN file cannot be read: %w", err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("read PIN file: %w", err)
	}
	owner, known := stat.Sys().(*syscall.Stat_t)
	switch {
	case !stat.Mode().IsRegular():
		return "", fault.New(fault.Invalid, "the PIN file %s is not a regular file", path)
	case stat.Mode().Perm()&0o077 != 0:
		return "", fault.New(fault.Invalid, "the PIN file %s has mode %04o, so others may have read it; 0600 is wanted", path, stat.Mode().Perm()).
			WithHint("change the PIN, since others could read it, then chmod 600 %s", path)
	case known && owner.Uid != 0 && os.Geteuid() != 0 && int(owner.Uid) != os.Geteuid(): // root works for whoever runs the node
		return "", fault.New(fault.Invalid, "the PIN file %s belongs to user %d; it must belong to the user that runs the node (%d)", path,
			owner.Uid, os.Geteuid())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPIN+3))
	if err != nil {
		return "", fmt.Errorf("read PIN file %s: %w", path, err)
	}
	defer clear(text)
	pin := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if pin == "" || len(pin) > maxPIN || strings.ContainsAny(pin, "\r\n\x00") {
		return "", fault.New(fault.Invalid, "the PIN file %s does not hold one line of at most %d octets", path, maxPIN)
	}
	return pin, nil
}

// modulePlaces are where distributions put libraries of PKCS #11.
var modulePlaces = [...]string{
	"/usr/lib/x86_64-linux-gnu/pkcs11", "/usr/lib/aarch64-linux-gnu/pkcs11", "/usr/lib64/pkcs11", "/usr/lib/pkcs11", "/usr/lib/softhsm",
	"/usr/lib64/softhsm", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib/softhsm",
	"/usr/local/lib",
}

// findModule looks for the library that module-name names (RFC 7512 section 2.3: without prefix and suffix).
func findModule(name string) (string, error) {
	for _, dir := range modulePlaces {
		for _, file := range []string{"lib" + name + ".so", name + ".so"} {
			if path := filepath.Join(dir, file); checkModule(path) == nil {
				return path, nil
			}
		}
	}
	return "", fault.New(fault.Invalid, "no library lib%s.so is where distributions put them; module-path=/… says where it is", name)
}
