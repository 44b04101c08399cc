package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// leafOf makes a certificate with a serial, as a CA issued it before it came here.
func leafOf(t *testing.T, serial int64, by *x509.Certificate, key crypto.Signer) Record {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "old.example.com"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour)}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, by, newKey(t).Public(), key))
	return Record{Serial: template.SerialNumber, DER: der, NotBefore: template.NotBefore, NotAfter: template.NotAfter}
}

// TestImportedWithoutItsKeyAndThenWith: an import with the key gives it to the issuer that is here without it, and adds what it knows to
// the inventory that is here; there is one issuer of that name and key after it, as before.
func TestImportedWithoutItsKeyAndThenWith(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newStores(t, d), context.Background()
		key := newKey(t)
		name := must[cert.Name](t)(cert.ParseName("CN=Plant CA"))
		plant := func(validity time.Duration) *x509.Certificate {
			return must[*root.Root](t)(root.New(root.Options{Subject: name, PathLen: 0, Validity: validity}, key, time.Now())).Certificate
		}
		is := plant(year)
		one, two, three := leafOf(t, 1, is, key), leafOf(t, 2, is, key), leafOf(t, 3, is, key)
		revoked := func(r Record, reason crl.Reason) Record {
			r.Revocation = &Revocation{Reason: reason, RevokedAt: time.Now().Add(-time.Minute)}
			return r
		}
		before := must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "plant", Pool: "works", Certificate: is, Records: []Record{one, revoked(two, crl.Superseded)}}))
		for _, c := range []struct {
			spec       ImportSpec
			says, hint string
		}{
			{ImportSpec{Name: "plant2", Certificate: is}, "the key is given to that one", "--name plant --pool works"},
			{ImportSpec{Name: "plant", Pool: "default", Certificate: is}, "the key is given to that one", "--name plant --pool works"},
			{ImportSpec{Name: "plant2", Certificate: plant(5 * year)}, "with the certificate that it has", "issuer show plant --pem"},
			{ImportSpec{Name: "plant", Certificate: is, Records: []Record{leafOf(t, 1, is, key)}}, "another certificate with the serial", ""},
		} {
			c.spec.Key = key
			_, err := a.ImportIssuer(ctx, admin(), c.spec)
			refusedWith(t, err, c.says, c.hint)
		}
		if n := a.count(`SELECT COUNT(*) FROM sealed_key`); n != 0 {
			t.Errorf("what was refused left %d keys", n)
		}
		told := 0
		spec := ImportSpec{IdempotencyKey: "key", Name: "plant", Default: true, Certificate: is, Key: key, Records: []Record{revoked(one, crl.CessationOfOperation), two, three},
			Also: func(_ context.Context, _ *db.Tx, i *Issuer) error {
				if told++; i.ID != before.ID || i.number != before.number {
					t.Errorf("the CRLNumber would be that of issuer %s, and it is %s", i.ID, before.ID)
				}
				return nil
			}}
		for range 2 {
			after := must[*Issuer](t)(a.ImportIssuer(ctx, admin(), spec))
			if after.ID != before.ID || after.KeyID == "" || after.Pool != "works" || !after.Default || after.State != IssuerActive {
				t.Fatalf("it is %+v, and was %+v", after, before)
			}
		}
		if n := a.count(`SELECT COUNT(*) FROM issuer`); n != 1 || told == 0 {
			t.Errorf("%d issuers; told of its CRLNumber %d times", n, told)
		}
		for serial, state := range map[int64]State{1: Revoked, 2: Revoked, 3: Valid} {
			if c := must[*Certificate](t)(a.Find(ctx, admin(), Ref{Issuer: "plant", Serial: big.NewInt(serial)})); c.State != state {
				t.Errorf("certificate %d is %s", serial, c.State)
			}
		}
		if problems, looked, err := a.KeyProblems(ctx); err != nil || len(problems) > 0 || looked != 1 {
			t.Errorf("keys: %v of %d, %v", problems, looked, err)
		}
		issued := must[*Certificate](t)(a.Issue(ctx, admin(), Order{Pool: "works", Profile: "server", CSR: csr(t, newKey(t), "dns:new.example.com")}))
		check(t, must[*x509.Certificate](t)(issued.Parsed()).CheckSignatureFrom(is))
		a.sound()
		_, err := a.ImportIssuer(ctx, admin(), ImportSpec{Name: "plant3", Pool: "works", Certificate: is, Key: key})
		refusedWith(t, err, "same subject and the same key, and is active", "issuer show plant")
	})
}
