// Package keys keeps private keys sealed in the database and gives them out as crypto.Signers.
//
// Each key is encrypted with a data key of its own (AES-256-GCM; its identifier, purpose and owner are bound as additional
// data), and the data key is wrapped with age (age-encryption.org/v1, X25519) to each node that is entitled to the key and
// to the offline recovery recipient. Who is entitled is decided in one place, Recipient.Entitled.
//
// An opened key stays in the node's memory, in a bounded cache, because opening it for each signature would cost more
// than signing. Nothing is promised about that memory: it may be swapped out, and Go may copy it; an operator who needs
// more uses an encrypted swap or a hardware module. No error, log line or format verb prints key material.
//
// All methods may be called from any goroutine.
package keys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"filippo.io/age"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// NodeKey is the key of one node: with it the node opens the wraps that are addressed to it. It never leaves the node.
type NodeKey struct {
	identity *age.X25519Identity
}

// CreateNodeKey makes a new key and writes it to path, which must not exist, readable by its owner only. The file has the
// form of an age identity file. Where root calls, it is the directory's owner's.
func CreateNodeKey(path string) (*NodeKey, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make node key: %w", err)
	}
	text := "# The key of this node. Whoever reads it can open the keys of the authority that are wrapped to this node.\n" +
		"# public key: " + identity.Recipient().String() + "\n" + identity.String() + "\n"
	if err := keyfile.WriteBeside(path, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write node key: %w", err)
	}
	return &NodeKey{identity}, nil
}

// maxNodeKeyFile is far above any real node key file.
const maxNodeKeyFile = 64 << 10

// LoadNodeKey reads the key at path. It refuses a file that others may read or that belongs to somebody else, because a
// key that was readable may have been read: the refusal says so instead of narrowing the mode. Root, who works on a node that a service's
// user runs, takes the key of the one to whom the directory belongs.
func LoadNodeKey(path string) (*NodeKey, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "there is no node key at %s", path).
			WithHint("if it was lost: where another node runs, chancery clone remove NAME there and join anew; where none does, chancery rescue node --recovery-file F")
	}
	if errors.Is(err, syscall.ELOOP) {
		return nil, fault.New(fault.Invalid, "the node key %s is a symbolic link; a regular file is wanted", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	if err := checkPrivate(path, stat); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxNodeKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	identity, err := parseIdentity(string(text))
	if err != nil {
		return nil, fault.New(fault.Invalid, "the node key %s holds no age identity; one line AGE-SECRET-KEY-1… is wanted", path)
	}
	return &NodeKey{identity}, nil
}

func checkPrivate(path string, stat fs.FileInfo) error {
	switch {
	case !stat.Mode().IsRegular():
		return fault.New(fault.Invalid, "the node key %s is not a regular file", path)
	case stat.Mode().Perm()&0o077 != 0:
		return fault.New(fault.Invalid, "the node key %s has mode %04o, so others may have read it; 0600 is wanted", path,
			stat.Mode().Perm()).WithHint("chmod 600 %s if nobody did; otherwise replace the node", path)
	}
	owner, ok := stat.Sys().(*syscall.Stat_t)
	runs := uint32(os.Geteuid())
	if dir, err := os.Stat(filepath.Dir(path)); err == nil && runs == 0 {
		if around, ok := dir.Sys().(*syscall.Stat_t); ok {
			runs = around.Uid
		}
	}
	if ok && owner.Uid != 0 && owner.Uid != runs {
		return fault.New(fault.Invalid, "the node key %s belongs to user %d; it must belong to the user that runs the node (%d)",
			path, owner.Uid, runs)
	}
	return nil
}

// parseIdentity reads an age identity file with exactly one X25519 identity. Its errors never quote a line.
func parseIdentity(text string) (*age.X25519Identity, error) {
	var found *age.X25519Identity
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		identity, err := age.ParseX25519Identity(line)
		if err != nil || found != nil {
			return nil, errors.New("not one X25519 identity")
		}
		found = identity
	}
	if found == nil {
		return nil, errors.New("no identity")
	}
	return found, nil
}

// Public returns the age recipient (age1…) of the key.
func (k *NodeKey) Public() string { return k.identity.Recipient().String() }

// Format keeps the key out of every format verb.
func (k *NodeKey) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "node key %s", k.Public()) }

// LogValue keeps the key out of logs.
func (k *NodeKey) LogValue() slog.Value { return slog.StringValue(k.Public()) }

// MarshalText keeps the key out of encodings.
func (k *NodeKey) MarshalText() ([]byte, error) { return []byte(k.Public()), nil }
