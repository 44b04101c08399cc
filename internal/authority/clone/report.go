package clone

import (
	"context"
	"errors"
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
	Issuers         client.CloneIssuers
	NotReady        []string          // why it does not answer as it should; Report adds what it knows itself
	Configuration   map[string]string `json:",omitempty"` // what may differ between nodes, by the key's name
	Stopped         bool              `json:",omitempty"` // it does no more work
	Unreached       []string          `json:",omitempty"` // its listeners that only its own machine reaches, though it has an address elsewhere
}

// report is a node's last word, as it is stored.
type report struct {
	Self
	Schema int64
	Keys   client.CloneKeys

	CannotSign []string          `json:",omitempty"` // of NotReady, what keeps it from signing for issuers: keys and tokens
	Closed     map[string]string `json:",omitempty"` // the IDs of the keys that it cannot open, and what of CannotSign says so; nodes word it otherwise
	Clock      string            `json:",omitempty"` // why its clock keeps it from signing: it is ahead, so that it takes no lease, or behind
}

// registered is what this node last learnt of its own row.
type registered struct {
	at  time.Time
	err error // why it must not work
}

const (
	// believeFor is how long a node goes on with what it knows of its own row before it looks again. For so long it may try to write after
	// its removal, or after another process of its name has started; what it sends is refused by the fence. A report, every two seconds, is
	// such a look too.
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
	// Rows of a node that was removed may be put back by who can write to the database, or with a part of a backup; a list cannot.
	onList, _, doubt, err := s.ownEntry(ctx)
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
		case r != nil && r.state != client.CloneActive:
			return goneError(r)
		case !onList: // a row that was put back, or none
			return s.noneOfUs()
		case r == nil:
			db.TakeFence(tx, s.node, started)
			return s.registerFirst(ctx, tx, recipients, p, address, actor, now)
		case r.publicKey != s.Keys.Public():
			return fault.New(fault.Conflict, "node %s is known with the public key %s, and its key file has %s", s.node, r.publicKey, s.Keys.Public()).
				WithHint("bring the node's own node.key back; if it is lost, remove the node by another one, and join this machine with a new name")
		}
		started = max(started, micros(r.started)+1) // no two processes have one
		db.TakeFence(tx, s.node, started)
		_, err = tx.Exec(ctx, `UPDATE node SET address = $1, started_at = $2 WHERE name = $3`, address, started, s.node)
		return err
	})
	if errors.Is(err, db.ErrFenced) {
		return s.shutOut(err)
	}
	if err != nil {
		return fmt.Errorf("register node %s: %w", s.node, err)
	}
	if doubt != nil {
		s.Logger.ErrorContext(ctx, "the newest list of key recipients is in doubt; the node starts by the newest that it believes, and gives nobody keys", "error", doubt)
	}
	s.Access.Forget()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = started
	s.known = registered{at: now}
	return nil
}

// ownEntry is this node's entry of the newest list that it believes, with its key; own is true where there is no such list: one that is in
// doubt decides nothing, or whoever can write one row would keep every node from starting. What a removed node writes the fence refuses.
func (s *Service) ownEntry(ctx context.Context) (own bool, entry *keys.Listed, doubt, err error) {
	list, doubt, err := s.Keys.BelievedList(ctx)
	if err != nil || list == nil {
		return err == nil, nil, doubt, err
	}
	at := slices.IndexFunc(list.Recipients, func(r keys.Listed) bool { return r.ID == s.node && r.PublicKey == s.Keys.Public() })
	if at < 0 {
		return false, nil, doubt, nil
	}
	return true, &list.Recipients[at], doubt, nil
}

func (s *Service) noneOfUs() error {
	return fault.New(fault.Denied, "node %s is none of this authority: the newest signed list of key recipients does not name it with the public key %s",
		s.node, s.Keys.Public()).WithHint("a machine joins by chancery clone invite and join, with a new name")
}

// shutOut is for a node whose row says that it is one, and whose fence was raised: it was removed.
func (s *Service) shutOut(err error) error {
	return (&fault.Error{Kind: fault.Denied, Err: err, Message: "node " + s.node + " was removed, whatever its row says: nothing is written as it any more"}).
		WithHint("find out who put its row back; a machine joins by chancery clone invite and join, with a new name")
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
	if err := s.ended(); err != nil {
		return err
	}
	said := report{Self: self, Schema: schema.Newest()}
	openable, err := s.Keys.Openable(ctx)
	if err != nil {
		openable.Why = append(openable.Why, fmt.Sprintf("its keys cannot be looked at: %v", err))
	}
	said.Keys = client.CloneKeys{Entitled: openable.Entitled, Open: openable.Open}
	said.CannotSign, said.Closed = openable.Why, openable.Closed
	problems, _, err := s.CA.KeyProblems(ctx)
	if err != nil {
		return err
	}
	for _, p := range problems {
		said.CannotSign = append(said.CannotSign, p.Message)
	}
	said.NotReady = slices.Concat(said.NotReady, said.CannotSign)
	if err := s.DB.CheckClock(now); err != nil {
		said.Clock = err.Error() // a node that is not ready says so itself
	}
	text, err := encode(said)
	if err != nil {
		return err
	}
	var r *row
	var at, heard time.Time
	err = s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if r, err = named(ctx, tx, s.node); err != nil || s.superseded(r) != nil || r.state != client.CloneActive && r.state != client.CloneLeaving {
			return err
		}
		heard = time.Now()
		if at, err = tx.Clock(ctx); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE node SET report = $1, seen_at = $2 WHERE name = $3`, text, db.Micros(at), s.node)
		return err
	})
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			s.learn(err, now)
		}
		return err
	}
	if !at.IsZero() {
		s.hear(at, heard)
	}
	if r.state != client.CloneActive {
		err = goneError(r)
	} else {
		err = s.superseded(r)
	}
	s.learn(err, now)
	return err
}

// Ended reports whether an error of Report, Registered or Guard says that the node must stop: it left, was removed, or was never one.
func Ended(err error) bool {
	return fault.Is(err, fault.Denied) || fault.Is(err, fault.NotFound) || errors.Is(err, errNone) || errors.Is(err, db.ErrFenced)
}

// learn keeps what this node learnt of its own row. That it is none any more is kept for good: a row that is there again later, with
// an older state, makes nobody a node who was removed.
func (s *Service) learn(err error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, ErrLeaving) {
		err = nil // it finishes what it does, and says at last that it has stopped
	}
	if !Ended(s.known.err) {
		s.known = registered{at: now, err: err}
	}
}

// ended is why this process is no node any more, as far as it has learnt.
func (s *Service) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if Ended(s.known.err) {
		return s.known.err
	}
	return nil
}

// Registered refuses where this node is none of the authority's any more. It remembers for some seconds, which Report keeps fresh; a
// node that stood still longer asks first. It is asked before each write, so that a node which was removed hears why; what makes sure of it
// is the fence, which each write is held against where it is made.
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
	if Ended(known.err) {
		return known.err, true
	}
	if known.at.IsZero() {
		return nil, false
	}
	age, wall := time.Since(known.at), time.Now().Round(0).Sub(known.at.Round(0))
	return known.err, age >= 0 && age < believeFor && wall > -believeFor && wall < believeFor
}

// picture is what one moment of the database shows of all nodes.
type picture struct {
	all    []*row
	leases []db.Lease
	at     time.Time // by the clock by which nodes are seen: the primary's; zero where that is not known
}

// picture asks the primary, whose clock dates when nodes were seen. Where that does not answer, a standby shows what it has; its own clock
// says nothing of those times.
func (s *Service) picture(ctx context.Context) (p picture, err error) {
	load := func(tx *db.Tx) (err error) {
		if p.all, err = nodes(ctx, tx, "", MaxNodes); err != nil {
			return err
		}
		p.leases, err = db.LeasesIn(ctx, tx)
		return err
	}
	var heard time.Time
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		heard = time.Now()
		if p.at, err = tx.Clock(ctx); err != nil {
			return err
		}
		return load(tx)
	})
	if err == nil {
		s.hear(p.at, heard)
	}
	if !fault.Is(err, fault.Unavailable) {
		return p, err
	}
	p.at = s.reckoned(time.Now())
	return p, s.DB.Read(ctx, load)
}

// told is what the primary's clock said, and when that was by this node's.
type told struct{ at, heard time.Time }

func (s *Service) hear(at, heard time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if heard.After(s.clock.heard) {
		s.clock = told{at, heard}
	}
}

// reckoned is what the primary's clock says by now, from when this process last heard it: it hears it with each of its reports. It is zero
// where it never did. The monotonic clock stands still while a machine sleeps, and the other may be set: what has gone by is the more of both.
func (s *Service) reckoned(now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clock.heard.IsZero() {
		return time.Time{}
	}
	return s.clock.at.Add(max(now.Sub(s.clock.heard), now.Round(0).Sub(s.clock.heard.Round(0))))
}

// List lists the nodes in the order of their names, from after the one given; next is the name to continue with.
func (s *Service) List(ctx context.Context, by access.Principal, after string, limit int) (found []client.Clone, next string, err error) {
	if err := by.May(access.ReadStatus); err != nil {
		return nil, "", err
	}
	p, err := s.picture(ctx)
	if err != nil {
		return nil, "", err
	}
	page := slices.DeleteFunc(slices.Clone(p.all), func(r *row) bool { return r.name <= after })
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].name
	}
	wired, err := s.wired(ctx, page, &p)
	for _, c := range wired {
		found = append(found, *c)
	}
	return found, next, err
}

// Show shows one node.
func (s *Service) Show(ctx context.Context, by access.Principal, name string) (*client.Clone, error) {
	if err := by.May(access.ReadStatus); err != nil {
		return nil, err
	}
	p, err := s.picture(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(p.all, func(r *row) bool { return r.name == name })
	if at < 0 {
		return nil, noNode(name)
	}
	wired, err := s.wired(ctx, p.all[at:at+1], &p)
	if err != nil {
		return nil, err
	}
	return wired[0], nil
}

// wired shows nodes as they stand among all.
func (s *Service) wired(ctx context.Context, rows []*row, p *picture) ([]*client.Clone, error) {
	now := time.Now()
	var found []*client.Clone
	for _, r := range rows {
		found = append(found, s.wire(r, p, now))
	}
	return found, s.stand(ctx, found, p, now)
}

func (s *Service) wire(r *row, p *picture, now time.Time) *client.Clone {
	out := &client.Clone{
		Name: r.name, State: r.state, Subsystems: r.subsystems, Address: r.address, Names: r.request.Names, Fingerprint: r.fingerprint, Release: r.report.Release,
		Schema: r.report.Schema, Self: r.name == s.node, Created: r.created, Approved: r.approved, Seen: r.seen,
		Unreached: r.report.Unreached, CertificateEnds: r.report.CertificateEnds, Database: r.report.Database, Keys: r.report.Keys, Issuers: r.report.Issuers,
	}
	if r.seen.IsZero() {
		out.Release, out.Schema = r.request.Release, r.request.Schema
	}
	out.Database.Role = r.databaseRole
	out.NotReady = r.notReady(p.at)
	out.Ready = len(out.NotReady) == 0
	for _, l := range p.leases {
		if (l.Holder == r.name && l.Expires.After(now)) || l.Pinned == r.name {
			out.Leases = append(out.Leases, client.CloneLease{Name: l.Name, Holder: l.Holder, Epoch: l.Epoch, Expires: l.Expires, Pinned: l.Pinned})
		}
	}
	return out
}

// notReady is why a node does not answer as it should, as far as others see; now is the database's, and zero where that is not known.
func (r *row) notReady(now time.Time) []string {
	switch {
	case r.state != client.CloneActive:
		return []string{"it is " + r.state}
	case r.joinedBy != "" && r.answer.State != client.CloneActive:
		return []string{"its approval was cut short: approve it again"}
	case r.seen.IsZero():
		return []string{"it has not started yet"}
	case now.IsZero():
		return []string{"not known since the primary is away"}
	case now.Sub(r.seen) > reportedFor:
		return []string{fmt.Sprintf("it was last seen %s ago", now.Sub(r.seen).Round(time.Second))}
	}
	return r.report.NotReady
}
