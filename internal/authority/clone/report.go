package clone

import (
	"context"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
)

// Self is what a node says of itself.
type Self struct {
	Release         string
	CertificateEnds time.Time
	Database        client.CloneDatabase
	NotReady        []string          // why it does not answer as it should; Report adds what it knows itself
	Configuration   map[string]string `json:",omitempty"` // what may differ between nodes, by the key's name
	Stopped         bool              `json:",omitempty"` // it does no more work
}

// report is a node's last word, as it is stored.
type report struct {
	Self
	Schema int64
	Keys   client.CloneKeys
}

// registered is what this node last learnt of its own row.
type registered struct {
	at  time.Time
	err error // why it must not work
}

const (
	// believeFor is how long a node goes on with what it knows of its own row: for so long it may work after its removal, or after
	// another process of its name has started. A report, every two seconds, is such a look too.
	believeFor = 2 * time.Second

	// reportedFor is how long after its last report a node is taken for ready.
	reportedFor = 10 * time.Second
)

// Register makes this node known at its start, and learns whether it is still one of the authority's. The first node, and those
// that were made before nodes were known, have no row yet: they are key recipients, and that is enough.
func (s *Service) Register(ctx context.Context, address string, now time.Time) error {
	p := access.Principal{ID: db.NewID(), Name: identity.NodePrincipal(s.node), Kind: access.KindNode, Created: db.FromMicros(db.Micros(now))}
	recipients, err := s.Keys.Recipients(ctx)
	if err != nil {
		return err
	}
	actor := access.System(s.node).Actor()
	var started int64
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		started = db.Micros(now)
		r, err := find(ctx, tx, `name = $1`, s.node)
		switch {
		case err != nil:
			return err
		case r == nil:
			return s.registerFirst(ctx, tx, recipients, p, address, actor, now)
		case r.state != client.CloneActive:
			return goneError(r)
		case r.publicKey != s.Keys.Public():
			return fault.New(fault.Conflict, "node %s is known with the public key %s, and its key file has %s", s.node, r.publicKey, s.Keys.Public()).
				WithHint("bring the node's own node.key back; if it is lost, remove the node by another one, and join this machine with a new name")
		}
		started = max(started, micros(r.started)+1) // no two processes have one
		_, err = tx.Exec(ctx, `UPDATE node SET address = $1, started_at = $2 WHERE name = $3`, address, started, s.node)
		return err
	})
	if err != nil {
		return fmt.Errorf("register node %s: %w", s.node, err)
	}
	s.Access.Forget()
	s.mu.Lock()
	s.started = started
	s.mu.Unlock()
	s.learn(nil, now)
	return nil
}

// superseded refuses where another process has started as this node since: the machine was started twice from one snapshot, or its data
// directory was copied. The newest goes on.
func (s *Service) superseded(r *row) error {
	s.mu.Lock()
	own := s.started
	s.mu.Unlock()
	if own == 0 || micros(r.started) == own {
		return nil
	}
	return fault.New(fault.Denied, "another process started as node %s at %s, and goes on in its place", s.node, r.started.UTC().Format(time.RFC3339)).
		WithHint("a node runs once: find out which machine has a copy of this data directory, and remove it there")
}

func (s *Service) registerFirst(ctx context.Context, tx *db.Tx, recipients []keys.Recipient, p access.Principal,
	address, actor string, now time.Time) error {
	at := slices.IndexFunc(recipients, func(r keys.Recipient) bool { return r.ID == s.node && r.Kind == keys.KindNode })
	if at < 0 || recipients[at].PublicKey != s.Keys.Public() {
		return fault.New(fault.Denied, "node %s is none of this authority: it is no key recipient with the public key %s", s.node, s.Keys.Public()).
			WithHint("a machine joins by chancery clone invite and join")
	}
	fingerprint := client.CloneFingerprint(client.CloneJoin{Name: s.node, Address: address, PublicKey: s.Keys.Public()}, nil, nil)
	r := &row{
		name: s.node, state: client.CloneActive, address: address, publicKey: s.Keys.Public(), spki: []byte{}, principal: p.ID, fingerprint: fingerprint,
		created: now, approved: now, started: now, approvedBy: actor,
	}
	for _, name := range recipients[at].Subsystems {
		r.subsystems = append(r.subsystems, string(name))
	}
	slices.Sort(r.subsystems)
	if err := s.Access.InsertPrincipal(ctx, tx, p, actor); err != nil {
		return err
	}
	if err := r.insert(ctx, tx); err != nil {
		return err
	}
	return s.audit(ctx, tx, actor, "clone.register", s.node, map[string]any{"public_key": r.publicKey, "subsystems": r.subsystems, "address": address}, now)
}

// Report writes what this node says of itself, and learns whether it is one still: the error says why it must stop. A database
// that does not answer is no reason to stop.
func (s *Service) Report(ctx context.Context, self Self, now time.Time) error {
	said := report{Self: self, Schema: schema.Newest()}
	openable, err := s.Keys.Openable(ctx)
	if err != nil {
		openable.Why = append(openable.Why, fmt.Sprintf("its keys cannot be looked at: %v", err))
	}
	said.Keys = client.CloneKeys{Entitled: openable.Entitled, Open: openable.Open}
	said.NotReady = append(slices.Clone(said.NotReady), openable.Why...)
	problems, _, err := s.CA.KeyProblems(ctx)
	if err != nil {
		return err
	}
	for _, p := range problems {
		said.NotReady = append(said.NotReady, p.Message)
	}
	text, err := encode(said)
	if err != nil {
		return err
	}
	var r *row
	err = s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if r, err = named(ctx, tx, s.node); err != nil || s.superseded(r) != nil || r.state != client.CloneActive && r.state != client.CloneLeaving {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE node SET report = $1, seen_at = $2 WHERE name = $3`, text, db.Micros(now), s.node)
		return err
	})
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			s.learn(err, now)
		}
		return err
	}
	if r.state != client.CloneActive {
		err = goneError(r)
	} else {
		err = s.superseded(r)
	}
	s.learn(err, now)
	return err
}

// Ended reports whether an error of Report or Registered says that the node must stop: it left, was removed, or was never one.
func Ended(err error) bool { return fault.Is(err, fault.Denied) || fault.Is(err, fault.NotFound) }

func (s *Service) learn(err error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = registered{at: now, err: err}
}

// Registered refuses where this node is none of the authority's any more. It remembers for some seconds, which Report keeps fresh; a
// node that stood still longer asks first. It is asked before each write, so a removed node that comes back to life writes nothing.
func (s *Service) Registered(ctx context.Context) error {
	if err, fresh := s.remembered(); fresh {
		return err
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	if err, fresh := s.remembered(); fresh { // another caller has asked meanwhile
		return err
	}
	now := time.Now()
	r, err := s.read(ctx, s.node)
	switch {
	case err != nil && !fault.Is(err, fault.NotFound):
		return err
	case err == nil && r.state != client.CloneActive && r.state != client.CloneLeaving:
		err = goneError(r)
	case err == nil:
		err = s.superseded(r)
	}
	s.learn(err, now)
	return err
}

// remembered is what this node learnt of its own row, if that is fresh. Wall and monotonic clock both count: the one stands still
// while the machine sleeps, the other may be set.
func (s *Service) remembered() (refused error, fresh bool) {
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()
	if known.at.IsZero() {
		return nil, false
	}
	age, wall := time.Since(known.at), time.Now().Round(0).Sub(known.at.Round(0))
	return known.err, age >= 0 && age < believeFor && wall > -believeFor && wall < believeFor
}

// List lists the nodes in the order of their names, from after the one given; next is the name to continue with.
func (s *Service) List(ctx context.Context, by access.Principal, after string, limit int) (found []client.Clone, next string, err error) {
	if err := by.May(access.ReadStatus); err != nil {
		return nil, "", err
	}
	var all []*row
	var leases []db.Lease
	err = s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		all, err = nodes(ctx, tx, after, limit+1)
		return err
	})
	if err == nil {
		leases, err = s.DB.Leases(ctx)
	}
	if err != nil {
		return nil, "", err
	}
	if len(all) > limit {
		all = all[:limit]
		next = all[limit-1].name
	}
	now := time.Now()
	var wired []*client.Clone
	for _, r := range all {
		wired = append(wired, s.wire(r, leases, now))
	}
	if err := s.stand(ctx, wired, leases, now); err != nil {
		return nil, "", err
	}
	for _, c := range wired {
		found = append(found, *c)
	}
	return found, next, nil
}

// Show shows one node.
func (s *Service) Show(ctx context.Context, by access.Principal, name string) (*client.Clone, error) {
	if err := by.May(access.ReadStatus); err != nil {
		return nil, err
	}
	var r *row
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		r, err = named(ctx, tx, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	leases, err := s.DB.Leases(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	shown := s.wire(r, leases, now)
	return shown, s.stand(ctx, []*client.Clone{shown}, leases, now)
}

func (s *Service) wire(r *row, leases []db.Lease, now time.Time) *client.Clone {
	out := &client.Clone{
		Name: r.name, State: r.state, Subsystems: r.subsystems, Address: r.address, Names: r.request.Names, Fingerprint: r.fingerprint, Release: r.report.Release,
		Schema: r.report.Schema, Self: r.name == s.node, Created: r.created, Approved: r.approved, Seen: r.seen,
		CertificateEnds: r.report.CertificateEnds, Database: r.report.Database, Keys: r.report.Keys,
	}
	if r.seen.IsZero() {
		out.Release, out.Schema = r.request.Release, r.request.Schema
	}
	out.Database.Role = r.databaseRole
	out.NotReady = r.notReady(now)
	out.Ready = len(out.NotReady) == 0
	for _, l := range leases {
		if (l.Holder == r.name && l.Expires.After(now)) || l.Pinned == r.name {
			out.Leases = append(out.Leases, client.CloneLease{Name: l.Name, Holder: l.Holder, Epoch: l.Epoch, Expires: l.Expires, Pinned: l.Pinned})
		}
	}
	return out
}

// notReady is why a node does not answer as it should, as far as others see.
func (r *row) notReady(now time.Time) []string {
	switch {
	case r.state != client.CloneActive:
		return []string{"it is " + r.state}
	case r.joinedBy != "" && r.answer.State != client.CloneActive:
		return []string{"its approval was cut short: approve it again"}
	case r.seen.IsZero():
		return []string{"it has not started yet"}
	case now.Sub(r.seen) > reportedFor:
		return []string{fmt.Sprintf("it was last seen %s ago", now.Sub(r.seen).Round(time.Second))}
	}
	return r.report.NotReady
}
