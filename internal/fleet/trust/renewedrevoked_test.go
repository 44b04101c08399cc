package trust_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestRenewedIssuerWhoseOldCertificateIsRevoked: the certificate that an issuer had stands after the new one in what hosts trust, and
// not at all when it is revoked: OpenSSL takes the first of two equal names, and refuses what is below one that is revoked.
func TestRenewedIssuerWhoseOldCertificateIsRevoked(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx, dir := t.Context(), t.TempDir()
		key := newKey(t)
		name := must[cert.GeneralName](t)(cert.ParseGeneralName("dns:a.example.com"))
		request := must[[]byte](t)(cert.CreateCSR(&cert.CSRTemplate{SAN: []cert.GeneralName{name}}, key))
		leaf := must[*ca.Certificate](t)(a.CA.Issue(ctx, admin, ca.Order{Profile: "server", CSR: request}))
		a.of(0)
		before, top := must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default")), must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default-root"))
		after := must[*ca.Issuer](t)(a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "default", Validity: 12 * 365 * 24 * time.Hour}))
		both := a.pems()
		if old, now := slices.Index(both, encode(before.Certificate.Raw)), slices.Index(both, encode(after.Certificate.Raw)); now < 0 || old != now+1 {
			t.Errorf("the new certificate stands at %d, and the one before at %d", now, old)
		}
		old := ca.Ref{Issuer: "default-root", Serial: before.Certificate.SerialNumber}
		must[*ca.Certificate](t)(a.CA.Revoke(ctx, admin, old, ca.RevokeOrder{Reason: crl.Superseded}))
		a.exec(`UPDATE trust_pool SET change = change + 1 WHERE pool = 'default'`) // as the CRL that has it does
		now := a.pems()
		if slices.Contains(now, encode(before.Certificate.Raw)) || !slices.Contains(now, encode(after.Certificate.Raw)) || len(now) != len(both)-1 {
			t.Errorf("from %d certificates to %d", len(both), len(now))
		}
		write := func(name string, texts ...string) string {
			file := filepath.Join(dir, name)
			check(t, os.WriteFile(file, []byte(strings.Join(texts, "")), 0o600))
			return file
		}
		var lists []string
		for i, issuer := range []*ca.Issuer{top, after} {
			var entries []crl.Entry
			if i == 0 {
				entries = []crl.Entry{{Serial: before.Certificate.SerialNumber, RevokedAt: time.Now(), Reason: crl.Superseded}}
			}
			signer := must[crypto.Signer](t)(a.Keys.SignerFor(ctx, issuer.KeyID, issuer.Certificate))
			list := must[[]byte](t)((&root.Root{Certificate: issuer.Certificate, Signer: signer}).SignCRL(big.NewInt(9), entries, time.Now(), time.Hour))
			lists = append(lists, string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})))
		}
		listFile, leafFile := write("crl.pem", lists...), write("leaf.pem", encode(leaf.DER))
		verify := func(trusted string) string {
			out, err := exec.Command("openssl", "verify", "-crl_check_all", "-CRLfile", listFile, "-CAfile", trusted, "-untrusted",
				write("new.pem", encode(after.Certificate.Raw)), leafFile).CombinedOutput()
			if err == nil {
				return "OK"
			}
			return string(out)
		}
		if said := verify(write("trusted.pem", now...)); said != "OK" {
			t.Errorf("with what hosts trust: %s", said)
		}
		// Without either, what is good is refused: this is what they are for.
		if said := verify(write("wrong.pem", encode(top.Certificate.Raw), encode(before.Certificate.Raw), encode(after.Certificate.Raw))); !strings.Contains(said, "certificate revoked") {
			t.Errorf("with the one that is revoked before the new one: %s", said)
		}
	})
}

// pems is what the default pool trusts, in its order.
func (a *authority) pems() (all []string) {
	a.t.Helper()
	for _, i := range a.of(0).General.Issuers {
		all = append(all, i.PEM)
	}
	return all
}

// TestRenewedUnderANewIntermediate: where an outside root's new intermediate comes with an issuer's new certificate, hosts trust both.
func TestRenewedUnderANewIntermediate(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx := t.Context()
	top := forge(t, "Outside root", nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(9000 * time.Hour) })
	mid := forge(t, "Outside middle", top)
	sub := forge(t, "Outside sub", mid)
	must[*ca.Issuer](t)(a.CA.ImportIssuer(ctx, admin, ca.ImportSpec{Name: "sub", Certificate: sub.Certificate, Key: sub.key,
		Chain: []*x509.Certificate{mid.Certificate, top.Certificate}}))
	a.of(0)
	longer := func(by crypto.Signer) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.PublicKey, c.NotAfter = by, time.Now().Add(8000*time.Hour) }
	}
	mid2 := forge(t, "Outside middle", top, longer(mid.key))
	sub2 := forge(t, "Outside sub", mid2, longer(sub.key), func(c *x509.Certificate) { c.SubjectKeyId = sub.SubjectKeyId })
	must[*ca.Issuer](t)(a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "sub", Answer: []*x509.Certificate{sub2.Certificate, mid2.Certificate}}))
	trusted := a.pems()
	for _, c := range []*forged{sub2, mid2, sub, mid, top} {
		if !slices.Contains(trusted, c.pem()) {
			t.Errorf("%q (%s) is not trusted", c.Subject, trust.Fingerprint(c.Certificate))
		}
	}
}
