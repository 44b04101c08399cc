package token

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"chancery/internal/pki/keyfile"
)

// A token locks itself after a few wrong PINs, some after three, and a node that restarts by itself would have them tried
// within a minute. So the PIN that a token refused is remembered beyond the process, as what a password is stored as, and
// is not tried again until the file holds another one.
type refusedPIN struct {
	Salt []byte `json:"salt"`
	Hash []byte `json:"hash"`
}

const refusedRounds = 200_000

func refusedOf(pin string, salt []byte) refusedPIN {
	hash, err := pbkdf2.Key(sha256.New, pin, salt, refusedRounds, sha256.Size)
	if err != nil {
		panic(err) // the lengths are constant and allowed
	}
	return refusedPIN{salt, hash}
}

func (r refusedPIN) is(pin string) bool {
	return len(r.Salt) > 0 && subtle.ConstantTimeCompare(r.Hash, refusedOf(pin, r.Salt).Hash) == 1
}

// refusals is the file in which they are kept.
type refusals string

func (r refusals) load() map[string]refusedPIN {
	all := map[string]refusedPIN{}
	if r == "" {
		return all
	}
	text, err := os.ReadFile(string(r))
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil || all == nil {
		return map[string]refusedPIN{} // without it one more try is made, which a token survives
	}
	return all
}

// note keeps the PIN that a token refused; an empty one forgets.
func (r refusals) note(place, pin string) error {
	if r == "" {
		return nil
	}
	all := r.load()
	if _, known := all[place]; pin == "" && !known {
		return nil
	}
	delete(all, place)
	if pin != "" {
		salt := make([]byte, 16)
		rand.Read(salt)
		all[place] = refusedOf(pin, salt)
	}
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := keyfile.ReplaceBeside(string(r), text, 0o600); err != nil {
		return fmt.Errorf("remember a refused PIN: %w", err)
	}
	return nil
}

// lockPause is how often it is seen whether another process has ended its login.
const lockPause = 10 * time.Millisecond

// alone keeps other processes on the directory, a command beside the node among them, from trying a PIN until it is given back: between
// the look at what was refused and the note of what is. It is the directory that is locked, so that no file is left which a command of
// root's would have made and the node could not open. The kernel gives it back when the process ends, however it does.
func (r refusals) alone(ctx context.Context) (giveBack func(), err error) {
	if r == "" {
		return func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(string(r)))
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = dir.Close() }, nil
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			if err = rest(ctx, lockPause); err == nil {
				continue
			}
			err = untried("another process of this node is logging in to a token, and has not ended in time")
		}
		_ = dir.Close()
		return nil, err
	}
}

// refusals is where refused PINs are remembered.
func (t *Tokens) refusals() refusals {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == "" || t.temporary {
		return ""
	}
	return refusals(filepath.Join(t.dir, "refused-pins.json"))
}

// pinSum stands for a PIN in this process's memory, which a core may be taken of.
type pinSum struct {
	salt [16]byte
	sum  [sha256.Size]byte
}

func sumOf(pin string) (s pinSum) {
	rand.Read(s.salt[:])
	s.sum = sha256.Sum256(append(s.salt[:], pin...))
	return s
}

func (s pinSum) is(pin string) bool {
	return s != pinSum{} && sha256.Sum256(append(s.salt[:], pin...)) == s.sum
}
