package loop

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"chancery/internal/agent/place"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// mind looks after what is placed already: drift is repaired, and a consumer that serves something else is told once more.
// Where all is as it should be nothing is written.
func (w *work) mind(ctx context.Context, want map[string]*probe.Material) error {
	set, err := w.render(w.plan, want)
	if err != nil {
		return err
	}
	drift, err := w.agent.placer.Difference(set)
	if err != nil {
		return err
	}
	c := w.consumer(w.plan, want, onlyAttributes(drift))
	if len(drift) > 0 || w.unconfirmed() {
		outcome, err := w.agent.placer.Place(ctx, set, nil, c)
		w.hear(c, outcome)
		if err != nil {
			return fmt.Errorf("repair what was changed (%s): %w", strings.Join(drift, "; "), err)
		}
		if len(drift) > 0 {
			w.mended(drift)
		}
		if c.served != nil || outcome.Down {
			w.sure = true
			return nil
		}
	}
	return w.look(ctx, c)
}

// onlyAttributes reports whether drift is of owners, modes and labels alone: then the consumer has read what it should, and
// need not be interrupted.
func onlyAttributes(drift []string) bool {
	return !slices.ContainsFunc(drift, func(words string) bool {
		return !strings.Contains(words, "has mode") && !strings.Contains(words, "belongs to") && !strings.Contains(words, "label") ||
			strings.Contains(words, "content") || strings.Contains(words, "missing") || strings.Contains(words, "cannot be read")
	})
}

// unconfirmed reports whether the consumer has not been seen to take what lies on disk.
func (w *work) unconfirmed() bool {
	placements, err := w.agent.placer.Placed()
	if err != nil {
		return false // whoever places next will say so
	}
	for _, p := range placements {
		if p.Name == w.folder.name {
			return p.Unconfirmed
		}
	}
	return false
}

// look probes. Where something else is served than what lies on disk, the consumer is told again, now and then.
func (w *work) look(ctx context.Context, c *consumer) error {
	if c.Down(ctx) {
		w.down, w.sure = true, true
		return nil
	}
	err := c.look(ctx)
	w.seen = c.served
	if w.sure = err == nil; w.sure {
		return nil
	}
	what := "reload " + w.folder.name
	if !w.agent.tries.may(what, w.now) {
		return err
	}
	w.agent.tries.failed(what, w.now, w.agent.pace)
	w.agent.log.Warn("the consumer does not serve what is placed, and is told again", "placement", w.folder.name, "because", err)
	c.gentle = false
	if again := c.Check(ctx); again != nil {
		return errors.Join(err, again)
	}
	if again := c.Reload(ctx); again != nil {
		return errors.Join(err, again)
	}
	if err := c.look(ctx); err != nil {
		w.seen = c.served
		return err
	}
	w.seen, w.sure = c.served, true
	w.agent.tries.succeeded(what)
	w.mended([]string{"it served something else than what is placed, and was told again: " + err.Error()})
	return nil
}

// mended notes drift that was repaired. It is told for a day.
func (w *work) mended(what []string) {
	if w.record.MendedAt.Before(w.now) {
		w.record.Repaired = nil // of an earlier pass
	}
	w.record.Repaired, w.record.MendedAt = append(w.record.Repaired, what...), w.now
	for _, one := range what {
		w.agent.log.Warn("drift repaired", "placement", w.folder.name, "what", one)
	}
}

// toldFor is how long a repair is told.
const toldFor = 24 * time.Hour

// render makes the files, with the password files that the agent made itself.
func (w *work) render(plan *recipe.Plan, m map[string]*probe.Material) (place.Set, error) {
	set, err := place.Render(plan, m, w.tools())
	if err != nil {
		return place.Set{}, err
	}
	if last := w.record.Plan; last != nil {
		if err := place.Withdraw(&set, last, w.tools()); err != nil {
			return place.Set{}, err
		}
	}
	set.Name, set.Adopt = w.folder.name, w.agent.adopts(w.folder.name)
	var ours []place.File
	for _, f := range plan.Files {
		known := func(o place.File) bool { return o.Path == f.PasswordFile }
		if f.PasswordFile == "" || slices.ContainsFunc(ours, known) {
			continue
		}
		password, err := w.folder.password(f.PasswordFile)
		if err != nil {
			return place.Set{}, err
		}
		if password != nil {
			ours = append(ours, passwordFile(plan, f, password))
		}
	}
	set.Files = append(ours, set.Files...)
	return set, nil
}

// mostPassword bounds the file of a password, of which the first line counts.
const mostPassword = 4 << 10

// password reads the password of a key store: that of the agent, where it made one, else the operator's file; where there
// is none, the agent makes one, keeps it, and places the file.
func (w *work) password(path string) ([]byte, error) {
	own, err := w.folder.password(path)
	if err == nil && own != nil && w.givenUp(path, own) {
		own, err = nil, w.folder.dropPassword(path)
	}
	if err != nil || own != nil {
		return own, err
	}
	text, err := place.ReadPlain(w.agent.root, path, mostPassword)
	if errors.Is(err, fs.ErrNotExist) {
		made := []byte(rand.Text())
		return made, w.folder.keepPassword(path, made)
	}
	if err != nil {
		return nil, fmt.Errorf("read the password of a key store: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return nil, fault.New(fault.Invalid, "the password file %s is empty; its first line is the password", path)
	}
	return []byte(line), nil
}
