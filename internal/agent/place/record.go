package place

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"

	"golang.org/x/sys/unix"

	"chancery/internal/fault"
)

// record says what is ours.
type record struct {
	Placements map[string]*placed `json:"placements"`
}

// placed is what the record says of one placement.
type placed struct {
	Files map[string]ours `json:"files,omitempty"` // by path, links resolved
	// Unlabelled are directories whose label could not be set, and the label.
	Unlabelled map[string]string `json:"unlabelled,omitempty"`
	// Unconfirmed: see Placement.
	Unconfirmed bool `json:"unconfirmed,omitempty"`
}

// ours is a file that we put.
type ours struct {
	Path       string `json:"path"`   // as the placement names it
	Digest     string `json:"digest"` // of what was put
	Unlabelled string `json:"unlabelled,omitempty"`
	// Shared: others have entries in the file. Entries are ours, in the words of the store's Merge.
	Shared  bool     `json:"shared,omitempty"`
	Entries []string `json:"entries,omitempty"`
}

func (a *placed) equal(b *placed) bool { return reflect.DeepEqual(a, b) }

func (a *placed) clone() *placed {
	if a == nil {
		return nil
	}
	return &placed{maps.Clone(a.Files), maps.Clone(a.Unlabelled), a.Unconfirmed}
}

const recordName = "record.json"

func (p *Placer) readRecord() (*record, error) {
	r := &record{}
	text, err := p.state.content(recordName)
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the record of what was placed: %w", err)
	}
	if r.Placements == nil {
		r.Placements = map[string]*placed{}
	}
	return r, nil
}

// note makes durable what the record says of a placement; one with nothing to be said of it is forgotten.
func (p *Placer) note(name string, is *placed) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, err := p.readRecord()
	if err != nil {
		return err
	}
	if len(is.Files)+len(is.Unlabelled) == 0 && !is.Unconfirmed {
		if _, known := r.Placements[name]; !known {
			return nil
		}
		delete(r.Placements, name)
	} else {
		r.Placements[name] = is
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err == nil {
		err = p.state.replace(recordName, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write the record of what was placed: %w", err)
	}
	return nil
}

// Placement is what the record says of one placement.
type Placement struct {
	Name  string
	Paths []string
	// Unconfirmed says that the files are in place and that the consumer has not been seen to take them, because of a failure
	// or an interruption. The next Place checks, reloads and probes although no file changes.
	Unconfirmed bool
}

// Placed lists what the record says is ours, by placement and path.
func (p *Placer) Placed() ([]Placement, error) {
	r, err := p.readRecord()
	if err != nil {
		return nil, err
	}
	var list []Placement
	for _, name := range slices.Sorted(maps.Keys(r.Placements)) {
		one := Placement{Name: name, Unconfirmed: r.Placements[name].Unconfirmed}
		for _, f := range r.Placements[name].Files {
			one.Paths = append(one.Paths, f.Path)
		}
		slices.Sort(one.Paths)
		list = append(list, one)
	}
	return list, nil
}

// work takes the state directory for this process, and the placement's name for this call.
func (p *Placer) work(name string) (done func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[name] {
		return nil, fault.New(fault.Conflict, "the placement %s is being worked on already", name)
	}
	if p.users == 0 {
		if p.lock, err = p.state.take(); err != nil {
			return nil, err
		}
	}
	p.users++
	p.busy[name] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.busy, name)
		maps.DeleteFunc(p.claims, func(_, by string) bool { return by == name })
		if p.users--; p.users == 0 {
			p.lock.release()
		}
	}, nil
}

// take locks the state directory against other processes. The lock goes with the process.
func (d *directory) take() (*file, error) {
	const name = "placer.lock"
	f, err := d.openFile("lock", name, func() (int, error) {
		const flags = unix.O_RDWR | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err := unix.Openat(d.fd, name, flags, 0o600)
		if err != nil {
			return -1, err
		}
		return fd, unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fault.New(fault.Conflict, "another process places from the state directory %s", d.path).
			WithHint("only one agent works with a state directory; stop the other one")
	}
	return f, err
}

// release gives the lock up by name, not by closing alone: a child that another goroutine is starting just now has the file
// open until it becomes its program.
func (f *file) release() {
	unix.Flock(f.fd, unix.LOCK_UN)
	f.close()
}

// claim takes files for a placement. Those of another one are refused, whether it works now or placed them before.
func (p *Placer) claim(name string, files map[string]string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, err := p.readRecord()
	if err != nil {
		return err
	}
	for real := range files {
		if by, taken := p.claims[real]; taken && by != name {
			return belongs(real, by)
		}
	}
	if err := r.foreign(name, files); err != nil {
		return err
	}
	for real := range files {
		p.claims[real] = name
	}
	return nil
}

// foreign refuses files that the record says are another placement's.
func (r *record) foreign(name string, files map[string]string) error {
	for real := range files {
		for by, is := range r.Placements {
			if _, taken := is.Files[real]; taken && by != name {
				return belongs(real, by)
			}
		}
	}
	return nil
}

func belongs(real, by string) error {
	return fault.New(fault.Conflict, "%s belongs to the placement %s: one file has one placement", real, by).
		WithHint("give one of the two placements another path, or remove the placement %s first", by)
}
