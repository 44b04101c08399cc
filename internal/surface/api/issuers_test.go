package api_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/store/access"
)

func walkIssuers(t *testing.T, a *authority) {
	admin, ctx := a.as(access.Admin), t.Context()
	made, err := admin.CreateIssuer(ctx, client.CreateIssuerRequest{
		Name: "lab-root", Kind: client.IssuerRoot, Pool: "lab", Subject: "CN=lab root,O=Test", Algorithm: "ecdsa-p384", Validity: "3650d",
	})
	must(t, err)
	if !made.Root || !made.KeyOnline || !strings.Contains(strings.ToLower(made.Algorithm), "384") {
		t.Fatalf("made %+v", made)
	}
	below, err := admin.CreateIssuer(ctx, client.CreateIssuerRequest{
		Name: "lab", Kind: client.IssuerIntermediate, Parent: "lab-root", Pool: "lab", Subject: "CN=lab", NameConstraints: []string{"+dns:lab.test"}, Validity: "365d",
	})
	must(t, err)
	if def, err := admin.SetDefaultIssuer(ctx, "lab"); err != nil || !def.Default {
		t.Fatalf("%+v, %v", def, err)
	}
	if mode, err := admin.SetCRLMode(ctx, "lab", client.CRLMode{Validity: "48h", Refresh: "12h", Delta: true}); err != nil || !mode.CRLMode.Delta {
		t.Fatalf("%+v, %v", mode, err)
	}
	walkRenewal(t, a, below)
	chain, err := admin.Chain(ctx, "lab")
	must(t, err)
	if n := strings.Count(string(chain), "BEGIN CERTIFICATE"); n != 2 {
		t.Fatalf("the chain has %d certificates", n)
	}
	if _, err := a.as(access.Officer).CreateIssuer(ctx, client.CreateIssuerRequest{Name: "x", Kind: client.IssuerRoot}); !client.IsKind(err, "denied") {
		t.Fatalf("an officer made an issuer: %v", err)
	}
	outside, err := admin.CreateIssuer(ctx, client.CreateIssuerRequest{Name: "outside", Kind: client.IssuerExternal, Pool: "lab2", Subject: "CN=outside"})
	must(t, err)
	status, _, csr := a.request("GET", client.Prefix+"/issuers/outside/csr", a.people[access.Admin].token, "")
	if status != 200 || string(csr) != outside.CSR || outside.State != "pending" {
		t.Fatalf("%d %s, %+v", status, csr, outside)
	}
	above, signed := signOutside(t, outside.CSR)
	imported, err := admin.ImportIssuerCertificate(ctx, "outside", client.IssuerCertificateRequest{Certificate: signed, Chain: above})
	must(t, err)
	if imported.State != "active" {
		t.Fatalf("imported %+v", imported)
	}
	retired, err := admin.RetireIssuer(ctx, "outside")
	must(t, err)
	all, err := client.Collect(admin.Issuers(ctx))
	must(t, err)
	if retired.State != "retired" || len(all) < 7 || below.Parent != "lab-root" {
		t.Fatalf("%d issuers, retired %+v", len(all), retired)
	}
	if shown, err := admin.Issuer(ctx, "lab-root"); err != nil || shown.Fingerprint != made.Fingerprint {
		t.Fatalf("%+v, %v", shown, err)
	}
}

// walkRenewal renews an issuer, and asks for a request with which a root elsewhere would.
func walkRenewal(t *testing.T, a *authority, before *client.Issuer) {
	t.Helper()
	admin, ctx := a.as(access.Admin), t.Context()
	if _, err := a.as(access.Officer).RenewIssuer(ctx, before.Name, client.RenewIssuerRequest{}); !client.IsKind(err, "denied") {
		t.Fatalf("an officer renewed an issuer: %v", err)
	}
	if _, err := admin.RenewIssuer(ctx, before.Name, client.RenewIssuerRequest{Chain: before.PEM}); !client.IsKind(err, "invalid") {
		t.Fatalf("a chain without its certificate: %v", err)
	}
	if _, err := admin.RenewIssuer(ctx, before.Name, client.RenewIssuerRequest{Certificate: before.CSR + "nonsense"}); !client.IsKind(err, "invalid") {
		t.Fatalf("what is no certificate: %v", err)
	}
	csr, err := admin.RenewalRequest(ctx, before.Name)
	must(t, err)
	request, err := cert.ParseCSR(decode(t, string(csr)))
	must(t, err)
	if request.Subject.String() != before.Subject {
		t.Fatalf("a request for %s", request.Subject)
	}
	once := client.WithIdempotencyKey(ctx, "renew-lab")
	for range 2 {
		renewed, err := admin.RenewIssuer(once, before.Name, client.RenewIssuerRequest{Validity: "3y"})
		must(t, err)
		again, err := admin.Issuer(ctx, before.Name)
		must(t, err)
		if renewed.ID != before.ID || renewed.Serial == before.Serial || renewed.KeyID != before.KeyID || !renewed.NotAfter.After(before.NotAfter) ||
			again.Serial != renewed.Serial {
			t.Fatalf("from %+v to %+v", before, renewed)
		}
	}
}

// signOutside signs an issuer's request by a root that the authority does not have, and returns both certificates.
func signOutside(t *testing.T, csr string) (above, signed string) {
	t.Helper()
	r := newRoot(t, "outside root")
	der := decode(t, csr)
	request, err := cert.ParseCSR(der)
	must(t, err)
	subject := request.Subject
	c, err := r.SignIssuer(root.Options{Subject: subject}, request.SPKI, cert.Issuer{}, time.Now())
	must(t, err)
	return certPEM(r.Certificate), certPEM(c)
}

func newRoot(t *testing.T, name string) *root.Root {
	t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(t, err)
	r, err := root.New(root.Options{Subject: cert.CommonName(name), PathLen: 1}, key, time.Now())
	must(t, err)
	return r
}

func walkCRLs(t *testing.T, a *authority) {
	admin, officer, ctx := a.as(access.Admin), a.as(access.Officer), t.Context()
	first, err := officer.IssueCRL(ctx, "default", client.IssueCRLRequest{})
	must(t, err)
	second, err := officer.IssueCRL(ctx, "default", client.IssueCRLRequest{Template: "crl_next_update = 30\n"})
	must(t, err)
	if second.NextUpdate.Sub(second.ThisUpdate) != 30*24*time.Hour || first.Scope != "complete" {
		t.Fatalf("first %+v, second %+v", first, second)
	}
	lists, err := client.Collect(admin.CRLs(ctx, "default", ""))
	must(t, err)
	if len(lists) < 2 || lists[0].Number == lists[1].Number {
		t.Fatalf("lists %+v", lists)
	}
	current, err := admin.CRL(ctx, "default", "current", "")
	must(t, err)
	var der, text bytes.Buffer
	must(t, admin.DownloadCRL(ctx, &der, "default", current.Number, "", "der"))
	must(t, admin.DownloadCRL(ctx, &text, "default", current.Number, "", "pem"))
	list, err := x509.ParseRevocationList(der.Bytes())
	must(t, err)
	if list.Number.String() != current.Number || int64(der.Len()) != current.Size || !bytes.Equal(decode(t, text.String()), der.Bytes()) {
		t.Fatalf("downloaded %v of %d octets, shown %+v", list.Number, der.Len(), current)
	}
	if _, err := admin.CRL(ctx, "default", "0x10", ""); !client.IsKind(err, "invalid") {
		t.Fatalf("a number in hexadecimal: %v", err)
	}
	walkLongCRL(t, a)
}

// walkLongCRL has doctor warn of an issuer whose list is as long as it may be, and of none before.
func walkLongCRL(t *testing.T, a *authority) {
	admin, officer, ctx := a.as(access.Admin), a.as(access.Officer), t.Context()
	warned := func() bool {
		found, err := client.Collect(admin.Doctor(ctx))
		must(t, err)
		return slices.ContainsFunc(found, func(f client.Finding) bool {
			return f.Check == "issuer.crl" && f.Object == "default" && f.Level == "warning" && strings.Contains(f.Message, "crl.whole_up_to")
		})
	}
	upTo := func(n string) {
		set, err := admin.Settings(ctx)
		must(t, err)
		_, err = admin.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{{Path: "crl.whole_up_to", Value: n}}}, set.ETag)
		must(t, err)
	}
	issued, err := a.as(access.Operator).Issue(ctx, client.IssueRequest{Profile: "server", CSR: csrPEM(t, "", "long.test")})
	must(t, err)
	_, err = officer.Revoke(ctx, issued.Certificate.Issuer, issued.Certificate.Serial, client.RevokeRequest{Reason: "superseded"})
	must(t, err)
	_, err = officer.IssueCRL(ctx, "default", client.IssueCRLRequest{})
	must(t, err)
	before := warned()
	upTo("1")
	if after := warned(); before || !after {
		t.Errorf("a list of one entry: warned of %t where ten thousand are signed at once, %t where one is", before, after)
	}
	upTo("10000")
}

func walkPools(t *testing.T, a *authority) {
	admin, officer, ctx := a.as(access.Admin), a.as(access.Officer), t.Context()
	added, err := admin.AddPool(ctx, client.AddPoolRequest{Name: "racks", Organization: "Test"})
	must(t, err)
	if added.State != "pending" || added.Issuer.CSR == "" {
		t.Fatalf("added %+v", added)
	}
	r := newRoot(t, "racks root")
	request, err := cert.ParseCSR(decode(t, added.Issuer.CSR))
	must(t, err)
	signed, err := r.SignIssuer(root.Options{Subject: request.Subject}, request.SPKI, cert.Issuer{}, time.Now())
	must(t, err)
	list := func() string {
		der, err := r.SignCRL(big.NewInt(time.Now().UnixMilli()), nil, time.Now(), 400*24*time.Hour)
		must(t, err)
		return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	}
	done, err := admin.CompletePool(ctx, "racks", client.CompletePoolRequest{Root: certPEM(r.Certificate), Issuer: certPEM(signed), CRL: list()})
	must(t, err)
	if done.State != "active" || done.Root == nil || done.Root.KeyOnline {
		t.Fatalf("completed %+v", done)
	}
	issued, err := a.as(access.Operator).Issue(ctx, client.IssueRequest{Pool: "racks", Profile: "peer", CSR: csrPEM(t, "", "r1.test")})
	must(t, err)
	if issued.Certificate.Issuer != "racks" {
		t.Fatalf("issued by %s", issued.Certificate.Issuer)
	}
	if _, err := officer.IssueCRL(ctx, "racks-root", client.IssueCRLRequest{}); !client.IsKind(err, "conflict") {
		t.Fatalf("a CRL was signed with a key that is not here: %v", err)
	}
	draft, err := officer.DraftCRL(ctx, "racks-root")
	must(t, err)
	if draft.Number == "" || len(draft.Entries) != 0 {
		t.Fatalf("draft %+v", draft)
	}
	uploaded, err := officer.UploadCRL(ctx, "racks-root", client.UploadCRLRequest{CRL: list()})
	must(t, err)
	pools, err := client.Collect(admin.Pools(ctx))
	must(t, err)
	if shown, err := admin.Pool(ctx, "racks"); err != nil || shown.Name != "racks" || len(pools) < 3 || uploaded.Issuer != "racks-root" {
		t.Fatalf("%+v, %v; %d pools, uploaded %+v", shown, err, len(pools), uploaded)
	}
}
