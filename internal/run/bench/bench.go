package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"chancery/client"
	"chancery/internal/fault"
)

// Options say what to measure, and with which programs.
type Options struct {
	Program  string   // this program: its serve is under test
	StepCA   string   // the peer; empty, and what is compared with it is missed
	Dir      string   // where the throw-away stores are made; empty means the system's place for temporary files
	Profiles string   // where profiles of missed budgets are written
	Only     []string // parts (issuance, ocsp, revocation, crl, start, clones, agents, rollouts), engines (sqlite, postgres) and a store (cluster); empty means all
	Scale    Scale
	Out      io.Writer // the table and the budgets
	Err      io.Writer // progress
}

// Scale is how much is measured.
type Scale struct {
	certificates  int // in the full store, and revocations in the revoked one
	rounds        int
	length        time.Duration // of a round of issuance
	short         time.Duration // of a round of OCSP
	warm          time.Duration
	profileLength time.Duration
	clients       int
	questions     int           // certificates whose status is asked
	revocations   int           // watched one after the other, for each issuer
	burst         int           // in one go
	profiled      int           // how many missed budgets get a profile
	away          time.Duration // how long the primary of a cluster is; zero means until another member is the primary
	fleetScale
}

// The scales: what budgets are judged by, a smoke run of a minute, and what a test can wait for.
var (
	Whole = Scale{certificates: 1_000_000, rounds: 3, length: 4 * time.Second, short: 2 * time.Second, warm: time.Second, profileLength: 2 * time.Second,
		clients: 32, questions: 500, revocations: 20, burst: 200, profiled: 100, fleetScale: wholeFleet}
	Quick = Scale{certificates: 20_000, rounds: 1, length: time.Second, short: time.Second, warm: 300 * time.Millisecond, profileLength: time.Second,
		clients: 32, questions: 200, revocations: 3, burst: 20, profiled: 3, away: 3 * time.Second, fleetScale: quickFleet}
	Tiny = Scale{certificates: 3_000, rounds: 1, length: 100 * time.Millisecond, short: 50 * time.Millisecond, warm: 20 * time.Millisecond,
		profileLength: time.Second, clients: 4, questions: 10, revocations: 1, burst: 3, profiled: 1, away: 300 * time.Millisecond, fleetScale: tinyFleet}
)

// patience bounds every wait whose length is a figure, or none: a machine that does much else needs it.
const patience = 2 * time.Minute

// bench is one run.
type bench struct {
	Options
	Scale
	dir         string
	names       atomic.Int64 // how many were given to requests
	step        *stepCA      // nil where there is none
	stepIssued  int64
	opensslDone bool
	rows        []row
	budgets     []Budget
	profiles    map[string]*profile
	start       time.Time
}

var (
	discard  = slog.New(slog.DiscardHandler)
	issueCRL client.IssueCRLRequest
)

// Run measures, and prints the table and the budgets. An error means that something broke; a missed budget is none.
func Run(ctx context.Context, o Options) error {
	b := &bench{Options: o, Scale: o.Scale, profiles: map[string]*profile{}, start: time.Now()}
	for _, name := range o.Only {
		if !slices.Contains([]string{partIssuance, partOCSP, partRevocation, partCRL, partStart, partClones, partAgents, partRollouts, sqliteEngine, postgresEngine, clustered}, name) {
			return fault.New(fault.Invalid, "--only takes issuance, ocsp, revocation, crl, start, clones, agents, rollouts, sqlite, postgres and cluster, not %q", name)
		}
	}
	b.budgets = slices.DeleteFunc(wanted(b.engines(), b.part, b.store), func(budget Budget) bool {
		return strings.Contains(budget.Name, postgresEngine) && (strings.HasPrefix(budget.Name, "agents-") && !b.fleetOn(partAgents, postgresEngine) ||
			strings.HasPrefix(budget.Name, "rollout-") && !b.fleetOn(partRollouts, postgresEngine))
	})
	if len(b.budgets) == 0 {
		return fault.New(fault.Invalid, "--only %s measures nothing: several nodes need PostgreSQL, and nothing but clones is measured on a cluster", strings.Join(o.Only, " --only "))
	}
	dir, err := os.MkdirTemp(o.Dir, "chancery-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.dir = dir
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // which ends all processes that were started
	err = b.all(ctx)
	return errors.Join(err, b.report())
}

// part reports whether a part is to be measured.
func (b *bench) part(name string) bool {
	only := slices.DeleteFunc(slices.Clone(b.Only), func(s string) bool { return s == sqliteEngine || s == postgresEngine || s == clustered })
	return len(only) == 0 || slices.Contains(only, name)
}

// store reports whether what is on a store is to be measured. What has a store of its own is on an empty one.
func (b *bench) store(name string) bool {
	return name == clustered || !slices.Contains(b.Only, clustered)
}

// fleetOn reports whether agents or rollouts are measured on an engine: on PostgreSQL where they are asked for by name, so that
// the whole stays under twenty minutes.
func (b *bench) fleetOn(part, engine string) bool {
	return b.part(part) && b.store(empty) && (engine == sqliteEngine || slices.Contains(b.Only, part))
}

// onlyFleets reports whether nothing but agents, rollouts and clones on a cluster is to be measured, which have authorities of their own, or
// clones where there are none.
func (b *bench) onlyFleets(engine string) bool {
	if !b.store(empty) {
		return true
	}
	if engine == sqliteEngine && len(b.Only) > 0 && !slices.ContainsFunc([]string{partIssuance, partOCSP, partRevocation, partCRL, partStart}, b.part) {
		return true
	}
	return !slices.ContainsFunc([]string{partIssuance, partOCSP, partRevocation, partCRL, partStart, partClones}, b.part)
}

func (b *bench) engines() []string {
	both := []string{sqliteEngine, postgresEngine}
	named := slices.DeleteFunc(slices.Clone(both), func(s string) bool { return !slices.Contains(b.Only, s) })
	if len(named) == 0 {
		return both
	}
	return named
}

func (b *bench) all(ctx context.Context) (err error) {
	if b.StepCA != "" && b.part(partIssuance) && b.store(empty) {
		csrs, err := b.makeRequests(1000)
		if err != nil {
			return err
		}
		if b.step, err = startStepCA(ctx, b.StepCA, b.dir, csrs); err != nil {
			return err
		}
		defer b.step.Stop()
	}
	for _, engine := range b.engines() {
		if err := b.engine(ctx, engine); err != nil {
			return fmt.Errorf("%s: %w", engine, err)
		}
		if engine == postgresEngine && b.part(partClones) {
			if err := b.cluster(ctx); err != nil {
				return fmt.Errorf("clones on a cluster: %w", err)
			}
		}
		for _, fleet := range []struct {
			part    string
			measure func(context.Context, string) error
		}{{partAgents, b.agents}, {partRollouts, b.rollouts}} {
			if !b.fleetOn(fleet.part, engine) {
				continue
			}
			if err := fleet.measure(ctx, engine); err != nil {
				return fmt.Errorf("%s: %s: %w", engine, fleet.part, err)
			}
		}
	}
	if b.stepIssued > 0 {
		size, err := diskUse(filepath.Join(b.step.dir, "db"))
		if err != nil {
			return err
		}
		b.add(row{what: "store", who: "step-ca", engine: "badger", size: size / b.stepIssued, note: "octets a certificate, on disk, without what is not merged yet"})
	}
	return nil
}

// stage is one thing to measure on a running node.
type stage struct {
	part    string
	measure func(context.Context, *authority, string) error
}

// engine measures one engine: with an empty store, a full one, and one with as many revocations.
func (b *bench) engine(ctx context.Context, engine string) error {
	if b.onlyFleets(engine) {
		return nil
	}
	b.say("%s: empty store", engine)
	a, err := b.newAuthority(ctx, engine, b.dir)
	if err != nil {
		return err
	}
	defer func() {
		_ = a.stop()
		if a.pg != nil {
			_ = a.pg.Stop()
		}
	}()
	loads := []stage{{partIssuance, b.issuance}, {partOCSP, b.ocsp}, {partRevocation, b.revocation}, {partClones, b.clones}}
	if err := b.stages(ctx, a, empty, loads); err != nil {
		return err
	}
	if err := b.bytes(ctx, a); err != nil {
		return err
	}
	if b.part(partIssuance) || b.part(partOCSP) || b.part(partRevocation) || b.part(partStart) || b.part(partClones) && a.pg != nil {
		if err := b.full(ctx, a, loads); err != nil {
			return err
		}
	}
	if !b.part(partRevocation) && !b.part(partCRL) {
		return nil
	}
	return b.revoked(ctx, a)
}

func (b *bench) stages(ctx context.Context, a *authority, store string, all []stage) error {
	for _, s := range all {
		if !b.part(s.part) {
			continue
		}
		b.say("%s: %s, %s store", a.engine, s.part, store)
		if err := s.measure(ctx, a, store); err != nil {
			return fmt.Errorf("%s, %s store: %w", s.part, store, err)
		}
	}
	return nil
}

// bytes stops the node, and shares out what the store grew by.
func (b *bench) bytes(ctx context.Context, a *authority) error {
	if err := a.stop(); err != nil {
		return err
	}
	size, err := a.size(ctx)
	if err != nil || a.issued == 0 {
		return err
	}
	b.add(row{what: "store", who: "chancery", engine: a.engine, store: empty, size: (size - a.before) / a.issued,
		note: "octets a certificate, with its audit event, idempotency key and indexes"})
	return nil
}

func (b *bench) full(ctx context.Context, a *authority, loads []stage) error {
	a.sample = nil
	if err := b.seed(ctx, a, crop{issuer: deltaIssuer, count: b.certificates, every: 20, age: 80 * 24 * time.Hour}); err != nil {
		return err
	}
	if b.part(partStart) {
		if err := b.starts(ctx, a); err != nil {
			return err
		}
	} else if _, err := a.start(ctx); err != nil {
		return err
	}
	// In a life that made so many revocations one by one, the complete list would have followed them.
	if _, err := b.settle(ctx, a); err != nil {
		return err
	}
	if err := b.stages(ctx, a, full, loads); err != nil {
		return err
	}
	return a.stop()
}

func (b *bench) revoked(ctx context.Context, a *authority) error {
	err := b.seed(ctx, a,
		crop{issuer: deltaIssuer, count: b.certificates, bare: true, every: 1, age: 200 * 24 * time.Hour},
		crop{issuer: partsIssuer, count: b.certificates, bare: true, every: 1, age: 300 * 24 * time.Hour})
	if err != nil {
		return err
	}
	if _, err := a.start(ctx); err != nil {
		return err
	}
	if b.part(partCRL) {
		b.say("%s: complete CRL", a.engine)
		if err := b.fullCRL(ctx, a); err != nil {
			return err
		}
	} else if _, err := b.settle(ctx, a); err != nil {
		return err
	}
	return b.stages(ctx, a, revoked, []stage{{partRevocation, b.revocation}})
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.Err, "%6s  %s\n", time.Since(b.start).Round(100*time.Millisecond), fmt.Sprintf(format, args...))
}

// judge sets a budget. What is missed is profiled; a profile that cannot be had is said, and breaks nothing.
func (b *bench) judge(ctx context.Context, name string, value float64, why func(context.Context, string) (*profile, error)) {
	for i := range b.budgets {
		budget := &b.budgets[i]
		if budget.Name != name {
			continue
		}
		budget.Measured, budget.Unknown = value, false
		b.say("%s", budget)
		if budget.OK() || why == nil || len(b.profiles) >= b.profiled {
			return
		}
		p, err := why(ctx, name)
		if err != nil {
			b.say("no profile of %s: %v", name, err)
			return
		}
		b.profiles[name] = p
		return
	}
}
