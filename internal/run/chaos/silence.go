package chaos

import (
	"slices"
	"time"
)

// Silence is how long a node may leave all OCSP requests without an answer while it lives, and the member beside it too. A request alone
// may be left: what was issued or revoked a moment ago may not have reached the standby that the node reads at. It is also the time for a node to
// notice that its member is back.
const Silence = 15 * time.Second

// silence is a time in which a node answered no request by OCSP, from the first that it left until the last.
type silence struct {
	node     string
	from, to time.Time
	requests int
}

func (s *silence) length() time.Duration { return s.to.Sub(s.from) }

// silences are those of nodes that lived, beside members that lived. A node does not from when a fault stopped it until the next fault, before
// which all is well again; a member does not while it leaves a pulse unanswered.
func silences(calls []Call) (all []silence) {
	var faults []time.Time
	for _, call := range calls {
		if call.Act == Fault {
			faults = append(faults, call.Begin)
		}
	}
	slices.SortFunc(faults, time.Time.Compare)
	type span struct{ from, to time.Time }
	dead, asked := map[string][]span{}, map[string][]Call{}
	for _, call := range calls {
		switch {
		case call.Act == Pulse && call.Outcome != Acknowledged:
			dead[call.Node] = append(dead[call.Node], span{call.Begin, call.End})
		case call.Act == Fault && call.Stopped != "":
			until := call.End.AddDate(100, 0, 0)
			if i := slices.IndexFunc(faults, call.End.Before); i >= 0 {
				until = faults[i]
			}
			dead[call.Stopped] = append(dead[call.Stopped], span{call.Begin, until})
		case call.Act == OCSP:
			asked[call.Node] = append(asked[call.Node], call)
		}
	}
	for node, requests := range asked {
		slices.SortStableFunc(requests, func(a, b Call) int { return a.End.Compare(b.End) })
		died := func(from, to time.Time) bool {
			return slices.ContainsFunc(dead[node], func(s span) bool { return s.from.Before(to) && from.Before(s.to) })
		}
		var now silence
		for _, call := range requests {
			if now.requests > 0 && (call.Status != "" || died(now.from, call.End)) {
				all = append(all, now)
				now = silence{}
			}
			switch {
			case call.Status != "" || died(call.Begin, call.End):
			case now.requests == 0:
				now = silence{node, call.Begin, call.End, 1}
			default:
				now.requests, now.to = now.requests+1, call.End
			}
		}
		if now.requests > 0 {
			all = append(all, now)
		}
	}
	return all
}

// answering wants no silence to be long.
func (c *checker) answering() {
	for _, s := range silences(c.calls) {
		if s.length() > Silence {
			c.find(Answers, "node %s lived, and the member beside it too, and from %s on it answered none of %d OCSP requests in %s",
				s.node, s.from.Format(clock), s.requests, s.length().Round(time.Millisecond))
		}
	}
}
