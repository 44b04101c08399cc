package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/profile"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

const year = 365 * 24 * time.Hour

// sound fails unless the records and the audit agree.
func (a *authority) sound() {
	a.t.Helper()
	ctx := context.Background()
	findings, done, err := a.Check(ctx, 1)
	if err != nil || len(findings) > 0 || done.Certificates == 0 {
		a.t.Errorf("records: %v in %+v, %v", findings, done, err)
	}
	told, seen, err := a.CheckAudit(ctx)
	if err != nil || len(told) > 0 || seen.Issued == 0 {
		a.t.Errorf("records against the audit: %v in %+v, %v", told, seen, err)
	}
	if chain, _, err := a.audit.Verify(ctx, audit.Evidence{}); err != nil || len(chain) > 0 {
		a.t.Errorf("audit: %v, %v", chain, err)
	}
}

// renewed is the same issuer with another certificate, which says the same of it.
func renewed(t *testing.T, before, after *Issuer) {
	t.Helper()
	b, a := before.Certificate, after.Certificate
	if after.ID != before.ID || after.number != before.number || after.Name != before.Name || after.KeyID != before.KeyID || after.State != IssuerActive ||
		after.Default != before.Default || after.Parent != before.Parent {
		t.Errorf("the issuer is %+v, and was %+v", after, before)
	}
	if a.SerialNumber.Cmp(b.SerialNumber) == 0 || !a.NotAfter.After(b.NotAfter) {
		t.Errorf("serial %x until %s, after %x until %s", a.SerialNumber, a.NotAfter, b.SerialNumber, b.NotAfter)
	}
	if !bytes.Equal(a.RawSubject, b.RawSubject) || !bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo) || !bytes.Equal(a.RawIssuer, b.RawIssuer) {
		t.Errorf("%q by %q, and was %q by %q, or the key is another", a.Subject, a.Issuer, b.Subject, b.Issuer)
	}
	if len(a.Extensions) != len(b.Extensions) || len(a.Extensions) < 4 {
		t.Errorf("%d extensions, and were %d", len(a.Extensions), len(b.Extensions))
	}
	for _, was := range b.Extensions {
		found := false
		for _, is := range a.Extensions {
			found = found || is.Id.Equal(was.Id) && is.Critical == was.Critical && bytes.Equal(is.Value, was.Value)
		}
		if !found {
			t.Errorf("extension %s is not as it was", cert.ExtensionName(was.Id))
		}
	}
	if early := time.Since(a.NotBefore); early < backdate || early > backdate+time.Minute {
		t.Errorf("it begins %s ago", early)
	}
}

// TestRenewIssuer renews an issuer with its key: it stays what it is, and what it issued before and after is good under either
// certificate to whoever trusts the root.
func TestRenewIssuer(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		var err error
		a.root, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "root", Subject: "CN=Test root,O=Test"})
		check(t, err)
		one := 1
		a.issuer, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "issuing", Subject: "CN=Test issuing,O=Test", Parent: "root", Default: true, PathLen: &one,
			Validity: year, Constraints: []string{"+dns:example.com", "!ip:10.0.0.0/8"}})
		check(t, err)
		below, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "below", Subject: "CN=Test below,O=Test", Parent: "issuing"})
		check(t, err)
		first := a.server("dns:before.example.com")
		doomed := a.server("dns:doomed.example.com")
		_, err = a.Revoke(ctx, admin(), Ref{Serial: doomed.Serial}, RevokeOrder{Reason: crl.Superseded})
		check(t, err)
		spec := RenewSpec{IdempotencyKey: "renew", Issuer: "issuing", Validity: 2 * year}
		after, err := a.RenewIssuer(ctx, admin(), spec)
		check(t, err)
		renewed(t, a.issuer, after)
		if got := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), spec)); !got.Certificate.Equal(after.Certificate) {
			t.Error("repeated with its key, the call made another certificate")
		}
		spec.Validity = 3 * year
		_, err = a.RenewIssuer(ctx, admin(), spec)
		refusedAs(t, err, fault.Conflict) // the key was used for another call
		if got := must[*Issuer](t)(a.Issuer(ctx, "below")); len(got.Chain) != 2 || !got.Chain[0].Equal(after.Certificate) || !got.Certificate.Equal(below.Certificate) {
			t.Errorf("the issuer below has %d certificates above it, and not the new one first", len(got.Chain))
		}
		old := must[*Certificate](t)(a.Find(ctx, admin(), Ref{Issuer: "root", Serial: a.issuer.Certificate.SerialNumber}))
		record := must[*Certificate](t)(a.Find(ctx, admin(), Ref{Issuer: "root", Serial: after.Certificate.SerialNumber}))
		if old.State != Valid || old.ReplacedBy != record.ID || record.Replaces != old.ID || !bytes.Equal(record.DER, after.Certificate.Raw) {
			t.Errorf("in the inventory: %+v, then %+v", old, record)
		}
		second := a.server("dns:after.example.com")
		if !second.Issuer.Certificate.Equal(after.Certificate) {
			t.Error("what was issued after it is not under the new certificate")
		}
		if n := a.count(`SELECT COUNT(*) FROM issuer`); n != 3 {
			t.Errorf("%d issuers", n)
		}
		if problems, looked, err := a.KeyProblems(ctx); err != nil || len(problems) > 0 || looked != 3 {
			t.Errorf("keys: %v of %d, %v", problems, looked, err)
		}
		a.verifiedByAll(a.root.Certificate, []*x509.Certificate{a.issuer.Certificate, after.Certificate}, []*Certificate{first, second})
		a.sound()
		check(t, a.db.Tx(ctx, func(tx *db.Tx) error { // somebody puts the old one back
			_, err := tx.Exec(ctx, `UPDATE issuer SET certificate = $1 WHERE name = 'issuing'`, a.issuer.Certificate.Raw)
			return err
		}))
		if told, _, err := a.CheckAudit(ctx); err != nil || len(told) != 1 || !strings.Contains(told[0].Message, "renewed") {
			t.Errorf("the old certificate was put back, and the check says %v, %v", told, err)
		}
	})
}

// TestCheckFindsAnIssuerOutsideTheInventory: an issuer's certificate that the one above it has no record of could not be revoked; and a
// root that came in beside another certificate of its own is in its own inventory.
func TestCheckFindsAnIssuerOutsideTheInventory(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		signer := must[crypto.Signer](t)(a.keys.SignerFor(ctx, a.root.KeyID, a.root.Certificate))
		twin := must[*root.Root](t)(root.New(root.Options{Subject: must[cert.Name](t)(cert.ParseNameDER(a.root.Certificate.RawSubject)), PathLen: -1}, signer, time.Now()))
		_, err := a.ImportIssuer(ctx, admin(), ImportSpec{Name: "twin", Certificate: twin.Certificate})
		check(t, err)
		a.sound()
		check(t, a.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM certificate WHERE serial = $1`, serialKey(a.issuer.Certificate.SerialNumber))
			return err
		}))
		if findings, _, err := a.Check(ctx, 1); err != nil || len(findings) != 1 || !strings.Contains(findings[0].Message, "not in the inventory") {
			t.Errorf("%v, %v", findings, err)
		}
	})
}

// verifiedByAll has openssl, certtool and certutil verify each certificate under each of its issuer's.
func (a *authority) verifiedByAll(top *x509.Certificate, issuers []*x509.Certificate, leaves []*Certificate) {
	t := a.t
	t.Helper()
	dir := t.TempDir()
	write := func(name string, certificates ...[]byte) string {
		var text []byte
		for _, der := range certificates {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		file := filepath.Join(dir, name)
		check(t, os.WriteFile(file, text, 0o600))
		return file
	}
	rootFile := write("root.pem", top.Raw)
	for i, issuer := range issuers {
		issuerFile := write(fmt.Sprintf("issuer%d.pem", i), issuer.Raw)
		store := filepath.Join(dir, fmt.Sprintf("nss%d", i))
		check(t, os.Mkdir(store, 0o700))
		run(t, "certutil", "-N", "-d", "sql:"+store, "--empty-password")
		run(t, "certutil", "-A", "-d", "sql:"+store, "-n", "root", "-t", "C,,", "-a", "-i", rootFile)
		run(t, "certutil", "-A", "-d", "sql:"+store, "-n", "issuing", "-t", ",,", "-a", "-i", issuerFile)
		for n, leaf := range leaves {
			leafFile := write(fmt.Sprintf("leaf%d.pem", n), leaf.DER)
			bundle := write("bundle.pem", leaf.DER, issuer.Raw)
			run(t, "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", rootFile, "-untrusted", issuerFile, leafFile)
			if out := run(t, "certtool", "--verify", "--load-ca-certificate", rootFile, "--infile", bundle); !strings.Contains(out, "Verified.") {
				t.Errorf("certtool: %s", out)
			}
			name := fmt.Sprintf("leaf%d", n)
			run(t, "certutil", "-A", "-d", "sql:"+store, "-n", name, "-t", ",,", "-a", "-i", leafFile)
			if out := run(t, "certutil", "-V", "-u", "V", "-d", "sql:"+store, "-n", name); !strings.Contains(out, "valid") {
				t.Errorf("certutil: %s", out)
			}
		}
	}
	if len(issuers)*len(leaves) < 4 {
		t.Errorf("%d certificates were verified under %d", len(leaves), len(issuers))
	}
	both := write("both.pem", issuers[0].Raw, issuers[1].Raw, top.Raw) // as trust stores have it during the overlap
	for n := range leaves {
		leafFile := filepath.Join(dir, fmt.Sprintf("leaf%d.pem", n))
		run(t, "openssl", "verify", "-CAfile", both, leafFile)
		if out := run(t, "certtool", "--verify", "--load-ca-certificate", both, "--infile", leafFile); !strings.Contains(out, "Verified.") {
			t.Errorf("certtool: %s", out)
		}
	}
}

// TestRenewIssuerRefusals: what is refused changes nothing, and says what would pass.
func TestRenewIssuerRefusals(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		for _, c := range []struct {
			name string
			by   access.Principal
			spec RenewSpec
			kind fault.Kind
			says []string
		}{
			{"an end no later", admin(), RenewSpec{Issuer: "issuing", Validity: year}, fault.Invalid, []string{"no later", utc(a.issuer.Certificate.NotAfter)}},
			{"an end after the root's", admin(), RenewSpec{Issuer: "issuing", Validity: 30 * year}, fault.Invalid, []string{utc(a.root.Certificate.NotAfter), "Test root"}},
			{"negative", admin(), RenewSpec{Issuer: "issuing", Validity: -year}, fault.Invalid, []string{"negative"}},
			{"a root", admin(), RenewSpec{Issuer: "root"}, fault.Conflict, []string{"is a root"}},
			{"nobody", admin(), RenewSpec{Issuer: "nobody"}, fault.NotFound, []string{"nobody"}},
			{"an auditor", operator("aud", access.Auditor), RenewSpec{Issuer: "issuing"}, fault.Denied, nil},
		} {
			_, err := a.RenewIssuer(ctx, c.by, c.spec)
			if !fault.Is(err, c.kind) {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			for _, text := range c.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%s: %v, without %q", c.name, err, text)
				}
			}
		}
		serial := a.issuer.Certificate.SerialNumber
		_, err := a.Hold(ctx, admin(), Ref{Issuer: "root", Serial: serial}, "")
		check(t, err)
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12 * year})
		refusedAs(t, err, fault.Conflict)
		_, err = a.Release(ctx, admin(), Ref{Issuer: "root", Serial: serial}, "")
		check(t, err)
		if now := must[*Issuer](t)(a.Issuer(ctx, "issuing")); !now.Certificate.Equal(a.issuer.Certificate) {
			t.Error("a refusal changed the issuer")
		}
		a.renewing = func(context.Context, *db.Tx, *Issuer, *Issuer) error { return fault.New(fault.Conflict, "not now") }
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12 * year})
		refusedAs(t, err, fault.Conflict)
		a.renewing = nil
		after, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12 * year})
		check(t, err)
		renewed(t, a.issuer, after)
		_, err = a.Retire(ctx, admin(), "issuing", once.Call{})
		check(t, err)
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing"})
		refusedAs(t, err, fault.Conflict)
		a.sound()
	})
}

// TestRenewedIssuerRevoked: the certificate before, revoked because another took its place, ends nothing; revoked because the key is
// compromised it ends the issuer, and a compromise revokes both.
func TestRenewedIssuerRevoked(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		old := Ref{Issuer: "root", Serial: a.issuer.Certificate.SerialNumber}
		_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12 * year})
		check(t, err)
		_, err = a.Revoke(ctx, admin(), old, RevokeOrder{Reason: crl.Superseded})
		check(t, err)
		if i := must[*Issuer](t)(a.Issuer(ctx, "issuing")); i.State != IssuerActive || !i.Default {
			t.Fatalf("a superseded certificate ended the issuer: %+v", i)
		}
		a.server("dns:on.example.com")
		_, err = a.Revoke(ctx, admin(), old, RevokeOrder{Reason: crl.KeyCompromise})
		check(t, err)
		if i := must[*Issuer](t)(a.Issuer(ctx, "issuing")); i.State != IssuerRetired {
			t.Errorf("the key is compromised, and the issuer is %s", i.State)
		}
		_, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "second", Subject: "CN=Second,O=Test", Parent: "root"})
		check(t, err)
		first := must[*Issuer](t)(a.Issuer(ctx, "second"))
		then := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "second", Validity: 12 * year}))
		check(t, a.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := a.RevokeIssuer(ctx, tx, then, crl.CACompromise, "test", time.Now())
			return err
		}))
		a.Forget()
		for _, c := range []*x509.Certificate{first.Certificate, then.Certificate} {
			if r := must[*Certificate](t)(a.Find(ctx, admin(), Ref{Issuer: "root", Serial: c.SerialNumber})); r.State != Revoked {
				t.Errorf("certificate %s of the compromised issuer is %s", cert.FormatSerial(r.Serial), r.State)
			}
		}
		a.sound()
	})
}

// TestRenewIssuerElsewhere brings in what an offline root and an outside one signed, and refuses what others did.
func TestRenewIssuerElsewhere(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		top, key, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "root", Subject: "CN=Offline root", Offline: true})
		check(t, err)
		sub, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "sub", Subject: "CN=Sub", Parent: "root", ParentKey: key, Default: true})
		check(t, err)
		_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub"})
		refusedAs(t, err, fault.Conflict) // and says how
		offline := must[*root.Root](t)(root.Open(top.Certificate, key))
		links := cert.Issuer{CRLDistributionPoints: []string{publicURL + "/crl/root.crl"}, CAIssuers: []string{publicURL + "/ca/root.cer"}}
		answer := must[*x509.Certificate](t)(offline.RenewIssuer(sub.Certificate, 12*year, links, time.Now()))

		other, otherKey, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "other", Subject: "CN=Other root", Offline: true})
		check(t, err)
		wrong := must[*x509.Certificate](t)(must[*root.Root](t)(root.Open(other.Certificate, otherKey)).RenewIssuer(sub.Certificate, 12*year, links, time.Now()))
		name := must[cert.Name](t)(cert.ParseName("CN=Sub"))
		wide := must[*x509.Certificate](t)(offline.SignIssuer(root.Options{Subject: name, PathLen: 3, Validity: 15 * year}, sub.PublicKey, links, time.Now()))
		short := must[*x509.Certificate](t)(offline.SignIssuer(root.Options{Subject: name, Validity: year}, sub.PublicKey, links, time.Now()))
		strange := must[*x509.Certificate](t)(offline.SignIssuer(root.Options{Subject: name, Validity: 15 * year}, spkiOf(t, newKey(t)), links, time.Now()))
		renamed := must[*x509.Certificate](t)(offline.SignIssuer(root.Options{Subject: must[cert.Name](t)(cert.ParseName("CN=Sub 2")), Validity: 15 * year}, sub.PublicKey,
			links, time.Now()))
		for _, c := range []struct {
			what  string
			given []*x509.Certificate
			says  string
		}{
			{"another root's", []*x509.Certificate{wrong, other.Certificate}, "signed by"}, {"a longer path", []*x509.Certificate{wide}, "basicConstraints"},
			{"a shorter life", []*x509.Certificate{short}, "no later"}, {"another key", []*x509.Certificate{strange}, "key"},
			{"another name", []*x509.Certificate{renamed}, "subject"}, {"a root nobody knows", []*x509.Certificate{wrong}, "Other root"},
		} {
			_, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Answer: c.given})
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", c.what, err)
			}
		}
		for range 2 { // what is brought in again is there
			after, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "sub", Answer: []*x509.Certificate{answer}})
			check(t, err)
			renewed(t, sub, after)
		}
		if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile = 'ca'`); n != 4 {
			t.Errorf("%d certificates of issuers in the inventories", n)
		}
		a.renewsOutside()
		a.sound()
	})
}

// renewsOutside renews an issuer by a request that an outside root signs.
func (a *authority) renewsOutside() {
	t, ctx := a.t.(*testing.T), context.Background()
	t.Helper()
	key := newKey(t)
	outside := must[*root.Root](t)(root.New(root.Options{Subject: must[cert.Name](t)(cert.ParseName("CN=Outside root")), PathLen: 1}, key, time.Now()))
	pending, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "below-outside", Pool: "second", Subject: "CN=Below outside", Outside: true})
	check(t, err)
	_, err = a.RenewalRequest(ctx, admin(), "below-outside")
	refusedAs(t, err, fault.Conflict)
	request := must[*cert.CSR](t)(cert.ParseCSR(pending.CSR))
	signed := must[*x509.Certificate](t)(outside.SignIssuer(root.Options{Subject: request.Subject, Validity: year}, request.SPKI, cert.Issuer{}, time.Now()))
	before, err := a.ImportAnswer(ctx, admin(), "below-outside", []*x509.Certificate{signed, outside.Certificate}, once.Call{})
	check(t, err)
	_, err = a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "below-outside"})
	refusedAs(t, err, fault.Conflict) // its root is not here
	again := must[*cert.CSR](t)(cert.ParseCSR(must[[]byte](t)(a.RenewalRequest(ctx, admin(), "below-outside"))))
	if !bytes.Equal(again.SPKI, before.PublicKey) || !bytes.Equal(again.RawSubject, before.Certificate.RawSubject) || again.BasicConstraints == nil || !again.BasicConstraints.CA {
		t.Errorf("the request is for %q, %+v", again.Subject, again.BasicConstraints)
	}
	answer := must[*x509.Certificate](t)(outside.SignIssuer(root.Options{Subject: again.Subject, PathLen: again.BasicConstraints.PathLen, Validity: 2 * year}, again.SPKI,
		cert.Issuer{}, time.Now()))
	after, err := a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "below-outside", Answer: []*x509.Certificate{answer}})
	check(t, err)
	renewed(t, before, after)
	newRoot := must[*root.Root](t)(root.New(root.Options{Subject: must[cert.Name](t)(cert.ParseName("CN=Outside root")), PathLen: 1}, key, time.Now()))
	more := must[*x509.Certificate](t)(newRoot.SignIssuer(root.Options{Subject: again.Subject, Validity: 3 * year}, again.SPKI, cert.Issuer{}, time.Now()))
	got := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "below-outside", Answer: []*x509.Certificate{more, newRoot.Certificate}}))
	if !got.top().Equal(outside.Certificate) || len(got.Former) != 2 || !got.Former[0].Equal(after.Certificate) || !got.Former[1].Equal(before.Certificate) {
		t.Errorf("its path ends at %x, which is no certificate that hosts trust, or not both that it had are kept: %d", got.top().SerialNumber, len(got.Former))
	}
}

// TestRenewIssuerCommits lets each commit of a renewal fail, in both ways: the writes lost, and the writes kept.
func TestRenewIssuerCommits(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		a, faults := faultyAuthority(t, url)
		ctx := context.Background()
		cases := 0
		for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
			for _, failures := range []int{1, 2, 5} { // 5 commits are tried
				cases++
				name := fmt.Sprintf("%s, %d times", outcome, failures)
				before := must[*Issuer](t)(a.Issuer(ctx, "issuing"))
				rows := a.count(`SELECT COUNT(*) FROM certificate`)
				spec := RenewSpec{IdempotencyKey: name, Issuer: "issuing", Validity: time.Duration(10+cases) * year}
				for n := range failures {
					faults.FailCommit(n+1, outcome)
				}
				first, err := a.RenewIssuer(ctx, admin(), spec)
				if failures < 4 && err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err != nil && !errors.Is(err, db.ErrUnknownOutcome) && !fault.Is(err, fault.Unavailable) {
					t.Errorf("%s: failed with %v", name, err)
				}
				faultsOver(t, a)
				second, err := a.RenewIssuer(ctx, admin(), spec)
				if err != nil {
					t.Errorf("%s: repeated: %v", name, err)
					continue
				}
				if first != nil && !first.Certificate.Equal(second.Certificate) {
					t.Errorf("%s: repeated, the call got another certificate", name)
				}
				renewed(t, before, second)
				if n := a.count(`SELECT COUNT(*) FROM certificate`); n != rows+1 {
					t.Errorf("%s: %d certificates, want %d", name, n, rows+1)
				}
			}
		}
		if cases < 6 {
			t.Fatalf("%d cases ran", cases)
		}
		a.sound()
	})
}

// TestRenewedIssuerOnOtherNodes: another node on the same database issues under the new certificate without being told. SQLite's
// has one node.
func TestRenewedIssuerOnOtherNodes(t *testing.T) {
	url := pkitest.URL(t, db.Postgres)
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: url}))
	d := pkitest.Open(t, db.Options{URL: url})
	log := must[*audit.Log](t)(audit.New(d, "n2"))
	other := New(Options{DB: d, Keys: a.keys, Profiles: profile.New(d, log), Settings: settings.New(d, log), Audit: log})
	ctx := context.Background()
	order := Order{Profile: "server", PublicKey: fixedKey, Names: []string{"dns:a.example.com"}}
	if c := must[*Certificate](t)(other.Issue(ctx, admin(), order)); !c.Issuer.Certificate.Equal(a.issuer.Certificate) {
		t.Fatal("the other node has another certificate from the beginning")
	}
	after := must[*Issuer](t)(a.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 12 * year}))
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c := must[*Certificate](t)(other.Issue(ctx, admin(), order))
		if c.Issuer.Certificate.Equal(after.Certificate) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the other node issues under the old certificate still")
		}
	}
	again, err := other.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "issuing", Validity: 14 * year})
	check(t, err)
	renewed(t, after, again)
	a.sound()
}
