package api_test

import (
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
)

// walkProofs has a host prove that a certificate is refused, and looks at it.
func walkProofs(t *testing.T, a *authority) {
	ctx, officer, operator := t.Context(), a.as(access.Officer), a.as(access.Operator)
	m := a.join(client.AddHostRequest{Name: "prover.test", Placements: []client.PlacementOrder{{Recipe: "plain", Parameters: map[string]string{"crl": "/etc/ssl/x.crl"}}}})
	agent := a.agent(m)
	must(t, agent.Report(ctx, client.Report{Agent: "test", Observations: []client.Observation{{
		Placement: "plain", State: client.PlacementPlaced, Address: "localhost:1", CRLEnds: time.Now().Add(time.Hour),
	}}}))
	result, err := operator.Issue(ctx, client.IssueRequest{Profile: "client", CSR: csrPEM(t, ""), Names: &client.Names{Subject: "CN=thief"}})
	must(t, err)
	serial := result.Certificate.Serial
	_, err = officer.ProveRevoked(ctx, "", serial, client.ProveRequest{})
	wantKind(t, err, fault.Conflict)
	_, err = officer.Revoke(ctx, "", serial, client.RevokeRequest{Reason: "superseded"})
	must(t, err)
	_, err = operator.ProveRevoked(ctx, "", serial, client.ProveRequest{})
	wantKind(t, err, fault.Denied)
	_, err = officer.LastProof(ctx, "", serial)
	wantKind(t, err, fault.NotFound)

	only := []string{"prover.test"}
	preview, err := officer.ProveRevoked(ctx, "", serial, client.ProveRequest{Hosts: only, DryRun: true})
	must(t, err)
	if preview.ID != "" || len(preview.Twins) != 0 || len(preview.Trials) != 1 || !strings.Contains(preview.Trials[0].Detail, "revoked as superseded") {
		t.Errorf("%+v", preview)
	}
	_, err = operator.ProveRevoked(ctx, "", serial, client.ProveRequest{DryRun: true})
	wantKind(t, err, fault.Denied)
	_, err = officer.LastProof(ctx, "", serial)
	wantKind(t, err, fault.NotFound)
	key := client.WithIdempotencyKey(ctx, "proof-1")
	p, err := officer.ProveRevoked(key, "default", serial, client.ProveRequest{Twins: true, Hosts: only})
	must(t, err)
	again, err := officer.ProveRevoked(key, "default", serial, client.ProveRequest{Twins: true, Hosts: only})
	must(t, err)
	if p.ID != again.ID || len(p.Trials) != 1 || p.Trials[0].Host != "prover.test" || p.Trials[0].Result != client.ProofWaiting {
		t.Errorf("%+v, again %+v", p, again)
	}
	_, err = officer.ProveRevoked(ctx, "", serial, client.ProveRequest{Hosts: []string{"nosuch.test"}})
	wantKind(t, err, fault.NotFound)
	d, err := agent.Desired(ctx, "", 0)
	must(t, err)
	if len(d.Proofs) != 1 || d.Proofs[0].ID != p.ID {
		t.Fatalf("told %+v", d.Proofs)
	}
	twin, err := agent.ProofKey(ctx, p.ID, client.ProofKeyRequest{CSR: csrPEM(t, "")})
	must(t, err)
	_, err = operator.ProofKey(ctx, p.ID, client.ProofKeyRequest{CSR: csrPEM(t, "")})
	wantKind(t, err, fault.Denied)
	seen, err := operator.Certificate(ctx, "", twin.Serial)
	must(t, err)
	if seen.State != "revoked" || seen.Profile != "proof-twin" || seen.Subject != "CN=thief" {
		t.Errorf("the twin is %+v", seen)
	}
	must(t, agent.ReportProof(ctx, p.ID, client.ProofReport{Trials: []client.ProofTrial{{Placement: "plain", Result: client.ProofNotTried, Untried: client.UntriedNoPort, Detail: "it has no port"}}}))
	p, err = operator.Proof(ctx, p.ID)
	must(t, err)
	last, err := operator.LastProof(ctx, "", serial)
	must(t, err)
	if p.Trials[0].Result != client.ProofNotTried || last.ID != p.ID || p.Proven() {
		t.Errorf("%+v, last %+v", p, last)
	}
	must(t, operator.RemoveHost(ctx, "prover.test", ""))
}
