package clone

import (
	"context"
	"errors"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/keys"
)

// shutLogin shuts the login that a node has at the database, before it is removed: it has no rights, enters no more, and what it has open is
// ended, beside the lane, so that whatever it holds keeps nobody waiting. It reports whether that was done.
func (s *Service) shutLogin(ctx context.Context, name string) bool {
	r, err := s.read(ctx, name)
	if err == nil && (r.databaseRole == "" || s.CloseLogin == nil) {
		return false
	}
	if err == nil {
		err = s.DB.ShutLogin(ctx, r.databaseRole)
	}
	if err != nil {
		s.Logger.WarnContext(ctx, "the login of a node is not shut before the node is removed", "node", name, "error", err)
	}
	return err == nil
}

// reopenLogin gives a node its login back that was not removed after all.
func (s *Service) reopenLogin(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), aliveFor)
	defer cancel()
	r, err := s.read(ctx, name)
	if err == nil && r.state != client.CloneGone {
		err = s.DB.AddLogin(ctx, r.databaseRole, !r.runs(keys.SubsystemCA))
	}
	if err != nil {
		s.Logger.ErrorContext(ctx, "a node that was not removed after all has no login; chancery clone remove ends it whole", "node", name, "error", err)
	}
}

// limitedSince is the migration from which on programs do with logins that write rows of their own alone.
const limitedSince = 23

// limitEvery is how often limitReaders is tried: who has such a login can keep the tables from it, and it has all others wait for a second.
const limitEvery = time.Minute

// limitReaders takes from the logins of nodes that do not issue what releases before gave them, once no node of one is left.
func (s *Service) limitReaders(ctx context.Context, all []*row, now time.Time) error {
	for _, r := range all {
		known := r.report.Schema
		if r.seen.IsZero() {
			known = r.request.Schema
		}
		if (r.state == client.CloneActive || r.state == client.CloneLeaving) && known < limitedSince {
			return nil
		}
	}
	s.mu.Lock()
	due := now.Sub(s.limited) >= limitEvery
	if due {
		s.limited = now
	}
	s.mu.Unlock()
	if !due {
		return nil
	}
	return s.DB.LimitReaders(ctx)
}

// staysShut is why a compromised node is not removed yet, which is out of the database all the same.
func staysShut(err error) error {
	out := &fault.Error{Kind: fault.Unavailable, Err: err, Hint: "remove it again: what it has open is ended, and it opens no more",
		Message: "its login at the database is shut and stays so, and it is not removed yet: " + strings.ReplaceAll(err.Error(), "; nothing was changed", "")}
	if why, ok := errors.AsType[*fault.Error](err); ok {
		out.Kind = why.Kind
		if why.Hint != "" {
			out.Hint += "; " + why.Hint
		}
	}
	return out
}
