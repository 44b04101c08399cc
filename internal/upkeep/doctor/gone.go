package doctor

import (
	"context"
	"encoding/json"
	"fmt"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
)

// gone names nodes that are removed and may write still: each node that runs ca ends that within seconds, where it can.
func (n *Node) gone(ctx context.Context, tell func(finding.Finding)) error {
	if n.DB.Dialect() != db.Postgres {
		return nil
	}
	if err := n.strangers(ctx, tell); err != nil {
		return err
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

// strangers names the nodes that are, or were when they were removed, in the database as somebody else, which no removal ends, though there
// is the pool by whose certificates they could have a login of their own. One that is gone is named as long as the owner of the database is
// let in over the network.
func (n *Node) strangers(ctx context.Context, tell func(finding.Finding)) error {
	var active, gone []string
	err := n.DB.Read(db.AtPrimary(ctx), func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT name, state, report FROM node WHERE database_role = '' AND state IN ('active', 'leaving', 'gone')
			AND EXISTS (SELECT 1 FROM pool WHERE name = $1) ORDER BY name`, ca.DatabasePool)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name, state, report string
			if err := rows.Scan(&name, &state, &report); err != nil {
				return err
			}
			// What a node that is gone said last is all that is left of how it was in.
			var said struct{ Database client.CloneDatabase }
			if report != "" {
				if err := json.Unmarshal([]byte(report), &said); err != nil {
					return fmt.Errorf("the report of node %s: %w", name, err)
				}
			}
			switch was := said.Database; {
			case state != client.CloneGone:
				active = append(active, name)
			case was.Engine == string(db.Postgres) && was.LoginEnds.IsZero():
				gone = append(gone, name)
			}
		}
		return rows.Err()
	})
	if err != nil {
		return err
	}
	for _, name := range active {
		tell(finding.Finding{Level: finding.Warning, Object: name,
			Message: fmt.Sprintf("node %s has no login of its own at the database, and what its URL names would let it in after its removal", name),
			Hint:    "take user and certificate out of the URL in its file, wait until the node has its login, and start it again: docs/database.md, The move"})
	}
	if len(gone) == 0 {
		return nil
	}
	enters, err := n.DB.OwnerEnters(ctx)
	if err != nil || !enters {
		return err
	}
	for _, name := range gone {
		tell(finding.Finding{Level: finding.Warning, Object: name,
			Message: fmt.Sprintf("node %s is removed, had no login of its own at the database, and nothing shows that PostgreSQL lets nobody in as the owner over the network", name),
			Hint: "take its line out of pg_ident on each member, reload, and end the owner's sessions (SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = …); " +
				"deploy/patroni/logins.sql of this release has the function by which that is seen"})
	}
	return nil
}
