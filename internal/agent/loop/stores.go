package loop

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/internal/agent/place"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// dirScratch is where in the state directory databases are made that only their own tools can write, one directory for each
// placement. Nothing in it is of use after the call that made it.
const dirScratch = "scratch"

// toolTimeout bounds a tool that changes a database.
const toolTimeout = 60 * time.Second

// tools are what files are rendered with: passwords, and the tools of databases.
func (w *work) tools() place.Sources {
	return place.Sources{
		Password: w.password,
		Run: func(args ...string) ([]byte, error) {
			w.agent.beat()
			return w.agent.system.Run(context.Background(), probe.Command{Args: args, Timeout: toolTimeout})
		},
		Scratch: filepath.Join(w.folder.state.dir, dirScratch, w.folder.name),
	}
}

// sweepScratch removes what an agent left that was killed while it made a database: a key and passwords are among it.
func (s *State) sweepScratch() error {
	if err := os.RemoveAll(s.path(dirScratch)); err != nil {
		return fmt.Errorf("remove what a database was made with: %w", err)
	}
	return nil
}

// departed notes which certificates left stores of others with the trust. Their owners hear of it for a day.
func (w *work) departed(told []string) {
	if len(told) == 0 {
		return
	}
	kept := slices.DeleteFunc(w.gone(), func(one string) bool { return slices.Contains(told, one) })
	w.record.Departed, w.record.LeftAt = append(kept, told...), w.now
	w.record.Departed = w.record.Departed[max(0, len(w.record.Departed)-mostListed):]
	for _, one := range told {
		w.agent.log.Warn("taken out of a store of others", "placement", w.folder.name, "what", one)
	}
}

// gone are those certificates.
func (w *work) gone() []string {
	if w.now.Sub(w.record.LeftAt) >= toldFor {
		w.record.Departed = nil
	}
	return w.record.Departed
}

// settledStores looks, before it is said that a trust set is in use, whether the stores that others have a part in are as they
// were placed: programs write to them, too, and one that brought back what has left would have its consumer trust it.
func (w *work) settledStores() error {
	plan := w.record.Plan
	if !slices.ContainsFunc(plan.Files, recipe.PlannedFile.Shared) {
		return nil
	}
	set, _, err := w.placedSet()
	if err != nil {
		return err
	}
	drift, err := w.agent.placer.Difference(*set)
	if err != nil {
		return err
	}
	drift = slices.DeleteFunc(drift, func(words string) bool {
		return !slices.ContainsFunc(plan.Files, func(f recipe.PlannedFile) bool { return f.Shared() && strings.HasPrefix(words, f.Path) })
	})
	if len(drift) > 0 && !onlyAttributes(drift) {
		return fault.New(fault.Conflict, "a store is not as it was placed, so the trust is not said to be in use: %s", strings.Join(drift, "; "))
	}
	return nil
}

// readers are the files of a plan's file that its consumer opens by name; none where it looks through a directory.
func readers(f recipe.PlannedFile) []string {
	switch {
	case f.Format == "nss":
		return []string{path.Join(f.Path, "cert9.db"), path.Join(f.Path, "key4.db")}
	case f.IsDirectory():
		return nil
	}
	return []string{f.Path}
}

// mostHeld bounds a file that a reload makes of many certificates.
const mostHeld = 16 << 20

// holds looks whether a file that the reload makes has every anchor in it. The others are not parsed: they are not ours.
func (c *consumer) holds(file string) error {
	text, err := place.ReadPlain(c.system.Root, file, mostHeld)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	there := map[[sha256.Size]byte]bool{}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		there[sha256.Sum256(block.Bytes)] = true
	}
	for _, anchor := range c.want[mainOf(c.plan)].Anchors {
		if !there[sha256.Sum256(anchor.Raw)] {
			return fault.New(fault.Conflict, "probe: %s does not hold %s, so it is not trusted yet", file, anchor.Subject)
		}
	}
	return nil
}

// passwordFile is the file of a password that the agent made: as the store, and for the consumer's user alone where others
// may read the store.
func passwordFile(plan *recipe.Plan, f recipe.PlannedFile, password []byte) place.File {
	p := place.File{Path: f.PasswordFile, Data: append(password, '\n'), Mode: f.Mode, Owner: f.Owner, Group: f.Group, Label: f.Label}
	if f.Mode&0o007 != 0 {
		p.Mode, p.Owner, p.Group = 0o600, cmp.Or(plan.User, f.Owner), plan.Group
	}
	return p
}

// givenUp reports whether a password that the agent made is of no use any more: there is another at its path, in a file that the
// agent did not place, so that its operator has brought the password that he means, for a store that was there before us.
func (w *work) givenUp(path string, own []byte) bool {
	placements, err := w.agent.placer.Placed()
	if err != nil {
		return false // whoever places next will say so
	}
	for _, p := range placements {
		if slices.Contains(p.Paths, path) {
			return false
		}
	}
	text, err := place.ReadPlain(w.agent.root, path, mostPassword)
	return err == nil && string(bytes.TrimRight(text, "\r\n")) != string(own)
}

func (f *folder) dropPassword(path string) error {
	return f.state.remove(dirPlacements, f.name, passwordName(path))
}
