package loop

import (
	"encoding/pem"
	"fmt"
	"slices"

	"chancery/internal/agent/recipe"
)

// This file is about certificates that peers pin (PlannedCertificate.Announce). A peer that pins knows one certificate and
// refuses every other, so a new one must be with all of them before it is shown to any. It is issued, kept as the next one,
// and reported; the authority gives it to all who pin, sees in their reports that they hold it, and releases it; only then is
// it placed. Until then the old one is served.
//
// One that is not released is never placed, not even where the old one has ended, or where there is none and the authority is
// away: whoever pins would refuse it, and a peer that holds nothing new can only be told by the authority. What was asked for
// by hand (agent place --offline) is placed by hand: nobody is there to release it.

// mostAnnounced bounds what a report holds of them.
const mostAnnounced = 8

// released is which of two certificates may be placed. It is the old one, or none, while the new one waits.
func (w *work) released(planned recipe.PlannedCertificate, current, next *held) (*held, error) {
	if planned.Announce == "" || slices.Contains(w.order.Released, next.serial()) {
		return next, nil
	}
	w.waits = true
	waits := fmt.Sprintf("certificate %s was issued and is placed once all who pin it under %s hold it", next.serial(), planned.Announce)
	switch {
	case current == nil:
		w.notes = append(w.notes, waits)
		return nil, nil
	case w.now.After(current.leaf().NotAfter):
		return current, fmt.Errorf("ALARM: certificate %s, which is placed, has ended, and its successor is not released: %s", current.serial(), waits)
	case slices.Contains(w.order.Revoked, current.serial()):
		return current, fmt.Errorf("ALARM: certificate %s, which is placed, is revoked, and its successor is not released: %s", current.serial(), waits)
	}
	w.notes = append(w.notes, waits)
	return current, nil
}

// announced are the certificates that others are to pin: one that was issued, until it is placed, and one that is placed and that the
// authority does not know as such, because nobody was to pin it when it was asked for, or because it was restored from an older backup.
// What is released is announced all the same. The authority has those who pin forget what is neither announced nor placed, and
// this pass may have failed to place what the next one places.
func (w *work) announced() []string {
	var all []string
	take := func(h *held) {
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.leaf().Raw}))
		if len(all) < mostAnnounced && !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	upkeep := &folder{state: w.folder.state, name: w.folder.name + "/" + dirUpkeep}
	for _, plan := range []*recipe.Plan{w.record.Plan, w.plan} {
		if plan == nil {
			continue
		}
		for _, planned := range plan.Certificates {
			if planned.Announce == "" {
				continue
			}
			for _, from := range []*folder{w.folder, upkeep} {
				if next, err := from.held(planned.ID, suffixNext); err == nil && next != nil {
					take(next)
				}
			}
			current, err := w.folder.held(planned.ID, suffixHeld)
			if err == nil && current != nil && !w.now.After(current.leaf().NotAfter) &&
				!slices.Contains(slices.Concat(w.order.Released, w.order.Revoked), current.serial()) {
				take(current)
			}
		}
	}
	return all
}
