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
// A file belongs to the placer when its record, in the state directory too, says so. What is there and is not in the record is
// refused, or taken over with a copy kept.
//
// Format divergence: text outside PEM blocks, which RFC 7468 section 2 allows, is never written.
//
// A Placer may be used by several goroutines; two placements with a file in common are refused, and so are two processes
// with one state directory.
package place

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"chancery/internal/agent/probe"
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
	// Left are paths that are no longer wanted and were not removed, and why.
	Left []string
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
	options Options
}

// New returns a Placer for a state directory.
func New(o Options) (*Placer, error) {
	return &Placer{options: o}, nil
}

// errEarly is returned while the layer below is being put in.
var errEarly = errors.ErrUnsupported

// Difference says in words in what the host's files differ from the set; nothing where they are as wanted. It reads, and
// never writes.
func (p *Placer) Difference(set Set) ([]string, error) { return nil, errEarly }

// Place brings the host's files to the set and the consumer to take them.
func (p *Placer) Place(ctx context.Context, set Set, old *Set, c Consumer) (Outcome, error) {
	return Outcome{}, errEarly
}

// Repair ends what an interruption left, from the journals alone: it needs no network, and does not touch the consumer.
// It says what it did.
func (p *Placer) Repair(ctx context.Context) ([]string, error) { return nil, errEarly }

// Placed lists what the record says is ours, by placement and path.
func (p *Placer) Placed() ([]Placement, error) { return nil, errEarly }

// Placement is what the record says of one placement.
type Placement struct {
	Name  string
	Paths []string
	// Unconfirmed says that the files are in place and that the consumer has not been seen to take them, because of a failure
	// or an interruption. The next Place checks, reloads and probes although no file changes.
	Unconfirmed bool
}
