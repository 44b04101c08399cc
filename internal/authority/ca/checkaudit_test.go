package ca

import (
	"context"
	"math/big"
	"strings"
	"testing"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// lived is an authority whose certificates have gone through all that can become of them.
type lived struct {
	*authority
	plain, revoked, compromised, held, again, short *Certificate
}

func live(t *testing.T, d *db.DB) *lived {
	t.Helper()
	a := &lived{authority: newAuthority(t, d)}
	ctx, now := context.Background(), time.Now()
	a.plain, a.revoked, a.compromised = a.server("dns:plain.example"), a.server("dns:revoked.example"), a.server("dns:lost.example")
	a.held, a.again = a.server("dns:held.example"), a.server("dns:again.example")
	must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: a.plain.Serial}, RenewOrder{}))
	a.short = must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: a.plain.Serial}, RenewOrder{Validity: 2 * time.Hour}))
	revoke := func(serial *big.Int, reason crl.Reason) {
		must[*Certificate](t)(a.Revoke(ctx, officer(), Ref{Serial: serial}, RevokeOrder{Reason: reason}))
	}
	revoke(a.revoked.Serial, crl.CertificateHold)
	revoke(a.revoked.Serial, crl.Superseded)
	revoke(a.compromised.Serial, crl.KeyCompromise)
	revoke(a.again.Serial, crl.CertificateHold)
	must[*Certificate](t)(a.Release(ctx, officer(), Ref{Serial: a.again.Serial}, ""))
	revoke(a.held.Serial, crl.CertificateHold)
	// A CRL tells of another revocation, and of certificates that the store has forgotten.
	merged := a.server("dns:merged.example")
	must[Merged](t)(a.MergeCRL(ctx, officer(), a.listOf(
		crl.Entry{Serial: merged.Serial, RevokedAt: now, Reason: crl.KeyCompromise},
		crl.Entry{Serial: big.NewInt(77), RevokedAt: now, Reason: crl.Superseded},
		crl.Entry{Serial: big.NewInt(78), RevokedAt: now, Reason: crl.CertificateHold},
	)))
	must[*Certificate](t)(a.Release(ctx, officer(), Ref{Serial: big.NewInt(78)}, ""))
	// What an import brings was revoked before, or is released or revoked after.
	above := must[*root.Root](t)(root.New(root.Options{Subject: cert.CommonName("Old"), PathLen: -1}, newKey(t), now))
	spec := ImportSpec{Name: "old", Certificate: above.Certificate}
	for i := range 4 {
		r := Record{Serial: big.NewInt(int64(901 + i)), Subject: "CN=old.example.com", NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
		if i > 0 {
			r.Revocation = &Revocation{Reason: crl.CertificateHold, RevokedAt: now.Add(-time.Minute)}
		}
		spec.Records = append(spec.Records, r)
	}
	must[*Issuer](t)(a.ImportIssuer(ctx, admin(), spec))
	must[*Certificate](t)(a.Release(ctx, officer(), Ref{Serial: big.NewInt(902)}, ""))
	revoke(big.NewInt(903), crl.Superseded)
	return a
}

func (a *authority) exec(query string, args ...any) {
	a.t.Helper()
	ctx := context.Background()
	check(a.t, a.db.Tx(ctx, func(tx *db.Tx) error {
		n, err := tx.Exec(ctx, query, args...)
		if err == nil && n == 0 {
			a.t.Fatalf("%s changed nothing", query)
		}
		return err
	}))
}

// wantAudit fails unless CheckAudit finds just what is wanted: a serial and a rule for each.
func (a *authority) wantAudit(what string, want ...string) {
	a.t.Helper()
	findings, seen, err := a.CheckAudit(context.Background())
	check(a.t, err)
	if seen.Issued < 8 || seen.Statuses < 5 {
		a.t.Fatalf("%s: looked at %+v only", what, seen)
	}
	for _, f := range findings {
		text := f.Object + " " + f.Message
		found := false
		for _, w := range want {
			found = found || strings.HasPrefix(text, w)
		}
		if !found {
			a.t.Errorf("%s: %s", what, text)
		}
	}
	if len(findings) != len(want) {
		a.t.Errorf("%s: %d findings, want %v", what, len(findings), want)
	}
}

func TestVerifyDidNotSeeErasedRevocationsAndCertificates(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := live(t, d)
		serial := func(c *Certificate) string { return cert.FormatSerial(c.Serial) }
		a.wantAudit("untouched")

		a.exec(`DELETE FROM compromised_key`)
		findings, _, err := a.CheckAudit(context.Background())
		check(t, err)
		if len(findings) != 2 || !strings.HasPrefix(findings[0].Message, "unblocked") {
			t.Errorf("without blocked keys: %+v", findings)
		}
		merged := must[*Certificate](t)(a.Find(context.Background(), officer(), Ref{Serial: a.bySubject("merged.example")}))
		for _, c := range []*Certificate{a.compromised, merged} {
			check(t, d.Tx(context.Background(), func(tx *db.Tx) error { return blockKey(context.Background(), tx, c, time.Now()) }))
		}
		a.wantAudit("blocked again")

		a.exec(`DELETE FROM revocation WHERE certificate = $1`, a.revoked.ID)
		a.exec(`UPDATE certificate SET state = 'valid' WHERE id = $1`, a.revoked.ID)
		a.wantAudit("a deleted revocation", serial(a.revoked)+" state: ")
		a.exec(`UPDATE certificate SET state = 'held' WHERE id = $1`, a.again.ID)
		a.wantAudit("a hold that nobody asked for", serial(a.revoked)+" state: ", serial(a.again)+" state: ")
		a.exec(`UPDATE certificate SET state = 'revoked' WHERE id = $1`, a.plain.ID)
		a.wantAudit("a revocation that nobody asked for", serial(a.revoked)+" state: ", serial(a.again)+" state: ", serial(a.plain)+" state: ")
		a.exec(`UPDATE certificate SET state = 'valid' WHERE id IN ($1, $2)`, a.again.ID, a.plain.ID)
		a.exec(`UPDATE revocation SET reason = 1 WHERE certificate = $1`, a.held.ID)
		a.wantAudit("another reason", serial(a.revoked)+" state: ", serial(a.held)+" reason: ")
		a.exec(`DELETE FROM certificate WHERE id = $1`, a.plain.ID)
		a.exec(`UPDATE certificate SET der = $1 WHERE id = $2`, a.plain.DER, a.short.ID)
		a.wantAudit("a certificate that is gone, and one that is another's", serial(a.revoked)+" state: ", serial(a.held)+" reason: ",
			serial(a.plain)+" missing: ", serial(a.short)+" replaced: ")
		a.exec(`DELETE FROM certificate WHERE serial = $1`, serialKey(big.NewInt(77)))
		a.wantAudit("one that was merged is gone", serial(a.revoked)+" state: ", serial(a.held)+" reason: ",
			serial(a.plain)+" missing: ", serial(a.short)+" replaced: ", "4d missing: ")
	})
}

// TestVerifyDidNotSeeWhatAnImportBrought: certificates of an imported CA could be erased, and others put beside them.
func TestVerifyDidNotSeeWhatAnImportBrought(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := live(t, d)
		a.exec(`DELETE FROM revocation WHERE certificate = (SELECT id FROM certificate WHERE serial = $1)`, serialKey(big.NewInt(904)))
		a.exec(`UPDATE certificate SET state = 'valid' WHERE serial = $1`, serialKey(big.NewInt(904)))
		a.wantAudit("an imported hold was taken away", "0388 state: ")
		a.exec(`DELETE FROM certificate WHERE serial = $1`, serialKey(big.NewInt(901)))
		a.wantAudit("an imported certificate is gone", "0385 missing: ", "0388 state: ")
		a.exec(`UPDATE certificate SET subject = 'CN=other' WHERE serial = $1`, serialKey(big.NewInt(902)))
		a.wantAudit("an imported record is another", "0385 missing: ", "0386 replaced: ", "0388 state: ")
		foreign := *a.plain
		foreign.ID, foreign.Serial = a.nextID(time.Now()), big.NewInt(0xbad)
		check(t, d.Tx(t.Context(), func(tx *db.Tx) error { return a.insertCertificate(t.Context(), tx, &foreign) }))
		a.wantAudit("one was put there", "0385 missing: ", "0386 replaced: ", "0388 state: ", "0bad unnamed: ")
	})
}

// TestVerifyAsksNoPrunedEventForACertificate: of what the audit has forgotten it cannot say that it was not issued.
func TestVerifyAsksNoPrunedEventForACertificate(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx, now := live(t, d), t.Context(), time.Now()
		lease, ok, err := d.Acquire(ctx, audit.Lease, "n1", time.Minute)
		check(t, err)
		must[*checkpoint.Signed](t)(a.audit.Checkpoint(ctx, lease, db.NewID(), now, once.Call{}, newKey(t)))
		if n := must[int64](t)(a.audit.Prune(ctx, lease, now.Add(time.Second), "test", now)); !ok || n < 10 {
			t.Fatalf("%v, %d events pruned", ok, n)
		}
		findings, _, err := a.CheckAudit(ctx)
		if check(t, err); len(findings) > 0 {
			t.Errorf("%+v", findings)
		}
		foreign := *a.plain
		foreign.ID, foreign.Serial = firstID(now.Add(2*time.Minute)), big.NewInt(0xbad)
		check(t, d.Tx(ctx, func(tx *db.Tx) error { return a.insertCertificate(ctx, tx, &foreign) }))
		findings, _, err = a.CheckAudit(ctx)
		if check(t, err); len(findings) != 1 || !strings.HasPrefix(findings[0].Message, "unnamed") {
			t.Errorf("put there after the pruning: %+v", findings)
		}
	})
}

// TestEveryEventOfAnImportFits: a CA that issued much is named whole, over many events.
func TestEveryEventOfAnImportFits(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, now := newAuthority(t, d), time.Now()
		above := must[*root.Root](t)(root.New(root.Options{Subject: cert.CommonName("Old"), PathLen: -1}, newKey(t), now))
		spec := ImportSpec{Name: "old", Certificate: above.Certificate}
		first := new(big.Int).Lsh(big.NewInt(1), 158) // the longest serials there are
		for i := range 1001 {
			spec.Records = append(spec.Records, Record{Serial: new(big.Int).Add(first, big.NewInt(int64(i))), Subject: "CN=old.example.com",
				Revocation: &Revocation{Reason: crl.CessationOfOperation, RevokedAt: now.Add(-time.Minute)}})
		}
		must[*Issuer](t)(a.ImportIssuer(t.Context(), admin(), spec))
		findings, seen, err := a.CheckAudit(t.Context())
		check(t, err)
		if len(findings) > 0 || seen.Statuses != 1001 || seen.Issued < 1001 {
			t.Errorf("%+v, %+v", findings, seen)
		}
	})
}

// bySubject finds the serial of the certificate with a name.
func (a *authority) bySubject(name string) *big.Int {
	a.t.Helper()
	found, _, err := a.Search(context.Background(), admin(), Filter{Name: name}, "", 10)
	check(a.t, err)
	if len(found) != 1 {
		a.t.Fatalf("%d certificates for %s", len(found), name)
	}
	return found[0].Serial
}

// A certificate that was pruned is not missed, and one that was deleted under the cover of a pruning is.
func TestVerifyMissesNoPrunedCertificate(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := live(t, d)
		ctx, now := context.Background(), time.Now()
		check(t, d.TxAlone(ctx, func(tx *db.Tx) error {
			before := a.short.NotAfter.Add(time.Second)
			if err := a.announcePrune(ctx, tx, before, now); err != nil {
				return err
			}
			n, err := pruneCertificates(ctx, tx, before, before.Add(IdentityGrace))
			if n != 5 {
				t.Errorf("%d pruned; the short one and four of the import should be", n)
			}
			return err
		}))
		a.wantAudit("pruned")
		a.exec(`DELETE FROM revocation WHERE certificate = $1`, a.revoked.ID)
		a.exec(`DELETE FROM certificate WHERE id = $1`, a.revoked.ID)
		a.wantAudit("deleted", cert.FormatSerial(a.revoked.Serial)+" missing: ")
	})
}
