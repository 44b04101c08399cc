package clone_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

// running joins a node that works, and that believes that it may, however long ago it heard so.
func (a *authority) running(name string) (*machine, *setup.Services) {
	a.t.Helper()
	ctx := a.t.Context()
	m, two := a.join(name)
	must(a.t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(a.t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	two.DB.Guard(func(context.Context) error { return nil })
	must(a.t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	a.exec(`UPDATE node SET database_role = 'chancery_' || name WHERE name = $1`, name)
	return m, two
}

// pin has a node take the work of signing CRLs for good.
func pin(ctx context.Context, s *setup.Services, node string) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := db.HandOver(ctx, tx, revocation.Lease, node, true, time.Minute, time.Now())
		return err
	})
}

// TestNothingAfterGone has a node that is removed, and has not heard of it, take the work of signing CRLs as soon as it is gone: from then on
// it commits nothing, whenever its login ends.
func TestNothingAfterGone(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.running("n2")
	must(t, pin(ctx, two, "n2")) // and before, which the removal takes
	tried := false
	a.Clones.CloseLogin = func(context.Context, string) error {
		tried = true
		if n := a.count(`SELECT COUNT(*) FROM node WHERE name = 'n2' AND state = 'gone'`); n != 1 {
			t.Error("it is not gone yet: this proves nothing")
		}
		if err := pin(ctx, two, "n2"); !errors.Is(err, db.ErrFenced) {
			t.Errorf("it is gone, and writes: %v", err)
		}
		return nil
	}
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Compromised: true}, once.Call{}))
	if _, ok, err := a.DB.Acquire(ctx, revocation.Lease, "n1", time.Second); !tried || !ok || err != nil {
		t.Errorf("no node can sign CRLs: %v", err)
	}
}

// TestRemoveIsCutShort has the login of a node stay, and whoever removes it go away: he is told, what can be done is done, and typed again
// the command does the rest. So does a call that is repeated with its key.
func TestRemoveIsCutShort(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.running("n2")
	call := once.Call{Caller: "ada", Key: "k", Request: once.Hash([]byte("remove n2"))}
	remove := func(ctx context.Context, call once.Call) error {
		return a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Compromised: true}, call)
	}
	short, cancel := context.WithCancel(ctx)
	stays, closed := errors.New("the login stays"), 0
	a.Clones.CloseLogin = func(ctx context.Context, role string) error {
		cancel()
		if closed++; ctx.Err() != nil {
			t.Errorf("what was begun ends with who asked for it: %v", ctx.Err())
		}
		return stays
	}
	for _, from := range []context.Context{short, ctx} {
		err := remove(from, call)
		refused(t, err, fault.Unavailable, "it is removed, and may write still", "the login stays")
		if a.count(`SELECT COUNT(*) FROM once WHERE caller = 'ada'`) != 0 {
			t.Error("that it is done is kept as the answer")
		}
		if why, ok := errors.AsType[*fault.Error](err); !ok || why.Hint == "" || !errors.Is(err, stays) {
			t.Errorf("what to do is not said: %v", err)
		}
	}
	if err := write(ctx, two); !errors.Is(err, db.ErrFenced) || closed != 2 {
		t.Errorf("it writes, after %d tries to end its login: %v", closed, err)
	}
	if err := a.Clones.Finish(ctx, time.Now()); !errors.Is(err, stays) {
		t.Errorf("a node finds nothing left: %v", err)
	}
	a.Clones.CloseLogin = func(context.Context, string) error { closed++; return nil }
	must(t, remove(ctx, once.Call{}))
	if closed != 4 || a.count(`SELECT COUNT(*) FROM node WHERE name = 'n2' AND database_role <> ''`) != 0 {
		t.Errorf("its login is there after %d tries", closed)
	}
	must(t, remove(ctx, call)) // the first answer to it was none
	must(t, remove(ctx, call))
	refused(t, remove(ctx, once.Call{}), fault.Conflict, "has been gone since")
	if a.count(`SELECT COUNT(*) FROM once WHERE caller = 'ada'`) != 1 {
		t.Error("the answer is not kept")
	}
}

// TestRemoveFails has a removal fail after it was begun: the node goes on as before. Where its remover ended in the middle, another node has
// it go on.
func TestRemoveFails(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.running("n2")
	a.exec(`INSERT INTO recipient_list SELECT version + 1, body, signature, created_at FROM recipient_list ORDER BY version DESC LIMIT 1`)
	refused(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Compromised: true}, once.Call{}), fault.Conflict, "list")
	must(t, write(ctx, two))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	a.exec(`DELETE FROM recipient_list WHERE version = (SELECT MAX(version) FROM recipient_list)`)

	must(t, a.DB.SuspendFence(ctx, "n2"))
	for _, after := range []time.Duration{0, time.Minute, 2 * time.Minute} {
		if err := write(ctx, two); !errors.Is(err, db.ErrSuspended) || clone.Ended(err) {
			t.Fatalf("%s: it is being removed, and hears: %v", after, err)
		}
		must(t, a.Clones.Finish(ctx, time.Now().Add(after)))
	}
	must(t, write(ctx, two))
	a.Clones.CloseLogin = func(context.Context, string) error { return nil }
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Compromised: true}, once.Call{}))
}

// TestLoginOfOneThatCameSince has a node come whose login has the name of one that is gone, while that one's login is looked for: it keeps it.
func TestLoginOfOneThatCameSince(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	a.join("n2")
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Force: true}, once.Call{}))
	looked, ended := false, false
	a.Clones.Logins = func(context.Context, []string) (map[string]string, error) {
		if !looked {
			looked = true
			a.exec(`INSERT INTO node SELECT 'N2', 'active', subsystems, address, public_key || 'x', fingerprint || 'x', tls_spki, principal, database_role, request,
				answer, report, joined_by, approved_by, created_at, approved_at, started_at, seen_at, 0 FROM node WHERE name = 'n2'`)
		}
		return map[string]string{"n2": "chancery_n2"}, nil
	}
	a.Clones.CloseLogin = func(context.Context, string) error { ended = true; return nil }
	if err := a.Clones.Finish(ctx, time.Now()); !looked || ended {
		t.Errorf("it was looked for: %v; the login of an active node is ended: %v (%v)", looked, ended, err)
	}
	if n := a.count(`SELECT COUNT(*) FROM node WHERE state = $1 AND database_role <> ''`, client.CloneGone); n != 0 {
		t.Error("it is remembered as the other's")
	}
}
