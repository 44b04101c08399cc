package loop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"chancery/internal/agent/place"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// unplaced is the error of a placement that did not come about: what lay there before lies there still, or again.
type unplaced struct{ error }

func (u unplaced) Unwrap() error { return u.error }

// dirUpkeep is where in a placement's folder lies what is asked for while its last plan is kept up beside an order that
// cannot be carried out. What was asked for in the name of that order stays where it is.
const dirUpkeep = "upkeep"

// beside works on the last plan that was placed.
func (w *work) beside(do func() error) error {
	plan, asks := w.plan, w.asks
	w.plan, w.asks = w.record.Plan, &folder{state: w.folder.state, name: w.folder.name + "/" + dirUpkeep}
	defer func() { w.plan, w.asks = plan, asks }()
	return do()
}

// endUpkeep removes what was asked for while the last plan was kept up, once the order is carried out.
func (w *work) endUpkeep() error {
	if w.asks != w.folder {
		return nil
	}
	names, err := w.folder.state.list(dirPlacements, w.folder.name, dirUpkeep)
	for _, name := range names {
		err = errors.Join(err, w.folder.state.remove(dirPlacements, w.folder.name, dirUpkeep, name))
	}
	return err
}

// sources are where a certificate may lie that was issued and is not placed yet.
func (w *work) sources() []*folder {
	if w.asks == w.folder {
		return []*folder{w.folder}
	}
	return []*folder{w.folder, w.asks}
}

// loadCRLs brings the CRLs where a plan wants them.
func (w *work) loadCRLs(plan *recipe.Plan) {
	if t := w.trustOf(plan); uses(plan, "crls") && !t.loaded && t.load != nil {
		t.loaded = true
		t.load()
	}
}

// accepted refuses the last plan where the host does not accept its recipe, its paths or what it reads and runs any more: the
// host has the last word, and what it took back is not written or run. Nor is anything written where there is no trust for the
// plan's purpose any more.
func (w *work) accepted(plan *recipe.Plan) error {
	return errors.Join(w.agent.config.accepts(cmp.Or(w.record.Recipe, plan.Recipe)), w.agent.config.acceptsPaths(plan, w.agent.root),
		w.agent.config.acceptsReads(w.record.Reads, w.agent.root), w.knownPurpose(plan))
}

// trustFirst places the trust of now with the plan and the certificates of before, where those still do.
func (w *work) trustFirst(ctx context.Context) error {
	held, err := w.current()
	if err != nil {
		return nil // nothing is placed that the trust could go with
	}
	w.loadCRLs(w.plan)
	if w.check(held) != nil {
		return nil
	}
	_, err = w.trustWith(ctx, held)
	return err
}

// trustAlone places the trust of now where the certificates of before serve nobody any more, and better ones cannot be had yet.
// Those stay, and are not judged, for they were placed when they were good; the trust is. It may be what lets the host get
// others: peers wait until it pins their certificates, and a rollout until it trusts who issues next.
func (w *work) trustAlone(ctx context.Context) (placed bool, err error) {
	held, err := w.current()
	if err != nil || w.lastGood() != nil {
		return false, nil // nothing is placed, or it does, and goes with the trust or not at all
	}
	w.loadCRLs(w.plan)
	if err := probe.CheckTrust(w.material(nil, w.plan), w.plan, w.now); err != nil {
		return false, err
	}
	return w.trustWith(ctx, held)
}

// trustWith places the trust of now with certificates that are placed.
func (w *work) trustWith(ctx context.Context, held map[string]*held) (placed bool, err error) {
	want := w.materials(held)
	goal, err := digestsOf(w.plan, want)
	if err != nil {
		return false, err
	}
	w.goal = goal
	if before := w.record.Placed; goal.Anchors == before.Anchors && goal.CRLs == before.CRLs && goal.Pinned == before.Pinned {
		return false, nil
	}
	err = w.change(ctx, held, want, goal)
	return err == nil, err
}

// keepUp looks after what was placed before, where what is wanted now cannot be had: its trust is that of now, its
// certificates are replaced when that is due, and drift is repaired.
func (w *work) keepUp(ctx context.Context) error {
	last := w.record.Plan
	if last == nil {
		return nil // why there is nothing has been said
	}
	if err := w.accepted(last); err != nil {
		return fmt.Errorf("what was placed before is left as it is: %w", err)
	}
	same := w.plan != nil && sameJSON(w.plan, last)
	w.loadCRLs(last)
	return w.beside(func() error {
		if !same {
			w.notes = append(w.notes, fmt.Sprintf("what was placed before, by recipe %s, is kept up meanwhile", last.Recipe))
		}
		held, err := w.kept(ctx, same)
		settled := false
		if err == nil && held != nil {
			if err = w.check(held); err == nil {
				settled = true
				err = w.settle(ctx, held)
				if _, not := errors.AsType[unplaced](err); !not {
					return err
				}
			}
		}
		if err != nil {
			w.fail(err)
		}
		if !settled {
			placed, err := w.trustAlone(ctx)
			if err != nil {
				w.fail(fmt.Errorf("place the trust: %w", err))
			}
			if placed {
				return nil
			}
		}
		return w.fallBack(ctx)
	})
}

// kept are the certificates to keep the last plan up with; none where that cannot be done. Where the order is that plan,
// better ones have been asked for already, and what could not be placed is not tried once more.
func (w *work) kept(ctx context.Context, same bool) (map[string]*held, error) {
	all := map[string]*held{}
	for _, planned := range w.plan.Certificates {
		var h *held
		var err error
		if same {
			h, err = w.folder.held(planned.ID, suffixHeld)
			if h != nil {
				if why := w.replace(h, planned); why != "" && why != whyDue {
					return nil, nil
				}
			}
		} else if h, err = w.candidate(ctx, planned); err != nil && h != nil {
			w.fail(fmt.Errorf("certificate %s: %w", planned.ID, err))
			err = nil
		}
		if err != nil || h == nil {
			return nil, err
		}
		all[planned.ID] = h
	}
	return all, nil
}

// fallBack keeps what was placed as it was placed, where nothing newer can be. Where something newer was begun and stays,
// because what was placed before serves nobody any more, it is left alone.
func (w *work) fallBack(ctx context.Context) error {
	_, m, err := w.placedSet()
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if w.back || w.record.Owed != "" && w.lastGood() == nil {
		return nil
	}
	return w.mind(ctx, m)
}

// current are the certificates that are placed, one for each of the plan.
func (w *work) current() (map[string]*held, error) {
	all := map[string]*held{}
	for _, planned := range w.plan.Certificates {
		h, err := w.folder.held(planned.ID, suffixHeld)
		if err != nil {
			return nil, err
		}
		if h == nil {
			return nil, fault.New(fault.NotFound, "no certificate %s is placed", planned.ID)
		}
		all[planned.ID] = h
	}
	return all, nil
}

// lastGood is the set that was placed before; nil where there is none, or where it is not worth going back to: a certificate
// that ended or is revoked serves nobody, and hides that something must be done.
func (w *work) lastGood() *place.Set {
	set, m, err := w.placedSet()
	if err != nil {
		return nil
	}
	plan := *w.record.Plan
	plan.Trust.CRLs = false // a list that ended is no reason to keep a new set that fails
	if of := m[""]; of != nil && probe.CheckTrust(&probe.Material{Anchors: of.Anchors, Issuers: of.Issuers, Pinned: of.Pinned}, &plan, w.now) != nil {
		return nil
	}
	for _, planned := range plan.Certificates {
		of := *m[planned.ID]
		of.CRLs = nil
		revoked := slices.Contains(w.order.Revoked, cert.FormatSerial(of.Path[0].SerialNumber))
		if revoked || probe.Check(&of, &plan, planned, w.now) != nil {
			return nil
		}
	}
	return set
}

// placedSet renders what the record says is placed.
func (w *work) placedSet() (*place.Set, map[string]*probe.Material, error) {
	plan := w.record.Plan
	if plan == nil {
		return nil, nil, fault.New(fault.NotFound, "nothing is placed yet")
	}
	var kept keptTrust
	if found, err := w.folder.state.readJSON(&kept, dirPlacements, w.folder.name, fileTrust); err != nil || !found {
		return nil, nil, errors.Join(err, fault.New(fault.NotFound, "no trust is placed yet"))
	}
	m := map[string]*probe.Material{}
	if len(plan.Certificates) == 0 {
		var err error
		if m[""], err = kept.material(nil, w.now); err != nil {
			return nil, nil, err
		}
	}
	for _, planned := range plan.Certificates {
		h, err := w.folder.held(planned.ID, suffixHeld)
		if err != nil {
			return nil, nil, err
		}
		if h == nil {
			return nil, nil, fault.New(fault.NotFound, "no certificate %s is placed", planned.ID)
		}
		if m[planned.ID], err = kept.material(h, w.now); err != nil {
			return nil, nil, err
		}
	}
	set, err := w.render(plan, m)
	return &set, m, err
}
