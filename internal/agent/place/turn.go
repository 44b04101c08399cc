package place

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
)

// Returner is a Consumer that is told in another way of old files that were put back, because it was told of new ones before.
type Returner interface {
	Return(ctx context.Context) error
}

// turn is one placement under way.
type turn struct {
	p   *Placer
	v   *view
	pl  *plan
	j   *journal
	c   Consumer
	out *Outcome
}

// take is law 3 of a placement, from the first file beside its target to the word of the consumer.
func (t *turn) take(ctx context.Context) error {
	if t.c != nil {
		asked, cancel := context.WithTimeout(ctx, t.p.limit)
		t.out.Down = t.c.Down(asked)
		cancel()
	}
	if err := t.p.writeJournal(t.j); err != nil {
		// The error may have come after the journal was there.
		return errors.Join(err, t.giveUp())
	}
	err := t.v.stage(t.j, t.pl.there)
	if err == nil {
		err = ctx.Err() // the last moment at which nothing has been changed
	}
	if err != nil {
		return errors.Join(fmt.Errorf("nothing was changed: %w", err), t.giveUp())
	}
	if err := t.p.enter(t.j, forward); err != nil {
		return errors.Join(err, t.goBack())
	}
	if err := t.v.forward(t.j); err != nil {
		return errors.Join(fmt.Errorf("put the files in place: %w", err), t.goBack())
	}
	t.changed()
	reason := t.convince(ctx)
	switch {
	case reason == nil:
		return t.p.finish(t.v, t.j, t.j.After, false)
	case ctx.Err() != nil:
		// Nobody said that the consumer does not take it. The set is whole; the next Place asks again.
		return errors.Join(fmt.Errorf("the files are in place, and it was interrupted: %w", reason),
			t.p.finish(t.v, t.j, t.j.After, true))
	case !t.pl.returns || !t.hasReturn():
		return errors.Join(fmt.Errorf("the files stay, for there is no valid old set to put back: %w", reason),
			t.p.finish(t.v, t.j, t.j.After, true))
	}
	return t.rollBack(ctx, reason)
}

// hasReturn reports whether going back would change anything.
func (t *turn) hasReturn() bool {
	for _, it := range t.j.Items {
		if it.New == nil || it.Back == nil || !it.New.matches(it.Back.entry()) {
			return true
		}
	}
	return len(t.j.Directories)+len(t.j.Made) > 0
}

// giveUp undoes a staging.
func (t *turn) giveUp() error {
	j, err := t.p.readJournal(t.j.Placement)
	if err != nil || j == nil {
		return err
	}
	if err := t.v.undo(t.j); err != nil {
		return fmt.Errorf("and what lies beside the files could not be removed yet: %w", err)
	}
	return t.p.dropJournal(t.j.Placement)
}

// goBack ends a placement that failed while its files were being put in place.
func (t *turn) goBack() error {
	err := t.p.enter(t.j, backward)
	if err == nil {
		err = t.v.backward(t.j)
	}
	if err == nil {
		err = t.p.finish(t.v, t.j, t.j.Before, t.pl.own.Unconfirmed)
	}
	if err != nil {
		return fmt.Errorf("and the old files could not be put back yet, which the next run or a repair does: %w", err)
	}
	return nil
}

// changed says what forward changed, and what was kept.
func (t *turn) changed() {
	for _, m := range t.j.Made {
		t.out.Changed = append(t.out.Changed, m.Path)
		t.noLabel(m.Path, m.attributes)
	}
	for _, d := range t.j.Directories {
		t.out.Changed = append(t.out.Changed, d.Path)
		t.noLabel(d.Path, d.New)
	}
	for _, it := range t.j.Items {
		if it.New.matches(t.pl.there[it.Path]) {
			continue
		}
		t.out.Changed = append(t.out.Changed, it.Path)
		if it.New != nil {
			t.noLabel(it.Path, it.New.attributes)
		}
		if it.Keep != "" {
			t.out.Kept = append(t.out.Kept, path.Join(path.Dir(it.Path), it.Keep))
		}
	}
}

func (t *turn) noLabel(real string, a attributes) {
	words := cannotLabel(real, a.Label)
	if a.noLabel && !slices.Contains(t.out.Unset, words) {
		t.out.Unset = append(t.out.Unset, words)
	}
}

// convince has the consumer check the new set, take it, and show that it did.
func (t *turn) convince(ctx context.Context) error {
	if t.c == nil {
		return nil
	}
	if err := t.ask(ctx, "check", t.c.Check); err != nil || t.out.Down {
		return err
	}
	t.out.Reloaded = true
	if err := t.ask(ctx, "reload", t.c.Reload); err != nil {
		return err
	}
	err := t.ask(ctx, "probe", t.c.Probe)
	t.out.Probed = err == nil
	return err
}

func (t *turn) ask(ctx context.Context, what string, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, t.p.limit)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := call(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// rollBack puts the old set back and tells the consumer, if it was told of the new one. It is not to be cancelled: that
// would leave a consumer with files it has not read.
func (t *turn) rollBack(ctx context.Context, reason error) error {
	ctx = context.WithoutCancel(ctx)
	if err := t.p.enter(t.j, backward); err != nil {
		return errors.Join(reason, fmt.Errorf("the new files stay, for going back could not be noted: %w", err))
	}
	if err := t.v.backward(t.j); err != nil {
		return errors.Join(reason,
			fmt.Errorf("and the old files could not be put back yet, which the next run or a repair does: %w", err))
	}
	t.out.RolledBack = true
	t.out.Changed, t.out.Kept = nil, nil
	reason = fmt.Errorf("the old files are back: %w", reason)
	var again error
	if t.out.Reloaded {
		tell := t.c.Reload
		if r, ok := t.c.(Returner); ok {
			tell = r.Return
		}
		if again = t.ask(ctx, "reload with the old files", tell); again != nil {
			reason = errors.Join(reason, again)
		}
	}
	t.out.Reloaded, t.out.Probed = false, false
	return errors.Join(reason, t.p.finish(t.v, t.j, t.j.Before, again != nil))
}
