package api

import (
	"context"
	"slices"
	"strings"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/keys"
)

// runsCA refuses where this node does not run the subsystem ca, and names those that do.
func (s *Server) runsCA(ctx context.Context) error {
	if len(s.options.Subsystems) == 0 || slices.Contains(s.options.Subsystems, keys.SubsystemCA) {
		return nil
	}
	var runs []string
	for _, one := range s.options.Subsystems {
		runs = append(runs, string(one))
	}
	refused := fault.New(fault.Conflict, "this node runs %s, and what needs an issuer's key, or writes more than how "+
		"the node is, is done where ca runs: this node never has such a key", strings.Join(runs, " and "))
	others, err := s.caNodes(ctx)
	if err != nil || len(others) == 0 {
		return refused // where that is, nobody can say now
	}
	return refused.WithHint("ca runs on %s", strings.Join(others, ", "))
}

// caNodes are the nodes that run the subsystem ca, with their addresses.
func (s *Server) caNodes(ctx context.Context) (found []string, err error) {
	for after := ""; ; {
		nodes, next, err := s.Clones.List(ctx, access.System(s.Keys.Self()), after, access.MaxPage)
		if err != nil {
			return nil, err
		}
		for _, n := range nodes {
			if n.State == client.CloneActive && slices.Contains(n.Subsystems, string(keys.SubsystemCA)) {
				found = append(found, n.Name+" at "+n.Address)
			}
		}
		if next == "" {
			return found, nil
		}
		after = next
	}
}
