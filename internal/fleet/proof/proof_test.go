package proof_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

func parsed(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	return must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes))
}

// TestProof plays a proof: hosts are told, get twins and controls, and what they say is shown.
func TestProof(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		web, far := a.join("web1", ""), a.join("far1", "lab")
		a.join("off1", "")
		stolen := newKey(t)
		c := a.certificate("", stolen)
		before := desired(t, a, web)
		a.revoke(c)
		p := a.start(c, client.ProveRequest{})
		if len(p.Trials) != 4 || p.Count(client.ProofWaiting) != 4 || p.Done() || p.Proven() || p.StartedBy != "operator:olga" {
			t.Fatalf("begun: %+v", p)
		}
		told := desired(t, a, web)
		if len(told.Proofs) != 1 || told.ETag == before.ETag {
			t.Fatalf("web1 is told %+v", told.Proofs)
		}
		want := client.Proof{ID: p.ID, Serial: cert.FormatSerial(c.Serial), Issuer: "default", IssuedBy: told.Proofs[0].IssuedBy, Algorithm: "ecdsa-p256", Controls: true,
			Ends: p.Ends}
		if got := told.Proofs[0]; got != want || len(got.IssuedBy) != 64 {
			t.Errorf("told %+v, want %+v", got, want)
		}
		if got := desired(t, a, far).Proofs; len(got) != 0 {
			t.Errorf("a host of another pool is told %+v", got)
		}

		key := newKey(t)
		twin := must[*client.ProofCertificate](t)(a.twin(web, p.ID, bare(t, key)))
		again := must[*client.ProofCertificate](t)(a.twin(web, p.ID, bare(t, key)))
		if twin.PEM != again.PEM || twin.Serial != again.Serial {
			t.Error("the same key got another twin")
		}
		a.looksLikeTwin(c, twin, key)
		control := must[*client.ProofCertificate](t)(a.control(web, p.ID, bare(t, newKey(t))))
		a.looksLikeControl(web, control)

		report := client.ProofReport{Trials: []client.ProofTrial{
			{Placement: "nginx", Result: client.ProofRefused, With: twin.Serial, CRL: "12", Detail: "it hung up"},
			{Placement: "plain", Result: client.ProofNotTried, Untried: client.UntriedNoPort, Detail: "it has no port"},
			{Placement: "nosuch", Result: client.ProofNotTried},
		}}
		check(t, a.Proofs.Report(t.Context(), web.principal, p.ID, report))
		check(t, a.Proofs.Report(t.Context(), web.principal, p.ID, report))
		seen := must[*client.ProofResult](t)(a.Proofs.Last(t.Context(), operator, refOf(c)))
		i := slices.IndexFunc(seen.Trials, func(t client.ProofTrial) bool { return t.Host == "web1" && t.Placement == "nginx" })
		if i < 0 || seen.Trials[i].Result != client.ProofRefused || !seen.Trials[i].Twin || seen.Count(client.ProofWaiting) != 2 || len(seen.Trials) != 4 ||
			seen.Ports() != 3 || !slices.Equal(seen.Twins, []string{"off1", "web1"}) {
			t.Errorf("seen: %+v", seen)
		}
		if got := len(a.events("proof.report")); got != 1 {
			t.Errorf("%d events of one report that was sent twice", got)
		}
		// A host that has said nothing for a while is silent, and so nothing is proven.
		a.exec(`UPDATE proof SET created_at = created_at - $1`, int64(time.Minute/time.Microsecond))
		seen = must[*client.ProofResult](t)(a.Proofs.Show(t.Context(), operator, p.ID))
		if seen.Count(client.ProofSilent) != 2 || !seen.Done() || seen.Proven() {
			t.Errorf("later: %+v", seen.Trials)
		}
		if n := must[int64](t)(a.Proofs.Prune(t.Context(), time.Now().Add(24*time.Hour), 10)); n != 0 {
			t.Errorf("%d proofs were pruned early", n)
		}
		if n := must[int64](t)(a.Proofs.Prune(t.Context(), time.Now().Add(91*24*time.Hour), 10)); n != 1 {
			t.Errorf("%d proofs were pruned", n)
		}
		_, err := a.Proofs.Last(t.Context(), operator, refOf(c))
		refused(t, err, fault.NotFound, "no proof of certificate")
		a.clean()
	})
}

// looksLikeTwin wants a twin to be what the certificate is, for another key, and revoked ever since.
func (a *authority) looksLikeTwin(c *ca.Certificate, twin *client.ProofCertificate, key crypto.Signer) {
	a.t.Helper()
	original, shown := must[*x509.Certificate](a.t)(c.Parsed()), parsed(a.t, twin.PEM)
	if string(shown.RawSubject) != string(original.RawSubject) || !slices.Equal(shown.EmailAddresses, original.EmailAddresses) {
		a.t.Errorf("the twin is for %s %v", shown.Subject, shown.EmailAddresses)
	}
	if !shown.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) || shown.CheckSignatureFrom(c.Issuer.Certificate) != nil {
		a.t.Error("the twin is for another key, or of another issuer")
	}
	if len(shown.ExtKeyUsage) != 1 || shown.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || shown.IsCA {
		a.t.Errorf("the twin is for %v", shown.ExtKeyUsage)
	}
	if left := time.Until(shown.NotAfter); left > time.Hour {
		a.t.Errorf("the twin lives %v", left)
	}
	if parsed(a.t, twin.Chain).Subject.String() != c.Issuer.Certificate.Subject.String() {
		a.t.Error("the path is another")
	}
	r := a.find(twin.Serial)
	if r.State != ca.Revoked || r.Revocation.Reason != crl.CessationOfOperation || r.Profile != "proof-twin" || r.Subject != c.Subject {
		a.t.Errorf("the inventory says %s %+v of profile %s for %s", r.State, r.Revocation, r.Profile, r.Subject)
	}
}

// looksLikeControl wants a control to be good, and to be the host's own.
func (a *authority) looksLikeControl(m *machine, control *client.ProofCertificate) {
	a.t.Helper()
	shown, r := parsed(a.t, control.PEM), a.find(control.Serial)
	if shown.Subject.String() != "CN="+m.name || !slices.Equal(shown.DNSNames, []string{m.name}) || len(shown.ExtKeyUsage) != 1 ||
		shown.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || time.Until(shown.NotAfter) > 10*time.Minute {
		a.t.Errorf("the control is for %s %v until %s", shown.Subject, shown.DNSNames, shown.NotAfter)
	}
	if r.State != ca.Valid || r.Profile != "proof-control" || r.Requester != m.principal.ID {
		a.t.Errorf("the inventory says %s of profile %s for %s", r.State, r.Profile, r.Requester)
	}
}

// TestWhatCannotBeProven: what is good, has ended, is an identity or an issuer; and who may not ask.
func TestWhatCannotBeProven(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		c := a.certificate("", newKey(t))
		start := func(by access.Principal, ref ca.Ref) error {
			_, err := a.Proofs.Start(t.Context(), by, ref, client.ProveRequest{}, once.Call{})
			return err
		}
		err := start(officer, refOf(c))
		refused(t, err, fault.Conflict, "is valid, and it is to be shown that a revoked one is refused")
		if hint := err.Error(); !strings.Contains(hint, cert.FormatSerial(c.Serial)) {
			t.Errorf("%s", hint)
		}
		a.revoke(c)
		refused(t, start(officer, refOf(c)), fault.Conflict, "nobody could be shown it")
		web := a.join("web1", "")
		refused(t, start(operator, refOf(c)), fault.Denied, "")
		refused(t, start(web.principal, refOf(c)), fault.Denied, "")
		check(t, start(officer, refOf(c)))

		twin := must[*client.ProofCertificate](t)(a.twin(web, desired(t, a, web).Proofs[0].ID, bare(t, newKey(t))))
		number, _ := cert.ParseSerial(twin.Serial)
		refused(t, start(officer, ca.Ref{Serial: number}), fault.Conflict, "is itself one of a proof")
		other := a.certificate("", newKey(t))
		a.revoke(other)
		a.exec(`UPDATE certificate SET not_after = $1 WHERE id = $2`, db.Micros(time.Now().Add(-time.Second)), other.ID)
		refused(t, start(officer, refOf(other)), fault.Conflict, "would prove nothing of its revocation")
		a.exec(`UPDATE certificate SET not_after = $1 WHERE id = $2`, db.Micros(other.NotAfter), other.ID)
		_, _, err = a.Profiles.Save(t.Context(), admin, []byte("name: proof-twin\nnames: {rules: [{}]}\nvalidity: {default: 1h}\n"), 0, once.Call{})
		refused(t, err, fault.Invalid, "another name would pass")
		a.clean()
	})
}

// TestHeld: what is on hold can be tried, and is said to be.
func TestHeld(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		web := a.join("web1", "")
		c := a.certificate("", newKey(t))
		_, err := a.CA.Hold(t.Context(), officer, refOf(c), "")
		check(t, err)
		p := a.start(c, client.ProveRequest{Twins: true})
		if p.State != "held" || !strings.Contains(p.Message, "hold is released") {
			t.Errorf("%+v", p)
		}
		twin := must[*client.ProofCertificate](t)(a.twin(web, p.ID, bare(t, newKey(t))))
		if r := a.find(twin.Serial); r.State != ca.Revoked {
			t.Errorf("the twin of what is on hold is %s", r.State)
		}
		refused(t, func() error {
			_, err := a.CA.Release(t.Context(), officer, refOf(a.find(twin.Serial)), "")
			return err
		}(), fault.Conflict, "only one that is held can be released")
		// After a release nobody gets a twin any more.
		other := a.join("web2", "")
		p = a.start(c, client.ProveRequest{Twins: true})
		_, err = a.CA.Release(t.Context(), officer, refOf(c), "")
		check(t, err)
		_, err = a.twin(other, p.ID, bare(t, newKey(t)))
		refused(t, err, fault.Conflict, "is valid")
		a.clean()
	})
}

// TestHostileAgents: what a host that was broken into may try to get out of a proof.
func TestHostileAgents(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		web, far := a.join("web1", ""), a.join("far1", "lab")
		stolen := newKey(t)
		c := a.certificate("", stolen)
		a.revoke(c)
		p := a.start(c, client.ProveRequest{})
		late := a.join("late1", "")
		key := newKey(t)
		for name, ask := range map[string]func() error{
			"another pool's host":                 func() error { _, err := a.twin(far, p.ID, bare(t, key)); return err },
			"a host that the proof does not name": func() error { _, err := a.control(late, p.ID, bare(t, key)); return err },
			"no proof at all":                     func() error { _, err := a.twin(web, db.NewID(), bare(t, key)); return err },
		} {
			if err := ask(); !fault.Is(err, fault.NotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
		refuse := func(template *cert.CSRTemplate, with crypto.Signer, text string) {
			t.Helper()
			for _, control := range []bool{false, true} {
				_, err := a.Proofs.Issue(t.Context(), web.principal, p.ID, client.ProofKeyRequest{CSR: csrOf(t, with, template), Control: control})
				if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), text) {
					t.Errorf("control %v: %v, want %q", control, err, text)
				}
			}
		}
		refuse(&cert.CSRTemplate{Subject: cert.CommonName("root")}, key, "asks for nothing would pass")
		refuse(&cert.CSRTemplate{SAN: []cert.GeneralName{cert.DNSName("victim.example.com")}}, key, "asks for nothing would pass")
		refuse(&cert.CSRTemplate{BasicConstraints: &cert.BasicConstraints{CA: true}}, key, "asks for nothing would pass")
		refuse(&cert.CSRTemplate{}, stolen, "keyCompromise") // the key of the certificate itself
		must[*client.ProofCertificate](t)(a.twin(web, p.ID, bare(t, key)))
		_, err := a.twin(web, p.ID, bare(t, newKey(t)))
		refused(t, err, fault.Conflict, "gets no second one")
		must[*client.ProofCertificate](t)(a.control(web, p.ID, bare(t, key)))
		_, err = a.control(web, p.ID, bare(t, newKey(t)))
		refused(t, err, fault.Conflict, "gets no second one")
		for _, r := range []client.ProofTrial{
			{Placement: "nginx", Result: client.ProofRefused},
			{Placement: "nginx", Result: client.ProofSilent},
			{Placement: "nginx", Result: client.ProofRefused, With: "7b"},
			{Placement: "nginx", Result: client.ProofNotTried, CRL: "twelve"},
			{Placement: "nginx", Result: client.ProofNotTried, Untried: "excused"},
			{Placement: "nginx", Result: client.ProofUnclear, Untried: client.UntriedNoPort},
		} {
			refused(t, a.Proofs.Report(t.Context(), web.principal, p.ID, client.ProofReport{Trials: []client.ProofTrial{r}}), fault.Invalid, "")
		}
		if err := a.Proofs.Report(t.Context(), far.principal, p.ID, client.ProofReport{}); !fault.Is(err, fault.NotFound) {
			t.Errorf("a report of another pool's host: %v", err)
		}

		without := a.start(c, client.ProveRequest{NoControls: true})
		_, err = a.control(web, without.ID, bare(t, newKey(t)))
		refused(t, err, fault.Denied, "begun without controls")
		_, err = a.twin(web, p.ID, bare(t, key)) // the newer proof has ended the other
		refused(t, err, fault.Conflict, "the proof ended")
		refused(t, a.Proofs.Report(t.Context(), web.principal, p.ID, client.ProofReport{}), fault.Conflict, "the proof ended")
		a.exec(`UPDATE host SET state = 'suspect' WHERE name = $1`, web.name)
		_, err = a.twin(web, without.ID, bare(t, newKey(t)))
		if err == nil {
			t.Error("a suspect host got a twin")
		}
		a.clean()
	})
}

// TestRates: twins are bounded as all that a host gets is.
func TestRates(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		web := a.join("web1", "")
		c := a.certificate("", newKey(t))
		a.revoke(c)
		set := must[int64](t)(a.duplicates())
		var err error
		for n := int64(0); n <= set && err == nil; n++ {
			p := a.start(c, client.ProveRequest{})
			_, err = a.twin(web, p.ID, bare(t, newKey(t)))
		}
		refused(t, err, fault.RateLimited, "certificates for")
	})
}

func (a *authority) duplicates() (int64, error) {
	s, err := a.Settings.Get(a.t.Context())
	if err != nil {
		return 0, err
	}
	return s.Limits.Duplicates, nil
}

// TestRetiredIssuer: what a retired issuer has signed can be tried, since its CRLs go on; it signs nothing good for it.
func TestRetiredIssuer(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		web := a.join("web1", "")
		c := a.certificate("", newKey(t))
		a.revoke(c)
		a.exec(`UPDATE issuer SET state = 'retired', is_default = 0 WHERE id = $1`, c.Issuer.ID)
		other := a.second()
		p := must[string](t)(other.Proofs.Start(t.Context(), officer, refOf(c), client.ProveRequest{}, once.Call{}))
		twin := must[*client.ProofCertificate](t)(other.twin(web, p, bare(t, newKey(t))))
		if r := a.find(twin.Serial); r.State != ca.Revoked {
			t.Errorf("the twin is %s", r.State)
		}
		_, err := other.control(web, p, bare(t, newKey(t)))
		refused(t, err, fault.Conflict, "only an active issuer issues")
		a.clean()
	})
}
