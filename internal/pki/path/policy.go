package path

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"

	"chancery/internal/pki/cert"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// policyGraph is the valid_policy_graph of RFC 9618, which replaces the tree of RFC 5280: a level has one node for each
// policy at most, so that hostile mappings cannot make it grow without bound. Only the deepest level is needed to go on;
// what is kept of those above is which domain policies, the children of anyPolicy, each node goes back to.
//
// The nil graph is the NULL of the standard.
type policyGraph struct {
	nodes map[string]*policyNode // by valid_policy, dotted
}

// policyNode is a node of the deepest level.
type policyNode struct {
	policy   asn1.ObjectIdentifier
	expected map[string]asn1.ObjectIdentifier
	// roots are the policies of the valid_policy_node_set (6.1.5 g iii) that the node descends from: itself where its parent
	// is anyPolicy. It is empty for anyPolicy.
	roots map[string]asn1.ObjectIdentifier
}

type oidSet = map[string]asn1.ObjectIdentifier

func setOf(oids ...asn1.ObjectIdentifier) oidSet {
	set := oidSet{}
	for _, oid := range oids {
		set[oid.String()] = oid
	}
	return set
}

var anyPolicyKey = cert.OIDAnyPolicy.String()

func newPolicyGraph() *policyGraph {
	return &policyGraph{nodes: map[string]*policyNode{
		anyPolicyKey: {policy: cert.OIDAnyPolicy, expected: setOf(cert.OIDAnyPolicy), roots: oidSet{}},
	}}
}

// child makes the node of policy below all nodes whose expected set has it; nil where there is none.
func (g *policyGraph) child(policy asn1.ObjectIdentifier) *policyNode {
	key := policy.String()
	node := &policyNode{policy: policy, expected: setOf(policy), roots: oidSet{}}
	found := false
	for _, parent := range g.nodes {
		if _, ok := parent.expected[key]; !ok {
			continue
		}
		found = true
		node.descend(parent)
	}
	if !found {
		return nil
	}
	return node
}

func (n *policyNode) descend(parent *policyNode) {
	for key, root := range parent.roots {
		n.roots[key] = root
	}
	if parent.policy.Equal(cert.OIDAnyPolicy) && !n.policy.Equal(cert.OIDAnyPolicy) {
		n.roots[n.policy.String()] = n.policy
	}
}

// next makes the level below from the policies of a certificate (6.1.3 d). anyAllowed says whether anyPolicy counts.
func (g *policyGraph) next(policies []asn1.ObjectIdentifier, anyAllowed bool) *policyGraph {
	level := &policyGraph{nodes: map[string]*policyNode{}}
	anyNode := g.nodes[anyPolicyKey]
	hasAny := false
	for _, policy := range policies {
		if policy.Equal(cert.OIDAnyPolicy) {
			hasAny = true
			continue
		}
		node := g.child(policy)
		if node == nil && anyNode != nil {
			node = &policyNode{policy: policy, expected: setOf(policy), roots: oidSet{}}
			node.descend(anyNode)
		}
		if node != nil {
			level.nodes[policy.String()] = node
		}
	}
	if hasAny && anyAllowed {
		for _, parent := range g.nodes {
			for key, policy := range parent.expected {
				if level.nodes[key] == nil {
					level.nodes[key] = g.child(policy)
				}
			}
		}
	}
	if len(level.nodes) == 0 {
		return nil
	}
	return level
}

// mapTo applies the mappings of one issuerDomainPolicy (6.1.4 b).
func (g *policyGraph) mapTo(issuer asn1.ObjectIdentifier, subjects oidSet, allowed bool) {
	key := issuer.String()
	node := g.nodes[key]
	switch {
	case !allowed:
		delete(g.nodes, key)
	case node != nil:
		node.expected = subjects
	case g.nodes[anyPolicyKey] != nil:
		g.nodes[key] = &policyNode{policy: issuer, expected: subjects, roots: setOf(issuer)}
	}
}

// constrained is the user-constrained-policy-set; initial nil stands for any-policy.
func (g *policyGraph) constrained(initial []asn1.ObjectIdentifier) []asn1.ObjectIdentifier {
	if g == nil {
		return nil
	}
	wantsAny := initial == nil || slices.ContainsFunc(initial, cert.OIDAnyPolicy.Equal)
	var result []asn1.ObjectIdentifier
	if g.nodes[anyPolicyKey] != nil {
		if wantsAny {
			return []asn1.ObjectIdentifier{cert.OIDAnyPolicy}
		}
		return initial
	}
	seen := oidSet{}
	for _, node := range g.nodes {
		for key, root := range node.roots {
			if seen[key] == nil && (wantsAny || slices.ContainsFunc(initial, root.Equal)) {
				seen[key] = root
				result = append(result, root)
			}
		}
	}
	slices.SortFunc(result, func(a, b asn1.ObjectIdentifier) int { return slices.Compare(a, b) })
	return result
}

// processPolicies is 6.1.3 d to f; selfIssuedCA says that it is self-issued and not the last.
func (s *state) processPolicies(c *x509.Certificate, selfIssuedCA bool) error {
	value := extensionOf(c, cert.OIDCertificatePolicies)
	if value == nil {
		s.policies = nil
	}
	if s.policies != nil {
		policies, err := cert.ParsePolicies(value)
		if err != nil {
			return err
		}
		s.policies = s.policies.next(policies, s.inhibitAny > 0 || selfIssuedCA)
	}
	if s.explicit == 0 && s.policies == nil {
		return errors.New("an explicit policy is required, and none is valid up to here")
	}
	return nil
}

// mapPolicies is 6.1.4 a and b.
func (s *state) mapPolicies(c *x509.Certificate) error {
	value := extensionOf(c, cert.OIDPolicyMappings)
	if value == nil {
		return nil
	}
	mappings, order, err := parsePolicyMappings(value)
	if err != nil || s.policies == nil {
		return err
	}
	for _, issuer := range order {
		s.policies.mapTo(issuer, mappings[issuer.String()], s.mapping > 0)
	}
	if len(s.policies.nodes) == 0 {
		s.policies = nil
	}
	return nil
}

// constrainPolicies is 6.1.4 i and j.
func (s *state) constrainPolicies(c *x509.Certificate) error {
	constraints, err := parsePolicyConstraints(extensionOf(c, cert.OIDPolicyConstraints))
	if err != nil {
		return err
	}
	if constraints.requireExplicit >= 0 {
		s.explicit = min(s.explicit, constraints.requireExplicit)
	}
	if constraints.inhibitMapping >= 0 {
		s.mapping = min(s.mapping, constraints.inhibitMapping)
	}
	if value := extensionOf(c, cert.OIDInhibitAnyPolicy); value != nil {
		input := cryptobyte.String(value)
		var skip int
		if !input.ReadASN1Integer(&skip) || !input.Empty() || skip < 0 {
			return errors.New("inhibitAnyPolicy is no number from 0")
		}
		s.inhibitAny = min(s.inhibitAny, skip)
	}
	return nil
}

// parsePolicyMappings groups the mappings by issuerDomainPolicy, and lists these in the order of the extension.
func parsePolicyMappings(der []byte) (map[string]oidSet, []asn1.ObjectIdentifier, error) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() || seq.Empty() {
		return nil, nil, errors.New("policyMappings is not one filled DER SEQUENCE")
	}
	mappings := map[string]oidSet{}
	var order []asn1.ObjectIdentifier
	for !seq.Empty() {
		var pair cryptobyte.String
		var issuer, subject asn1.ObjectIdentifier
		if !seq.ReadASN1(&pair, cbasn1.SEQUENCE) || !pair.ReadASN1ObjectIdentifier(&issuer) ||
			!pair.ReadASN1ObjectIdentifier(&subject) || !pair.Empty() {
			return nil, nil, errors.New("a mapping is not two policies")
		}
		if issuer.Equal(cert.OIDAnyPolicy) || subject.Equal(cert.OIDAnyPolicy) {
			return nil, nil, errors.New("anyPolicy must not be mapped")
		}
		key := issuer.String()
		if mappings[key] == nil {
			mappings[key] = oidSet{}
			order = append(order, issuer)
		}
		mappings[key][subject.String()] = subject
	}
	return mappings, order, nil
}

type policyConstraints struct {
	requireExplicit, inhibitMapping int // -1: absent
}

func parsePolicyConstraints(der []byte) (policyConstraints, error) {
	c := policyConstraints{-1, -1}
	if der == nil {
		return c, nil
	}
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() || seq.Empty() {
		return c, errors.New("policyConstraints is not one filled DER SEQUENCE")
	}
	for tag, field := range []*int{&c.requireExplicit, &c.inhibitMapping} {
		implicit := cbasn1.Tag(tag).ContextSpecific()
		if !seq.PeekASN1Tag(implicit) {
			continue
		}
		var count int64
		if !seq.ReadASN1Int64WithTag(&count, implicit) || count < 0 {
			return c, errors.New("a skip count is no number from 0")
		}
		*field = int(min(count, maxPath)) // no path is longer, so a greater count says the same
	}
	if !seq.Empty() {
		return c, errors.New("octets follow the skip counts")
	}
	return c, nil
}
