package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

const (
	// reportEvery is how often a node says how it does, and learns whether it is still one of the authority's.
	reportEvery = 2 * time.Second
	// finishEvery is how often a node looks for what another left undone.
	finishEvery = 4 * time.Second
)

// registering marks the context of what registers the node.
type registering struct{}

// unregistered is the guard of a node that has not registered yet: whether it is one of the authority's still is not known, and it has no
// fence that its writes are held against.
func unregistered(ctx context.Context) error {
	if ctx.Value(registering{}) != nil {
		return nil
	}
	return fault.New(fault.Unavailable, "this node has not registered yet since it started, and only reads until then; nothing was changed").
		WithHint("repeat the call later, or at another node; the node's log says what keeps it")
}

// register makes the node known, and refuses to start one that was removed. Where the database takes no writes just now the node
// serves what only reads, and goOn registers it later.
func (n *node) register(ctx context.Context) error {
	s, now := n.services, time.Now()
	ctx = context.WithValue(ctx, registering{}, true)
	if s.DB.Dialect() == db.Postgres { // the file of SQLite is nobody else's
		s.DB.Guard(unregistered)
	}
	if n.runs(keys.SubsystemCA) {
		first, err := s.Keys.FirstList(ctx, access.System(n.config.Name).Actor(), now)
		if err != nil {
			n.logger.Error("the list of key recipients was not signed", "error", err)
		}
		if first {
			n.logger.Info("the first list of key recipients is signed")
		}
	}
	err := s.Clones.Register(ctx, n.config.Address, now)
	if err == nil {
		// Before it takes leases, or signs: what it finds wrong with the clock stays with the database's layer.
		if err := s.DB.Heartbeat(ctx, time.Now()); err != nil {
			n.logger.Error("heartbeat", "error", err)
		}
		n.registered = true
		s.DB.Guard(s.Clones.Guard)
		return nil
	}
	if clone.Ended(err) || fault.Is(err, fault.Conflict) {
		return err
	}
	n.logger.Error("the node is not registered yet", "error", err)
	return nil
}

// goOn reports until ctx ends, or until the node is one of the authority's no more, which ends it.
func (n *node) goOn(ctx context.Context) error {
	failing := false
	interval := reportEvery
	if n.services.DB.Dialect() == db.SQLite {
		interval = heartbeatEvery // nobody waits for it
	}
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		err := n.report(ctx, time.Now(), false)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, clone.ErrLeaving):
			n.logger.Info("the node leaves")
			return clone.ErrLeaving
		case clone.Ended(err):
			n.logger.Error("the node stops", "error", err)
			return fmt.Errorf("stop: %w", err)
		case err != nil && !failing:
			n.logger.Error("the node cannot say how it does", "error", err)
		case err == nil && failing:
			n.logger.Info("the node says how it does again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (n *node) report(ctx context.Context, now time.Time, stopped bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if !n.registered {
		if err := n.register(ctx); err != nil || !n.registered {
			return err
		}
	}
	return n.services.Clones.Report(ctx, n.self(ctx, now, stopped), now)
}

// self is what the node says of itself.
func (n *node) self(ctx context.Context, now time.Time, stopped bool) clone.Self {
	d := n.services.DB
	self := clone.Self{Release: n.Version, Stopped: stopped, Configuration: n.config.Shared(), Unreached: n.config.Unreached(), Database: client.CloneDatabase{
		Engine: string(d.Dialect()), LocalReads: n.config.ReadDatabaseFile != "", Age: d.Age(now).Seconds(), Primary: "reached",
	}}
	if b := d.Behind(); b != nil {
		seconds := b.For.Seconds()
		self.Database.Lag, self.Database.LagOctets = &seconds, b.Octets
	}
	if n.runs(keys.SubsystemOCSP) {
		self.Issuers.Count, self.Issuers.Digest = n.services.Revocation.Answered(ctx, now)
	}
	if err := d.Away(); err != nil {
		self.Database.Primary = err.Error()
	}
	if crt := n.certificate.current.Load(); crt != nil {
		self.CertificateEnds = crt.Leaf.NotAfter
		if now.After(crt.Leaf.NotAfter) {
			self.NotReady = append(self.NotReady, "its TLS certificate ended at "+crt.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	if ends := n.login.ends.Load(); ends != nil {
		self.Database.LoginEnds = *ends
		if now.After(*ends) {
			self.NotReady = append(self.NotReady, "the certificate of its login at the database ended at "+ends.UTC().Format(time.RFC3339))
		}
	}
	if err := n.ready(ctx); err != nil {
		self.NotReady = append(self.NotReady, err.Error())
	}
	if age, err := d.ReadAge(ctx, now); err == nil && age > staleReads {
		self.NotReady = append(self.NotReady, fmt.Sprintf("what it reads is %s old", age.Round(time.Second)))
	}
	return self
}

// staleReads is how old what a node reads may be while it counts as ready: some heartbeats.
const staleReads = 4 * heartbeatEvery

// finish does what other nodes left undone.
func (n *node) finish(ctx context.Context) error {
	failing := false
	return every(ctx, finishEvery, func(ctx context.Context, now time.Time) {
		if n.services.DB.Dialect() == db.SQLite {
			return // there is no other node
		}
		err := n.services.Clones.Finish(ctx, now)
		if err != nil && !failing && ctx.Err() == nil {
			n.logger.Error("what other nodes left undone is not finished", "error", err)
		}
		failing = err != nil
	})
}

// stopped tells the others that the node does no more work, so that they take what it had. It is told when that is so, and heard
// only where the node is leaving.
func (n *node) stopped(now time.Time) {
	if !n.registered {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), reportEvery)
	defer cancel()
	if err := n.report(ctx, now, true); err != nil && !clone.Ended(err) {
		n.logger.Warn("the others were not told that the node has stopped", "error", err)
	}
}
