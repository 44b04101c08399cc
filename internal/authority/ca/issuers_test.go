package ca

import (
	"context"
	"sync"
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestIssuersWithinTransactions looks an issuer up within a transaction while another caller asks the database for all of
// them and gets no connection: if the first waited for the second, transactions could hold all connections and wait for one.
func TestIssuersWithinTransactions(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		must[*Issuer](t)(a.Issuer(t.Context(), "issuing"))
		a.CA.issuers.refresh.Lock() // as he does who asks the database
		defer a.CA.issuers.refresh.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		found := make(chan error, 1)
		go func() {
			found <- d.Read(ctx, func(tx *db.Tx) error {
				_, err := a.CA.issuer(ctx, tx, "issuing")
				return err
			})
		}()
		select {
		case err := <-found:
			check(t, err)
		case <-ctx.Done():
			t.Fatal("the transaction waits for who asks the database")
		}
	})
}

// TestIssuersAreReadOnce has many ask at once when what is known is too old: one reads, and the others take what he read,
// although they asked before he did.
func TestIssuersAreReadOnce(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	must[*Issuer](t)(a.Issuer(t.Context(), "issuing"))
	a.CA.issuers.mu.Lock()
	a.CA.issuers.current.checked = time.Now().Add(-time.Hour)
	a.CA.issuers.mu.Unlock()
	asked := time.Now()
	sets := make([]*issuerSet, 50)
	var all sync.WaitGroup
	for i := range sets {
		all.Go(func() { sets[i], _ = a.CA.issuersNow(t.Context(), asked) })
	}
	all.Wait()
	for _, s := range sets {
		if s == nil || s != sets[0] {
			t.Fatal("they were read more than once")
		}
	}
}

// TestForgottenIssuersAreNotKept has the cache told to forget while the database is asked.
func TestForgottenIssuersAreNotKept(t *testing.T) {
	c := &CA{}
	_, before := c.issuers.load()
	c.forget()
	c.issuers.keep(&issuerSet{checked: time.Now()}, before)
	if kept, _ := c.issuers.load(); kept != nil {
		t.Error("what was asked before the change was kept")
	}
}
