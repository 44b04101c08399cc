package ca

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// mayEndThis says whether a caller who may revoke may end this very certificate. What ends an issuer ends all under it, and
// what ends a node's own certificate ends the node's service, so that is for whoever could make them anew.
func mayEndThis(ctx context.Context, tx *db.Tx, by access.Principal, r *record, issuer *Issuer) error {
	if r.Profile == issuerProfile || r.read().isCA {
		return by.May(access.ManageIssuers)
	}
	if issuer.Pool != IdentityPool || !strings.HasPrefix(r.Requester, access.System("").ID) {
		return nil
	}
	owner, err := access.IdentityOwner(ctx, tx, issuer.ID, r.PublicKey())
	switch {
	case fault.Is(err, fault.NotFound) && r.Requester == access.System(callersIdentities).ID:
		return nil // an operator's, whose mapping is gone
	case err != nil && !fault.Is(err, fault.NotFound):
		return err
	case err != nil, owner.Kind == access.KindNode:
		return by.May(access.ManagePrincipals)
	}
	return nil
}

// callersIdentities is the name under which callers' identities are issued; a node's TLS certificate has the node's.
const callersIdentities = "identity"

// upgradable reports whether a revocation may take the place of the one that a certificate has: it was learnt that the key
// is compromised. That is worse than any other reason, and who hears of it must be told; all else stays as it was published.
func (r *record) upgradable(order RevokeOrder) bool {
	return r.State == Revoked && order.Reason == crl.KeyCompromise && r.Revocation.Reason != crl.KeyCompromise
}

// keepEntry notes the entry of a permanent revocation that is about to be replaced, since it may be packed in a CRL segment.
func keepEntry(ctx context.Context, tx *db.Tx, r *record) error {
	_, err := tx.Exec(ctx, `INSERT INTO revocation_upgrade (certificate, issuer, crl_partition, entry)
		SELECT certificate, issuer, crl_partition, entry FROM revocation WHERE certificate = $1`, r.ID)
	if err != nil {
		return fmt.Errorf("keep the old entry of certificate %d: %w", r.ID, err)
	}
	return nil
}

// UpgradedEntries are the entries of a partition that CRLs no longer have, since a newer one of the certificate took their
// place.
func UpgradedEntries(ctx context.Context, tx *db.Tx, issuer *Issuer, partition int) (map[string]bool, error) {
	rows, err := tx.Query(ctx, `SELECT entry FROM revocation_upgrade WHERE issuer = $1 AND crl_partition = $2`, issuer.number, int64(partition))
	if err != nil {
		return nil, fmt.Errorf("read the replaced entries of issuer %s: %w", issuer.Name, err)
	}
	defer rows.Close()
	var old map[string]bool
	for rows.Next() {
		var entry []byte
		if err := rows.Scan(&entry); err != nil {
			return nil, fmt.Errorf("read the replaced entries of issuer %s: %w", issuer.Name, err)
		}
		if old == nil {
			old = map[string]bool{}
		}
		old[string(entry)] = true
	}
	return old, rows.Err()
}

// sameKeyLimit bounds how many certificates are looked at, and named, beside one whose key is compromised.
const sameKeyLimit = 100

// sameKey warns of the other certificates of a compromised key that are still good. It looks among those of the same name,
// where a renewal is; the key of one with other names is blocked, and so found by whoever renews it.
func (c *CA) sameKey(ctx context.Context, tx *db.Tx, r *record, now time.Time) ([]string, error) {
	if len(r.DER) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.name = $1 AND c.id <> $2 ORDER BY c.name, c.id DESC LIMIT $3`,
		[]byte(r.searchNames()[0]), r.ID, int64(sameKeyLimit))
	if err != nil {
		return nil, fmt.Errorf("look for certificates of the same key: %w", err)
	}
	found, err := collect(rows)
	if err != nil {
		return nil, fmt.Errorf("look for certificates of the same key: %w", err)
	}
	var warnings []string
	for _, other := range found {
		if other.at(now); other.State != Expired && other.State != Revoked && bytes.Equal(other.PublicKey(), r.PublicKey()) {
			serial := cert.FormatSerial(other.Serial)
			warnings = append(warnings, fmt.Sprintf("certificate %s is for the same key and still %s: chancery cert revoke %s --reason keyCompromise",
				serial, other.State, serial))
		}
	}
	return warnings, nil
}
