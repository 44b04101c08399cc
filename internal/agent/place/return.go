package place

import (
	"maps"
	"slices"

	"chancery/internal/fault"
)

// planReturn plans what going back takes: the old set where it is given, else what is there. Where files are adopted it is
// what is there, for an old set would not match them.
func (pl *plan) planReturn(r *record, old *Set) error {
	before := pl.own.clone()
	if before.Files == nil {
		before.Files = map[string]ours{}
	}
	pl.journal.Before = before
	pl.returns = pl.adopts
	var err error
	if old != nil && !pl.adopts {
		err = pl.planOld(r, old)
	}
	for real, i := range pl.items {
		if i.Back == nil {
			delete(before.Files, real)
		}
	}
	return err
}

// planOld plans to go back to an old set, whole or not at all.
func (pl *plan) planOld(r *record, old *Set) error {
	backs, named := map[string]*state{}, map[string]string{}
	files, err := pl.merge(old.Files)
	if err != nil {
		return err
	}
	of := map[string]File{}
	for _, f := range files {
		at, want, err := pl.resolve(f, false)
		if err != nil {
			return err
		}
		if e := pl.there[at.real]; f.keeps(e) {
			want.attributes = pl.placer.foundAgain(e).attributes
		}
		backs[at.real], named[at.real], of[at.real] = want, f.Path, f
		if pl.wanted[at.real] != nil {
			continue
		}
		e, err := pl.look(at)
		_, isOurs := pl.own.Files[at.real]
		switch {
		case err != nil:
			return err
		case at.dir == nil:
			return fault.New(fault.Conflict, "the directory of %s is gone", at.real)
		case e.exists() && (!isOurs || pl.items[at.real] == nil):
			return fault.New(fault.Conflict, "%s is not ours", at.real)
		}
	}
	if err := r.foreign(pl.set.Name, named); err != nil {
		return err
	}
	maps.Copy(pl.files, named)
	pl.returns = true
	for _, real := range slices.Sorted(maps.Keys(backs)) {
		pl.goBackTo(real, backs[real], of[real])
	}
	return nil
}

// goBackTo plans that going back makes a file what it was in the old set.
func (pl *plan) goBackTo(real string, back *state, f File) {
	i, e := pl.items[real], pl.there[real]
	mark := f.mark(back.digest())
	mark.Path = pl.files[real]
	switch {
	case back.matches(e): // a key store, too, that holds the same: its bytes are those that are there
		mark.Digest, mark.Unlabelled = e.found().digest(), pl.own.Files[real].Unlabelled
		if i != nil {
			i.Back = pl.placer.foundAgain(e)
		}
	case i != nil:
		i.Back = back
	default:
		pl.item(real, pl.wanted[real], back)
	}
	pl.journal.Before.Files[real] = mark
}
