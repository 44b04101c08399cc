package rollout

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/agent/recipe"
	"chancery/internal/authority/ca"
	"chancery/internal/fleet/host"
	"chancery/internal/store/db"
)

const (
	maxActions = 1000
	maxNamed   = 100 // hosts that are named in a list of who holds, breaks or is left out

	// How long a wave is thought to take: what an agent needs to hear of it, place, reload and report, and how many hosts a node
	// serves meanwhile.
	waveSeconds    = 5
	hostsPerSecond = 50
)

// highest is the certificate at the top of an issuer's path, as far as it is known.
func highest(i *ca.Issuer) *x509.Certificate {
	if len(i.Chain) > 0 {
		return i.Chain[len(i.Chain)-1]
	}
	return i.Certificate
}

// below are the issuers whose path goes through a certificate, its own included.
func below(all []*ca.Issuer, above *x509.Certificate) []*ca.Issuer {
	var found []*ca.Issuer
	for _, i := range all {
		if slices.ContainsFunc(append([]*x509.Certificate{i.Certificate}, i.Chain...), func(c *x509.Certificate) bool { return bytes.Equal(c.Raw, above.Raw) }) {
			found = append(found, i)
		}
	}
	return found
}

func sorted(set map[string]bool) []string {
	var all []string
	for name := range set {
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}

// algorithmOf finds the parameter by which a recipe is given the algorithm of its key, what it is where it is not given, and
// whether it may be the one that is wanted.
func algorithmOf(r *recipe.Recipe, wanted string) (name, value string, fits bool) {
	for _, p := range r.Parameters {
		switch {
		case p.Type == "algorithm":
			return p.Name, p.Default, true
		case p.Name == "key" && p.Type == "choice":
			return p.Name, p.Default, slices.Contains(p.Choices, wanted)
		}
	}
	return "", "", false
}

// eachHolding reads what hosts hold, some hosts at a time.
func (s *Service) eachHolding(ctx context.Context, hosts []host.Member, tell func([]host.Held) error) error {
	for part := range slices.Chunk(hosts, host.Moved) {
		ids := make([]string, len(part))
		for i, m := range part {
			ids[i] = m.ID
		}
		var held []host.Held
		err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
			held, err = host.Holdings(ctx, tx, ids)
			return err
		})
		if err != nil {
			return err
		}
		if err := tell(held); err != nil {
			return err
		}
	}
	return nil
}

// foresee says what the rollout will do, and who will hold it.
func (s *Service) foresee(ctx context.Context, d *draft, now time.Time) error {
	said := &d.plan.Said
	said.Hosts = len(d.members)
	waveOf := map[string]int64{}
	sizes := make([]int, len(d.waves))
	for _, m := range d.members {
		waveOf[m.id] = m.wave
		sizes[m.wave-1]++
	}
	passes := len(d.plan.Steps)
	if d.spec.Compromised {
		passes = 1 // trust and certificates at once
	}
	err := s.eachHolding(ctx, d.hosts, func(held []host.Held) error {
		for _, h := range held {
			o := h.Placement.Observed
			if d.kind == client.RolloutIdentities {
				continue // nothing is placed
			}
			action := client.RolloutAction{Host: h.Host, Placement: h.Placement.Name, Wave: int(waveOf[h.ID]), Reload: o.Reload, Interrupts: o.Interrupts}
			for _, f := range o.Files {
				action.Files = append(action.Files, f.Path)
			}
			said.Files += passes * len(o.Files)
			if o.Reload != "" {
				said.Reloads += passes
			}
			if o.Interrupts {
				said.Interrupts++ // such a step is taken for new keys alone
			}
			if len(said.Actions) < maxActions {
				said.Actions = append(said.Actions, action)
			}
			if d.spec.Compromised && len(said.Breaks) < maxNamed && o.Serial != "" {
				said.Breaks = append(said.Breaks, client.RolloutHost{Host: h.Host, Serial: o.Serial,
					Message: fmt.Sprintf("placement %s presents %s, which its peers refuse from the moment they have heard of it until it has another one",
						h.Placement.Name, o.Serial)})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(said.Actions, func(a, b client.RolloutAction) int {
		if a.Wave != b.Wave {
			return a.Wave - b.Wave
		}
		return strings.Compare(a.Host, b.Host)
	})
	for _, size := range sizes {
		if size > 0 {
			said.Seconds += int64(passes) * int64(waveSeconds+size/hostsPerSecond)
		}
	}
	s.note(d)
	return s.wouldHold(ctx, d, now)
}

// note says what else should be known.
func (s *Service) note(d *draft) {
	said := &d.plan.Said
	add := func(format string, args ...any) { said.Notes = append(said.Notes, fmt.Sprintf(format, args...)) }
	if n := d.plan.Next; n != nil && n.Outside {
		who := n.Parent
		if who == "" {
			who = "the outside root"
		}
		add("the key of %s is not here: it signs the request of issuer %s where it is, before a host is told anything", who, n.Issuer)
	}
	if len(d.members) == 0 {
		add("no host is concerned")
	}
	if d.spec.Compromised && movesTrust(d.kind) {
		add("the old trust is dropped at once and everywhere; this cannot be undone")
	}
	if d.kind == client.RolloutReissue && d.spec.Compromised {
		add("all certificates of these hosts are revoked with the reason keyCompromise before they get others; this cannot be undone")
	}
	if d.kind == client.RolloutReissue || d.kind == client.RolloutIdentities {
		add("keys that are replaced are gone: undoing stops, and what is done stays")
	}
}

// wouldHold finds who would hold it as things are: suspect hosts, placements that fail, agents that are silent, and certificates
// that no agent replaces.
func (s *Service) wouldHold(ctx context.Context, d *draft, now time.Time) error {
	said := &d.plan.Said
	return s.DB.Read(ctx, func(tx *db.Tx) error {
		said.Would = nil
		held := map[string]bool{}
		add := func(h client.RolloutHost) {
			if len(said.Would) < maxNamed && (h.Host == "" || !held[h.Host]) {
				held[h.Host] = true
				said.Would = append(said.Would, h)
			}
		}
		for part := range slices.Chunk(d.members, host.Moved) {
			var ids []string
			for _, m := range part {
				if m.because == "" {
					ids = append(ids, m.id)
				}
			}
			lacks, err := s.Hosts.Lacks(ctx, tx, host.Goal{}, ids)
			if err != nil {
				return err
			}
			for _, k := range lacks {
				if k.State != client.HostPending {
					add(holds(k, host.Goal{}, now))
				}
			}
			silent, err := s.Hosts.Silents(ctx, tx, ids, now.Add(-quiet))
			if err != nil {
				return err
			}
			for _, k := range silent {
				add(holds(k, host.Goal{}, now))
			}
		}
		remaining, err := s.remaining(ctx, tx, d.row, now)
		for _, h := range remaining {
			add(h)
		}
		return err
	})
}

// preview is a rollout that was not begun.
func (d *draft) preview() *client.Rollout {
	out := &client.Rollout{
		Kind: d.kind, Pool: d.pool, State: d.state, Compromised: d.spec.Compromised, Stage: d.stage, Plan: d.plan.Said, Actor: d.actor, CreatedAt: d.created,
		ChangedAt: d.changed,
	}
	sizes := make([]int, len(d.waves))
	for _, m := range d.members {
		sizes[m.wave-1]++
		if m.because != "" && len(out.Excepted) < maxNamed {
			out.Excepted = append(out.Excepted, client.RolloutHost{Host: m.name, Message: m.because})
		}
	}
	for i, text := range d.plan.Waves {
		out.Waves = append(out.Waves, client.RolloutWave{Text: text, Hosts: sizes[i]})
	}
	return out
}
