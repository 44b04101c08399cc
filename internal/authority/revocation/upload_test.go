package revocation

import (
	"bytes"
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// offlineRoot makes a root whose key only the test has, with an issuer below it.
func (o *office) offlineRoot() (root *ca.Issuer, key crypto.Signer) {
	o.t.Helper()
	root, key, err := o.ca.CreateIssuer(o.t.Context(), o.by, ca.IssuerSpec{Name: "root", Subject: "CN=Root,O=Fleet", Offline: true})
	must(o.t, err)
	o.issuer, _, err = o.ca.CreateIssuer(o.t.Context(), o.by, ca.IssuerSpec{Name: "below", Parent: "root", ParentKey: key, Subject: "CN=Below,O=Fleet"})
	must(o.t, err)
	return root, key
}

func signDraft(t *testing.T, d *Draft, key crypto.Signer, change func(*crl.Spec)) []byte {
	t.Helper()
	spec := d.Spec()
	if change != nil {
		change(spec)
	}
	var der bytes.Buffer
	must(t, crl.Write(&der, spec, int64(len(d.Entries)), func(yield func([]byte, error) bool) { yield(d.Entries, nil) }, key))
	return der.Bytes()
}

func TestListOfAnOfflineRoot(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		root, key := o.offlineRoot()
		ctx := t.Context()
		if _, err := o.service.IssueCRL(ctx, o.by, "root", Wish{}, once.Call{}); !fault.Is(err, fault.Conflict) {
			t.Fatalf("sign here: %v", err)
		}
		draft, err := o.service.Draft(ctx, o.by, "root")
		must(t, err)
		if draft.NextUpdate.Sub(draft.ThisUpdate) != 400*24*time.Hour || len(draft.Entries) != 0 {
			t.Fatalf("draft %+v", draft)
		}
		empty := signDraft(t, draft, key, nil)
		first, err := o.service.Upload(ctx, o.by, "root", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: empty}), once.Call{})
		must(t, err)
		if !bytes.Equal(o.octets(first), empty) {
			t.Fatal("the list is not served as it was uploaded")
		}
		if _, err := o.service.Upload(ctx, o.by, "root", empty, once.Call{}); !fault.Is(err, fault.Conflict) {
			t.Fatalf("the same again: %v", err)
		}
		// The issuer below is revoked: from now on no list may leave it out.
		_, err = o.ca.Revoke(ctx, o.by, ca.Ref{Issuer: "root", Serial: o.issuer.Certificate.SerialNumber}, ca.RevokeOrder{Reason: crl.CACompromise})
		must(t, err)
		draft.Number.Add(draft.Number, big.NewInt(1_000_000))
		if _, err := o.service.Upload(ctx, o.by, "root", signDraft(t, draft, key, nil), once.Call{}); !fault.Is(err, fault.Conflict) {
			t.Fatalf("a list that leaves out what is revoked: %v", err)
		}
		full, err := o.service.Draft(ctx, o.by, "root")
		must(t, err)
		for what, change := range map[string]func(*crl.Spec){
			"partial": func(s *crl.Spec) { s.IDP = &crl.IssuingDistributionPoint{OnlyUserCerts: true} },
			"delta":   func(s *crl.Spec) { s.BaseNumber = big.NewInt(1) },
			"ended": func(s *crl.Spec) {
				s.ThisUpdate, s.NextUpdate = s.ThisUpdate.AddDate(0, 0, -3), s.ThisUpdate.AddDate(0, 0, -1)
			},
			"ahead": func(s *crl.Spec) { s.ThisUpdate = s.ThisUpdate.AddDate(0, 0, 1) },
		} {
			if _, err := o.service.Upload(ctx, o.by, "root", signDraft(t, full, key, change), once.Call{}); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for what, input := range map[string][]byte{"garbage": []byte("x"), "another issuer's": o.octets(o.anotherList()), "too large": make([]byte, maxUpload+1)} {
			if _, err := o.service.Upload(ctx, o.by, "root", input, once.Call{}); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.TooLarge) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := o.service.Upload(ctx, access.Principal{}, "root", empty, once.Call{}); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("anybody: %v", err)
		}
		second, err := o.service.Upload(ctx, o.by, "root", signDraft(t, full, key, nil), once.Call{})
		must(t, err)
		o.issuer = root
		if parsed := o.parse(second); parsed.Count != 1 {
			t.Fatalf("%d entries", parsed.Count)
		}
	})
}

// anotherList is a list of an issuer that is not the root.
func (o *office) anotherList() *List {
	o.t.Helper()
	lease := o.lease()
	l, err := o.service.build(o.t.Context(), lease, o.issuer, order{scope: Complete, scheduled: true}, time.Now())
	must(o.t, err)
	return l
}

// TestNobodyGrantsTheWish: who asks for a list that nobody signs hears who should, and at once where no other node will.
func TestNobodyGrantsTheWish(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		asks := func(patience time.Duration, says ...string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := o.service.IssueCRL(ctx, o.by, "one", Wish{}, once.Call{})
			fe, ok := errors.AsType[*fault.Error](err)
			if !ok || fe.Kind != fault.Unavailable {
				t.Fatalf("it is %v", err)
			}
			for _, say := range says {
				if !strings.Contains(err.Error()+fe.Hint, say) {
					t.Errorf("%q is not in %v; %s", say, err, fe.Hint)
				}
			}
		}
		lease := func(holder, pinned string, expires time.Time) {
			t.Helper()
			must(t, d.Tx(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), `INSERT INTO leases (name, holder, epoch, expires_at, pinned) VALUES ($1, $2, 7, $3, $4)
					ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at, pinned = excluded.pinned`,
					Lease, holder, db.Micros(expires), pinned)
				return err
			}))
		}
		asks(200*time.Millisecond, "nobody has taken up the work")
		lease("n5", "", time.Now().Add(time.Hour))
		asks(200*time.Millisecond, "node n5 has the work")
		lease("n5", "n5", time.Now().Add(-time.Minute))
		asks(time.Minute, "pinned to node n5, which does not do it", "chancery clone demote n5")
	})
}

func TestOperatorsWish(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		o.run()
		first := o.list(Complete, func(*crl.List) bool { return true })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		number := new(big.Int).Add(first.Number, big.NewInt(1_000_000_000_000))
		next := time.Now().Add(5 * 24 * time.Hour).UTC().Truncate(time.Second)
		l, err := o.service.IssueCRL(ctx, o.by, "one", Wish{Number: number, NextUpdate: next}, once.Call{})
		must(t, err)
		if l.Number.Cmp(number) != 0 || !l.NextUpdate.Equal(next) {
			t.Fatalf("list %+v", l)
		}
		l, err = o.service.IssueCRL(ctx, o.by, "one", Wish{}, once.Call{})
		must(t, err)
		if l.Number.Cmp(number) <= 0 {
			t.Fatalf("CRLNumber %v after %v", l.Number, number)
		}
		for what, wish := range map[string]Wish{
			"number falls": {Number: number},
			"future":       {ThisUpdate: time.Now().Add(time.Hour)},
			"ended":        {NextUpdate: time.Now().Add(-time.Hour)},
			"huge number":  {Number: new(big.Int).Lsh(big.NewInt(1), 160)},
		} {
			if _, err := o.service.IssueCRL(ctx, o.by, "one", wish, once.Call{}); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Conflict) {
				t.Errorf("%s: %v", what, err)
			}
		}
		auditor := access.Principal{ID: "a", Name: "a", Kind: access.KindOperator, Roles: []access.Role{access.Auditor}}
		if _, err := o.service.IssueCRL(ctx, auditor, "one", Wish{}, once.Call{}); !fault.Is(err, fault.Denied) {
			t.Errorf("an auditor: %v", err)
		}
		if _, err := o.service.IssueCRL(ctx, o.by, "none", Wish{}, once.Call{}); !fault.Is(err, fault.NotFound) {
			t.Errorf("no such issuer: %v", err)
		}
	})
}
