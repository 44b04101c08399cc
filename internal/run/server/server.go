package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"chancery/internal/authority/clone"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
	"chancery/internal/surface/api"
	"chancery/internal/surface/problem"
	"chancery/internal/surface/publish"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
)

// Options say which node to run.
type Options struct {
	Dir     datadir.Dir
	Version string // of the program
	Logger  *slog.Logger

	// Listening, where it is set, is told the addresses once calls are answered there.
	Listening func(Addresses)
}

// Addresses are where a node listens, with the ports that the system chose.
type Addresses struct{ API, Public, Metrics string }

// Answer has services that somebody else opened answer callers until ctx ends, as the node of that configuration. It leaves the store
// open.
func Answer(ctx context.Context, o Options, config *datadir.Config, services *setup.Services) error {
	n := &node{Options: o, config: config, logger: o.Logger.With("node", config.Name), services: services}
	if err := n.prepare(ctx); err != nil {
		return err
	}
	return n.run(ctx)
}

// Run runs a node until ctx ends; then it lets calls in progress end, and closes its store.
func Run(ctx context.Context, o Options) error {
	config, err := o.Dir.Load()
	if err != nil {
		return err
	}
	logger := o.Logger.With("node", config.Name)
	services, err := setup.Open(ctx, o.Dir, config, logger)
	if err != nil {
		return fmt.Errorf("open %s: %w", string(o.Dir), err)
	}
	n := &node{Options: o, config: config, logger: logger, services: services}
	err = n.prepare(ctx)
	if err == nil {
		err = n.run(ctx)
	}
	if end := services.Close(); end != nil {
		err = errors.Join(err, fmt.Errorf("close the store: %w", end))
	}
	return err
}

// node is a node that runs.
type node struct {
	Options
	config      *datadir.Config
	logger      *slog.Logger
	services    *setup.Services
	registry    *prometheus.Registry
	certificate *certificate
	login       *login
	checkpoints *checkpoints
	listeners   []*listener
	subsystems  []keys.Subsystem
	registered  bool // used by prepare, then by goOn alone, then by run
}

// prepare makes ready all that may fail before anything is served.
func (n *node) prepare(ctx context.Context) error {
	s := n.services
	if err := schema.Migrate(ctx, s.DB); err != nil {
		return fmt.Errorf("migrate the store: %w", err)
	}
	if err := n.learnSubsystems(ctx); err != nil {
		return fmt.Errorf("learn the node's subsystems: %w", err)
	}
	if err := s.DB.LearnClock(ctx); err != nil {
		return fmt.Errorf("learn the authority's time: %w", err)
	}
	if err := s.HoldIdentityRoot(ctx, n.Dir, n.logger); err != nil {
		return err
	}
	now := time.Now()
	if err := s.DB.CheckClock(now); err != nil {
		n.logger.Error("the node serves what only reads", "error", err)
	}
	if err := followDurability(ctx, s); err != nil {
		return fmt.Errorf("read the settings: %w", err)
	}
	if err := n.register(ctx); err != nil {
		return err
	}
	n.registry = prometheus.NewRegistry()
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newGauges(s, n.logger))
	n.checkpoints = &checkpoints{Services: s, logger: n.logger}
	n.certificate = &certificate{
		file: n.Dir.TLS(), names: serverNames(n.config, n.runs(keys.SubsystemCA)), enrol: n.enrol, logger: n.logger,
	}
	if err := n.certificate.open(ctx, now); err != nil {
		if n.runs(keys.SubsystemCA) {
			return err
		}
		// What is public needs no certificate, and others may be away for a while.
		n.logger.Error("the node's TLS certificate is not good, and no node renewed it; this is tried again", "error", err)
	}
	n.login = n.newLogin()
	return n.listen()
}

// listen opens the three listeners.
func (n *node) listen() error {
	s, proxies := n.services, n.config.Proxies()
	surface, err := api.New(s, api.Options{
		Logger: n.logger, Registry: n.registry, Version: n.Version, Expensive: n.config.Expensive, Proxies: proxies,
		Checkpoints: n.checkpoints, Dir: n.Dir, Subsystems: n.subsystems,
	})
	if err != nil {
		return err
	}
	// Strangers ask as often as they like, and must not fill the disk with log.
	public := problem.Observe(n.logger, slog.LevelDebug, problem.NewMetrics(n.registry, "publish"),
		aged(s.DB, publish.New(s.Revocation, s.CA, s.Settings, proxies)))
	tlsConfig := &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: n.certificate.get,
		// Checked by the API and not here: a handshake that fails cannot say why.
		ClientAuth: tls.RequestClientCert,
	}
	for _, l := range []struct {
		name, address string
		open          func(name, address string) (*listener, error)
	}{
		{"api", n.config.Listen.API, func(name, address string) (*listener, error) {
			return listen(name, address, tlsConfig, aged(s.DB, surface), proxies, n.logger)
		}},
		{"public", n.config.Listen.Public, func(name, address string) (*listener, error) {
			return listen(name, address, nil, public, proxies, n.logger)
		}},
		{"metrics", n.config.Listen.Metrics, func(name, address string) (*listener, error) {
			h := health(n.registry, n.ready, n.reads)
			if n.config.Profiling {
				h = withProfiles(h)
			}
			return listen(name, address, nil, h, proxies, n.logger)
		}},
	} {
		opened, err := l.open(l.name, l.address)
		if err != nil {
			for _, other := range n.listeners {
				err = errors.Join(err, other.socket.Close())
			}
			return err
		}
		n.listeners = append(n.listeners, opened)
	}
	return nil
}

// ready refuses while calls that change something would be refused. A node without the subsystem ca is there for who only reads.
func (n *node) ready(ctx context.Context) error {
	if !n.runs(keys.SubsystemCA) {
		if err := n.services.DB.ClockAhead(); err != nil {
			return err // what it has signed has ended by its clock, and it signs nothing
		}
		_, err := n.reads(ctx)
		return err
	}
	if err := n.services.DB.Away(); err != nil {
		return err
	}
	if err := n.services.DB.CheckClock(time.Now()); err != nil {
		return err
	}
	if err := n.services.DB.CheckWrites(); err != nil {
		return err
	}
	_, err := n.services.DB.ReadAge(ctx, time.Now())
	return err
}

// alive refuses where the store does not come back at all, which a restart may mend. A store that answers with an error, or a
// clock that is behind, it would not mend, and the node goes on answering what it can.
func (n *node) alive(ctx context.Context) error {
	if _, err := n.services.DB.ReadAge(ctx, time.Now()); errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// run serves until ctx ends or a part fails. The loops outlive the listeners, since calls in progress rely on them.
func (n *node) run(ctx context.Context) error {
	loops, stopLoops := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLoops()
	g, failed := errgroup.WithContext(loops)
	for _, loop := range n.loops() {
		g.Go(func() error {
			if err := loop(failed); err != nil && failed.Err() == nil {
				return err
			}
			return nil // it was told to end
		})
	}
	for _, l := range n.listeners {
		g.Go(l.Run)
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-failed.Done():
		}
		notify(n.logger, daemon.SdNotifyStopping)
		n.services.Hosts.EndWaits()
		defer stopLoops()
		return n.shutdown()
	})
	at := Addresses{API: n.listeners[0].address(), Public: n.listeners[1].address(), Metrics: n.listeners[2].address()}
	n.logger.Info("the node serves", "api", at.API, "public", at.Public, "metrics", at.Metrics, "version", n.Version)
	notify(n.logger, daemon.SdNotifyReady)
	if n.Listening != nil {
		n.Listening(at)
	}
	err := g.Wait()
	if errors.Is(err, clone.ErrLeaving) {
		err = nil
	}
	n.stopped(time.Now())
	n.logger.Info("the node has ended")
	return err
}

// loops are what a node does besides answering.
func (n *node) loops() []func(context.Context) error {
	s := n.services
	prune := &pruner{db: s.DB, settings: s.Settings, access: s.Access, ca: s.CA, hosts: s.Hosts, rollouts: s.Rollouts, proofs: s.Proofs, clones: s.Clones, logger: n.logger}
	loops := []func(context.Context) error{
		func(ctx context.Context) error { return heartbeat(ctx, s, n.logger) },
		func(ctx context.Context) error { return watchdog(ctx, n.logger, n.alive) },
		s.DB.Watch, n.certificate.Run, n.login.Run, s.Access.Run, s.Revocation.Follow, s.Hosts.Run, s.Hosts.Follow, collect, n.goOn,
		n.stillOne,
	}
	if n.runs(keys.SubsystemCA) { // what takes leases, or issues
		loops = append(loops, n.checkpoints.Run, prune.Run, s.Revocation.Run, s.Rollouts.Run, s.Trust.Run, n.finish, n.drills)
	}
	return loops
}

// shutdown ends the listeners side by side within the grace that the configuration gives.
func (n *node) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), n.config.ShutdownGrace)
	defer cancel()
	var g errgroup.Group
	for _, l := range n.listeners {
		g.Go(func() error { return l.shutdown(ctx) })
	}
	return g.Wait()
}
