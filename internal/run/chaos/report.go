package chaos

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// report prints what happened, the budgets by the worst of each strike, and the verdict.
func (w *world) report(final *Final, found []Violation) error {
	count := map[string]int{}
	cutOff := 0
	for _, c := range w.history.calls() {
		switch c.Act {
		case Fault:
			count["fault: "+c.Name]++
		case Signer:
			count[c.Act]++
		default:
			count[c.Act+" "+c.Outcome]++
		}
		if c.CutOff && c.Outcome != Acknowledged && (c.Act == Issue || c.Act == Revoke) {
			cutOff++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(count)) {
		fmt.Fprintf(w.Out, "%8d  %s\n", count[name], name)
	}
	fmt.Fprintf(w.Out, "%8d  calls refused or without an answer on nodes that were cut off\n", cutOff)
	again := 0
	for _, n := range w.nodes {
		again += n.failures()
	}
	fmt.Fprintf(w.Out, "%8d  nodes ended at their start, since no database answered, and were started again\n", again)
	fmt.Fprintf(w.Out, "%8d  members did not come to themselves in %s, and were started anew\n", w.restarts, patience)
	behind, asked := stale(w.history.calls())
	fmt.Fprintf(w.Out, "%8d  OCSP answers about what was revoked elsewhere before; the latest that was not yet so came %s after\n", asked, behind.Round(time.Millisecond))
	var longest silence
	for _, s := range silences(w.history.calls()) {
		if s.length() > longest.length() {
			longest = s
		}
	}
	fmt.Fprintf(w.Out, "%8s  was the longest time in which a node that lived beside a member that lived answered no OCSP request\n", longest.length().Round(time.Millisecond))
	fmt.Fprintf(w.Out, "%8d  certificates, %d events of the audit, %d findings of verify that say ok\n", len(final.Certificates), len(final.Audit), final.Verified)
	reportBounds(w.Out, w.history.calls())
	for i, v := range found {
		if i == 20 {
			fmt.Fprintf(w.Out, "and %d more\n", len(found)-i)
			break
		}
		fmt.Fprintf(w.Out, "BROKEN %s\n", v)
	}
	if len(found) > 0 {
		fmt.Fprintf(w.Out, "FAIL, CHAOS_SEED=%d; the history is in %s\n", w.Seed, w.History)
		return fmt.Errorf("chaos broke %d rules", len(found))
	}
	if !w.parted {
		fmt.Fprintf(w.Out, "UNPROVEN %s: without root no machine is cut off, and it stood still instead\n", CutOff)
	}
	fmt.Fprintf(w.Out, "PASS, CHAOS_SEED=%d\n", w.Seed)
	return nil
}

// stale is the longest time after which an answer that claimed to be fresh still was from before a revocation that another node had
// acknowledged, and how many answers were asked for after one.
func stale(calls []Call) (longest time.Duration, asked int) {
	revoked := map[string]time.Time{}
	for _, c := range calls {
		if c.Act == Revoke && c.Outcome == Acknowledged {
			revoked[c.Serial] = c.End
		}
	}
	for _, c := range calls {
		at, ok := revoked[c.Serial]
		if c.Act != OCSP || c.Status == "" || !ok || c.Begin.Before(at) {
			continue
		}
		asked++
		if c.Status != "revoked" && c.Age == 0 {
			longest = max(longest, c.Begin.Sub(at))
		}
	}
	return longest, asked
}
