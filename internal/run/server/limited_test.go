package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// TestNodeWithLimitedLogin: a node that runs ocsp alone does all that it is there for with a login that only reads, and refuses the rest
// with the name of a node that would do it.
func TestNodeWithLimitedLogin(t *testing.T) {
	t.Parallel()
	pg := pkitest.Postgres(t)
	for _, statement := range []string{"CREATE ROLE pki NOLOGIN", "CREATE DATABASE fleet OWNER pki", "CREATE ROLE chancery_one LOGIN IN ROLE pki"} {
		pg.Exec(t, statement)
	}
	if said, err := exec.Command("psql", "-XqvON_ERROR_STOP=1", "-c", db.LoginFunctions, pg.URL("fleet")).CombinedOutput(); err != nil {
		t.Fatalf("psql: %v\n%s", err, said)
	}
	as := func(role string) string {
		file := filepath.Join(t.TempDir(), role)
		must(t, os.WriteFile(file, []byte(strings.Replace(pg.URL("fleet"), "//chancery@", "//"+role+"@", 1)+"\n"), 0o600))
		return file
	}
	url := as("chancery_one")
	dir := datadir.Dir(filepath.Join(t.TempDir(), "d"))
	_, err := setup.Init(t.Context(), authority(dir, "https://ca1.test:8443", url))
	must(t, err)
	first := start(t, dir)
	issued, err := first.admin().Issue(t.Context(), client.IssueRequest{Profile: "server", CSR: csr(t), Names: &client.Names{SAN: []string{"dns:w.test"}}})
	must(t, err)
	leaf, above := first.certificates(issued)
	agent := first.agent("web1.test")
	config, err := dir.Load()
	must(t, err)
	one, err := setup.Open(context.Background(), dir, config, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { must(t, one.DB.Close()) })
	until(t, "the responder", func() bool {
		_, err := (&stream{t: t, public: first.Public, leaf: leaf, ca: above}).once(true, 3) // SHA-1
		return err == nil
	})
	was, err := first.admin().Settings(t.Context())
	must(t, err)
	_, err = first.admin().ChangeSettings(t.Context(), client.SettingsChange{Set: []client.Setting{{Path: "durability", Value: "provider"}}}, was.ETag)
	must(t, err)
	near := addNode(t, one, dir, "ocsp1", url, keys.SubsystemOCSP)
	must(t, start(t, near).stop()) // it registers, as an approval would have it
	must(t, one.DB.AddLogin(t.Context(), "chancery_ocsp1", true))
	text, err := os.ReadFile(near.Config())
	must(t, err)
	must(t, os.WriteFile(near.Config(), []byte(strings.ReplaceAll(string(text), url, as("chancery_ocsp1"))), 0o644))
	second := start(t, near)

	until(t, "readiness", func() bool { code, _ := fetch(t, "http://"+second.Metrics+"/readyz"); return code == http.StatusOK })
	if _, err := (&stream{t: t, public: second.Public, leaf: leaf, ca: above}).once(true, 5); err != nil { // SHA-256
		t.Errorf("OCSP: %v", err)
	}
	admin := second.client(true)
	until(t, "a report of its own", func() bool {
		c, err := admin.Clone(t.Context(), "ocsp1")
		must(t, err)
		return c.Ready
	})
	if _, err := agent.Desired(t.Context(), "", 0); err != nil {
		t.Errorf("an agent's poll: %v", err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if p := problemOf(err); p.Status != http.StatusConflict || !strings.Contains(p.Hint, config.Name+" at https://ca1.test:8443") ||
			strings.Contains(p.Detail, "permission denied") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = admin.Revoke(t.Context(), "", issued.Certificate.Serial, client.RevokeRequest{Reason: "superseded"})
	refused("revoking", err)
	_, err = admin.InviteClone(t.Context(), client.CloneInvitation{Subsystems: []string{"ca", "ocsp"}})
	refused("inviting a node", err)
	_, err = admin.IssueCRL(t.Context(), "default", client.IssueCRLRequest{})
	refused("a fresh CRL", err)
	if _, err = first.admin().IssueCRL(t.Context(), "default", client.IssueCRLRequest{}); err != nil {
		t.Errorf("the node that is named refuses it too: %v", err)
	}
	now, err := admin.Settings(t.Context())
	must(t, err)
	_, err = admin.ChangeSettings(t.Context(), client.SettingsChange{Set: []client.Setting{{Path: "organization", Value: "Other"}}}, now.ETag)
	refused("settings", err)

	// The node that signs CRLs is stopped, and they are pinned to it: doctor says so at the one that reads.
	_, err = first.admin().TurnClone(t.Context(), config.Name, "promote", client.CloneTurn{Pin: true})
	must(t, err)
	says := func() (said string) {
		for f, err := range admin.Doctor(t.Context()) {
			must(t, err)
			if f.Check == "crl.signer" || f.Check == "clones" {
				said += f.Level + " " + f.Check + ": " + f.Message + "; " + f.Hint + "\n"
			}
		}
		return said
	}
	if said := says(); !strings.Contains(said, "ok crl.signer: node "+config.Name+" signs CRLs") {
		t.Errorf("doctor says\n%s", said)
	}
	must(t, first.stop())
	must(t, one.DB.Tx(t.Context(), func(tx *db.Tx) error { // as if that were a while ago
		n, err := tx.Exec(t.Context(), `UPDATE leases SET expires_at = CASE WHEN expires_at < 0 THEN expires_at + 3600000000 ELSE expires_at - 3600000000 END
			WHERE name = 'crl'`)
		if err == nil && n != 1 {
			err = fmt.Errorf("%d leases", n)
		}
		return err
	}))
	if said := says(); !strings.Contains(said, "warning crl.signer: no node signs CRLs: the work is pinned to "+config.Name) ||
		!strings.Contains(said, "chancery clone demote "+config.Name) {
		t.Errorf("doctor says\n%s", said)
	}
	first = start(t, dir)

	// A login's certificates end with it.
	_, err = first.admin().AddPool(t.Context(), client.AddPoolRequest{Name: setup.DatabasePool, Online: true})
	must(t, err)
	two, err := setup.Open(context.Background(), dir, config, slog.New(slog.DiscardHandler)) // it knows the pool
	must(t, err)
	t.Cleanup(func() { must(t, two.DB.Close()) })
	_, err = two.Clones.OpenLogin(t.Context(), access.System(config.Name), "ocsp1", csr(t))
	must(t, err)
	good := func() (n int) {
		must(t, one.DB.Read(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM certificate WHERE requester = $1 AND state <> 'revoked'`, "system:login chancery_ocsp1").Scan(&n)
		}))
		return n
	}
	if n := good(); n != 1 {
		t.Errorf("the login has %d certificates", n)
	}
	must(t, two.Clones.CloseLogin(t.Context(), "chancery_ocsp1"))
	if n := good(); n != 0 {
		t.Errorf("%d certificates of a login that was ended are good", n)
	}
}
