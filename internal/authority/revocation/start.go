package revocation

import (
	"context"
	"math/big"

	"chancery/internal/authority/ca"
	"chancery/internal/store/db"
)

// StartFrom records the greatest CRLNumber that an issuer used before it was imported, so that its lists go on from there
// (RFC 5280 section 5.2.3). It belongs into the transaction of the import: no list is signed before it.
func StartFrom(ctx context.Context, tx *db.Tx, issuer *ca.Issuer, number *big.Int) error {
	return raiseNumber(ctx, tx, issuer.ID, number)
}
