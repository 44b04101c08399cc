package api_test

import (
	"crypto/tls"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
)

// ofOneNode are the operations upon nodes that there are on SQLite too, which one node has open; the others need PostgreSQL.
var ofOneNode = []string{"clone-list", "clone-show", "clone-invitations", "clone-promote", "clone-demote"}

// walkClones walks through the operations upon nodes; nothing else may run beside it, since it adds one.
func walkClones(t *testing.T, a *authority) {
	ctx, admin := t.Context(), a.as(access.Admin)
	must(t, a.Clones.Register(ctx, "https://localhost:8443", time.Now()))
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	all, err := client.Collect(admin.Clones(ctx))
	must(t, err)
	if len(all) != 1 || all[0].Name != "n1" || !all[0].Self {
		t.Fatalf("the nodes are %+v", all)
	}
	_, err = client.Collect(admin.CloneInvitations(ctx))
	must(t, err)
	_, err = admin.Clone(ctx, "n1")
	must(t, err)
	_, err = admin.TurnClone(ctx, "n1", "promote", client.CloneTurn{})
	must(t, err)
	if _, err := admin.TurnClone(ctx, "n1", "demote", client.CloneTurn{}); !client.IsKind(err, "conflict") {
		t.Fatalf("the only node gave a lease away: %v", err)
	}
	turn := client.CloneTurn{Lease: "rollout"}
	must(t, a.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := db.HandOver(ctx, tx, turn.Lease, "n0", false, time.Millisecond, time.Now())
		return err
	}))
	_, err = admin.TurnClone(ctx, "n1", "demote", turn) // which has it no more
	must(t, err)
	if a.DB.Dialect() == db.SQLite {
		if _, err := admin.InviteClone(ctx, client.CloneInvitation{}); !client.IsKind(err, "conflict") || !strings.Contains(err.Error(), "SQLite") {
			t.Fatalf("a node was invited to SQLite: %v", err)
		}
		return
	}
	walkJoin(t, a, admin)
}

func walkJoin(t *testing.T, a *authority, admin *client.Client) {
	ctx := t.Context()
	now, err := admin.Settings(ctx)
	must(t, err)
	_, err = admin.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{{Path: "durability", Value: "provider"}}}, now.ETag)
	must(t, err)
	withdrawn, err := admin.InviteClone(ctx, client.CloneInvitation{})
	must(t, err)
	must(t, admin.WithdrawCloneInvitation(ctx, withdrawn.ID))
	made, err := admin.InviteClone(client.WithIdempotencyKey(ctx, "invite-1"), client.CloneInvitation{Subsystems: []string{"ocsp"}})
	must(t, err)
	again, err := admin.InviteClone(client.WithIdempotencyKey(ctx, "invite-1"), client.CloneInvitation{Subsystems: []string{"ocsp"}})
	must(t, err)
	if again.ID != made.ID || again.Token == made.Token || strings.Contains(a.log.String(), again.Token) {
		t.Fatalf("invited %+v, again %+v", made, again)
	}
	key, err := keys.CreateNodeKey(filepath.Join(t.TempDir(), "node.key"))
	must(t, err)
	in := client.CloneJoin{
		Name: "o1", Address: "https://o1.test:8443", PublicKey: key.Public(), Release: "test", Schema: schema.Newest(), Time: time.Now(),
	}
	private, der := newCSR(t, "")
	in.CSR = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	stranger := a.bearer("")
	for _, text := range []string{withdrawn.Token, made.Token} {
		token, err := client.ParseCloneToken(text)
		must(t, err)
		in.Secret = token.Secret
		if _, err := stranger.JoinClone(ctx, in); !client.IsKind(err, "denied") || !strings.Contains(err.Error(), "this token is not good") {
			t.Fatalf("a token that was withdrawn or replaced: %v", err)
		}
	}
	token, err := client.ParseCloneToken(again.Token)
	must(t, err)
	in.Secret = token.Secret
	waits, err := stranger.JoinClone(ctx, in)
	must(t, err)
	large := in
	large.CSR = strings.Repeat("A", 1<<20)
	if _, err := stranger.JoinClone(ctx, large); !client.IsKind(err, "too-large") {
		t.Errorf("a body of a megabyte: %v", err)
	}
	_, err = admin.ApproveClone(ctx, "o1", waits.Fingerprint)
	must(t, err)
	joined, err := stranger.JoinClone(ctx, in)
	must(t, err)
	shown, err := admin.Clone(ctx, "o1")
	must(t, err)
	if shown.State != client.CloneActive || shown.Fingerprint != waits.Fingerprint || strings.Contains(a.log.String(), token.Secret) {
		t.Fatalf("shown as %+v", shown)
	}

	// What it was given proves it as a caller, who may do nothing but for itself.
	pair := tls.Certificate{PrivateKey: private}
	for _, text := range joined.Certificate {
		block, _ := pem.Decode([]byte(text))
		pair.Certificate = append(pair.Certificate, block.Bytes)
	}
	self, err := client.New(client.Options{Address: a.server.URL, Roots: a.roots(), NoRetry: true,
		Certificate: func() (*tls.Certificate, error) { return &pair, nil }})
	must(t, err)
	t.Cleanup(self.Close)
	renewed, err := self.RenewCloneIdentity(ctx, client.CloneIdentity{CSR: csrPEM(t, "")})
	must(t, err)
	if len(renewed.Certificate) == 0 || renewed.State != client.CloneActive {
		t.Fatalf("renewed as %+v", renewed)
	}
	for what, err := range map[string]error{
		"settings": second(self.Settings(ctx)), "nodes": second(client.Collect(self.Clones(ctx))), "another": second(self.LeaveClone(ctx, "n1")),
		"an invitation": second(self.InviteClone(ctx, client.CloneInvitation{})), "an approval": second(self.ApproveClone(ctx, "o1", waits.Fingerprint)),
	} {
		if !client.IsKind(err, "denied") {
			t.Errorf("a node asked for %s: %v", what, err)
		}
	}
	_, err = self.LeaveClone(ctx, "o1")
	must(t, err)
	must(t, admin.RemoveClone(ctx, "o1", true))
	if _, err := self.LeaveClone(ctx, "o1"); !client.IsKind(err, "unauthenticated") {
		t.Errorf("a node that is gone is known: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }
