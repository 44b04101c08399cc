package loop

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/agent/place"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// work is one pass over one placement.
type work struct {
	agent  *Agent
	order  client.DesiredPlacement
	host   recipe.Host
	pool   string
	trusts *trusts
	now    time.Time
	folder *folder
	asks   *folder // where what is asked for is kept until it is placed; not folder itself while the last plan is kept up
	record *Record

	plan  *recipe.Plan
	reads []recipe.Read // what plan was resolved from reads and runs
	facts recipe.Facts
	seen  *probe.Seen // on the live port, the last time
	goal  digests     // of the last that was to be placed
	waits bool        // a certificate is issued and waits for those who pin it
	sure  bool        // what the record says is placed was found on disk in this pass, and the consumer has taken it
	down  bool
	back  bool     // the old files were put back in this pass, and the consumer told
	wrong []string // what is not as desired
	notes []string // what is worth saying all the same
}

// fail notes what is not as desired, and what would mend it.
func (w *work) fail(err error) {
	for line := range strings.SplitSeq(said(err), "\n") {
		if !slices.Contains(w.wrong, line) {
			w.wrong = append(w.wrong, line)
		}
	}
}

// said is an error in lines, with the hints of what it was made of after it.
func said(err error) string {
	text := err.Error()
	for _, hint := range hints(err) {
		if hint = "hint: " + hint; !strings.Contains(text, hint) {
			text += "\n" + hint
		}
	}
	return text
}

// hints are the operator's next commands, outermost first.
func hints(err error) []string {
	hint := ""
	switch e := err.(type) {
	case *fault.Error:
		hint = e.Hint
	case *client.Problem:
		hint = e.Hint
	}
	var all []string
	if hint != "" {
		all = append(all, hint)
	}
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			all = append(all, hints(one)...)
		}
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			all = append(all, hints(inner)...)
		}
	}
	return all
}

// converge makes one placement as desired, as far as it can be done now, and says what was seen. Nothing that goes wrong
// with one placement stops another.
func (a *Agent) converge(ctx context.Context, order client.DesiredPlacement, d *client.Desired, t *trusts, now time.Time) client.Observation {
	if order.Name == "" {
		order.Name = order.Recipe
	}
	w := &work{agent: a, order: order, pool: d.Pool, trusts: t, now: now, host: hostOf(d)}
	folder, err := a.state.folder(order.Name)
	if err != nil {
		return client.Observation{Placement: order.Name, State: client.PlacementFailed, Message: said(err), At: now}
	}
	w.folder, w.asks = folder, folder
	if w.record, err = folder.record(); err != nil {
		return client.Observation{Placement: order.Name, State: client.PlacementFailed, Message: said(err), At: now}
	}
	w.record.Order, w.record.Gone = order.PlacementOrder, false
	w.record.Offline = nil
	if err := w.run(ctx); err != nil {
		w.fail(err)
	}
	o := w.observe()
	if err := w.keep(&o); err != nil {
		o.State, o.Message = client.PlacementFailed, joined(o.Message, err.Error())
	}
	if o.State == client.PlacementFailed {
		a.log.Warn("placement is not as desired", "placement", o.Placement, "because", o.Message)
	}
	return o
}

func hostOf(d *client.Desired) recipe.Host {
	return recipe.Host{Name: d.Host, DNS: d.DNS, IP: d.IP, Authority: d.Trust.Authority}
}

// run is the pass: what is wanted, with which certificates, and whether the host has it. Where what is wanted cannot be had
// now, what was placed before is kept up: an order that cannot be carried out stops nothing that works.
func (w *work) run(ctx context.Context) error {
	settled, err := w.follow(ctx)
	if err != nil {
		w.fail(err)
	}
	if settled {
		return nil
	}
	return w.keepUp(ctx)
}

// follow goes where the order says, and reports whether the host is there. Certificates are asked for only after the plan
// has shown that they can be placed here.
func (w *work) follow(ctx context.Context) (settled bool, err error) {
	if err := w.resolve(ctx); err != nil {
		return false, err
	}
	w.loadCRLs(w.plan)
	held := map[string]*held{}
	complete := true
	for _, planned := range w.plan.Certificates {
		h, err := w.candidate(ctx, planned)
		if err != nil {
			w.fail(fmt.Errorf("certificate %s: %w", planned.ID, err))
		}
		if h == nil {
			complete = false
			continue
		}
		held[planned.ID] = h
	}
	if !complete {
		return false, nil
	}
	if err := w.check(held); err != nil {
		if w.waits {
			return false, nil // the new one would do, and is not released; the old one is kept up as it is
		}
		return false, err
	}
	err = w.settle(ctx, held)
	_, not := errors.AsType[unplaced](err)
	return !not, err
}

// resolve makes the plan: recipe, parameters, facts, the host's own steps; and holds its paths against what is accepted.
func (w *work) resolve(ctx context.Context) error {
	a := w.agent
	r, err := a.config.recipe(w.order.Recipe, a.root)
	if err != nil {
		return err
	}
	if err := r.CheckParameters(w.order.Parameters); err != nil {
		return err
	}
	found, err := w.gather(ctx, r)
	if err != nil {
		return err
	}
	w.facts = mentioned(r, found.Facts)
	if w.plan, err = r.Resolve(w.host, w.order.Parameters, found.Facts); err != nil {
		if len(found.Unknown) > 0 {
			err = fmt.Errorf("%w (not known of this host: %s)", err, strings.Join(found.Unknown, "; "))
		}
		return err
	}
	w.notes = append(w.notes, w.plan.Notes...)
	a.config.replaceSteps(w.order.Recipe, w.plan)
	if w.reads, err = r.Reads(w.order.Parameters, found.Facts); err != nil {
		return err
	}
	if err := w.knownPurpose(w.plan); err != nil {
		return err
	}
	if err := a.config.acceptsPaths(w.plan, a.root); err != nil || sameJSON(w.plan, w.record.Plan) {
		return err // what is placed already is tried when it changes
	}
	return probe.Planned(ctx, a.system, w.plan)
}

// replaceSteps puts the host's own argument vectors in the place of the recipe's.
func (c *Config) replaceSteps(name string, plan *recipe.Plan) {
	own := c.Steps[name]
	replace := func(s *recipe.Step) {
		vector, ok := own[s.Name]
		switch {
		case !ok:
		case s.Action == actionDrop:
			s.With = withProgram(s.With, vector)
		default:
			s.Command, s.Signal, s.Action, s.With = vector, nil, "", nil
		}
	}
	for i := range plan.Checks {
		replace(&plan.Checks[i])
	}
	if plan.Reload != nil {
		step := *plan.Reload
		replace(&step)
		plan.Reload = &step
	}
	for i := range plan.After {
		replace(&plan.After[i])
	}
	if vector, ok := own["probe"]; ok && plan.Probe != nil {
		p := *plan.Probe
		p.Command, p.Address, p.Action, p.With = vector, "", "", nil
		p.Holds = ""
		plan.Probe = &p
	}
}

// check judges everything for this consumer before a file is touched (law 3). What was issued and does not pass is
// dropped, so that another is asked for; what is placed stays where it is.
func (w *work) check(held map[string]*held) error {
	var wrong []error
	if len(w.plan.Certificates) == 0 {
		return probe.CheckTrust(w.material(nil, w.plan), w.plan, w.now)
	}
	for _, planned := range w.plan.Certificates {
		h := held[planned.ID]
		err := probe.Check(w.material(h, w.plan), w.plan, planned, w.now)
		if err == nil {
			continue
		}
		wrong = append(wrong, err)
		next, looked := w.asks.held(planned.ID, suffixNext)
		if looked == nil && next != nil && next.serial() == h.serial() && !w.judgedByTrust(h, planned) {
			wrong = append(wrong, w.asks.drop(planned.ID, suffixNext))
		}
	}
	return errors.Join(wrong...)
}

// judgedByTrust reports whether a certificate does by itself, so that it was the CRLs that did not pass: a new certificate
// would not mend that.
func (w *work) judgedByTrust(h *held, planned recipe.PlannedCertificate) bool {
	m := w.material(h, w.plan)
	m.CRLs = nil
	plan := *w.plan
	plan.Trust.CRLs = false
	return probe.Check(m, &plan, planned, w.now) == nil
}

func (w *work) materials(held map[string]*held) map[string]*probe.Material {
	m := map[string]*probe.Material{}
	if len(w.plan.Certificates) == 0 {
		m[""] = w.material(nil, w.plan)
	}
	for id, h := range held {
		m[id] = w.material(h, w.plan)
	}
	return m
}

// settle brings the host to what is wanted, which has been checked. Where the trust changes and something else does too, the
// trust is placed first, with the plan and the certificates of before: no host shows a certificate that its own consumers do
// not trust yet, and a new key or plan that fails does not keep a revocation from taking effect.
func (w *work) settle(ctx context.Context, held map[string]*held) error {
	want := w.materials(held)
	goal, err := digestsOf(w.plan, want)
	if err != nil {
		return err
	}
	before := w.record.Placed
	w.goal = goal
	if goal == before && w.record.Owed == "" {
		w.ofOrder()
		if w.back {
			w.sure = true
			return nil // it was looked at a moment ago
		}
		return w.mind(ctx, want)
	}
	if w.asks == w.folder && w.record.Plan != nil && (before.Plan != goal.Plan || before.Keys != goal.Keys) && w.accepted(w.record.Plan) == nil {
		if err := w.beside(func() error { return w.trustFirst(ctx) }); err != nil {
			w.fail(fmt.Errorf("place the trust: %w", err))
		}
		w.goal = goal
	}
	return w.change(ctx, held, want, goal)
}

// change places something new. That a reload is owed is written first, and taken back last: whoever comes after a crash
// knows that what lies on disk may not be what the consumer serves.
func (w *work) change(ctx context.Context, held map[string]*held, want map[string]*probe.Material, goal digests) error {
	a, what := w.agent, "place "+w.asks.name
	if !a.tries.may(what, w.now) {
		return unplaced{fmt.Errorf("it could not be placed, and is tried again after %s", a.tries[what].next.UTC().Format("15:04:05"))}
	}
	set, err := w.render(w.plan, want)
	if err != nil {
		return unplaced{err}
	}
	old, before := w.lastGood(), w.record.Owed
	trusted := w.record.Owed == "" && w.record.Placed.trustStays(goal)
	owed := owedReload
	if w.record.Owed != owedReload && w.record.Placed.gently(goal) {
		owed = owedGentle
	}
	if w.record.Owed != owed {
		w.record.Owed = owed
		if err := w.folder.keepRecord(w.record); err != nil {
			return err
		}
	}
	c := w.consumer(w.plan, want, owed == owedGentle)
	if old != nil {
		if w.record.Ended == goal && c.Down(ctx) {
			w.down, w.record.Owed = true, before
			return unplaced{errEnded}
		}
		if h, err := w.folder.held(mainOf(w.record.Plan), suffixHeld); err == nil && h != nil {
			c.before = h.leaf()
		}
	}
	c.trusted = trusted
	began := w.now
	outcome, err := a.placer.Place(ctx, set, old, c)
	w.hear(c, outcome)
	if err != nil {
		a.tries.failed(what, w.now, a.pace)
		switch w.back = outcome.RolledBack; {
		case w.back:
			w.record.Owed, w.sure = "", true
			if w.record.Ended = (digests{}); c.ended {
				w.record.Ended = goal
			}
		case len(outcome.Changed) == 0:
			w.record.Owed = before // no file was touched
		}
		return unplaced{err}
	}
	if c.served == nil && !outcome.Down && len(outcome.Changed) == 0 { // nothing had to be done, so nobody looked
		if err := w.look(ctx, c); err != nil && w.record.Plan != nil && w.record.Placed.Plan != goal.Plan {
			a.tries.failed(what, w.now, a.pace)
			w.record.Owed = before
			return unplaced{err}
		} else if err != nil {
			w.fail(err)
		}
	} else {
		w.sure = true
	}
	a.tries.succeeded(what)
	if err := w.promote(held, want, goal); err != nil {
		return err
	}
	w.after(ctx, began)
	w.record.Owed, w.record.Ended = "", digests{}
	return w.folder.keepRecord(w.record)
}

// hear takes up what a call of the placer said.
func (w *work) hear(c *consumer, o place.Outcome) {
	w.seen, w.down = c.served, o.Down
	if c.late != nil {
		w.fail(c.late)
	}
	w.record.Notes = append(grouped(o.Unset), o.Left...)
	w.record.Kept = append(w.record.Kept, o.Kept...)
	if len(o.Repaired) > 0 {
		w.mended(o.Repaired)
	}
	w.departed(o.Told)
	if c.skipped {
		w.notes = append(w.notes, "the new CRL revokes nothing more, so the consumer was not interrupted; it reads the list when it is told of something else")
	}
}

// ofOrder notes that what is placed is what is ordered now.
func (w *work) ofOrder() {
	if w.asks == w.folder {
		w.record.Recipe, w.record.Reads = w.order.Recipe, w.reads
	}
}

// promote keeps what is placed now as such.
func (w *work) promote(held map[string]*held, want map[string]*probe.Material, goal digests) error {
	for _, planned := range w.plan.Certificates {
		h := held[planned.ID]
		h.along(want[planned.ID].Path)
		if err := w.folder.keepHeld(h, suffixHeld); err != nil {
			return err
		}
		for _, from := range w.sources() {
			next, err := from.held(planned.ID, suffixNext)
			if err != nil {
				return err
			}
			if next != nil && next.serial() == h.serial() {
				if err := from.drop(planned.ID, suffixNext); err != nil {
					return err
				}
			}
		}
	}
	kept := keepTrust(want[mainOf(w.plan)])
	w.record.CRLEnds = endOf(kept.CRLs)
	if err := w.folder.state.writeJSON(kept, dirPlacements, w.folder.name, fileTrust); err != nil {
		return err
	}
	if !w.record.Placed.sameTrust(goal) {
		w.record.Trust = 0 // until it is seen to be in use
	}
	w.record.Plan, w.record.Placed = w.plan, goal
	w.ofOrder()
	return w.endUpkeep()
}

// grouped joins texts of the form "PATH: WHAT" that say the same of many paths.
func grouped(texts []string) []string {
	paths := map[string][]string{}
	var order []string
	for _, text := range texts {
		path, what, ok := strings.Cut(text, ": ")
		if !ok {
			path, what = "", text
		}
		if _, known := paths[what]; !known {
			order = append(order, what)
		}
		paths[what] = append(paths[what], path)
	}
	var out []string
	for _, what := range order {
		if list := strings.Join(paths[what], ", "); list != "" {
			what += ": " + list
		}
		out = append(out, what)
	}
	return out
}

func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
