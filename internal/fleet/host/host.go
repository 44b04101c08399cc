// Package host keeps hosts: the machines that hold certificates, how they join, what each shall hold and what is seen there.
//
// A host is a name, its other names and addresses, a pool and placements (recipes with their parameters). The machine that has
// the name now is a principal of kind host: it joins with a one-time token, gets an identity, and acts by that. A machine that
// takes another's place is another principal, so what the old one held is known by whose it is, and is revoked with it.
//
// An identity is renewed with the number of its generation. Two machines with one identity (a cloned disk, a snapshot that was
// put back) show the same number twice: the host is then suspect, and gets nothing until an operator has it replaced.
//
// What a host shall hold is handed out by long poll. A node looks for changes once for all who wait (Follow), and wakes those
// whom a change concerns.
//
// A Service may be used by many goroutines, and starts none: Follow and Run are its loops.
package host

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"chancery/client"
	"chancery/internal/agent/recipe"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/identity"
	"chancery/internal/authority/revocation"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

// Options are what a Service works with. All but Logger are required.
type Options struct {
	DB         *db.DB
	CA         *ca.CA
	Access     *access.Store
	Identity   *identity.Service
	Pools      *pool.Service
	Trust      *trust.Service
	Settings   *settings.Store
	Audit      *audit.Log
	Revocation *revocation.Service
	Keys       *keys.Store
	Logger     *slog.Logger

	// Proofs are the revocations that a host is to try upon its consumers; nil for none.
	Proofs func(ctx context.Context, tx *db.Tx, host string, now time.Time) ([]client.Proof, error)
	// Excepted are the hosts of a pool, by ID, that a rollout at work there does not wait for; nil for none.
	Excepted func(ctx context.Context, tx *db.Tx, pool string) (map[string]bool, error)
	// Recipe finds a built-in recipe by its name.
	Recipe func(name string) (*recipe.Recipe, bool)
}

// Service keeps hosts.
type Service struct {
	Options
	waiting waiters

	mu         sync.Mutex           // guards what follows
	seen       map[string]time.Time // by host: agents that called since the last flush
	checkpoint string               // the newest, as of checked
	checked    time.Time
}

// New returns a service. It starts nothing.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{
		Options: o, seen: map[string]time.Time{}, waiting: waiters{byHost: map[string][]*waiter{}, ended: make(chan struct{})},
	}
}

// call is a mutating call as its idempotency key knows it.
func call(by access.Principal, key, action string, request ...any) (once.Call, error) {
	if key == "" {
		return once.Call{}, nil
	}
	text, err := json.Marshal(request)
	if err != nil {
		return once.Call{}, fmt.Errorf("encode the request: %w", err)
	}
	return once.Call{Caller: "host:" + by.ID, Key: key, Request: once.Hash([]byte(action), text)}, nil
}

// done runs an act whose repetition changes nothing and is answered with the host as it is.
func (s *Service) done(ctx context.Context, c once.Call, now time.Time, act func(tx *db.Tx) error) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := once.Act(ctx, tx, c, now, func() (once.Done, error) { return once.Done{}, act(tx) })
		return err
	})
}

func (s *Service) audit(ctx context.Context, tx *db.Tx, actor, action, host string, detail map[string]any, now time.Time) error {
	return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: actor, Action: action, Object: host, Detail: detail})
}
