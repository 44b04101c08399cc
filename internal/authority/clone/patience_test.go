package clone_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

// TestPromoteWhileATokenIsAway: no node reaches the token of one issuer, and each says so in words of its own. The work moves all the same, to
// and fro, and that issuer's list is not waited for.
func TestPromoteWhileATokenIsAway(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, _ := a.running("n2")
	const key = `id IN (SELECT key_id FROM issuer WHERE name = 'default')`
	a.exec(`INSERT INTO token_key (id, purpose, owner, algorithm, spki, created, uri)
		SELECT id, purpose, owner, algorithm, spki, created, 'pkcs11:token=gone;serial=0815;object=issuer;type=private' FROM sealed_key WHERE ` + key)
	a.exec(`DELETE FROM key_wrap WHERE key_` + key)
	a.exec(`DELETE FROM sealed_key WHERE ` + key)
	one := a.again()
	must(t, one.Keys.Anchor(a.anchors, filepath.Join(t.TempDir(), "recipients")))
	two := a.open(m)
	for node, s := range map[string]*setup.Services{"n1": one, "n2": two} {
		must(t, s.Clones.Register(ctx, "https://"+node+".test:8443", time.Now()))
		a.work(s)
	}
	for _, node := range []string{"n2", "n1"} {
		begun := time.Now()
		_, err := one.Clones.Promote(ctx, a.admin, node, client.CloneTurn{Pin: true}, once.Call{})
		must(t, err)
		t.Logf("promoted after %s", time.Since(begun))
		if l := a.holder(); l.Holder != node || l.Pinned != node {
			t.Errorf("it is left as %+v", l)
		}
	}
}

// TestPromoteWhoWorksForLong: a holder that renews the lease, and has not published anything yet, is waited for; one that renews it no more
// is not.
func TestPromoteWhoWorksForLong(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.running("n2")
	const wait = 2 * time.Second
	a.Clones.TakeUpWithin(wait)
	a.has(revocation.Lease)
	work, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	defer func() { stop(); working.Wait() }()
	promoted := func(renewals int, then func()) error {
		working.Go(func() {
			for done := 0; done < renewals && work.Err() == nil; time.Sleep(wait / 4) {
				if handed, err := two.DB.Handed(work, revocation.Lease, "n2"); err != nil || done == 0 && !handed {
					continue
				}
				if _, ok, err := two.DB.Acquire(work, revocation.Lease, "n2", time.Minute); err == nil && ok {
					done++
				}
			}
			then()
		})
		_, err := a.Clones.Promote(ctx, a.admin, "n2", client.CloneTurn{Pin: true}, once.Call{})
		return err
	}
	err := promoted(1, func() {})
	refused(t, err, fault.Conflict, "node n2 has taken the lease", "published no CRL", "node n1 has it again, pinned as before")
	must(t, promoted(9, func() { _ = two.Revocation.Run(work) }))
	if l := a.holder(); l.Holder != "n2" || l.Pinned != "n2" {
		t.Errorf("it is left as %+v", l)
	}
}
