package ca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
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

// TestSignedAgainAsItWas has the root sign that is here, with its key: it says what the certificate before says, though the lints would have
// it say more.
func TestSignedAgainAsItWas(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newStores(t, d), context.Background()
		top, topKey := strangeRoot(t, "CN=Old root")
		key := newKey(t)
		c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "Old sub"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(year),
			IsCA: true, BasicConstraintsValid: true, MaxPathLen: -1} // no keyUsage, and no path length under one that has it
		first := must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(x509.CreateCertificate(rand.Reader, c, top.Certificate, key.Public(), topKey))))
		above := []*x509.Certificate{top.Certificate}
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "top", Certificate: top.Certificate, Key: topKey}))
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "sub", Certificate: first, Chain: above, Key: key}))
		after := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Validity: 5 * year}))
		if after.Certificate.Equal(first) || after.Certificate.KeyUsage != 0 || !after.Certificate.NotAfter.After(first.NotAfter) {
			t.Errorf("it has serial %s, until %s", after.Certificate.SerialNumber, after.Certificate.NotAfter)
		}
	})
}

// TestRenewedBelowWhatStoodThere renews an issuer below one that relying parties may refuse and that stood there before: that is told of,
// and is no reason; brought in anew, it is one.
func TestRenewedBelowWhatStoodThere(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newStores(t, d), context.Background()
		top, topKey := strangeRoot(t, "CN=Old root")
		middleKey, key := newKey(t), newKey(t)
		plain := must[*x509.Certificate](t)(top.SignIssuer(root.Options{Subject: must[cert.Name](t)(cert.ParseName("CN=Middle")), PathLen: 1, Validity: 15 * year},
			spkiOf(t, middleKey), cert.Issuer{}, time.Now()))
		middle := again(t, plain, top.Certificate, topKey, time.Now().Add(15*year), unknownCritical)
		by := &root.Root{Certificate: plain, Signer: middleKey}
		first := must[*x509.Certificate](t)(by.SignIssuer(root.Options{Subject: must[cert.Name](t)(cert.ParseName("CN=Sub")), Validity: 2 * year}, spkiOf(t, key),
			cert.Issuer{}, time.Now()))
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "sub", Certificate: first, Chain: []*x509.Certificate{middle, top.Certificate}, Key: key}))
		second := again(t, first, middle, middleKey, time.Now().Add(5*year))
		after := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Answer: []*x509.Certificate{second}}))
		if !after.Certificate.Equal(second) || len(after.Warnings) != 1 || !strings.Contains(after.Warnings[0], unknownCritical.Id.String()) {
			t.Errorf("serial %s, told %q", after.Certificate.SerialNumber, after.Warnings)
		}
		another := again(t, plain, top.Certificate, topKey, time.Now().Add(18*year), unknownCritical)
		_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Answer: []*x509.Certificate{again(t, first, middle, middleKey, time.Now().Add(17*year)), another}})
		if refusedAs(t, err, fault.Invalid); !strings.Contains(err.Error(), unknownCritical.Id.String()) {
			t.Errorf("%v", err)
		}
	})
}
