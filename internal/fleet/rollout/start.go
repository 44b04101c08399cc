package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// draft is a rollout that is about to begin.
type draft struct {
	*row
	waves    []selector
	hosts    []host.Member
	members  []member
	excepted map[string]string // by host's name: why
}

// Start begins a rollout, or says what it would do. Where the key of the root is elsewhere, it then waits for what the root is
// to sign: Complete.
func (s *Service) Start(ctx context.Context, by access.Principal, in client.StartRolloutRequest, call once.Call) (*client.Rollout, error) {
	if err := mayStart(by, in); err != nil {
		return nil, err
	}
	now := time.Now()
	if !in.DryRun {
		if id, found, err := s.earlier(ctx, call); err != nil || found {
			if err != nil {
				return nil, err
			}
			return s.Show(ctx, by, id)
		}
	}
	d, err := s.draft(ctx, by, in, now)
	if err != nil {
		return nil, fmt.Errorf("plan the rollout %s: %w", in.Kind, err)
	}
	if in.DryRun {
		return d.preview(), nil
	}
	if err := s.DB.CheckClock(now); err != nil {
		return nil, err
	}
	if movesTrust(d.kind) { // what the pool trusts is known from here on
		if _, err := s.Trust.Present(ctx, d.pool, now); err != nil {
			return nil, fmt.Errorf("start the rollout %s: %w", in.Kind, err)
		}
	}
	id := ""
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		id, err = once.Act(ctx, tx, call, now, func() (string, error) { return s.insert(ctx, tx, d, by, now) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start the rollout %s: %w", in.Kind, err)
	}
	// What waits for an offline root is made now, so that the caller can have it signed. If this is cut short, the node that drives
	// does it.
	if err := s.prepare(ctx, id); err != nil {
		s.Logger.WarnContext(ctx, "a rollout is not prepared yet", "rollout", id, "error", err)
	}
	s.rouse()
	return s.Show(ctx, by, id)
}

// rouse has the driver of this node look at once.
func (s *Service) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// earlier finds the rollout that an earlier call with the key began, before anything is judged that has changed since.
func (s *Service) earlier(ctx context.Context, call once.Call) (id string, found bool, err error) {
	if call.Key == "" {
		return "", false, nil
	}
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		id, found, err = once.Earlier[string](ctx, tx, call)
		return err
	})
	return id, found, err
}

// mayStart: whoever keeps hosts may have their keys changed; whom they trust is for who keeps pools, and what is revoked for who may
// revoke.
func mayStart(by access.Principal, in client.StartRolloutRequest) error {
	if in.Compromised && !in.DryRun { // what is compromised is revoked
		if err := by.May(access.RevokeCertificate); err != nil {
			return err
		}
	}
	if movesTrust(in.Kind) && !in.DryRun {
		return by.May(access.ManagePools)
	}
	return by.May(access.ManageHosts)
}

// draft judges a request and plans it.
func (s *Service) draft(ctx context.Context, by access.Principal, in client.StartRolloutRequest, now time.Time) (*draft, error) {
	if in.Pool == "" {
		in.Pool = pool.Default
	}
	d := &draft{excepted: map[string]string{}, row: &row{
		pool: in.Pool, kind: in.Kind, state: client.RolloutRunning, stage: client.StagePrepare, spec: in, actor: by.Actor(), created: now, changed: now,
	}}
	d.spec.DryRun = false
	if err := d.judge(); err != nil {
		return nil, err
	}
	var err error
	waves := in.Waves
	if in.Compromised {
		waves = []string{everyone}
	}
	if d.waves, err = parseWaves(waves); err != nil {
		return nil, err
	}
	if in.Pool == pool.Identity {
		return nil, fault.New(fault.Invalid, "the pool %q is of identities, and no host is in it", in.Pool).At("/pool").WithHint("chancery pool list")
	}
	if _, err := s.Pools.Pool(ctx, in.Pool); err != nil {
		return nil, err
	}
	if err := s.alone(ctx, in.Pool); err != nil {
		return nil, err
	}
	d.plan.Steps, d.plan.Waves = forward(d.kind, in.Compromised), texts(d.waves)
	if movesTrust(d.kind) {
		if err := s.succession(ctx, d); err != nil {
			return nil, err
		}
	}
	if err := s.choose(ctx, d); err != nil {
		return nil, err
	}
	return d, s.foresee(ctx, d, now)
}

// judge refuses what contradicts itself.
func (d *draft) judge() error {
	in := &d.spec
	refuse := func(where, format string, args ...any) error {
		return fault.New(fault.Invalid, format, args...).At("/" + where)
	}
	kinds := []string{client.RolloutReissue, client.RolloutIssuer, client.RolloutRoot, client.RolloutIdentities, client.RolloutAlgorithm, client.RolloutRotateAway}
	narrow := in.Kind == client.RolloutReissue || in.Kind == client.RolloutAlgorithm || in.Kind == client.RolloutIdentities
	switch {
	case !slices.Contains(kinds, in.Kind):
		return refuse("kind", "rollout %.40q is not one of %s", in.Kind, strings.Join(kinds, ", "))
	case len(in.Select) > 0 && !narrow:
		return refuse("select", "a rollout %s is for all hosts of the pool, since they trust each other; select narrows reissue, identities and algorithm", in.Kind)
	case in.Kind == client.RolloutAlgorithm && in.Algorithm == "":
		return refuse("algorithm", "which algorithm? rsa-3072, ecdsa-p256 and ecdsa-p384 are some")
	case in.Algorithm != "" && (in.Kind == client.RolloutReissue || in.Kind == client.RolloutIdentities):
		return refuse("algorithm", "a rollout %s keeps the algorithm; the rollout algorithm changes it", in.Kind)
	case in.From == "" && in.Kind == client.RolloutRotateAway:
		return refuse("from", "away from what? an entry of chancery pool trust list %s, its fingerprint, or an issuer's name", in.Pool)
	case in.From != "" && in.Kind != client.RolloutRotateAway:
		return refuse("from", "only a rollout rotate-away has something that it goes away from")
	case (in.Online || in.Validity != "") && in.Kind != client.RolloutRoot && in.Kind != client.RolloutRotateAway:
		return refuse("online", "a rollout %s makes no root", in.Kind)
	case in.Key != "" && in.Kind != client.RolloutIssuer && in.Kind != client.RolloutRoot && in.Kind != client.RolloutRotateAway:
		return refuse("key", "a rollout %s makes no issuer", in.Kind)
	case in.Compromised && in.Kind == client.RolloutIdentities:
		return fault.New(fault.Invalid, "an agent whose identity is revoked cannot ask for another one").At("/compromised").
			WithHint("chancery host replace NAME --reason keyCompromise")
	case in.Compromised && in.Kind == client.RolloutAlgorithm:
		return refuse("compromised", "a change of algorithm is no answer to a compromise; a rollout reissue --compromised revokes and re-keys")
	case in.Compromised && len(in.Waves) > 0:
		return refuse("waves", "after a compromise there are no waves: all hosts at once")
	case in.Compromised && in.Because == "":
		return refuse("because", "a compromise needs a reason that stays in the audit")
	case len(in.Except) > 0 && in.Because == "":
		return refuse("because", "leaving hosts or certificates out needs a reason that stays in the audit")
	case len(in.Except) == 0 && in.Because != "" && !in.Compromised:
		return refuse("because", "nothing is left out that needs a reason")
	}
	if in.Algorithm != "" {
		algorithm, err := keyfile.ParseAlgorithm(in.Algorithm)
		if err != nil {
			return err
		}
		d.plan.Algorithm = algorithm
	}
	if in.Validity != "" {
		validity, err := cert.ParseDuration(in.Validity)
		if err != nil {
			return err
		}
		if d.plan.Validity = time.Duration(validity); d.plan.Validity < leastAtStart {
			return refuse("validity", "a root of %s was asked for; what hosts go to has to last %d days at the least", in.Validity, leastAtStart/(24*time.Hour))
		}
	}
	return nil
}

// alone refuses a second rollout on a pool.
func (s *Service) alone(ctx context.Context, pool string) error {
	return s.DB.Read(ctx, func(tx *db.Tx) error { return aloneIn(ctx, tx, pool) })
}

func aloneIn(ctx context.Context, tx *db.Tx, pool string) error {
	all, err := read(ctx, tx, `WHERE pool = $1 AND ended_at = 0`, pool)
	if err != nil || len(all) == 0 {
		return err
	}
	r := all[0]
	return fault.New(fault.Conflict, "rollout %s (%s) is at work on pool %q: %s, stage %s; a pool has one rollout at a time", r.id, r.kind, pool, r.state, r.stage).
		WithHint("chancery rollout status %s shows how far it is; chancery rollout abort %s ends it", r.id, r.id)
}

// choose puts hosts into waves, and finds those that are left out.
func (s *Service) choose(ctx context.Context, d *draft) error {
	var unwell map[string]bool
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		if d.hosts, err = allMembers(ctx, tx, d.pool); err != nil {
			return err
		}
		failures, err := host.Failures(ctx, tx, d.pool, 10_000)
		unwell = map[string]bool{}
		for _, f := range failures {
			unwell[f.ID] = true
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := s.except(ctx, d.row, d.hosts, d.spec.Except, d.spec.Because, d.excepted); err != nil {
		return err
	}
	if err := d.narrow(); err != nil {
		return err
	}
	if len(d.excepted) > 0 && !slices.ContainsFunc(d.hosts, func(m host.Member) bool { return d.excepted[m.Name] == "" }) {
		return fault.New(fault.Invalid, "all hosts that it is for are left out: nobody would be waited for, and nothing be seen").At("/except")
	}
	if err := unknown(d.waves, d.hosts, d.pool, "/waves"); err != nil {
		return err
	}
	if d.kind == client.RolloutAlgorithm {
		if err := s.algorithms(ctx, d); err != nil {
			return err
		}
	}
	assigned := assign(d.waves, d.hosts, unwell)
	befores := map[string]string{}
	for _, m := range d.members {
		befores[m.id] = m.before
	}
	d.members = d.members[:0]
	for _, h := range d.hosts {
		d.members = append(d.members, member{id: h.ID, name: h.Name, wave: assigned[h.ID], because: d.excepted[h.Name], before: befores[h.ID]})
	}
	return nil
}

// narrow leaves the hosts that are selected.
func (d *draft) narrow() error {
	if len(d.spec.Select) == 0 {
		return nil
	}
	var selected []selector
	for _, text := range d.spec.Select {
		one, err := parseSelector(text)
		if err != nil {
			return err
		}
		selected = append(selected, one)
	}
	if err := unknown(selected, d.hosts, d.pool, "/select"); err != nil {
		return err
	}
	d.hosts = slices.DeleteFunc(d.hosts, func(m host.Member) bool {
		return !slices.ContainsFunc(selected, func(one selector) bool { return one.matches(&m) })
	})
	return nil
}

// except sorts what is left out into hosts of the pool, by name, and serials of certificates.
func (s *Service) except(ctx context.Context, r *row, hosts []host.Member, names []string, because string, excepted map[string]string) error {
	if r.plan.Serials == nil {
		r.plan.Serials = map[string]string{}
	}
	for _, name := range names {
		name = strings.ToLower(name)
		if slices.ContainsFunc(hosts, func(m host.Member) bool { return m.Name == name }) {
			excepted[name] = because
			continue
		}
		known := false
		err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
			known, err = s.CA.Exists(ctx, tx, name)
			return err
		})
		if err != nil {
			return err
		}
		if !known {
			return fault.New(fault.Invalid, "%.80q is neither a host of pool %q nor the serial number of a certificate", name, r.pool).At("/except").
				WithHint("chancery host list --pool %s", r.pool)
		}
		if serial, err := cert.ParseSerial(name); err == nil {
			r.plan.Serials[cert.FormatSerial(serial)] = because
		}
	}
	return nil
}

func allMembers(ctx context.Context, tx *db.Tx, pool string) ([]host.Member, error) {
	const page = 1000
	var all []host.Member
	for after := ""; ; {
		some, err := host.Members(ctx, tx, pool, after, page)
		if err != nil {
			return nil, err
		}
		if all = append(all, some...); len(some) < page {
			return all, nil
		}
		after = some[page-1].ID
	}
}

// change is what a change of algorithm does to a host's placements: parameters by the placement's name.
type change struct {
	Before map[string]map[string]string `json:"before"` // an empty value: not given
	After  map[string]map[string]string `json:"after"`
}

// algorithms finds out whose placements have a parameter for the algorithm, and leaves those hosts.
func (s *Service) algorithms(ctx context.Context, d *draft) error {
	algorithm := string(d.plan.Algorithm)
	without, cannot := map[string]bool{}, map[string]bool{}
	changed := map[string]bool{}
	err := s.eachHolding(ctx, d.hosts, func(held []host.Held) error {
		changes := map[string]*change{}
		for _, h := range held {
			r, ok := s.Recipe(h.Placement.Recipe)
			if !ok {
				without[h.Placement.Recipe] = true
				continue
			}
			parameter, value, fits := algorithmOf(r, algorithm)
			switch now, given := h.Placement.Parameters[parameter]; {
			case parameter == "":
				without[r.Name] = true
			case !fits:
				cannot[r.Name] = true
			case given && now == algorithm, !given && value == algorithm:
			default:
				c := changes[h.ID]
				if c == nil {
					c = &change{map[string]map[string]string{}, map[string]map[string]string{}}
					changes[h.ID] = c
				}
				c.Before[h.Placement.Name] = map[string]string{parameter: now}
				c.After[h.Placement.Name] = map[string]string{parameter: algorithm}
			}
		}
		for id, c := range changes {
			text, err := json.Marshal(c)
			if err != nil {
				return err
			}
			changed[id] = true
			d.members = append(d.members, member{id: id, before: string(text)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, note := range []struct {
		recipes map[string]bool
		text    string
	}{
		{without, "the recipe %s leaves no choice of the key's algorithm: its placements stay as they are"},
		{cannot, "the recipe %s does not offer " + algorithm + ": its placements stay as they are"},
	} {
		for _, name := range sorted(note.recipes) {
			d.plan.Said.Notes = append(d.plan.Said.Notes, fmt.Sprintf(note.text, name))
		}
	}
	d.hosts = slices.DeleteFunc(d.hosts, func(m host.Member) bool { return !changed[m.ID] })
	return nil
}

// insert writes the rollout with its hosts.
func (s *Service) insert(ctx context.Context, tx *db.Tx, d *draft, by access.Principal, now time.Time) (string, error) {
	if err := aloneIn(ctx, tx, d.pool); err != nil {
		return "", err
	}
	d.plan.Said.Actions, d.plan.Said.Would = nil, nil // they change, and the row is read at each look
	var err error
	if d.plan.Reissue, err = host.NextReissue(ctx, tx, now); err != nil {
		return "", err
	}
	if err := d.row.insert(ctx, tx); err != nil {
		return "", err
	}
	if movesTrust(d.kind) {
		if err := s.Trust.Claim(ctx, tx, d.pool, d.id); err != nil {
			return "", err
		}
		if err := s.keepAnew(ctx, tx, d.row, now); err != nil { // from here on nobody renews an issuer of the pool
			return "", err
		}
	}
	if err := insertMembers(ctx, tx, d.row, d.members); err != nil {
		return "", err
	}
	detail := map[string]any{
		"kind": d.kind, "pool": d.pool, "hosts": len(d.members), "waves": d.plan.Waves, "old": d.plan.Said.Old, "new": d.plan.Said.New,
	}
	if d.spec.Compromised {
		detail["compromised"], detail["because"] = true, d.spec.Because
	}
	if err := s.record(ctx, tx, by.Actor(), "rollout.start", d.row, detail, now); err != nil {
		return "", err
	}
	if len(d.spec.Except) == 0 {
		return d.id, nil
	}
	return d.id, s.record(ctx, tx, by.Actor(), "rollout.except", d.row, map[string]any{"except": d.spec.Except, "because": d.spec.Because}, now)
}

func (s *Service) record(ctx context.Context, tx *db.Tx, actor, action string, r *row, detail map[string]any, now time.Time) error {
	return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: actor, Action: action, Object: "rollout " + r.id, Detail: detail})
}

// refusal reports whether an error says that what was asked for cannot be: to try again would not help.
func refusal(err error) bool {
	return fault.Is(err, fault.Invalid) || fault.Is(err, fault.Conflict) || fault.Is(err, fault.Denied) || fault.Is(err, fault.NotFound)
}
