package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// TestRenewalOfATemplatesCertificateIsNoLongerThanTheOld renews an administrator's ten days for three thousand, as an
// operator once could.
func TestRenewalOfATemplatesCertificateIsNoLongerThanTheOld(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		operators := operator("bob", access.Operator)
		issue := func(usage string) *Certificate {
			return must[*Certificate](t)(a.Issue(ctx, admin(), Order{
				Template: "cn = \"signer\"\nexpiration_days = 10\n" + usage + "\n", CSR: csr(t, newKey(t)),
			}))
		}
		ocsp, code := issue("ocsp_signing_key"), issue("code_signing_key")
		for _, old := range []*Certificate{ocsp, code} {
			for _, by := range []access.Principal{operators, officer(), admin()} {
				_, err := a.Renew(ctx, by, Ref{Serial: old.Serial}, RenewOrder{Validity: 3000 * 24 * time.Hour})
				refusedAs(t, err, fault.Denied)
				_, err = a.Renew(ctx, by, Ref{Serial: old.Serial}, RenewOrder{NotAfter: time.Now().Add(11 * 24 * time.Hour)})
				refusedAs(t, err, fault.Denied)
			}
			_, err := a.Renew(ctx, operators, Ref{Serial: old.Serial}, RenewOrder{})
			refusedAs(t, err, fault.Denied)
			renewed := must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: old.Serial}, RenewOrder{}))
			if life, was := time.Until(renewed.NotAfter), old.NotAfter.Sub(old.NotBefore); life > was {
				t.Errorf("renewed for %s after %s", life, was)
			}
		}
		// An administrator no more: what he asked for himself he may renew, but for the signer of OCSP answers.
		was := operator("alice", access.Operator)
		must[*Certificate](t)(a.Renew(ctx, was, Ref{Serial: code.Serial}, RenewOrder{Validity: 24 * time.Hour}))
		_, err := a.Renew(ctx, was, Ref{Serial: ocsp.Serial}, RenewOrder{Validity: 24 * time.Hour})
		refusedAs(t, err, fault.Denied)
		if parsed := must[*x509.Certificate](t)(ocsp.Parsed()); len(parsed.ExtKeyUsage) != 1 || parsed.ExtKeyUsage[0] != x509.ExtKeyUsageOCSPSigning {
			t.Errorf("the template made %v", parsed.ExtKeyUsage)
		}
	})
}

// TestRenewalThatWaitsForAnOfficerNamesWhatWorks follows the hints, for a profile under which nothing is automatic.
func TestRenewalThatWaitsForAnOfficerNamesWhatWorks(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		bob, otto := operator("bob", access.Operator), operator("otto", access.Officer)
		a.known(bob, officer(), otto)
		saveProfile(t, a, strings.Replace(guardedYAML, "two_person: true", "automatic: []", 1))
		saveProfile(t, a, strings.Replace(guardedYAML, "name: guarded", "name: twofold", 1))
		for name, hint := range map[string]string{"guarded": "chancery cert renew", "twofold": "chancery request submit"} {
			order := Order{Profile: name, CSR: csr(t, newKey(t), "dns:a.example.com")}
			approved := func() *Certificate {
				r, _, err := a.Submit(ctx, bob, order)
				check(t, err)
				_, c, err := a.Approve(ctx, officer(), r.ID)
				check(t, err)
				return c
			}
			c := approved()
			_, err := a.Renew(ctx, bob, Ref{Serial: c.Serial}, RenewOrder{})
			refusedAs(t, err, fault.Denied)
			if refusal, ok := errors.AsType[*fault.Error](err); !ok || !strings.Contains(refusal.Hint, hint) {
				t.Errorf("%s: refused with %+v", name, refusal)
			}
			if name == "guarded" {
				must[*Certificate](t)(a.Renew(ctx, otto, Ref{Serial: c.Serial}, RenewOrder{}))
			}
			if again := approved(); again.ID == c.ID || string(again.PublicKey()) != string(c.PublicKey()) {
				t.Errorf("%s: the same request got certificate %d after %d", name, again.ID, c.ID)
			}
		}
	})
}
