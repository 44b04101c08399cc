package ca

import (
	"context"
	"crypto/x509"
	"testing"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestTwins: of the issuers here those are found that share a subject, a key or both, whatever their state, and no others.
func TestTwins(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		top, _ := strangeRoot(t, "CN=Old root")
		sub := newKey(t)
		name := must[cert.Name](t)(cert.ParseName("CN=Old sub"))
		first := must[*x509.Certificate](t)(top.SignIssuer(root.Options{Subject: name, Validity: 2 * year}, spkiOf(t, sub), cert.Issuer{}, time.Now()))
		above := []*x509.Certificate{top.Certificate}
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "oldroot", Certificate: top.Certificate}))
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "oldsub", Certificate: first, Chain: above, Key: sub}))
		if twins := must[[]Twin](t)(a.Twins(ctx)); len(twins) != 0 {
			t.Fatalf("there are none, and %+v are found", twins)
		}
		// As others could be made once: a row is copied, with another subject, with another key, and with neither.
		n := int64(1000)
		copied := func(name string, certificate *x509.Certificate, keyID string) {
			t.Helper()
			n++
			check(t, a.db.Tx(ctx, func(tx *db.Tx) error {
				_, err := tx.Exec(ctx, `INSERT INTO issuer (`+issuerColumns+`, subject, not_after)
					SELECT $1, $2, $1, pool, 'retired', 0, parent, $3, $4, $5, chain, csr, crl, created_at, $6, not_after FROM issuer WHERE name = 'oldsub'`,
					name, n, keyID, certificate.RawSubjectPublicKeyInfo, certificate.Raw, certificate.RawSubject)
				return err
			}))
			a.Forget()
		}
		oneMore := func(subject string, key []byte) *x509.Certificate {
			return must[*x509.Certificate](t)(top.SignIssuer(root.Options{Subject: must[cert.Name](t)(cert.ParseName(subject)), Validity: year}, key, cert.Issuer{}, time.Now()))
		}
		for _, c := range []struct {
			name    string
			subject string
			key     []byte
			keyID   string
			want    Twin
		}{
			{"a-both", "CN=Old sub", spkiOf(t, sub), "some", Twin{Subject: true, Key: true, BothSignLists: true}},
			{"b-offline", "CN=OLD SUB", spkiOf(t, sub), "", Twin{Subject: true, Key: true}},
			{"c-key", "CN=Something else", spkiOf(t, sub), "some", Twin{Key: true}},
			{"d-subject", "CN=old sub", spkiOf(t, newKey(t)), "some", Twin{Subject: true}},
			{"e-neither", "CN=Unlike", spkiOf(t, newKey(t)), "some", Twin{}},
		} {
			copied(c.name, oneMore(c.subject, c.key), c.keyID)
			found := Twin{}
			for _, twin := range must[[]Twin](t)(a.Twins(ctx)) {
				if twin.One.Name == "oldsub" && twin.Other.Name == c.name {
					found = twin
				}
			}
			found.One, found.Other = nil, nil
			if found != c.want {
				t.Errorf("%s: %+v is found, and %+v is so", c.name, found, c.want)
			}
		}
		_, err := a.Revoke(ctx, admin(), Ref{Issuer: "oldroot", Serial: first.SerialNumber}, RevokeOrder{Reason: crl.KeyCompromise})
		check(t, err)
		a.Forget()
		told := 0
		for _, twin := range must[[]Twin](t)(a.Twins(ctx)) {
			if twin.Compromised != twin.Key {
				t.Errorf("the key is compromised, and of %s and %s that is %t", twin.One.Name, twin.Other.Name, twin.Compromised)
			}
			told++
		}
		if told < 6 {
			t.Errorf("%d twins are found", told)
		}
	})
}
