package doctor

import (
	"context"
	"fmt"
	"strings"
	"time"

	"chancery/internal/authority/clone"
	"chancery/internal/upkeep/finding"
)

// CloneLook lists the other nodes with which something is wrong, and says how many others there are.
type CloneLook func(ctx context.Context) ([]clone.Trouble, int, error)

// clones names the other nodes that cannot sign, are not ready, or are not as the rest. What a node's keys open is known where they are, so
// it is what that node last said, a moment ago while it runs.
func (n *Node) clones(ctx context.Context, tell func(finding.Finding)) error {
	all, others, err := n.Clones(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		for _, why := range t.CannotSign {
			tell(finding.Finding{Level: finding.Error, Object: t.Node,
				Message: fmt.Sprintf("node %s cannot sign, as it said at %s: %s", t.Node, t.Said.UTC().Format(time.RFC3339), why),
				Hint:    "chancery doctor at that node, and chancery verify; bring the right key back from a backup, or make a successor: chancery rollout start rotate-issuer"})
		}
		if len(t.NotReady) > 0 {
			tell(finding.Finding{Level: finding.Warning, Object: t.Node, Message: fmt.Sprintf("node %s is not ready: %s", t.Node, strings.Join(t.NotReady, "; ")),
				Hint: "chancery clone status " + t.Node})
		}
		if len(t.Differences) > 0 {
			tell(finding.Finding{Level: finding.Warning, Object: t.Node, Message: fmt.Sprintf("node %s is not as the others: %s", t.Node, strings.Join(t.Differences, "; ")),
				Hint: "chancery clone status " + t.Node})
		}
	}
	if len(all) == 0 {
		tell(finding.Finding{Level: finding.OK, Message: fmt.Sprintf("%d other nodes are ready, sign and are as this one", others)})
	}
	return nil
}
