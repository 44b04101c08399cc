package bench

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The stores under which something is measured.
const (
	empty   = "empty"   // nothing but what the benchmark itself issued
	full    = "full"    // so many certificates, a twentieth of them revoked
	revoked = "revoked" // so many revocations in one complete CRL, and as many in a partitioned one

	clustered = "cluster" // empty, on three members of a PostgreSQL under Patroni
)

// The engines.
const (
	sqliteEngine   = "sqlite"
	postgresEngine = "postgres"
)

// The parts of the benchmark, as --only takes them.
const (
	partIssuance   = "issuance"
	partOCSP       = "ocsp"
	partRevocation = "revocation"
	partCRL        = "crl"
	partStart      = "start"
	partAgents     = "agents"
	partRollouts   = "rollouts"
	partClones     = "clones"
)

// bound is what a budget asks.
type bound struct {
	part    string
	stores  []string
	atLeast bool
	value   float64
	unit    string // x for a ratio, s, ms, MB, % of a core
}

// budgets are the rows of the table of budgets that one node alone can be measured by.
var budgets = []struct {
	name string
	bound
}{
	{"issuance-vs-step-ca", bound{partIssuance, []string{empty, full}, true, 3, "x"}},
	{"issuance-vs-bare", bound{partIssuance, []string{empty, full}, true, 0.35, "x"}},
	{"ocsp-cached", bound{partOCSP, []string{empty, full}, true, 0.5, "x"}},
	{"ocsp-nonce", bound{partOCSP, []string{empty, full}, true, 0.5, "x"}},
	{"revoke-visible", bound{partRevocation, []string{empty, full, revoked}, false, 1000, "ms"}},
	{"revoke-cost", bound{partRevocation, []string{revoked}, false, 2, "x"}},
	{"full-crl-time", bound{partCRL, []string{revoked}, false, 10, "x"}},
	{"full-crl-memory", bound{partCRL, []string{revoked}, false, 100, "MB"}},
	{"start", bound{partStart, []string{full}, false, 1000, "ms"}},
	{"agents-join", bound{partAgents, []string{empty}, false, 60, "s"}},
	{"agents-steady", bound{partAgents, []string{empty}, false, 5, "%"}},
	{"agents-storm", bound{partAgents, []string{empty}, true, 1, "x"}},
	{"agent-pass", bound{partAgents, []string{empty}, false, 50, "ms"}},
	{"agent-memory", bound{partAgents, []string{empty}, false, 20, "MB"}},
	{"agents-held-memory", bound{partAgents, []string{empty}, false, 1000, "MB"}},
	{"rollout-root", bound{partRollouts, []string{empty}, false, 120, "s"}},
	{"rollout-failures", bound{partRollouts, []string{empty}, false, 0, ""}},
	{"rollout-linear", bound{partRollouts, []string{empty}, false, 1.5, "x"}},
	{"rollout-memory", bound{partRollouts, []string{empty}, false, 1000, "MB"}},
	{"clones-issue", bound{partClones, []string{empty, clustered}, true, 0.7, "x"}},
	{"clones-promote", bound{partClones, []string{empty, clustered}, false, 2, "s"}},
	{"clones-revoke-visible", bound{partClones, []string{empty, clustered}, false, 1, "s"}},
	{"clones-join", bound{partClones, []string{full, clustered}, false, 5, "s"}},
	{"clones-ocsp-lost", bound{partClones, []string{clustered}, false, 0, ""}},
	{"clones-ocsp-frozen", bound{partClones, []string{clustered}, false, 0, ""}},
}

// Budget is one measured bound. It prints as a line "BUDGET name measured bound ok|missed".
type Budget struct {
	Name     string // of the budget, the engine and the store, with dots between
	Measured float64
	Unit     string
	AtLeast  bool
	Bound    float64
	Unknown  bool // it was not measured, which is a miss
}

// OK reports whether the budget is met.
func (b Budget) OK() bool {
	if b.Unknown {
		return false
	}
	if b.AtLeast {
		return b.Measured >= b.Bound
	}
	return b.Measured <= b.Bound
}

func (b Budget) String() string {
	measured, sign, verdict := number(b.Measured)+b.Unit, "<=", "missed"
	if b.Unknown {
		measured = "unmeasured"
	}
	if b.AtLeast {
		sign = ">="
	}
	if b.OK() {
		verdict = "ok"
	}
	return fmt.Sprintf("BUDGET %s %s %s%s%s %s", b.Name, measured, sign, number(b.Bound), b.Unit, verdict)
}

// number has three digits or so, and no exponent.
func number(v float64) string {
	digits := 2
	switch {
	case v >= 100:
		digits = 0
	case v >= 10:
		digits = 1
	case v < 0.001:
		digits = 6
	case v < 0.1:
		digits = 4
	}
	text := strconv.FormatFloat(v, 'f', digits, 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

// ParseBudget reads a line that Budget.String wrote.
func ParseBudget(line string) (Budget, error) {
	fields := strings.Fields(line)
	if len(fields) != 5 || fields[0] != "BUDGET" || fields[4] != "ok" && fields[4] != "missed" {
		return Budget{}, fmt.Errorf("%q is not of the form BUDGET name measured bound ok|missed", line)
	}
	b := Budget{Name: fields[1], Unknown: fields[2] == "unmeasured"}
	limit, atLeast := strings.CutPrefix(fields[3], ">=")
	if b.AtLeast = atLeast; !atLeast {
		limit = strings.TrimPrefix(fields[3], "<=")
	}
	digits := strings.TrimRight(limit, "xmsMB%")
	b.Unit = limit[len(digits):]
	var err, err2 error
	b.Bound, err = strconv.ParseFloat(digits, 64)
	if !b.Unknown {
		b.Measured, err2 = strconv.ParseFloat(strings.TrimSuffix(fields[2], b.Unit), 64)
	}
	if err := errors.Join(err, err2); err != nil {
		return Budget{}, fmt.Errorf("%q: %w", line, err)
	}
	return b, nil
}

// measuredOn reports whether a budget is measured on an engine. What agents take of memory, theirs or a node's, does not depend
// on it. Several nodes need PostgreSQL.
func measuredOn(name, engine string) bool {
	if strings.HasPrefix(name, "clones-") {
		return engine == postgresEngine
	}
	return engine == sqliteEngine || !strings.HasPrefix(name, "agent-") && name != "agents-held-memory"
}

// wanted lists the budgets of a run, unmeasured.
func wanted(engines []string, part, store func(string) bool) []Budget {
	var all []Budget
	for _, engine := range engines {
		for _, b := range budgets {
			if !part(b.part) || !measuredOn(b.name, engine) {
				continue
			}
			for _, at := range b.stores {
				if !store(at) {
					continue
				}
				all = append(all, Budget{
					Name: b.name + "." + engine + "." + at, Unit: b.unit, AtLeast: b.atLeast, Bound: b.value, Unknown: true,
				})
			}
		}
	}
	return all
}
