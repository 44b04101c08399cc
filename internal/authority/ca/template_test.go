package ca

import (
	"context"
	"testing"

	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestTemplateSaysAllBesideABareKey sends a request that only proves the possession of its key: the template's subject
// must not give way to the request's empty one.
func TestTemplateSaysAllBesideABareKey(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		const template = "organization = libvirt.org\ncn = host1\ntls_www_server\nencryption_key\nsigning_key\n"
		bare := must[*Certificate](t)(a.Issue(context.Background(), admin(), Order{Template: template, CSR: csr(t, newKey(t))}))
		if bare.Subject != "CN=host1,O=libvirt.org" {
			t.Errorf("subject %q", bare.Subject)
		}
		named := must[[]byte](t)(cert.CreateCSR(&cert.CSRTemplate{Subject: cert.CommonName("other")}, newKey(t)))
		asked := must[*Certificate](t)(a.Issue(context.Background(), admin(), Order{Template: template, CSR: named}))
		if asked.Subject != "CN=other" {
			t.Errorf("subject %q: a request's subject stands, as with certtool --load-request", asked.Subject)
		}
	})
}
