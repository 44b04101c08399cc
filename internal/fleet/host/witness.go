package host

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// settling is how long after the newest key's first call one with the key before it may still arrive: it was under way, or a
// connection that was made with that key had not ended.
const settling = 5 * time.Minute

// witness notes the first call with the key of a host's newest identity. After it the machine has that key, so whoever comes
// with the key before it, or reports an earlier generation, is another machine: the host becomes suspect. Before it nothing is
// wrong: the answer with the newest may have been lost, or the machine may have ended before it kept it.
func (s *Service) witness(ctx context.Context, by access.Principal, r *row, generation int64, now time.Time) error {
	shown, ok := by.ShownKey()
	if !ok || r.state != client.HostJoined {
		return nil
	}
	newest := bytes.Equal(shown, r.identitySPKI)
	if newest && r.identityUsed.IsZero() {
		err := s.DB.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE host SET identity_used = $1 WHERE id = $2 AND identity_spki = $3 AND identity_used = 0`,
				db.Micros(now), r.id, r.identitySPKI)
			return err
		})
		if err != nil && !fault.Is(err, fault.Unavailable) { // while nothing can be written, a later call is the first
			return fmt.Errorf("note the first use of the identity of host %s: %w", r.name, err)
		}
		return nil
	}
	if !r.outdated(newest, generation, now) {
		return nil
	}
	suspected := false
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		suspected = false
		there, err := ofPrincipal(ctx, tx, by.ID)
		if err != nil || there == nil || there.state != client.HostJoined || !there.outdated(bytes.Equal(shown, there.identitySPKI), generation, now) {
			return err
		}
		suspected = true
		what := "called with the key of an earlier generation"
		if bytes.Equal(shown, there.identitySPKI) {
			what = fmt.Sprintf("said that it has generation %d", generation)
		}
		return s.suspect(ctx, tx, by, there, what, generation, now)
	})
	if suspected && err == nil {
		s.waiting.wakeHost(r.id)
	}
	return err
}

// outdated reports whether a call is of a machine that has not what the host's machine has used; a generation of 0 was not said.
func (r *row) outdated(newest bool, generation int64, now time.Time) bool {
	if r.identityUsed.IsZero() || now.Sub(r.identityUsed) <= settling {
		return false
	}
	return !newest || generation > 0 && generation < r.generation
}
