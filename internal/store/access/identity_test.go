package access_test

import (
	"math/big"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// TestEndedIdentitiesArePruned keeps the table from growing by every renewal with a new key.
func TestEndedIdentitiesArePruned(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx, now := t.Context(), time.Now()
		s := newStore(t, d, "n1")
		alice := create(t, s, bootstrap(t, d, s), "alice", access.KindOperator, access.Operator)
		add := func(key string, serial int64, end time.Time) {
			t.Helper()
			id := access.Identity{Principal: alice.ID, Issuer: "identities", SPKI: []byte(key), Serial: big.NewInt(serial), NotAfter: end}
			if err := d.Tx(ctx, func(tx *db.Tx) error { return s.AddIdentity(ctx, tx, id, "system:n1", now) }); err != nil {
				t.Fatal(err)
			}
		}
		add("old", 1, now.Add(-time.Hour))
		add("renewed", 2, now.Add(-time.Hour))
		add("renewed", 3, now.Add(time.Hour))
		add("renewed", 3, now.Add(time.Hour)) // a repeated call moves nothing
		if n, err := s.PruneIdentities(ctx, now, 10); err != nil || n != 1 {
			t.Fatalf("pruned %d, %v", n, err)
		}
		if _, err := s.Identity(ctx, "identities", []byte("old")); !fault.Is(err, fault.NotFound) {
			t.Errorf("the ended one: %v", err)
		}
		b, err := s.Identity(ctx, "identities", []byte("renewed"))
		if err != nil || !b.Has(big.NewInt(3)) || !b.Has(big.NewInt(2)) || b.Has(big.NewInt(1)) {
			t.Errorf("the renewed one: %+v, %v", b, err)
		}
	})
}
