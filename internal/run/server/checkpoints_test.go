package server

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// TestCheckpointsAreHandedOver gives the work of the audit to another node and back, while the loop that does it waits minutes for its next
// turn: it takes the lease up at once, whichever was its epoch, and signs.
func TestCheckpointsAreHandedOver(t *testing.T) {
	d := newDrilling(t)
	c := &checkpoints{Services: d.Services, logger: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer func() {
		cancel()
		<-ended
	}()
	await := func(what string, ok func(db.Lease) bool) db.Lease {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
			var l db.Lease
			err := d.DB.ReadSnapshot(t.Context(), func(tx *db.Tx) (err error) {
				l, err = db.LeaseOf(t.Context(), tx, audit.Lease)
				return err
			})
			switch {
			case err == nil && ok(l):
				return l
			case err != nil || time.Now().After(end):
				t.Fatalf("%s: %+v, %v", what, l, err)
			}
		}
	}
	own := d.Audit.Node()
	before := await("at its start", func(l db.Lease) bool { return l.Holder == own })
	for _, to := range []string{"n9", own, own} {
		var given db.Lease
		err := d.DB.Tx(t.Context(), func(tx *db.Tx) (err error) {
			given, err = db.HandOver(t.Context(), tx, audit.Lease, to, true, time.Minute, time.Now())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if to == own {
			before = await("handed to it", func(l db.Lease) bool {
				return l.Holder == own && !l.Unanswered() && l.Epoch >= given.Epoch && l.Pinned == own
			})
		}
	}
	if before.Epoch < 3 {
		t.Errorf("it has epoch %d, after another had it", before.Epoch)
	}
}
