// Package trust keeps what the hosts of a pool trust: trust anchors, issuers below them, and pinned certificates, for each
// purpose.
//
// RFC 5280 §6.1.1 (d) (trust anchors), RFC 5280 §6.3 (CRLs of their issuers).
//
// A pool's trust has versions, so that a change can reach its hosts in waves and be taken back: an entry is in the versions
// from one number up to another. Most hosts have the version that the pool has; a rollout puts some at another one. What a
// version holds does not change, with one exception: a certificate that has ended is in no version any more, since one ended
// CA keeps some consumers from starting.
//
// Issuers of the authority enter their pool's general set by themselves when they come to be, for all hosts at once, unless a
// rollout works on the pool: that one brings in its own.
//
// Certificates that placements announce because their peers pin them are outside the versions: all hosts of the pool have
// them at once, and whose they are is told when everybody who pins such certificates holds them.
//
// Choices: an anchor is a self-issued CA certificate (its own signature is not a reason for trust, so a root signed with SHA-1
// passes; anything below one does not); a certificate that is pinned is one of a subscriber, since a CA that consumers take
// for a peer would let in whoever it certifies; no pool is given a root of another pool, nor that of identities.
//
// A Service may be used by many goroutines, and starts none: Run is its loop.
package trust

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fleet/pool"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

// Presented is a placement that was seen with a certificate under some issuer.
type Presented struct {
	Host, Placement string
}

// Own is a placement by the ID of its host, and its name.
type Own struct{ Host, Placement string }

// Pinning is what is to be held by all placements that pin certificates of a purpose.
type Pinning struct {
	Pool, Purpose string
	Fingerprints  []string       // of the certificates that all are to hold
	Own           map[string]Own // whose these are: no placement waits for itself
	Others        []string       // fingerprints of others of the purpose: who holds one of them pins the purpose, whatever its recipe
}

// Options are what a Service works with. All but Logger are required.
type Options struct {
	DB         *db.DB
	CA         *ca.CA
	Pools      *pool.Service
	Revocation *revocation.Service
	Settings   *settings.Store
	Audit      *audit.Log
	Logger     *slog.Logger

	// Presenting finds the placements of a pool's hosts that were seen with certificates of these issuers (SHA-256 of their
	// certificates, in hexadecimal), up to limit.
	Presenting func(ctx context.Context, tx *db.Tx, pool string, issuers []string, limit int) ([]Presented, error)
	// Lacking finds, of each of the certificates, the placements that pin its purpose and do not hold it, up to limit; those of
	// hosts that have not joined are left out.
	Lacking func(ctx context.Context, tx *db.Tx, p Pinning, limit int) (map[string][]Presented, error)
	// Touched is another number whenever what Lacking finds in a pool may be another, as far as columns tell it.
	Touched func(ctx context.Context, tx *db.Tx, pool string) (int64, error)
	// HostName is the name of a host, by its ID.
	HostName func(ctx context.Context, tx *db.Tx, id string) (string, error)
}

// Service keeps trust.
type Service struct {
	Options

	mu       sync.Mutex        // guards what follows, and lets one at a time make a set
	kept     map[string]*kept  // by the pool's name
	followed time.Time         // when Follow last looked for changes
	looked   map[string]looked // by pool: when Release last looked who holds what, and what it went by
}

// New returns a service. It starts nothing.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{Options: o, kept: map[string]*kept{}, looked: map[string]looked{}}
}
