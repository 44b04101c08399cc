package ca

import (
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestIDThatIsTaken: two nodes draw one ID in one microsecond. Neither hears of it, and nobody that a serial was used before.
func TestIDThatIsTaken(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		a := newAuthority(t, pkitest.Open(t, db.Options{URL: url}))
		a.server("dns:one.example.com")
		taken := a.lastID.Load()
		// The next ID that this node draws is the one that another has stored.
		ahead := time.Now().Add(time.Hour).UnixMicro() << idBits
		if err := a.db.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE certificate SET id = $1 WHERE id = $2`, ahead+1, taken)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		a.lastID.Store(ahead)
		if c := a.server("dns:two.example.com"); c.ID <= ahead+1 {
			t.Errorf("the ID is %d, and %d was taken", c.ID, ahead+1)
		}
	})
}
