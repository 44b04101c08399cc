package chaos

import (
	"fmt"
	"io"
	"strings"
	"time"

	"chancery/internal/run/bench"
)

// bounds are what the time from a strike to the next issuance is held against, in seconds. Each is that of one strike while all else is well,
// so a strike is judged by it only where no other befell the authority before somebody had issued again.
var bounds = []struct {
	name  string
	bound float64
	home  bool // only what callers of the struck node issue counts
}{
	{"node-kill", 2, true},
	{"primary-process", 15, false},
	{"primary-machine", 35, false},
	{"primary-frozen", 35, false},
	{"primary-cut", 35, false},
	{"standby-frozen", 10, false},
	{"standby-cut", 10, false},
}

// leastAlone is how many strikes of each bound must stand alone: a run begins with one of each, within which nothing else strikes.
const leastAlone = 1

// recovery is how long after a strike the first certificate was acknowledged that was asked for since: of the struck node's own callers where
// the bound is that of a node.
func recovery(calls []Call, budget, struck string, at time.Time) (took time.Duration, ok bool) {
	home := false
	for _, b := range bounds {
		home = home || b.name == budget && b.home
	}
	for _, c := range calls {
		if c.Act != Issue || c.Outcome != Acknowledged || c.Last.Before(at) || home && c.Client != "steady-"+struck {
			continue
		}
		if now := c.End.Sub(at); !ok || now < took {
			took, ok = now, true
		}
	}
	return took, ok
}

// recovered is a strike that has a bound, and what came of it.
type recovered struct {
	Call                  // the strike
	took    time.Duration // until the next issuance
	again   bool          // there was one
	amongst []Call        // other strikes that were not healed when it struck, or struck before somebody had issued again
}

// alone reports whether the strike is judged.
func (r *recovered) alone() bool { return len(r.amongst) == 0 }

func (r *recovered) String() string {
	if !r.again {
		return fmt.Sprintf("no issuance after %s %s at %s", r.Name, r.Node, r.Last.Format(clock))
	}
	return fmt.Sprintf("%s after %s %s at %s", r.took.Round(time.Millisecond), r.Name, r.Node, r.Last.Format(clock))
}

// recoveries are the strikes of a history that have a bound, by its name. Where nobody issued again, what struck until it was healed counts as other
// strikes, and no more: else whatever struck ever after would excuse it.
func recoveries(calls []Call) map[string][]recovered {
	var strikes []Call
	for _, c := range calls {
		if c.Act == Fault {
			strikes = append(strikes, c)
		}
	}
	all := map[string][]recovered{}
	for i, c := range strikes {
		if c.Budget == "" {
			continue
		}
		r := recovered{Call: c}
		until := c.End
		if r.took, r.again = recovery(calls, c.Budget, c.Node, c.Last); r.again {
			until = c.Last.Add(r.took)
		}
		for j, other := range strikes {
			if i != j && other.Begin.Before(until) && other.End.After(c.Begin) {
				r.amongst = append(r.amongst, other)
			}
		}
		all[c.Budget] = append(all[c.Budget], r)
	}
	return all
}

// goesOn wants somebody to have issued again after each strike that has a bound, and enough strikes of each bound to have stood alone.
func (c *checker) goesOn() {
	all := recoveries(c.calls)
	for _, b := range bounds {
		judged := 0
		for _, r := range all[b.name] {
			if !r.again {
				c.find(GoesOn, "%s", &r)
			}
			if r.again && r.alone() {
				judged++
			}
		}
		if judged < leastAlone {
			c.find(Nothing, "of %d strikes that %s bounds %d stood alone, and %d must: there is nothing to judge by", len(all[b.name]), b.name, judged, leastAlone)
		}
	}
}

// reportBounds prints each bound with the worst of the strikes that stood alone, and below it, one by one, those that did not and are not judged.
func reportBounds(out io.Writer, calls []Call) {
	all := recoveries(calls)
	for _, b := range bounds {
		line := bench.Budget{Name: "chaos-" + b.name, Unit: "s", Bound: b.bound, Unknown: true}
		var worst *recovered
		judged, never := 0, false
		for i := range all[b.name] {
			r := &all[b.name][i]
			if !r.alone() {
				continue
			}
			judged++
			never = never || !r.again
			if worst == nil || !r.again || worst.again && r.took > worst.took {
				worst = r
			}
		}
		if judged >= leastAlone && !never {
			line.Unknown, line.Measured = false, worst.took.Seconds()
		}
		fmt.Fprintf(out, "%s\n", line)
		if worst != nil {
			fmt.Fprintf(out, "          the worst of %d that stood alone: %s\n", judged, worst)
		}
		for i := range all[b.name] {
			if r := &all[b.name][i]; !r.alone() {
				fmt.Fprintf(out, "          not judged: %s, within another strike: %s\n", r, told(r.amongst))
			}
		}
	}
}

// told names strikes, and when they were.
func told(strikes []Call) string {
	var all []string
	for _, c := range strikes {
		all = append(all, fmt.Sprintf("%s %s, %s to %s", c.Name, c.Node, c.Begin.Format(clock), c.End.Format(clock)))
	}
	return strings.Join(all, "; ")
}
