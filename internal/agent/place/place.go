// Package place puts the files of a placement on a host: all of them or none, as their consumer wants them, and never
// readable more widely than wanted even for an instant.
//
// Every operation on a file goes through one Layer, which resolves paths component by component, follows no link but a
// directory's that root made and that stays within what the host accepts, and which tests cut before and after each
// operation. A placement is journaled: what is to be there and what is to be put back are in the state directory, durably,
// before a target is touched. Whoever comes after a crash (Repair, or the next Place) applies what the journal's phase
// says, which may be done any number of times: undo while files are being staged, go forward once all of them lie beside
// their targets, go back once that was decided. Neither needs the network or the consumer.
//
// A file belongs to the placer when its record, in the state directory too, says so. What is there and is not in the
// record is refused, or taken over with a copy kept.
//
// Format divergence: text outside PEM blocks, which RFC 7468 section 2 allows, is never written.
//
// A Placer may be used by several goroutines; two placements with a file in common are refused, and so are two processes
// with one state directory.
package place

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"chancery/internal/agent/probe"
	"chancery/internal/fault"
)

// Set is what one placement wants on the host's disk. Paths are absolute and as the host's programs see them: the root
// of the system is put before them.
type Set struct {
	Name        string      `json:"name"` // the placement; a plain file name
	Directories []Directory `json:"directories,omitempty"`
	// Files are put in this order. Keys come before their certificates: a consumer that reads in between then fails on a
	// mismatch and does not serve an old pair as if it were new.
	Files []File `json:"files,omitempty"`
	// Absent are paths that are to be removed if they are ours and unchanged. Files that this placement put before and that
	// are no longer among Files are removed likewise without being named.
	Absent []string `json:"absent,omitempty"`
	// Adopt takes over files that are there and are not ours. A copy of each is kept.
	Adopt bool `json:"adopt,omitempty"`
}

// File is a file to be, or with Link a symbolic link of a hashed directory.
type File struct {
	Path string      `json:"path"`
	Data []byte      `json:"data,omitempty"`
	Mode fs.FileMode `json:"mode,omitempty"` // permission bits without execution
	// Owner is a user's name, or number; root where it is empty. Group is the owner's own where it is empty.
	Owner string `json:"owner,omitempty"`
	Group string `json:"group,omitempty"`
	Label string `json:"label,omitempty"` // the attribute security.selinux; left as it comes where it is empty
	Link  string `json:"link,omitempty"`  // the name of a file in the same directory
	// Same reports whether what is there has the same content, for forms whose bytes differ each time they are made. Nil
	// compares bytes.
	Same func(there []byte) bool `json:"-"`
	// Share says that others have entries in the file, too: then Data comes of Merge, a file that is there need not be adopted,
	// and it is never removed while it holds anything.
	Share *Share `json:"-"`

	shared shared
}

// Directory is a directory to be.
type Directory struct {
	Path  string      `json:"path"`
	Mode  fs.FileMode `json:"mode,omitempty"` // 0755 where it is 0
	Owner string      `json:"owner,omitempty"`
	Group string      `json:"group,omitempty"`
	Label string      `json:"label,omitempty"`
}

// Accept is what the host's own configuration lets be placed.
type Accept struct {
	Prefixes []string // directories; a path must be one of them or lie under one, after links were followed
	// Except are paths that are not accepted under a wider prefix: a prefix must be one of them, or lie in it, to take effect
	// there.
	Except []string
}

// Consumer is the program that reads a placement's files. Each call is bounded by its context.
type Consumer interface {
	Down(ctx context.Context) bool    // it is not running; asked before a file is touched
	Check(ctx context.Context) error  // the files are there: would it take them?
	Reload(ctx context.Context) error // tell it
	Probe(ctx context.Context) error  // does it serve what was placed?
}

// Outcome is what a call of Place did.
type Outcome struct {
	Changed []string // paths that were written or removed, and are so still
	Kept    []string // copies of what was taken over
	// Unset says which owners, groups and labels could not be had here, for want of privilege or of a file system that keeps
	// them. It is said each time, and is not drift.
	Unset []string
	// Left are paths that are no longer wanted and were not removed, and why; and why an old set could not come back.
	Left []string
	// Told are certificates that were taken out of stores of others although we had not put them there, and why.
	Told []string
	// Repaired is what an interrupted earlier placement left to be done first.
	Repaired   []string
	Down       bool // the consumer was down, and was left so
	Reloaded   bool // for the new set; false where nothing changed
	Probed     bool
	RolledBack bool // the error says why, and how the consumer took the reload of the old set
}

// Operation is one operation of the layer, as Options.Cut sees it.
type Operation struct {
	Name  string // create, write, chown, chmod, label, fsync, rename …
	Path  string
	After bool // it has been done; an error is one that came although it was done
}

// Options are what a Placer works with.
type Options struct {
	State string // the directory of the journals and the record, the agent's own with mode 0700; made where it is not there
	// System says where the paths lie (Root) and whether owners can be set at all (AsRoot).
	System probe.System
	Accept Accept
	Log    *slog.Logger // nil logs nothing
	// Limit bounds each call of a Consumer; 0 is 5 minutes. Consumers bound their steps themselves, more narrowly.
	Limit time.Duration
	// Cut, where it is set, is called before and after every operation on a file; an error of it is the operation's. Tests
	// kill, fail and race with it. It must be safe for concurrent use.
	Cut func(Operation) error
}

// Placer places. Make one for a state directory with New.
type Placer struct {
	layer    *Layer
	system   probe.System
	limit    time.Duration
	log      *slog.Logger
	state    *directory
	journals *directory

	mu     sync.Mutex        // held while the record is written, too
	busy   map[string]bool   // placements that are worked on now; guarded by mu
	claims map[string]string // path → the placement that works on it now; guarded by mu
	lock   *file             // on the state directory, while anyone works; guarded by mu
	users  int               // how many hold lock; guarded by mu
}

// New returns a Placer for a state directory, which it makes if it is not there.
func New(o Options) (*Placer, error) {
	l, err := newLayer(o.System.Root, o.Accept, o.Cut)
	if err != nil {
		return nil, err
	}
	at, err := filepath.Abs(o.State)
	if err != nil || o.State == "" {
		return nil, fault.New(fault.Invalid, "a placer needs a state directory")
	}
	p := &Placer{
		layer: l, system: o.System, limit: cmp.Or(o.Limit, 5*time.Minute), log: o.Log,
		busy: map[string]bool{}, claims: map[string]string{},
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.state, err = l.private(at); err != nil {
		return nil, err
	}
	if p.journals, err = l.private(filepath.Join(at, journals)); err != nil {
		p.state.close()
		return nil, err
	}
	return p, l.reserve(at)
}

// reserve keeps files from being placed in the agent's own directory, by whatever name it is reached.
func (l *Layer) reserve(at string) error {
	at, err := filepath.EvalSymlinks(at)
	if err != nil {
		return fmt.Errorf("find the state directory: %w", err)
	}
	root, err := filepath.EvalSymlinks(cmp.Or(l.root, "/"))
	if err != nil {
		return fmt.Errorf("find the root: %w", err)
	}
	if within(at, root) {
		l.reserved = filepath.Join("/", strings.TrimPrefix(at, root))
	}
	return nil
}

// Close lets go of the state directory. No call may be under way.
func (p *Placer) Close() {
	p.state.close()
	p.journals.close()
}

// private opens a directory of the agent's own, made if it is not there; one that others can look into is refused.
func (l *Layer) private(at string) (*directory, error) {
	err := l.do("mkdir", at, func() error { return unix.Mkdir(at, 0o700) })
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	d, err := l.openDirectory(at, at)
	if err != nil {
		return nil, fmt.Errorf("open the state directory: %w", err)
	}
	st, err := d.self().stat()
	if err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0) {
		err = fault.New(fault.Denied, "the state directory %s is of user %d with mode %04o; user %d and 0700 would pass",
			at, st.Uid, st.Mode&0o7777, os.Geteuid()).WithHint("it holds keys: see who could read them, then chmod 0700 %s", at)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// Difference says in words in what the host's files differ from the set; nothing where they are as wanted. It reads, and
// never writes.
func (p *Placer) Difference(set Set) ([]string, error) {
	v := p.layer.view()
	defer v.close()
	pl, err := p.newPlan(v, set, nil, time.Now())
	if err != nil {
		return nil, err
	}
	j, err := p.readJournal(set.Name)
	if err != nil {
		return nil, err
	}
	if j != nil {
		pl.words = append(pl.words, "an earlier placement was interrupted and is to be repaired")
	}
	return pl.words, nil
}

// Place brings the host's files to the set and the consumer to take them. Old is the last set known good; where it is
// given, a consumer that does not take the new one gets it back. Nil says that there is none, or that it is not valid any
// more: then the new set stays, and the next Place tries again; but where files were adopted, what was found comes back. C
// may be nil: the files alone.
//
// When Place returns, whatever the error, the files of the placement are all of the new set or all of the old, or there is
// a journal by which Repair and the next Place bring that about.
func (p *Placer) Place(ctx context.Context, set Set, old *Set, c Consumer) (out Outcome, err error) {
	done, err := p.work(set.Name)
	if err != nil {
		return out, err
	}
	defer done()
	if out.Repaired, err = p.repair(set.Name); err != nil {
		return out, err
	}
	v := p.layer.view()
	defer v.close()
	pl, err := p.newPlan(v, set, old, time.Now())
	if err != nil {
		return out, err
	}
	out.Unset, out.Left = pl.unset, pl.left
	if err := cmp.Or(p.claim(set.Name, pl.files), errors.Join(pl.strangers...), ctx.Err()); err != nil {
		return out, err
	}
	if pl.idle() {
		if !pl.own.equal(pl.journal.After) {
			err = p.note(set.Name, pl.journal.After)
		}
		return out, err
	}
	t := &turn{p: p, v: v, pl: pl, j: pl.journal, c: c, out: &out}
	if err = t.take(ctx); err != nil {
		p.log.WarnContext(ctx, "not placed", "placement", set.Name, "rolled_back", out.RolledBack, "error", err)
	} else {
		out.Told = pl.told
		p.log.InfoContext(ctx, "placed", "placement", set.Name, "changed", out.Changed, "down", out.Down, "probed", out.Probed)
	}
	return out, err
}
