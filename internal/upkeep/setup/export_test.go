package setup

import (
	"context"
	"crypto/x509"
	"log/slog"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
)

// RescueNodeOn is RescueNode on a database that fails where a test says so.
func RescueNodeOn(ctx context.Context, dir datadir.Dir, d *db.DB, recovery *keys.Recovery) error {
	config, err := dir.Load()
	if err != nil {
		return err
	}
	r := &nodeRescue{NodeRescue: NodeRescue{Dir: dir, Recovery: recovery}, dir: dir, old: config.Name}
	if err := r.begun(); err != nil {
		return err
	}
	_, err = r.run(ctx, d)
	return err
}

// ReplaceRecoveryCheaply is ReplaceRecovery with a file that is sealed in a millisecond.
func ReplaceRecoveryCheaply(ctx context.Context, dir datadir.Dir, file string, passphrase []byte) (*NewRecovery, error) {
	return replaceRecovery(ctx, dir, file, passphrase, pkitest.RecoveryWork)
}

// ReviveOn gives one pool another issuer, on a database that fails where a test says so.
func ReviveOn(ctx context.Context, dir datadir.Dir, d *db.DB, name string, passphrase []byte) error {
	config, err := dir.Load()
	if err != nil {
		return err
	}
	key, err := keys.LoadNodeKey(dir.NodeKey())
	if err != nil {
		return err
	}
	s, err := Assemble(d, config.Name, key, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if err := d.LearnClock(ctx); err != nil {
		return err
	}
	o := &ExpiredOptions{Dir: dir, Passphrase: passphrase, work: pkitest.RecoveryWork}
	return o.revive(ctx, s, access.System(config.Name), name, &Brought{}, time.Now())
}

// HeardOf tells which roots are good, and whether hosts have to join again.
func HeardOf(roots []*x509.Certificate, now time.Time) ([]*x509.Certificate, bool) {
	return heardOf(roots, now)
}

// BringOn is all of RescueExpired, on a database that fails where a test says so.
func BringOn(ctx context.Context, o ExpiredOptions, d *db.DB) (*Brought, error) {
	config, err := o.Dir.Load()
	if err != nil {
		return nil, err
	}
	key, err := keys.LoadNodeKey(o.Dir.NodeKey())
	if err != nil {
		return nil, err
	}
	s, err := Assemble(d, config.Name, key, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	if err := s.ready(ctx); err != nil {
		return nil, err
	}
	o.work = pkitest.RecoveryWork
	done := &Brought{}
	return done, o.bring(ctx, s, done)
}
