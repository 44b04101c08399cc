package setup

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
)

// RescueClock sets the newest time that the authority has seen to this machine's time, even if that is back, and returns
// how it stood before. It is for the day after a clock was ahead: until then nothing would be signed. What was dated ahead
// of time stays so.
func RescueClock(ctx context.Context, dir datadir.Dir) (before time.Time, err error) {
	err = local(ctx, dir, func(s *Services, by access.Principal) error {
		now := time.Now()
		if before, err = s.DB.SeenTime(ctx); err != nil {
			return err
		}
		if err := s.DB.ResetClock(ctx, now); err != nil {
			return fmt.Errorf("set the authority's time: %w", err)
		}
		return s.DB.Tx(ctx, func(tx *db.Tx) error {
			return s.Audit.Append(ctx, tx, audit.Event{
				Time: now, Actor: by.Actor(), Action: "clock.rescue", Object: by.Name,
				Detail: map[string]any{"before": before.UTC().Format(time.RFC3339), "after": now.UTC().Format(time.RFC3339)},
			})
		})
	})
	return before, err
}

// RescueAdmin gives an administrator a new identity in the data directory, in the place of the one that ended or was lost:
// admin, or the first administrator by name who is not disabled. Who can do this has the node's key, and so could issue
// whatever he likes; it is no more than that, and it is in the audit.
func RescueAdmin(ctx context.Context, dir datadir.Dir) (name string, err error) {
	err = local(ctx, dir, func(s *Services, by access.Principal) error {
		admin, err := s.administrator(ctx, by)
		if err != nil {
			return err
		}
		name = admin.Name
		return enrolInto(ctx, s, by, dir, admin, keyfile.ReplaceFile)
	})
	return name, err
}
