package doctor

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/authority/revocation"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
)

const (
	// takenWithin is for how long nobody may have the lease to sign CRLs before that is worth a word: after its holder has let go of it, which
	// another node takes it from within seconds, or the same one once it has started again; and, where it was not, after it ended by its
	// holder's clock, which may be so far behind while the node works.
	takenWithin = db.ClockTolerance

	// renewedWithin is how long such a lease is looked at before nobody is said to have it. A holder renews it every five seconds, and one that
	// died has a successor when the lease has lasted for its 15 seconds.
	renewedWithin = 16 * time.Second
	lookAgain     = 250 * time.Millisecond
)

// signer warns where no node signs CRLs, which are good for a while yet: an issuer's own finding comes when one is stale. The time is the
// database's, at the primary where that answers: this machine's clock may be wrong as well. With SQLite there is one node, and whether that
// runs is seen otherwise.
func (n *Node) signer(ctx context.Context, tell func(finding.Finding)) error {
	return n.signs(ctx, renewedWithin, tell)
}

func (n *Node) signs(ctx context.Context, patience time.Duration, tell func(finding.Finding)) error {
	if n.DB.Dialect() != db.Postgres {
		return nil
	}
	l, now, err := n.signing(ctx)
	if err != nil {
		return err
	}
	held := l.Expires.After(now)
	if !held && l.Released.IsZero() && now.Sub(l.Expires) < takenWithin {
		if held, l, err = n.renewed(ctx, l, patience); err != nil {
			return err
		}
	}
	switch {
	case held:
		tell(finding.Finding{Level: finding.OK, Object: l.Holder, Message: fmt.Sprintf("node %s signs CRLs", l.Holder)})
	case !l.Released.IsZero() && now.Sub(l.Released) < takenWithin:
		tell(finding.Finding{Level: finding.OK, Object: l.Holder,
			Message: fmt.Sprintf("node %s let go of the signing of CRLs at %s, and it is soon taken up", l.Holder, l.Released.UTC().Format(time.RFC3339))})
	case l.Pinned != "":
		tell(finding.Finding{Level: finding.Warning, Object: l.Pinned,
			Message: fmt.Sprintf("no node signs CRLs: the work is pinned to %s, which does not do it, and the lists that there are end at their nextUpdate", l.Pinned),
			Hint:    "start that node, or let another have it: chancery clone demote " + l.Pinned})
	default: // also where none ever did
		tell(finding.Finding{Level: finding.Warning, Message: "no node signs CRLs, and the lists that there are end at their nextUpdate",
			Hint: "start a node that runs ca: chancery clone list"})
	}
	return nil
}

// signing reads the lease, and the time.
func (n *Node) signing(ctx context.Context) (l db.Lease, now time.Time, err error) {
	err = n.DB.Read(db.AtPrimary(ctx), func(tx *db.Tx) (err error) {
		if l, err = db.LeaseOf(ctx, tx, revocation.Lease); err != nil {
			return err
		}
		now, err = tx.Clock(ctx)
		return err
	})
	return l, now, err
}

// renewed waits until a lease that has ended by its holder's clock is renewed or taken, and returns whether it was, and how it stands. One
// that is let go of meanwhile is neither.
func (n *Node) renewed(ctx context.Context, was db.Lease, patience time.Duration) (held bool, l db.Lease, err error) {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, was, ctx.Err()
		case <-enough.C:
			return false, was, nil
		case <-again.C:
		}
		if l, _, err = n.signing(ctx); err != nil {
			return false, was, err
		}
		if !l.Released.IsZero() {
			return false, l, nil
		}
		if l.Epoch != was.Epoch || !l.Expires.Equal(was.Expires) {
			return true, l, nil
		}
	}
}
