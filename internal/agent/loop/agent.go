package loop

import (
	"crypto"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"chancery/client"
	"chancery/internal/agent/place"
	"chancery/internal/agent/probe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// Options are what an Agent works with.
type Options struct {
	// State is the agent's directory.
	State string
	// Root is put before every path that is placed. It is settled by the first use of a state directory, at join; empty
	// takes what was settled.
	Root string
	// Config is the host's word on what is accepted; nil reads agent.yaml under the root.
	Config *Config
	// Adopt is a placement, or AdoptAll, whose files that are there and are not the agent's are taken over while this Agent is
	// open. It is for one pass that an operator looks at; agent.yaml says it for good.
	Adopt string
	// Now is the agent's notion of time; time.Now where it is nil.
	Now     func() time.Time
	Logger  *slog.Logger // nil logs nothing
	Version string
	Pace    Pace
	// Alone says that the process is this agent's alone: what it does not need while it waits is given back to the system.
	Alone bool
	// Self starts the child that tries to read a file as another user: see probe.System.
	Self []string
	// Cut is called before and after each change of the state directory, and CutFiles before and after each operation on
	// files: tests end the process there.
	Cut      func(step string)
	CutFiles func(place.Operation) error
}

// AdoptAll adopts for every placement. It is no name that a placement can have.
const AdoptAll = "*"

// Agent is the agent of one host. It holds the lock of its state directory until Close.
type Agent struct {
	state   *State
	root    string
	config  *Config
	adopt   string
	now     func() time.Time
	log     *slog.Logger
	version string
	pace    Pace
	system  probe.System
	placer  *place.Placer
	api     *client.Client // nil before the host joined
	tries   attempts
	proveAt time.Time // when a proof that waits is looked at again
	alone   bool

	trustEnds  time.Time // when the first of what is trusted ends, as of the last pass; zero where nothing does
	reported   string    // digest of the last report that was taken
	reportedAt time.Time // by the agent's clock

	mu   sync.Mutex // guards what follows: the poll runs beside the pass
	id   *identity
	skew time.Duration // how far the agent's clock is ahead of the authority's
	gone error         // why the authority was not reached the last time; nil when it was
}

// New opens an agent's state directory and locks it. It starts nothing and reaches nothing.
func New(o Options) (*Agent, error) {
	state, err := OpenState(o.State, o.Cut)
	if err != nil {
		return nil, err
	}
	a, err := assemble(state, o)
	if err != nil {
		return nil, errors.Join(err, state.Close())
	}
	return a, nil
}

func assemble(state *State, o Options) (*Agent, error) {
	if o.Root != "" {
		if err := state.settleRoot(o.Root); err != nil {
			return nil, err
		}
	}
	settled, err := state.settings()
	if err != nil {
		return nil, err
	}
	a := &Agent{
		state: state, root: settled.Root, config: o.Config, adopt: o.Adopt, now: o.Now, log: o.Logger, version: o.Version, pace: o.Pace.filled(),
		tries: attempts{}, alone: o.Alone,
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.config == nil {
		if a.config, err = LoadConfig(a.root); err != nil {
			return nil, err
		}
	}
	a.system = probe.System{Root: a.root, AsRoot: os.Geteuid() == 0, Self: o.Self}
	a.placer, err = place.New(place.Options{
		State: state.path(dirJournal), System: a.system, Accept: a.config.placeable(), Log: a.log, Cut: o.CutFiles,
	})
	if err != nil {
		return nil, err
	}
	if a.id, err = state.loadIdentity(); err != nil {
		return nil, err
	}
	if a.id != nil {
		a.api, err = a.connect()
	}
	return a, err
}

// connect makes the client. It shows whatever identity is the newest.
func (a *Agent) connect() (*client.Client, error) {
	text, err := a.state.read(fileRoots)
	if err != nil {
		return nil, err
	}
	roots, err := rootPool(text)
	if err != nil {
		return nil, err
	}
	return client.New(client.Options{
		Address: a.id.Address, Roots: roots, UserAgent: userAgent(a.version), Now: a.now, Clock: a.hearClock,
		Certificate: func() (*tls.Certificate, error) { return &a.identity().pair, nil },
	})
}

// Close gives the state directory back.
func (a *Agent) Close() error {
	if a.api != nil {
		a.api.Close()
	}
	a.placer.Close()
	return a.state.Close()
}

// Host is the name under which the host joined; empty before.
func (a *Agent) Host() string {
	if id := a.identity(); id != nil {
		return id.Host
	}
	return ""
}

func (a *Agent) identity() *identity {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.id
}

func (a *Agent) setIdentity(id *identity) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.id = id
}

// maxSkew is how far the clock may be off before it is reported. Certificates are backdated by five minutes.
const maxSkew = 2 * time.Minute

// hearClock compares the agent's clock with the authority's.
func (a *Agent) hearClock(node time.Time) {
	skew := a.now().Sub(node)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.skew = skew
}

// clockProblem says by how much the clock is off; empty where it is right enough.
func (a *Agent) clockProblem() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.skew > maxSkew:
		return fmt.Sprintf("this host's clock is %s ahead of the authority's", a.skew.Round(time.Second))
	case a.skew < -maxSkew:
		return fmt.Sprintf("this host's clock is %s behind the authority's", (-a.skew).Round(time.Second))
	}
	return ""
}

// backdated is how far certificates begin in the past, less a margin.
const backdated = 4 * time.Minute

// tooEarly says that the clock is so far behind that whatever is issued now would not be valid here yet; empty where it is
// not.
func (a *Agent) tooEarly() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.skew > -backdated {
		return ""
	}
	return fmt.Sprintf("this host's clock is %s behind the authority's, so that a new certificate would not be valid here yet", (-a.skew).Round(time.Second))
}

// away reports whether the authority could not be reached the last time it was tried. Then a pass does not try again: the
// poll does, and tells.
func (a *Agent) away() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.api == nil || a.gone != nil
}

func (a *Agent) setGone(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = err
}

// standing reports whether the authority refuses this host for what it is: removed, suspect, or with an identity that ended.
// Asking again soon does not help.
func standing(err error) bool {
	return client.IsKind(err, string(fault.Denied)) || client.IsKind(err, string(fault.Unauthenticated))
}

// auditKeys are the pinned keys of audit checkpoints; none where the authority named none.
func (s *State) auditKeys() ([]crypto.PublicKey, error) {
	text, err := s.read(fileAuditKey)
	if err != nil || len(text) == 0 {
		return nil, err
	}
	var all []crypto.PublicKey
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		key, err := cert.ParsePublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read a pinned audit key: %w", err)
		}
		all = append(all, key)
	}
	return all, nil
}
