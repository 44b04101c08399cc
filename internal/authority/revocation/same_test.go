package revocation

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/profile"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/ocsp"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
	"chancery/internal/store/settings"
)

// saidBy is the ResponseData of an answer without producedAt and nonce, and the certificates that go with it.
func saidBy(t *testing.T, der []byte) string {
	t.Helper()
	var response struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type  asn1.ObjectIdentifier
			Octet []byte
		} `asn1:"explicit,tag:0"`
	}
	if rest, err := asn1.Unmarshal(der, &response); err != nil || len(rest) > 0 || response.Status != 0 {
		t.Fatalf("an answer of status %d: %v", response.Status, err)
	}
	var basic struct {
		Data struct {
			Responder  asn1.RawValue
			ProducedAt time.Time `asn1:"generalized"`
			Singles    asn1.RawValue
			Extensions asn1.RawValue `asn1:"optional"`
		}
		Algorithm    asn1.RawValue
		Signature    asn1.BitString
		Certificates asn1.RawValue `asn1:"optional"`
	}
	if rest, err := asn1.Unmarshal(response.Bytes.Octet, &basic); err != nil || len(rest) > 0 {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x\n%x\n%x\n%x", basic.Data.Responder.FullBytes, basic.Data.Singles.FullBytes, basic.Algorithm.FullBytes,
		basic.Certificates.FullBytes)
}

// join makes another node of a's authority, which runs ocsp alone.
func (a *office) join(d *db.DB, name string) *office {
	a.t.Helper()
	t := a.t
	key, err := keys.CreateNodeKey(filepath.Join(t.TempDir(), "node.key"))
	must(t, err)
	must(t, a.db.Tx(t.Context(), func(tx *db.Tx) error {
		return a.keys.AddRecipient(t.Context(), tx, keys.Recipient{ID: name, Kind: keys.KindNode, Name: name,
			Subsystems: []keys.Subsystem{keys.SubsystemOCSP}, PublicKey: key.Public()}, "test", time.Now())
	}))
	_, err = a.keys.Rewrap(t.Context(), name, "test")
	must(t, err)
	return a.start(d, name, key)
}

// start is a node that has joined.
func (a *office) start(d *db.DB, name string, key *keys.NodeKey) *office {
	t := a.t
	t.Helper()
	b := &office{t: t, db: d, by: a.by, issuer: a.issuer, name: name, key: key}
	var err error
	b.audit, err = audit.New(d, name)
	must(t, err)
	b.keys = keys.New(d, b.audit, name, key)
	b.settings = settings.New(d, b.audit)
	b.ca = ca.New(ca.Options{DB: d, Keys: b.keys, Profiles: profile.New(d, b.audit), Settings: b.settings, Audit: b.audit})
	b.service = New(Options{DB: d, CA: b.ca, Keys: b.keys, Settings: b.settings, Audit: b.audit, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	return b
}

// follow runs the loop of a node that answers only.
func (a *office) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.service.Follow(ctx) }()
	a.t.Cleanup(func() { cancel(); <-done })
}

// question is openssl's about some certificates.
func (o *office) question(nonce bool, certificates ...*x509.Certificate) []byte {
	o.t.Helper()
	dir := o.t.TempDir()
	file := func(name string, c *x509.Certificate) string {
		path := filepath.Join(dir, name)
		must(o.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600))
		return path
	}
	args := []string{"ocsp", "-sha256", "-no_nonce", "-issuer", file("issuer.pem", o.issuer.Certificate), "-reqout", filepath.Join(dir, "request")}
	if nonce {
		args[2] = "-nonce"
	}
	for i, c := range certificates {
		if c.Raw == nil {
			args = append(args, "-serial", c.SerialNumber.String())
			continue
		}
		args = append(args, "-cert", file(fmt.Sprintf("%d.pem", i), c))
	}
	if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
		o.t.Fatalf("openssl: %v\n%s", err, out)
	}
	der, err := os.ReadFile(filepath.Join(dir, "request"))
	must(o.t, err)
	return der
}

// accepted has OpenSSL and GnuTLS check an answer that says good.
func (o *office) accepted(name string, c *x509.Certificate, answer []byte) {
	o.t.Helper()
	dir := o.t.TempDir()
	for file, text := range map[string][]byte{
		"answer": answer, "leaf.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}),
		"issuer.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.issuer.Certificate.Raw}),
	} {
		must(o.t, os.WriteFile(filepath.Join(dir, file), text, 0o600))
	}
	for _, one := range []struct {
		args []string
		want string
	}{
		{[]string{"openssl", "ocsp", "-respin", "answer", "-sha256", "-issuer", "issuer.pem", "-cert", "leaf.pem", "-CAfile", "issuer.pem", "-no_nonce"}, "leaf.pem: good"},
		{[]string{"ocsptool", "--verify-response", "--infile", "answer", "--load-issuer", "issuer.pem", "--load-trust", "issuer.pem"}, "Success"},
	} {
		cmd := exec.Command(one.args[0], one.args[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), one.want) {
			o.t.Errorf("%s: %v: %v\n%s", name, one.args, err, out)
		}
	}
}

// TestNodesGiveTheSameAnswer asks a node with all subsystems and one that runs ocsp alone, at different times: about what is good,
// revoked, held, released and never issued, alone and together, and while the responder is renewed.
func TestNodesGiveTheSameAnswer(t *testing.T) {
	const validity = 10 * time.Minute
	url := pkitest.URL(t, db.Postgres)
	a := newOffice(t, pkitest.Open(t, db.Options{URL: url}), ca.CRLMode{}, func(s *settings.Settings) { s.OCSP.Validity = settings.Duration(validity) })
	a.withResponder()
	b := a.join(pkitest.Open(t, db.Options{URL: url}), "node-ocsp")
	good, revoked, held, released := a.issue("good.example"), a.issue("revoked.example"), a.issue("held.example"), a.issue("released.example")
	never := x509.Certificate{SerialNumber: big.NewInt(424242)}
	a.revoke(revoked, crl.KeyCompromise)
	a.revoke(held, crl.CertificateHold)
	a.revoke(released, crl.CertificateHold)
	_, err := a.ca.Release(t.Context(), a.by, a.ref(released), "")
	must(t, err)
	all := []*x509.Certificate{good, revoked, held, released, &never}
	questions := [][]byte{a.question(false, all...), a.question(true, good)}
	for _, c := range all {
		questions = append(questions, a.question(false, c))
	}
	compare := func() {
		t.Helper()
		for i, q := range questions {
			// Only what both say within one period is compared: where another began meanwhile, both are asked again.
			for within := false; !within; {
				began := periodAt(time.Now(), validity)
				first, err := a.service.Respond(t.Context(), q, nil)
				must(t, err)
				second, err := b.service.Respond(t.Context(), q, nil)
				must(t, err)
				one, two := saidBy(t, first.DER), saidBy(t, second.DER)
				if within = periodAt(time.Now(), validity) == began; within && one != two {
					t.Fatalf("question %d: the nodes differ:\n%s\n%s", i, one, two)
				}
			}
		}
	}
	compare()
	// One node has answers kept from before; the other one begins afresh. Periods are of four seconds here.
	b.service.answers.clear()
	begun := time.Now().Unix()
	await(t, "another second", func() bool { return time.Now().Unix() > begun })
	compare()

	for name, o := range map[string]*office{"openssl and ocsptool, a": a, "openssl and ocsptool, b": b} {
		answer, err := o.service.Respond(t.Context(), o.question(false, good), nil)
		must(t, err)
		o.accepted(name, good, answer.DER)
	}

	// A new responder does not sign before each node has had time to see it.
	_, r := a.ask(good, crypto.SHA256)
	before := saidBy(t, r.DER)
	lease := a.lease()
	must(t, a.service.makeResponder(t.Context(), lease, a.issuer, time.Now()))
	a.service.responders.byIssuer = map[string]*loadedResponders{} // a has looked, and b not yet
	compare()
	first, err := a.service.responder(t.Context(), a.issuer, periodAt(time.Now(), time.Hour), time.Now())
	must(t, err)
	later := time.Now().Add(responderSettles)
	b.service.responders.byIssuer = map[string]*loadedResponders{}
	for _, o := range []*office{a, b} {
		now, err := o.service.responder(t.Context(), a.issuer, periodAt(time.Now(), time.Hour), time.Now())
		must(t, err)
		then, err := o.service.responder(t.Context(), a.issuer, periodAt(later, time.Hour), later)
		must(t, err)
		if !now.Certificate.Equal(first.Certificate) || then.Certificate.Equal(first.Certificate) {
			t.Error("the new responder signs too early, or never")
		}
	}
	if len(before) == 0 {
		t.Fatal("nothing was compared")
	}

	// The node that runs ocsp alone signs answers, and cannot have the issuer's key.
	if _, err := b.keys.Signer(t.Context(), a.issuer.KeyID); !fault.Is(err, fault.Denied) {
		t.Fatalf("a node that runs ocsp alone opens the issuer's key: %v", err)
	}
}

// forgetAnswers drops what was signed, and no status.
func (o *office) forgetAnswers() {
	c := o.service.answers
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.byKey {
		e.Value.(*known).answers = nil
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come to be within three minutes", what)
		}
	}
}

// watched has the servers of databases be watched until the test ends.
func watched(t *testing.T, all ...*db.DB) {
	for _, one := range all {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- one.Watch(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
}

// TestAnswersWhileThePrimaryIsAway: a node with a standby of its own goes on from there, and one without from what it keeps, until
// nextUpdate and not longer.
func TestAnswersWhileThePrimaryIsAway(t *testing.T) {
	primary := pkitest.Postgres(t, "fsync=off", "full_page_writes=off", "wal_keep_size=64MB")
	primary.Exec(t, "CREATE DATABASE chancery")
	d := pkitest.Open(t, db.Options{URL: primary.TCP("chancery"), Patience: time.Second})
	must(t, schema.Migrate(t.Context(), d))
	a := newOffice(t, d, ca.CRLMode{}, nil)
	a.run()
	standby := primary.Standby(t, "n1", "fsync=off")
	options := db.Options{URL: primary.TCP("chancery"), ReadURL: standby.URL("chancery"), Node: "near", Patience: time.Second,
		MarkFile: filepath.Join(t.TempDir(), "mark")}
	near := pkitest.Open(t, options)
	b := a.join(near, "near")
	b.follow()
	watched(t, d, near)
	asked, unasked, bad, elsewhere := a.issue("asked.example"), a.issue("unasked.example"), a.issue("bad.example"), a.issue("elsewhere.example")
	a.revoke(bad, crl.Superseded)
	a.list(Complete, has(bad.SerialNumber, crl.Superseded))
	must(t, near.Heartbeat(t.Context(), time.Now()))
	standby.Replayed(t, primary)
	for _, o := range []*office{a, b} {
		o.respond(asked, xocsp.Good)
		o.respond(bad, xocsp.Revoked)
		await(t, "the CRL in memory", func() bool { return o.service.shelf.at(place{a.issuer.ID, Complete}) != nil })
	}
	// On this node the revocation was made, and its standby does not have it.
	standby.Exec(t, "SELECT pg_wal_replay_pause()")
	own := a.issue("own.example")
	b.revoke(own, crl.KeyCompromise)
	b.respond(own, xocsp.Revoked)
	// On another it was made, and this one reaches the primary, which has it.
	b.respond(elsewhere, xocsp.Good)
	a.revoke(elsewhere, crl.KeyCompromise)
	await(t, "the revocation at a node whose standby stands still", func() bool {
		got, _ := b.ask(elsewhere, crypto.SHA1)
		return got != nil && got.Status == xocsp.Revoked
	})

	primary.Freeze(t)
	await(t, "the absence of the primary", func() bool { return d.Away() != nil && near.Away() != nil })
	answers := func(o *office, c *x509.Certificate, want int) {
		t.Helper()
		got, r := o.ask(c, crypto.SHA1)
		if got == nil || got.Status != want || !time.Now().Before(got.NextUpdate) {
			t.Errorf("%+v, %v", got, r.Status)
		}
	}
	for _, o := range []*office{a, b} {
		answers(o, asked, xocsp.Good)
		answers(o, bad, xocsp.Revoked)
		o.forgetAnswers() // the statuses stay, and are signed again
		answers(o, asked, xocsp.Good)
		list, err := o.service.Current(t.Context(), "one", Complete)
		must(t, err)
		var octets bytes.Buffer
		must(t, o.service.WriteTo(t.Context(), &octets, list))
		if parsed, err := x509.ParseRevocationList(octets.Bytes()); err != nil || parsed.CheckSignatureFrom(a.issuer.Certificate) != nil {
			t.Errorf("the CRL: %v", err)
		}
	}
	answers(b, unasked, xocsp.Good) // it is in the standby
	if !b.keeps(unasked) {
		t.Error("what is read at a standby that lacks something is signed for each question")
	}
	if _, r := a.ask(unasked, crypto.SHA1); r.Status != ocsp.TryLater {
		t.Errorf("what nobody asked about, without a standby: %v", r.Status)
	}
	b.service.answers.clear()
	if got, _ := b.ask(elsewhere, crypto.SHA1); got != nil && got.Status == xocsp.Good {
		t.Error("what this node has told to be revoked is good again")
	}
	if _, r := b.ask(own, crypto.SHA1); r.Status != ocsp.TryLater {
		t.Errorf("what this node has revoked, and its standby has not heard of: %v", r.Status)
	}
	never := *own
	never.SerialNumber = big.NewInt(424242)
	if _, r := b.ask(&never, crypto.SHA1); r.Status != ocsp.TryLater {
		t.Errorf("what may have been issued since: %v", r.Status)
	}
	// The node is started again, and remembers nothing: its own revocation might be of any serial that is not known to be revoked.
	started := pkitest.Open(t, options)
	must(t, started.LearnClock(t.Context()))
	b = a.start(started, b.name, b.key)
	answers(b, bad, xocsp.Revoked)
	for _, c := range []*x509.Certificate{own, unasked} {
		if _, r := b.ask(c, crypto.SHA1); r.Status != ocsp.TryLater {
			t.Errorf("after a start, of what a standby may know too little: %v", r.Status)
		}
	}
	standby.Exec(t, "SELECT pg_wal_replay_resume()")
	await(t, "the revocation at the standby", func() bool { got, _ := b.ask(own, crypto.SHA1); return got != nil && got.Status == xocsp.Revoked })
	answers(b, unasked, xocsp.Good)
	// A standby that never showed how old it is: what it says is of no time.
	silent := pkitest.Open(t, options)
	if age := silent.Age(time.Now()); silent.Away() == nil || age < 24*time.Hour {
		t.Errorf("data of unknown age are called %v old", age)
	}
	// What is known ends.
	set, err := b.settings.Get(t.Context())
	must(t, err)
	of := periodAt(time.Now().Add(-set.OCSP.Validity.Std()-mostPeriod), set.OCSP.Validity.Std())
	if _, _, err := of.updates(ca.Status{}, time.Now().Add(time.Hour), time.Now()); statusOf(err) != ocsp.TryLater {
		t.Errorf("an answer past its nextUpdate: %v", err)
	}
}
