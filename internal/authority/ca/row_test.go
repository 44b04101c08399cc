package ca

import (
	"math/rand/v2"
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
		a.chance = func(int64) int64 { return 0 }
		if c := a.server("dns:two.example.com"); c.ID <= ahead+1 {
			t.Errorf("the ID is %d, and %d was taken", c.ID, ahead+1)
		}
	})
}

// TestIDsOfOneMicrosecond: two nodes that are ahead of the clock, as one that imports and one whose clock stands still, meet now
// and then, and not at each ID: the transaction that meets runs once more, and not for ever.
func TestIDsOfOneMicrosecond(t *testing.T) {
	t.Parallel()
	const each = 500
	now := time.Now()
	made, both := map[int64]bool{}, 0
	for node := range uint64(2) {
		c := New(Options{})
		c.chance = rand.New(rand.NewPCG(1, node)).Int64N
		for range each {
			id := c.nextID(now)
			if id>>idBits < now.UnixMicro() {
				t.Fatalf("the ID %d is of before %v", id, now)
			}
			if made[id] {
				both++
			}
			made[id] = true
		}
	}
	if both > each/50 {
		t.Errorf("two nodes drew %d of %d IDs both", both, each)
	}
}
