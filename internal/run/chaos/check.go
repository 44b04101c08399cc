package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Behind is how far an answer may be behind what was acknowledged on another node, where it does not say how old its data are. A standby is
// called old when two heartbeats of the authority are missing in it, which come every five seconds.
const Behind = 10 * time.Second

// Rule names what was broken.
type Rule string

// The rules.
const (
	Nothing   Rule = "nothing ran"                 // acts, faults and findings are there at all
	Lost      Rule = "acknowledged is there"       // every certificate and revocation that was acknowledged
	Twice     Rule = "no serial twice"             // in what was acknowledged and in what is there
	Once      Rule = "there or not, once"          // what has no known outcome
	Phantom   Rule = "refused is not there"        // a certificate whose every attempt was refused
	Good      Rule = "revoked is never good again" // in OCSP answers in the order of time
	Numbers   Rule = "CRL numbers rise"            // for each issuer, over all that anybody fetched
	OneSigner Rule = "one signer in an epoch"      // of each lease
	Epochs    Rule = "epochs never fall"           // of each lease, in what anybody was shown
	Reasons   Rule = "one reason of a revocation"  // whoever asked for it where, and the same on every list
	GoesOn    Rule = "issuing goes on"             // after each strike that has a bound
	Answers   Rule = "OCSP goes on"                // at each node that lives beside a member that lives
	CutOff    Rule = "the cut-off side refuses"    // what nobody else can know of is not acknowledged
	Verify    Rule = "verify is clean"             // of the whole store
	Chain     Rule = "audit chains are whole"      // each from 1, without gaps, each event holding the hash of the one before it
)

// Violation is a rule that was broken, and by what.
type Violation struct {
	Rule Rule
	Text string
}

func (v Violation) String() string { return fmt.Sprintf("%s: %s", v.Rule, v.Text) }

type checker struct {
	calls []Call
	final Final
	found []Violation
}

func (c *checker) find(rule Rule, format string, args ...any) {
	c.found = append(c.found, Violation{rule, fmt.Sprintf(format, args...)})
}

// Check says where a history and what there is at its end contradict each other, or themselves. Of a run in which nothing happened it
// finds that, so that no proof comes of it.
func Check(calls []Call, final Final) []Violation {
	c := &checker{calls: calls, final: final}
	c.ran()
	c.issued()
	c.revoked()
	c.reasons()
	c.statuses()
	c.answering()
	c.goesOn()
	c.lists()
	c.signers()
	c.chains()
	for _, text := range final.Findings {
		c.find(Verify, "%s", text)
	}
	return c.found
}

// ran wants each act to have been acknowledged at least once, and something to have been struck; of a node that was cut off, to have been asked.
func (c *checker) ran() {
	count, cutOff := map[string]int{}, map[string]int{}
	for _, call := range c.calls {
		if call.CutOff {
			cutOff[call.Act]++
		}
		switch call.Act {
		case Signer, Fault:
			count[call.Act]++
		default:
			if call.Outcome == Acknowledged && call.says() {
				count[call.Act]++
			}
		}
	}
	for _, act := range []string{Issue, Revoke, OCSP, CRL, Turn, Signer, Pulse, Fault} {
		if count[act] == 0 {
			c.find(Nothing, "no %s in the history", act)
		}
	}
	if c.final.Parted && (cutOff[Issue] == 0 || cutOff[Revoke] == 0) {
		c.find(Nothing, "nodes that were cut off were asked for %d certificates and %d revocations", cutOff[Issue], cutOff[Revoke])
	}
	if len(c.final.Certificates) == 0 || len(c.final.OCSP) == 0 || len(c.final.CRL) == 0 || len(c.final.Audit) == 0 || c.final.Verified == 0 {
		c.find(Nothing, "the end shows %d certificates, OCSP answers of %d nodes, CRLs of %d, %d events of the audit, and %d things that were verified",
			len(c.final.Certificates), len(c.final.OCSP), len(c.final.CRL), len(c.final.Audit), c.final.Verified)
	}
}

// says reports whether an acknowledged call holds what is judged of it.
func (call *Call) says() bool {
	switch call.Act {
	case Issue, Revoke:
		return call.Serial != ""
	case OCSP:
		return call.Serial != "" && call.Status != ""
	case CRL:
		return call.Number > 0 && call.Digest != "" && !call.ThisUpdate.IsZero()
	}
	return true
}

// issued holds each issuance against the certificates that are there. Names are given once, so a name stands for its call.
func (c *checker) issued() {
	there, serials := map[string][]Certificate{}, map[string]int{}
	for _, one := range c.final.Certificates {
		there[one.Name] = append(there[one.Name], one)
		serials[one.Issuer+" "+one.Serial]++
	}
	for serial, n := range serials {
		if n > 1 {
			c.find(Twice, "the inventory has %d certificates of serial %s", n, serial)
		}
	}
	given := map[string]string{}
	for _, call := range c.calls {
		if call.Act != Issue {
			continue
		}
		have := there[call.Name]
		if len(have) > 1 {
			c.find(Once, "%d certificates came of the one call for %s (%s)", len(have), call.Name, call.Outcome)
		}
		switch call.Outcome {
		case Acknowledged:
			if call.CutOff {
				c.find(CutOff, "node %s acknowledged %s while it could reach nobody", call.Node, call.Name)
			}
			if other, ok := given[call.Issuer+" "+call.Serial]; ok {
				c.find(Twice, "serial %s was given to %s and to %s", call.Serial, other, call.Name)
			}
			given[call.Issuer+" "+call.Serial] = call.Name
			if !slices.ContainsFunc(have, func(one Certificate) bool { return one.Serial == call.Serial }) {
				c.find(Lost, "certificate %s for %s was acknowledged at %s by node %s, and is not there", call.Serial, call.Name, call.End.Format(clock), call.Node)
			}
		case Refused:
			if len(have) > 0 {
				c.find(Phantom, "a certificate for %s is there, and every attempt was refused", call.Name)
			}
		}
	}
}

const clock = "15:04:05.000"

// revoked wants what was acknowledged to be revoked to be so in the inventory, in every node's answers and on every node's list; and
// nothing else to be revoked than what somebody asked for.
func (c *checker) revoked() {
	state := map[string]string{}
	for _, one := range c.final.Certificates {
		state[one.Serial] = one.State
	}
	asked := map[string]bool{}
	for _, call := range c.calls {
		if call.Act != Revoke {
			continue
		}
		asked[call.Serial] = asked[call.Serial] || call.Outcome != Refused
		if call.Outcome != Acknowledged {
			continue
		}
		if call.CutOff {
			c.find(CutOff, "node %s acknowledged the revocation of %s while it could reach nobody", call.Node, call.Serial)
		}
		if state[call.Serial] != "revoked" {
			c.find(Lost, "the revocation of %s was acknowledged at %s by node %s, and it is %q", call.Serial, call.End.Format(clock), call.Node, state[call.Serial])
		}
		for node, answers := range c.final.OCSP {
			if answers[call.Serial] != "revoked" {
				c.find(Good, "at the end node %s says by OCSP that %s, which is revoked, is %q", node, call.Serial, answers[call.Serial])
			}
		}
		for node, list := range c.final.CRL {
			if _, ok := list.Reasons[call.Serial]; !ok {
				c.find(Lost, "at the end CRL %d of node %s lacks %s, which is revoked", list.Number, node, call.Serial)
			}
		}
	}
	for _, one := range c.final.Certificates {
		if one.State == "revoked" && !asked[one.Serial] {
			c.find(Phantom, "%s is revoked, and nobody's call for it can have done that", one.Serial)
		}
	}
}

// reasons wants a certificate to be revoked for a reason that was asked for, by a call that was acknowledged or whose outcome nobody knows, and
// the lists of all nodes to give that one.
func (c *checker) reasons() {
	asked := map[string]map[string]bool{}
	for _, call := range c.calls {
		if call.Act != Revoke || call.Outcome == Refused {
			continue
		}
		if asked[call.Serial] == nil {
			asked[call.Serial] = map[string]bool{}
		}
		asked[call.Serial][call.Reason] = true
	}
	for _, one := range c.final.Certificates {
		if one.State != "revoked" || asked[one.Serial] == nil {
			continue
		}
		if !asked[one.Serial][one.Reason] {
			c.find(Reasons, "%s is revoked for %q, for which nobody asked", one.Serial, one.Reason)
		}
		for node, list := range c.final.CRL {
			if listed, ok := list.Reasons[one.Serial]; ok && listed != one.Reason {
				c.find(Reasons, "%s is revoked for %q, and for %q on CRL %d of node %s", one.Serial, one.Reason, listed, list.Number, node)
			}
		}
	}
}

// statuses holds each answer of OCSP against the revocations that were acknowledged, or seen by anybody, before it was asked for.
func (c *checker) statuses() {
	type known struct {
		at   time.Time
		node string
		life int
	}
	since := map[string][]known{}
	for _, call := range c.calls {
		if call.Act == Revoke && call.Outcome == Acknowledged || call.Act == OCSP && call.Status == "revoked" {
			since[call.Serial] = append(since[call.Serial], known{call.End, call.Node, call.Life})
		}
	}
	for _, call := range c.calls {
		if call.Act != OCSP || call.Status == "revoked" || call.Status == "" {
			continue
		}
		for _, k := range since[call.Serial] {
			may := call.Age + Behind
			if k.node == call.Node && k.life == call.Life {
				may = 0 // a node knows what it said itself
			}
			if call.Begin.Sub(k.at) > may {
				c.find(Good, "%s was revoked by what node %s said at %s, and node %s, asked at %s, said %s of data %s old",
					call.Serial, k.node, k.at.Format(clock), call.Node, call.Begin.Format(clock), call.Status, call.Age)
				break
			}
		}
	}
}

// lists wants one number to be one list, a list with a higher number to be younger and to have no fewer entries, since nothing that was
// revoked ends or is released while chaos lasts, and nobody to be given an older list than anybody
// had before, but for the age that the node says its data have.
func (c *checker) lists() {
	byIssuer := map[string][]Call{}
	for _, call := range c.calls {
		if call.Act == CRL && call.Outcome == Acknowledged {
			byIssuer[call.Issuer] = append(byIssuer[call.Issuer], call)
		}
	}
	for issuer, fetched := range byIssuer {
		slices.SortStableFunc(fetched, func(a, b Call) int { return cmp.Compare(a.Number, b.Number) })
		for i := 1; i < len(fetched); i++ {
			a, b := fetched[i-1], fetched[i]
			switch {
			case a.Number == b.Number && a.Digest != b.Digest:
				c.find(Numbers, "issuer %s signed two lists of number %d, fetched from nodes %s and %s", issuer, a.Number, a.Node, b.Node)
			case a.Number < b.Number && b.ThisUpdate.Before(a.ThisUpdate):
				c.find(Numbers, "issuer %s: list %d of %s is older than list %d of %s", issuer, b.Number, b.ThisUpdate.Format(clock), a.Number, a.ThisUpdate.Format(clock))
			case a.Number < b.Number && b.Entries < a.Entries:
				c.find(Good, "issuer %s: list %d has %d entries, and list %d had %d", issuer, b.Number, b.Entries, a.Number, a.Entries)
			}
		}
		c.fetched(issuer, fetched)
	}
}

// fetched looks at lists in the order in which they were fetched.
func (c *checker) fetched(issuer string, all []Call) {
	fallen(all, func(call Call) int64 { return call.Number }, func(had, call Call) {
		c.find(Numbers, "issuer %s: list %d was had from node %s at %s, and list %d from node %s at %s, of data %s old", issuer, had.Number,
			had.Node, had.End.Format(clock), call.Number, call.Node, call.Begin.Format(clock), call.Age)
	})
}

// fallen finds who was shown a lower number than somebody had been shown before, by more time than the data may be old.
func fallen(all []Call, number func(Call) int64, found func(had, call Call)) {
	ended := slices.SortedFunc(slices.Values(all), func(a, b Call) int { return a.End.Compare(b.End) })
	highest := make([]Call, len(ended)) // of those that had ended by then
	for i, call := range ended {
		if highest[i] = call; i > 0 && number(highest[i-1]) > number(call) {
			highest[i] = highest[i-1]
		}
	}
	for _, call := range all {
		known := call.Begin.Add(-call.Age - Behind)
		n, _ := slices.BinarySearchFunc(ended, known, func(e Call, at time.Time) int { return e.End.Compare(at) })
		if n > 0 && number(highest[n-1]) > number(call) {
			found(highest[n-1], call)
		}
	}
}

// signers wants an epoch of a lease to have one holder, and epochs never to fall in what is shown later. What a node has logged has no client: it
// is read at the end, and tells of all its epochs at once.
func (c *checker) signers() {
	holder, shown := map[string]string{}, map[string][]Call{}
	for _, call := range c.calls {
		if call.Act != Signer {
			continue
		}
		epoch := fmt.Sprintf("%s %d", call.Name, call.Epoch)
		if other, ok := holder[epoch]; ok && other != call.Holder {
			c.find(OneSigner, "epoch %d of lease %q was node %s's and node %s's", call.Epoch, call.Name, other, call.Holder)
		}
		holder[epoch] = call.Holder
		if call.Client != "" {
			shown[call.Name] = append(shown[call.Name], call)
		}
	}
	for name, all := range shown {
		fallen(all, func(call Call) int64 { return call.Epoch }, func(had, call Call) {
			c.find(Epochs, "lease %q: node %s showed epoch %d at %s, and node %s epoch %d at %s, of data %s old", name, had.Node, had.Epoch,
				had.End.Format(clock), call.Node, call.Epoch, call.Begin.Format(clock), call.Age)
		})
	}
}

// chains follows each node's events.
func (c *checker) chains() {
	last := map[string]Event{}
	seen := map[string]bool{}
	for _, e := range c.final.Audit {
		before, ok := last[e.Node]
		switch {
		case !ok && (e.Seq != 1 || strings.Trim(e.Prev, "0") != ""):
			c.find(Chain, "the chain of node %s begins with event %d", e.Node, e.Seq)
		case ok && e.Seq != before.Seq+1:
			c.find(Chain, "in the chain of node %s event %d follows %d", e.Node, e.Seq, before.Seq)
		case ok && e.Prev != before.Hash:
			c.find(Chain, "event %d of node %s does not hold the hash of the one before it", e.Seq, e.Node)
		case seen[e.Hash]:
			c.find(Chain, "event %d of node %s has the hash of another", e.Seq, e.Node)
		}
		last[e.Node], seen[e.Hash] = e, true
	}
}
