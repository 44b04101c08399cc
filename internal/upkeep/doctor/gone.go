package doctor

import (
	"context"
	"fmt"

	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
)

// gone names nodes that are removed and may write still: each node that runs ca ends that within seconds, where it can.
func (n *Node) gone(ctx context.Context, tell func(finding.Finding)) error {
	if n.DB.Dialect() != db.Postgres {
		return nil
	}
	return n.DB.Read(db.AtPrimary(ctx), func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT n.name, n.database_role FROM node n LEFT JOIN write_mark w ON w.node = n.name
			WHERE n.state = 'gone' AND (n.database_role <> '' OR w.fence <> -1) ORDER BY n.name`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name, role string
			if err := rows.Scan(&name, &role); err != nil {
				return err
			}
			why := "its fence is not raised"
			if role != "" {
				why = "its login " + role + " is not ended"
			}
			tell(finding.Finding{Level: finding.Warning, Object: name, Message: fmt.Sprintf("node %s is removed, and may write still: %s", name, why),
				Hint: "chancery clone remove " + name + " does the rest, or says why it cannot"})
		}
		return rows.Err()
	})
}
