package rollout

import (
	"context"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fleet/host"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// quiet is after how long without a call an agent is said to be silent: they call every five minutes at the least.
const quiet = 15 * time.Minute

// holds says why a host holds a wave, and what to do.
func holds(k host.Lack, goal host.Goal, now time.Time) client.RolloutHost {
	out := client.RolloutHost{Host: k.Name, SeenAt: k.SeenAt}
	out.Message = lacks(k, goal)
	switch {
	case k.State == client.HostSuspect:
		out.Message = "it is suspect: " + k.Message + "; chancery host replace " + k.Name
	case k.SeenAt.IsZero():
		out.Message = "its agent has never called since it joined; " + out.Message
	case now.Sub(k.SeenAt) > quiet:
		out.Message = fmt.Sprintf("its agent has not called since %s; %s", k.SeenAt.UTC().Format(time.RFC3339), out.Message)
	}
	return out
}

func lacks(k host.Lack, goal host.Goal) string {
	switch {
	case k.Placement == "" && goal.Identity:
		return "it has not got another identity yet"
	case k.Placement == "":
		return "start it, or leave it out"
	case k.PlacementState == client.PlacementFailed:
		return fmt.Sprintf("placement %s fails: %s", k.Placement, k.Said)
	case k.PlacementState == client.PlacementPending:
		return fmt.Sprintf("nothing is reported of placement %s yet", k.Placement)
	case goal.Trust != 0 && k.Trust != goal.Trust:
		return fmt.Sprintf("placement %s has %s of the trust in use, and not %s yet", k.Placement, client.TrustVersion(k.Trust), client.TrustVersion(goal.Trust))
	case goal.Held:
		return fmt.Sprintf("placement %s has no certificate yet under the issuer that it had before", k.Placement)
	case goal.Issuer != "" && k.Issuer != goal.Issuer:
		return fmt.Sprintf("placement %s has no certificate under the other issuer yet", k.Placement)
	}
	return fmt.Sprintf("placement %s has no new key yet", k.Placement)
}

// leaving are the issuers of ours whose trust is about to be taken away.
func (r *row) leaving(all []*ca.Issuer) []*ca.Issuer {
	var found []*ca.Issuer
	for _, i := range all {
		if i.Certificate == nil {
			continue
		}
		made := r.plan.Next != nil && (i.Name == r.plan.Next.Issuer || i.Name == r.plan.Next.Root)
		if r.backwards && made && i.Pool == r.pool || !r.backwards && slices.Contains(r.plan.Retires, i.ID) {
			found = append(found, i)
		}
	}
	return found
}

// remaining are the certificates that no agent replaces and that hold the last stage: somebody got them for himself.
func (s *Service) remaining(ctx context.Context, tx *db.Tx, r *row, now time.Time) ([]client.RolloutHost, error) {
	if !movesTrust(r.kind) || r.spec.Compromised {
		return nil, nil
	}
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	machines, err := host.MachinesOf(ctx, tx, r.pool)
	if err != nil {
		return nil, err
	}
	return r.unreplaced(ctx, tx, r.leaving(all), now, func(requester string) bool { return machines[requester] })
}

// unreplaced names certificates of issuers that are good and that nothing took the place of.
func (r *row) unreplaced(ctx context.Context, tx *db.Tx, issuers []*ca.Issuer, now time.Time, skip func(string) bool) ([]client.RolloutHost, error) {
	agents, err := host.MachinesOf(ctx, tx, r.pool)
	if err != nil {
		return nil, err
	}
	left, err := ca.RemainingUnder(ctx, tx, issuers, now, maxNamed+len(r.plan.Serials), func(requester string) bool { return agents[requester] }, skip)
	if err != nil {
		return nil, err
	}
	var found []client.RolloutHost
	for _, k := range left {
		serial := cert.FormatSerial(k.Serial)
		if _, excepted := r.plan.Serials[serial]; excepted {
			continue
		}
		found = append(found, client.RolloutHost{Serial: serial, Message: fmt.Sprintf("%s under %s, until %s: no host replaces it",
			k.Subject, k.Issuer, k.NotAfter.UTC().Format(time.DateOnly))})
	}
	return found, nil
}

// gate says who still presents what is about to be trusted no more; issuers are those that leave.
func (s *Service) gate(ctx context.Context, tx *db.Tx, r *row, issuers []*ca.Issuer, now time.Time) ([]client.RolloutHost, error) {
	prints := r.plan.Leaves
	if r.backwards {
		prints = r.plan.Comes
	}
	excepted, err := members(ctx, tx, r, ` AND because <> ''`)
	if err != nil {
		return nil, err
	}
	presented, err := host.Presented(ctx, tx, r.pool, prints, maxNamed+64*len(excepted))
	if err != nil {
		return nil, err
	}
	var held []client.RolloutHost
	for _, k := range presented {
		if !slices.ContainsFunc(excepted, func(m member) bool { return m.id == k.ID }) && len(held) < maxNamed {
			held = append(held, client.RolloutHost{Host: k.Name, Message: fmt.Sprintf("placement %s still presents a certificate under what is to be left", k.Placement)})
		}
	}
	// What a host holds that is not waited for is not waited for either.
	machines, err := host.Machines(ctx, tx, idsOf(excepted))
	if err != nil {
		return nil, err
	}
	absent := map[string]bool{}
	for _, principal := range machines {
		absent[principal] = true
	}
	left, err := r.unreplaced(ctx, tx, issuers, now, func(requester string) bool { return absent[requester] })
	if err != nil {
		return nil, err
	}
	return append(held, left...), nil
}
