package doctor

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/authority/revocation"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
)

// takenWithin is how long nobody may have the lease to sign CRLs before that is worth a word: another node takes it within seconds.
const takenWithin = time.Minute

// signer warns where no node signs CRLs, which are good for a while yet: an issuer's own finding comes when one is stale. With SQLite
// there is one node, and whether that runs is seen otherwise.
func (n *Node) signer(ctx context.Context, now time.Time, tell func(finding.Finding)) error {
	if n.DB.Dialect() != db.Postgres {
		return nil
	}
	leases, err := n.DB.Leases(ctx)
	if err != nil {
		return err
	}
	for _, l := range leases {
		switch {
		case l.Name != revocation.Lease:
		case now.Sub(l.Expires) < takenWithin:
			tell(finding.Finding{Level: finding.OK, Object: l.Holder, Message: fmt.Sprintf("node %s signs CRLs", l.Holder)})
		case l.Pinned != "":
			tell(finding.Finding{Level: finding.Warning, Object: l.Pinned,
				Message: fmt.Sprintf("no node signs CRLs: the work is pinned to %s, which does not do it, and the lists that there are end at their nextUpdate", l.Pinned),
				Hint:    "start that node, or let another have it: chancery clone demote " + l.Pinned})
		default:
			tell(finding.Finding{Level: finding.Warning, Message: "no node signs CRLs, and the lists that there are end at their nextUpdate",
				Hint: "start a node that runs ca: chancery clone list"})
		}
	}
	return nil
}
