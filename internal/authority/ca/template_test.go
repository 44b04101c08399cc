package ca

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
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

// TestTemplateCannotLeaveOutWhatTheProfileGives issues from a template that says nothing but names, beside a profile: the
// certificate must be the profile's, or it would be good for every use and could not be revoked in effect.
func TestTemplateCannotLeaveOutWhatTheProfileGives(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx, bob := context.Background(), operator("bob", access.Operator)
	plain := must[*x509.Certificate](t)(a.server("dns:a.example.com").Parsed())
	for template, days := range map[string]int{
		"cn = a.example.com\n": 90,
		"cn = a.example.com\nexpiration_days = 30\nsigning_key\ntls_www_server\nencryption_key\n": 30,
		"dns_name = a.example.com\ncn = a.example.com\nocsp_uri = http://pki.example.com/ocsp\n" +
			"crl_dist_points = http://pki.example.com/crl/issuing.crl\n": 90,
	} {
		for _, compat := range []bool{false, true} {
			made := must[*Certificate](t)(a.Issue(ctx, bob, Order{Template: template, Compat: compat, Profile: "server", CSR: csr(t, newKey(t))}))
			got := must[*x509.Certificate](t)(made.Parsed())
			if !slices.Equal(got.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || got.KeyUsage != plain.KeyUsage ||
				!slices.Equal(got.CRLDistributionPoints, plain.CRLDistributionPoints) || !slices.Equal(got.OCSPServer, plain.OCSPServer) ||
				len(got.Extensions) != len(plain.Extensions) {
				t.Errorf("%q: not what the profile gives: %v", template, got.Extensions)
			}
			for i, e := range got.Extensions {
				if !e.Id.Equal(plain.Extensions[i].Id) || e.Critical != plain.Extensions[i].Critical {
					t.Errorf("%q: extension %s, critical %v; the profile gives %s, %v", template, e.Id, e.Critical,
						plain.Extensions[i].Id, plain.Extensions[i].Critical)
				}
			}
			if len(got.SubjectKeyId) != 20 || !slices.Equal(got.SubjectKeyId, cert.SubjectKeyIDOf(got.RawSubjectPublicKeyInfo, 0)) {
				t.Errorf("%q: the key identifier is not the profile's", template)
			}
			if end := time.Until(got.NotAfter).Round(time.Hour); end != time.Duration(days)*24*time.Hour {
				t.Errorf("%q: ends in %s, want %d days", template, end, days)
			}
			if made.Profile != "server" {
				t.Errorf("profile %s", made.Profile)
			}
		}
	}
}

// TestTemplateAsksBeyondTheProfile tries every option that asks for what profile server does not give: each is refused by its
// name and place.
func TestTemplateAsksBeyondTheProfile(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx, bob := context.Background(), operator("bob", access.Operator)
	asks := []string{
		"crl_dist_points = http://evil.example.com/none.crl", "ocsp_uri = http://evil.example.com/", "ca_issuers_uri = http://evil.example.com/ca",
		"policy1 = 1.3.6.1.4.1.99999.1", "tls_feature = 5", "inhibit_anypolicy_skip_certs = 0", "serial = 7",
		"code_signing_key", "tls_www_client", "ocsp_signing_key", "time_stamping_key", "ipsec_ike_key", "email_protection_key",
		"key_purpose_oid = 2.5.29.37.0", "key_agreement", "data_encipherment", "non_repudiation",
		"add_extension = 1.2.3.4 0x0500", "add_critical_extension = 2.5.29.17 0x30058203612e62", "add_extension = 2.5.29.37 0x300606042a0304",
		"add_critical_extension = 2.5.29.19 0x30030101ff", "add_extension = 2.5.29.31 0x3000",
		"subject_unique_id = 0011", "issuer_unique_id = 0011", "cert_signing_key", "crl_signing_key",
	}
	if len(asks) < 26 {
		t.Fatal("options are missing")
	}
	for _, ask := range asks {
		for _, compat := range []bool{false, true} {
			template := "cn = a.example.com\nexpiration_days = 30\n" + ask + "\n"
			_, err := a.Issue(ctx, bob, Order{Template: template, Compat: compat, Profile: "server", CSR: csr(t, newKey(t))})
			name, _, _ := strings.Cut(ask, " ")
			var refusal *fault.Error
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), name) || !strings.HasPrefix(refusal.Pointer, "3:") ||
				compat && refusal.Kind != fault.Denied {
				t.Errorf("%s, compat %v: got %v, want a refusal of line 3", ask, compat, err)
			}
		}
	}
	_, err := a.Issue(ctx, bob, Order{Profile: "server", CSR: csr(t, newKey(t)),
		Template: "cn = a.example.com\nexpiration_days = 365\nocsp_uri = http://evil.example.com/\ncode_signing_key\n"})
	for _, part := range []string{"line 4, column 1: code_signing_key", "notAfter"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not name all at once: %q is missing", err, part)
		}
	}
}

// TestRequestsExtensionsBesideATemplateAndAProfile honours a request's extensions, and must not pass the profile by that.
func TestRequestsExtensionsBesideATemplateAndAProfile(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx, bob := context.Background(), operator("bob", access.Operator)
	const template = "expiration_days = 30\nhonor_crq_extensions\n"
	for what, c := range map[string]struct {
		ask  cert.CSRTemplate
		pass bool
	}{
		"names and usages of the profile": {cert.CSRTemplate{SAN: []cert.GeneralName{cert.DNSName("a.example.com")},
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []asn1.ObjectIdentifier{cert.OIDServerAuth}}, true},
		"another purpose": {cert.CSRTemplate{SAN: []cert.GeneralName{cert.DNSName("a.example.com")}, ExtKeyUsage: []asn1.ObjectIdentifier{cert.OIDCodeSigning}}, false},
		"another usage":   {cert.CSRTemplate{SAN: []cert.GeneralName{cert.DNSName("a.example.com")}, KeyUsage: x509.KeyUsageCertSign}, false},
		"a CA":            {cert.CSRTemplate{SAN: []cert.GeneralName{cert.DNSName("a.example.com")}, BasicConstraints: &cert.BasicConstraints{CA: true, PathLen: -1}}, false},
		"another kind":    {cert.CSRTemplate{SAN: []cert.GeneralName{cert.EmailName("a@example.com")}}, false},
		"a foreign one": {cert.CSRTemplate{SAN: []cert.GeneralName{cert.DNSName("a.example.com")},
			Extra: []cert.Extension{{ID: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{5, 0}}}}, false},
	} {
		request := must[[]byte](t)(cert.CreateCSR(&c.ask, newKey(t)))
		made, err := a.Issue(ctx, bob, Order{Template: template, Profile: "server", CSR: request})
		if !c.pass {
			if !fault.Is(err, fault.Denied) {
				t.Errorf("%s: got %v, want a refusal", what, err)
			}
			continue
		}
		check(t, err)
		got := must[*x509.Certificate](t)(made.Parsed())
		if !slices.Equal(got.DNSNames, []string{"a.example.com"}) || !slices.Equal(got.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
			t.Errorf("%s: names %v, purposes %v", what, got.DNSNames, got.ExtKeyUsage)
		}
	}
}
