package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestIssuerUnderOutsideRoot makes a request, has an offline root answer it, and imports the answer.
func TestIssuerUnderOutsideRoot(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		now := time.Now()
		pending, key, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "sub", Subject: "CN=Sub,O=Test", Outside: true, IdempotencyKey: "i1"})
		check(t, err)
		if pending.State != IssuerPending || key != nil || len(pending.CSR) == 0 || pending.KeyID == "" {
			t.Fatalf("pending: %+v", pending)
		}
		again, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "sub", Subject: "CN=Sub,O=Test", Outside: true, IdempotencyKey: "i1"})
		if err != nil || again.ID != pending.ID {
			t.Errorf("repeated: %+v, %v", again, err)
		}
		_, err = a.Issue(ctx, admin(), Order{Issuer: "sub", Profile: "server", CSR: csr(t, newKey(t), "dns:a.example.com")})
		refusedAs(t, err, fault.Conflict)
		rootKey := newKey(t)
		above := must[*root.Root](t)(root.New(root.Options{Subject: cert.CommonName("Outside"), PathLen: 1}, rootKey, now))
		request := must[*cert.CSR](t)(cert.ParseCSR(pending.CSR))
		answer := must[*x509.Certificate](t)(above.SignIssuer(root.Options{Subject: request.Subject, PathLen: 0}, request.SPKI, cert.Issuer{}, now))

		other := must[*x509.Certificate](t)(above.SignIssuer(root.Options{Subject: cert.CommonName("Other")}, request.SPKI, cert.Issuer{}, now))
		notOurs := must[*x509.Certificate](t)(above.SignIssuer(root.Options{Subject: request.Subject}, spkiOf(t, newKey(t)), cert.Issuer{}, now))
		for what, bundle := range map[string][]*x509.Certificate{
			"another subject": {other, above.Certificate}, "another key": {notOurs, above.Certificate}, "no root": {answer}, "nothing": nil,
		} {
			if _, err := a.ImportAnswer(ctx, admin(), "sub", bundle, once.Call{}); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v", what, err)
			}
		}
		got := must[*Issuer](t)(a.ImportAnswer(ctx, admin(), "sub", []*x509.Certificate{above.Certificate, answer}, once.Call{}))
		if got.State != IssuerActive || len(got.Chain) != 1 || got.Parent != "" {
			t.Errorf("answered: %+v", got)
		}
		if again := must[*Issuer](t)(a.ImportAnswer(ctx, admin(), "sub", []*x509.Certificate{above.Certificate, answer}, once.Call{})); again.State != IssuerActive {
			t.Errorf("repeated: %+v", again)
		}
		later := must[*x509.Certificate](t)(above.SignIssuer(root.Options{Subject: request.Subject, PathLen: 0}, request.SPKI, cert.Issuer{}, now))
		_, err = a.ImportAnswer(ctx, admin(), "sub", []*x509.Certificate{above.Certificate, later}, once.Call{})
		refusedAs(t, err, fault.Conflict)
		must[*Issuer](t)(a.SetDefault(ctx, admin(), "sub", once.Call{}))
		c := a.server("dns:a.example.com")
		leaf, chain, roots := a.path(c)
		run(t, "openssl", "verify", "-x509_strict", "-CAfile", roots, "-untrusted", chain, leaf)
	})
}

// TestIssuers makes several in one authority: each pool has its default, equal subjects with different keys are refused,
// and a retired issuer issues nothing and goes on revoking.
func TestIssuers(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		_, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "next", Subject: "CN=Test issuing,O=Test", Parent: "root"})
		refusedAs(t, err, fault.Conflict)
		if !strings.Contains(err.Error(), "issuing") {
			t.Errorf("the refusal names no issuer: %v", err)
		}
		_, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "next", Subject: "CN=test  ISSUING,O=Test", Parent: "root"})
		refusedAs(t, err, fault.Conflict)
		_, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "issuing", Subject: "CN=Another", Parent: "root"})
		refusedAs(t, err, fault.Conflict)
		for _, spec := range []IssuerSpec{
			{Name: "Bad Name", Subject: "CN=x"}, {Name: "", Subject: "CN=x"}, {Name: "x"}, {Name: "x", Subject: "CN=x", CRL: CRLMode{Partitions: 1}},
			{Name: "x", Subject: "CN=x", CRL: CRLMode{Partitions: 4, Delta: true}}, {Name: "x", Subject: "CN=x", Outside: true, Parent: "root"},
			{Name: "x", Subject: "CN=Test root,O=Test", Parent: "root"}, {Name: "x", Template: "cn = x\n"},
		} {
			_, _, err := a.CreateIssuer(ctx, admin(), spec)
			refusedAs(t, err, fault.Invalid)
		}
		_, _, err = a.CreateIssuer(ctx, officer(), IssuerSpec{Name: "x", Subject: "CN=x"})
		refusedAs(t, err, fault.Denied)
		_, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "db-root", Subject: "CN=DB root", Pool: "db", PathLen: new(1)})
		check(t, err)
		second, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "second", Subject: "CN=Second", Parent: "db-root", Default: true,
			CRL: CRLMode{Partitions: 4}})
		check(t, err)
		c := must[*Certificate](t)(a.Issue(ctx, admin(), Order{Pool: "db", Profile: "server", CSR: csr(t, newKey(t), "dns:db.example.com")}))
		parsed := must[*x509.Certificate](t)(c.Parsed())
		if want := second.URLs(publicURL).Partition(crl.Partition(c.Serial, 4)); c.Issuer.Name != "second" || parsed.CRLDistributionPoints[0] != want {
			t.Errorf("issued by %s with %v, want %s", c.Issuer.Name, parsed.CRLDistributionPoints, want)
		}
		_, err = a.SetCRLMode(ctx, admin(), "second", CRLMode{Partitions: 8}, once.Call{})
		refusedAs(t, err, fault.Conflict)
		must[*Issuer](t)(a.SetCRLMode(ctx, admin(), "second", CRLMode{Partitions: 4, Validity: 48 * time.Hour}, once.Call{}))

		third, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "third", Subject: "CN=Third", Parent: "root", Default: true})
		check(t, err)
		old := must[*Issuer](t)(a.Issuer(ctx, "issuing"))
		if old.Default || !third.Default {
			t.Error("there are two defaults, or none")
		}
		must[*Issuer](t)(a.Retire(ctx, admin(), "second", once.Call{}))
		_, err = a.Issue(ctx, admin(), Order{Issuer: "second", Profile: "server", CSR: csr(t, newKey(t), "dns:db.example.com")})
		refusedAs(t, err, fault.Conflict)
		_, err = a.Issue(ctx, admin(), Order{Pool: "db", Profile: "server", CSR: csr(t, newKey(t), "dns:db.example.com")})
		refusedAs(t, err, fault.NotFound)
		if c := must[*Certificate](t)(a.Revoke(ctx, admin(), Ref{Serial: c.Serial}, RevokeOrder{})); c.State != Revoked {
			t.Errorf("it is %s", c.State)
		}
		if _, err := a.IssueResponder(ctx, must[*Issuer](t)(a.Issuer(ctx, "second")), spkiOf(t, newKey(t)), time.Now().Add(time.Hour), nil); err != nil {
			t.Errorf("a retired issuer's responder: %v", err)
		}
		// An issuer's own certificate is in its parent's inventory, and so can be revoked.
		revoked := must[*Certificate](t)(a.Revoke(ctx, admin(), Ref{Issuer: "root", Serial: third.Certificate.SerialNumber}, RevokeOrder{Reason: crl.CACompromise}))
		if revoked.Profile != issuerProfile || revoked.State != Revoked {
			t.Errorf("an issuer revoked: %+v", revoked)
		}
		if third = must[*Issuer](t)(a.Issuer(ctx, "third")); third.State != IssuerRetired || third.Default {
			t.Errorf("a revoked issuer is %s", third.State)
		}
		_, err = a.Revoke(ctx, admin(), Ref{Issuer: "root", Serial: a.root.Certificate.SerialNumber}, RevokeOrder{})
		refusedAs(t, err, fault.Conflict)
		_, err = a.Renew(ctx, admin(), Ref{Issuer: "root", Serial: old.Certificate.SerialNumber}, RenewOrder{})
		refusedAs(t, err, fault.Conflict)
	})
}

// TestIssuerTemplate makes a root and an issuer from certtool templates.
func TestIssuerTemplate(t *testing.T) {
	a := newStores(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx := context.Background()
	rootIssuer, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "root", Template: "cn = Template root\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 3650\n"})
	check(t, err)
	if rootIssuer.Certificate.Subject.CommonName != "Template root" || !rootIssuer.Root() {
		t.Errorf("root %v", rootIssuer.Certificate.Subject)
	}
	_, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "late", Parent: "root", Template: "cn = Late\nca\ncert_signing_key\nexpiration_days = -1\n"})
	refusedAs(t, err, fault.Invalid)
	sub, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "sub", Parent: "root", Default: true,
		Template: "cn = Template sub\nca\ncert_signing_key\ncrl_signing_key\npath_len = 0\nexpiration_days = 365\n"})
	check(t, err)
	if err := sub.Certificate.CheckSignatureFrom(rootIssuer.Certificate); err != nil {
		t.Error(err)
	}
	leaf, chain, roots := a.path(a.server("dns:a.example.com"))
	run(t, "openssl", "verify", "-CAfile", roots, "-untrusted", chain, leaf)
}

// TestImportOfAnRSASSAPSSIssuer: a key that is bound to RSASSA-PSS is refused with words, since no CRL could be signed with it; a CA
// whose certificate is signed so, and whose key is any RSA key, goes on, and OpenSSL reads its CRL.
func TestImportOfAnRSASSAPSSIssuer(t *testing.T) {
	dir := t.TempDir()
	made := func(name string, args ...string) *x509.Certificate {
		file := filepath.Join(dir, name)
		run(t, "openssl", append(append([]string{"req", "-x509"}, args...), "-nodes", "-keyout", file+".key", "-out", file+".pem", "-days", "3650",
			"-subj", "/CN="+name, "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")...)
		block, _ := pem.Decode(must[[]byte](t)(os.ReadFile(file + ".pem")))
		return must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes))
	}
	bound := made("bound", "-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048")
	free := made("free", "-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss", "-sha256")
	key := must[crypto.Signer](t)(keyfile.ParsePrivateKey(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "free.key"))), nil))
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		_, err := a.ImportIssuer(t.Context(), admin(), ImportSpec{Name: "bound", Certificate: bound})
		if refusedAs(t, err, fault.Invalid); !strings.Contains(err.Error(), "bound to RSASSA-PSS") {
			t.Errorf("refused as %v", err)
		}
		imported := must[*Issuer](t)(a.ImportIssuer(t.Context(), admin(), ImportSpec{Name: "free", Certificate: free, Key: key}))
		signer := must[crypto.Signer](t)(a.keys.Signer(t.Context(), imported.KeyID))
		list := must[[]byte](t)(crl.Encode(&crl.Spec{
			Issuer: free, Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		}, nil, signer))
		file := filepath.Join(t.TempDir(), "list.crl")
		check(t, os.WriteFile(file, list, 0o600))
		if out := run(t, "openssl", "crl", "-inform", "DER", "-in", file, "-noout", "-verify", "-CAfile", filepath.Join(dir, "free.pem")); !strings.Contains(out, "verify OK") {
			t.Errorf("openssl: %s", out)
		}
	})
}

// TestImportIssuer takes over a CA that OpenSSL made, with what it issued and revoked.
func TestImportIssuer(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		dir := t.TempDir()
		caKey, caCert := filepath.Join(dir, "ca.key"), filepath.Join(dir, "ca.pem")
		run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", caKey, "-out", caCert,
			"-days", "3650", "-subj", "/O=Old/CN=Old CA", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
		leafCert := filepath.Join(dir, "leaf.pem")
		run(t, "sh", "-c", `cd "$1" && openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -subj /CN=old.example.com -out leaf.csr &&
			openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -set_serial 1 -days 30 -out leaf.pem`, "sh", dir)
		read := func(file string) *x509.Certificate {
			block, _ := pem.Decode(must[[]byte](t)(os.ReadFile(file)))
			return must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes))
		}
		key, err := keyfile.ParsePrivateKey(must[[]byte](t)(os.ReadFile(caKey)), nil)
		check(t, err)
		certificate, leaf := read(caCert), read(leafCert)
		spec := ImportSpec{IdempotencyKey: "import", Name: "old", Default: true, Certificate: certificate, Key: key, Records: []Record{
			{Serial: big.NewInt(1), DER: leaf.Raw},
			{Serial: big.NewInt(2), Subject: "CN=gone.example.com", NotAfter: time.Now().Add(24 * time.Hour),
				Revocation: &Revocation{Reason: crl.Superseded, RevokedAt: time.Now().Add(-time.Hour)}},
			{Serial: new(big.Int), Subject: "CN=zero.example.com", Revocation: &Revocation{Reason: crl.CertificateHold, RevokedAt: time.Now().Add(-time.Hour)}},
		}}
		bad := spec
		bad.Records = append(bad.Records, Record{Serial: big.NewInt(2)})
		_, err = a.ImportIssuer(ctx, admin(), bad)
		refusedAs(t, err, fault.Invalid)
		bad = spec
		bad.Key = newKey(t)
		if _, err = a.ImportIssuer(ctx, admin(), bad); err == nil {
			t.Error("imported with another key")
		}
		imported := must[*Issuer](t)(a.ImportIssuer(ctx, admin(), spec))
		if again := must[*Issuer](t)(a.ImportIssuer(ctx, admin(), spec)); again.ID != imported.ID {
			t.Error("imported twice")
		}
		for serial, state := range map[int64]State{1: Valid, 2: Revoked, 0: Held} {
			if c := must[*Certificate](t)(a.Find(ctx, admin(), Ref{Serial: big.NewInt(serial)})); c.State != state || c.Profile != importedProfile {
				t.Errorf("serial %d: %+v", serial, c)
			}
		}
		check(t, d.Read(ctx, func(tx *db.Tx) error {
			s, err := StatusOf(ctx, tx, imported, new(big.Int))
			if err == nil && (!s.Issued || s.State != Held) {
				t.Errorf("status of serial 0: %+v", s)
			}
			return err
		}))
		renewed := must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: big.NewInt(1)}, RenewOrder{}))
		parsed := must[*x509.Certificate](t)(renewed.Parsed())
		check(t, parsed.CheckSignatureFrom(certificate))
		if string(parsed.RawSubjectPublicKeyInfo) != string(leaf.RawSubjectPublicKeyInfo) || parsed.Subject.CommonName != "old.example.com" {
			t.Errorf("renewed %v", parsed.Subject)
		}
		_, err = a.Renew(ctx, admin(), Ref{Serial: big.NewInt(2)}, RenewOrder{})
		refusedAs(t, err, fault.Conflict)
		must[*Certificate](t)(a.Release(ctx, officer(), Ref{Serial: new(big.Int)}, ""))
		c := a.server("dns:new.example.com")
		if c.Issuer.Name != "old" {
			t.Errorf("issued by %s", c.Issuer.Name)
		}
	})
}

// TestTemplate issues from certtool templates.
func TestTemplate(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx := context.Background()
	spki := spkiOf(t, newKey(t))
	const seed = "organization = libvirt.org\ncn = host1\ntls_www_server\nencryption_key\nsigning_key\n"
	c := must[*Certificate](t)(a.Issue(ctx, admin(), Order{Template: seed, PublicKey: spki}))
	parsed := must[*x509.Certificate](t)(c.Parsed())
	if days := parsed.NotAfter.Sub(parsed.NotBefore).Hours() / 24; days != 365 || c.Profile != templateProfile {
		t.Errorf("valid for %v days, of profile %s", days, c.Profile)
	}
	if c.Subject != "CN=host1,O=libvirt.org" {
		t.Errorf("subject %s", c.Subject)
	}
	leaf, chain, roots := a.path(c)
	run(t, "openssl", "verify", "-CAfile", roots, "-untrusted", chain, leaf)
	if found, _, err := a.Search(ctx, admin(), Filter{Name: "host1"}, "", 10); err != nil || len(found) != 1 {
		t.Errorf("found %d by its common name, %v", len(found), err)
	}
	renewed := must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: c.Serial}, RenewOrder{}))
	again := must[*x509.Certificate](t)(renewed.Parsed())
	if len(again.Extensions) != len(parsed.Extensions) || again.Subject.String() != parsed.Subject.String() {
		t.Errorf("the renewal has extensions %v, the first %v", again.Extensions, parsed.Extensions)
	}
	h := host("h1.example.com")
	hostRequest := func(other bool) []byte {
		name := "h1.example.com"
		if other {
			name = "h2.example.com"
		}
		return must[[]byte](t)(cert.CreateCSR(&cert.CSRTemplate{Subject: cert.CommonName(name)}, newKey(t)))
	}
	for what, c := range map[string]struct {
		by    access.Principal
		order Order
		kind  fault.Kind
	}{
		"a CA":                         {admin(), Order{Template: "cn = x\nca\ncert_signing_key\n"}, fault.Denied},
		"a CA, compat":                 {admin(), Order{Template: "cn = x\nca = false\n", Compat: true}, fault.Denied},
		"a CA by a raw extension":      {admin(), Order{Template: "cn = x\nadd_critical_extension = \"2.5.29.19 0x30030101ff\"\n", Compat: true}, ""},
		"never":                        {admin(), Order{Template: "cn = x\nexpiration_days = -1\n"}, fault.Invalid},
		"never, compat":                {admin(), Order{Template: "cn = x\nexpiration_days = -1\n", Compat: true}, fault.Invalid},
		"beyond the issuer":            {admin(), Order{Template: "cn = x\nexpiration_days = 10000\n"}, fault.Invalid},
		"beyond the issuer, compat":    {admin(), Order{Template: "cn = x\nexpiration_days = 10000\n", Compat: true}, fault.Invalid},
		"a trap":                       {admin(), Order{Template: "CN = x\n"}, fault.Invalid},
		"names beside":                 {admin(), Order{Template: seed, Names: []string{"dns:a"}}, fault.Invalid},
		"a host without a profile":     {h, Order{Template: "cn = h1.example.com\n"}, fault.Denied},
		"a host's other name":          {h, Order{Template: "cn = h2.example.com\ntls_www_server\nsigning_key\nexpiration_days = 30\n", Profile: "server"}, fault.Denied},
		"an extension, in the profile": {h, Order{Template: "cn = h1.example.com\nexpiration_days = 30\nadd_extension = \"1.2.3.4 0x0500\"\n", Profile: "server"}, fault.Denied},
		"an operator's, no profile":    {operator("bob", access.Operator), Order{Template: seed}, fault.Denied},
		"a responder":                  {officer(), Order{Template: "cn = x\nocsp_signing_key\nsigning_key\n"}, fault.Denied},
		"a responder, in the profile":  {admin(), Order{Template: "cn = x.example.com\nocsp_signing_key\nsigning_key\nexpiration_days = 30\n", Profile: "server"}, fault.Denied},
		"beyond the profile's end":     {h, Order{Template: "cn = h1.example.com\ntls_www_server\nsigning_key\nexpiration_days = 365\n", Profile: "server"}, fault.Invalid},
	} {
		if c.order.PublicKey = spki; c.by.ID == h.ID {
			c.order.PublicKey, c.order.CSR = nil, hostRequest(strings.Contains(c.order.Template, "h2.example.com"))
		}
		got, err := a.Issue(ctx, c.by, c.order)
		if c.kind == "" {
			if err == nil {
				if parsed := must[*x509.Certificate](t)(got.Parsed()); parsed.IsCA {
					t.Errorf("%s: made a CA", what)
				}
			}
			continue
		}
		if !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, want %s", what, err, c.kind)
		}
	}
	own := must[*Certificate](t)(a.Issue(ctx, h, Order{
		Template: "cn = h1.example.com\ndns_name = h1.example.com\ntls_www_server\nsigning_key\nexpiration_days = 30\n", Profile: "server", CSR: hostRequest(false)}))
	if own.Profile != "server" {
		t.Errorf("profile %s", own.Profile)
	}
}

// TestRootsConstraintsHoldBelowAnIssuerWithoutThem issues under an issuer whose root alone is constrained: openssl would say
// "permitted subtree violation" of what was issued beyond it.
func TestRootsConstraintsHoldBelowAnIssuerWithoutThem(t *testing.T) {
	a := newStores(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx := context.Background()
	_, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "root", Subject: "CN=Root", Constraints: []string{"+dns:example.com"}})
	check(t, err)
	_, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "issuing", Subject: "CN=Issuing", Parent: "root", Default: true})
	check(t, err)
	for range 2 { // as read with the issuers, and again
		_, err = a.Issue(ctx, admin(), Order{Profile: "server", CSR: csr(t, newKey(t), "dns:a.evil.com")})
		refusedAs(t, err, fault.Invalid)
		if !strings.Contains(err.Error(), `by "CN=Root", above the issuer`) {
			t.Errorf("the refusal does not say whose constraints: %v", err)
		}
		_, err = a.Issue(ctx, admin(), Order{Template: "cn = a.evil.com\ndns_name = a.evil.com\n", PublicKey: spkiOf(t, newKey(t))})
		refusedAs(t, err, fault.Invalid)
	}
	leaf, chain, roots := a.path(a.server("dns:a.example.com"))
	run(t, "openssl", "verify", "-CAfile", roots, "-untrusted", chain, leaf)
}
