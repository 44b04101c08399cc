package place

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
)

// TestFoundRootStaysWhenWeGo: what an operator had in his store before, and the pool trusted, too, is his again when the
// placement goes, as it was.
func TestFoundRootStaysWhenWeGo(t *testing.T) {
	o, own := newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256)
	s := newScene(t)
	p := s.placer(t)
	plan := trustPlan(recipe.PlannedFile{Path: "/srv/trust/store", Format: "pem", Merge: true})
	found := keyfile.EncodeCertificates(own.root)
	s.put(t, "/srv/trust/store", found, 0o644)
	mustPlace(t, p, trustSet(t, plan, testPassword, o.root, own.root))
	none := Set{Name: "trust"}
	if err := Withdraw(&none, plan, Sources{Password: testPassword}); err != nil {
		t.Fatal(err)
	}
	if out := mustPlace(t, p, none); len(out.Told) > 0 || !bytes.Equal(s.get(t, "/srv/trust/store"), found) {
		t.Errorf("%+v: %s", out, s.get(t, "/srv/trust/store"))
	}
}

// TestRootThatLeftInOtherBlocks: OpenSSL trusts what other kinds of PEM blocks hold, too.
func TestRootThatLeftInOtherBlocks(t *testing.T) {
	before, after := newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256)
	s := newScene(t)
	p := s.placer(t)
	const path = "/srv/trust/store"
	plan := trustPlan(recipe.PlannedFile{Path: path, Format: "pem", Merge: true})
	in := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(in, keyfile.EncodeCertificates(before.root), 0o600); err != nil {
		t.Fatal(err)
	}
	trusted := program(t, "openssl", "x509", "-in", in, "-addtrust", "serverAuth", "-trustout")
	if !strings.Contains(trusted, "BEGIN TRUSTED CERTIFICATE") {
		t.Fatal(trusted)
	}
	s.put(t, path, append([]byte(trusted), pem.EncodeToMemory(&pem.Block{Type: "X509 CERTIFICATE", Bytes: before.root.Raw})...), 0o644)
	mustPlace(t, p, trustSet(t, plan, testPassword, before.root))
	mustPlace(t, p, trustSet(t, plan, testPassword, after.root))
	if got := s.get(t, path); !bytes.Equal(got, keyfile.EncodeCertificates(after.root)) {
		t.Errorf("the store holds\n%s", got)
	}
}

// flagsOf are the flags of a certificate as certutil lists them; empty where it is not there.
func (n *nssScene) flagsOf(t *testing.T, nickname string) string {
	t.Helper()
	for line := range strings.Lines(n.certutil(t, "-L")) {
		if rest, is := strings.CutPrefix(line, nickname+" "); is {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// TestNSSRootThatWasThere: a root that an operator had with flags of his own gets the pool's, and his own back when the
// placement goes. When it leaves the pool's trust, it leaves the database, and does not come back.
func TestNSSRootThatWasThere(t *testing.T) {
	o, next := newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256)
	n := newNSS(t, "a secret of the store")
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n.certutil(t, "-N")
	n.put(t, "/srv/root.pem", keyfile.EncodeCertificates(o.root), 0o644)
	byHand := []string{"-A", "-n", "by hand", "-t", "T,,", "-a", "-i", filepath.Join(n.root, "srv/root.pem")}
	n.certutil(t, byHand...)
	plan := trustPlan(recipe.PlannedFile{Path: "/srv/nssdb", Format: "nss", PasswordFile: "/srv/pin"})
	place := func(anchors ...*x509.Certificate) Outcome {
		t.Helper()
		material := *o.material
		material.Anchors = anchors
		set, err := Render(plan, map[string]*probe.Material{"": &material}, n.sources)
		if err != nil {
			t.Fatal(err)
		}
		return mustPlace(t, n.placer, set)
	}
	withdraw := func() Outcome {
		t.Helper()
		none := Set{Name: "trust"}
		if err := Withdraw(&none, plan, n.sources); err != nil {
			t.Fatal(err)
		}
		return mustPlace(t, n.placer, none)
	}
	place(o.root)
	if got := n.flagsOf(t, "by hand"); !sameFlags(got, "CT,,") {
		t.Fatalf("placed, its flags are %q", got)
	}
	withdraw()
	if got := n.flagsOf(t, "by hand"); got != "T,," {
		t.Errorf("given back, its flags are %q", got)
	}
	place(o.root)
	if out := place(next.root); n.flagsOf(t, "by hand") != "" || len(out.Told) != 1 || !strings.Contains(out.Told[0], "was there before, and left") {
		t.Errorf("it left the trust: %q, %+v", n.flagsOf(t, "by hand"), out)
	}
	n.certutil(t, byHand...)
	if out := place(next.root); n.flagsOf(t, "by hand") != "" || len(out.Told) != 1 || !strings.Contains(out.Told[0], "put back") {
		t.Errorf("it was put back: %q, %+v", n.flagsOf(t, "by hand"), out)
	}

	// Where everything of ours has been taken out by hand, giving the database back has nothing to write.
	n.certutil(t, "-D", "-n", fileStem(next.root))
	if out := withdraw(); len(out.Left) > 0 {
		t.Errorf("given back: %+v", out)
	}
	if _, err := os.Stat(n.sources.Scratch); !os.IsNotExist(err) {
		t.Errorf("the scratch directory is left: %v", err)
	}
}
