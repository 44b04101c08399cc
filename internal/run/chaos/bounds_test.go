package chaos

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRecovery takes the first certificate that was asked for after the strike, and of a node's own callers where only that node was struck.
func TestRecovery(t *testing.T) {
	struck := start.Add(10 * time.Second)
	calls := []Call{
		at(9.995, Call{Act: Issue, Name: "under way", Client: "steady-node2"}),
		at(11, Call{Act: Issue, Name: "refused", Outcome: Refused}),
		at(12, Call{Act: OCSP}),
		at(12.5, Call{Act: Issue, Name: "another's", Client: "steady-node2"}),
		at(9.9, Call{Act: OCSP}), // written down after what came later
		at(13, Call{Act: Issue, Name: "its own", Client: "steady-node1"}),
	}
	for budget, want := range map[string]time.Duration{"primary-process": 2510 * time.Millisecond, "node-kill": 3010 * time.Millisecond} {
		if got, ok := recovery(calls, budget, "node1", struck); !ok || got != want {
			t.Errorf("%s: got %s, %v; want %s", budget, got, ok, want)
		}
	}
	if _, ok := recovery(calls[:3], "primary-process", "node1", struck); ok {
		t.Error("nobody has issued")
	}
}

// TestStrikesWithinOthers: what another strike may have made longer is shown beside what it fell together with, and is not judged; what
// the other cannot have made longer is. Where none is left to judge by, there is no figure.
func TestStrikesWithinOthers(t *testing.T) {
	kill := func(from, to float64) Call {
		return lasting(from, to, Call{Act: Fault, Name: "kill node", Node: "node2", Budget: "node-kill"})
	}
	freeze := func(from, to float64) Call {
		return lasting(from, to, Call{Act: Fault, Name: "freeze node", Node: "node3"})
	}
	issued := func(second float64) Call {
		return at(second, Call{Act: Issue, Serial: "aa", Client: "steady-node2"})
	}
	for name, one := range map[string]struct {
		calls []Call
		want  string
	}{
		"alone": {[]Call{kill(10, 15), issued(11)}, `BUDGET chaos-node-kill 1.01s <=2s ok
          the worst of 1 that stood alone: 1.01s after kill node node2 at 12:00:10.000
`},
		"alone, and too long": {[]Call{kill(10, 15), issued(10.5), kill(20, 25), issued(22.99), kill(30, 35), issued(31)}, `BUDGET chaos-node-kill 3s <=2s missed
          the worst of 3 that stood alone: 3s after kill node node2 at 12:00:20.000
`},
		"another strikes before anybody has issued": {[]Call{kill(10, 15), issued(10.5), freeze(20.2, 22.5), issued(22.6), kill(20, 25)}, `BUDGET chaos-node-kill 0.51s <=2s ok
          the worst of 1 that stood alone: 510ms after kill node node2 at 12:00:10.000
          not judged: 2.61s after kill node node2 at 12:00:20.000, within another strike: freeze node node3, 12:00:20.200 to 12:00:22.500
`},
		"what is within another is told too where it is short": {[]Call{kill(10, 15), issued(10.5), freeze(20.2, 22.5), issued(20.3), kill(20, 25)}, `BUDGET chaos-node-kill 0.51s <=2s ok
          the worst of 1 that stood alone: 510ms after kill node node2 at 12:00:10.000
          not judged: 310ms after kill node node2 at 12:00:20.000, within another strike: freeze node node3, 12:00:20.200 to 12:00:22.500
`},
		"it strikes within another": {[]Call{freeze(9, 30), kill(10, 15), issued(11), kill(40, 45), issued(41)}, `BUDGET chaos-node-kill 1.01s <=2s ok
          the worst of 1 that stood alone: 1.01s after kill node node2 at 12:00:40.000
          not judged: 1.01s after kill node node2 at 12:00:10.000, within another strike: freeze node node3, 12:00:09.000 to 12:00:30.000
`},
		"within two others": {[]Call{freeze(9, 30), freeze(10.1, 11), kill(10, 15), issued(12), kill(40, 45), issued(41)}, `BUDGET chaos-node-kill 1.01s <=2s ok
          the worst of 1 that stood alone: 1.01s after kill node node2 at 12:00:40.000
          not judged: 2.01s after kill node node2 at 12:00:10.000, within another strike: freeze node node3, 12:00:09.000 to 12:00:30.000; freeze node node3, 12:00:10.100 to 12:00:11.000
`},
		"another strikes after somebody has issued": {[]Call{kill(10, 15), issued(11), freeze(12, 14)}, `BUDGET chaos-node-kill 1.01s <=2s ok
          the worst of 1 that stood alone: 1.01s after kill node node2 at 12:00:10.000
`},
		"another was over": {[]Call{freeze(5, 9.9), kill(10, 15), issued(11)}, `BUDGET chaos-node-kill 1.01s <=2s ok
          the worst of 1 that stood alone: 1.01s after kill node node2 at 12:00:10.000
`},
		"none is alone": {[]Call{freeze(9, 30), kill(10, 15), issued(10.2)}, `BUDGET chaos-node-kill unmeasured <=2s missed
          not judged: 210ms after kill node node2 at 12:00:10.000, within another strike: freeze node node3, 12:00:09.000 to 12:00:30.000
`},
		"nobody issues again, and later strikes excuse nothing": {[]Call{kill(10, 15), issued(11), kill(20, 140), freeze(150, 155)}, `BUDGET chaos-node-kill unmeasured <=2s missed
          the worst of 2 that stood alone: no issuance after kill node node2 at 12:00:20.000
`},
		"nothing struck": {nil, `BUDGET chaos-node-kill unmeasured <=2s missed
`},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			reportBounds(&out, one.calls)
			rest := ""
			for _, b := range bounds[1:] {
				rest += "BUDGET chaos-" + b.name + " unmeasured <=" + time.Duration(b.bound*float64(time.Second)).String() + " missed\n"
			}
			if diff := cmp.Diff(one.want+rest, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestWithinAMember: a node is frozen within what befalls the database, too; that one is not judged either.
func TestWithinAMember(t *testing.T) {
	calls := []Call{
		lasting(21, 24, Call{Act: Fault, Name: "freeze node", Node: "node1", Stopped: "node1"}),
		at(39, Call{Act: Issue, Serial: "aa", Client: "steady-node3"}),
		lasting(20, 40, Call{Act: Fault, Name: "kill machine", Node: "n2", Stopped: "node2", Budget: "primary-machine"}),
	}
	all := recoveries(calls)["primary-machine"]
	if len(all) != 1 || all[0].alone() || !all[0].again || all[0].took != 19010*time.Millisecond || all[0].amongst[0].Name != "freeze node" {
		t.Errorf("got %+v", all)
	}
}
