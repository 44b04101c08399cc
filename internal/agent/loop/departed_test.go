package loop_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/pki/keyfile"
)

const storeRecipe = `
name: store
title: a trust store that others have a part in
about: a test
files:
  - {path: /etc/ssl/store.pem, content: [anchors], merge: true}
checks:
  - {name: check, command: [CHECK]}
`

// TestRootThatLeftIsNotCalledGone: a root that had been in a store before, and was the pool's, leaves it with the pool's trust.
// While some program brings it back, the trust without it is not said to be in use, and the store is named.
func TestRootThatLeftIsNotCalledGone(t *testing.T) {
	m := &mover{newMachine(t, client.PlacementOrder{Recipe: "local/store", Name: "a"}), filepath.Join(t.TempDir(), "check")}
	m.checks("exit 0")
	must(t, os.MkdirAll(m.path(loop.RecipeDirectory), 0o755))
	must(t, os.WriteFile(filepath.Join(m.path(loop.RecipeDirectory), "store.yaml"), []byte(strings.ReplaceAll(storeRecipe, "CHECK", m.check)), 0o644))
	must(t, os.WriteFile(m.path(loop.ConfigFile), []byte("recipes: [local/store]\n"), 0o644))
	stolen, other := foreignRoot(t, "stolen", time.Now().Add(time.Hour)), foreignRoot(t, "other", time.Now().Add(time.Hour))
	const store = "/etc/ssl/store.pem"
	must(t, os.WriteFile(m.path(store), keyfile.EncodeCertificates(stolen, other), 0o644))
	copied := filepath.Join(t.TempDir(), "stolen.pem")
	must(t, os.WriteFile(copied, keyfile.EncodeCertificates(stolen), 0o644))
	has := func(text string) bool { return bytes.Contains(m.read(store), []byte(text)) }

	seen := m.told(func(d *client.Desired, _ *client.DesiredPlacement) {
		d.Trust.Anchors, d.Trust.Version = append(d.Trust.Anchors, pemText(stolen)), 100
	})
	if seen.Trust != 100 || seen.State != client.PlacementPlaced || !has(pemText(stolen)) {
		t.Fatalf("at first: %+v", seen)
	}
	without := func(d *client.Desired, _ *client.DesiredPlacement) { d.Trust.Version = 101 }
	m.checks("cat " + copied + " >>" + m.path(store))
	if seen := m.told(without); seen.Trust == 101 || seen.State != client.PlacementFailed || !strings.Contains(seen.Message, store) || !has(pemText(stolen)) {
		t.Errorf("while a program brings it back: %+v", seen)
	}
	m.checks("exit 0")
	seen = m.told(without)
	if seen.Trust != 101 || seen.State != client.PlacementPlaced || has(pemText(stolen)) || !has(pemText(other)) {
		t.Errorf("without that program: %+v", seen)
	}
	for _, words := range []string{"was there before, and left with the pool's trust", "was put back"} {
		if !strings.Contains(seen.Message, words) {
			t.Errorf("the report does not say that it %s: %s", words, seen.Message)
		}
	}
	if again := m.told(without); again.Trust != 101 || !strings.Contains(again.Message, "was there before, and left") {
		t.Errorf("a pass later: %+v", again)
	}
}
