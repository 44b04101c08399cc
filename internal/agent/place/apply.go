package place

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"chancery/internal/fault"
)

// stage puts beside the targets all that forward and backward will need, so that neither runs out of room. No target is
// touched.
func (v *view) stage(j *journal, there map[string]entry) error {
	for i := range j.Made {
		if err := v.make(&j.Made[i]); err != nil {
			return err
		}
	}
	for i := range j.Items {
		it := &j.Items[i]
		d, err := v.parent(it.Path)
		if err != nil {
			return err
		}
		e := there[it.Path]
		if it.Keep != "" {
			copied := *it.Back
			if err := d.put(it.Keep, &copied); err != nil {
				return err
			}
		}
		nest, err := v.nest(d, j.Nest)
		if err != nil {
			return err
		}
		if it.New != nil && !it.New.matches(e) {
			if err := nest.put(it.Stage, it.New); err != nil {
				return err
			}
		}
		if it.Back != nil {
			if err := nest.put(it.Stow, it.Back); err != nil {
				return err
			}
		}
	}
	return nil
}

// nest opens the directory in d for what is staged, and makes it if it is not there.
func (v *view) nest(d *directory, name string) (*directory, error) {
	n, err := v.child(d, name)
	if !errors.Is(err, fs.ErrNotExist) {
		return n, err
	}
	if err := d.mkdir(name, 0o700); err != nil {
		return nil, err
	}
	return v.child(d, name)
}

// clear removes the nest in d with what lies in it.
func (v *view) clear(d *directory, j *journal) error {
	n, err := v.child(d, j.Nest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, it := range j.Items {
		if path.Dir(it.Path) != d.path {
			continue
		}
		for _, name := range []string{it.Stage, it.Stow} {
			if err := n.discard(name); err != nil {
				return err
			}
		}
	}
	if err := v.rmdir(d, j.Nest); err != nil && !notEmpty(err) {
		return err
	}
	return nil
}

func notEmpty(err error) bool { return errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) }

// rmdir removes a directory that lies in d, and forgets it.
func (v *view) rmdir(d *directory, name string) error {
	if err := d.rmdir(name); err != nil {
		return err
	}
	if gone := v.open[d.at(name)]; gone != nil {
		gone.close()
		delete(v.open, d.at(name))
	}
	return nil
}

// parent opens the directory of a path whose links are resolved; it is there, or the error is fs.ErrNotExist.
func (v *view) parent(real string) (*directory, error) {
	d, missing, err := v.walk(path.Dir(real))
	if err == nil && len(missing) > 0 {
		err = &fs.PathError{Op: "open", Path: path.Dir(real), Err: fs.ErrNotExist}
	}
	return d, err
}

func (v *view) make(m *made) error {
	d, err := v.parent(m.Path)
	if err != nil {
		return err
	}
	if err := d.mkdir(path.Base(m.Path), 0o700); err != nil {
		return err
	}
	c, err := v.child(d, path.Base(m.Path))
	if err != nil {
		return err
	}
	return c.self().dressNew(&m.attributes)
}

// put makes a file or link, whole and durable, with all of its attributes. It gets them while it is empty; only then does
// it get its content.
func (d *directory) put(name string, s *state) error {
	if s.Link != "" {
		return d.symlink(s.Link, name)
	}
	f, err := d.create(name)
	if err != nil {
		return err
	}
	if err := f.dressNew(&s.attributes); err != nil {
		f.close()
		return err
	}
	if err := f.fill(s.Data); err != nil || s.Changed.IsZero() {
		return err
	}
	return d.setTime(name, s.Changed)
}

// undo takes away what stage made.
func (v *view) undo(j *journal) error {
	touched := map[string]*directory{}
	if err := v.tidy(j, touched, true); err != nil {
		return err
	}
	if err := v.unmake(j, touched); err != nil {
		return err
	}
	return syncAll(touched)
}

// tidy removes the nests, and the copies that were kept if they are not wanted after all.
func (v *view) tidy(j *journal, touched map[string]*directory, copies bool) error {
	for _, it := range j.Items {
		d, err := v.parent(it.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && copies && it.Keep != "" {
			err = d.discard(it.Keep)
		}
		if err == nil && touched[d.path] == nil {
			touched[d.path] = d
			err = v.clear(d, j)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unmake removes the directories that were made, if nothing has come to lie in them.
func (v *view) unmake(j *journal, touched map[string]*directory) error {
	for _, m := range slices.Backward(j.Made) {
		d, err := v.parent(m.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !d.has(path.Base(m.Path)) {
			continue
		}
		err = v.rmdir(d, path.Base(m.Path))
		if err != nil && !notEmpty(err) {
			return err
		}
		if err == nil {
			delete(touched, m.Path)
		}
		touched[d.path] = d
	}
	return nil
}

func syncAll(touched map[string]*directory) error {
	for _, at := range slices.Sorted(maps.Keys(touched)) {
		if err := touched[at].sync(); err != nil {
			return err
		}
	}
	return nil
}

// forward puts the new set in place. It may have been begun before, by a process that is gone.
func (v *view) forward(j *journal) error {
	touched := map[string]*directory{}
	for i := range j.Made {
		d, missing, err := v.walk(path.Dir(j.Made[i].Path))
		if err == nil && len(missing) == 0 {
			touched[d.path] = d
			if _, missing, err = v.walk(j.Made[i].Path); err == nil && len(missing) > 0 {
				err = v.make(&j.Made[i])
			}
		}
		if err != nil {
			return err
		}
	}
	for i := range j.Directories {
		if err := v.hold(j.Directories[i].Path, &j.Directories[i].New, touched); err != nil {
			return err
		}
	}
	for i := range j.Items {
		it := &j.Items[i]
		if err := v.settle(j, it, it.New, it.Stage, touched); err != nil {
			return err
		}
	}
	return syncAll(touched)
}

// backward puts the old set in place.
func (v *view) backward(j *journal) error {
	touched := map[string]*directory{}
	for i := range j.Items {
		it := &j.Items[i]
		if err := v.settle(j, it, it.Back, it.Stow, touched); err != nil {
			return err
		}
	}
	if err := syncAll(touched); err != nil { // before the copies go
		return err
	}
	clear(touched)
	if err := v.tidy(j, touched, true); err != nil {
		return err
	}
	for i := range j.Directories {
		if err := v.hold(j.Directories[i].Path, &j.Directories[i].Back, touched); err != nil {
			return err
		}
	}
	if err := v.unmake(j, touched); err != nil {
		return err
	}
	return syncAll(touched)
}

// settle makes an item's path be as wanted, by a rename of what lies in the nest where that is it.
func (v *view) settle(j *journal, it *item, want *state, staged string, touched map[string]*directory) error {
	d, err := v.parent(it.Path)
	if want == nil && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	touched[d.path] = d
	name := path.Base(it.Path)
	e, err := d.look(name)
	if err != nil || want.matches(e) {
		return err
	}
	if e.kind == unix.S_IFDIR {
		return fault.New(fault.Conflict, "%s has become a directory; a regular file or none would pass", it.Path)
	}
	if want == nil {
		return d.unlink(name)
	}
	nest, err := v.nest(d, j.Nest)
	if err != nil {
		return err
	}
	t, err := nest.look(staged)
	if err != nil {
		return err
	}
	if !want.matches(t) {
		if err := nest.discard(staged); err != nil {
			return err
		}
		if err := nest.put(staged, want); err != nil {
			return err
		}
	}
	return nest.rename(staged, d, name)
}

// hold gives a directory other attributes. Rights that only one of the two modes gives are given to nobody in between.
func (v *view) hold(real string, a *attributes, touched map[string]*directory) error {
	d, missing, err := v.walk(real)
	if err != nil || len(missing) > 0 {
		return err
	}
	touched[d.path] = d
	st, err := d.self().stat()
	if err != nil {
		return err
	}
	e := entryOf(st)
	if err := d.self().lookAttributes(&e); err != nil {
		return err
	}
	if e.listed = false; len(a.differences(e)) == 0 {
		return nil
	}
	if both := a.Mode & e.mode; both != e.mode {
		if err := d.self().chmod(both); err != nil {
			return err
		}
	}
	return d.self().dress(a)
}

// sweep removes the nests, when what lies in them is needed no more.
func (v *view) sweep(j *journal) error {
	touched := map[string]*directory{}
	if err := v.tidy(j, touched, false); err != nil {
		return err
	}
	return syncAll(touched)
}

// Repair ends what an interruption left, from the journals alone: it needs no network, and does not touch the consumer.
// It says what it did.
func (p *Placer) Repair(ctx context.Context) ([]string, error) {
	names, err := p.interrupted()
	if err != nil {
		return nil, err
	}
	var words []string
	var all []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return words, errors.Join(append(all, err)...)
		}
		done, err := p.work(name)
		if err == nil {
			var one []string
			one, err = p.repair(name)
			words = append(words, one...)
			done()
		}
		all = append(all, err)
	}
	return words, errors.Join(all...)
}

// repair applies what the phase of a placement's journal says, if it has one.
func (p *Placer) repair(name string) ([]string, error) {
	if err := p.journals.discard(journalName(name) + fresh); err != nil {
		return nil, err
	}
	j, err := p.readJournal(name)
	if err != nil || j == nil {
		return nil, err
	}
	v := p.layer.view()
	defer v.close()
	var words string
	switch j.phase {
	case staging:
		words, err = "a placement that had changed nothing yet was undone", v.undo(j)
		if err == nil {
			err = p.dropJournal(name)
		}
	case forward:
		words, err = "the new files were put in place; their consumer is to be told", v.forward(j)
		if err == nil {
			err = p.finish(v, j, j.After, true)
		}
	case backward:
		words, err = "the old files were put back; their consumer is to be told", v.backward(j)
		if err == nil {
			err = p.finish(v, j, j.Before, true)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("repair the placement %s: %w", name, err)
	}
	p.log.Info("repaired", "placement", name, "phase", j.phase)
	return []string{name + ": " + words}, nil
}

// finish removes what a placement needs no more, records what is ours now, and then drops the journal.
func (p *Placer) finish(v *view, j *journal, is *placed, unconfirmed bool) error {
	if err := v.sweep(j); err != nil {
		return err
	}
	is = is.clone()
	is.Unconfirmed = unconfirmed
	for _, it := range j.Items {
		if mark, ok := is.Files[it.Path]; ok && it.New != nil && it.New.noLabel {
			mark.Unlabelled = it.New.Label
			is.Files[it.Path] = mark
		}
	}
	for _, m := range j.Made {
		is.unlabel(m.Path, m.attributes)
	}
	for _, d := range j.Directories {
		is.unlabel(d.Path, d.New)
	}
	if err := p.note(j.Placement, is); err != nil {
		return err
	}
	return p.dropJournal(j.Placement)
}

func (is *placed) unlabel(real string, a attributes) {
	if !a.noLabel {
		return
	}
	if is.Unlabelled == nil {
		is.Unlabelled = map[string]string{}
	}
	is.Unlabelled[real] = a.Label
}
