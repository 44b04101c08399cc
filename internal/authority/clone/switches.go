package clone

import (
	"fmt"
	"net/url"
	"slices"

	"chancery/client"
	"chancery/internal/store/keys"
)

// Switches say how the switches that RHCS has in CS.cfg (chapter 9.5) would stand on a node, for those who know a topology by them.
// Nobody sets them here: they follow from which node holds the lease that signs CRLs. node runs the subsystems; holder is the node that
// has the lease, and its address, both empty where nobody has it; issuers are the names of those whose CRLs are signed here.
func Switches(node string, subsystems []keys.Subsystem, holder, address string, issuers []string) []client.CloneSwitch {
	var all []client.CloneSwitch
	add := func(name, value, format string, args ...any) {
		all = append(all, client.CloneSwitch{Name: name, Value: value, Meaning: fmt.Sprintf(format, args...)})
	}
	if slices.Contains(subsystems, keys.SubsystemCA) {
		signs := node == holder
		interval, listens := "0", "false"
		if signs {
			interval, listens = "600", "true"
		}
		add("ca.certStatusUpdateInterval", interval, "every node reads by the clock whether a certificate has expired; no thread marks it, and pruning is done by any node")
		add("ca.listenToCloneModifications", listens, "the node that signs CRLs sees a revocation on any node within a tenth of a second")
		for _, issuer := range issuers {
			add("ca.crl."+issuer+".enableCRLCache", listens, "entries are kept encoded in the database, not in one node's memory")
			add("ca.crl."+issuer+".enableCRLUpdates", listens, "%s", signing(signs, holder))
		}
		host, port := "", ""
		if u, err := url.Parse(address); err == nil && !signs {
			host, port = u.Hostname(), u.Port()
		}
		add("master.ca.agent.host", host, "%s", redirect(signs, holder))
		add("master.ca.agent.port", port, "%s", redirect(signs, holder))
	}
	if slices.Contains(subsystems, keys.SubsystemOCSP) {
		add("OCSP.Responder.store.defStore.refreshInSec", "none", "answers come from the record of each certificate: there is no CRL to fetch, and no master among responders")
	}
	return all
}

func signing(signs bool, holder string) string {
	switch {
	case signs:
		return "this node signs CRLs"
	case holder == "":
		return "nobody signs CRLs just now; a node takes it up within seconds, unless the work is pinned"
	}
	return "node " + holder + " signs CRLs; any node serves them"
}

func redirect(signs bool, holder string) string {
	switch {
	case signs:
		return "empty on the node that signs CRLs"
	case holder == "":
		return "nobody to send to; what is asked for waits in the database"
	}
	return "nothing is redirected: a CRL that is asked for here is signed by " + holder + ", and the caller gets it here"
}
