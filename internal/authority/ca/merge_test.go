package ca

import (
	"context"
	"math/big"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// listOf signs a CRL of the issuing issuer, as it was published before the store forgot.
func (a *authority) listOf(entries ...crl.Entry) *crl.List {
	a.t.Helper()
	key, err := a.keys.Signer(context.Background(), a.issuer.KeyID)
	check(a.t, err)
	der, err := crl.Encode(&crl.Spec{
		Issuer: a.issuer.Certificate, Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
	}, entries, key)
	check(a.t, err)
	list, err := crl.Parse(der)
	check(a.t, err)
	return list
}

func TestMergeCRL(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		good, held, revoked := a.server("dns:good.example"), a.server("dns:held.example"), a.server("dns:revoked.example")
		_, err := a.Hold(ctx, officer(), Ref{Serial: held.Serial}, "")
		check(t, err)
		_, err = a.Revoke(ctx, officer(), Ref{Serial: revoked.Serial}, RevokeOrder{Reason: crl.Superseded})
		check(t, err)
		then := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
		lost := big.NewInt(987654321)
		list := a.listOf(
			crl.Entry{Serial: good.Serial, RevokedAt: then, Reason: crl.KeyCompromise, Invalidity: then.Add(-time.Hour)},
			crl.Entry{Serial: held.Serial, RevokedAt: then, Reason: crl.CertificateHold},
			crl.Entry{Serial: revoked.Serial, RevokedAt: then, Reason: crl.Superseded},
			crl.Entry{Serial: lost, RevokedAt: then, Reason: crl.CACompromise},
		)
		merged, err := a.MergeCRL(ctx, officer(), list)
		check(t, err)
		if merged != (Merged{Known: 2, Revoked: 1, Unknown: 1}) {
			t.Errorf("merged %+v", merged)
		}
		now, err := a.Find(ctx, officer(), Ref{Serial: good.Serial})
		check(t, err)
		if now.State != Revoked || !now.Revocation.RevokedAt.Equal(then) || now.Revocation.Reason != crl.KeyCompromise ||
			!now.Revocation.InvalidityDate.Equal(then.Add(-time.Hour)) {
			t.Errorf("state %s, revocation %+v", now.State, now.Revocation)
		}
		check(t, d.Read(ctx, func(tx *db.Tx) error {
			status, err := StatusOf(ctx, tx, a.issuer, lost)
			if err == nil && (status.State != Revoked || status.Reason != crl.CACompromise || !status.RevokedAt.Equal(then)) {
				t.Errorf("status of what was lost: %+v", status)
			}
			return err
		}))
		again, err := a.MergeCRL(ctx, officer(), list)
		check(t, err)
		if again != (Merged{Known: 4}) {
			t.Errorf("merged again %+v", again)
		}
	})
}

func TestMergeCRLOfNobody(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		own := newAuthority(t, d)
		list := own.listOf()
		pkitest.EachDB(t, func(t *testing.T, other *db.DB) {
			_, err := newAuthority(t, other).MergeCRL(context.Background(), officer(), list)
			refusedAs(t, err, fault.Invalid)
		})
		_, err := own.MergeCRL(context.Background(), host("h"), list)
		if err == nil {
			t.Error("a host merged a CRL")
		}
	})
}
