package loop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/fault"
)

// Result is what a pass saw.
type Result struct {
	Host         string               `json:"host"`
	Observations []client.Observation `json:"placements"`
	Problems     []string             `json:"problems,omitempty"` // that concern the whole host
}

// Done reports whether every placement is in place, and probed where it can be.
func (r *Result) Done() bool {
	for _, o := range r.Observations {
		switch o.State {
		case client.PlacementServed, client.PlacementPlaced, client.PlacementDown:
		default:
			return false
		}
	}
	return true
}

// Once repairs what a crash left, asks the authority what the host shall hold, converges to it as far as can be done, and
// reports. Without the authority it converges to what was last known. An error is of what kept it from trying.
func (a *Agent) Once(ctx context.Context) (*Result, error) {
	if _, err := a.Repair(ctx); err != nil {
		return nil, err
	}
	desired, problems, err := a.fetch(ctx)
	if err != nil {
		return nil, err
	}
	result, err := a.pass(ctx, desired, problems)
	if err != nil {
		return nil, err
	}
	a.report(ctx, desired, result, true)
	return result, nil
}

// Repair ends what a crash left in the middle, from the journal alone: it needs no network, and tells no consumer.
func (a *Agent) Repair(ctx context.Context) ([]string, error) {
	a.state.now, a.state.log = a.now, a.log
	return a.placer.Repair(ctx)
}

// pass converges every placement of a desired state, one after the other.
func (a *Agent) pass(ctx context.Context, d *client.Desired, problems []string) (*Result, error) {
	now := a.now()
	result := &Result{Host: d.Host, Problems: problems}
	problem := func(text string) {
		if text != "" {
			result.Problems = append(result.Problems, text)
		}
	}
	// An authority that knows this host no more, because its identity ended, lets it renew that identity all the same.
	if !a.away() || a.refused() && now.After(a.identity().pair.Leaf.NotAfter) {
		if err := a.renewIdentity(ctx, d.IdentityAfter, now); err != nil {
			problem(err.Error())
			a.log.Warn("identity not renewed", "because", err)
		}
	}
	t, err := parseTrusts(d)
	if err != nil {
		return nil, err
	}
	for _, set := range t.all() {
		set.prune(now)
		set.load = func() {
			for _, wrong := range a.loadCRLs(ctx, set, now) {
				problem(wrong)
			}
		}
	}
	a.trustEnds = t.ends(now)
	if err := a.beginProofs(ctx, d, now); err != nil {
		problem(err.Error())
	}
	listed := map[string]bool{}
	for _, order := range d.Placements {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		o := a.converge(ctx, order, d, t, now)
		listed[o.Placement] = true
		result.Observations = append(result.Observations, o)
		a.beat()
	}
	if err := a.letGo(listed); err != nil {
		problem(err.Error())
	}
	for _, wrong := range a.prove(ctx, d, t, now) {
		problem(wrong)
	}
	problem(a.clockProblem())
	return result, nil
}

// refused reports whether the authority was reached the last time, and refused this host for what it is.
func (a *Agent) refused() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.api != nil && standing(a.gone)
}

// letGo marks the placements that are not desired any more. Their files stay: a consumer that still reads them must not
// fail because of what came over the network. They are not renewed, and the agent's status says so.
func (a *Agent) letGo(listed map[string]bool) error {
	names, err := a.state.folders()
	if err != nil {
		return err
	}
	for _, name := range names {
		if listed[name] {
			continue
		}
		folder, err := a.state.folder(name)
		if err != nil {
			return err
		}
		record, err := folder.record()
		if err != nil {
			return err
		}
		if record.Gone || record.Offline != nil {
			continue
		}
		record.Gone = true
		if err := folder.keepRecord(record); err != nil {
			return err
		}
		a.log.Info("placement is not desired any more; its files stay as they are", "placement", name)
	}
	return nil
}

// report tells the authority what was seen: at once where it is new, and now and then where it is not.
func (a *Agent) report(ctx context.Context, d *client.Desired, result *Result, always bool) {
	if a.away() {
		return
	}
	out := client.Report{Agent: a.version, Generation: a.identity().Generation, ETag: d.ETag, Observations: result.Observations}
	for _, p := range result.Problems {
		out.Message = joined(out.Message, p)
	}
	out.Message = cut(out.Message, mostMessage)
	timeless := out
	timeless.Observations = nil
	for _, o := range out.Observations {
		o.At = time.Time{}
		timeless.Observations = append(timeless.Observations, o)
	}
	text, err := json.Marshal(timeless)
	if err != nil {
		return
	}
	now := a.now()
	if !always && string(text) == a.reported && now.Sub(a.reportedAt) < a.pace.Heartbeat {
		return
	}
	if err := a.api.Report(ctx, out); err != nil {
		a.log.Warn("report not taken", "because", err)
		result.Problems = append(result.Problems, "the report was not taken: "+err.Error())
		return
	}
	a.reported, a.reportedAt = string(text), now
}

func sameJSON(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// Run converges until ctx ends. A poll waits beside it for the authority to say something new; the host itself is looked at
// every few minutes, and when something is due. Nothing that fails ends it.
func (a *Agent) Run(ctx context.Context) error {
	if a.api == nil {
		return fault.New(fault.Conflict, "this host has not joined").WithHint("chancery agent join --token-file F --state %s", a.state.dir)
	}
	if mended, err := a.Repair(ctx); err != nil {
		a.log.Error("repair", "error", err)
	} else {
		for _, m := range mended {
			a.log.Warn("repaired", "what", m)
		}
	}
	desired, lost, err := a.lastKnown()
	if err != nil {
		a.log.Error("the last desired state is of no use, and is asked for anew", "error", err)
		lost = err.Error()
	}
	etag := ""
	if desired != nil {
		etag = desired.ETag
	}
	news := make(chan told)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.watch(ctx, etag, news)
	}()
	defer func() { <-done }()
	problems := nonEmpty(lost)
	beats, end := a.beats()
	defer end()
	for {
		a.beat()
		if desired != nil {
			a.passAndReport(ctx, desired, problems)
		}
		fresh := a.await(ctx, a.untilDue(desired), news, beats)
		switch {
		case ctx.Err() != nil:
			if fresh.taken != nil {
				fresh.taken <- false
			}
			return nil
		case fresh.desired != nil:
			problem, err := a.takeDesired(fresh.desired)
			fresh.taken <- err == nil
			if err != nil {
				a.log.Error("what the authority sent is not taken, and is asked for again", "error", err)
				problems = []string{"what the authority sent is not taken, and is asked for again: " + err.Error()}
				continue
			}
			desired, problems = fresh.desired, nonEmpty(lost, problem)
			lost = ""
		}
	}
}

// await waits for news, until something is due, or until ctx ends; it brings nothing where there is no news.
func (a *Agent) await(ctx context.Context, d time.Duration, news <-chan told, beats <-chan time.Time) told {
	wait := time.NewTimer(d)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return told{}
		case fresh := <-news:
			return fresh
		case <-wait.C:
			return told{}
		case <-beats:
			a.beat()
		}
	}
}

func (a *Agent) passAndReport(ctx context.Context, d *client.Desired, problems []string) {
	result, err := a.pass(ctx, d, problems)
	if err != nil {
		if ctx.Err() == nil {
			a.log.Error("pass", "error", err)
		}
		return
	}
	a.report(ctx, d, result, false)
}

// told is what a poll brought; desired is nil where nothing is new. Whether it was taken is answered once.
type told struct {
	desired *client.Desired
	taken   chan bool // with room for one
}

// watch polls. What is new is handed on; nil is handed on when the authority is reached after it was away. What could not
// be taken, on a full disk say, is asked for again: only what was taken counts as known.
func (a *Agent) watch(ctx context.Context, etag string, news chan<- told) {
	hand := func(d *client.Desired) (taken bool) {
		t := told{desired: d, taken: make(chan bool, 1)}
		select {
		case news <- t:
		case <-ctx.Done():
			return false
		}
		if d == nil {
			return true
		}
		return <-t.taken
	}
	pause := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	failures, wait := 0, time.Duration(0)
	for ctx.Err() == nil {
		idle := time.AfterFunc(2*time.Second, func() { // into the wait
			if a.alone {
				releaseMemory()
			}
		})
		fresh, err := a.api.Desired(ctx, etag, wait)
		idle.Stop()
		if ctx.Err() != nil {
			return
		}
		returned := a.away()
		a.setGone(err)
		switch {
		case err == nil && fresh != nil:
			if !hand(fresh) {
				failures++
				pause(a.pace.backoff(failures))
				continue
			}
			failures, wait, etag = 0, a.pace.Wait, fresh.ETag
			pause(jitter(200 * time.Millisecond)) // whatever the node says, it is not asked without pause
		case err == nil:
			if failures, wait = 0, a.pace.Wait; returned {
				hand(nil)
			}
			pause(jitter(100 * time.Millisecond)) // a node that does not wait must not be asked without pause
		case standing(err):
			a.log.Error(a.advice(err))
			pause(jitter(a.pace.Standing))
		default:
			failures++
			p := a.pace.backoff(failures)
			if problem, ok := errors.AsType[*client.Problem](err); ok {
				p = max(p, problem.RetryAfter)
			}
			a.log.Warn("the authority is not reached", "error", err, "failures", failures, "again_in", p.Round(time.Second))
			pause(p)
		}
	}
}

// due is when the next thing is due that the agent knows of: a certificate, the identity.
func (a *Agent) due(d *client.Desired, now time.Time) time.Time {
	next := now.Add(jitter(a.pace.Pass))
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if id := a.identity(); id != nil {
		if at := dueAt(id.pair.Leaf, id.Host+"/identity"); at.After(now) {
			earlier(at)
		}
	}
	if d == nil {
		return next
	}
	for _, order := range d.Placements {
		name := order.Name
		if name == "" {
			name = order.Recipe
		}
		folder, err := a.state.folder(name)
		if err != nil {
			continue
		}
		if r, err := folder.record(); err == nil && r.Observed.RekeyAt.After(now) {
			earlier(r.Observed.RekeyAt)
		}
	}
	earlier(a.trustEnds)
	for _, t := range a.tries {
		if t.next.After(now) {
			earlier(t.next)
		}
	}
	if a.proveAt.After(now) {
		earlier(a.proveAt)
	}
	return next
}

// untilDue is how long to wait before the next look, a second at least.
func (a *Agent) untilDue(d *client.Desired) time.Duration {
	now := a.now()
	return max(time.Second, a.due(d, now).Sub(now))
}

// String is the outcome in one line.
func (r *Result) String() string {
	bad := 0
	for _, o := range r.Observations {
		if o.State == client.PlacementFailed || o.State == client.PlacementPending {
			bad++
		}
	}
	if bad == 0 {
		return fmt.Sprintf("%s: %d of %d placements are in place", r.Host, len(r.Observations), len(r.Observations))
	}
	return fmt.Sprintf("%s: %d of %d placements are not in place", r.Host, bad, len(r.Observations))
}
