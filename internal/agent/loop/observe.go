package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/cert"
)

// The most that a report holds; the authority refuses more.
const (
	mostMessage = 2000
	mostListed  = 64
)

// observe says what was seen of the placement.
func (w *work) observe() client.Observation {
	o := client.Observation{Placement: w.folder.name, At: w.now, Facts: bounded(w.facts)}
	if w.now.Sub(w.record.MendedAt) < toldFor {
		o.Repaired = w.record.Repaired[:min(len(w.record.Repaired), mostListed)]
	} else {
		w.record.Repaired = nil
	}
	plan := w.record.Plan // what is placed is what is seen
	if plan != nil {
		o.Files = w.files(plan)
		w.observeCertificate(&o, plan)
		if uses(plan, "crls") {
			o.CRLs = w.trustOf(plan).numbers()
		}
	}
	w.observeTrust(&o)
	w.observeUse(&o)
	o.Announced = w.announced()
	switch {
	case len(w.wrong) > 0:
		o.State = client.PlacementFailed
	case plan == nil:
		o.State = client.PlacementPending
	case w.down:
		o.State = client.PlacementDown
	case plan.Probe == nil:
		o.State = client.PlacementPlaced
	case w.seen != nil || len(plan.Probe.Command) > 0 || plan.Probe.Holds != "":
		o.State = client.PlacementServed
	default:
		o.State = client.PlacementPlaced
	}
	said := slices.Concat(w.wrong, w.notes, w.record.Notes, w.gone())
	if len(w.record.Kept) > 0 {
		said = append(said, "what was there before is kept as "+strings.Join(w.record.Kept, ", "))
	}
	o.Message = cut(strings.Join(said, "; "), mostMessage)
	return o
}

// observeCertificate says which certificate is placed, and when it is replaced.
func (w *work) observeCertificate(o *client.Observation, plan *recipe.Plan) {
	if w.seen != nil {
		o.Served = cert.FormatSerial(w.seen.Leaf().SerialNumber)
	}
	id := mainOf(plan)
	if id == "" {
		return
	}
	h, err := w.folder.held(id, suffixHeld)
	if err != nil || h == nil {
		return
	}
	leaf := h.leaf()
	o.Serial, o.NotAfter, o.RekeyAt = h.serial(), leaf.NotAfter, dueAt(leaf, w.holder(id))
	if plan.AllowList {
		o.AllowList = cut(probe.AllowListLine(leaf), mostMessage)
	}
}

// files are the plan's files as they lie on the host.
func (w *work) files(plan *recipe.Plan) []client.ObservedFile {
	var all []client.ObservedFile
	names := accountNames{users: map[uint32]string{}, groups: map[uint32]string{}}
	for _, f := range plan.Files {
		if len(all) == mostListed {
			break
		}
		path := w.agent.system.Path(f.Path)
		st, err := os.Lstat(path)
		if err != nil {
			continue
		}
		owner := st.Sys().(*syscall.Stat_t)
		o := client.ObservedFile{Path: f.Path, Mode: modeText(st.Mode()), Owner: names.user(owner.Uid), Group: names.group(owner.Gid)}
		var label [256]byte
		if n, err := unix.Lgetxattr(path, "security.selinux", label[:]); err == nil {
			o.Label = strings.TrimRight(string(label[:n]), "\x00")
		}
		all = append(all, o)
	}
	return all
}

func modeText(m fs.FileMode) string { return fmt.Sprintf("%04o", m.Perm()) }

// accountNames remembers names of accounts for one look, so that the file of accounts is not read for each file.
type accountNames struct{ users, groups map[uint32]string }

func (n accountNames) user(id uint32) string {
	if name, ok := n.users[id]; ok {
		return name
	}
	name := strconv.Itoa(int(id))
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	n.users[id] = cut(name, 64)
	return n.users[id]
}

func (n accountNames) group(id uint32) string {
	if name, ok := n.groups[id]; ok {
		return name
	}
	name := strconv.Itoa(int(id))
	if g, err := user.LookupGroupId(name); err == nil {
		name = g.Name
	}
	n.groups[id] = cut(name, 64)
	return n.groups[id]
}

// knownFact is what a command told, and which: the answer of another command says nothing of this one.
type knownFact struct {
	Command []string `json:"command"`
	Pattern string   `json:"pattern,omitempty"`
	Value   string   `json:"value"`
}

// gather finds out the facts of a recipe. What commands tell is kept for a pass in which they fail.
func (w *work) gather(ctx context.Context, r *recipe.Recipe) (*probe.Findings, error) {
	rules, err := r.FactRules(w.order.Parameters)
	if err != nil {
		return nil, err
	}
	if err := w.acceptsReads(r, nil); err != nil {
		return nil, err
	}
	last := recipe.Facts{}
	for _, rule := range rules {
		if k, ok := w.record.Known[rule.Name]; ok && slices.Equal(k.Command, rule.Command) && k.Pattern == rule.Pattern {
			last[rule.Name] = k.Value
		}
	}
	found, err := probe.Gather(ctx, w.agent.system, rules, last)
	if err != nil {
		return nil, err
	}
	w.record.Known = nil
	for _, rule := range rules {
		value, ok := found.Facts[rule.Name]
		if !ok || len(rule.Command) == 0 {
			continue
		}
		if w.record.Known == nil {
			w.record.Known = map[string]knownFact{}
		}
		w.record.Known[rule.Name] = knownFact{Command: rule.Command, Pattern: rule.Pattern, Value: value}
	}
	w.notes = append(w.notes, found.Assumed...)
	return found, w.acceptsReads(r, found.Facts)
}

// mentioned are the facts that the recipe speaks of. A consumer's configuration holds more, passwords among it, and none of
// that is told to anybody.
func mentioned(r *recipe.Recipe, facts recipe.Facts) recipe.Facts {
	text, err := json.Marshal(r)
	if err != nil {
		return nil
	}
	out := recipe.Facts{}
	for name, value := range facts {
		if regexp.MustCompile(`\bfact\.` + regexp.QuoteMeta(name) + `($|[^\w.])`).Match(text) {
			out[name] = value
		}
	}
	return out
}

// bounded keeps the facts that fit into a report.
func bounded(facts recipe.Facts) map[string]string {
	if len(facts) == 0 {
		return nil
	}
	out := map[string]string{}
	for _, name := range sortedKeys(facts) {
		if len(out) == mostListed {
			break
		}
		out[name] = cut(facts[name], 500)
	}
	return out
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// cut shortens a text to at most n octets, between two characters.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	text = text[:n-len("…")]
	for !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text + "…"
}

// keep writes the record where it says something new. An observation that differs in its time only is not new.
func (w *work) keep(o *client.Observation) error {
	before, err := w.folder.record()
	if err != nil {
		return err
	}
	seen := *o
	seen.At = before.Observed.At
	w.record.Observed = seen
	if sameJSON(w.record, before) {
		return nil
	}
	w.record.Observed = *o
	return w.folder.keepRecord(w.record)
}
