package host

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"chancery/internal/store/db"
)

// This file is how placements stay under the issuer that they have while a rollout moves others, and find back to it.

// Hold has each placement of a pool stay under the issuer that it has, if that is one of those given: fingerprints, by name. One
// whose host was told of one of them, and may not have heard of it yet, is held at that. The hosts have the pool's own trust. Nobody
// is woken: what a host has fulfils it.
func Hold(ctx context.Context, tx *db.Tx, pool string, issuing map[string]string) error {
	for name, print := range issuing {
		_, err := tx.Exec(ctx, `UPDATE host_placement SET held = $1 WHERE host IN (SELECT id FROM host WHERE pool = $2 AND removed_at = 0
			AND (host.issuer = $3 OR host.issuer = '' AND host_placement.issuer = $1))`, print, pool, name)
		if err != nil {
			return fmt.Errorf("hold the placements of pool %s: %w", pool, err)
		}
	}
	return follow(ctx, tx, pool)
}

// LetGo has all hosts of a pool follow it again, in their trust and in the issuer. Nobody is woken.
func LetGo(ctx context.Context, tx *db.Tx, pool string) error {
	_, err := tx.Exec(ctx, `UPDATE host_placement SET held = '' WHERE held <> '' AND host IN (SELECT id FROM host WHERE pool = $1)`, pool)
	if err != nil {
		return fmt.Errorf("let the placements of pool %s go: %w", pool, err)
	}
	return follow(ctx, tx, pool)
}

func follow(ctx context.Context, tx *db.Tx, pool string) error {
	_, err := tx.Exec(ctx, `UPDATE host SET issuer = '', trust = 0 WHERE pool = $1 AND removed_at = 0 AND (issuer <> '' OR trust <> 0)`, pool)
	if err != nil {
		return fmt.Errorf("have the hosts of pool %s follow it: %w", pool, err)
	}
	return nil
}

// Arrived has hosts follow their pool again that were told of an issuer, given by its name and fingerprint, and are under it with
// all that they present; those of pools that a query selects are left as they are.
func Arrived(ctx context.Context, tx *db.Tx, name, print, but string) error {
	_, err := tx.Exec(ctx, `UPDATE host SET issuer = '' WHERE issuer = $1 AND removed_at = 0 AND pool NOT IN (`+but+`) AND NOT EXISTS (
		SELECT 1 FROM host_placement p WHERE p.host = host.id AND (p.state = 'pending' OR p.serial <> '' AND p.issuer <> $2))`, name, print)
	if err != nil {
		return fmt.Errorf("let go of hosts that are under issuer %s: %w", name, err)
	}
	return nil
}

// Renewed has placements that are under an issuer, or are held at it, known by the fingerprint of its new certificate. All else goes
// by that one since.
func Renewed(ctx context.Context, tx *db.Tx, before, after string) error {
	for _, column := range []string{"issuer", "held"} {
		if _, err := tx.Exec(ctx, `UPDATE host_placement SET `+column+` = $1 WHERE `+column+` = $2`, after, before); err != nil {
			return fmt.Errorf("know placements by their issuer's new certificate: %w", err)
		}
	}
	return nil
}

// HoldRest holds the placements of hosts, at most Moved, that are at no issuer and are, or may be, under one of those that are
// left: those that present nothing yet, and those of hosts that were told of an issuer.
func HoldRest(ctx context.Context, tx *db.Tx, print string, left, ids []string) error {
	if len(ids) == 0 || len(left) == 0 {
		return nil
	}
	var l arguments
	query := `UPDATE host_placement SET held = ` + l.add(print) + ` WHERE held = '' AND host IN ` + l.all(ids) + ` AND (issuer = '' OR issuer IN ` +
		l.all(left) + ` OR host IN (SELECT id FROM host WHERE host.issuer <> ''))`
	if _, err := tx.Exec(ctx, query, l.values...); err != nil {
		return fmt.Errorf("hold placements: %w", err)
	}
	return nil
}

// HeldAt are the fingerprints of the issuers that hosts are held at, by the host's ID: of one that is held at several, the least.
func HeldAt(ctx context.Context, tx *db.Tx, ids []string) (map[string]string, error) {
	found := map[string]string{}
	for part := range slices.Chunk(ids, Moved) {
		var l arguments
		err := each(ctx, tx, `SELECT host, MIN(held) FROM host_placement WHERE held <> '' AND host IN `+l.all(part)+` GROUP BY host`, l.values,
			func(scan func(...any) error) error {
				var id, print string
				err := scan(&id, &print)
				found[id] = print
				return err
			})
		if err != nil {
			return nil, fmt.Errorf("read where hosts are held: %w", err)
		}
	}
	return found, nil
}

// Order is under which issuer a host is to get its certificates.
type Order struct {
	Issuer string // the one that it was told of, by name; empty: none
	Held   bool   // it stays under the one that it has, if it was told of none
}

// OrderOf returns the order of the host that a principal is; false where it is none.
func OrderOf(ctx context.Context, tx *db.Tx, principal string) (o Order, is bool, err error) {
	var held int64
	err = tx.QueryRow(ctx, `SELECT issuer, (SELECT COUNT(*) FROM host_placement p WHERE p.host = host.id AND p.held <> '') FROM host
		WHERE principal = $1 AND removed_at = 0`, principal).Scan(&o.Issuer, &held)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Order{}, false, nil
	case err != nil:
		return Order{}, false, fmt.Errorf("read under which issuer a host is: %w", err)
	}
	o.Held = held > 0
	return o, true, nil
}
