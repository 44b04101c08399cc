package loop_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
)

// inPool gives a machine another host, of a pool of its own.
func (m *mover) inPool(parameters map[string]string) string {
	m.t.Helper()
	name := "pool-of-" + m.name
	pool, err := m.node.admin.AddPool(m.t.Context(), client.AddPoolRequest{Name: name, Online: true})
	must(m.t, err)
	for _, issuer := range []*client.Issuer{pool.Root, pool.Issuer} {
		_, err := m.node.admin.IssueCRL(m.t.Context(), issuer.Name, client.IssueCRLRequest{})
		must(m.t, err)
	}
	m.name += "-other"
	added, err := m.node.admin.AddHost(m.t.Context(), client.AddHostRequest{
		Name: m.name, Pool: name, DNS: []string{m.name + ".example"}, Profiles: []string{"short"},
		Placements: []client.PlacementOrder{{Recipe: "local/succession", Name: "a", Parameters: parameters}},
	})
	must(m.t, err)
	_, err = loop.Join(m.t.Context(), loop.JoinOptions{State: m.state, Token: added.Token, Again: true, Version: "test"})
	must(m.t, err)
	return name
}

// TestHostReturnsAfterLong: it was replaced, and whom its pool trusts is another, while it was away. It says what helps and
// leaves what it has; let in again, it has the trust of now, and nothing of what it held is presented any more.
func TestHostReturnsAfterLong(t *testing.T) {
	m := newMover(t, nil)
	pool := m.inPool(nil)
	var before client.Observation
	m.eventually("all is in place", func() bool { before = m.told(nil); return before.State == client.PlacementPlaced && before.Trust > 0 })
	later := foreignRoot(t, "came later", time.Now().Add(time.Hour))
	_, err := m.node.admin.AddTrust(t.Context(), pool, client.AddTrustRequest{PEM: pemText(later)})
	must(t, err)
	token, err := m.node.admin.ReplaceHost(t.Context(), m.name, client.ReplaceHostRequest{Reason: "keyCompromise"})
	must(t, err)
	files := tree(t, m.root)
	a, err := loop.New(m.options)
	must(t, err)
	result, err := a.Once(t.Context())
	must(t, err)
	must(t, a.Close())
	said := strings.Join(result.Problems, "\n")
	for _, wanted := range []string{"refuses this host", "chancery host replace " + m.name, "agent join --again"} {
		if !strings.Contains(said, wanted) {
			t.Errorf("it does not say %q: %s", wanted, said)
		}
	}
	for path, was := range tree(t, m.root) {
		if files[path] != was {
			t.Errorf("%s was written", path)
		}
	}
	_, err = loop.Join(t.Context(), loop.JoinOptions{State: m.state, Token: token.Token, Again: true, Version: "test"})
	must(t, err)
	after := m.told(nil)
	if after.Serial == before.Serial || after.Trust <= before.Trust || after.State != client.PlacementPlaced {
		t.Errorf("before it was away %+v, and let in again %+v", before, after)
	}
	if all := m.trusts(); len(all) != 2 || !(all[0].Equal(later) || all[1].Equal(later)) {
		t.Errorf("%d are trusted", len(all))
	}
	old, err := m.node.admin.Certificate(t.Context(), "", before.Serial)
	must(t, err)
	if old.State != client.StateRevoked {
		t.Errorf("what it held before is %s", old.State)
	}
}

// TestTrustAnchorOfOthers: a placement trusts it for its purpose, and is itself under the pool.
func TestTrustAnchorOfOthers(t *testing.T) {
	m := newMover(t, nil)
	pool := m.inPool(map[string]string{"purpose": "ldaps"})
	soon := foreignRoot(t, "directory", time.Now().Add(20*time.Minute))
	_, err := m.node.admin.AddTrust(t.Context(), pool, client.AddTrustRequest{Purpose: "ldaps", PEM: pemText(soon)})
	must(t, err)
	var o client.Observation
	m.eventually("it trusts the directory", func() bool { o = m.told(nil); return o.State == client.PlacementPlaced })
	if all := m.trusts(); len(all) != 1 || !all[0].Equal(soon) || o.Trust == 0 {
		t.Errorf("%+v, %v", o, all)
	}
	roots := x509.NewCertPool()
	roots.AddCert(soon)
	if _, err := m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key").Leaf.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
		t.Error("its own certificate is under whom it trusts for another purpose")
	}
}

// TestCRLOfOthersIsPlaced: the authority was given a CRL of a trust anchor that is none of its own, and hands it on. Until then
// the placement says that there is none.
func TestCRLOfOthersIsPlaced(t *testing.T) {
	m := newMover(t, nil)
	pool := m.inPool(nil)
	var first client.Observation
	m.eventually("all is in place", func() bool { first = m.told(nil); return first.State == client.PlacementPlaced && first.Trust > 0 })
	partner, key := foreignCA(t, "partner", time.Now().Add(240*time.Hour))
	added, err := m.node.admin.AddTrust(t.Context(), pool, client.AddTrustRequest{PEM: pemText(partner)})
	must(t, err)
	without := m.told(nil)
	if without.Trust <= first.Trust || !strings.Contains(without.Message, "no CRL of CN=partner") {
		t.Errorf("without a CRL: %+v", without)
	}
	template := &x509.RevocationList{Number: big.NewInt(77), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateRevocationList(rand.Reader, template, partner, key)
	must(t, err)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	_, err = m.node.admin.AddTrustCRL(t.Context(), pool, added[0].ID, client.UploadCRLRequest{CRL: text})
	must(t, err)
	m.eventually("its CRL is placed", func() bool { m.told(nil); return strings.Contains(string(m.read("/etc/ssl/crl.pem")), text) })
	with := m.told(nil)
	if with.CRLs["CN=partner"] != "77" || strings.Contains(with.Message, "no CRL of") || with.Serial != first.Serial {
		t.Errorf("with it: %+v", with)
	}
}

const readingRecipe = `
name: reading
title: a consumer that is told by its number
about: a test
parameters:
  - {name: pid_file, type: path, trusted: true, required: true, about: "of the consumer"}
certificates:
  - profile: short
    key: [{algorithm: ecdsa-p256}]
    names: ["dns:${host.names}"]
    usages: [serverAuth]
files:
  - {path: /etc/ssl/r.key, content: [key], mode: "0600"}
  - {path: /etc/ssl/r.pem, content: [path]}
reload:
  - {name: reload, signal: {pid_file: "${param.pid_file}", process: reading, signal: HUP}}
`

// TestWhatTheHostTookBackIsNotKeptUp: a placement that reads what the host accepts no more is left as it is, also where its
// order of before would have been kept up.
func TestWhatTheHostTookBackIsNotKeptUp(t *testing.T) {
	m := newMover(t, nil)
	_, err := m.node.admin.ChangeHost(t.Context(), m.name, client.ChangeHostRequest{Profiles: &[]string{"short"}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(m.path(loop.RecipeDirectory), "reading.yaml"), []byte(readingRecipe), 0o644))
	must(t, os.MkdirAll(m.path("/srv/run"), 0o755))
	accepts := func(reads string) {
		t.Helper()
		must(t, os.WriteFile(m.path(loop.ConfigFile), []byte("recipes: [local/reading]\nreads: ["+reads+"]\n"), 0o644))
	}
	accepts("/srv/run")
	m.order(client.PlacementOrder{Recipe: "local/reading", Name: "a", Parameters: map[string]string{"pid_file": "/srv/run/pid"}})
	if o := m.told(nil); o.State != client.PlacementDown {
		t.Fatalf("%+v", o)
	}
	accepts("/run")
	must(t, os.Chmod(m.path("/etc/ssl/r.key"), 0o644))
	o := m.told(nil)
	if o.State != client.PlacementFailed || !strings.Contains(o.Message, "left as it is") || !strings.Contains(o.Message, "/srv/run/pid") {
		t.Errorf("%+v", o)
	}
	if st, err := os.Stat(m.path("/etc/ssl/r.key")); err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("it was mended, and its consumer would have been told: %v %v", st, err)
	}
}
