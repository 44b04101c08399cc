package rollout

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
)

// selector selects hosts: some share of them, those with a label, or one.
type selector struct {
	text    string
	canary  bool    // the one host that comes first
	percent float64 // of all hosts, those of earlier waves included
	key     string  // of a label
	value   string
	name    string
}

// everyone is the last wave, whatever was asked for.
const everyone = "100%"

// defaultWaves: one host tells most; then a few, then many.
func defaultWaves() []string { return []string{"canary", "10%", "50%", everyone} }

// parseSelector reads host:NAME, label:KEY=VALUE or, of hosts, a bare NAME.
func parseSelector(text string) (selector, error) {
	kind, rest, found := strings.Cut(text, ":")
	if !found {
		kind, rest = "host", text
	}
	switch kind {
	case "host":
		if rest != "" {
			return selector{text: "host:" + strings.ToLower(rest), name: strings.ToLower(rest)}, nil
		}
	case "label":
		if key, value, ok := strings.Cut(rest, "="); ok && key != "" {
			return selector{text: text, key: key, value: value}, nil
		}
	}
	return selector{}, fault.New(fault.Invalid, "%.80q selects no hosts; NAME, host:NAME and label:KEY=VALUE do", text)
}

// parseWave reads what a wave may be: canary and a percentage besides.
func parseWave(text string) (selector, error) {
	if text == "canary" {
		return selector{text: text, canary: true}, nil
	}
	if number, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || !(percent > 0 && percent <= 100) {
			return selector{}, fault.New(fault.Invalid, "wave %.40q is no percentage above 0 and up to 100%%", text).At("/waves")
		}
		return selector{text: text, percent: percent}, nil
	}
	s, err := parseSelector(text)
	if err != nil || !strings.Contains(text, ":") {
		return selector{}, fault.New(fault.Invalid, "%.80q is no wave; canary, 5%%, host:NAME and label:KEY=VALUE are", text).At("/waves")
	}
	return s, nil
}

// parseWaves reads the waves, and adds the one that all are in.
func parseWaves(texts []string) ([]selector, error) {
	if len(texts) == 0 {
		texts = defaultWaves()
	}
	if texts[len(texts)-1] != everyone {
		texts = append(slices.Clone(texts), everyone)
	}
	waves := make([]selector, len(texts))
	least := 0.0
	for i, text := range texts {
		var err error
		if waves[i], err = parseWave(text); err != nil {
			return nil, err
		}
		if p := waves[i].percent; p > 0 {
			if p <= least {
				return nil, fault.New(fault.Invalid, "wave %s comes after %v%%; each percentage counts the hosts of the waves before it, and is above theirs",
					waves[i].text, least).At("/waves")
			}
			least = p
		}
	}
	return waves, nil
}

func (s selector) matches(m *host.Member) bool {
	if s.key != "" {
		value, ok := m.Labels[s.key]
		return ok && value == s.value
	}
	return s.name != "" && s.name == m.Name
}

// order is where a host stands among others: the same in each rollout, and told by nothing that hosts have in common.
func order(name string) string {
	sum := sha256.Sum256([]byte(name))
	return string(sum[:])
}

// assign puts each host into the first wave that selects it. unwell says which hosts are no canaries. The waves are counted
// from 1; those that nobody is in are gone through without a stop.
func assign(waves []selector, hosts []host.Member, unwell map[string]bool) map[string]int64 {
	assigned := make(map[string]int64, len(hosts))
	type ranked struct {
		*host.Member
		order string
	}
	all := make([]ranked, len(hosts))
	for i := range hosts {
		all[i] = ranked{&hosts[i], order(hosts[i].Name)}
	}
	slices.SortFunc(all, func(a, b ranked) int { return cmp.Compare(a.order, b.order) })
	for i, wave := range waves {
		n := int64(i + 1)
		switch {
		case wave.canary:
			if first := canary(func(yield func(*host.Member) bool) {
				for _, m := range all {
					if assigned[m.ID] == 0 && !yield(m.Member) {
						return
					}
				}
			}, unwell); first != nil {
				assigned[first.ID] = n
			}
		case wave.percent > 0:
			want := int(wave.percent*float64(len(all))/100 + 0.999999)
			for _, m := range all {
				if len(assigned) >= want {
					break
				}
				if assigned[m.ID] == 0 {
					assigned[m.ID] = n
				}
			}
		default:
			for _, m := range all {
				if assigned[m.ID] == 0 && wave.matches(m.Member) {
					assigned[m.ID] = n
				}
			}
		}
	}
	return assigned
}

// canary is the first host that has joined and is well, or else the first that has joined, or else the first.
func canary(hosts func(yield func(*host.Member) bool), unwell map[string]bool) *host.Member {
	var first, joined *host.Member
	for m := range hosts {
		if m.State == client.HostJoined && !unwell[m.ID] {
			return m
		}
		if m.State == client.HostJoined && joined == nil {
			joined = m
		}
		if first == nil {
			first = m
		}
	}
	if joined != nil {
		return joined
	}
	return first
}

// texts are the waves as they are shown.
func texts(waves []selector) []string {
	all := make([]string, len(waves))
	for i, w := range waves {
		all[i] = w.text
	}
	return all
}

// unknown refuses a wave or a selection that no host is meant by: it is misspelt.
func unknown(waves []selector, hosts []host.Member, pool, where string) error {
	for _, w := range waves {
		if w.canary || w.percent > 0 {
			continue
		}
		if !slices.ContainsFunc(hosts, func(m host.Member) bool { return w.matches(&m) }) {
			return fault.New(fault.Invalid, "no host of pool %q is meant by %s", pool, w.text).At(where).WithHint("chancery host list --pool %s", pool)
		}
	}
	return nil
}

// count says a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
