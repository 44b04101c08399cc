package setup

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/datadir"
)

// The files of a join alone, beside those of a data directory.
func (j *joining) tokenSum() string { return filepath.Join(string(j.at), "token.sha256") }
func (j *joining) known() string    { return filepath.Join(string(j.at), "known") } // the authority has taken the keys down

// joiningInside is the name of the directory in a prepared one in which a join makes what it makes.
const joiningInside = ".joining"

// place finds where that lies: beside the data directory, so that it can be renamed there, or inside, where an empty directory was prepared
// for it, since what is around that may be closed to us. What a join that was cut short has begun is found again.
func (j *joining) place() error {
	beside, inside := datadir.Dir(filepath.Clean(string(j.Dir))+".joining"), datadir.Dir(filepath.Join(string(j.Dir), joiningInside))
	entries, err := os.ReadDir(string(j.Dir))
	if errors.Is(err, fs.ErrNotExist) {
		j.at = beside
		return nil
	}
	if err != nil {
		return j.closed(err)
	}
	begun := exists(string(inside))
	switch {
	case begun && !exists(j.Dir.Config()) && exists(inside.Config()):
		// It was cut short while all was put in its place.
		for _, e := range entries {
			if e.Name() == joiningInside {
				continue
			}
			if err := os.Rename(filepath.Join(string(j.Dir), e.Name()), filepath.Join(string(inside), e.Name())); err != nil {
				return err
			}
		}
	case begun && len(entries) == 1:
	case len(entries) > 0:
		return fault.New(fault.Conflict, "%s is not empty; a node is made in a directory of its own", string(j.Dir))
	case exists(string(beside)):
		j.at = beside
		return nil
	}
	j.at = inside
	return j.closed(os.Chmod(string(j.Dir), 0o700))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// closed says what to do where the directory is not ours to make.
func (j *joining) closed(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fault.New(fault.Invalid, "the data directory cannot be made by this user: %w", err).
		WithHint("join as the user that the node runs as, in a directory that was made for it: install -d -o USER -m 0700 %s", string(j.Dir))
}

// sameToken refuses to go on with another token than the one by which the authority knows these keys. Where it knows them by none yet, any
// token goes on with them.
func (j *joining) sameToken() error {
	sum := sha256.Sum256([]byte(j.token.String()))
	want := hex.EncodeToString(sum[:])
	have, err := os.ReadFile(j.tokenSum())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return keyfile.WriteBeside(j.tokenSum(), []byte(want), 0o600)
	case err != nil:
		return err
	case string(have) == want:
		return nil
	case !exists(j.known()):
		return keyfile.ReplaceBeside(j.tokenSum(), []byte(want), 0o600)
	}
	return fault.New(fault.Conflict, "%s holds the beginning of a join with another token; go on with that one, or remove the directory", string(j.at))
}

// taken remembers that the authority has taken the keys down.
func (j *joining) taken() error {
	if exists(j.known()) {
		return nil
	}
	return keyfile.WriteBeside(j.known(), nil, 0o600)
}

// forget removes what was begun where the authority refuses it and has never taken it down: the next token begins anew.
func (j *joining) forget(err error) error {
	if _, refused := errors.AsType[*client.Problem](err); !refused || passes(err) || exists(j.known()) {
		return err
	}
	if gone := os.RemoveAll(string(j.at)); gone != nil {
		return errors.Join(err, fmt.Errorf("remove what was begun: %w", gone))
	}
	return err
}

// settle makes it a data directory: node.yaml, by which it is known as one, comes last, and what only a join needs goes after that, since the
// authority knows the node by those keys until then.
func (j *joining) settle() error {
	if err := os.Remove(j.at.Config()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := j.at.Create(j.config); err != nil {
		return err
	}
	if err := j.put(); err != nil {
		return fmt.Errorf("put the data directory in its place: %w", err)
	}
	for _, name := range []string{"tls.key", "database.key", filepath.Base(j.tokenSum()), filepath.Base(j.known())} {
		if err := os.Remove(filepath.Join(string(j.Dir), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(filepath.Dir(filepath.Clean(string(j.Dir))))
}

func (j *joining) put() error {
	if filepath.Base(string(j.at)) == joiningInside {
		return moveInto(j.at, j.Dir)
	}
	if err := os.Remove(string(j.Dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(string(j.at), string(j.Dir))
}
