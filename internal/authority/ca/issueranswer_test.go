package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

var unknownCritical = pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}}

// again signs a certificate that says what another one says, with another serial and end, by any name and key.
func again(t testing.TB, c, by *x509.Certificate, key crypto.Signer, end time.Time, extra ...pkix.Extension) *x509.Certificate {
	t.Helper()
	serial := must[*big.Int](t)(cert.NewSerial())
	template := &x509.Certificate{SerialNumber: serial, RawSubject: c.RawSubject, NotBefore: time.Now().Add(-time.Hour), NotAfter: end, SubjectKeyId: c.SubjectKeyId}
	for _, e := range c.Extensions {
		switch {
		case e.Id.Equal(cert.OIDSubjectKeyID), e.Id.Equal(cert.OIDAuthorityKeyID), e.Id.Equal(cert.OIDCRLDistributionPoints), e.Id.Equal(cert.OIDAuthorityInfoAccess):
		default:
			template.ExtraExtensions = append(template.ExtraExtensions, e)
		}
	}
	template.ExtraExtensions = append(template.ExtraExtensions, extra...)
	return must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, by, c.PublicKey, key))))
}

// strangeRoot is a root that is not here, and its key.
func strangeRoot(t testing.TB, subject string) (*root.Root, crypto.Signer) {
	t.Helper()
	key := newKey(t)
	name := must[cert.Name](t)(cert.ParseName(subject))
	return must[*root.Root](t)(root.New(root.Options{Subject: name, PathLen: 3, Validity: 20 * year}, key, time.Now())), key
}

// under makes an issuer here by an answer of what is not here.
func (a *authority) under(name string, by *root.Root, above ...*x509.Certificate) *Issuer {
	t, ctx := a.t, context.Background()
	t.Helper()
	pending, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: name, Pool: name, Subject: "CN=" + name, Outside: true})
	check(t, err)
	request := must[*cert.CSR](t)(cert.ParseCSR(pending.CSR))
	signed := must[*x509.Certificate](t)(by.SignIssuer(root.Options{Subject: request.Subject, Validity: year}, request.SPKI, cert.Issuer{}, time.Now()))
	return must[*Issuer](t)(a.ImportAnswer(ctx, admin(), name, append([]*x509.Certificate{signed}, above...), once.Call{}))
}

// TestRenewalAnswersThatNobodyCouldUse: what relying parties would not take is refused before an issuer has it, and the refusal says
// what would pass.
func TestRenewalAnswersThatNobodyCouldUse(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		top, key := strangeRoot(t, "CN=Outside root")
		midKey := newKey(t)
		name := must[cert.Name](t)(cert.ParseName("CN=Outside middle"))
		mid := must[*x509.Certificate](t)(top.SignIssuer(root.Options{Subject: name, PathLen: 1, Validity: 15 * year}, spkiOf(t, midKey), cert.Issuer{}, time.Now()))
		is := a.under("below", &root.Root{Certificate: mid, Signer: midKey}, mid, top.Certificate)
		end := time.Now().Add(5 * year)
		soft, other, stranger := *is.Certificate, *mid, *mid
		soft.Extensions = nil
		for _, e := range is.Certificate.Extensions {
			e.Critical = false
			soft.Extensions = append(soft.Extensions, e)
		}
		other.SubjectKeyId = []byte("another identifier 0")
		stranger.SubjectKeyId = nil
		named := pkix.Extension{Id: cert.OIDAuthorityKeyID, Value: must[[]byte](t)(asn1.Marshal(struct {
			Issuer asn1.RawValue
			Serial *big.Int `asn1:"tag:2"`
		}{asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: must[[]byte](t)(asn1.Marshal(asn1.RawValue{
			Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: mid.RawIssuer}))}, big.NewInt(7)}))}
		evil, evilKey := strangeRoot(t, "CN=Stranger root")
		ended := again(t, mid, top.Certificate, key, time.Now().Add(-time.Minute))
		good := again(t, is.Certificate, mid, midKey, end)
		cases := []struct {
			what  string
			given []*x509.Certificate
			says  string
		}{
			{"an unknown critical extension", []*x509.Certificate{again(t, is.Certificate, mid, midKey, end, unknownCritical)}, "1.3.6.1.4.1.99999.1"},
			{"another key above", []*x509.Certificate{again(t, is.Certificate, &other, midKey, end)}, "says that the key above it is"},
			{"another certificate above", []*x509.Certificate{again(t, is.Certificate, &stranger, midKey, end, named)}, "names the serial"},
			{"not critical", []*x509.Certificate{again(t, &soft, mid, midKey, end)}, "2.5.29.19=critical,DER:30"},
			{"the one that it has, among others", []*x509.Certificate{is.Certificate, again(t, is.Certificate, mid, midKey, time.Now().Add(year/2))}, "is the one that it has"},
		}
		for _, c := range cases {
			_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "below", Answer: c.given})
			if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", c.what, err)
			}
		}
		// Of what is given beside, only what leads to the root that hosts trust is taken.
		crossed := again(t, top.Certificate, evil.Certificate, evilKey, time.Now().Add(19*year))
		bad := again(t, mid, top.Certificate, key, time.Now().Add(16*year), unknownCritical)
		got := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "below", Answer: []*x509.Certificate{is.Certificate, crossed, ended, good}}))
		if !got.Certificate.Equal(good) || len(got.Chain) != 2 || !got.Chain[0].Equal(mid) || !got.Chain[1].Equal(top.Certificate) {
			t.Errorf("the path is of %d, and ends at %q by %q", len(got.Chain), got.top().Subject, got.top().Issuer)
		}
		longer := again(t, mid, top.Certificate, key, time.Now().Add(18*year))
		farther := again(t, is.Certificate, mid, midKey, time.Now().Add(17*year))
		_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "below", Answer: []*x509.Certificate{farther, bad}})
		refusedAs(t, err, fault.Invalid) // above it is one that nobody takes, or that ends before it
		got = must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "below", Answer: []*x509.Certificate{farther, longer}}))
		if !got.Chain[0].Equal(longer) || !got.top().Equal(top.Certificate) {
			t.Error("the certificate above that was given with it, and lasts longer, is not in its path")
		}
	})
}

// TestRefusalSaysWhatOpenSSLTakes: by the line that a refusal names, openssl makes the certificate that passes.
func TestRefusalSaysWhatOpenSSLTakes(t *testing.T) {
	a := newStores(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx, dir := context.Background(), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	save := func(name, kind string, der []byte) {
		check(t, os.WriteFile(file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", file("root.key"), "-out", file("root.pem"),
		"-subj", "/CN=Outside", "-days", "3650", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
	sign := func(csr, out, days, extensions string) []*x509.Certificate {
		save("csr", "CERTIFICATE REQUEST", []byte(csr))
		check(t, os.WriteFile(file("ext"), []byte(extensions), 0o600))
		run(t, "openssl", "x509", "-req", "-in", file("csr"), "-CA", file("root.pem"), "-CAkey", file("root.key"), "-days", days, "-extfile", file("ext"), "-out", file(out))
		var all []*x509.Certificate
		for _, name := range []string{out, "root.pem"} {
			block, _ := pem.Decode(must[[]byte](t)(os.ReadFile(file(name))))
			all = append(all, must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes)))
		}
		return all
	}
	pending, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "sub", Subject: "CN=Sub", Outside: true})
	check(t, err)
	_, err = a.ImportAnswer(ctx, admin(), "sub", sign(string(pending.CSR), "first.pem", "100",
		"basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"+
			"nameConstraints=critical,permitted;DNS:example.com\nextendedKeyUsage=serverAuth\n"), once.Call{})
	check(t, err)
	before := a.count(`SELECT COUNT(*) FROM audit_event`)
	request := must[[]byte](t)(a.RenewalRequest(ctx, admin(), "sub"))
	if n := a.count(`SELECT COUNT(*) FROM audit_event`) - before; n != 1 {
		t.Errorf("a signature of the issuer's key left %d events", n)
	}
	extensions := "authorityKeyIdentifier=keyid\n"
	for tries := 0; ; tries++ { // each refusal names one line more
		_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Answer: sign(string(request), "second.pem", "200", extensions)})
		if err == nil {
			if tries < 4 {
				t.Errorf("it passed after %d lines:\n%s", tries, extensions)
			}
			break
		}
		_, line, found := strings.Cut(err.Error(), "-extfile: ")
		if tries > 8 || !found && !strings.Contains(err.Error(), "no CA's") {
			t.Fatalf("with\n%s: %v", extensions, err)
		}
		if !found {
			line = "basicConstraints=critical,CA:TRUE,pathlen:0\nsubjectKeyIdentifier=hash"
		}
		extensions += line + "\n"
	}
	run(t, "openssl", "verify", "-x509_strict", "-CAfile", file("root.pem"), file("second.pem"))
	// A root that copies what is asked for has nothing to write.
	third := sign(string(request), "copied.pem", "300", "authorityKeyIdentifier=keyid\n")
	run(t, "openssl", "x509", "-req", "-in", file("csr"), "-CA", file("root.pem"), "-CAkey", file("root.key"), "-days", "300", "-copy_extensions", "copyall", "-out", file("copied.pem"))
	block, _ := pem.Decode(must[[]byte](t)(os.ReadFile(file("copied.pem"))))
	third[0] = must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes))
	must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Answer: third}))
}

// TestTwinIssuers: a second issuer of one name and key is refused where both would sign, and where there are two from before, a
// compromise of the key ends both, and the check names them.
func TestTwinIssuers(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		top, key := strangeRoot(t, "CN=Old root")
		sub := newKey(t)
		name := must[cert.Name](t)(cert.ParseName("CN=Old sub"))
		first := must[*x509.Certificate](t)(top.SignIssuer(root.Options{Subject: name, Validity: 2 * year}, spkiOf(t, sub), cert.Issuer{}, time.Now()))
		second := again(t, first, top.Certificate, key, time.Now().Add(4*year))
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "oldroot", Certificate: top.Certificate}))
		above := []*x509.Certificate{top.Certificate}
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "oldsub", Certificate: first, Chain: above, Key: sub, Default: true}))
		_, err := a.ImportIssuer(ctx, admin(), ImportSpec{Name: "twin", Certificate: second, Chain: above, Key: sub})
		refusedAs(t, err, fault.Conflict)
		if !strings.Contains(hintOf(err), "issuer renew oldsub --certificate") {
			t.Errorf("the refusal does not say how: %v (%s)", err, hintOf(err))
		}
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "twin", Certificate: second, Chain: above})) // without its key it signs nothing
		a.sound()
		check(t, a.db.Tx(ctx, func(tx *db.Tx) error { // as it could be made once
			_, err := tx.Exec(ctx, `UPDATE issuer SET key_id = (SELECT key_id FROM issuer WHERE name = 'oldsub') WHERE name = 'twin'`)
			return err
		}))
		a.Forget()
		findings, _, err := a.Check(ctx, 1)
		if check(t, err); len(findings) != 1 || !strings.Contains(findings[0].Message, `the key of issuer "oldsub"`) {
			t.Errorf("the check says %v", findings)
		}
		_, err = a.Revoke(ctx, admin(), Ref{Issuer: "oldroot", Serial: first.SerialNumber}, RevokeOrder{Reason: crl.KeyCompromise})
		check(t, err)
		for _, name := range []string{"oldsub", "twin"} {
			if i := must[*Issuer](t)(a.Issuer(ctx, name)); i.State != IssuerRetired || i.Default {
				t.Errorf("the key is compromised, and issuer %s is %s", name, i.State)
			}
		}
	})
}

// TestRenewedToWhatIsRevoked: an answer that the inventory above has as revoked is refused, and an issuer that has one is told of.
func TestRenewedToWhatIsRevoked(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		top, key := strangeRoot(t, "CN=Old root")
		sub := newKey(t)
		name := must[cert.Name](t)(cert.ParseName("CN=Old sub"))
		first := must[*x509.Certificate](t)(top.SignIssuer(root.Options{Subject: name, Validity: 2 * year}, spkiOf(t, sub), cert.Issuer{}, time.Now()))
		bad := again(t, first, top.Certificate, key, time.Now().Add(5*year))
		is := must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "oldsub", Certificate: first, Chain: []*x509.Certificate{top.Certificate}, Key: sub}))
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "oldroot", Certificate: top.Certificate, Records: []Record{
			{Serial: bad.SerialNumber, DER: bad.Raw, NotBefore: bad.NotBefore, NotAfter: bad.NotAfter, Revocation: &Revocation{Reason: crl.Superseded, RevokedAt: time.Now().Add(-time.Minute)}},
			{Serial: first.SerialNumber, DER: first.Raw, NotBefore: first.NotBefore, NotAfter: first.NotAfter},
		}}))
		_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{bad}})
		refusedAs(t, err, fault.Conflict)
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub"}) // its root came in after it, and is found
		if refusedAs(t, err, fault.Conflict); !strings.Contains(err.Error(), "offline") {
			t.Errorf("its root is here, and the refusal is %v", err)
		}
		good := again(t, first, top.Certificate, key, time.Now().Add(5*year))
		after := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{good}}))
		if after.Parent == is.Parent || a.count(`SELECT COUNT(*) FROM certificate WHERE serial = $1`, serialKey(good.SerialNumber)) != 1 {
			t.Error("the inventory of the root, which came in after the issuer, has no record of its new certificate")
		}
		a.sound()
		check(t, a.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE issuer SET certificate = $1 WHERE name = 'oldsub'`, bad.Raw)
			return err
		}))
		findings, _, err := a.Check(ctx, 0)
		if check(t, err); len(findings) != 1 || !strings.Contains(findings[0].Message, "is revoked in the inventory") {
			t.Errorf("the check says %v", findings)
		}
	})
}

// TestRenewalsBelowAndAbove: nobody is renewed, nor made, under an issuer that is on hold; and who is made while the one above is
// renewed, has the new certificate above him.
func TestRenewalsBelowAndAbove(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		one := 1
		_, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "root", Subject: "CN=Test root,O=Test"})
		check(t, err)
		a.issuer, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "issuing", Subject: "CN=Test issuing,O=Test", Parent: "root", Default: true, PathLen: &one, Validity: year})
		check(t, err)
		stale := must[*issuerSet](t)(a.issuersNow(ctx, time.Now())).find("issuing") // as a node knows it for a second more
		after := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 3 * year}))
		spki, now := spkiOf(t, newKey(t)), time.Now()
		spec := IssuerSpec{Name: "late", Subject: "CN=Late"}
		n := &newIssuer{request: "late", issuer: &Issuer{ID: db.NewID(), Name: "late", Pool: stale.Pool, State: IssuerActive, PublicKey: spki, CreatedAt: now,
			Parent: stale.ID, Chain: stale.path()}}
		check(t, n.certify(must[*x509.Certificate](t)(a.signUnder(ctx, stale, &spec, spki, now)), stale))
		must[*Issuer](t)(a.storeIssuer(ctx, admin(), "", "issuer.create", n, now))
		if late := must[*Issuer](t)(a.Issuer(ctx, "late")); !late.Chain[0].Equal(after.Certificate) {
			t.Error("who was made in the second after a renewal has the certificate before above him")
		}
		a.sound()
		check(t, a.db.Tx(ctx, func(tx *db.Tx) error { // as it could be before
			_, err := tx.Exec(ctx, `UPDATE issuer SET chain = $1 WHERE name = 'late'`, append(append([]byte{}, a.issuer.Certificate.Raw...), a.issuer.Chain[0].Raw...))
			return err
		}))
		if findings, _, err := a.Check(ctx, 0); err != nil || len(findings) != 1 || !strings.Contains(findings[0].Message, "the next renewal") {
			t.Errorf("%v, %v", findings, err)
		}
		third := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 4 * year}))
		if late := must[*Issuer](t)(a.Issuer(ctx, "late")); !late.Chain[0].Equal(third.Certificate) {
			t.Error("the next renewal does not mend it")
		}
		a.sound()
		held := Ref{Issuer: "root", Serial: third.Certificate.SerialNumber}
		must[*Certificate](t)(a.Hold(ctx, admin(), held, ""))
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "late", Validity: 2 * year})
		refusedAs(t, err, fault.Conflict)
		_, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "later", Subject: "CN=Later", Parent: "issuing"})
		refusedAs(t, err, fault.Conflict)
		must[*Certificate](t)(a.Release(ctx, admin(), held, ""))
		_, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "later", Subject: "CN=Later", Parent: "issuing"})
		check(t, err)
	})
}

// TestRenewalsAreFew: without a length, an issuer is renewed when a third of its life is over; with one, when a day is won.
func TestRenewalsAreFew(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx := context.Background()
	_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing"})
	if refusedAs(t, err, fault.Conflict); !strings.Contains(hintOf(err), "--validity") {
		t.Errorf("%v (%s)", err, hintOf(err))
	}
	must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12 * year}))
	_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12*year + time.Minute}) // typed again
	refusedAs(t, err, fault.Conflict)
	// One of whose ten years four are over.
	parent := must[*Issuer](t)(a.Issuer(ctx, "root"))
	signer := must[crypto.Signer](t)(a.keys.SignerFor(ctx, parent.KeyID, parent.Certificate))
	old := *a.issuer.Certificate
	old.NotBefore, old.NotAfter = time.Now().Add(-4*year).Truncate(time.Second), time.Now().Add(6*year).Truncate(time.Second)
	r := root.Root{Certificate: parent.Certificate, Signer: signer}
	next := must[*x509.Certificate](t)(r.RenewIssuer(&old, 0, cert.Issuer{}, time.Now()))
	if life := next.NotAfter.Sub(next.NotBefore); life != 10*year {
		t.Errorf("it lasts %s, and the one before %s", life, old.NotAfter.Sub(old.NotBefore))
	}
}

// TestWhatNamesTheCertificateAbove: certificates that name their issuer's by issuer and serial are counted at its renewal.
func TestWhatNamesTheCertificateAbove(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		top, key := strangeRoot(t, "CN=Old root")
		sub := newKey(t)
		name := must[cert.Name](t)(cert.ParseName("CN=Old sub"))
		first := must[*x509.Certificate](t)(top.SignIssuer(root.Options{Subject: name, Validity: 2 * year}, spkiOf(t, sub), cert.Issuer{}, time.Now()))
		var records []Record
		for n, bound := range []bool{true, false, true} {
			template := &x509.Certificate{SerialNumber: big.NewInt(int64(100 + n)), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
			if bound {
				template.ExtraExtensions = []pkix.Extension{{Id: cert.OIDAuthorityKeyID, Value: must[[]byte](t)(asn1.Marshal(struct {
					Serial *big.Int `asn1:"tag:2"`
				}{first.SerialNumber}))}}
			}
			der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, first, newKey(t).Public(), sub))
			c := must[*x509.Certificate](t)(x509.ParseCertificate(der))
			records = append(records, Record{Serial: c.SerialNumber, DER: c.Raw, NotBefore: c.NotBefore, NotAfter: c.NotAfter})
		}
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "sub", Certificate: first, Chain: []*x509.Certificate{top.Certificate}, Key: sub, Records: records}))
		next := again(t, first, top.Certificate, key, time.Now().Add(4*year))
		after := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Answer: []*x509.Certificate{next}}))
		if len(after.Warnings) != 1 || !strings.HasPrefix(after.Warnings[0], "2 certificates ") {
			t.Errorf("told: %q", after.Warnings)
		}
	})
}

// hintOf is what a refusal says to do.
func hintOf(err error) string {
	var refusal *fault.Error
	if errors.As(err, &refusal) {
		return refusal.Hint
	}
	return ""
}
