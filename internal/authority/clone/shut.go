package clone

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// endingLogin is the login that a node has at the database while the node is ended. A removal that fails gives it back, unless it was taken
// away for good.
type endingLogin struct {
	s           *Service
	node, role  string
	compromised bool // it is not given back
	tried       bool // somebody may find it shut
	gone        bool // it was taken away for good
}

func (s *Service) endingLogin(ctx context.Context, node string, compromised bool) *endingLogin {
	l := &endingLogin{s: s, node: node, compromised: compromised}
	r, err := s.read(ctx, node)
	switch {
	case err != nil:
		s.Logger.WarnContext(ctx, "the login of a node is not known before the node is removed", "node", node, "error", err)
	case s.CloseLogin != nil:
		l.role = r.databaseRole
	}
	return l
}

// holds reports whether a session of the node's own is seen to hold what its end needs. Another's, an administrator's for example, would stay
// where this login is shut.
func (l *endingLogin) holds(err error) bool {
	return l.role != "" && slices.ContainsFunc(db.HeldBy(err), func(s db.Session) bool { return s.Role == l.role })
}

// shut shuts the login: it has no rights, enters no more, and what it has open is ended, beside the lane, so that whatever it holds keeps
// nobody waiting. It reports whether that was done.
func (l *endingLogin) shut(ctx context.Context) bool {
	l.tried = true
	return l.did(ctx, l.s.DB.ShutLogin(ctx, l.role))
}

// takeAwayTries is how often it is tried to take a login away: what adds another's at that moment is in the way for some seconds at most.
const takeAwayTries = 3

// takeAway takes the login of a compromised node away, whatever becomes of the removal: a role that is no more nobody finds shut, to give it
// back.
func (l *endingLogin) takeAway(ctx context.Context) {
	if l.role == "" || !l.compromised || l.gone {
		return
	}
	var err error
	for range takeAwayTries {
		if err = l.s.DB.DropLogin(ctx, l.role); !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			break
		}
	}
	l.gone = l.did(ctx, err)
}

func (l *endingLogin) did(ctx context.Context, err error) bool {
	if err != nil {
		l.s.Logger.WarnContext(ctx, "the login of a node is not shut before the node is removed", "node", l.node, "error", err)
	}
	return err == nil
}

// left does what is to be done of the login of a node that was not removed, and says why it was not.
func (l *endingLogin) left(ctx context.Context, err error) error {
	switch {
	case l.compromised && errors.Is(err, db.ErrUnknownOutcome): // it may be removed
	case l.compromised:
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), AliveFor)
		defer cancel()
		if l.takeAway(ctx); l.gone {
			return staysShut(err)
		}
	case l.tried:
		l.s.reopenLogin(ctx, l.node)
	}
	return err
}

// saysWho says of a transaction that another session kept waiting whose that is.
func saysWho(err error) error {
	held := db.HeldBy(err)
	if !errors.Is(err, db.ErrHeld) || len(held) == 0 {
		return err
	}
	var all []string
	for _, s := range held {
		all = append(all, s.String())
	}
	return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: fmt.Sprintf(
		"a session of the database holds what this change needs, and did not let go of it in some seconds (%s); nothing was changed", strings.Join(all, "; "))}).
		WithHint("have it end its transaction, or the database's administrator end it (SELECT pg_terminate_backend(PID)), then try again")
}

// reopenAgain is how long it is waited before a login is given back that could not be.
const reopenAgain = time.Second

// reopenLogin gives a node its login back that was not removed after all. Finish of any node does it later, where this fails.
func (s *Service) reopenLogin(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), AliveFor)
	defer cancel()
	for {
		r, err := s.read(ctx, name)
		if err == nil && r.state != client.CloneGone {
			_, err = s.DB.ReopenLogin(ctx, r.databaseRole, !r.runs(keys.SubsystemCA))
		}
		switch {
		case err == nil:
			return
		case !fault.Is(err, fault.Unavailable) || ctx.Err() != nil:
			s.Logger.ErrorContext(ctx, "a node that was not removed after all has no login; a node with the ca subsystem tries again", "node", name, "error", err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(reopenAgain):
		}
	}
}

// reopenLogins gives active nodes their logins back that were shut for a removal whose process has ended since. One that a removal works on is
// shut for less, and that of a compromised node is no more.
func (s *Service) reopenLogins(ctx context.Context, all []*row, now time.Time) error {
	if s.CloseLogin == nil || !slices.ContainsFunc(all, (*row).logsIn) {
		return nil
	}
	standing, err := s.DB.LoginStandings(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, r := range all {
		if !s.abandoned("shut "+r.name, r.logsIn() && standing[r.databaseRole].Shut, now) {
			continue
		}
		if err := s.giveBack(ctx, r); err != nil {
			failed = append(failed, fmt.Errorf("give node %s its login back: %w", r.name, err))
		}
	}
	return errors.Join(failed...)
}

func (r *row) logsIn() bool { return r.state == client.CloneActive && r.databaseRole != "" }

// giveBack gives a node its login back that is shut; where the node ended meanwhile, the login ends too.
func (s *Service) giveBack(ctx context.Context, r *row) error {
	reopened, err := s.DB.ReopenLogin(ctx, r.databaseRole, !r.runs(keys.SubsystemCA))
	if err != nil || !reopened {
		return err
	}
	s.Logger.WarnContext(ctx, "a node has its login at the database again: it was shut for a removal that came to nothing", "node", r.name, "role", r.databaseRole)
	return s.remember(ctx, r.name, Login{Role: r.databaseRole}, `state = state`)
}

// hasLogin gives an active node its login back at once where it is shut, and says where it has none to be given back.
func (s *Service) hasLogin(ctx context.Context, r *row) error {
	if s.CloseLogin == nil || !r.logsIn() {
		return nil
	}
	standing, err := s.DB.LoginStandings(ctx)
	if err != nil || standing == nil {
		return err
	}
	switch now, there := standing[r.databaseRole]; {
	case !there:
		return s.tookAway(r)
	case now.Shut:
		return s.giveBack(ctx, r)
	}
	return nil
}

// errTookAway says that a node's login is no more; a renewal gives what else was asked for.
var errTookAway = errors.New("the login was taken away")

// tookAway is said of a node whose login is no more: it was taken away by a removal as compromised, or by the database's administrator.
func (s *Service) tookAway(r *row) error {
	refusal := fault.New(fault.Conflict, "the login of node %s at the database, %s, was taken away, and is not given again", r.name, r.databaseRole)
	refusal.Err = errTookAway
	return refusal.
		WithHint("chancery clone remove %s --compromised ends the node, where that was begun; where its role was removed by mistake, have the database's administrator run "+
			"SELECT chancery_logins.add('%s', %t)", r.name, r.databaseRole, !r.runs(keys.SubsystemCA))
}

// roleOf is the ID of the role of a node's login, 0 of a node that has none yet; it is refused where the node had one that was taken away.
func (s *Service) roleOf(ctx context.Context, r *row) (int64, error) {
	if r.databaseRole == "" || s.CloseLogin == nil {
		return 0, nil
	}
	standing, err := s.DB.LoginStandings(ctx)
	if err != nil || standing == nil {
		return 0, err
	}
	role, there := standing[r.databaseRole]
	if !there {
		return 0, s.tookAway(r)
	}
	return role.ID, nil
}

// sameRole ends a login again that was made anew, after it was taken away in the middle of its renewal.
func (s *Service) sameRole(ctx context.Context, r *row, role string, before int64) error {
	if before == 0 || role != r.databaseRole {
		return nil
	}
	standing, err := s.DB.LoginStandings(ctx)
	if err != nil || standing[role].ID == before {
		return err
	}
	return errors.Join(s.tookAway(r), s.CloseLogin(ctx, role))
}

// limitedSince is the migration from which on programs do with logins that write rows of their own alone.
const limitedSince = 23

// limitEvery is how often limitReaders is tried: who has such a login can keep the tables from it, and it has all others wait for a second.
const limitEvery = time.Minute

// limitReaders takes from the logins of nodes that do not issue what releases before gave them, once no node of one is left, nor waits.
func (s *Service) limitReaders(ctx context.Context, all []*row, now time.Time) error {
	for _, r := range all {
		known := r.report.Schema
		if r.seen.IsZero() {
			known = r.request.Schema
		}
		if r.state != client.CloneGone && known < limitedSince {
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
		Message: "its login at the database is taken away and stays so, and it is not removed yet: " + strings.ReplaceAll(err.Error(), "; nothing was changed", "")}
	if why, ok := errors.AsType[*fault.Error](err); ok {
		out.Kind = why.Kind
		if why.Hint != "" {
			out.Hint += "; " + why.Hint
		}
	}
	return out
}
