package clone

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/token"
)

// turns are the leases that may be given to a node by hand.
var turns = []string{revocation.Lease, audit.Lease, "rollout"} // never changed

// turnFor is how long a lease is its new holder's before that one has taken it up; then others may have it, unless it is pinned.
const turnFor = 15 * time.Second

// turned is a lease that was handed over, and who had it before.
type turned struct {
	db.Lease
	From, WasPinned string
	// Lists are the lists that were asked for, as they were: by where the key is, then by the issuer's ID, the number; empty where there was none.
	Lists map[string]map[string]string `json:",omitempty"`

	waited time.Duration // for how long it was waited for
}

// Promote gives a node a lease: in one transaction it is the new holder's, and what the old one still does under it is refused. So
// there is no moment at which both or neither could. A node whose last report says that it could not do the work is refused. It waits until
// the holder has taken the lease up, or said once more that it has it, whoever else has given it to the same node meanwhile; with a CRL's
// lease every issuer's list is asked for anew, and it waits for the first of them, and for the first from each token, but for what the holder
// cannot open by its last report: nobody who could take its place can either. From a holder that does not, since it died a moment ago for
// example, the lease goes back, and the answer is a Conflict that says who has it now. A call that was not answered may be repeated.
func (s *Service) Promote(ctx context.Context, by access.Principal, name string, in client.CloneTurn, call once.Call) (*client.Clone, error) {
	return s.turn(ctx, by, in, call, "clone.promote", func(ctx context.Context, tx *db.Tx, _ db.Lease) (string, error) {
		r, err := named(ctx, tx, name)
		if err != nil {
			return "", err
		}
		all, now, err := crowd(ctx, tx)
		if err != nil {
			return "", err
		}
		return r.name, mayHold(r, all, now)
	}, name)
}

// Demote gives a lease that a node has to another: the one that was seen last. It is no longer pinned then. A node that does not have
// it is left as it is.
func (s *Service) Demote(ctx context.Context, by access.Principal, name string, in client.CloneTurn, call once.Call) (*client.Clone, error) {
	if in.Pin {
		return nil, fault.New(fault.Invalid, "a lease is pinned to the node that gets it").At("/pin").WithHint("chancery clone promote NODE --pin")
	}
	return s.turn(ctx, by, in, call, "clone.demote", func(ctx context.Context, tx *db.Tx, l db.Lease) (string, error) {
		if _, err := named(ctx, tx, name); err != nil {
			return "", err
		}
		if l.Holder != name && l.Pinned != name {
			return "", nil
		}
		all, now, err := crowd(ctx, tx)
		if err != nil {
			return "", err
		}
		fit := slices.DeleteFunc(slices.Clone(all), func(r *row) bool { return r.name == name || mayHold(r, all, now) != nil })
		if len(fit) == 0 {
			return "", fault.New(fault.Conflict, "no other node that runs ca and is ready was seen in the last %s, so node %s keeps the lease %q", AliveFor, name, l.Name).
				WithHint("start another node, then try again; chancery clone list shows them")
		}
		return slices.MaxFunc(fit, func(a, b *row) int { return a.seen.Compare(b.seen) }).name, nil
	}, name)
}

// crowd reads all nodes, and the time by the clock that dates when they were seen.
func crowd(ctx context.Context, tx *db.Tx) (all []*row, now time.Time, err error) {
	if now, err = tx.Clock(ctx); err == nil {
		all, err = nodes(ctx, tx, "", MaxNodes)
	}
	return all, now, err
}

// mayHold refuses a node that could not do what only one node does; now is the database's.
func mayHold(r *row, all []*row, now time.Time) error {
	switch {
	case r.state != client.CloneActive:
		return goneError(r)
	case !r.runs(keys.SubsystemCA):
		return fault.New(fault.Conflict, "node %s runs %v and has no issuer's key; only a node that runs ca can hold a lease", r.name, r.subsystems)
	case r.seen.IsZero():
		return fault.New(fault.Conflict, "node %s has not started yet, and would leave the work undone", r.name).WithHint("start it, then try again")
	case !r.alive(now):
		return fault.New(fault.Conflict, "node %s was last seen at %s, and would leave the work undone; one that was seen in the last %s passes", r.name,
			r.seen.UTC().Format(time.RFC3339), AliveFor)
	}
	if why := r.unfit(all, now); len(why) > 0 {
		return fault.New(fault.Conflict, "node %s cannot sign, and would leave the work undone: %s", r.name, strings.Join(why, "; ")).
			WithHint("mend that, and wait for chancery clone status %s to say that it is ready; then try again", r.name)
	}
	return nil
}

func (r *row) alive(now time.Time) bool { return now.Sub(r.seen) < AliveFor }

// unfit is why a node would not do the work by its own last report: that keys do not open, a token is not reached, or its clock is wrong, with
// which it takes no lease (ahead), or signs nothing under it (behind). What every other
// node that lives and could do the work reports as well, in whatever words, is no reason, and nothing is where there is none: who could do
// better?
func (r *row) unfit(all []*row, now time.Time) []string {
	var others []*row
	for _, o := range all {
		if o.name != r.name && o.state == client.CloneActive && o.runs(keys.SubsystemCA) && !o.seen.IsZero() && o.alive(now) {
			others = append(others, o)
		}
	}
	found := slices.DeleteFunc(slices.Clone(r.report.CannotSign), func(why string) bool {
		return !slices.ContainsFunc(others, func(o *row) bool { return !o.report.says(&r.report, why) })
	})
	if r.report.Clock != "" && slices.ContainsFunc(others, func(o *row) bool { return o.report.Clock == "" }) {
		found = append(found, r.report.Clock)
	}
	return found
}

// says reports whether a node says the same of itself as another one does.
func (p *report) says(other *report, why string) bool {
	for key, said := range other.Closed {
		if _, closed := p.Closed[key]; closed && said == why {
			return true
		}
	}
	return slices.Contains(p.CannotSign, why)
}

// turn hands a lease over to whom choose names; to nobody where that is empty. shown is the node that the answer is about.
func (s *Service) turn(ctx context.Context, by access.Principal, in client.CloneTurn, call once.Call, action string,
	choose func(context.Context, *db.Tx, db.Lease) (string, error), shown string) (*client.Clone, error) {
	if err := by.May(access.ManageNodes); err != nil {
		return nil, err
	}
	if in.Lease == "" {
		in.Lease = revocation.Lease
	}
	if !slices.Contains(turns, in.Lease) {
		return nil, fault.New(fault.Invalid, "there is no lease %.80q; %v would pass", in.Lease, turns).At("/lease")
	}
	var signers []signer
	if in.Lease == revocation.Lease {
		var err error
		if signers, err = s.signers(ctx); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	if err := s.DB.CheckClock(now); err != nil {
		return nil, err
	}
	var given turned
	err := s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		given, err = once.Act(ctx, tx, call, now, func() (turned, error) {
			return s.handOver(ctx, tx, by, in, action, choose, signers, now)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("give the lease %q away: %w", in.Lease, err)
	}
	if given.Holder != "" {
		held := context.WithoutCancel(ctx) // who asked may be cut off; the work is somebody's all the same
		err := s.takenUp(held, &given)
		if errors.Is(err, errNotTakenUp) {
			err = s.takeBack(held, by, &given, action)
		}
		if err != nil {
			return nil, err
		}
	}
	return s.Show(ctx, by, shown)
}

// signer is an issuer, and where its key is.
type signer struct {
	*ca.Issuer
	place string
}

func (s *Service) signers(ctx context.Context) ([]signer, error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	inTokens, err := s.Keys.InTokens(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]signer, len(issuers))
	for i, issuer := range issuers {
		all[i] = signer{issuer, "store"}
		if at := slices.IndexFunc(inTokens, func(k keys.Key) bool { return k.ID == issuer.KeyID }); at >= 0 {
			u, err := token.Parse(inTokens[at].Token)
			if err != nil {
				return nil, fmt.Errorf("the key of issuer %s: %w", issuer.Name, err)
			}
			all[i].place = "token " + u.Serial
		}
	}
	return all, nil
}

// handOver also asks a holder for a word that has the lease already, as it shall have it: it may have died since.
func (s *Service) handOver(ctx context.Context, tx *db.Tx, by access.Principal, in client.CloneTurn, action string,
	choose func(context.Context, *db.Tx, db.Lease) (string, error), signers []signer, now time.Time) (turned, error) {
	had, err := db.LeaseOf(ctx, tx, in.Lease)
	if err != nil {
		return turned{}, err
	}
	to, err := choose(ctx, tx, had)
	if err != nil || to == "" {
		return turned{}, err
	}
	given, err := db.HandOver(ctx, tx, in.Lease, to, in.Pin, turnFor, now)
	if err != nil {
		return turned{}, err
	}
	holder, err := named(ctx, tx, to)
	if err != nil {
		return turned{}, err
	}
	out := turned{Lease: given, From: given.GivenFrom, WasPinned: given.GivenPinned}
	if out.Lists, err = askLists(ctx, tx, signers, holder.report.Closed, now); err != nil {
		return turned{}, err
	}
	if had.Holder == to && had.Pinned == given.Pinned && had.Epoch == given.Epoch {
		return out, nil
	}
	return out, s.audit(ctx, tx, by.Actor(), action, to, map[string]any{
		"lease": in.Lease, "from": had.Holder, "epoch": given.Epoch, "pinned": in.Pin,
	}, now)
}

// askLists asks for the lists of all who sign here, and returns which are in force; those whose key is closed to the holder nobody waits for.
func askLists(ctx context.Context, tx *db.Tx, signers []signer, closed map[string]string, now time.Time) (map[string]map[string]string, error) {
	if len(signers) == 0 {
		return nil, nil
	}
	numbers, err := revocation.CurrentNumbers(ctx, tx)
	if err != nil {
		return nil, err
	}
	before := map[string]map[string]string{}
	for _, i := range signers {
		asked, err := revocation.AskAny(ctx, tx, i.Issuer, now)
		if err != nil {
			return nil, err
		}
		if _, is := closed[i.KeyID]; is || !asked {
			continue
		}
		if before[i.place] == nil {
			before[i.place] = map[string]string{}
		}
		before[i.place][i.ID] = numbers[i.ID].Number
	}
	return before, nil
}
