package clone_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestBusyNodeIsRemoved removes a node that writes all the time, and that nobody tells: the fence alone ends its writes.
func TestBusyNodeIsRemoved(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	var writers sync.WaitGroup
	wrote := make(chan bool, 8)
	for range 8 {
		writers.Go(func() {
			for n := 0; ; n++ {
				err := two.DB.Tx(ctx, func(tx *db.Tx) error {
					return tx.Send(ctx, `INSERT INTO clock (name, high_water) VALUES ($1, 1)`, db.NewID())
				})
				if n == 9 {
					wrote <- true
				}
				if errors.Is(err, db.ErrSuspended) && !clone.Ended(err) && fault.Is(err, fault.Unavailable) {
					continue // it may go on yet
				}
				if err != nil {
					if !errors.Is(err, db.ErrFenced) || !clone.Ended(err) || !fault.Is(err, fault.Unavailable) || n < 9 {
						t.Errorf("after %d writes: %v", n, err)
					}
					return
				}
			}
		})
	}
	for range 8 {
		<-wrote
	}
	begun := time.Now()
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Compromised: true}, once.Call{}))
	t.Logf("removed after %s", time.Since(begun))
	if err := write(ctx, two); !errors.Is(err, db.ErrFenced) {
		t.Errorf("it was removed, and writes: %v", err)
	}
	writers.Wait()
	// Nor is its own word for another node's login taken any more.
	if err := two.DB.DropLogin(ctx, "chancery_n1"); !errors.Is(err, db.ErrFenced) {
		t.Errorf("it was removed, and ends logins: %v", err)
	}
}

// TestRemoverDies has the remover end before the node's fence is raised, which it could not be at once: the next that looks raises it, and
// takes what the node has taken since.
func TestRemoverDies(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Force: true}, once.Call{}))
	a.exec(`UPDATE write_mark SET fence = (SELECT started_at FROM node WHERE name = 'n2') WHERE node = 'n2'`) // as its transaction left it
	must(t, pin(ctx, two, "n2"))
	must(t, a.Clones.Finish(ctx, time.Now()))
	if err := write(ctx, two); !errors.Is(err, db.ErrFenced) {
		t.Errorf("it is gone, and writes: %v", err)
	}
	if _, ok, err := a.DB.Acquire(ctx, revocation.Lease, "n1", time.Second); !ok || err != nil {
		t.Errorf("no node can sign CRLs: %v", err)
	}
}

// TestRefusedWriterEndsNoLogin has a node that is told that it is none any more while it renews another's login: that one keeps it.
func TestRefusedWriterEndsNoLogin(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	a.join("n2")
	var ended []string
	a.Clones.CloseLogin = func(_ context.Context, role string) error { ended = append(ended, role); return nil }
	a.Clones.OpenLogin = func(context.Context, access.Principal, string, string) (clone.Login, error) {
		a.DB.Guard(func(context.Context) error { return fault.New(fault.Denied, "node n1 left or was removed") })
		return clone.Login{Role: "chancery_n2"}, nil
	}
	var id string
	must(t, a.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT principal FROM node WHERE name = 'n2'`).Scan(&id)
	}))
	by := access.Principal{ID: id, Name: "n2", Kind: access.KindNode}
	_, err := a.Clones.RenewIdentity(ctx, by, client.CloneIdentity{DatabaseCSR: "x"}, "")
	if err == nil || len(ended) != 0 {
		t.Errorf("n2 is active, and its login is ended: %q, %v", ended, err)
	}
}
