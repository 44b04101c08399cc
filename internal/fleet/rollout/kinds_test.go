package rollout_test

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

func TestRotateIssuerStaysBelowTheRoot(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(4)
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Waves: []string{"host:h02.example.com", "50%"}})
		first := w.untilStage(client.StageTrust)
		if first.Waves[0].Hosts != 1 || first.Waves[1].Hosts != 1 || first.Waves[2].Hosts != 2 {
			t.Errorf("the waves are %+v", first.Waves)
		}
		w.untilState(client.RolloutDone)
		fresh := w.issuer("lab-2")
		if w.under("lab-2") != 4 || fresh.Parent != w.issuer("lab-root").ID || fresh.Certificate.Subject.String() == w.issuer("lab").Certificate.Subject.String() {
			t.Errorf("%d hosts are under %q, whose parent is %q", w.under("lab-2"), fresh.Certificate.Subject, fresh.Parent)
		}
		if w.issuer("lab-root").State != ca.IssuerActive || w.issuer("lab").State != ca.IssuerRetired {
			t.Error("the wrong issuers are retired")
		}
		if n := w.events("rollout.stage"); n != 3 {
			t.Errorf("%d stages are in the audit, not 3", n)
		}
		if w.events("rollout.start") != 1 || w.events("rollout.done") != 1 || w.events("rollout.wave") == 0 {
			t.Error("the audit lacks the beginning, a wave, or the end")
		}
	})
}

func TestIdentitiesAreRekeyed(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(3)
		w.start(client.StartRolloutRequest{Kind: client.RolloutIdentities})
		w.untilState(client.RolloutDone)
		for _, a := range w.hosts {
			if a.generation != 2 {
				t.Errorf("%s is at generation %d, not 2", a.name, a.generation)
			}
		}
	})
}

func TestAlgorithmChangesAndComesBack(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(4)
		w.add(client.AddHostRequest{Name: "virt.example.com", Placements: []client.PlacementOrder{
			{Recipe: "libvirt-server", Parameters: map[string]string{"key": "rsa-4096"}}}}).converge()
		algorithms := func() (all []string) {
			for _, a := range w.hosts {
				h := must[*client.Host](t)(w.Hosts.Show(t.Context(), operator, a.name))
				for _, p := range h.Placements {
					all = append(all, p.Parameters["algorithm"]+p.Parameters["key"][max(0, len(p.Parameters["key"])-8):])
				}
			}
			return all
		}
		before := strings.Join(algorithms(), " ")
		w.start(client.StartRolloutRequest{Kind: client.RolloutAlgorithm, Algorithm: "ecdsa-p384"})
		half := w.until("the second wave", func(r *client.Rollout) bool { return r.Wave == 3 })
		if half.State != client.RolloutRunning {
			t.Fatalf("it is %s", half.State)
		}
		must[*client.Rollout](t)(w.Rollouts.Undo(t.Context(), admin, w.id, once.Call{}))
		w.untilState(client.RolloutUndone)
		if after := strings.Join(algorithms(), " "); after != before {
			t.Errorf("undone, the algorithms are %q, and were %q", after, before)
		}
		w.start(client.StartRolloutRequest{Kind: client.RolloutAlgorithm, Algorithm: "p384"})
		w.untilState(client.RolloutDone)
		if after := strings.Join(algorithms(), " "); strings.Count(after, "ecdsa-p384")+strings.Count(after, "dsa-p384") < 5 {
			t.Errorf("done, the algorithms are %q", after)
		}
		r := w.start(client.StartRolloutRequest{Kind: client.RolloutAlgorithm, Algorithm: "ed25519"})
		if r.Plan.Hosts != 4 || !strings.Contains(strings.Join(r.Plan.Notes, "\n"), "libvirt-server does not offer ed25519") {
			t.Errorf("%d hosts; %q", r.Plan.Hosts, r.Plan.Notes)
		}
	})
}

func TestSelectNarrowsAReissue(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		w.add(client.AddHostRequest{Name: "b1.example.com", Labels: map[string]string{"site": "berlin"}}).converge()
		w.add(client.AddHostRequest{Name: "b2.example.com", Labels: map[string]string{"site": "berlin"}}).converge()
		r := w.start(client.StartRolloutRequest{Kind: client.RolloutReissue, Select: []string{"label:site=berlin", "h01.example.com"}})
		if r.Plan.Hosts != 3 {
			t.Errorf("%d hosts are selected, not 3", r.Plan.Hosts)
		}
		w.untilState(client.RolloutDone)
		again := 0
		for _, a := range w.hosts {
			if a.reissued["plain"] > 0 {
				again++
			}
		}
		if again != 3 {
			t.Errorf("%d hosts were re-issued, not 3", again)
		}
	})
}

func TestPoolOfNoneAndOfOne(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer})
		w.untilState(client.RolloutDone)
		w.start(client.StartRolloutRequest{Kind: client.RolloutReissue})
		w.untilState(client.RolloutDone)
		w.addMany(1)
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true})
		w.untilState(client.RolloutDone)
		if w.under("lab-3") != 1 {
			t.Error("the pool's one host is not under the new issuer")
		}
	})
}

func TestSecondRolloutOnAPoolIsRefused(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		call := once.Call{Caller: "c", Key: "k", Request: []byte("r")}
		in := client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Pool: lab}
		first := must[*client.Rollout](t)(w.Rollouts.Start(t.Context(), admin, in, call))
		again := must[*client.Rollout](t)(w.Rollouts.Start(t.Context(), admin, in, call))
		if first.ID != again.ID {
			t.Errorf("the same call began rollouts %s and %s", first.ID, again.ID)
		}
		_, err := w.Rollouts.Start(t.Context(), admin, client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: lab}, once.Call{})
		refused(t, err, fault.Conflict, "rollout "+first.ID+" (rotate-root) is at work on pool")
		_, err = w.Trust.Add(t.Context(), admin, lab, client.AddTrustRequest{PEM: "x"}, once.Call{})
		if err == nil {
			t.Error("the pool's trust was changed beside the rollout")
		}
		other := must[*client.Rollout](t)(w.Rollouts.Start(t.Context(), admin, client.StartRolloutRequest{Kind: client.RolloutReissue}, once.Call{}))
		if other.Pool != "default" {
			t.Errorf("the other pool's is of %s", other.Pool)
		}
		_, err = w.Rollouts.Show(t.Context(), admin, "")
		refused(t, err, fault.Invalid, "several rollouts run")
	})
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(1)
		for _, c := range []struct {
			in   client.StartRolloutRequest
			kind fault.Kind
			text string
		}{
			{client.StartRolloutRequest{Kind: "rotate"}, fault.Invalid, "is not one of"},
			{client.StartRolloutRequest{Kind: client.RolloutRoot, Select: []string{"h00.example.com"}}, fault.Invalid, "for all hosts of the pool"},
			{client.StartRolloutRequest{Kind: client.RolloutAlgorithm}, fault.Invalid, "which algorithm"},
			{client.StartRolloutRequest{Kind: client.RolloutAlgorithm, Algorithm: "rot13"}, fault.Invalid, "rot13"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Algorithm: "p384"}, fault.Invalid, "keeps the algorithm"},
			{client.StartRolloutRequest{Kind: client.RolloutRotateAway}, fault.Invalid, "away from what"},
			{client.StartRolloutRequest{Kind: client.RolloutRotateAway, From: "nosuch"}, fault.NotFound, "nosuch"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, From: "lab"}, fault.Invalid, "only a rollout rotate-away"},
			{client.StartRolloutRequest{Kind: client.RolloutIssuer, Online: true}, fault.Invalid, "makes no root"},
			{client.StartRolloutRequest{Kind: client.RolloutIdentities, Compromised: true, Because: "x"}, fault.Invalid, "cannot ask for another"},
			{client.StartRolloutRequest{Kind: client.RolloutRoot, Compromised: true}, fault.Invalid, "needs a reason"},
			{client.StartRolloutRequest{Kind: client.RolloutRoot, Compromised: true, Because: "x", Waves: []string{"5%"}}, fault.Invalid, "no waves"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Except: []string{"h00.example.com"}}, fault.Invalid, "needs a reason"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Because: "x"}, fault.Invalid, "nothing is left out"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Except: []string{"nosuch"}, Because: "x"}, fault.Invalid, "neither a host of pool"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Select: []string{"nosuch"}}, fault.Invalid, "no host of pool"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Select: []string{"label:site"}}, fault.Invalid, "selects no hosts"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Waves: []string{"50%", "10%"}}, fault.Invalid, "is above theirs"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Waves: []string{"0%"}}, fault.Invalid, "no percentage"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Waves: []string{"all"}}, fault.Invalid, "is no wave"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Waves: []string{"label:site=nowhere"}}, fault.Invalid, "no host of pool"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: "identity"}, fault.Invalid, "no host is in it"},
			{client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: "nosuch"}, fault.NotFound, "nosuch"},
		} {
			if c.in.Pool == "" {
				c.in.Pool = lab
			}
			_, err := w.Rollouts.Start(t.Context(), admin, c.in, once.Call{})
			refused(t, err, c.kind, c.text)
		}
		for _, by := range []access.Principal{operator, auditor} {
			_, err := w.Rollouts.Start(t.Context(), by, client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Pool: lab}, once.Call{})
			refused(t, err, fault.Denied, "")
		}
		if all, _, err := w.Rollouts.List(t.Context(), auditor, "", "", 10); err != nil || len(all) != 0 {
			t.Errorf("refused, and there are %d: %v", len(all), err)
		}
	})
}

func TestDryRunSaysWhoWouldHold(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(4)
		w.hosts[1].fails = "nginx does not start: no such file"
		w.hosts[1].converge()
		issued := must[*ca.Certificate](t)(w.CA.Issue(t.Context(), admin, ca.Order{Profile: "server", Pool: lab, CSR: []byte(newCSR(t, "own.example.com"))}))
		in := client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Pool: lab, DryRun: true}
		r := must[*client.Rollout](t)(w.Rollouts.Start(t.Context(), admin, in, once.Call{}))
		var held []string
		for _, h := range r.Plan.Would {
			held = append(held, h.Host+h.Serial+": "+h.Message)
		}
		all := strings.Join(held, "\n")
		if !strings.Contains(all, "h01.example.com: placement plain fails: nginx does not start") ||
			!strings.Contains(all, cert.FormatSerial(issued.Serial)) || len(held) != 2 {
			t.Errorf("who would hold it:\n%s", all)
		}
		if r.ID != "" || len(r.Plan.Actions) != 4 || r.Plan.Files != 24 || r.Plan.Seconds == 0 || r.Plan.Reloads != 12 {
			t.Errorf("the plan is %+v", r.Plan)
		}
		if _, err := w.CA.Issuer(t.Context(), "lab-2"); !fault.Is(err, fault.NotFound) {
			t.Errorf("a dry run made an issuer: %v", err)
		}
		in.Compromised, in.Because = true, "stolen"
		r = must[*client.Rollout](t)(w.Rollouts.Start(t.Context(), admin, in, once.Call{}))
		if len(r.Plan.Breaks) != 4 || len(r.Waves) != 1 {
			t.Errorf("it breaks %+v in %+v", r.Plan.Breaks, r.Waves)
		}
	})
}

func TestCompromisedDropsAtOnce(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.unsafe = true
		w.addMany(4)
		w.hosts[3].silent = true
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Compromised: true, Because: "the key was on a laptop"})
		held := w.until("the others are done", func(r *client.Rollout) bool {
			return r.Stage == client.StageRekey && len(r.Waves) == 1 && r.Waves[0].Done == 3
		})
		if len(held.Holding) != 1 || held.Holding[0].Host != w.hosts[3].name {
			t.Errorf("it is held by %+v", held.Holding)
		}
		old := w.issuer("lab")
		found := must[*ca.Certificate](t)(w.CA.Find(t.Context(), access.System("n1"), ca.Ref{Issuer: "lab-root", Serial: old.Certificate.SerialNumber}))
		if found.State != ca.Revoked || found.Revocation.Reason.String() != "cACompromise" || old.State != ca.IssuerRetired {
			t.Errorf("the old issuer is %s, its certificate %s", old.State, found.State)
		}
		for _, print := range w.trusts(0) {
			if print == print256(old.Certificate) {
				t.Error("the old issuer is trusted still")
			}
		}
		_, err := w.Rollouts.Undo(t.Context(), admin, w.id, once.Call{})
		refused(t, err, fault.Conflict, "is compromised")
		must[*client.Rollout](t)(w.Rollouts.Resume(t.Context(), admin, w.id, client.ResumeRolloutRequest{
			Except: []string{w.hosts[3].name}, Because: "it is in the cellar"}, once.Call{}))
		w.untilState(client.RolloutDone)
		w.hosts[3].silent = false // it comes back, and is told all the same
		w.hosts[3].converge()
		if w.under("lab-2") != 4 {
			t.Errorf("%d of 4 are under the new issuer", w.under("lab-2"))
		}
	})
}

// TestCompromisedRootStaysOut: nobody can revoke a root, and yet its key is neither trusted nor issued with again, nor is that of the issuer below it.
func TestCompromisedRootStaysOut(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w, ctx := newWorld(t, d), t.Context()
		w.unsafe = true
		w.addMany(2)
		root, issuer := w.issuer("lab-root"), w.issuer("lab")
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Compromised: true, Because: "the safe was opened"})
		w.untilState(client.RolloutDone)
		for _, i := range []*ca.Issuer{root, issuer} {
			_, err := w.Trust.Add(ctx, admin, "lab", client.AddTrustRequest{PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate.Raw}))}, once.Call{})
			refused(t, err, fault.Denied, "is known to be compromised")
			hinted(t, err, "pool trust add")
			_, err = w.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: i.Name, Answer: []*x509.Certificate{i.Certificate}})
			refused(t, err, fault.Denied, "is known to be compromised")
			hinted(t, err, "rollout start rotate-issuer --pool lab")
		}
	})
}

func TestCompromisedReissueRevokesFirst(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(3)
		old := w.hosts[1].certs["plain"]
		w.start(client.StartRolloutRequest{Kind: client.RolloutReissue, Select: []string{w.hosts[1].name}, Compromised: true, Because: "stolen disk"})
		w.untilState(client.RolloutDone)
		found := must[*ca.Certificate](t)(w.CA.Find(t.Context(), access.System("n1"), ca.Ref{Issuer: "lab", Serial: old.Serial}))
		if found.State != ca.Revoked || found.Revocation.Reason.String() != "keyCompromise" {
			t.Errorf("the old certificate is %s", found.State)
		}
		now := w.hosts[1].certs["plain"]
		fresh := must[*ca.Certificate](t)(w.CA.Find(t.Context(), access.System("n1"), ca.Ref{Issuer: "lab", Serial: now.Serial}))
		if now.Serial.Cmp(old.Serial) == 0 || fresh.State != ca.Valid || w.hosts[0].reissued["plain"] != 0 {
			t.Error("the new certificate is not as it should be")
		}
	})
}

// TestOperatorsCertificatesHoldTheLastStage: nobody replaces what an operator got for himself, so the rollout names it.
func TestOperatorsCertificatesHoldTheLastStage(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		issue := func() string {
			c := must[*ca.Certificate](t)(w.CA.Issue(t.Context(), admin, ca.Order{Profile: "server", Pool: lab, CSR: []byte(newCSR(t, "own.example.com"))}))
			return cert.FormatSerial(c.Serial)
		}
		one, two := issue(), issue()
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Except: []string{one}, Because: "it is of the old mail server"})
		held := w.until("it is held", func(r *client.Rollout) bool { return len(r.Holding) == 1 && r.Holding[0].Serial != "" })
		if held.Stage != client.StageRekey || held.Holding[0].Serial != two || !strings.Contains(held.Holding[0].Message, "no host replaces it") {
			t.Errorf("held at %s by %+v, and %s it is", held.Stage, held.Holding, two)
		}
		// Another one for the same name, under the new issuer, may be for another machine: it does not stand for the first.
		issue()
		held = w.until("it is held still", func(r *client.Rollout) bool { return len(r.Holding) == 1 && r.Holding[0].Serial != "" })
		if held.Stage != client.StageRekey || held.Holding[0].Serial != two {
			t.Errorf("held at %s by %+v", held.Stage, held.Holding)
		}
		must[*client.Rollout](t)(w.Rollouts.Resume(t.Context(), admin, w.id, client.ResumeRolloutRequest{Except: []string{two}, Because: "gone"}, once.Call{}))
		done := w.untilState(client.RolloutDone)
		if len(done.Excepted) != 2 || w.events("rollout.except") != 2 {
			t.Errorf("left out: %+v, in %d events", done.Excepted, w.events("rollout.except"))
		}
	})
}

func TestRotateAwayFromAForeignAnchor(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		foreign := foreignRoot(t, "Old Company CA")
		entries := must[[]client.TrustEntry](t)(w.Trust.Add(t.Context(), admin, lab, client.AddTrustRequest{PEM: foreign}, once.Call{}))
		w.start(client.StartRolloutRequest{Kind: client.RolloutRotateAway, From: entries[0].Fingerprint})
		w.untilState(client.RolloutDone)
		for _, e := range must[[]client.TrustEntry](t)(w.Trust.Entries(t.Context(), admin, lab)) {
			if e.Fingerprint == entries[0].Fingerprint {
				t.Errorf("it is trusted still: %+v", e)
			}
		}
		if w.under("lab") != 2 || w.issuer("lab").State != ca.IssuerActive {
			t.Error("the pool's own issuer is not as it was")
		}
	})
}

func TestRotateAwayFromAnImportedIssuer(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		imported, key := foreignCA(t, "Imported CA")
		must[*ca.Issuer](t)(w.CA.ImportIssuer(t.Context(), access.System("n1"), ca.ImportSpec{Name: "legacy", Pool: lab, Certificate: imported, Key: key}))
		must[*ca.Issuer](t)(w.CA.SetDefault(t.Context(), access.System("n1"), "legacy", once.Call{}))
		w.waitCRL("legacy")
		w.addMany(3)
		if w.under("legacy") != 3 {
			t.Fatal("the imported CA issued nothing")
		}
		w.start(client.StartRolloutRequest{Kind: client.RolloutRotateAway, From: "legacy"})
		w.untilState(client.RolloutDone)
		if w.under("lab") != 3 || w.issuer("legacy").State != ca.IssuerRetired || !w.issuer("lab").Default {
			t.Errorf("%d of 3 are under the pool's own issuer", w.under("lab"))
		}
		if len(w.trusts(0)) == 0 {
			t.Fatal("nothing is trusted")
		}
		for _, print := range w.trusts(0) {
			if print == print256(imported) {
				t.Error("the imported CA is trusted still")
			}
		}
	})
}

// TestOfflineRootSignsElsewhere: the rollout waits for what the owner of the new root signs.
func TestOfflineRootSignsElsewhere(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		r := w.start(client.StartRolloutRequest{Kind: client.RolloutRoot})
		if r.CSR == "" || r.Root != "lab-root-2" || r.RootSubject == "" {
			t.Fatalf("there is nothing to sign: %+v", r)
		}
		r = w.until("it waits", func(r *client.Rollout) bool { return r.State == client.RolloutWaiting })
		if !strings.Contains(r.Message, "chancery rollout complete "+r.ID) {
			t.Errorf("it says %q", r.Message)
		}
		above, issuer, list := signRoot(t, r)
		_, err := w.Rollouts.Complete(t.Context(), admin, r.ID, w.issuer("lab-root").Certificate, issuer, list, once.Call{})
		refused(t, err, fault.Invalid, "")
		for range 2 {
			must[*client.Rollout](t)(w.Rollouts.Complete(t.Context(), admin, r.ID, above, issuer, list, once.Call{}))
		}
		w.untilState(client.RolloutDone)
		if w.under("lab-2") != 2 || w.issuer("lab-root-2").KeyID != "" {
			t.Error("the hosts are not under the new root, or its key is here")
		}
	})
}

func TestPendingHostsHoldNothing(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		made := must[*client.HostToken](t)(w.Hosts.Add(t.Context(), operator, client.AddHostRequest{Name: "later.example.com", Pool: lab,
			Placements: []client.PlacementOrder{plain()}, Profiles: []string{"server"}}, ""))
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true})
		w.untilStage(client.StageRekey)
		// It joins in the midst, another one is added, and a third is removed.
		w.joins(made)
		w.add(client.AddHostRequest{Name: "new.example.com"})
		check(t, w.Hosts.Remove(t.Context(), operator, w.hosts[0].name, "", ""))
		w.hosts = w.hosts[1:]
		done := w.untilState(client.RolloutDone)
		if w.under("lab-2") != 3 {
			t.Errorf("%d of 3 are under the new issuer: %+v", w.under("lab-2"), done)
		}
	})
}

func TestPruneKeepsTheNewest(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(1)
		for range 2 {
			w.start(client.StartRolloutRequest{Kind: client.RolloutReissue})
			w.untilState(client.RolloutDone)
		}
		for range 3 {
			must[int64](t)(w.Rollouts.Prune(t.Context(), time.Now().Add(500*24*time.Hour), 100))
		}
		all, _, err := w.Rollouts.List(t.Context(), auditor, lab, "", 10)
		if err != nil || len(all) != 1 || all[0].ID != "2" {
			t.Errorf("%+v, %v", all, err)
		}
		if next := w.start(client.StartRolloutRequest{Kind: client.RolloutReissue}); next.ID != "3" {
			t.Errorf("the next is rollout %s", next.ID)
		}
	})
}
