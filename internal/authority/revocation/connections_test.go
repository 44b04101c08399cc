package revocation

import (
	"context"
	"crypto"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// poolSize is how many connections there are to PostgreSQL for all that a node writes, and for its snapshots.
const poolSize = 8

// hungSigner is a key in a token that hangs until it is let go on.
type hungSigner struct {
	crypto.Signer
	asked chan struct{}
	on    chan struct{}
}

func (s *hungSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.asked <- struct{}{}
	<-s.on
	return s.Signer.Sign(rand, digest, opts)
}

// write is a plain write of the node, as a heartbeat is.
func (o *office) write(what string) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), time.Minute)
	defer cancel()
	err := o.db.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO clock (name, high_water) VALUES ($1, 1)`, what)
		return err
	})
	if err != nil {
		o.t.Fatalf("%s: %v", what, err)
	}
}

// TestHungSignaturesLeaveTheDatabase: as many lists as there are connections wait for their signatures, and the node writes.
func TestHungSignaturesLeaveTheDatabase(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		lease := o.lease()
		set, err := o.settings.Get(t.Context())
		must(t, err)
		key, err := o.keys.SignerFor(t.Context(), o.issuer.KeyID, o.issuer.Certificate)
		must(t, err)
		hung := &hungSigner{key, make(chan struct{}, poolSize), make(chan struct{})}
		var lists sync.WaitGroup
		defer lists.Wait()
		goOn := sync.OnceFunc(func() { close(hung.on) })
		defer goOn()
		var published atomic.Int32
		for i := range poolSize {
			lists.Go(func() {
				orders := []order{{scope: Complete, scheduled: true, long: i%2 == 0}}
				if _, err := o.service.make(t.Context(), lease, o.issuer, orders, set, hung, time.Now()); err == nil {
					published.Add(1)
				}
			})
		}
		for i := range poolSize {
			select {
			case <-hung.asked:
			case <-time.After(time.Minute):
				t.Fatalf("%d lists came to their signatures: those before them keep the rest away from the database", i)
			}
		}
		o.write("while signatures hang")
		goOn()
		lists.Wait()
		if published.Load() == 0 { // one with a smaller number than another's is refused
			t.Fatal("no list was published when the token answered again")
		}
		o.list(Complete, func(*crl.List) bool { return true })
	})
}

// TestListsAreReadFewAtATime: whatever asks for lists, and under whatever lease, most connections stay for the rest, and for what the lists store
// while they are read.
func TestListsAreReadFewAtATime(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		entered, leave := make(chan bool, 2*poolSize), make(chan struct{})
		var group sync.WaitGroup
		var inside, most atomic.Int32
		for i := range 2 * poolSize {
			group.Go(func() {
				err := o.service.snapshot(t.Context(), i%2 == 0, func(*db.Tx) error {
					n := inside.Add(1)
					defer inside.Add(-1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					entered <- i%2 == 0
					<-leave
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		long := 0
		for range shortAtOnce + longAtOnce {
			select {
			case isLong := <-entered:
				if isLong {
					long++
				}
			case <-time.After(time.Minute):
				t.Error("short lists and long ones wait for each other")
			}
		}
		if long != longAtOnce {
			t.Errorf("%d long lists are read", long)
		}
		o.write("while lists are read")
		close(leave)
		group.Wait()
		if n := most.Load(); n != shortAtOnce+longAtOnce || n > poolSize-5 {
			t.Fatalf("%d were read at a time", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := o.service.snapshot(ctx, true, func(*db.Tx) error { return nil }); err == nil {
			t.Error("a lease that has ended reads on")
		}
	})
}
