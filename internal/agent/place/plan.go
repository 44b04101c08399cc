package place

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"chancery/internal/fault"
)

// nestPrefix begins the name of every directory for what is staged.
const nestPrefix = ".chancery-"

// plan is what is to be done to bring the host to a set, found out by reading alone.
type plan struct {
	placer *Placer
	view   *view
	set    Set
	own    *placed // what the record says of the placement; empty where it does not know it

	journal *journal
	files   map[string]string // what is wanted or ours, by path with links resolved: as it is named
	wanted  map[string]*state
	there   map[string]entry
	items   map[string]*item
	order   []string // of items

	words       []string        // the differences
	vacated     map[string]bool // files shared with others in which nothing is left
	strangers   []error         // files that are there, not ours, and not to be adopted
	unset, left []string
	told        []string // what to say of shared stores once the set is in place
	adopts      bool
	returns     bool // there is a set to go back to
	now         time.Time
}

// newPlan finds out what differs from the set, and what going back to old would take.
func (p *Placer) newPlan(v *view, set Set, old *Set, now time.Time) (*plan, error) {
	r, err := p.readRecord()
	if err != nil {
		return nil, err
	}
	pl := &plan{
		placer: p, view: v, set: set, own: r.Placements[set.Name], now: now,
		files: map[string]string{}, wanted: map[string]*state{}, there: map[string]entry{}, items: map[string]*item{},
		vacated: map[string]bool{},
		journal: &journal{
			Placement: set.Name, Began: now, Nest: nestPrefix + rand.Text()[:10], After: &placed{Files: map[string]ours{}},
		},
	}
	if pl.own == nil {
		pl.own = &placed{}
	}
	if err := errors.Join(checkName(set.Name), pl.planDirectories(), pl.planFiles()); err != nil {
		return nil, err
	}
	pl.planRemovals()
	if err := r.foreign(set.Name, pl.files); err != nil {
		return nil, err
	}
	if err := pl.planReturn(r, old); err != nil {
		pl.left = append(pl.left, fmt.Sprintf("the old set could not be put back: %v", err))
	}
	if pl.own.Unconfirmed {
		pl.words = append(pl.words, "what is in place has not been seen to be taken by its consumer")
	}
	for _, real := range pl.order {
		pl.journal.Items = append(pl.journal.Items, *pl.items[real])
	}
	return pl, pl.checkTree()
}

func checkName(name string) error {
	if name == "" || len(journalName(name))+len(fresh) > unix.NAME_MAX {
		return fault.New(fault.Invalid, "the placement's name %q is empty or too long", name)
	}
	return nil
}

// idle reports whether nothing is to be done.
func (pl *plan) idle() bool {
	touched := func(i item) bool { return !i.New.matches(pl.there[i.Path]) }
	return len(pl.journal.Made)+len(pl.journal.Directories) == 0 && !pl.own.Unconfirmed &&
		!slices.ContainsFunc(pl.journal.Items, touched)
}

// spot is where a file is, or is to be.
type spot struct {
	real string
	dir  *directory // nil where its directory is still to be made
	base string
}

// locate judges a file's path and finds its directory.
func (pl *plan) locate(named string) (spot, error) {
	l := pl.view.layer
	p, err := l.clean(named)
	if err != nil {
		return spot{}, err
	}
	if err := l.accepted(p); err != nil {
		return spot{}, err
	}
	parent, base := path.Split(p)
	d, missing, err := pl.view.walk(path.Clean(parent))
	if err != nil {
		return spot{}, err
	}
	at := spot{real: path.Join(d.path, path.Join(missing...), base), dir: d, base: base}
	if len(missing) > 0 {
		at.dir = nil
	}
	if base == "" || l.reserved != "" && within(at.real, l.reserved) {
		return spot{}, fault.New(fault.Denied, "nothing is placed at %s, which is the agent's own", p)
	}
	return at, nil
}

func (pl *plan) look(at spot) (entry, error) {
	if at.dir == nil {
		return entry{}, nil
	}
	e, err := at.dir.look(at.base)
	pl.there[at.real] = e
	return e, err
}

func (pl *plan) planDirectories() error {
	listed := slices.SortedFunc(slices.Values(pl.set.Directories), func(a, b Directory) int {
		return cmp.Compare(len(a.Path), len(b.Path)) // parents first
	})
	for _, dir := range listed {
		if err := pl.planDirectory(dir); err != nil {
			return err
		}
	}
	for _, f := range pl.set.Files {
		if p, err := pl.view.layer.clean(f.Path); err == nil && pl.view.layer.accepted(p) == nil {
			if d, missing, err := pl.view.walk(path.Dir(p)); err == nil { // else planFile says why not
				pl.makeAll(d, missing, nil)
			}
		}
	}
	return nil
}

func (pl *plan) planDirectory(dir Directory) error {
	l := pl.view.layer
	p, err := l.clean(dir.Path)
	if err != nil {
		return err
	}
	if err := l.accepted(p); err != nil {
		return err
	}
	mode := cmp.Or(dir.Mode, 0o755)
	if mode&^0o777 != 0 {
		return fault.New(fault.Invalid, "the directory %s is to have mode %v; permission bits alone would pass", p, mode)
	}
	want, unset, err := pl.placer.owner(dir.Owner, dir.Group, mode)
	if err != nil {
		return fmt.Errorf("directory %s: %w", p, err)
	}
	pl.cannot(p, unset)
	want.Label = dir.Label
	d, missing, err := pl.view.walk(p)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		pl.makeAll(d, missing, &want)
		return nil
	}
	return pl.compareDirectory(d, want)
}

func (pl *plan) compareDirectory(d *directory, want attributes) error {
	st, err := d.self().stat()
	if err != nil {
		return err
	}
	e := entryOf(st)
	if err := d.self().lookAttributes(&e); err != nil {
		return err
	}
	if known, ok := pl.own.Unlabelled[d.path]; ok && known == want.Label {
		want.noLabel = true
		pl.unlabelled(d.path, want.Label)
		pl.journal.After.unlabel(d.path, want)
	}
	e.listed = false // a directory's list is not content, and its default is kept off our files
	if words := want.differences(e); len(words) > 0 {
		pl.differ(d.path, words)
		pl.journal.Directories = append(pl.journal.Directories, directive{d.path, want, e.attributes()})
	}
	return nil
}

// makeAll plans directories that are not there. The last one gets the attributes given, and those on the way there are
// open to all, as what is above a consumer's own directories must be.
func (pl *plan) makeAll(d *directory, missing []string, last *attributes) {
	at := d.path
	for i, name := range missing {
		at = path.Join(at, name)
		known := func(m made) bool { return m.Path == at }
		if slices.ContainsFunc(pl.journal.Made, known) {
			continue
		}
		a, _, _ := pl.placer.owner("", "", 0o755) // root needs no lookup, and cannot fail
		if last != nil && i == len(missing)-1 {
			a = *last
		}
		pl.journal.Made = append(pl.journal.Made, made{at, a})
		pl.differ(at, []string{"is missing"})
	}
}

func (pl *plan) planFiles() error {
	files, err := pl.merge(pl.set.Files)
	if err != nil {
		return err
	}
	var all []error
	for _, f := range files {
		pl.told = append(pl.told, f.shared.told...)
		all = append(all, pl.planFile(f))
	}
	return errors.Join(all...)
}

func (pl *plan) planFile(f File) error {
	at, want, err := pl.resolve(f, true)
	if err != nil {
		return err
	}
	if _, twice := pl.files[at.real]; twice {
		return fault.New(fault.Invalid, "the placement %s names the file %s twice", pl.set.Name, at.real)
	}
	pl.files[at.real], pl.wanted[at.real] = f.Path, want
	e, err := pl.look(at)
	if err != nil {
		return err
	}
	known, isOurs := pl.own.Files[at.real]
	if e.kind != unix.S_IFLNK || want.Link == "" && !(isOurs && known.Digest == e.found().digest()) {
		if err := judge(at.real, e); err != nil {
			return err
		}
	}
	if f.keeps(e) {
		want.attributes, e.listed = e.attributes(), false
	}
	digest := want.digest()
	if want.same != nil && e.data != nil && want.same(e.data) {
		digest = e.found().digest()
	}
	mark := f.mark(digest)
	if want.noLabel {
		mark.Unlabelled = want.Label
	}
	if !f.isShared() || !f.shared.share.Leave {
		pl.journal.After.Files[at.real] = mark
	}
	words := want.differences(e)
	if len(words) == 0 {
		return nil
	}
	if f.keeps(e) {
		want.attributes = pl.placer.foundAgain(e).attributes
	}
	return pl.change(at, want, e, words, isOurs, f.isShared())
}

// change plans that a file becomes what is wanted.
func (pl *plan) change(at spot, want *state, e entry, words []string, isOurs, isShared bool) error {
	if e.closed {
		return fault.New(fault.Denied, "%s cannot be read by this agent, which could not put it back", at.real)
	}
	i := pl.item(at.real, want, pl.placer.foundAgain(e))
	var err error
	switch {
	case !e.exists() || isOurs:
		pl.differ(at.real, words)
	case pl.set.Adopt || isShared:
		pl.differ(at.real, append(words, "and is not ours: a copy will be kept"))
		pl.adopts = true
		i.Keep, err = pl.copyName(at)
	default:
		pl.differ(at.real, append(words, "and is not ours"))
		pl.strangers = append(pl.strangers,
			fault.New(fault.Conflict, "%s is there, was not placed by this agent, and is not what is wanted: move it away, or say "+
				"chancery agent run --once --adopt=%s, which keeps a copy beside it", at.real, pl.set.Name))
	}
	return err
}

// copyName is a name for the copy of what is taken over. An earlier copy is never touched.
func (pl *plan) copyName(at spot) (string, error) {
	stem := at.base + ".chancery-before-" + pl.now.UTC().Format("20060102T150405Z")
	for n, name := 2, stem; ; n, name = n+1, fmt.Sprintf("%s-%d", stem, n) {
		if e, err := at.dir.look(name); err != nil || !e.exists() {
			return name, err
		}
	}
}

// item plans a path to change.
func (pl *plan) item(real string, to, back *state) *item {
	n := len(pl.order)
	i := &item{
		Path: real, New: to, Back: back,
		Stage: fmt.Sprintf("%d-new", n), Stow: fmt.Sprintf("%d-old", n),
	}
	pl.items[real] = i
	pl.order = append(pl.order, real)
	return i
}

// resolve judges a file that is wanted, and finds where it is and how it is to be.
func (pl *plan) resolve(f File, tell bool) (spot, *state, error) {
	mode := cmp.Or(f.Mode, 0o600)
	switch {
	case mode&^0o666 != 0:
		return spot{}, nil, fault.New(fault.Invalid, "the file %s is to have mode %v: reading and writing bits alone would pass",
			f.Path, mode)
	case len(f.Data) > maxFile:
		return spot{}, nil, fault.New(fault.TooLarge, "the file %s would have %d octets; %d would pass", f.Path, len(f.Data),
			maxFile)
	case f.Link != "" && (f.Link != path.Base(f.Link) || f.Link == "." || f.Link == ".." || f.Link == "/"):
		return spot{}, nil, fault.New(fault.Invalid, "the link %s is to lead to %q: a name in its own directory would pass",
			f.Path, f.Link)
	}
	at, err := pl.locate(f.Path)
	if err != nil {
		return at, nil, err
	}
	a, unset, err := pl.placer.owner(f.Owner, f.Group, mode)
	if err != nil {
		return at, nil, fmt.Errorf("file %s: %w", f.Path, err)
	}
	a.Label = f.Label
	if known, ok := pl.own.Files[at.real]; ok && f.Label != "" && known.Unlabelled == f.Label {
		a.noLabel = true
	}
	if tell && f.Link == "" {
		pl.cannot(at.real, unset)
		if a.noLabel {
			pl.unlabelled(at.real, a.Label)
		}
	}
	return at, &state{Data: f.Data, Link: f.Link, attributes: a, same: f.Same}, nil
}

func (pl *plan) differ(real string, words []string) {
	pl.words = append(pl.words, real+" "+strings.Join(words, ", "))
}

func (pl *plan) cannot(real string, unset []string) {
	for _, words := range unset {
		pl.unset = append(pl.unset, real+": "+words)
	}
}

func (pl *plan) unlabelled(real, label string) { pl.unset = append(pl.unset, cannotLabel(real, label)) }

func cannotLabel(real, label string) string {
	return fmt.Sprintf("%s: label %s cannot be set here", real, label)
}

// planRemovals plans what is ours and no longer wanted.
func (pl *plan) planRemovals() {
	for _, real := range slices.Sorted(maps.Keys(pl.own.Files)) {
		if _, still := pl.wanted[real]; still {
			continue
		}
		known := pl.own.Files[real]
		at, err := pl.locate(known.Path)
		if err == nil && at.real != real {
			err = fmt.Errorf("it leads to %s now", at.real)
		}
		var e entry
		if err == nil {
			e, err = pl.look(at)
		}
		switch {
		case err != nil:
			pl.leave(real, err.Error())
		case !e.exists():
		case known.Shared && !pl.vacated[real]:
			if n := len(known.Entries) - len(leftIn(known.Entries)) - len(foundIn(known.Entries)); n > 0 {
				pl.leave(real, fmt.Sprintf("others have entries in it, and %d of ours stay with them", n))
			}
		case e.closed || e.kind == unix.S_IFDIR || e.found().digest() != known.Digest && !pl.vacated[real]:
			pl.leave(real, "it was changed since it was placed")
		default:
			pl.files[real] = known.Path
			pl.item(real, nil, pl.placer.foundAgain(e))
			pl.differ(real, []string{"is ours and no longer wanted"})
		}
	}
	for _, named := range pl.set.Absent {
		at, err := pl.locate(named)
		if err != nil {
			continue
		}
		_, isOurs := pl.own.Files[at.real]
		if e, err := pl.look(at); err == nil && e.exists() && !isOurs && pl.wanted[at.real] == nil {
			pl.left = append(pl.left, at.real+": it is not ours")
		}
	}
}

// leave says that a file is let go of.
func (pl *plan) leave(real, why string) {
	pl.left = append(pl.left, real+": "+why)
	pl.differ(real, []string{"is no longer wanted and will be left: " + why})
}

// checkTree refuses a set in which a file is also a directory.
func (pl *plan) checkTree() error {
	for _, m := range pl.journal.Made { // where a directory is there, the file has been refused for it
		if _, both := pl.wanted[m.Path]; both {
			return fault.New(fault.Invalid, "the placement %s wants %s as a file and as a directory", pl.set.Name, m.Path)
		}
	}
	return nil
}
