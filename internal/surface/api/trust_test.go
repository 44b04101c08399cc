package api_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
)

// walkTrust adds a foreign root with its CRL, as roles may; the agents of its pool are told of both, and fetch the CRL. Then the
// root is taken out.
func walkTrust(t *testing.T, a *authority) {
	ctx := t.Context()
	admin := a.as(access.Admin)
	key, _ := newCSR(t, "ignored")
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Foreign"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	root, err := x509.ParseCertificate(der)
	must(t, err)
	list, err := crl.Encode(&crl.Spec{
		Issuer: root, ThisUpdate: now.UTC().Truncate(time.Second), NextUpdate: now.Add(time.Hour).UTC().Truncate(time.Second), Number: big.NewInt(7),
	}, nil, key)
	must(t, err)
	in := client.AddTrustRequest{PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), Comment: "partner"}
	if _, err := a.as(access.Operator).AddTrust(ctx, "default", in); !client.IsKind(err, string(fault.Denied)) {
		t.Errorf("an operator adds: %v", err)
	}
	added, err := admin.AddTrust(ctx, "default", in)
	must(t, err)
	if len(added) != 1 || added[0].Kind != client.TrustAnchor || added[0].State != "trusted" || added[0].Comment != "partner" {
		t.Fatalf("%+v", added)
	}
	if _, err := admin.AddTrust(ctx, "default", in); !client.IsKind(err, string(fault.Conflict)) {
		t.Errorf("added twice: %v", err)
	}
	shown, err := admin.AddTrustCRL(ctx, "default", added[0].Fingerprint, client.UploadCRLRequest{CRL: string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}))})
	must(t, err)
	if shown.CRLNumber != "7" {
		t.Errorf("%+v", shown)
	}
	agent := a.agent(a.join(client.AddHostRequest{Name: "trusting.test"}))
	desired, err := agent.Desired(ctx, "", 0)
	must(t, err)
	i := slices.IndexFunc(desired.Trust.Issuers, func(one client.TrustIssuer) bool { return one.Entry == added[0].ID })
	if i < 0 || desired.Trust.Issuers[i].CRLNumber != "7" {
		t.Fatalf("told of %+v", desired.Trust.Issuers)
	}
	last := desired.Trust.Issuers[i]
	var got bytes.Buffer
	must(t, agent.TrustCRL(ctx, &got, last.Entry))
	if !bytes.Equal(got.Bytes(), list) {
		t.Error("the CRL that is served is another")
	}
	if err := agent.TrustCRL(ctx, &got, "nobody"); !client.IsKind(err, string(fault.NotFound)) {
		t.Errorf("a CRL of nobody: %v", err)
	}
	if err := admin.TrustCRL(ctx, &got, last.Entry); !client.IsKind(err, string(fault.Denied)) {
		t.Errorf("an administrator fetches as an agent: %v", err)
	}
	n := 0
	for e, err := range a.as(access.Auditor).Trust(ctx, "default", client.TrustGeneral) {
		must(t, err)
		if n++; e.Pool != "default" {
			t.Errorf("%+v", e)
		}
	}
	if n < 3 {
		t.Errorf("%d entries are listed", n)
	}
	must(t, admin.DropTrust(ctx, "default", added[0].ID, client.DropTrustRequest{}))
	must(t, a.as(access.Operator).RemoveHost(ctx, "trusting.test", ""))
	if err := admin.DropTrust(ctx, "default", added[0].ID, client.DropTrustRequest{}); !client.IsKind(err, string(fault.Conflict)) {
		t.Errorf("dropped twice: %v", err)
	}
	status, _, body := a.request("GET", "/api/v1/pools/default/trust?limit=1", a.people[access.Admin].token, "")
	if status != 200 || !bytes.Contains(body, []byte(`"next"`)) {
		t.Errorf("a page of one: %d %s", status, body)
	}
	for _, path := range []string{"/pools/default/trust", "/pools/default/trust/x/drop", "/pools/default/trust/x/crl"} {
		if status, _, _ := a.request("POST", "/api/v1"+path, a.people[access.Auditor].token, "{}"); status != 403 {
			t.Errorf("an auditor's POST %s: %d", path, status)
		}
	}
}
