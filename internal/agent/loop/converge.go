package loop

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/agent/place"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// work is one pass over one placement.
type work struct {
	agent  *Agent
	order  client.DesiredPlacement
	host   recipe.Host
	pool   string
	trust  *trust
	now    time.Time
	folder *folder
	record *Record

	plan  *recipe.Plan
	facts recipe.Facts
	seen  *probe.Seen // on the live port, the last time
	down  bool
	wrong []string // what is not as desired
	notes []string // what is worth saying all the same
}

// fail notes what is not as desired.
func (w *work) fail(err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if !slices.Contains(w.wrong, line) {
			w.wrong = append(w.wrong, line)
		}
	}
}

// converge makes one placement as desired, as far as it can be done now, and says what was seen. Nothing that goes wrong
// with one placement stops another.
func (a *Agent) converge(ctx context.Context, order client.DesiredPlacement, d *client.Desired, t *trust, now time.Time) client.Observation {
	if order.Name == "" {
		order.Name = order.Recipe
	}
	w := &work{agent: a, order: order, pool: d.Pool, trust: t, now: now, host: hostOf(d)}
	folder, err := a.state.folder(order.Name)
	if err != nil {
		return client.Observation{Placement: order.Name, State: client.PlacementFailed, Message: err.Error(), At: now}
	}
	w.folder = folder
	if w.record, err = folder.record(); err != nil {
		return client.Observation{Placement: order.Name, State: client.PlacementFailed, Message: err.Error(), At: now}
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

// run is the pass: what is wanted, with which certificates, and whether the host has it. Certificates are asked for only
// after the plan has shown that they can be placed here.
func (w *work) run(ctx context.Context) error {
	if err := w.resolve(ctx); err != nil {
		return err
	}
	if uses(w.plan, "crls") && !w.trust.loaded {
		w.trust.loaded = true
		w.trust.load()
	}
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
	if complete {
		err := w.check(held)
		if err == nil {
			return w.settle(ctx, held)
		}
		w.fail(err)
	}
	return w.fallBack(ctx)
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
	rules, err := r.FactRules(w.order.Parameters)
	if err != nil {
		return err
	}
	facts, unknown, err := probe.Gather(ctx, a.system, rules)
	if err != nil {
		return err
	}
	w.facts = mentioned(r, facts)
	if w.plan, err = r.Resolve(w.host, w.order.Parameters, facts); err != nil {
		if len(unknown) > 0 {
			err = fmt.Errorf("%w (not known of this host: %s)", err, strings.Join(unknown, "; "))
		}
		return err
	}
	w.notes = append(w.notes, w.plan.Notes...)
	a.config.replaceSteps(w.order.Recipe, w.plan)
	return a.config.acceptsPaths(w.plan, a.root)
}

// replaceSteps puts the host's own argument vectors in the place of the recipe's.
func (c *Config) replaceSteps(name string, plan *recipe.Plan) {
	own := c.Steps[name]
	replace := func(s *recipe.Step) {
		vector, ok := own[s.Name]
		switch {
		case !ok:
		case s.Action != "":
			s.With = withProgram(s.With, vector)
		default:
			s.Command, s.Signal = vector, nil
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
		p.Command, p.Address = vector, ""
		plan.Probe = &p
	}
}

// acceptsPaths refuses a plan with a path that this host does not accept, before a certificate is asked for. A consumer's
// configuration may name paths that have the root before them already.
func (c *Config) acceptsPaths(plan *recipe.Plan, root string) error {
	var outside []string
	look := func(path string) {
		if below, ok := strings.CutPrefix(path, filepath.Clean(root)+"/"); ok && root != "" {
			path = "/" + below
		}
		for _, prefix := range c.Paths {
			if path == prefix || strings.HasPrefix(path, prefix+"/") {
				return
			}
		}
		if !slices.Contains(outside, path) {
			outside = append(outside, path)
		}
	}
	for _, d := range plan.Directories {
		look(d.Path)
	}
	for _, f := range plan.Files {
		look(f.Path)
		if f.PasswordFile != "" {
			look(f.PasswordFile)
		}
	}
	if outside == nil {
		return nil
	}
	return fault.New(fault.Denied, "this host accepts files under %s, and not %s", strings.Join(c.Paths, ", "), strings.Join(outside, ", ")).
		WithHint("name a prefix of it in paths in %s", ConfigFile)
}

// check judges everything for this consumer before a file is touched (law 3). What was issued and does not pass is
// dropped, so that another is asked for; what is placed stays where it is.
func (w *work) check(held map[string]*held) error {
	var wrong []error
	for _, planned := range w.plan.Certificates {
		h := held[planned.ID]
		err := probe.Check(w.trust.material(h, w.plan), w.plan, planned, w.now)
		if err == nil {
			continue
		}
		wrong = append(wrong, err)
		next, looked := w.folder.held(planned.ID, suffixNext)
		if looked == nil && next != nil && next.serial() == h.serial() && !w.judgedByTrust(h, planned) {
			wrong = append(wrong, w.folder.drop(planned.ID, suffixNext))
		}
	}
	return errors.Join(wrong...)
}

// judgedByTrust reports whether a certificate does by itself, so that it was the CRLs that did not pass: a new certificate
// would not mend that.
func (w *work) judgedByTrust(h *held, planned recipe.PlannedCertificate) bool {
	m := w.trust.material(h, w.plan)
	m.CRLs = nil
	plan := *w.plan
	plan.Trust.CRLs = false
	return probe.Check(m, &plan, planned, w.now) == nil
}

func (w *work) materials(held map[string]*held) map[string]*probe.Material {
	m := map[string]*probe.Material{}
	for id, h := range held {
		m[id] = w.trust.material(h, w.plan)
	}
	return m
}

// settle brings the host to what is wanted, which has been checked. Where both the trust and a key change, the trust is
// placed first, with the certificates of before: no host shows a certificate that its own consumers do not trust yet, and
// a new key that fails does not keep a revocation from taking effect.
func (w *work) settle(ctx context.Context, held map[string]*held) error {
	want := w.materials(held)
	goal, err := digestsOf(w.plan, want)
	if err != nil {
		return err
	}
	before := w.record.Placed
	if goal == before && w.record.Owed == "" {
		return w.mind(ctx, want)
	}
	if before.Plan == goal.Plan && before.Keys != goal.Keys && (before.Anchors != goal.Anchors || before.CRLs != goal.CRLs) {
		if current, err := w.current(); err == nil && w.check(current) == nil {
			m := w.materials(current)
			step, err := digestsOf(w.plan, m)
			if err != nil {
				return err
			}
			if err := w.change(ctx, current, m, step); err != nil {
				w.fail(fmt.Errorf("place the trust: %w", err))
			}
		}
	}
	return w.change(ctx, held, want, goal)
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

// change places something new. That a reload is owed is written first, and taken back last: whoever comes after a crash
// knows that what lies on disk may not be what the consumer serves.
func (w *work) change(ctx context.Context, held map[string]*held, want map[string]*probe.Material, goal digests) error {
	a, what := w.agent, "place "+w.folder.name
	if !a.tries.may(what, w.now) {
		return fmt.Errorf("it could not be placed, and is tried again after %s", a.tries[what].next.UTC().Format("15:04:05"))
	}
	set, err := w.render(w.plan, want)
	if err != nil {
		return err
	}
	old := w.lastGood()
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
	began := w.now
	outcome, err := a.placer.Place(ctx, set, old, c)
	w.hear(c, outcome)
	if err != nil {
		a.tries.failed(what, w.now, a.pace)
		if outcome.RolledBack {
			w.record.Owed = ""
		}
		return err
	}
	a.tries.succeeded(what)
	if c.served == nil && !outcome.Down && len(outcome.Changed) == 0 {
		w.look(ctx, c) // nothing had to be done, so nobody looked
	}
	if err := w.promote(held, want, goal); err != nil {
		return err
	}
	w.after(ctx, began)
	w.record.Owed = ""
	return w.folder.keepRecord(w.record)
}

// hear takes up what a call of the placer said.
func (w *work) hear(c *consumer, o place.Outcome) {
	w.seen, w.down = c.served, o.Down
	w.record.Notes = append(grouped(o.Unset), o.Left...)
	w.record.Kept = append(w.record.Kept, o.Kept...)
	if len(o.Repaired) > 0 {
		w.mended(o.Repaired)
	}
	if c.skipped {
		w.notes = append(w.notes, "the new CRL revokes nothing more, so the consumer was not interrupted; it reads the list when it is told of something else")
	}
}

// promote keeps what is placed now as such.
func (w *work) promote(held map[string]*held, want map[string]*probe.Material, goal digests) error {
	for _, planned := range w.plan.Certificates {
		h := held[planned.ID]
		if err := w.folder.keepHeld(h, suffixHeld); err != nil {
			return err
		}
		next, err := w.folder.held(planned.ID, suffixNext)
		if err != nil {
			return err
		}
		if next != nil && next.serial() == h.serial() {
			if err := w.folder.drop(planned.ID, suffixNext); err != nil {
				return err
			}
		}
	}
	kept := keepTrust(want[w.plan.Certificates[0].ID])
	if err := w.folder.state.writeJSON(kept, dirPlacements, w.folder.name, fileTrust); err != nil {
		return err
	}
	w.record.Plan, w.record.Placed = w.plan, goal
	return nil
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
	for _, planned := range plan.Certificates {
		h, err := w.folder.held(planned.ID, suffixHeld)
		if err != nil {
			return nil, nil, err
		}
		if h == nil {
			return nil, nil, fault.New(fault.NotFound, "no certificate %s is placed", planned.ID)
		}
		if m[planned.ID], err = kept.material(h); err != nil {
			return nil, nil, err
		}
	}
	set, err := w.render(plan, m)
	return &set, m, err
}

// fallBack keeps what was placed as it was placed, where nothing newer can be.
func (w *work) fallBack(ctx context.Context) error {
	_, m, err := w.placedSet()
	if fault.Is(err, fault.NotFound) {
		return nil // why there is nothing has been said
	}
	if err != nil {
		return err
	}
	w.plan = w.record.Plan
	return w.mind(ctx, m)
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
