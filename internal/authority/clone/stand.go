package clone

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/store/keys"
)

// stand adds to nodes what only a look at all of them tells: where each stands beside the one that signs CRLs, and in what it differs.
func (s *Service) stand(ctx context.Context, found []*client.Clone, p *picture, now time.Time) error {
	known, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	var issuers []string
	for _, i := range known {
		if i.KeyID != "" && i.State != ca.IssuerPending {
			issuers = append(issuers, i.Name)
		}
	}
	slices.Sort(issuers)
	holder, address := "", ""
	for _, l := range p.leases {
		at := slices.IndexFunc(p.all, func(r *row) bool { return r.name == l.Holder })
		if l.Name == revocation.Lease && at >= 0 && l.Expires.After(now) {
			holder, address = l.Holder, p.all[at].address
		}
	}
	for _, n := range found {
		n.Differences = differences(n.Name, p.all)
		if n.State == client.CloneActive {
			n.Switches = Switches(n.Name, namedSubsystems(n.Subsystems), holder, address, issuers)
		}
	}
	return nil
}

func namedSubsystems(names []string) []keys.Subsystem {
	all := make([]keys.Subsystem, len(names))
	for i, name := range names {
		all[i] = keys.Subsystem(name)
	}
	return all
}

// differences says in what an active node is not as the other active ones: little can differ, since what concerns the authority is in
// the database.
func differences(name string, all []*row) []string {
	values := map[string]map[string][]string{} // by what is compared, then by value: the nodes that have it
	note := func(what, value, node string) {
		if values[what] == nil {
			values[what] = map[string][]string{}
		}
		values[what][value] = append(values[what][value], node)
	}
	for _, r := range all {
		if r.state != client.CloneActive || r.seen.IsZero() {
			continue
		}
		note("release", r.report.Release, r.name)
		note("schema", fmt.Sprint(r.report.Schema), r.name)
		if i := r.report.Issuers; i.Digest != "" && r.runs(keys.SubsystemOCSP) {
			note("the list of issuers that it answers for", fmt.Sprintf("%d, %.16s", i.Count, i.Digest), r.name)
		}
		for key, value := range r.report.Configuration {
			note("node.yaml "+key, value, r.name)
		}
	}
	var found []string
	for _, what := range slices.Sorted(maps.Keys(values)) {
		own := ""
		var others []string
		for _, value := range slices.Sorted(maps.Keys(values[what])) {
			if slices.Contains(values[what][value], name) {
				own = value
			} else {
				others = append(others, fmt.Sprintf("%q on %s", value, strings.Join(values[what][value], ", ")))
			}
		}
		if own != "" && len(others) > 0 {
			found = append(found, fmt.Sprintf("%s is %q, and %s", what, own, strings.Join(others, ", ")))
		}
	}
	return found
}
