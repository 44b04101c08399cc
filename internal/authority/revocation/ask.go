package revocation

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/store/db"
)

// Ask has the holder of the lease sign an issuer's complete CRL soon, as IssueCRL does, in the caller's transaction and without
// waiting for it. An issuer whose key is elsewhere is passed over.
func Ask(ctx context.Context, tx *db.Tx, issuer *ca.Issuer, now time.Time) error {
	_, err := AskAny(ctx, tx, issuer, now)
	return err
}

// AskAny is Ask, and says whether the issuer's lists are signed here at all.
func AskAny(ctx context.Context, tx *db.Tx, issuer *ca.Issuer, now time.Time) (asked bool, err error) {
	if !signs(issuer, now) {
		return false, nil
	}
	// What an operator wished meanwhile stays. The moment moves on, so that a list which is being made does not end both.
	_, err = tx.Exec(ctx, `INSERT INTO crl_wanted (issuer, since, number, this_update, next_update) VALUES ($1, $2, '', 0, 0)
		ON CONFLICT (issuer) DO UPDATE SET since = CASE WHEN crl_wanted.since < excluded.since THEN excluded.since ELSE crl_wanted.since + 1 END`,
		issuer.ID, db.Micros(now))
	if err != nil {
		return false, fmt.Errorf("ask for a CRL of issuer %s: %w", issuer.Name, err)
	}
	return true, nil
}
