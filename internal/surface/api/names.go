package api

import (
	"context"
	"strings"
	"sync"

	"chancery/internal/store/access"
)

// names finds the names of principals, by which people know them: the services keep IDs. A principal's name never
// changes, so what was found stays true.
type names struct {
	access *access.Store

	mu   sync.RWMutex // guards byID
	byID map[string]string
}

const maxNames = 1 << 16

// of is a principal's name; its ID where it is gone, or was the authority itself.
func (n *names) of(ctx context.Context, id string) string {
	if id == "" || strings.HasPrefix(id, "system:") {
		return id
	}
	n.mu.RLock()
	name, ok := n.byID[id]
	n.mu.RUnlock()
	if ok {
		return name
	}
	p, err := n.access.Principal(ctx, id)
	if err != nil {
		return id
	}
	n.keep(p)
	return p.Name
}

func (n *names) keep(p access.Principal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.byID == nil || len(n.byID) >= maxNames {
		n.byID = map[string]string{}
	}
	n.byID[p.ID] = p.Name
}

// id is the ID of the principal so named; an empty name is nobody. What is no name may be an ID.
func (n *names) id(ctx context.Context, name string) (string, error) {
	if name == "" || strings.HasPrefix(name, "system:") {
		return name, nil
	}
	p, err := n.access.PrincipalNamed(ctx, name)
	if err != nil {
		if byID, again := n.access.Principal(ctx, name); again == nil {
			return byID.ID, nil
		}
		return "", err
	}
	return p.ID, nil
}
