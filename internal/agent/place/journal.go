package place

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"chancery/internal/fault"
)

// phase is the word at the beginning of a journal that says what is to be done about it after a crash.
type phase string

// The phases. There is no way from forward or backward to staging.
const (
	staging  phase = "staging"  // new files may lie beside their targets, none of which has been touched: undo
	forward  phase = "forward"  // all of them lie there: put the new set in place
	backward phase = "backward" // the new set is given up: put the old one in place
)

// journal is what one placement is about to do: everything that is needed to finish it or to go back.
type journal struct {
	Placement string    `json:"placement"`
	Began     time.Time `json:"began"`
	// Nest is the name of a directory, open to nobody else, that is made beside the targets in each of their directories.
	// What is staged lies in there: consumers that read whole directories do not take it for theirs, and an owner of the
	// directory cannot get at it.
	Nest string `json:"nest"`
	// Made are the directories to make, parents first. Going back removes them if they are empty.
	Made        []made      `json:"made,omitempty"`
	Directories []directive `json:"directories,omitempty"`
	Items       []item      `json:"items,omitempty"`
	After       *placed     `json:"after,omitempty"`  // what the record is to say when forward was done
	Before      *placed     `json:"before,omitempty"` // and when backward was; nil knows no such placement

	phase phase
}

// made is a directory to make.
type made struct {
	Path string `json:"path"`
	attributes
}

// directive is a directory that is there, and gets other attributes.
type directive struct {
	Path string     `json:"path"`
	New  attributes `json:"new"`
	Back attributes `json:"back"`
}

// item is one path that changes.
type item struct {
	Path string `json:"path"`
	New  *state `json:"new,omitempty"`  // nil: nothing is to be there
	Back *state `json:"back,omitempty"` // likewise, for going back
	// Names in the nest: where the new file is staged, and where the one to go back to is stowed.
	Stage string `json:"stage"`
	Stow  string `json:"stow"`
	Keep  string `json:"keep,omitempty"` // beside the target: the copy that is kept of a file that was not ours
}

// phaseWidth is the length of the first line of a journal. It lies within one sector and is overwritten in place, so that
// deciding to go back needs no room on a full disk.
const phaseWidth = 16

func (ph phase) line() []byte { return fmt.Appendf(nil, "%-*s\n", phaseWidth-1, string(ph)) }

const journals = "journal"

// journalName is the name of a placement's journal. A placement's name may hold what a file's may not.
func journalName(placement string) string { return url.PathEscape(placement) + ".journal" }

// writeJournal makes the journal durable, in its first phase.
func (p *Placer) writeJournal(j *journal) error {
	text, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	j.phase = staging
	if err := p.journals.replace(journalName(j.Placement), append(staging.line(), text...)); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// enter makes the next phase durable.
func (p *Placer) enter(j *journal, next phase) error {
	f, err := p.journals.open(journalName(j.Placement), unix.O_WRONLY)
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	defer f.close()
	err = f.overwrite(next.line())
	if err == nil {
		err = f.sync()
	}
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	j.phase = next
	return nil
}

// readJournal returns nil where the placement has none.
func (p *Placer) readJournal(placement string) (*journal, error) {
	text, err := p.journals.content(journalName(placement))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal of %s: %w", placement, err)
	}
	j := &journal{}
	if len(text) > phaseWidth {
		j.phase = phase(bytes.TrimSpace(text[:phaseWidth]))
		err = json.Unmarshal(text[phaseWidth:], j)
	}
	if known := []phase{staging, forward, backward}; err != nil || !slices.Contains(known, j.phase) {
		return nil, fault.New(fault.Internal, "the journal of %s cannot be read, and what it is about cannot be repaired",
			placement).WithHint("look at its files, move %s away, and place again", p.journals.at(journalName(placement)))
	}
	return j, nil
}

func (p *Placer) dropJournal(placement string) error {
	err := p.journals.unlink(journalName(placement))
	if err == nil {
		err = p.journals.sync()
	}
	if err != nil {
		return fmt.Errorf("remove the journal of %s: %w", placement, err)
	}
	return nil
}

// interrupted lists the placements that have a journal, or the beginning of one.
func (p *Placer) interrupted() ([]string, error) {
	names, err := p.journals.names()
	if err != nil {
		return nil, fmt.Errorf("list the journals: %w", err)
	}
	var placements []string
	for _, name := range names {
		escaped, ok := strings.CutSuffix(strings.TrimSuffix(name, fresh), ".journal")
		if placement, err := url.PathUnescape(escaped); ok && err == nil {
			placements = append(placements, placement)
		}
	}
	slices.Sort(placements)
	return slices.Compact(placements), nil
}

// fresh is the name under which a file of the state directory is written before it takes its place.
const fresh = ".new"

// replace writes a file of the state directory, so that there is the old one whole or the new one whole. Writers of one
// directory take turns.
func (d *directory) replace(name string, data []byte) error {
	temporary := name + fresh
	if err := d.discard(temporary); err != nil {
		return err
	}
	f, err := d.create(temporary)
	if err == nil {
		err = f.fill(data)
	}
	if err == nil {
		err = d.rename(temporary, d, name)
	}
	if err != nil {
		return errors.Join(err, d.discard(temporary))
	}
	return d.sync()
}

// fill writes all of a new file, makes it durable and closes it.
func (f *file) fill(data []byte) error {
	err := f.write(data)
	if err == nil {
		err = f.sync()
	}
	if closed := f.close(); err == nil {
		err = closed
	}
	return err
}

// discard removes a file that may be there. A file system that is read-only refuses before it looks.
func (d *directory) discard(name string) error {
	err := d.unlink(name)
	if errors.Is(err, unix.EROFS) && !d.has(name) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d *directory) has(name string) bool {
	_, err := d.stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// maxState bounds a file of the state directory; a journal holds each content twice, in base64.
const maxState = 256 << 20

func (d *directory) content(name string) ([]byte, error) {
	f, err := d.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.close()
	return f.read(maxState)
}
