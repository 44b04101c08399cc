package api_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"github.com/google/go-cmp/cmp"
)

func TestOperatorsAndTokens(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		admin, ctx := a.as(access.Admin), t.Context()
		me, err := admin.Caller(ctx)
		must(t, err)
		if me.Name != "the-admin" || me.Roles[0] != client.RoleAdmin {
			t.Fatalf("caller %+v", me)
		}
		made, err := admin.CreateOperator(ctx, client.CreateOperatorRequest{Name: "zoë/ops", Roles: []string{client.RoleOperator}})
		must(t, err)
		if _, err := admin.CreateOperator(ctx, client.CreateOperatorRequest{Name: "zoë/ops", Roles: []string{client.RoleOperator}}); !client.IsKind(err, "conflict") {
			t.Fatalf("the same name twice: %v", err)
		}
		shown, err := admin.Operator(ctx, "zoë/ops")
		must(t, err)
		if shown.ID != made.ID {
			t.Fatalf("showed %+v, made %+v", shown, made)
		}
		token, err := admin.CreateToken(ctx, "zoë/ops", client.CreateTokenRequest{Validity: "1h", Label: "deploy"})
		must(t, err)
		zoe := a.bearer(token.Secret)
		if who, err := zoe.Caller(ctx); err != nil || who.Name != "zoë/ops" {
			t.Fatalf("%+v, %v", who, err)
		}
		listed, err := client.Collect(zoe.Tokens(ctx, "zoë/ops"))
		must(t, err)
		if len(listed) != 1 || listed[0].Secret != "" || listed[0].Label != "deploy" {
			t.Fatalf("tokens %+v", listed)
		}
		if _, err := client.Collect(zoe.Tokens(ctx, "the-admin")); !client.IsKind(err, "denied") {
			t.Fatalf("another's tokens: %v", err)
		}
		must(t, admin.RevokeToken(ctx, token.ID))
		if _, err := zoe.Caller(ctx); !client.IsKind(err, "unauthenticated") {
			t.Fatalf("a revoked token: %v", err)
		}
		disabled := true
		if changed, err := admin.ChangeOperator(ctx, "zoë/ops", client.ChangeOperatorRequest{Disabled: &disabled}); err != nil || !changed.Disabled {
			t.Fatalf("%+v, %v", changed, err)
		}
		must(t, admin.RemoveOperator(ctx, "zoë/ops"))
		if _, err := admin.Operator(ctx, "zoë/ops"); !client.IsKind(err, "not-found") {
			t.Fatalf("a removed operator: %v", err)
		}
		all, err := client.Collect(admin.Operators(ctx))
		must(t, err)
		if len(all) < 4 {
			t.Fatalf("operators %+v", all)
		}
		if strings.Contains(a.log.String(), token.Secret) || strings.Contains(a.log.String(), a.people[access.Admin].token) {
			t.Fatal("a token is in the log")
		}
	})
}

func TestSettingsAreChangedFromTheVersionThatWasRead(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		admin, ctx := a.as(access.Admin), t.Context()
		first, err := admin.Settings(ctx)
		must(t, err)
		if len(first.Fields) < 20 || first.ETag == "" {
			t.Fatalf("%d fields, ETag %q", len(first.Fields), first.ETag)
		}
		change := client.SettingsChange{Set: []client.Setting{{Path: "crl.validity", Value: "20h"}, {Path: "crl.refresh", Value: "10h"},
			{Path: "crl.delta_validity", Value: "10h"}}}
		next, err := admin.ChangeSettings(ctx, change, first.ETag)
		must(t, err)
		if next.ETag == first.ETag {
			t.Fatal("the version did not move")
		}
		if _, err := admin.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{{Path: "crl.validity", Value: "30h"}}}, first.ETag); !client.IsKind(err, "conflict") {
			t.Fatalf("a change from an old version: %v", err)
		}
		_, err = admin.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{{Path: "crl.validty", Value: "30h"}}}, "")
		if p, ok := err.(*client.Problem); !ok || p.Kind() != "invalid" || p.Pointer != "crl.validty" {
			t.Fatalf("a misspelt setting: %v", err)
		}
	})
}

// TestRepeatedCallsGetTheFirstAnswer repeats calls with their key, also where things changed since the first.
func TestRepeatedCallsGetTheFirstAnswer(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		admin, ctx := a.as(access.Admin), client.WithIdempotencyKey(t.Context(), "k1")
		in := client.CreateOperatorRequest{Name: "twice", Roles: []string{client.RoleAuditor}}
		first, err := admin.CreateOperator(ctx, in)
		must(t, err)
		if again, err := admin.CreateOperator(ctx, in); err != nil || again.ID != first.ID {
			t.Fatalf("%+v, %v", again, err)
		}
		in.Name = "thrice"
		if _, err := admin.CreateOperator(ctx, in); !client.IsKind(err, "conflict") {
			t.Fatalf("the key of another call: %v", err)
		}
		if _, err := a.as(access.Operator).CreateOperator(ctx, in); !client.IsKind(err, "denied") {
			t.Fatalf("another caller's key: %v", err)
		}
		set, err := admin.Settings(t.Context())
		must(t, err)
		ctx = client.WithIdempotencyKey(t.Context(), "k2")
		change := client.SettingsChange{Set: []client.Setting{{Path: "organization", Value: "Twice"}}}
		next, err := admin.ChangeSettings(ctx, change, set.ETag)
		must(t, err)
		if again, err := admin.ChangeSettings(ctx, change, set.ETag); err != nil || again.ETag != next.ETag || string(again.Document) != string(next.Document) {
			t.Fatalf("%+v, %v", again, err)
		}
		ctx = client.WithIdempotencyKey(t.Context(), "k3")
		must(t, admin.RemoveOperator(ctx, "twice"))
		must(t, admin.RemoveOperator(ctx, "twice"))
		if err := admin.RemoveOperator(t.Context(), "twice"); !client.IsKind(err, "not-found") {
			t.Fatalf("removed twice without a key: %v", err)
		}
	})
}

// TestRepeatedCallDoesNotUndoALaterOne repeats acts that somebody undid since: the repetition gets the first answer, and
// what was done later stays.
func TestRepeatedCallDoesNotUndoALaterOne(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		admin, ctx, keyed := a.as(access.Admin), t.Context(), client.WithIdempotencyKey(t.Context(), "k")
		_, err := admin.CreateOperator(ctx, client.CreateOperatorRequest{Name: "ida", Roles: []string{client.RoleAuditor}})
		must(t, err)
		disable := client.ChangeOperatorRequest{Disabled: new(true)}
		first, err := admin.ChangeOperator(keyed, "ida", disable)
		must(t, err)
		_, err = admin.ChangeOperator(ctx, "ida", client.ChangeOperatorRequest{Disabled: new(false)})
		must(t, err)
		again, err := admin.ChangeOperator(keyed, "ida", disable)
		must(t, err)
		if now, err := admin.Operator(ctx, "ida"); err != nil || now.Disabled || !again.Disabled || !again.CreatedAt.Equal(first.CreatedAt) {
			t.Errorf("first %+v, again %+v, now %+v, %v", first, again, now, err)
		}

		keyed = client.WithIdempotencyKey(ctx, "profile")
		text := "name: short\nnames: {rules: [{roles: [admin], dns: [\"**.test\"]}]}\nusage: {key_usage: [digitalSignature], extended: [serverAuth]}\n" +
			"key: {algorithms: [ecdsa-p256]}\nvalidity: {default: 30d}\n"
		saved, err := admin.SaveProfile(keyed, "short", client.ProfileText{YAML: text})
		must(t, err)
		retired, err := admin.RetireProfile(client.WithIdempotencyKey(ctx, "retire"), "short")
		must(t, err)
		savedAgain, err := admin.SaveProfile(keyed, "short", client.ProfileText{YAML: text})
		must(t, err)
		if diff := cmp.Diff(saved, savedAgain); diff != "" {
			t.Error(diff)
		}
		if now, err := admin.Profile(ctx, "short", 0); err != nil || !now.Retired || now.Version != retired.Version {
			t.Errorf("a repeated save brought the profile back: %+v, %v", now, err)
		}

		token, err := admin.CreateToken(ctx, "ida", client.CreateTokenRequest{})
		must(t, err)
		keyed = client.WithIdempotencyKey(ctx, "revoke")
		must(t, admin.RevokeToken(keyed, token.ID))
		must(t, admin.RevokeToken(keyed, token.ID))
		if err := admin.RevokeToken(ctx, token.ID); !client.IsKind(err, "not-found") {
			t.Errorf("ended twice without a key: %v", err)
		}
	})
}

// TestTokenOfALostAnswerDoesNotStayAlive: a call that was repeated with its key left a second token, whose secret nobody had.
func TestTokenOfALostAnswerDoesNotStayAlive(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		admin, ctx := a.as(access.Admin), client.WithIdempotencyKey(t.Context(), "t1")
		_, err := admin.CreateOperator(t.Context(), client.CreateOperatorRequest{Name: "ida", Roles: []string{client.RoleAuditor}})
		must(t, err)
		in := client.CreateTokenRequest{Label: "deploy"}
		lost, err := admin.CreateToken(ctx, "ida", in)
		must(t, err)
		second, err := admin.CreateToken(ctx, "ida", in)
		must(t, err)
		all, err := client.Collect(admin.Tokens(t.Context(), "ida"))
		must(t, err)
		if len(all) != 1 || all[0].ID != second.ID || second.ID == lost.ID || second.Secret == lost.Secret {
			t.Fatalf("after a repetition there are %+v", all)
		}
		if _, err := a.bearer(lost.Secret).Caller(t.Context()); !client.IsKind(err, "unauthenticated") {
			t.Errorf("the secret of the lost answer: %v", err)
		}
		in.Label = "another"
		if _, err := admin.CreateToken(ctx, "ida", in); !client.IsKind(err, "conflict") {
			t.Errorf("another body with the same key: %v", err)
		}
		in.Label = "deploy"
		if _, err := a.bearer(second.Secret).Caller(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.CreateToken(ctx, "ida", in); !client.IsKind(err, "conflict") {
			t.Errorf("a repetition after the secret was used: %v", err)
		}
		if _, err := a.bearer(second.Secret).Caller(t.Context()); err != nil {
			t.Errorf("the secret in use was ended: %v", err)
		}
		must(t, admin.RevokeToken(t.Context(), second.ID))
		if _, err := admin.CreateToken(ctx, "ida", in); !client.IsKind(err, "conflict") {
			t.Errorf("a repetition after the token was ended: %v", err)
		}
		if _, err := admin.CreateToken(t.Context(), "ida", in); err != nil {
			t.Errorf("a fresh key: %v", err)
		}
	})
}

func TestAuditIsSearchedAndExported(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		auditor, ctx := a.as(access.Auditor), t.Context()
		events, err := client.Collect(auditor.Audit(ctx, client.AuditFilter{Action: "token.", PageSize: 2}))
		must(t, err)
		if len(events) != 5 || events[0].Action != "token.create" || len(events[0].Hash) != 64 || len(events[0].Detail) < 3 {
			t.Fatalf("events %+v", events)
		}
		var out bytes.Buffer
		must(t, auditor.ExportAudit(ctx, &out, client.AuditFilter{}))
		n := 0
		for dec := json.NewDecoder(&out); dec.More(); n++ {
			var e client.AuditEvent
			must(t, dec.Decode(&e))
		}
		if n < 8 {
			t.Fatalf("%d events exported", n)
		}
		if _, err := client.Collect(auditor.Audit(ctx, client.AuditFilter{PageSize: 5000})); !client.IsKind(err, "invalid") {
			t.Fatalf("a page over the limit: %v", err)
		}
	})
}
