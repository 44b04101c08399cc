// Package rollout changes what many hosts hold without breaking a connection: new keys, another issuer or root, other
// identities, another algorithm.
//
// A rollout goes through stages, and each stage through waves of hosts. First all hosts of the pool are given the new trust
// beside the old; then they get certificates under the new issuer; then the old trust is taken away. A stage begins only when
// every host was seen to have fulfilled the one before: what counts is what agents observed, never what they were told. So no
// host presents a certificate before all who must accept it trust it, and no trust is dropped while anyone presents under it. A
// host that is silent holds the stage and is named; leaving it out is an operator's decision, with a reason, in the audit.
// Undoing is the same stages with the old and the new in each other's place. After a compromise the order is reversed on
// purpose: the old trust is dropped at once and everywhere.
//
// A rollout pauses at the first failure of a host that it has moved, and where a look from the node contradicts what an agent
// reports.
//
// All of its state is in the database. Each step is one transaction that checks the lease's epoch and that the rollout is where
// the step began, so any node goes on from where another was killed. Run drives; the other methods may be called on any node.
//
// Divergences: RFC 4210 §4.4 (root CA key update) links the old root and the new by certificates that each signs of the other.
// Here the hosts are given both roots instead: many consumers build no path over such a link.
package rollout

import (
	"log/slog"
	"time"

	"chancery/client"
	"chancery/internal/agent/recipe"
	"chancery/internal/authority/ca"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// Options are what a Service works with. All but Logger are required.
type Options struct {
	DB     *db.DB
	CA     *ca.CA
	Pools  *pool.Service
	Trust  *trust.Service
	Hosts  *host.Service
	Keys   *keys.Store
	Audit  *audit.Log
	Logger *slog.Logger

	// Recipe finds a built-in recipe by its name.
	Recipe func(name string) (*recipe.Recipe, bool)
}

// Service keeps rollouts.
type Service struct {
	Options
	wake    chan struct{} // something was started or resumed on this node
	doubted doubts
}

// New returns a service. It starts nothing.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{Options: o, wake: make(chan struct{}, 1), doubted: doubts{since: map[string]time.Time{}}}
}

// driver is in whose name the steps are done, on whichever node.
var driver = access.System("rollout")

// row is a row of rollout.
type row struct {
	id                      string // its number, as text
	number                  int64
	pool, kind, state       string
	backwards               bool
	stage                   string
	wave                    int64     // counted from 1; 0 while it is prepared
	moved                   time.Time // when the wave began
	spec                    client.StartRolloutRequest
	plan                    plan
	message, actor          string
	created, changed, ended time.Time
}

// plan is what is made and done for a rollout by now.
type plan struct {
	Said      client.RolloutPlan `json:"said"`           // as it was shown when it began
	Waves     []string           `json:"waves"`          // as they are shown
	Steps     []string           `json:"steps"`          // the stages in their order, in the direction that it goes
	Next      *pool.Successor    `json:"next,omitempty"` // what is made for it
	Algorithm keyfile.Algorithm  `json:"algorithm,omitempty"`
	Token     string             `json:"token,omitempty"`    // PKCS #11 URI of the new issuer's key; empty for a key that is made
	Validity  time.Duration      `json:"validity,omitempty"` // of a new root

	From      string   `json:"from,omitempty"` // the name of the pool's default issuer before
	FromPrint string   `json:"fromPrint,omitempty"`
	Leaves    []string `json:"leaves,omitempty"`  // fingerprints of what is trusted no more at the end
	Retires   []string `json:"retires,omitempty"` // IDs of the issuers that issue no more at the end
	To        string   `json:"to,omitempty"`      // the name of the issuer that hosts go to
	ToPrint   string   `json:"toPrint,omitempty"`
	Comes     []string `json:"comes,omitempty"` // fingerprints of what is trusted since, and was not before

	// Issuers are the IDs of the issuers whose certificates the fingerprints are of, since an issuer's certificate may be renewed.
	Issuers map[string]string `json:"issuers,omitempty"`

	Before int64 `json:"before,omitempty"` // versions of the pool's trust: without the new,
	Both   int64 `json:"both,omitempty"`   // with the old and the new,
	After  int64 `json:"after,omitempty"`  // without the old, or, backwards, without the new again

	// Closed are the IDs of the issuers that issue no more since the last stage began.
	Closed []string `json:"closed,omitempty"`

	Reissue int64 `json:"reissue,omitempty"` // the number under which keys are to be asked for; another one when it is undone

	Serials map[string]string `json:"serials,omitempty"` // certificates that are not waited for, and why
}

// movesTrust reports whether the kind is one that changes whom hosts trust.
func movesTrust(kind string) bool {
	return kind == client.RolloutIssuer || kind == client.RolloutRoot || kind == client.RolloutRotateAway
}

// forward are the stages of a kind, after it is prepared.
func forward(kind string, compromised bool) []string {
	switch {
	case !movesTrust(kind):
		return []string{client.StageRekey}
	case compromised:
		return []string{client.StageLeave, client.StageRekey}
	}
	return []string{client.StageTrust, client.StageRekey, client.StageLeave}
}

// over reports whether nothing more is done for it.
func (r *row) over() bool { return !r.ended.IsZero() }

// last reports whether the wave is the last one.
func (r *row) last() bool { return r.wave >= int64(len(r.plan.Waves)) }

// next is the stage after the present one; empty where there is none.
func (r *row) next() string {
	for i, step := range r.plan.Steps {
		if step == r.stage && i+1 < len(r.plan.Steps) {
			return r.plan.Steps[i+1]
		}
	}
	if r.stage == client.StagePrepare && len(r.plan.Steps) > 0 {
		return r.plan.Steps[0]
	}
	return ""
}

// goal is what hosts have that have fulfilled the present stage.
func (r *row) goal() host.Goal {
	switch {
	case r.kind == client.RolloutIdentities:
		return host.Goal{Identity: true}
	case !movesTrust(r.kind):
		return host.Goal{Reissued: true}
	}
	g := host.Goal{Trust: r.plan.Both, Ended: r.stage == client.StageTrust}
	switch {
	case r.stage == client.StageRekey && r.spec.Compromised:
		return host.Goal{Trust: r.plan.After, Issuer: r.plan.ToPrint}
	case r.stage == client.StageRekey && r.backwards:
		g.Held = true
	case r.stage == client.StageRekey:
		g.Issuer = r.plan.ToPrint
	case r.stage == client.StageLeave: // nobody presents under what leaves; see gate
		return host.Goal{Trust: r.plan.After}
	}
	return g
}

// move is what hosts are told in the present stage.
func (r *row) move() host.Move {
	switch {
	case r.kind == client.RolloutIdentities:
		return host.Move{Identity: true}
	case r.kind == client.RolloutReissue:
		return host.Move{Reissue: r.plan.Reissue}
	case r.kind == client.RolloutAlgorithm:
		return host.Move{} // the parameters change with it
	}
	switch {
	case r.stage == client.StageRekey && r.backwards:
		return host.Move{Issuer: new(string)} // that which they are held at
	case r.stage == client.StageRekey:
		return host.Move{Issuer: &r.plan.To}
	case r.stage == client.StageLeave:
		return host.Move{Trust: &r.plan.After}
	case r.backwards:
		return host.Move{Trust: new(int64)} // the pool's own, which has both
	}
	return host.Move{Trust: &r.plan.Both}
}
