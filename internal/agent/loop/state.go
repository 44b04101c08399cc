package loop

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// The files of a state directory.
const (
	fileLock       = "lock"
	fileIdentity   = "identity.json"         // the identity: key, path, generation, and whose it is
	fileEnrolment  = "identity-request.json" // what an identity was asked for with, until it is there
	fileRoots      = "roots.pem"             // the roots of identities, pinned at join
	fileAuditKey   = "audit-key.pem"         // the key of audit checkpoints, pinned at join
	fileCheckpoint = "checkpoint"            // the newest audit checkpoint seen
	fileDesired    = "desired.json"          // the last desired state that was understood
	fileSettings   = "settings.json"         // what was said at join and holds ever after: the root of paths
	dirPlacements  = "placements"
	dirCRLs        = "crls"
	dirJournal     = "journal" // of internal/agent/place
)

// State is the directory S of an agent: mode 0700, all files 0600.
type State struct {
	dir  string
	lock *flock.Flock // nil where it was opened to look only
	// cut is called before and after each change, so that tests can end the process there.
	cut func(step string)
	now func() time.Time
	log *slog.Logger
}

// OpenState opens the state directory, makes it if need be, and locks it.
func OpenState(dir string, cut func(step string)) (*State, error) {
	s, err := lookState(dir)
	if err != nil {
		return nil, err
	}
	s.cut = cut
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	if err := s.private(); err != nil {
		return nil, err
	}
	s.lock = flock.New(filepath.Join(s.dir, fileLock), flock.SetPermissions(0o600))
	held, err := s.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if !held {
		return nil, fault.New(fault.Conflict, "another agent runs on the state directory %s; one at a time passes", s.dir).
			WithHint("stop it (systemctl stop chancery-agent), or look without it: chancery agent status --state %s", s.dir)
	}
	if err := s.sweep(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// lookState is a state directory that is read and neither locked nor written.
func lookState(dir string) (*State, error) {
	if dir == "" {
		return nil, fault.New(fault.Invalid, "no state directory is named").WithHint("give --state S, such as /var/lib/chancery-agent")
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the state directory: %w", err)
	}
	return &State{dir: absolute, now: time.Now, log: slog.New(slog.DiscardHandler)}, nil
}

// Close gives the lock back.
func (s *State) Close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Unlock()
}

// private refuses a directory that others may enter: keys lie in it. One that is still empty is closed to others instead.
func (s *State) private() error {
	st, err := os.Stat(s.dir)
	if err != nil {
		return fmt.Errorf("look at the state directory: %w", err)
	}
	if st.Mode().Perm()&0o077 == 0 {
		return nil
	}
	inside, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("look at the state directory: %w", err)
	}
	if len(inside) > 0 {
		return fault.New(fault.Invalid, "the state directory %s has mode %04o, and is to hold keys; 0700 is wanted", s.dir, st.Mode().Perm()).
			WithHint("chmod 700 %s", s.dir)
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return fmt.Errorf("close the state directory to others: %w", err)
	}
	return nil
}

// sweep removes the temporary files that a crash left behind.
func (s *State) sweep() error {
	if err := s.sweepScratch(); err != nil {
		return err
	}
	return filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("look through the state directory: %w", err)
		}
		if entry.IsDir() {
			if path != s.dir && entry.Name() == dirJournal {
				return fs.SkipDir // place looks after its own
			}
			return nil
		}
		if strings.HasPrefix(entry.Name(), ".") && entry.Type().IsRegular() {
			return os.Remove(path)
		}
		return nil
	})
}

func (s *State) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s *State) step(name string) {
	if s.cut != nil {
		s.cut(name)
	}
}

// write replaces a file durably; its directory is made where it is missing.
func (s *State) write(data []byte, parts ...string) error {
	path := s.path(parts...)
	name := strings.Join(parts, "/")
	s.step("before writing " + name)
	if err := s.makeDirectories(filepath.Dir(path)); err != nil {
		return err
	}
	if err := keyfile.ReplaceFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	s.step("after writing " + name)
	return nil
}

// makeDirectories makes what is missing and makes each new name durable in the directory above it.
func (s *State) makeDirectories(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := s.makeDirectories(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write state: %w", err)
	}
	return syncDirectory(filepath.Dir(dir))
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	err = d.Sync()
	if closed := d.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// read returns a file, and nil where there is none.
func (s *State) read(parts ...string) ([]byte, error) {
	data, err := os.ReadFile(s.path(parts...))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return data, nil
}

// list are the names of the files in a directory; none where it is not there.
func (s *State) list(parts ...string) ([]string, error) {
	entries, err := os.ReadDir(s.path(parts...))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read state: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// remove takes a file away; one that is not there is no error.
func (s *State) remove(parts ...string) error {
	path := s.path(parts...)
	name := strings.Join(parts, "/")
	s.step("before removing " + name)
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	if err := syncDirectory(filepath.Dir(path)); err != nil {
		return err
	}
	s.step("after removing " + name)
	return nil
}

// writeJSON writes a value; where the file says the same already, it is left alone.
func (s *State) writeJSON(value any, parts ...string) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	text = append(text, '\n')
	defer clear(text)
	there, err := s.read(parts...)
	if err != nil {
		return err
	}
	defer clear(there)
	if string(there) == string(text) {
		return nil
	}
	return s.write(text, parts...)
}

// unreadable is a file of the state directory that is there, and is not what the agent wrote.
type unreadable struct {
	path string
	err  error
}

func (u *unreadable) Error() string { return fmt.Sprintf("read state: %s: %v", u.path, u.err) }

func (u *unreadable) Unwrap() error { return u.err }

// putAway renames a file that cannot be read, so that another takes its place and this one can still be looked at.
func (s *State) putAway(parts ...string) (string, error) {
	path, name := s.path(parts...), strings.Join(parts, "/")
	kept := path + ".unreadable-" + s.now().UTC().Format("20060102T150405.000000000Z")
	s.step("before setting aside " + name)
	if err := os.Rename(path, kept); err != nil {
		return "", fmt.Errorf("set aside state that cannot be read: %w", err)
	}
	if err := syncDirectory(filepath.Dir(path)); err != nil {
		return "", err
	}
	s.step("after setting aside " + name)
	return kept, nil
}

// readJSON reads a value and reports whether it was there. One that is there and cannot be read is an *unreadable.
func (s *State) readJSON(value any, parts ...string) (bool, error) {
	text, err := s.read(parts...)
	if err != nil || text == nil {
		return false, err
	}
	defer clear(text)
	if err := json.Unmarshal(text, value); err != nil {
		return false, &unreadable{path: s.path(parts...), err: err}
	}
	return true, nil
}

// Settings are what holds for every run on a state directory.
type Settings struct {
	// Root is put before every path that is placed; empty means /.
	Root string `json:"root,omitempty"`
}

func (s *State) settings() (Settings, error) {
	var v Settings
	_, err := s.readJSON(&v, fileSettings)
	return v, err
}

// settleRoot keeps the root of paths, once: files that were placed under one root are not the files of another.
func (s *State) settleRoot(root string) error {
	root, err := cleanRoot(root)
	if err != nil {
		return err
	}
	var have Settings
	found, err := s.readJSON(&have, fileSettings)
	if err != nil {
		return err
	}
	if found && root != "" && have.Root != root {
		return fault.New(fault.Conflict, "the state directory %s is of the root %q, and %q is given", s.dir, orSlash(have.Root), root).
			WithHint("leave --root out, or take another --state")
	}
	if found {
		return nil
	}
	return s.writeJSON(Settings{Root: root}, fileSettings)
}

// cleanRoot makes a root absolute; that of the file system itself is the empty text.
func cleanRoot(root string) (string, error) {
	if root == "" {
		return "", nil
	}
	absolute, err := filepath.Abs(root)
	if err != nil {
		return "", fmt.Errorf("find the root %s: %w", root, err)
	}
	if absolute == "/" {
		return "", nil
	}
	st, err := os.Stat(absolute)
	if err != nil {
		return "", fmt.Errorf("look at the root: %w", err)
	}
	if !st.IsDir() {
		return "", fault.New(fault.Invalid, "the root %s is no directory", absolute)
	}
	return absolute, nil
}

func orSlash(root string) string {
	if root == "" {
		return "/"
	}
	return root
}
