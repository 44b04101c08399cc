package server

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// TestNodeJoinsWithItsToken has a machine join an authority whose issuer has its key in a token. That key is no reason to let a sealed one
// pass that does not open; a token that was named is tried before there is a node; and the node that joined signs, with nothing edited.
func TestNodeJoinsWithItsToken(t *testing.T) {
	a := newAuthorityInToken(t)
	r, ctx := start(t, a.dir), t.Context()
	api := r.admin()
	config, err := a.dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	beside, err := setup.OpenBeside(ctx, a.dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = beside.Close() })
	set, err := beside.Settings.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if set, err = set.WithAll([]settings.Field{{Path: "durability", Value: "provider"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := beside.Settings.Set(ctx, "test", *set, once.Call{}); err != nil {
		t.Fatal(err)
	}
	exec := func(statement string) {
		t.Helper()
		if err := beside.DB.Tx(ctx, func(tx *db.Tx) error { _, err := tx.Exec(ctx, statement); return err }); err != nil {
			t.Fatal(err)
		}
	}
	invited, err := api.InviteClone(ctx, client.CloneInvitation{})
	for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		invited, err = api.InviteClone(ctx, client.CloneInvitation{}) // the node learns of the setting
	}
	if err != nil {
		t.Fatal(err)
	}
	invitation, err := client.ParseCloneToken(invited.Token)
	if err != nil {
		t.Fatal(err)
	}
	invitation.Address = "https://" + r.API // the configured one has no port of this test's
	const wraps = `key_wrap WHERE recipient_id = 'node2' AND key_id IN (SELECT key_id FROM issuer WHERE name = 'identity')`
	approved := 0
	o := setup.JoinOptions{
		Dir: datadir.Dir(filepath.Join(t.TempDir(), "n")), Token: invitation.String(), Release: "test", Name: "node2", Address: "https://localhost:9443",
		Listen: "127.0.0.1:0", Public: "127.0.0.1:0", Metrics: "127.0.0.1:0", DatabaseFile: a.database, TokenHelper: pkitest.TokenHelper(t),
		Waiting: func(_, fingerprint string) {
			if approved++; approved > 1 {
				return
			}
			if _, err := api.ApproveClone(ctx, "node2", fingerprint); err != nil {
				t.Error(err)
			}
			exec(`CREATE TABLE kept_wrap AS SELECT * FROM ` + wraps)
			exec(`UPDATE key_wrap SET wrap = '\x00' WHERE recipient_id = 'node2' AND key_id IN (SELECT key_id FROM kept_wrap)`)
		},
	}
	refused := func(what, says, saysNot string) {
		t.Helper()
		_, err := setup.Join(ctx, o)
		if err == nil || !strings.Contains(err.Error(), "was approved, and could not sign") || !strings.Contains(err.Error(), says) ||
			strings.Contains(err.Error(), saysNot) {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := os.Stat(string(o.Dir)); err == nil {
			t.Fatalf("%s: there is a data directory", what)
		}
	}
	refused("a sealed key that does not open", "does not open", "PKCS #11")
	exec(`DELETE FROM ` + wraps)
	exec(`INSERT INTO key_wrap SELECT * FROM kept_wrap`)
	pins := config.PKCS11.Tokens[0].PINFile
	reach := func(label string) {
		o.Tokens = []string{"pkcs11:token=" + label + "?module-path=" + a.Module + "&pin-source=" + pins}
	}
	reach("elsewhere")
	refused("a token without a key of the authority", `none lies in the token "elsewhere"`, "does not open")
	for _, key := range []string{"object=issued", "object=issuer;id=%09", "id=%09"} {
		reach("authority;" + key)
		refused("a key in its token that the authority does not have", "has no key pkcs11:token=authority;"+key, "does not open")
	}
	pins = a.file("no-pin", []byte("0000-Wrong\n"))
	reach("authority")
	refused("a wrong PIN", "refused the PIN", "does not open")
	pins = config.PKCS11.Tokens[0].PINFile
	reach("authority;object=issuer")
	_, err = setup.Join(ctx, o)
	if err != nil && strings.Contains(err.Error(), "log in by hand") { // a busy machine left it open whether the right PIN was tried, too
		a.Generate("authority", tokenPIN, "EC:prime256v1", "by hand", "04") // logs in
		_, err = setup.Join(ctx, o)
	}
	must(t, err)
	if err := os.CopyFS(filepath.Dir(o.Dir.AdminCert()), os.DirFS(filepath.Dir(a.dir.AdminCert()))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(o.Dir.AdminKey(), 0o600); err != nil {
		t.Fatal(err)
	}
	issued, err := issue(t, start(t, o.Dir).admin(), "two.test")
	if err != nil {
		t.Fatal(err)
	}
	a.openssl("verify", "-CAfile", a.path(api), a.file("leaf.pem", []byte(issued.Certificate.PEM)))
}
