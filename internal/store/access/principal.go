// Package access knows who calls and what they may do.
//
// A caller is a principal, proven by a client certificate (the issuer's id and the SubjectPublicKeyInfo, so that a renewed
// certificate is the same caller) or by a bearer token, of which only the SHA-256 is stored. A token has 256 random bits,
// so a plain hash is enough; nothing can be guessed that a slow one would protect. What each role may do is one table,
// permissions.go.
//
// Authentication is remembered for at most a second, because a node answers thousands of calls a second. A change through
// this node takes effect with its commit; another node sees it within that second.
//
// All methods may be called from any goroutine.
package access

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"chancery/internal/fault"
)

// Role is what a principal may be trusted with.
type Role string

// The roles.
const (
	Admin    Role = "admin"    // sets up and configures
	Officer  Role = "officer"  // approves, revokes, recovers
	Operator Role = "operator" // hosts, placements, uploads
	Auditor  Role = "auditor"  // reads all, changes nothing
	Host     Role = "host"     // gets certificates for its own names
)

// Roles lists every role. It is not changed.
var Roles = []Role{Admin, Officer, Operator, Auditor, Host}

// Kind is what sort of caller a principal is.
type Kind string

// The kinds of principals.
const (
	KindOperator Kind = "operator" // a person, or a program that acts for people
	KindNode     Kind = "node"     // a node of this authority
	KindHost     Kind = "host"     // a machine that holds certificates
	KindAgent    Kind = "agent"    // the agent on such a machine
)

// Kinds lists every kind. It is not changed.
var Kinds = []Kind{KindOperator, KindNode, KindHost, KindAgent}

// Principal is a caller that is known.
type Principal struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Kind     Kind      `json:"kind"`
	Roles    []Role    `json:"roles"`
	Disabled bool      `json:"disabled"`
	Created  time.Time `json:"created"`

	// system marks the authority's own loops. No row and no document can set it.
	system bool
	// tokenEnds is when the token ends by which the caller was proven; zero for a certificate.
	tokenEnds time.Time
	// shown is the SHA-256 of the key by which the caller was proven; empty for a token.
	shown string
}

// ShownKey is the SHA-256 of the SubjectPublicKeyInfo of the key by which the caller was proven, and false where a token was.
func (p Principal) ShownKey() ([]byte, bool) { return []byte(p.shown), p.shown != "" }

// Showing is the principal as one that was proven by a key.
func (p Principal) Showing(spki []byte) Principal {
	sum := sha256.Sum256(spki)
	p.shown = string(sum[:])
	return p
}

// TokenEnds is when the token ends by which the caller was proven, and false where he showed a certificate. What a caller
// gets by a token should not outlast it: then whoever stole it has the rest of its life, and no more.
func (p Principal) TokenEnds() (time.Time, bool) { return p.tokenEnds, !p.tokenEnds.IsZero() }

// System is the caller in whose name a node's own loops act. It may do everything.
func System(node string) Principal {
	return Principal{ID: "system:" + node, Name: node, Kind: KindNode, system: true}
}

// Actor is the principal's name in the audit record: its kind and its name.
func (p Principal) Actor() string {
	switch {
	case p.system:
		return "system:" + p.Name
	case p.ID == "":
		return "anonymous"
	}
	return string(p.Kind) + ":" + p.Name
}

// Has reports whether the principal is enabled and has one of the roles.
func (p Principal) Has(roles ...Role) bool {
	if p.system {
		return true
	}
	return p.ID != "" && !p.Disabled && slices.ContainsFunc(p.Roles, func(r Role) bool { return slices.Contains(roles, r) })
}

// Require refuses unless the principal has one of the roles.
func (p Principal) Require(roles ...Role) error { return p.require("this", roles) }

// May refuses unless one of the principal's roles allows the action.
func (p Principal) May(action Action) error {
	return p.require(string(action), rolesFor(action))
}

func (p Principal) require(what string, roles []Role) error {
	switch {
	case p.Has(roles...):
		return nil
	case p.ID == "":
		return fault.New(fault.Unauthenticated, "%s needs a client certificate or a token", what)
	case p.Disabled:
		return fault.New(fault.Denied, "%s is disabled", p.Actor())
	}
	return fault.New(fault.Denied, "%s has the roles %s; %s needs one of %s", p.Actor(), list(p.Roles), what, list(roles))
}

func list(roles []Role) string {
	if len(roles) == 0 {
		return "none"
	}
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// normal returns the principal with its roles sorted and each there once, or says what is wrong with it.
func (p Principal) normal() (Principal, error) {
	p.Roles = slices.Clone(p.Roles)
	slices.Sort(p.Roles)
	p.Roles = slices.Compact(p.Roles)
	switch {
	case p.Name == "" || len(p.Name) > 200 || !utf8.ValidString(p.Name) || p.Name != strings.TrimSpace(p.Name) ||
		strings.ContainsFunc(p.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return p, fault.New(fault.Invalid, "name %.60q is not 1 to 200 octets of printable text without spaces around it", p.Name).At("name")
	case !slices.Contains(Kinds, p.Kind):
		return p, fault.New(fault.Invalid, "kind %q is not one of operator, node, host, agent", p.Kind).At("kind")
	}
	machine := p.Kind == KindHost || p.Kind == KindAgent
	for _, r := range p.Roles {
		switch {
		case !slices.Contains(Roles, r):
			return p, fault.New(fault.Invalid, "role %q is not one of %s", r, list(Roles)).At("roles")
		case machine != (r == Host):
			// Whoever takes a host must not get more than that host's names; and a person is no host.
			return p, fault.New(fault.Invalid, "a principal of kind %s cannot have the role %s; hosts and agents have host, others "+
				"do not", p.Kind, r).At("roles")
		}
	}
	return p, nil
}

type contextKey struct{}

// With returns a context that carries the caller.
func With(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// From returns the caller that ctx carries, or the zero Principal, which may do nothing.
func From(ctx context.Context) Principal {
	p, _ := ctx.Value(contextKey{}).(Principal)
	return p
}
