package doctor

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/authority/revocation"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
)

// takenWithin is for how long nobody may have the lease to sign CRLs before that is worth a word: another node takes it within seconds. When
// it ends is dated by its holder's clock, which may be so far behind and the node still works.
const takenWithin = db.ClockTolerance

// signer warns where no node signs CRLs, which are good for a while yet: an issuer's own finding comes when one is stale. The time is the
// database's, at the primary where that answers: this machine's clock may be wrong as well. With SQLite there is one node, and whether that
// runs is seen otherwise.
func (n *Node) signer(ctx context.Context, tell func(finding.Finding)) error {
	if n.DB.Dialect() != db.Postgres {
		return nil
	}
	var l db.Lease
	var now time.Time
	err := n.DB.Read(db.AtPrimary(ctx), func(tx *db.Tx) (err error) {
		if l, err = db.LeaseOf(ctx, tx, revocation.Lease); err != nil {
			return err
		}
		now, err = tx.Clock(ctx)
		return err
	})
	if err != nil {
		return err
	}
	switch {
	case now.Sub(l.Expires) < takenWithin:
		tell(finding.Finding{Level: finding.OK, Object: l.Holder, Message: fmt.Sprintf("node %s signs CRLs", l.Holder)})
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
