package place

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"chancery/internal/fault"
)

// Share is a store of which only a part is ours: a trust store full of public CAs, a database that holds somebody else's
// keys as well. It lies in one file, or in several that are changed together. What is ours in it is known from the record
// of what was placed, and never guessed: a certificate that was there before we came stays when we go.
type Share struct {
	// Merge makes what the files are to hold of what they hold; nil is a file that is not there. Ours is what an earlier Merge
	// returned as entries, of what is placed now; untouched says that the files are as they were left then. What need not
	// change is returned as it is.
	Merge func(there [][]byte, ours []string, untouched bool) (Merged, error)
	// Keep leaves owner, mode and label of a file that is there as they are, for stores in which nothing of ours is secret.
	Keep bool
	// Leave says that nothing in the store is to be ours any more: the record forgets the files. They go if nothing is left.
	Leave bool
}

// Merged is what the files of a shared store are to be.
type Merged struct {
	Files   [][]byte // nil is a file that is not to be there
	Entries []string // what is ours in them, for the record
	Told    []string // what an operator is to hear of, once it is done
}

// shared is what Merge said of a file.
type shared struct {
	share   *Share
	entries []string
	told    []string // of the first of the store's files
	gone    bool
}

// merge fills the files of a set that are shared with others. Those that are neither there nor wanted are left out.
func (pl *plan) merge(files []File) ([]File, error) {
	var order []*Share
	parts := map[*Share][]int{}
	for i, f := range files {
		if f.Share == nil {
			continue
		}
		if parts[f.Share] == nil {
			order = append(order, f.Share)
		}
		parts[f.Share] = append(parts[f.Share], i)
	}
	if order == nil {
		return files, nil
	}
	merged := slices.Clone(files)
	var all []error
	for _, s := range order {
		if err := pl.mergeShare(merged, s, parts[s]); err != nil {
			all = append(all, fmt.Errorf("%s: %w", files[parts[s][0]].Path, err))
		}
	}
	return slices.DeleteFunc(merged, func(f File) bool { return f.shared.gone }), errors.Join(all...)
}

func (pl *plan) mergeShare(files []File, s *Share, parts []int) error {
	there := make([][]byte, len(parts))
	var ours []string
	known, untouched := false, true
	for _, mark := range pl.own.Files { // of a store that is elsewhere now, too
		ours = append(ours, leftIn(mark.Entries)...)
	}
	for n, i := range parts {
		at, err := pl.locate(files[i].Path)
		if err != nil && s.Leave { // the host does not let us there any more; removals say so
			leaveOut(files, parts)
			return nil
		}
		if err != nil {
			return err
		}
		e, err := pl.look(at)
		if err == nil {
			err = judge(at.real, e)
		}
		if err == nil && e.closed {
			err = fault.New(fault.Denied, "%s cannot be read by this agent, and what else it holds would be lost", at.real)
		}
		if err != nil {
			return err
		}
		if e.exists() {
			there[n] = append([]byte{}, e.data...) // empty, and not nil
		}
		mark, isOurs := pl.own.Files[at.real]
		known = known || isOurs
		untouched = untouched && isOurs == e.exists() && (!isOurs || mark.Digest == e.found().digest())
		ours = append(ours, mark.Entries...)
	}
	if s.Leave && !known {
		leaveOut(files, parts)
		return nil
	}
	if err := pl.still(files, parts, there); err != nil {
		return err
	}
	slices.Sort(ours)
	want, err := s.Merge(there, slices.Compact(ours), known && untouched)
	if err != nil {
		return err
	}
	if len(want.Files) != len(parts) {
		return fault.New(fault.Internal, "the store is of %d files, and was merged to %d", len(parts), len(want.Files))
	}
	if len(want.Entries) == 0 {
		want.Entries = nil
	}
	for n, i := range parts {
		files[i].Data = want.Files[n]
		files[i].shared = shared{share: s, entries: want.Entries, gone: want.Files[n] == nil}
		if n == 0 {
			for _, words := range want.Told {
				files[i].shared.told = append(files[i].shared.told, files[i].Path+": "+words)
			}
		}
		if at, err := pl.locate(files[i].Path); err == nil && want.Files[n] == nil && s.Leave {
			pl.vacated[at.real] = true
		}
	}
	return nil
}

// still looks at the files of a store once more. Its program may have written while they were read one after the other, and
// what was read then is of no single moment. Both reads are the same only where nobody wrote in between; a writer that stood
// still all the time has left its journal, which is one of the files.
func (pl *plan) still(files []File, parts []int, there [][]byte) error {
	for n, i := range parts {
		at, err := pl.locate(files[i].Path)
		if err != nil {
			return err
		}
		e, err := pl.look(at)
		if err != nil {
			return err
		}
		if e.exists() != (there[n] != nil) || !bytes.Equal(e.data, there[n]) {
			return fault.New(fault.Conflict, "%s changed while the store was read: somebody writes there now, and it is tried again", at.real)
		}
	}
	return nil
}

func leaveOut(files []File, parts []int) {
	for _, i := range parts {
		files[i].shared.gone = true
	}
}

// isShared reports whether a file is a part of a store that others have entries in.
func (f *File) isShared() bool { return f.shared.share != nil }

// keeps reports whether a file that is there keeps its owner, mode and label.
func (f *File) keeps(e entry) bool { return f.isShared() && f.shared.share.Keep && e.exists() }

// mark is what the record is to say of a file.
func (f *File) mark(digest string) ours {
	return ours{Path: f.Path, Digest: digest, Shared: f.isShared(), Entries: f.shared.entries}
}
