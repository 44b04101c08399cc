package keys_test

import (
	"testing"

	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
)

// TestListRememberedSince has the node see a list that a transaction, which began before, does not show: the database was not set back.
func TestListRememberedSince(t *testing.T) {
	url, ctx := pkitest.URL(t, db.Postgres), t.Context()
	d := pkitest.Open(t, db.Options{URL: url})
	if err := schema.Migrate(ctx, d); err != nil {
		t.Fatal(err)
	}
	o, anchors, _ := newListed(t, d)
	first(t, o.store)
	other := pkitest.Open(t, db.Options{URL: url})
	two := newStore(t, other, "n1", o.node)
	anchored(t, two, anchors, "")
	sealed, err := o.store.Seal(ctx, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
	if err != nil {
		t.Fatal(err)
	}
	moved := false
	err = d.Tx(ctx, func(tx *db.Tx) error {
		var n int
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM sealed_key`).Scan(&n); err != nil {
			return err
		}
		if !moved {
			moved = true
			if err := two.ChangeList(ctx, nil, nil, actor, now, func(*db.Tx) error { return nil }); err != nil {
				return err
			}
			if l, err := o.store.NewestList(ctx); err != nil || l.Version != 2 {
				t.Errorf("%+v, %v", l, err)
			}
		}
		return o.store.Insert(ctx, tx, sealed, actor, now)
	})
	if err != nil || !moved {
		t.Fatalf("a key is stored while a list was: %v", err)
	}
	wantFindings(t, o, o.store, nil)
}
