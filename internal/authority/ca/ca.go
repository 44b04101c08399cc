// Package ca keeps issuers, issues certificates under them, and records what becomes of each: requests and their approval,
// renewal, re-key, revocation and hold, and the inventory of all that was issued.
//
// RFC 5280 §4 and §5.3, RFC 3647 (renewal and re-key), RFC 2986 (requests).
//
// A certificate leaves this package only after the one transaction that holds it, its serial, its idempotency key and its
// audit event has committed. It is built, linted and signed before that transaction, so the function inside may run twice.
// The rows of certificates that were issued are changed in two columns only: the state, and what replaced them.
//
// Divergences: a hold may become a permanent revocation and keeps its first revocation date (RFC 5280 says nothing of it);
// keys revoked for keyCompromise are never certified again by any issuer here.
//
// A CA may be used by many goroutines. It starts none.
package ca

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"chancery/internal/authority/profile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

// Options is what a CA works with. All but Entitlements, AdmitHost, HostNames, Successor and Renewing are required.
type Options struct {
	DB       *db.DB
	Keys     *keys.Store
	Profiles *profile.Store
	Settings *settings.Store
	Audit    *audit.Log

	// Entitlements returns the values of the variables that profiles' patterns may use, such as the names that the
	// authority knows the caller's host by. Without it, a host is entitled to its own name.
	Entitlements func(ctx context.Context, by access.Principal) (map[string][]string, error)

	// AdmitHost refuses, in the transaction that records what a host gets of a profile, a host that was removed or may get
	// nothing, or nothing of that profile, since its order was judged. Without it, every host passes.
	AdmitHost func(ctx context.Context, tx *db.Tx, by access.Principal, profile string) error

	// HostNames returns, in the transaction that records what a host gets of a pool of the authority's own database, the host's pool, and
	// its names and addresses. Without it, no host gets anything there.
	HostNames func(ctx context.Context, tx *db.Tx, by access.Principal) (pool string, names []string, err error)

	// Successor says under which issuer of its pool, by name or ID, a certificate is renewed or re-keyed whose own issuer still
	// issues; empty for its own. Without it, all stay under their own. It is the one place that says so, whoever asks.
	Successor func(ctx context.Context, by access.Principal, old *Certificate) (issuer string, err error)

	// Renewing runs in the transaction that gives an issuer another certificate for its key, and may refuse it: who knows issuers
	// by their certificates learns both there. Without it, nobody does.
	Renewing func(ctx context.Context, tx *db.Tx, before, after *Issuer) error
}

// CA is the issuing part of the authority, as one node runs it.
type CA struct {
	db           *db.DB
	keys         *keys.Store
	profiles     *profile.Store
	settings     *settings.Store
	audit        *audit.Log
	entitlements func(ctx context.Context, by access.Principal) (map[string][]string, error)
	admitHost    func(ctx context.Context, tx *db.Tx, by access.Principal, profile string) error
	hostNames    func(ctx context.Context, tx *db.Tx, by access.Principal) (string, []string, error)
	successor    func(ctx context.Context, by access.Principal, old *Certificate) (string, error)
	renewing     func(ctx context.Context, tx *db.Tx, before, after *Issuer) error

	issuers issuerCache
	rates   rates
	asked   tally
	lastID  atomic.Int64
	chance  func(n int64) int64 // from 0 to under n
	pending sync.Map            // ID → *Certificate, while its transaction runs
	inserts byte                // its address is the key of the shared INSERT
	here    changedHere
	changed struct {
		sync.Mutex
		next chan struct{} // guarded by the mutex
	}
}

// New returns a CA. It starts nothing and asks nothing of the database yet.
func New(o Options) *CA {
	c := &CA{db: o.DB, keys: o.Keys, profiles: o.Profiles, settings: o.Settings, audit: o.Audit, entitlements: o.Entitlements,
		admitHost: o.AdmitHost, hostNames: o.HostNames, successor: o.Successor, renewing: o.Renewing, chance: rand.Int64N}
	if c.entitlements == nil {
		c.entitlements = ownName
	}
	c.changed.next = make(chan struct{})
	return c
}

func ownName(_ context.Context, by access.Principal) (map[string][]string, error) {
	return map[string][]string{"host.names": {by.Name}}, nil
}

// readsAll says whether a caller sees what others requested.
func readsAll(by access.Principal) bool {
	return by.Has(access.Admin, access.Officer, access.Operator, access.Auditor)
}

// mayEnd says whether a caller may revoke what others requested.
func mayEnd(by access.Principal) bool { return by.Has(access.Admin, access.Officer) }

// call is a mutating call as its idempotency key knows it.
type call struct {
	caller, key string
	hash        []byte
}

// newCall hashes what the call asks for, so that a repeated call can be told from another one with the same key. The key
// itself is not part of a request's JSON.
func newCall(by access.Principal, key, action string, request any) (call, error) {
	if key == "" {
		return call{}, nil
	}
	text, err := json.Marshal(request)
	if err != nil {
		return call{}, fmt.Errorf("encode the request: %w", err)
	}
	return call{by.ID, key, once.Hash([]byte(action), text)}, nil
}

// earlier returns the answer to an earlier call with the same key, "" when there was none.
func (k call) earlier(ctx context.Context, tx *db.Tx) (string, error) {
	answer, _, err := once.Lookup(ctx, tx, k.caller, k.key, k.hash)
	return string(answer), err
}

// remember keeps the answer to a call with a key. It is committed together with what it stands for.
func (k call) remember(ctx context.Context, tx *db.Tx, answer string, now time.Time) error {
	return once.Remember(ctx, tx, k.caller, k.key, k.hash, []byte(answer), now)
}
