package api_test

import (
	"bytes"
	"crypto/x509"
	"encoding/csv"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// TestEveryOperation walks through the whole API on both engines, and fails if an operation of the OpenAPI document was
// never answered with success.
func TestEveryOperation(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		for name, walk := range map[string]func(*testing.T, *authority){
			"certificates": walkCertificates, "requests": walkRequests, "issuers": walkIssuers, "crls": walkCRLs, "pools": walkPools,
			"profiles": walkProfiles, "identities": walkIdentities, "authority": walkAuthority, "hosts": walkHosts, "proofs": walkProofs,
			"trust": walkTrust, "rollouts": walkRollouts,
		} {
			t.Run(name, func(t *testing.T) { walk(t, a) })
		}
		t.Run("clones", func(t *testing.T) { walkClones(t, a) })
		done := map[string]bool{}
		for line := range strings.Lines(a.log.String()) {
			var e struct {
				Msg, Operation string
				Status         int
			}
			must(t, json.Unmarshal([]byte(line), &e))
			if e.Msg == "request" && e.Status < 300 {
				done[e.Operation] = true
			}
		}
		all := operations(t, a.api)
		if len(all) < 60 {
			t.Fatalf("the document has %d operations", len(all))
		}
		for _, o := range all {
			if d.Dialect() == db.SQLite && strings.HasPrefix(o.ID, "clone-") && !slices.Contains(ofOneNode, o.ID) {
				continue
			}
			if !done[o.ID] {
				t.Errorf("%s (%s %s) was never answered with success", o.ID, o.Method, o.Path)
			}
		}
	})
}

func walkCertificates(t *testing.T, a *authority) {
	operator, officer, ctx := a.as(access.Operator), a.as(access.Officer), t.Context()
	order := client.IssueRequest{Profile: "server", CSR: csrPEM(t, "", "web1.test", "web2.test"), Validity: "30d"}
	dry := order
	dry.DryRun = true
	preview, err := operator.Issue(ctx, dry)
	must(t, err)
	if !preview.DryRun || preview.Certificate.Serial != "" || !slices.Contains(preview.Certificate.SAN, "dns:web1.test") {
		t.Fatalf("preview %+v", preview.Certificate)
	}
	result, err := operator.Issue(client.WithIdempotencyKey(ctx, "order-1"), order)
	must(t, err)
	again, err := operator.Issue(client.WithIdempotencyKey(ctx, "order-1"), order)
	must(t, err)
	if again.Certificate.Serial != result.Certificate.Serial {
		t.Fatal("a repeated call got another certificate")
	}
	other := order
	other.Validity = "20d"
	if _, err := operator.Issue(client.WithIdempotencyKey(ctx, "order-1"), other); !client.IsKind(err, "conflict") {
		t.Fatalf("the key of another order: %v", err)
	}
	c := result.Certificate
	leaf := parsePEM(t, c.PEM)
	if c.Requester != "the-operator" || c.State != client.StateValid || leaf.DNSNames[0] != "web1.test" || c.Chain == "" {
		t.Fatalf("issued %+v", c)
	}
	found, err := client.Collect(operator.Certificates(ctx, client.CertificateFilter{Name: "web2.test", Requester: "the-operator", State: "valid"}))
	must(t, err)
	if len(found) != 1 || found[0].Serial != c.Serial || found[0].PEM != "" {
		t.Fatalf("found %+v", found)
	}
	for media, want := range map[string]string{
		"application/pkix-cert": string(leaf.Raw), "application/x-pem-file": c.PEM, "application/pem-certificate-chain": c.PEM + c.Chain,
	} {
		status, header, body := a.request("GET", client.Prefix+"/certificates/"+c.Serial, a.people[access.Auditor].token, "", "Accept", media)
		if status != 200 || header.Get("Content-Type") != media || string(body) != want {
			t.Errorf("%s: %d %s, %d octets", media, status, header.Get("Content-Type"), len(body))
		}
	}
	if status, header, body := a.request("GET", client.Prefix+"/certificates/"+c.Serial, a.people[access.Auditor].token, "", "Accept", "text/html"); status != 422 {
		t.Errorf("text/html: %d %s %s", status, header, body)
	}
	walkLife(t, operator, officer, c)
	var out bytes.Buffer
	must(t, operator.ExportCertificates(ctx, &out, client.CertificateFilter{}, "csv"))
	rows, err := csv.NewReader(&out).ReadAll()
	must(t, err)
	if len(rows) < 4 || rows[0][0] != "serial" {
		t.Fatalf("exported %v", rows)
	}
	requester := slices.Index(rows[0], "requester")
	if !slices.ContainsFunc(rows, func(row []string) bool { return row[requester] == "the-operator" }) {
		t.Errorf("no row of the export names who requested it: %v", rows)
	}
	out.Reset()
	must(t, operator.ExportCertificates(ctx, &out, client.CertificateFilter{Profile: "server"}, "json"))
	if lines := strings.Count(out.String(), "\n"); lines < 3 || !strings.Contains(out.String(), c.Serial) {
		t.Fatalf("%d lines: %s", lines, &out)
	}
}

// walkLife renews, re-keys, holds, releases and revokes.
func walkLife(t *testing.T, operator, officer *client.Client, c *client.Certificate) {
	t.Helper()
	ctx := t.Context()
	renewed, err := operator.Renew(ctx, "default", c.Serial, client.RenewRequest{Validity: "40d"})
	must(t, err)
	if !bytes.Equal(parsePEM(t, renewed.Certificate.PEM).RawSubjectPublicKeyInfo, parsePEM(t, c.PEM).RawSubjectPublicKeyInfo) {
		t.Fatal("a renewal changed the key")
	}
	rekeyed, err := operator.Rekey(ctx, "", renewed.Certificate.Serial, client.RekeyRequest{CSR: csrPEM(t, "")})
	must(t, err)
	if bytes.Equal(parsePEM(t, rekeyed.Certificate.PEM).RawSubjectPublicKeyInfo, parsePEM(t, c.PEM).RawSubjectPublicKeyInfo) ||
		!slices.Equal(rekeyed.Certificate.SAN, c.SAN) {
		t.Fatalf("re-keyed %+v", rekeyed.Certificate)
	}
	if _, err := operator.Hold(ctx, "", c.Serial); !client.IsKind(err, "denied") {
		t.Fatalf("an operator held a certificate: %v", err)
	}
	held, err := officer.Hold(ctx, "", c.Serial)
	must(t, err)
	released, err := officer.Release(ctx, "", c.Serial)
	must(t, err)
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	revoked, err := officer.Revoke(ctx, "", c.Serial, client.RevokeRequest{Reason: "keyCompromise", InvalidSince: &since})
	must(t, err)
	if held.State != client.StateHeld || released.State != client.StateValid || revoked.State != client.StateRevoked ||
		revoked.Revocation.Reason != "keyCompromise" || !revoked.Revocation.InvalidSince.Equal(since) {
		t.Fatalf("held %+v, released %+v, revoked %+v", held, released, revoked.Revocation)
	}
	if _, err := officer.Release(ctx, "", c.Serial); !client.IsKind(err, "conflict") {
		t.Fatalf("a revoked certificate was released: %v", err)
	}
	if shown, err := officer.Certificate(ctx, "", c.Serial); err != nil || shown.State != client.StateRevoked {
		t.Fatalf("%+v, %v", shown, err)
	}
	if _, err := officer.Certificate(ctx, "", "00ff"); !client.IsKind(err, "not-found") {
		t.Fatalf("a serial that was never issued: %v", err)
	}
}

// approvedProfile wants an officer's approval of operators.
const approvedProfile = `name: approved
names:
  common_name: names
  rules:
    - roles: [admin, officer, operator]
      dns: ["**"]
usage:
  key_usage: [digitalSignature]
  extended: [serverAuth]
validity:
  default: 30d
  max: 90d
approval:
  automatic: [admin]
  two_person: true
`

func walkRequests(t *testing.T, a *authority) {
	admin, operator, officer, ctx := a.as(access.Admin), a.as(access.Operator), a.as(access.Officer), t.Context()
	_, err := admin.SaveProfile(ctx, "approved", client.ProfileText{YAML: approvedProfile})
	must(t, err)
	submit := func() *client.Request {
		t.Helper()
		result, err := operator.Submit(ctx, client.IssueRequest{Profile: "approved", CSR: csrPEM(t, "", "wait.test")})
		must(t, err)
		if result.Certificate != nil || result.Request == nil || result.Request.State != client.RequestPending || result.Request.CSR == "" {
			t.Fatalf("submitted %+v", result)
		}
		return result.Request
	}
	if _, err := operator.Issue(ctx, client.IssueRequest{Profile: "approved", CSR: csrPEM(t, "", "wait.test")}); !client.IsKind(err, "denied") {
		t.Fatalf("issued without approval: %v", err)
	}
	r := submit()
	if _, err := operator.Retrieve(ctx, r.ID); !client.IsKind(err, "conflict") {
		t.Fatalf("a pending request was retrieved: %v", err)
	}
	if _, err := officer.Assign(ctx, r.ID, "the-operator"); !client.IsKind(err, "invalid") {
		t.Errorf("assigned to one who may not decide: %v", err)
	}
	assigned, err := officer.Assign(ctx, r.ID, "the-officer")
	must(t, err)
	if assigned.Assignee != "the-officer" || assigned.Requester != "the-operator" {
		t.Fatalf("assigned %+v", assigned)
	}
	mine, err := client.Collect(officer.Requests(ctx, client.RequestFilter{State: client.RequestPending, Assignee: "the-officer"}))
	must(t, err)
	if len(mine) != 1 || mine[0].ID != r.ID {
		t.Fatalf("assigned to me: %+v", mine)
	}
	approved, err := officer.Approve(ctx, r.ID)
	must(t, err)
	if approved.Request.State != client.RequestIssued || approved.Certificate.Serial != approved.Request.Serial || approved.Request.DecidedBy != "the-officer" {
		t.Fatalf("approved %+v", approved.Request)
	}
	got, err := operator.Retrieve(ctx, r.ID)
	must(t, err)
	if shown, err := operator.Request(ctx, r.ID); err != nil || shown.Serial != got.Serial {
		t.Fatalf("%+v, %v", shown, err)
	}
	rejected, err := officer.Reject(ctx, submit().ID, client.RejectRequest{Reason: "not ours"})
	must(t, err)
	if rejected.State != client.RequestRejected || rejected.Reason != "not ours" {
		t.Fatalf("rejected %+v", rejected)
	}
	cancelled, err := operator.Cancel(ctx, submit().ID)
	must(t, err)
	if cancelled.State != client.RequestCancelled {
		t.Fatalf("cancelled %+v", cancelled)
	}
}

func walkProfiles(t *testing.T, a *authority) {
	admin, auditor, ctx := a.as(access.Admin), a.as(access.Auditor), t.Context()
	text := strings.Replace(approvedProfile, "name: approved", "name: mine", 1)
	saved, err := admin.SaveProfile(ctx, "mine", client.ProfileText{YAML: text})
	must(t, err)
	if saved.Profile.Version != 1 || len(saved.Samples) == 0 {
		t.Fatalf("saved %+v", saved)
	}
	zero := int64(0)
	if _, err := admin.SaveProfile(ctx, "mine", client.ProfileText{YAML: text + "# again\n", Base: &zero}); !client.IsKind(err, "conflict") {
		t.Fatalf("a change from an old version: %v", err)
	}
	if _, err := admin.SaveProfile(ctx, "yours", client.ProfileText{YAML: text}); !client.IsKind(err, "invalid") {
		t.Fatalf("another name than the text's: %v", err)
	}
	_, err = admin.SaveProfile(ctx, "mine", client.ProfileText{YAML: text + "# again\n"})
	must(t, err)
	versions, err := client.Collect(auditor.ProfileVersions(ctx, "mine"))
	must(t, err)
	old, err := auditor.Profile(ctx, "mine", 1)
	must(t, err)
	newest, err := auditor.Profile(ctx, "mine", 0)
	must(t, err)
	if len(versions) != 2 || old.YAML != text || newest.Version != 2 {
		t.Fatalf("versions %+v, old %+v, newest %+v", versions, old, newest)
	}
	check, err := auditor.CheckProfile(ctx, client.ProfileText{YAML: text})
	must(t, err)
	sample, err := auditor.SampleProfile(ctx, "server")
	must(t, err)
	if len(check.Samples) == 0 || len(sample.Samples) == 0 || parsePEM(t, sample.Samples[0].PEM).IsCA {
		t.Fatalf("check %+v, sample %+v", check, sample)
	}
	retired, err := admin.RetireProfile(ctx, "mine")
	must(t, err)
	all, err := client.Collect(auditor.Profiles(ctx))
	must(t, err)
	if !retired.Retired || len(all) < 6 {
		t.Fatalf("retired %+v, %d profiles", retired, len(all))
	}
	if _, err := a.as(access.Operator).Issue(ctx, client.IssueRequest{Profile: "mine", CSR: csrPEM(t, "", "x.test")}); !client.IsKind(err, "conflict") {
		t.Fatalf("a retired profile issued: %v", err)
	}
}

func walkAuthority(t *testing.T, a *authority) {
	admin, auditor, ctx := a.as(access.Admin), a.as(access.Auditor), t.Context()
	st, err := auditor.Status(ctx)
	must(t, err)
	if st.Node != "n1" || !st.Ready || len(st.Issuers) < 4 || len(st.Expiring) != 4 || st.Store.Schema == 0 {
		t.Fatalf("status %+v", st)
	}
	signed, err := auditor.SignCheckpoint(ctx)
	must(t, err)
	newest, err := auditor.Checkpoint(ctx, 0)
	must(t, err)
	if byNumber, err := auditor.Checkpoint(ctx, signed.Number); err != nil || byNumber.Text != signed.Text || newest.Number < signed.Number {
		t.Fatalf("%+v, %v", byNumber, err)
	}
	findings, err := client.Collect(auditor.Doctor(ctx))
	must(t, err)
	if len(findings) < 3 {
		t.Fatalf("findings %+v", findings)
	}
	verified, err := client.Collect(auditor.Verify(ctx, client.VerifyRequest{Checkpoints: []string{signed.Text}}))
	must(t, err)
	if len(verified) < 4 || slices.ContainsFunc(verified, func(f client.Finding) bool { return f.Level == "error" }) {
		t.Fatalf("verified %+v", verified)
	}
	if _, err := client.Collect(auditor.Verify(ctx, client.VerifyRequest{Checkpoints: []string{"forged"}})); !client.IsKind(err, "invalid") {
		t.Fatalf("a checkpoint that is none: %v", err)
	}
	var out bytes.Buffer
	must(t, admin.Backup(ctx, &out))
	if !strings.HasPrefix(out.String(), "age-encryption.org/v1\n") || out.Len() < 10_000 {
		t.Fatalf("a backup of %d octets that begins %.30q", out.Len(), &out)
	}
	set, err := admin.Settings(ctx)
	must(t, err)
	_, err = admin.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{{Path: "organization", Value: "Test 2"}}}, set.ETag)
	must(t, err)
	_, err = client.Collect(auditor.Audit(ctx, client.AuditFilter{Newest: true, PageSize: 100}))
	must(t, err)
	out.Reset()
	must(t, auditor.ExportAudit(ctx, &out, client.AuditFilter{}))
}

func walkIdentities(t *testing.T, a *authority) {
	admin, ctx := a.as(access.Admin), t.Context()
	_, err := admin.CreateOperator(ctx, client.CreateOperatorRequest{Name: "ida", Roles: []string{client.RoleOperator}})
	must(t, err)
	identity, err := admin.Enrol(ctx, "ida", client.EnrolRequest{CSR: csrPEM(t, "admin")})
	must(t, err)
	if leaf := parsePEM(t, identity.PEM); leaf.Subject.CommonName != "ida" || identity.Root == "" {
		t.Fatalf("%v", leaf.Subject)
	}
	token, err := admin.CreateToken(ctx, "ida", client.CreateTokenRequest{})
	must(t, err)
	ida := a.bearer(token.Secret)
	if _, err := ida.Enrol(ctx, "", client.EnrolRequest{CSR: csrPEM(t, "")}); !client.IsKind(err, "denied") {
		t.Fatalf("a token became an identity: %v", err)
	}
	if own, err := admin.Enrol(ctx, "", client.EnrolRequest{CSR: csrPEM(t, "")}); err != nil || own.Operator != "the-admin" {
		t.Fatalf("%+v, %v", own, err)
	}
	if _, err := ida.Enrol(ctx, "the-admin", client.EnrolRequest{CSR: csrPEM(t, "")}); !client.IsKind(err, "denied") {
		t.Fatalf("an operator took an admin's identity: %v", err)
	}
	if _, err := client.Collect(ida.Tokens(ctx, "ida")); err != nil {
		t.Fatal(err)
	}
	must(t, ida.RevokeToken(ctx, token.ID))
	if _, err := admin.Operator(ctx, "ida"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Collect(admin.Operators(ctx)); err != nil {
		t.Fatal(err)
	}
	disabled := true
	_, err = admin.ChangeOperator(ctx, "ida", client.ChangeOperatorRequest{Disabled: &disabled})
	must(t, err)
	must(t, admin.RemoveOperator(ctx, "ida"))
	if _, err := admin.Caller(ctx); err != nil {
		t.Fatal(err)
	}
}

func decode(t *testing.T, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM: %.80q", text)
	}
	return block.Bytes
}

func parsePEM(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(decode(t, text))
	must(t, err)
	return c
}

func certPEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}
