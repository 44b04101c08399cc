package revocation

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/ocsp"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

// ask sends a request about one certificate, and returns the verified answer; nil where there is none.
func (o *office) ask(c *x509.Certificate, hash crypto.Hash) (*xocsp.Response, Response) {
	o.t.Helper()
	request, err := xocsp.CreateRequest(c, o.issuer.Certificate, &xocsp.RequestOptions{Hash: hash})
	must(o.t, err)
	r, _ := o.service.Respond(o.t.Context(), request, nil)
	parsed, err := xocsp.ParseResponseForCert(r.DER, c, o.issuer.Certificate)
	if err != nil {
		return nil, r
	}
	return parsed, r
}

// keeps reports whether a question that was just answered is answered with what was signed. Where a new period begins in between, it is
// asked once more.
func (o *office) keeps(c *x509.Certificate) bool {
	o.t.Helper()
	for range 2 {
		if _, r := o.ask(c, crypto.SHA1); r.Cached {
			return true
		}
	}
	return false
}

// respond waits until the status of a certificate is want.
func (o *office) respond(c *x509.Certificate, want int) *xocsp.Response {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		if r, _ := o.ask(c, crypto.SHA1); r != nil && r.Status == want {
			return r
		}
		select {
		case <-ctx.Done():
			o.t.Fatalf("the status never came to be %d", want)
		case <-time.After(2 * time.Millisecond): // another node's change is on its way
		}
	}
}

// withResponder makes the delegated responder of the office's issuer.
func (o *office) withResponder() {
	o.t.Helper()
	must(o.t, o.service.keepResponder(o.t.Context(), o.lease(), o.issuer, time.Now()))
}

func TestStatusFollowsTheRecords(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		c := o.issue("a.example")
		if _, r := o.ask(c, crypto.SHA1); r.Status != ocsp.TryLater {
			t.Fatalf("before there is a responder: %v", r.Status)
		}
		o.run()
		o.respond(c, xocsp.Good)
		o.revoke(c, crl.CertificateHold)
		held := o.respond(c, xocsp.Revoked)
		if held.RevocationReason != int(crl.CertificateHold) {
			t.Errorf("reason %d", held.RevocationReason)
		}
		_, err := o.ca.Release(t.Context(), o.by, o.ref(c), "")
		must(t, err)
		o.respond(c, xocsp.Good)
		o.revoke(c, crl.KeyCompromise)
		o.respond(c, xocsp.Revoked)
		for range 50 {
			if r, _ := o.ask(c, crypto.SHA256); r == nil || r.Status != xocsp.Revoked || r.RevocationReason != int(crl.KeyCompromise) {
				t.Fatalf("a revoked certificate is %+v", r)
			}
		}
	})
}

// TestOtherNodeSeesTheChange: an answer that one node keeps is dropped when another node revokes.
func TestOtherNodeSeesTheChange(t *testing.T) {
	server := pkitest.URL(t, db.Postgres)
	d := pkitest.Open(t, db.Options{URL: server})
	a := newOffice(t, d, ca.CRLMode{}, nil)
	b := node(t, pkitest.Open(t, db.Options{URL: server}), "node-b", t.TempDir(), a)
	b.issuer = a.issuer
	_, err := a.keys.Rewrap(t.Context(), "node-b", "test") // the issuer's key, which is older than node-b
	must(t, err)
	all, err := b.keys.Recipients(t.Context())
	must(t, err)
	must(t, b.db.Tx(t.Context(), func(tx *db.Tx) error {
		for _, r := range all { // as its operator does when it joins
			if err := b.keys.Endorse(t.Context(), tx, r.ID, r.PublicKey, "test", time.Now()); err != nil {
				return err
			}
		}
		return nil
	}))
	a.run()
	b.run()
	c := a.issue("a.example")
	b.respond(c, xocsp.Good)
	if !b.keeps(c) {
		t.Fatal("the answer was not kept; the test would prove nothing")
	}
	a.revoke(c, crl.Superseded)
	b.respond(c, xocsp.Revoked)
	a.respond(c, xocsp.Revoked)
}

func TestAnswersAreKeptAndBounded(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, func(s *settings.Settings) { s.OCSP.CacheEntries = 1000 })
		o.withResponder()
		c := o.issue("a.example")
		first, r := o.ask(c, crypto.SHA1)
		if first == nil || r.Cached || r.NextUpdate.Sub(r.ThisUpdate) != 12*time.Hour || first.NextUpdate != r.NextUpdate {
			t.Fatalf("%+v, %+v", first, r)
		}
		if !o.keeps(c) {
			t.Error("the same question is signed again")
		}
		if _, r := o.ask(c, crypto.SHA256); r.Cached {
			t.Error("another hash got the answer for SHA-1")
		}
		never := *c
		never.SerialNumber = big.NewInt(424242)
		for range 2 {
			if got, r := o.ask(&never, crypto.SHA1); got == nil || got.Status != xocsp.Unknown || r.Cached || !r.NextUpdate.IsZero() || !got.NextUpdate.IsZero() {
				t.Errorf("a serial that was never issued: %+v, %+v", got, r)
			}
		}
		if n := o.service.answers.size(); n != 1 {
			t.Errorf("%d certificates are kept", n)
		}
	})
}

func TestCacheDropsTheRightAnswers(t *testing.T) {
	c := newCache()
	now := time.Now()
	of := periodAt(now, time.Hour)
	id := func(n int64) *ocsp.CertID {
		return &ocsp.CertID{Raw: []byte("id"), Hash: crypto.SHA1, Serial: big.NewInt(n)}
	}
	key := func(n int64) certificateKey { return keyOf("one", big.NewInt(n)) }
	put := func(n, change int64) {
		c.keep(key(n), ca.Status{Issued: true, State: ca.Valid, Change: change}, now, 0,
			&answer{crypto.SHA1, []byte("id"), Response{NextUpdate: now.Add(time.Hour)}, of}, 100)
	}
	for n := range int64(250) {
		put(n, 5)
		put(n, 5)
	}
	if c.size() != 100 {
		t.Fatalf("%d certificates are kept", c.size())
	}
	got := func(n int64, at time.Time) bool { _, ok := c.answer(key(n), id(n), &of, at, 0); return ok }
	if got(149, now) || !got(150, now) || got(200, now.Add(time.Hour)) {
		t.Error("the oldest stays, or an old answer is given")
	}
	other := id(200)
	other.Raw = []byte("written otherwise")
	next := periodAt(now.Add(mostPeriod), time.Hour)
	if _, ok := c.answer(key(200), id(200), &next, now, 0); ok {
		t.Error("an answer of one period is given in the next")
	}
	if _, ok := c.answer(key(200), id(200), nil, now, 0); !ok {
		t.Error("an answer of a former period is not given while none can be signed")
	}
	if _, ok := c.answer(key(200), id(200), &of, now, 6); ok {
		t.Error("an answer is given that this node's own change made untrue")
	}
	if _, ok := c.answer(key(200), other, &of, now, 0); ok {
		t.Error("an answer is given for a CertID that is written differently")
	}
	if _, _, ok := c.status(key(200), now); ok {
		t.Error("a status is used although nobody looks for changes")
	}
	c.looked(now.Add(-time.Second))
	if _, asOf, ok := c.status(key(200), now); !ok || !asOf.Equal(now) {
		t.Errorf("a status that was just read is of %v, %v", asOf, ok)
	}
	later := now.Add(time.Minute)
	c.looked(later)
	if _, asOf, ok := c.status(key(200), later.Add(time.Second)); !ok || !asOf.Equal(later) {
		t.Errorf("a status is known as of %v, %v, and not of the last look", asOf, ok)
	}
	c.drop("one", []changedSerial{{big.NewInt(200), 7}}, 7, false)
	if got(200, now) || !got(201, now) {
		t.Error("drop took the wrong answer")
	}
	put(200, 6) // was read before the change
	if got(200, now) {
		t.Error("an answer from before the change was taken in after it")
	}
	put(200, 7)
	if !got(200, now) {
		t.Error("an answer from after the change was not taken in")
	}
	// Two who read at the same time: the one that saw the revocation is not overruled by the one that did not.
	c.keep(key(201), ca.Status{Issued: true, State: ca.Revoked, Change: 8}, now, 0, nil, 100)
	if got(201, now) {
		t.Error("an answer from before a revocation stays beside its status")
	}
	put(201, 7)
	if got(201, now) {
		t.Error("an older answer came after a newer status")
	}
	// Another server was promoted, which gives numbers anew that this one's has shown.
	if c.begin(0) {
		t.Error("a history began that goes on")
	}
	put(202, 9)
	if !c.begin(2) || c.begin(2) || c.size() != 0 || got(202, now) {
		t.Error("an answer of a history that has ended was kept")
	}
	if _, _, ok := c.status(key(202), now); ok || c.upTo("one") != 0 {
		t.Error("a change of a history that has ended counts")
	}
	put(202, 9) // was read before it ended
	if got(202, now) {
		t.Error("an answer of a history that has ended was taken in after it")
	}
	c.keep(key(202), ca.Status{Issued: true, State: ca.Revoked, Change: 3}, now, 2, nil, 100)
	if c.size() != 1 {
		t.Error("a status of the history that has begun was not taken in")
	}
	c.clear()
	if c.size() != 0 || got(201, now) {
		t.Error("clear left something")
	}
}

func TestRequestsAboutSeveralIssuers(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{}, nil)
	o.withResponder()
	two, _, err := o.ca.CreateIssuer(t.Context(), o.by, ca.IssuerSpec{Name: "two", Subject: "CN=Issuer two,O=Fleet"})
	must(t, err)
	ids := func(issuer *x509.Certificate, serials ...int64) (all []ocsp.CertID) {
		name, key, err := ocsp.IssuerHashes(crypto.SHA256, issuer)
		must(t, err)
		for _, n := range serials {
			all = append(all, ocsp.CertID{Hash: crypto.SHA256, IssuerNameHash: name, IssuerKeyHash: key, Serial: big.NewInt(n)})
		}
		return all
	}
	one := ids(o.issuer.Certificate, 1, 2, 3)
	if issuers, err := o.service.issuersOf(t.Context(), one, time.Now()); err != nil || len(issuers) != 1 || issuers[0].ID != o.issuer.ID {
		t.Fatalf("%+v, %v", issuers, err)
	}
	if _, err := o.service.issuersOf(t.Context(), append(one, ids(two.Certificate, 4)...), time.Now().Add(time.Minute)); statusOf(err) != ocsp.Unauthorized {
		t.Fatalf("two issuers in one request: %v", err)
	}
}

func TestRetiredIssuerIsAnsweredFor(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		c := o.issue("a.example")
		_, err := o.ca.Retire(t.Context(), o.by, "one", once.Call{})
		must(t, err)
		o.run()
		o.respond(c, xocsp.Good)
		o.revoke(c, crl.CessationOfOperation)
		o.respond(c, xocsp.Revoked)
		o.list(Complete, has(c.SerialNumber, crl.CessationOfOperation))
	})
}

func TestResponderIsRenewedBeforeItEnds(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		lease := o.lease()
		keep := func(now time.Time) *x509.Certificate {
			must(t, o.service.keepResponder(t.Context(), lease, o.issuer, now))
			o.service.responders.byIssuer = make(map[string]*loadedResponders)
			r, err := o.service.responder(t.Context(), o.issuer, periodAt(time.Now(), time.Hour), time.Now())
			must(t, err)
			return r.Certificate
		}
		first := keep(time.Now())
		if len(first.ExtKeyUsage) != 1 || first.ExtKeyUsage[0] != x509.ExtKeyUsageOCSPSigning || first.IsCA {
			t.Fatalf("usages %v", first.ExtKeyUsage)
		}
		nocheck := false
		for _, e := range first.Extensions {
			nocheck = nocheck || e.Id.String() == "1.3.6.1.5.5.7.48.1.5"
		}
		if !nocheck {
			t.Error("the responder's certificate has no id-pkix-ocsp-nocheck")
		}
		if again := keep(time.Now().Add(10 * 24 * time.Hour)); !again.Equal(first) {
			t.Error("it was renewed with two thirds of its life left")
		}
		late := time.Now().Add(first.NotAfter.Sub(first.NotBefore) * 3 / 4)
		must(t, o.service.keepResponder(t.Context(), lease, o.issuer, late))
		count := func() (n int) {
			must(t, d.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM ocsp_responder`).Scan(&n) }))
			return n
		}
		if n := count(); n != 2 {
			t.Fatalf("%d responders are stored", n)
		}
		found, err := o.keys.Find(t.Context(), "ocsp", o.issuer.ID)
		must(t, err)
		must(t, o.service.dropResponders(t.Context(), lease, first.NotAfter.Add(48*time.Hour)))
		left, err := o.keys.Find(t.Context(), "ocsp", o.issuer.ID)
		must(t, err)
		if count() != 0 || len(found) != 2 || len(left) != 0 {
			t.Fatalf("%d responders, and %d of %d keys, are left", count(), len(left), len(found))
		}
	})
}

// BenchmarkRespond measures cached answers, and ones that are signed for a nonce.
func BenchmarkRespond(b *testing.B) {
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		o := newOffice(b, pkitest.Open(b, db.Options{URL: pkitest.URL(b, engine)}), ca.CRLMode{}, nil)
		o.withResponder()
		c := o.issue("a.example")
		request, err := xocsp.CreateRequest(c, o.issuer.Certificate, nil)
		must(b, err)
		b.Run(fmt.Sprintf("%s/cached", engine), func(b *testing.B) {
			for b.Loop() {
				if r, err := o.service.Respond(b.Context(), request, nil); err != nil || r.Status != ocsp.Successful {
					b.Fatal(r.Status, err)
				}
			}
		})
		stop := o.run()
		o.respond(c, xocsp.Good)
		nonce := withNonce(b, request)
		b.Run(fmt.Sprintf("%s/nonce", engine), func(b *testing.B) {
			for b.Loop() {
				if r, err := o.service.Respond(b.Context(), nonce, nil); err != nil || r.Cached {
					b.Fatal(r.Status, err)
				}
			}
		})
		stop()
		b.Run(fmt.Sprintf("%s/read", engine), func(b *testing.B) {
			for b.Loop() {
				o.service.answers.clear()
				if r, err := o.service.Respond(b.Context(), request, nil); err != nil || r.Cached {
					b.Fatal(r.Status, err)
				}
			}
		})
	}
}

// withNonce adds a nonce to a request, as openssl writes it.
func withNonce(t testing.TB, request []byte) []byte {
	t.Helper()
	input := cryptobyte.String(request)
	var outer, tbs cryptobyte.String
	if !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		t.Fatal("no request")
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(tbs)
			b.AddASN1(cbasn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier([]int{1, 3, 6, 1, 5, 5, 7, 48, 1, 2})
						b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(make([]byte, 32)) })
					})
				})
			})
		})
	})
	return b.BytesOrPanic()
}

// TestIssuerThatWasCertifiedAgain: two issuers of one name and one key look alike in a request.
func TestIssuerThatWasCertifiedAgain(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{}, nil)
	o.withResponder()
	c := o.issue("a.example")
	signer, err := o.keys.Signer(t.Context(), o.issuer.KeyID)
	must(t, err)
	template := *o.issuer.Certificate
	template.SerialNumber = big.NewInt(77)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, signer.Public(), signer)
	must(t, err)
	again, err := x509.ParseCertificate(der)
	must(t, err)
	_, err = o.ca.ImportIssuer(t.Context(), o.by, ca.ImportSpec{Name: "again", Certificate: again})
	must(t, err)
	issuers, err := o.ca.Issuers(t.Context())
	must(t, err)
	if len(issuers) != 2 {
		t.Fatalf("%d issuers", len(issuers))
	}
	for range 2 {
		if r, _ := o.ask(c, crypto.SHA256); r == nil || r.Status != xocsp.Good {
			t.Fatalf("answer %+v", r)
		}
	}
}

func TestEveryKindHasAStatus(t *testing.T) {
	for _, kind := range fault.Kinds {
		got := statusOf(fault.New(kind, "x"))
		if got == ocsp.Successful || (got == ocsp.InternalError) != (kind == fault.Internal) {
			t.Errorf("%s is answered with %v", kind, got)
		}
	}
	if statusOf(io.EOF) != ocsp.InternalError {
		t.Error("a plain error is no internalError")
	}
}
