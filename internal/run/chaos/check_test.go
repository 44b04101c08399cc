package chaos

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// at is a call that took ten milliseconds, so many seconds after the start.
func at(seconds float64, c Call) Call {
	c.Begin = start.Add(time.Duration(seconds * float64(time.Second)))
	c.Last, c.End = c.Begin, c.Begin.Add(10*time.Millisecond)
	if c.Outcome == "" {
		c.Outcome = Acknowledged
	}
	if c.Node == "" {
		c.Node = "node1"
	}
	c.Issuer, c.Life = "default", 1
	return c
}

// lasting is at, for what went on until so many seconds after the start.
func lasting(from, to float64, c Call) Call {
	c = at(from, c)
	c.End = start.Add(time.Duration(to * float64(time.Second)))
	return c
}

// sound is a history, and an end, in which nothing is wrong.
func sound() ([]Call, Final) {
	calls := []Call{
		at(0, Call{Act: Issue, Name: "a", Serial: "aa"}),
		at(1, Call{Act: Issue, Name: "b", Serial: "bb"}),
		at(2, Call{Act: Issue, Name: "c", Outcome: Unknown}),
		at(3, Call{Act: Issue, Name: "d", Outcome: Unknown}),
		at(4, Call{Act: Issue, Name: "e", Outcome: Refused, CutOff: true}),
		at(5, Call{Act: OCSP, Serial: "aa", Status: "good"}),
		at(6, Call{Act: CRL, Number: 1, ThisUpdate: start, Digest: "one", Entries: 1}),
		at(10, Call{Act: Revoke, Serial: "aa", Reason: "superseded"}),
		at(11, Call{Act: OCSP, Serial: "aa", Status: "revoked"}),
		at(12, Call{Act: OCSP, Serial: "aa", Status: "good", Node: "node2"}), // it may not have heard of it
		at(40, Call{Act: OCSP, Serial: "aa", Status: "good", Node: "node2", Age: 30 * time.Second}),
		at(41, Call{Act: CRL, Number: 2, ThisUpdate: start.Add(11 * time.Second), Digest: "two", Entries: 2}),
		at(42, Call{Act: CRL, Number: 1, ThisUpdate: start, Digest: "one", Entries: 1, Node: "node2"}),
		at(43, Call{Act: Turn, Name: "promote crl node2"}),
		at(44, Call{Act: Signer, Client: "watch", Name: "crl", Epoch: 1, Holder: "node1"}),
		at(45, Call{Act: Signer, Client: "watch", Name: "crl", Epoch: 2, Holder: "node2"}),
		at(45.5, Call{Act: Pulse}),
		at(46, Call{Act: Fault, Name: "kill node"}),
		at(47, Call{Act: Revoke, Serial: "bb", Reason: "superseded", Outcome: Unknown}),
		at(90, Call{Act: Signer, Client: "watch", Name: "crl", Epoch: 1, Holder: "node1", Node: "node2", Age: 40 * time.Second}),
		at(91, Call{Act: Signer, Name: "crl", Epoch: 1, Holder: "node1"}), // its log is read at the end
		at(92, Call{Act: Revoke, Serial: "aa", Reason: "keyCompromise", Outcome: Refused, CutOff: true}),
	}
	certificates := []Certificate{{"aa", "default", "a", "revoked", "superseded"}, {"bb", "default", "b", "revoked", "superseded"}, {"cc", "default", "c", "valid", ""}}
	for i, b := range bounds { // one strike of each that has one, which stands alone
		second, serial := 200+10*float64(i), fmt.Sprint("f", i+1)
		calls = append(calls, at(second, Call{Act: Fault, Name: "strike", Node: "node1", Budget: b.name}),
			at(second+1, Call{Act: Issue, Name: "after " + b.name, Serial: serial, Client: "steady-node1"}))
		certificates = append(certificates, Certificate{serial, "default", "after " + b.name, "valid", ""})
	}
	return calls, Final{
		Certificates: certificates,
		OCSP:         map[string]map[string]string{"node1": {"aa": "revoked"}, "node2": {"aa": "revoked"}},
		CRL:          map[string]List{"node1": {3, map[string]string{"aa": "superseded", "bb": "superseded"}}, "node2": {3, map[string]string{"aa": "superseded", "bb": "superseded"}}},
		Audit:        []Event{{"node1", 1, "0000", "h1"}, {"node1", 2, "h1", "h2"}, {"node2", 1, "0000", "k1"}},
		Verified:     9,
		Parted:       true,
	}
}

// TestCheckFindsWhatIsBroken breaks a sound history in one place after the other, and wants the rule that is broken named, and no other.
func TestCheckFindsWhatIsBroken(t *testing.T) {
	calls, final := sound()
	if found := Check(calls, final); len(found) > 0 {
		t.Fatalf("a sound history is found wrong: %v", found)
	}
	type end = *Final
	for name, one := range map[string]struct {
		rule   Rule
		damage func(calls []Call, f end) []Call
	}{
		"a certificate is lost":    {Lost, func(c []Call, f end) []Call { return append(c, at(50, Call{Act: Issue, Name: "x", Serial: "ee"})) }},
		"another serial is there":  {Lost, func(c []Call, f end) []Call { c[0].Serial = "ab"; return c }},
		"a revocation is lost":     {Lost, func(c []Call, f end) []Call { f.Certificates[0].State = "valid"; return c }},
		"a CRL lacks a revocation": {Lost, func(c []Call, f end) []Call { delete(f.CRL["node2"].Reasons, "aa"); return c }},
		"a serial was given twice": {Twice, func(c []Call, f end) []Call {
			f.Certificates[2].Serial = "bb2"
			f.Certificates = append(f.Certificates, Certificate{"bb", "other", "y", "valid", ""})
			y := at(50, Call{Act: Issue, Name: "y", Serial: "bb"})
			return append(c, y)
		}},
		"the inventory has a serial twice": {Twice, func(c []Call, f end) []Call {
			f.Certificates = append(f.Certificates, Certificate{"cc", "default", "d", "valid", ""})
			return c
		}},
		"an unknown outcome is there twice": {Once, func(c []Call, f end) []Call {
			f.Certificates = append(f.Certificates, Certificate{"c2", "default", "c", "valid", ""})
			return c
		}},
		"an acknowledged call was done twice": {Once, func(c []Call, f end) []Call {
			f.Certificates = append(f.Certificates, Certificate{"a2", "default", "a", "valid", ""})
			return c
		}},
		"what was refused is there": {Phantom, func(c []Call, f end) []Call {
			f.Certificates = append(f.Certificates, Certificate{"ee", "default", "e", "valid", ""})
			return c
		}},
		"what nobody asked for is revoked": {Phantom, func(c []Call, f end) []Call { f.Certificates[2].State = "revoked"; return c }},
		"a refused revocation was done":    {Phantom, func(c []Call, f end) []Call { c[18].Outcome = Refused; return c }},
		"good on the node that revoked it": {Good, func(c []Call, f end) []Call {
			return append(c, at(10.5, Call{Act: OCSP, Serial: "aa", Status: "good"}))
		}},
		"unknown on the node that revoked it": {Good, func(c []Call, f end) []Call {
			return append(c, at(10.5, Call{Act: OCSP, Serial: "aa", Status: "unknown"}))
		}},
		"good on another node, late": {Good, func(c []Call, f end) []Call {
			c[9] = at(21, Call{Act: OCSP, Serial: "aa", Status: "good", Node: "node2"})
			return c
		}},
		"good of data that are too young": {Good, func(c []Call, f end) []Call { c[10].Age = 15 * time.Second; return c }},
		"good at the end":                 {Good, func(c []Call, f end) []Call { f.OCSP["node2"]["aa"] = "good"; return c }},
		"not asked at the end":            {Good, func(c []Call, f end) []Call { delete(f.OCSP["node1"], "aa"); return c }},
		"seen revoked, then good": {Good, func(c []Call, f end) []Call {
			c[18].Begin, c[18].Last, c[18].End = start.Add(10*time.Second), start.Add(10*time.Second), start.Add(10*time.Second)
			return append(c, at(13, Call{Act: OCSP, Serial: "bb", Status: "revoked", Node: "node2"}), at(14, Call{Act: OCSP, Serial: "bb", Status: "good", Node: "node2"}))
		}},
		"one number, two lists":    {Numbers, func(c []Call, f end) []Call { c[12].Digest = "another"; return c }},
		"a higher number is older": {Numbers, func(c []Call, f end) []Call { c[11].ThisUpdate = start.Add(-time.Minute); return c }},
		"an old list came back": {Numbers, func(c []Call, f end) []Call {
			return append(c, at(60, Call{Act: CRL, Number: 1, ThisUpdate: start, Digest: "one", Entries: 1, Node: "node2", Age: 5 * time.Second}))
		}},
		"an epoch has two signers": {OneSigner, func(c []Call, f end) []Call {
			return append(c, at(50, Call{Act: Signer, Name: "crl", Epoch: 2, Holder: "node3"}))
		}},
		"an epoch falls": {Epochs, func(c []Call, f end) []Call { c[19].Age = 30 * time.Second; return c }},
		"revoked for what nobody asked": {Reasons, func(c []Call, f end) []Call {
			f.Certificates[0].Reason = "keyCompromise"
			f.CRL["node1"].Reasons["aa"], f.CRL["node2"].Reasons["aa"] = "keyCompromise", "keyCompromise"
			return c
		}},
		"the refused side's reason": {Reasons, func(c []Call, f end) []Call {
			f.Certificates[0].Reason = "keyCompromise"
			f.CRL["node1"].Reasons["aa"], f.CRL["node2"].Reasons["aa"] = "keyCompromise", "keyCompromise"
			return append(c, at(10, Call{Act: Revoke, Serial: "aa", Reason: "keyCompromise", Outcome: Refused, CutOff: true}))
		}},
		"a list gives another reason": {Reasons, func(c []Call, f end) []Call { f.CRL["node2"].Reasons["aa"] = "keyCompromise"; return c }},
		"a node that lives is silent": {Answers, func(c []Call, f end) []Call { return append(c, left("node2", 100, 116)...) }},
		"who was cut off was not asked for a revocation": {Nothing, func(c []Call, f end) []Call {
			return slices.DeleteFunc(c, func(c Call) bool { return c.Act == Revoke && c.CutOff })
		}},
		"no member was asked": {Nothing, func(c []Call, f end) []Call {
			return slices.DeleteFunc(c, func(c Call) bool { return c.Act == Pulse })
		}},
		"nobody was asked who was cut off": {Nothing, func(c []Call, f end) []Call {
			return slices.DeleteFunc(c, func(c Call) bool { return c.CutOff })
		}},
		"a list loses an entry":       {Good, func(c []Call, f end) []Call { c[11].Entries = 0; return c }},
		"the cut-off side issues":     {CutOff, func(c []Call, f end) []Call { c[1].CutOff = true; return c }},
		"the cut-off side revokes":    {CutOff, func(c []Call, f end) []Call { c[7].CutOff = true; return c }},
		"verify finds something":      {Verify, func(c []Call, f end) []Call { f.Findings = []string{"a hash is wrong"}; return c }},
		"a chain has a gap":           {Chain, func(c []Call, f end) []Call { f.Audit[1].Seq = 3; return c }},
		"a chain forks":               {Chain, func(c []Call, f end) []Call { f.Audit[1].Prev = "h0"; return c }},
		"a chain's beginning is gone": {Chain, func(c []Call, f end) []Call { f.Audit = f.Audit[1:]; return c }},
		"no fault struck": {Nothing, func(c []Call, f end) []Call {
			return slices.DeleteFunc(c, func(c Call) bool { return c.Act == Fault })
		}},
		"no kill of a node": {Nothing, func(c []Call, f end) []Call {
			return slices.DeleteFunc(c, func(c Call) bool { return c.Budget == "node-kill" })
		}},
		"no kill of a node stands alone": {Nothing, func(c []Call, f end) []Call {
			return append(c, lasting(200.5, 203, Call{Act: Fault, Name: "freeze node", Node: "node2", Stopped: "node2"}))
		}},
		"nobody issues again": {GoesOn, func(c []Call, f end) []Call {
			return append(c, lasting(300, 420, Call{Act: Fault, Name: "kill machine", Node: "n1", Budget: "primary-machine"}))
		}},
		"its own callers do not issue again": {GoesOn, func(c []Call, f end) []Call {
			f.Certificates = append(f.Certificates, Certificate{"e1", "default", "elsewhere", "valid", ""})
			return append(c, lasting(300, 420, Call{Act: Fault, Name: "kill node", Node: "node1", Budget: "node-kill"}),
				at(301, Call{Act: Issue, Name: "elsewhere", Serial: "e1", Client: "steady-node2"}))
		}},
		"no list was fetched": {Nothing, func(c []Call, f end) []Call { return slices.DeleteFunc(c, func(c Call) bool { return c.Act == CRL }) }},
		"lists without numbers": {Nothing, func(c []Call, f end) []Call {
			return slices.DeleteFunc(append(c, at(50, Call{Act: CRL})), func(c Call) bool { return c.Number > 0 })
		}},
		"OCSP answers without a status": {Nothing, func(c []Call, f end) []Call {
			c = slices.DeleteFunc(c, func(c Call) bool { return c.Act == OCSP && c.Node == "node2" }) // the two others are too near to each other for a silence
			for i := range c {
				c[i].Status = ""
			}
			return c
		}},
		"verify looked at nothing": {Nothing, func(c []Call, f end) []Call { f.Verified = 0; return c }},
	} {
		t.Run(name, func(t *testing.T) {
			calls, final := sound()
			found := Check(one.damage(calls, &final), final)
			if len(found) == 0 {
				t.Fatal("nothing was found")
			}
			for _, v := range found {
				if v.Rule != one.rule && !(one.rule == Twice && (v.Rule == Once || v.Rule == Lost)) {
					t.Errorf("found %s, and %q is what is broken", v, one.rule)
				}
			}
			if !slices.ContainsFunc(found, func(v Violation) bool { return v.Rule == one.rule }) {
				t.Errorf("found %v, and not %q", found, one.rule)
			}
		})
	}
}

// left are requests to a node, one a second, that it leaves without an answer.
func left(node string, from, to float64) (calls []Call) {
	for second := from; second <= to; second++ {
		calls = append(calls, at(second, Call{Act: OCSP, Serial: "aa", Node: node, Outcome: Unknown}))
	}
	return calls
}

// TestSilence: what counts is the time between two answers in which node and member lived.
func TestSilence(t *testing.T) {
	fault := func(from, to float64, stopped string) Call {
		return lasting(from, to, Call{Act: Fault, Name: "kill node", Node: "node2", Stopped: stopped})
	}
	pulse := func(second float64, node string, outcome string) Call {
		return at(second, Call{Act: Pulse, Node: node, Outcome: outcome})
	}
	answer := func(second float64, node string) Call {
		return at(second, Call{Act: OCSP, Serial: "aa", Status: "good", Node: node})
	}
	for name, one := range map[string]struct {
		calls []Call
		want  time.Duration // the longest
	}{
		"silent":                           {left("node2", 100, 130), 30010 * time.Millisecond},
		"it is asked nothing":              {nil, 0},
		"one answer between":               {append(left("node2", 100, 130), answer(115.5, "node2")), 15010 * time.Millisecond},
		"another answers":                  {append(left("node2", 100, 130), answer(115.5, "node1")), 30010 * time.Millisecond},
		"it was killed, and is not well":   {append(left("node2", 100, 130), fault(99, 101, "node2"), fault(140, 141, "")), 0},
		"it was killed, and was well":      {append(left("node2", 100, 130), fault(99, 101, "node2"), fault(110, 111, "")), 20010 * time.Millisecond},
		"another was killed":               {append(left("node2", 100, 130), fault(99, 101, "node1")), 30010 * time.Millisecond},
		"it was cut off":                   {append(left("node2", 100, 130), fault(99, 131, "")), 30010 * time.Millisecond},
		"its member was gone for a moment": {append(left("node2", 100, 130), pulse(110.5, "node2", Unknown)), 19010 * time.Millisecond},
		"its member lived":                 {append(left("node2", 100, 130), pulse(110.5, "node2", Acknowledged)), 30010 * time.Millisecond},
		"another member was gone":          {append(left("node2", 100, 130), pulse(110.5, "node1", Unknown)), 30010 * time.Millisecond},
	} {
		longest := time.Duration(0)
		for _, s := range silences(one.calls) {
			longest = max(longest, s.length())
		}
		if longest != one.want {
			t.Errorf("%s: the longest silence is %s, not %s", name, longest, one.want)
		}
	}
}

// TestEmptyHistoryIsNoProof wants each act to be missed.
func TestEmptyHistoryIsNoProof(t *testing.T) {
	found := Check(nil, Final{})
	if len(found) != 9+len(bounds) {
		t.Errorf("found %d: %v", len(found), found)
	}
	for _, v := range found {
		if v.Rule != Nothing {
			t.Errorf("found %s", v)
		}
	}
}

// TestHistoryIsReadAsItWasWritten keeps the file fit to be judged again later.
func TestHistoryIsReadAsItWasWritten(t *testing.T) {
	calls, _ := sound()
	var file bytes.Buffer
	for _, c := range calls {
		line, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&file, "%s\n", line)
	}
	read, err := ReadHistory(&file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(calls, read); diff != "" {
		t.Error(diff)
	}
}
