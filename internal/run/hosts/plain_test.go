package hosts_test

import (
	"crypto/ecdsa"
	"os"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// TestPlainFiles takes a host through its life on either engine: it joins, gets files, keeps them through a look that
// changes nothing, mends what was changed, and gets others after a revocation.
func TestPlainFiles(t *testing.T) {
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			w := theWorld(t)
			if engine == db.Postgres {
				w = worldOn(t, engine)
			}
			plainFiles(t, w)
		})
	}
}

func plainFiles(t *testing.T, w *world) {
	const key, certificate, trust = "/etc/ssl/web.key", "/etc/ssl/web.pem", "/etc/ssl/web-ca.pem"
	h := w.newHost(t, "web", machine{})
	h.join(order("plain", "key="+key, "cert="+certificate, "trust="+trust))
	h.converge()
	seen := h.observed("plain")
	leaf := parsed(t, h.read(certificate))
	if seen.State != client.PlacementPlaced || seen.Serial != cert.FormatSerial(leaf.SerialNumber) {
		t.Errorf("placed is %s, reported %+v", cert.FormatSerial(leaf.SerialNumber), seen)
	}
	if st, err := os.Stat(h.path(key)); err != nil || st.Mode() != 0o600 {
		t.Errorf("the key: %v %v", st, err)
	}
	output(t, h.command("openssl", "verify", "-CAfile", h.path(trust), "-untrusted", h.path(certificate), "-verify_hostname", h.name, h.path(certificate)))
	before := []uint64{h.inode(key), h.inode(certificate), h.inode(trust)}
	h.converge()
	if after := []uint64{h.inode(key), h.inode(certificate), h.inode(trust)}; after[0] != before[0] || after[1] != before[1] || after[2] != before[2] {
		t.Errorf("a second look replaced files: %v, then %v", before, after)
	}
	must(t, os.WriteFile(h.path(certificate), []byte("changed\n"), 0o644))
	h.converge()
	if !parsed(t, h.read(certificate)).Equal(leaf) {
		t.Error("a changed certificate was not put back")
	}
	if mended := h.observed("plain").Repaired; len(mended) == 0 || !strings.Contains(strings.Join(mended, "\n"), certificate) {
		t.Errorf("the repair is not reported: %q", mended)
	}
	_, err := w.admin.Revoke(t.Context(), "", seen.Serial, client.RevokeRequest{Reason: "keyCompromise"})
	must(t, err)
	h.converge()
	if again := parsed(t, h.read(certificate)); again.PublicKey.(*ecdsa.PublicKey).Equal(leaf.PublicKey) {
		t.Error("a revoked certificate was not re-keyed")
	}
}
