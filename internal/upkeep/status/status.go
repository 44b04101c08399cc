// Package status says how an authority does, in what one look at the store can tell: issuers and their CRLs, what ends soon,
// who waits, who holds which lease. It changes nothing and opens no key.
package status

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/rollout"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/setup"
)

// Status is how an authority does.
type Status struct {
	Node       string
	Time       time.Time
	Engine     db.Dialect
	Durability string
	Schema     int64
	Clock      error // nil while the clock is not behind
	Issuers    []Issuer
	Expiring   []ca.ExpiryCount
	Pending    int64
	Leases     []db.Lease
	Hosts      host.Counts
	Rollouts   []rollout.Work // that are at work
	Drill      backup.Drilled // the newest
	Warnings   []string       // what an operator should see to
}

// Issuer is how an issuer and its complete CRL do.
type Issuer struct {
	Name       string
	State      ca.IssuerState
	NotAfter   time.Time // zero while it is pending
	Number     string    // of the CRL; empty where there is none
	ThisUpdate time.Time
	NextUpdate time.Time
}

// Of looks at an authority.
func Of(ctx context.Context, s *setup.Services, now time.Time) (*Status, error) {
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	st := &Status{
		Node: s.Audit.Node(), Time: now.UTC(), Engine: s.DB.Dialect(), Durability: string(set.Durability), Clock: s.DB.CheckClock(now),
	}
	if st.Clock != nil {
		st.warn("%v", st.Clock)
	}
	if away := s.DB.Away(); away != nil {
		st.warn("%v, from data %v old", away, s.DB.Age(now).Round(time.Second))
	}
	if unread := s.DB.Unread(); unread != nil {
		st.warn("%v; chancery doctor database", unread)
	}
	if st.Schema, err = schema.Version(ctx, s.DB); err != nil {
		return nil, err
	}
	if st.Expiring, err = s.CA.Expiring(ctx, set.Expiry.Thresholds); err != nil {
		return nil, err
	}
	if st.Pending, err = s.CA.PendingRequests(ctx); err != nil {
		return nil, err
	}
	if st.Leases, err = s.DB.Leases(ctx); err != nil {
		return nil, err
	}
	if st.Hosts, err = s.Hosts.Count(ctx, now); err != nil {
		return nil, err
	}
	st.hosts(now)
	if err := st.issuers(ctx, s, set, now); err != nil {
		return nil, err
	}
	if err := st.trust(ctx, s, now); err != nil {
		return nil, err
	}
	if err := st.rollouts(ctx, s, now); err != nil {
		return nil, err
	}
	if st.Drill, err = backup.LastDrill(ctx, s.Audit); err != nil {
		return nil, err
	}
	if wanting := st.Drill.Wanting(set.Backup.Drill.Std(), now); wanting != "" {
		st.warn("%s; chancery backup drill", wanting)
	}
	if set.PublicURL == "" {
		st.warn("public_url is not set: certificates name no CRL and no OCSP responder; chancery settings set public_url=http://NAME")
	}
	for _, e := range st.Expiring {
		if e.Days == 0 && e.Count > 0 {
			st.warn("%d certificates have ended in the last thirty days and were not replaced", e.Count)
		}
	}
	return st, nil
}

func (st *Status) warn(format string, args ...any) {
	st.Warnings = append(st.Warnings, fmt.Sprintf(format, args...))
}

// hosts warns of what an operator must decide, and of what agents could not do themselves.
func (st *Status) hosts(now time.Time) {
	c := st.Hosts
	if c.Suspect > 0 {
		st.warn("%d hosts are suspect, and get nothing until they are replaced; chancery host list --state suspect", c.Suspect)
	}
	if c.Failed > 0 {
		st.warn("%d placements failed; chancery host list shows them first", c.Failed)
	}
	if c.Silent > 0 {
		st.warn("%d hosts have joined and were not seen for an hour", c.Silent)
	}
	if c.SoonestHost != "" && c.SoonestEnd.Before(now) {
		st.warn("the certificate of placement %s of host %s ended on %s", c.SoonestPlacement, c.SoonestHost, c.SoonestEnd.Format(time.DateOnly))
	}
}

// trust warns of what pools trust and the authority does not renew: it leaves when it ends, and what is below it is refused.
func (st *Status) trust(ctx context.Context, s *setup.Services, now time.Time) error {
	ending, err := s.Trust.Ending(ctx, now.Add(trust.EndingSoon), maxEnding)
	if err != nil {
		return err
	}
	for _, e := range ending {
		if e.Issuer == "" { // issuers of our own are warned of as such
			st.warn("%s", e)
		}
	}
	return nil
}

// rollouts warns of those that wait for somebody.
func (st *Status) rollouts(ctx context.Context, s *setup.Services, now time.Time) (err error) {
	if st.Rollouts, err = s.Rollouts.Working(ctx); err != nil {
		return err
	}
	for _, w := range st.Rollouts {
		if stuck := w.Stuck(now); stuck != "" {
			st.warn("%s; chancery rollout status %s", stuck, w.ID)
		}
	}
	return nil
}

// maxEnding is how many ends of trusted certificates are told of.
const maxEnding = 20

func (st *Status) issuers(ctx context.Context, s *setup.Services, set *settings.Settings, now time.Time) error {
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	for _, i := range all {
		w := Issuer{Name: i.Name, State: i.State}
		if i.Certificate == nil {
			st.Issuers = append(st.Issuers, w)
			continue
		}
		w.NotAfter = i.Certificate.NotAfter
		list, err := s.Revocation.Current(ctx, i.ID, revocation.Complete)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if err == nil {
			w.Number, w.ThisUpdate, w.NextUpdate = list.Number.String(), list.ThisUpdate, list.NextUpdate
			if late := now.Sub(list.RenewAt(set, i)); i.KeyID != "" && late > revocation.Late && now.Before(w.NextUpdate) {
				st.warn("the CRL of issuer %s was to be signed anew %s ago; it ends at %s", i.Name, late.Round(time.Second), w.NextUpdate.UTC().Format(time.RFC3339))
			}
		}
		st.judge(i, w, set.CRL.OfflineWarning.Std(), now)
		st.Issuers = append(st.Issuers, w)
	}
	return nil
}

// judge warns of ends that come near: an issuer's within a tenth of its life, a CRL's that nobody renews in time.
func (st *Status) judge(i *ca.Issuer, w Issuer, offline time.Duration, now time.Time) {
	life := i.Certificate.NotAfter.Sub(i.Certificate.NotBefore)
	switch left := w.NotAfter.Sub(now); {
	case left <= 0:
		st.warn("issuer %s ended on %s", i.Name, w.NotAfter.Format(time.DateOnly))
		return
	case left < life/10 && i.State == ca.IssuerActive:
		st.warn("issuer %s ends on %s", i.Name, w.NotAfter.Format(time.DateOnly))
	}
	switch {
	case w.Number == "":
		st.warn("issuer %s has no CRL", i.Name)
	case now.After(w.NextUpdate):
		st.warn("the CRL of issuer %s is stale since %s", i.Name, w.NextUpdate.UTC().Format(time.RFC3339))
	case i.KeyID == "" && w.NextUpdate.Sub(now) < offline:
		st.warn("the CRL of issuer %s ends on %s and its key is offline; chancery crl issue --issuer %s --key-file F", i.Name,
			w.NextUpdate.Format(time.DateOnly), i.Name)
	}
}
