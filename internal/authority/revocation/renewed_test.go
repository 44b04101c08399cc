package revocation

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestRenewedIssuerGoesOn: an issuer that is renewed with its key goes on with its CRLs, whose numbers grow, and its OCSP answers,
// and either of its certificates verifies them, whatever was issued when.
func TestRenewedIssuerGoesOn(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		top := o.issuer
		var err error
		o.issuer, _, err = o.ca.CreateIssuer(t.Context(), o.by, ca.IssuerSpec{Name: "two", Subject: "CN=Issuer two,O=Fleet", Parent: "one", Validity: 24 * time.Hour})
		must(t, err)
		before, bad := o.issue("before.example"), o.issue("bad.example")
		o.run()
		o.revoke(bad, crl.Superseded)
		first := o.list(Complete, func(l *crl.List) bool { return l.Count == 1 })
		o.respond(before, xocsp.Good)
		old := o.issuer
		renewed, err := o.ca.RenewIssuer(t.Context(), o.by, ca.RenewSpec{Issuer: "two", Validity: 365 * 24 * time.Hour})
		must(t, err)
		after := o.issue("after.example")
		if !after.NotAfter.After(old.Certificate.NotAfter) {
			t.Errorf("what is issued since ends on %s", after.NotAfter)
		}
		o.revoke(after, crl.CessationOfOperation)
		second := o.list(Complete, func(l *crl.List) bool { return l.Count == 2 })
		if second.Number.Cmp(first.Number) <= 0 {
			t.Errorf("CRL %v came after %v", second.Number, first.Number)
		}
		for _, issuer := range []*ca.Issuer{old, renewed} {
			o.issuer = issuer // by whose certificate clients ask and verify
			must(t, first.CheckIssuer(issuer.Certificate))
			must(t, second.CheckIssuer(issuer.Certificate))
			o.respond(before, xocsp.Good)
			o.respond(bad, xocsp.Revoked)
			o.respond(after, xocsp.Revoked)
			o.refusedByOpenSSL(top.Certificate, issuer.Certificate, second.Raw, before, after)
		}
		must(t, o.service.keepResponder(t.Context(), o.lease(), renewed, time.Now().Add(23*time.Hour))) // lasts as the new certificate does
		var ends int64
		must(t, d.ReadSnapshot(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT MAX(not_after) FROM ocsp_responder WHERE issuer = $1`, renewed.ID).Scan(&ends)
		}))
		if !db.FromMicros(ends).After(old.Certificate.NotAfter) {
			t.Errorf("the newest responder ends on %s, no later than the issuer's certificate before", db.FromMicros(ends))
		}
	})
}

// refusedByOpenSSL has OpenSSL verify two certificates with the CRL of their issuer: the first is good, the second revoked.
func (o *office) refusedByOpenSSL(top, issuer *x509.Certificate, list []byte, good, bad *x509.Certificate) {
	o.t.Helper()
	dir := o.t.TempDir()
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		must(o.t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	args := []string{"verify", "-crl_check", "-CAfile", write("top.pem", "CERTIFICATE", top.Raw), "-untrusted", write("issuer.pem", "CERTIFICATE", issuer.Raw),
		"-CRLfile", write("list.pem", "X509 CRL", list)}
	if out, err := exec.Command("openssl", append(args, write("good.pem", "CERTIFICATE", good.Raw))...).CombinedOutput(); err != nil {
		o.t.Errorf("openssl refuses the good one: %s", out)
	}
	if out, err := exec.Command("openssl", append(args, write("bad.pem", "CERTIFICATE", bad.Raw))...).CombinedOutput(); err == nil {
		o.t.Errorf("openssl takes the revoked one: %s", out)
	}
}
