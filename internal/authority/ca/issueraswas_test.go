package ca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestRenewedAsItWas renews imported issuers that say less than we would have them say, as OpenSSL makes them: an answer that says the same
// is taken, since none that says more would be.
func TestRenewedAsItWas(t *testing.T) {
	t.Parallel()
	none := func(*x509.Certificate) {}
	for name, changes := range map[string][2]func(*x509.Certificate){
		"no keyUsage":                      {none, func(c *x509.Certificate) { c.KeyUsage = 0 }},
		"no path length under one":         {func(c *x509.Certificate) { c.MaxPathLen = 1 }, none},
		"no keyUsage in the root":          {func(c *x509.Certificate) { c.KeyUsage = 0 }, none},
		"extended key usage of a server's": {none, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }},
	} {
		t.Run(name, func(t *testing.T) {
			a, ctx := newStores(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})), context.Background()
			rootKey, key := newKey(t), newKey(t)
			sign := func(name string, end time.Time, change func(*x509.Certificate), above *x509.Certificate, public any) *x509.Certificate {
				c := &x509.Certificate{SerialNumber: must[*big.Int](t)(cert.NewSerial()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: end,
					IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, MaxPathLen: -1}
				if change(c); above == nil {
					above = c
				}
				return must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(x509.CreateCertificate(rand.Reader, c, above, public, rootKey))))
			}
			top := sign("Old root", time.Now().Add(20*year), changes[0], nil, rootKey.Public())
			sub := func(end time.Time) *x509.Certificate { return sign("Old sub", end, changes[1], top, key.Public()) }
			must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "sub", Certificate: sub(time.Now().Add(year)), Chain: []*x509.Certificate{top}, Key: key}))
			answer := sub(time.Now().Add(5 * year))
			if i := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Answer: []*x509.Certificate{answer, top}})); !i.Certificate.Equal(answer) {
				t.Errorf("it has the certificate %s still", i.Certificate.SerialNumber)
			}
		})
	}
}

// TestRenewedWithWhatIsAboveToo is an answer that comes with another certificate of the issuer above, which is here, before the one below
// or after it: the way up is the one that is here.
func TestRenewedWithWhatIsAboveToo(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
			a, ctx := newStores(t, d), context.Background()
			top, key := strangeRoot(t, "CN=Outside root")
			middleKey, subKey := newKey(t), newKey(t)
			middle := must[*x509.Certificate](t)(top.SignIssuer(root.Options{Subject: must[cert.Name](t)(cert.ParseName("CN=Middle")), PathLen: 1, Validity: 15 * year},
				spkiOf(t, middleKey), cert.Issuer{}, time.Now()))
			by := &root.Root{Certificate: middle, Signer: middleKey}
			sub := must[*x509.Certificate](t)(by.SignIssuer(root.Options{Subject: must[cert.Name](t)(cert.ParseName("CN=Sub")), Validity: 2 * year}, spkiOf(t, subKey),
				cert.Issuer{}, time.Now()))
			above := func() {
				must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "top", Certificate: top.Certificate}))
				must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "middle", Certificate: middle, Chain: []*x509.Certificate{top.Certificate}}))
			}
			if !late {
				above()
			}
			must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "sub", Certificate: sub, Chain: []*x509.Certificate{middle, top.Certificate}, Key: subKey}))
			if late {
				above()
			}
			newMiddle := again(t, middle, top.Certificate, key, time.Now().Add(18*year))
			answer := []*x509.Certificate{again(t, sub, middle, middleKey, time.Now().Add(5*year)), newMiddle, top.Certificate}
			i := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Answer: answer}))
			if !i.Certificate.Equal(answer[0]) || !i.Chain[0].Equal(middle) {
				t.Errorf("it ends %s, under one that ends %s", i.Certificate.NotAfter, i.Chain[0].NotAfter)
			}
			must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "middle", Answer: answer[1:]}))
			if i := must[*Issuer](t)(a.Issuer(ctx, "sub")); !i.Chain[0].Equal(newMiddle) {
				t.Errorf("the one above was renewed, and it is under one that ends %s", i.Chain[0].NotAfter)
			}
		})
	}
}
