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
	if !signs(issuer, now) {
		return nil
	}
	if err := (Wish{since: db.Micros(now)}).insert(ctx, tx, issuer); err != nil {
		return fmt.Errorf("ask for a CRL of issuer %s: %w", issuer.Name, err)
	}
	return nil
}
