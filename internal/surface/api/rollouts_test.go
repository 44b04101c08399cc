package api_test

import (
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/store/access"
)

// walkRollouts starts rollouts as roles may, pauses, resumes, completes, undoes and aborts them.
func walkRollouts(t *testing.T, a *authority) {
	ctx, admin, operator, auditor := t.Context(), a.as(access.Admin), a.as(access.Operator), a.as(access.Auditor)
	for _, name := range []string{"moved", "signed"} {
		_, err := admin.AddPool(ctx, client.AddPoolRequest{Name: name, Online: true})
		must(t, err)
	}
	a.join(client.AddHostRequest{Name: "moved.test", Pool: "moved", Placements: []client.PlacementOrder{{Recipe: "plain", Parameters: map[string]string{
		"key": "/etc/ssl/x.key", "cert": "/etc/ssl/x.pem",
	}}}})
	refuseRollouts(t, a)

	plan, err := operator.StartRollout(ctx, client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: "moved", Online: true, DryRun: true})
	must(t, err)
	if plan.ID != "" || plan.Plan.Hosts != 1 || len(plan.Plan.Actions) == 0 {
		t.Errorf("planned %+v", plan)
	}
	key := client.WithIdempotencyKey(ctx, "rollout-1")
	in := client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: "moved"}
	started, err := operator.StartRollout(key, in)
	must(t, err)
	again, err := operator.StartRollout(key, in)
	must(t, err)
	if started.ID == "" || again.ID != started.ID || started.State != client.RolloutRunning || started.Actor == "" {
		t.Fatalf("started %+v, again %+v", started, again)
	}
	_, err = operator.StartRollout(ctx, in)
	wantKind(t, err, fault.Conflict)
	for _, id := range []string{started.ID, "current"} {
		shown, err := auditor.Rollout(ctx, id)
		must(t, err)
		if shown.ID != started.ID || len(shown.Waves) == 0 {
			t.Errorf("%s is %+v", id, shown)
		}
	}
	_, err = operator.ResumeRollout(ctx, started.ID, client.ResumeRolloutRequest{})
	wantKind(t, err, fault.Conflict)
	paused, err := operator.PauseRollout(ctx, "current")
	must(t, err)
	_, err = operator.ResumeRollout(ctx, started.ID, client.ResumeRolloutRequest{Except: []string{"moved.test"}})
	wantKind(t, err, fault.Invalid)
	resumed, err := operator.ResumeRollout(ctx, started.ID, client.ResumeRolloutRequest{Except: []string{"moved.test"}, Because: "it is scrapped"})
	must(t, err)
	undone, err := operator.UndoRollout(ctx, started.ID)
	must(t, err)
	if paused.State != client.RolloutPaused || resumed.State != client.RolloutRunning || len(resumed.Excepted) != 1 || undone.State != client.RolloutUndone {
		t.Errorf("paused %+v, resumed %+v, undone %+v", paused, resumed, undone)
	}
	_, err = operator.AbortRollout(ctx, started.ID)
	wantKind(t, err, fault.Conflict)
	completeRollout(t, a)

	all, err := client.Collect(auditor.Rollouts(ctx, ""))
	must(t, err)
	ours, err := client.Collect(auditor.Rollouts(ctx, "moved"))
	must(t, err)
	if len(all) != 2 || len(ours) != 1 || ours[0].ID != started.ID || all[0].ID == started.ID {
		t.Errorf("all %+v, those of the pool %+v", all, ours)
	}
	must(t, operator.RemoveHost(ctx, "moved.test", ""))
}

// refuseRollouts asks for what nobody may, and for what cannot be.
func refuseRollouts(t *testing.T, a *authority) {
	ctx, admin, operator, auditor := t.Context(), a.as(access.Admin), a.as(access.Operator), a.as(access.Auditor)
	_, err := operator.StartRollout(ctx, client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: "moved", Online: true})
	wantKind(t, err, fault.Denied)
	_, err = auditor.StartRollout(ctx, client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: "moved"})
	wantKind(t, err, fault.Denied)
	for name, in := range map[string]client.StartRolloutRequest{
		"a kind that is none":       {Kind: "repaint", Pool: "moved"},
		"hosts of a root":           {Kind: client.RolloutRoot, Pool: "moved", Select: []string{"moved.test"}},
		"no reason":                 {Kind: client.RolloutReissue, Pool: "moved", Except: []string{"moved.test"}},
		"a compromise without one":  {Kind: client.RolloutRoot, Pool: "moved", Compromised: true},
		"a wave that is none":       {Kind: client.RolloutReissue, Pool: "moved", Waves: []string{"half"}},
		"a wave of nobody":          {Kind: client.RolloutReissue, Pool: "moved", Waves: []string{"host:nobody.test", "100%"}},
		"an exception of nobody":    {Kind: client.RolloutReissue, Pool: "moved", Except: []string{"nobody.test"}, Because: "x"},
		"no algorithm":              {Kind: client.RolloutAlgorithm, Pool: "moved"},
		"an algorithm that is none": {Kind: client.RolloutAlgorithm, Pool: "moved", Algorithm: "rot13"},
		"away from nothing":         {Kind: client.RolloutRotateAway, Pool: "moved"},
		"the pool of identities":    {Kind: client.RolloutReissue, Pool: "identity"},
	} {
		if _, err := admin.StartRollout(ctx, in); !client.IsKind(err, string(fault.Invalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = admin.StartRollout(ctx, client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: "nopool"})
	wantKind(t, err, fault.NotFound)
	for _, id := range []string{"77", "current", "no-number"} {
		_, err = auditor.Rollout(ctx, id)
		wantKind(t, err, fault.NotFound)
	}
	for _, verb := range []string{"pause", "resume", "undo", "abort"} {
		path := client.Prefix + "/rollouts/77/" + verb
		for role, want := range map[access.Role]int{access.Admin: 404, access.Auditor: 403} {
			if status, _, body := a.request("POST", path, a.people[role].token, "{}"); status != want {
				t.Errorf("%s by the %s: %d %s", verb, role, status, body)
			}
		}
		if status, _, _ := a.request("POST", path, "", "{}"); status != 401 {
			t.Errorf("%s by nobody: %d", verb, status)
		}
	}
	if status, _, _ := a.request("GET", client.Prefix+"/rollouts?after=x", a.people[access.Auditor].token, ""); status != 422 {
		t.Errorf("a page after no number: %d", status)
	}
}

// completeRollout rotates to a root that is elsewhere, as far as its owner's answer, and aborts before anybody was told.
func completeRollout(t *testing.T, a *authority) {
	t.Helper()
	ctx, admin, operator := t.Context(), a.as(access.Admin), a.as(access.Operator)
	started, err := admin.StartRollout(ctx, client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: "signed"})
	must(t, err)
	if started.CSR == "" || started.RootSubject == "" {
		t.Fatalf("there is nothing to sign: %+v", started)
	}
	request, err := cert.ParseCSR(decode(t, started.CSR))
	must(t, err)
	subject, err := cert.ParseName(started.RootSubject)
	must(t, err)
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(t, err)
	r, err := root.New(root.Options{Subject: subject, PathLen: 1}, key, time.Now())
	must(t, err)
	list, err := r.SignCRL(big.NewInt(time.Now().UnixMilli()), nil, time.Now(), 0)
	must(t, err)
	issuer, err := r.SignIssuer(root.Options{Subject: request.Subject}, request.SPKI, cert.Issuer{}, time.Now())
	must(t, err)
	in := client.CompleteRolloutRequest{Root: certPEM(r.Certificate), Issuer: certPEM(issuer), CRL: string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}))}
	for name, wrong := range map[string]client.CompleteRolloutRequest{
		"nothing":          {},
		"no PEM":           {Root: in.Root, Issuer: "x", CRL: in.CRL},
		"two certificates": {Root: in.Root, Issuer: in.Issuer + in.Issuer, CRL: in.CRL},
		"another root":     {Root: certPEM(newRoot(t, started.Root).Certificate), Issuer: in.Issuer, CRL: in.CRL},
	} {
		if _, err := admin.CompleteRollout(ctx, started.ID, wrong); !client.IsKind(err, string(fault.Invalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = operator.CompleteRollout(ctx, started.ID, in)
	wantKind(t, err, fault.Denied)
	for range 2 { // the second finds it done
		_, err = admin.CompleteRollout(ctx, started.ID, in)
		must(t, err)
	}
	_, name, _ := strings.Cut(started.Plan.New, " and ") // root and issuer
	made, err := admin.Issuer(ctx, name)
	must(t, err)
	if made.State != "active" {
		t.Errorf("the issuer is %+v", made)
	}
	for _, act := range []func() (*client.Rollout, error){
		func() (*client.Rollout, error) { return operator.UndoRollout(ctx, started.ID) },
		func() (*client.Rollout, error) { return operator.AbortRollout(ctx, started.ID) },
	} {
		_, err := act()
		wantKind(t, err, fault.Denied)
	}
	ended, err := admin.AbortRollout(ctx, started.ID)
	must(t, err)
	if ended.State != client.RolloutAborted || ended.EndedAt.IsZero() {
		t.Errorf("aborted %+v", ended)
	}
	_, err = admin.CompleteRollout(ctx, started.ID, in)
	wantKind(t, err, fault.Conflict)
	issuers, err := client.Collect(admin.Issuers(ctx))
	must(t, err)
	if !slices.ContainsFunc(issuers, func(i client.Issuer) bool { return i.Name == made.Name && i.State == "retired" }) {
		t.Error("what was made for it issues still")
	}
}
