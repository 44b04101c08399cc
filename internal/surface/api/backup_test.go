package api_test

import (
	"net/http"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// TestBackupGoesToNoStranger exchanges the recovery recipient in the database: a backup for it would be lost to the owner.
func TestBackupGoesToNoStranger(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	token := a.people[access.Admin].token
	if status, _, body := a.request("POST", client.Prefix+"/backup", token, ""); status != http.StatusOK {
		t.Fatalf("%d: %.200s", status, body)
	}
	stranger, err := keys.GenerateRecovery()
	must(t, err)
	must(t, a.DB.Tx(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), `UPDATE key_recipient SET public_key = $1 WHERE kind = 'recovery'`, stranger.Public())
		return err
	}))
	status, _, body := a.request("POST", client.Prefix+"/backup", token, "")
	if status != http.StatusConflict || !strings.Contains(string(body), "vouches") {
		t.Errorf("%d: %.200s", status, body)
	}
}
