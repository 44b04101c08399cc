package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// sharesRoot checks that an issuer was refused for the pool that its root is of, and that the refusal says what passes.
func sharesRoot(t *testing.T, err error, passes string) {
	t.Helper()
	refusedAs(t, err, fault.Conflict)
	if want := `pool "` + passes + `"`; err != nil && (!strings.Contains(err.Error(), "share no root") || !strings.Contains(err.Error(), want)) {
		t.Errorf("the refusal %q does not say that pools share no root, and that %s would pass", err, want)
	}
}

// TestPoolsShareNoRoot makes, answers and imports issuers below a root of one pool for another: a consumer that lets in whoever
// chains to its root would let in both. An issuer for which no pool is named is of the pool of what is above it.
func TestPoolsShareNoRoot(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		create := func(spec IssuerSpec) (*Issuer, error) {
			spec.Subject = "CN=" + spec.Name
			i, _, err := a.CreateIssuer(ctx, admin(), spec)
			return i, err
		}
		in := func(pool string, i *Issuer) {
			t.Helper()
			if i.Pool != pool {
				t.Errorf("issuer %s is of pool %s, want %s", i.Name, i.Pool, pool)
			}
		}
		in(DefaultPool, must[*Issuer](t)(create(IssuerSpec{Name: "alone"})))
		in("lab", must[*Issuer](t)(create(IssuerSpec{Name: "lab-root", Pool: "lab", PathLen: new(2)})))
		lab := must[*Issuer](t)(create(IssuerSpec{Name: "lab", Parent: "lab-root", PathLen: new(1), Default: true}))
		in("lab", lab)
		in("lab", must[*Issuer](t)(create(IssuerSpec{Name: "deeper", Parent: lab.ID, Pool: "lab"})))
		if i := must[*Issuer](t)(a.Issuer(ctx, "issuing")); !i.Default {
			t.Error("the default of the lab became that of the default pool")
		}
		for _, pool := range []string{DefaultPool, "other", IdentityPool} {
			_, err := create(IssuerSpec{Name: "astray", Parent: "lab-root", Pool: pool})
			sharesRoot(t, err, "lab")
		}
		_, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "astray", Parent: "lab-root", Pool: "other", Template: "cn = x\nca\ncert_signing_key\n"})
		sharesRoot(t, err, "lab")

		// The answers of a root outside, which stands above an issuer of one pool first.
		outside := newOutside(t, "CN=Corp")
		answer := func(name string) (*Issuer, error) {
			pending := must[*Issuer](t)(a.Issuer(ctx, name))
			return a.ImportAnswer(ctx, admin(), name, []*x509.Certificate{outside.sign(t, pending), outside.certificate}, once.Call{})
		}
		for name, pool := range map[string]string{"first": "one", "sister": "one", "stranger": "two"} {
			must[*Issuer](t)(create(IssuerSpec{Name: name, Pool: pool, Outside: true}))
		}
		in("one", must[*Issuer](t)(answer("first")))
		in("one", must[*Issuer](t)(answer("sister")))
		_, err = answer("stranger")
		sharesRoot(t, err, "one")
		if i := must[*Issuer](t)(a.Issuer(ctx, "stranger")); i.State != IssuerPending {
			t.Errorf("after the refusal it is %s", i.State)
		}

		// An issuer that exists already, below the same root; and the root itself.
		below := outside.sub(t, "CN=Below")
		spec := ImportSpec{Name: "below", Certificate: below, Chain: []*x509.Certificate{outside.certificate}, Pool: "two"}
		_, err = a.ImportIssuer(ctx, admin(), spec)
		sharesRoot(t, err, "one")
		_, err = a.ImportIssuer(ctx, admin(), ImportSpec{Name: "corp", Certificate: outside.certificate, Pool: "two"})
		sharesRoot(t, err, "one")
		spec.Pool = ""
		in("one", must[*Issuer](t)(a.ImportIssuer(ctx, admin(), spec)))
		in("one", must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "corp", Certificate: outside.certificate})))
	})
}

// outsideRoot is a root whose key the authority does not have.
type outsideRoot struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func newOutside(t *testing.T, subject string) *outsideRoot {
	o := &outsideRoot{key: newKey(t)}
	o.certificate = o.issue(t, strings.TrimPrefix(subject, "CN="), o.key.Public())
	return o
}

func (o *outsideRoot) sign(t *testing.T, pending *Issuer) *x509.Certificate {
	request := must[*x509.CertificateRequest](t)(x509.ParseCertificateRequest(pending.CSR))
	return o.issue(t, request.Subject.CommonName, request.PublicKey)
}

func (o *outsideRoot) sub(t *testing.T, subject string) *x509.Certificate {
	return o.issue(t, strings.TrimPrefix(subject, "CN="), newKey(t).Public())
}

func (o *outsideRoot) issue(t *testing.T, commonName string, key any) *x509.Certificate {
	t.Helper()
	ski := must[[]byte](t)(x509.MarshalPKIXPublicKey(key))
	template := &x509.Certificate{
		SerialNumber: must[*big.Int](t)(rand.Int(rand.Reader, big.NewInt(1<<62))), Subject: pkix.Name{CommonName: commonName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(9000 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: ski[len(ski)-20:],
	}
	above := o.certificate
	if above == nil {
		above = template
	}
	return must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, above, key, o.key))))
}
