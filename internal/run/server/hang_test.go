package server

import (
	"context"
	"os"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
)

// TestTokenHangs has the library hang in the middle of a certificate's signature, and of a CRL's. The node answers everything else meanwhile:
// OCSP for what that issuer issued, another issuer's certificates and CRLs, lists. What waited is issued when the library comes back.
func TestTokenHangs(t *testing.T) {
	soft := pkitest.NewSoftHSM(t)
	library := pkitest.HostileLibrary(t)
	a := newAuthorityBehind(t, soft, library, "")
	r := start(t, a.dir)
	api, ctx := r.admin(), t.Context()
	before, err := issue(t, api, "before.test")
	if err != nil {
		t.Fatal(err)
	}
	path, leaf := a.path(api), a.file("leaf.pem", []byte(before.Certificate.PEM))
	a.crl(r, api, path, before.Certificate.Serial)
	a.ocsp(r, path, leaf)
	if _, err := api.CreateIssuer(ctx, client.CreateIssuerRequest{Name: "soft-root", Kind: client.IssuerRoot, Subject: "CN=Soft Root"}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.CreateIssuer(ctx, client.CreateIssuerRequest{Name: "soft", Kind: client.IssuerIntermediate, Parent: "soft-root", Subject: "CN=Soft"}); err != nil {
		t.Fatal(err)
	}

	hangs := func(work func(context.Context) error) (waits <-chan error) {
		t.Helper()
		signs := signsOf(t, library)
		if err := os.WriteFile(library+".mode", []byte("hang-sign"), 0o600); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- work(ctx) }()
		for deadline := time.Now().Add(time.Minute); signsOf(t, library) == signs; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the library is not asked to sign")
			}
		}
		return done
	}
	certificate := hangs(func(context.Context) error { _, err := issue(t, api, "waits.test"); return err })
	list := hangs(func(ctx context.Context) error {
		_, err := api.IssueCRL(ctx, "default", client.IssueCRLRequest{})
		return err
	})
	a.ocsp(r, path, leaf)
	request, err := tryCSR()
	if err != nil {
		t.Fatal(err)
	}
	order := client.IssueRequest{Issuer: "soft", Profile: "server", CSR: request, Names: &client.Names{SAN: []string{"dns:other.test"}}}
	if _, err := api.Issue(ctx, order); err != nil {
		t.Errorf("another issuer, meanwhile: %v", err)
	}
	if _, err := api.IssueCRL(ctx, "soft", client.IssueCRLRequest{}); err != nil {
		t.Errorf("another issuer's CRL, meanwhile: %v", err)
	}
	if _, err := api.Chain(ctx, "default"); err != nil {
		t.Errorf("the path of the issuer itself: %v", err)
	}
	if err := os.WriteFile(library+".mode", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, waits := range map[string]<-chan error{"certificate": certificate, "CRL": list} {
		if err := <-waits; err != nil {
			t.Errorf("the %s that waited for the library: %v", what, err)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if left := children(t); len(left) > 0 {
		t.Errorf("the node has ended, and its helpers %v have not", left)
	}
}

// signsOf is how often the library was asked to sign.
func signsOf(t *testing.T, library string) int {
	t.Helper()
	text, err := os.ReadFile(library + ".signs")
	if err != nil {
		t.Fatal(err)
	}
	return len(text)
}
