package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// importedSub imports a root without its key, and an issuer below it with its own; again signs another certificate for that.
func importedSub(t *testing.T, a *authority) (first *x509.Certificate, key crypto.Signer, again func(end time.Duration) *x509.Certificate) {
	t.Helper()
	ctx := context.Background()
	top, topKey := strangeRoot(t, "CN=Old root")
	key = newKey(t)
	name := must[cert.Name](t)(cert.ParseName("CN=Old sub"))
	first = must[*x509.Certificate](t)(top.SignIssuer(root.Options{Subject: name, Validity: 2 * year}, spkiOf(t, key), cert.Issuer{}, time.Now()))
	must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "oldroot", Certificate: top.Certificate}))
	must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "oldsub", Certificate: first, Chain: []*x509.Certificate{top.Certificate}, Key: key, Default: true}))
	return first, key, func(end time.Duration) *x509.Certificate {
		t.Helper()
		return againUnder(t, first, top.Certificate, topKey, end)
	}
}

func againUnder(t *testing.T, c, by *x509.Certificate, key crypto.Signer, end time.Duration) *x509.Certificate {
	t.Helper()
	return again(t, c, by, key, time.Now().Add(end))
}

// refusedWith fails unless err is a Conflict with these words, and its hint has others.
func refusedWith(t *testing.T, err error, says, hint string) {
	t.Helper()
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), says) || !strings.Contains(hintOf(err), hint) {
		t.Errorf("got %v (%s); want a conflict that says %q (%s)", err, hintOf(err), says, hint)
	}
}

// TestRetiredIssuerIssuesAgain: who was retired by a slip is as he was, with the certificate that he has where that is good, and with
// another one where it was superseded. What refuses his key beside him names the command that does so.
func TestRetiredIssuerIssuesAgain(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newStores(t, d), context.Background()
		first, key, again := importedSub(t, a)
		second := again(4 * year)
		a.server("dns:before.example.com")
		retired := must[*Issuer](t)(a.Retire(ctx, admin(), "oldsub", once.Call{}))
		_, err := a.ImportIssuer(ctx, admin(), ImportSpec{Name: "other", Certificate: first, Key: key})
		refusedWith(t, err, "same subject and the same key", "issuer reopen oldsub")
		_, err = a.ImportIssuer(ctx, admin(), ImportSpec{Name: "other", Certificate: second, Key: key})
		refusedWith(t, err, "same subject and the same key", "issuer renew oldsub --certificate F")
		reopen := RenewSpec{IdempotencyKey: "reopen", Issuer: "oldsub", Answer: []*x509.Certificate{first}}
		for range 2 {
			i := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), reopen))
			if i.State != IssuerActive || !i.Default || !i.Certificate.Equal(first) || i.number != retired.number || len(i.Former) != 0 {
				t.Fatalf("it is %+v", i)
			}
		}
		if n := a.count(`SELECT COUNT(*) FROM audit_event WHERE action = 'issuer.reopen'`); n != 1 {
			t.Errorf("%d events", n)
		}
		a.server("dns:again.example.com")
		a.sound()
		// The one that it has is revoked by mistake: that retires it too.
		serial := Ref{Issuer: "oldroot", Serial: first.SerialNumber}
		must[*Certificate](t)(a.Revoke(ctx, admin(), serial, RevokeOrder{Reason: crl.Superseded}))
		reopen.IdempotencyKey = ""
		_, err = a.RenewIssuer(ctx, admin(), reopen)
		refusedWith(t, err, "is revoked (superseded)", "issuer renew oldsub")
		i := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{second}}))
		if i.State != IssuerActive || !i.Default || !i.Certificate.Equal(second) || i.number != retired.number {
			t.Fatalf("it is %+v", i)
		}
		a.server("dns:renewed.example.com")
		a.sound()
		if n := a.count(`SELECT COUNT(*) FROM issuer`); n != 2 {
			t.Errorf("%d issuers", n)
		}
	})
}

// TestRetiredIssuerThatStaysSo: an issuer is not active again whose key is compromised, or whose certificate was taken from it for what
// another one would have as well; and a renewal that was judged before it was retired does not undo that.
func TestRetiredIssuerThatStaysSo(t *testing.T) {
	for reason, says := range map[crl.Reason]string{
		crl.CACompromise: "was revoked for cACompromise", crl.KeyCompromise: "is known to be compromised", crl.PrivilegeWithdrawn: "is revoked (privilegeWithdrawn)",
	} {
		pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
			a, ctx := newStores(t, d), context.Background()
			first, _, again := importedSub(t, a)
			judged := must[*renewal](t)(a.prepareRenewal(ctx, &RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{again(3 * year)}}, time.Now()))
			must[*Certificate](t)(a.Revoke(ctx, admin(), Ref{Issuer: "oldroot", Serial: first.SerialNumber}, RevokeOrder{Reason: reason}))
			asked := must[call](t)(newCall(admin(), "late", actionRenew, nil))
			err := a.db.Tx(ctx, func(tx *db.Tx) error {
				_, err := a.storeRenewal(ctx, tx, admin(), asked, judged, time.Now())
				return err
			})
			refusedWith(t, err, "since this moment", "issuer show oldsub")
			for _, answer := range []*x509.Certificate{first, again(4 * year)} {
				_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{answer}})
				if fault.KindOf(err) == fault.Internal || !strings.Contains(err.Error(), says) {
					t.Errorf("revoked for %s: %v", reason, err)
				}
			}
			if i := must[*Issuer](t)(a.Issuer(ctx, "oldsub")); i.State != IssuerRetired || !i.Certificate.Equal(first) {
				t.Errorf("revoked for %s, and the issuer is %s", reason, i.State)
			}
		})
	}
}

// TestRetiredSinceOneBeforeWasCompromised: the certificate that an issuer has is good, and one that it had was revoked since the CA is
// compromised: it has the key of both.
func TestRetiredSinceOneBeforeWasCompromised(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newStores(t, d), context.Background()
		first, _, again := importedSub(t, a)
		second := again(4 * year)
		must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{second}}))
		must[*Certificate](t)(a.Revoke(ctx, admin(), Ref{Issuer: "oldroot", Serial: first.SerialNumber}, RevokeOrder{Reason: crl.CACompromise}))
		for _, answer := range []*x509.Certificate{second, again(5 * year)} {
			_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{answer}})
			refusedWith(t, err, "was revoked for cACompromise", "issuer issue")
		}
		if i := must[*Issuer](t)(a.Issuer(ctx, "oldsub")); i.State != IssuerRetired || !i.Certificate.Equal(second) {
			t.Errorf("the issuer is %s", i.State)
		}
	})
}

// TestRetiredTwinStaysSo: of two issuers of one name and key, which came in before that was refused, one that was retired is not active
// again beside the other.
func TestRetiredTwinStaysSo(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newStores(t, d), context.Background()
		first, _, again := importedSub(t, a)
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), ImportSpec{Name: "twin", Certificate: again(4 * year)}))
		check(t, a.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE issuer SET key_id = (SELECT key_id FROM issuer WHERE name = 'oldsub') WHERE name = 'twin'`)
			return err
		}))
		must[*Issuer](t)(a.Retire(ctx, admin(), "oldsub", once.Call{}))
		_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{first}})
		refusedWith(t, err, `issuer "twin" has the same subject and the same key`, "twin")
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{again(5 * year)}})
		refusedWith(t, err, `issuer "twin" has the same subject and the same key`, "twin")
	})
}

// TestRetiredIssuersHere: an issuer below one that is here, and a root, are active again by the hints of what refuses them.
func TestRetiredIssuersHere(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		own := func(name string) RenewSpec {
			return RenewSpec{Issuer: name, Answer: []*x509.Certificate{must[*Issuer](t)(a.Issuer(ctx, name)).Certificate}}
		}
		for _, name := range []string{"issuing", "root"} {
			must[*Issuer](t)(a.Retire(ctx, admin(), name, once.Call{}))
		}
		_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "root"})
		refusedWith(t, err, "is a root", "issuer reopen root")
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12 * year})
		refusedWith(t, err, `issuer "root" is retired`, "issuer reopen issuing")
		_, err = a.RenewIssuer(ctx, operator("aud", access.Auditor), own("root"))
		refusedAs(t, err, fault.Denied)
		if i := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), own("root"))); i.State != IssuerActive || i.Default {
			t.Errorf("the root is %s", i.State)
		}
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing"})
		refusedWith(t, err, "a third of its life", "issuer reopen issuing")
		held := Ref{Issuer: "root", Serial: a.issuer.Certificate.SerialNumber}
		must[*Certificate](t)(a.Hold(ctx, admin(), held, ""))
		_, err = a.RenewIssuer(ctx, admin(), own("issuing"))
		refusedWith(t, err, "on hold", "cert release")
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12 * year})
		refusedWith(t, err, "is held", "")
		must[*Certificate](t)(a.Release(ctx, admin(), held, ""))
		a.renewing = func(_ context.Context, _ *db.Tx, before, after *Issuer) error {
			if before.State != IssuerRetired || after.State != IssuerActive {
				t.Errorf("from %s to %s", before.State, after.State)
			}
			return errors.New("the trust is gone")
		}
		if _, err = a.RenewIssuer(ctx, admin(), own("issuing")); err == nil || must[*Issuer](t)(a.Issuer(ctx, "issuing")).State != IssuerRetired {
			t.Errorf("it was reopened though hosts trust it no longer: %v", err)
		}
		a.renewing = nil
		after := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12 * year}))
		renewed(t, a.issuer, after)
		a.server("dns:again.example.com")
		pending, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "never", Pool: "never", Subject: "CN=Never", Outside: true})
		check(t, err)
		must[*Issuer](t)(a.Retire(ctx, admin(), pending.Name, once.Call{}))
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "never"})
		refusedWith(t, err, "retired before it had a certificate", "issuer issue")
		a.sound()
	})
}
