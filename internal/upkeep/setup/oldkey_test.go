package setup_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/pkitest"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

// TestOldKeyKeepsItsLists re-keys an issuer and retires the old key. What that issued can be revoked still, and its CRLs and OCSP answers go on,
// signed under the old key: openssl verifies them under the old path, and the successor's under its own.
func TestOldKeyKeepsItsLists(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		dir := newDir(t)
		if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir, DatabaseFile: databaseFile(t, url), Online: true}); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		running, end := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Revocation.Run(running) }()
		defer func() { end(); <-ended }()

		revoked, good := issue(t, s, "revoked.example"), issue(t, s, "good.example")
		old := revoked.Issuer
		if _, _, err := s.CA.CreateIssuer(t.Context(), officer, ca.IssuerSpec{Name: "default2", Parent: old.Parent, Pool: old.Pool, Default: true, Subject: "CN=Second"}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CA.Retire(t.Context(), officer, "default", once.Call{}); err != nil {
			t.Fatal(err)
		}
		after := issue(t, s, "after.example")
		if after.Issuer.Name != "default2" || after.Issuer.KeyID == old.KeyID {
			t.Fatalf("issued by %s afterwards", after.Issuer.Name)
		}
		if _, err := s.CA.Revoke(t.Context(), officer, ca.Ref{Issuer: old.ID, Serial: revoked.Serial}, ca.RevokeOrder{}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			of      *ca.Issuer
			leaf    *ca.Certificate
			entries int64
			want    string
		}{{old, revoked, 1, "revoked"}, {old, good, 1, "good"}, {after.Issuer, after, 0, "good"}} {
			w := outside{t, t.TempDir()}
			path := w.file("path.pem", certificates(c.of))
			l, err := s.Revocation.IssueCRL(t.Context(), officer, c.of.Name, revocation.Wish{}, once.Call{})
			if err != nil || l.Entries != c.entries {
				t.Fatalf("the CRL of %s: %+v, %v", c.of.Name, l, err)
			}
			var der bytes.Buffer
			if err := s.Revocation.WriteTo(t.Context(), &der, l); err != nil {
				t.Fatal(err)
			}
			if out := w.openssl("crl", "-inform", "DER", "-in", w.file("crl", der.Bytes()), "-CAfile", path, "-noout"); !strings.Contains(out, "verify OK") {
				t.Errorf("openssl says of the CRL of %s: %s", c.of.Name, out)
			}
			issuer := w.file("issuer.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.of.Certificate.Raw}))
			leaf := w.file("leaf.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.leaf.DER}))
			request := filepath.Join(w.dir, "request")
			w.openssl("ocsp", "-issuer", issuer, "-cert", leaf, "-no_nonce", "-reqout", request)
			asked, err := os.ReadFile(request)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := s.Revocation.Respond(t.Context(), asked, nil)
			for deadline := time.Now().Add(time.Minute); err != nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
				answer, err = s.Revocation.Respond(t.Context(), asked, nil) // a new issuer's responder is being made
			}
			if err != nil {
				t.Fatal(err)
			}
			out := w.openssl("ocsp", "-issuer", issuer, "-cert", leaf, "-no_nonce", "-respin", w.file("answer", answer.DER), "-CAfile", path)
			if !strings.Contains(out, "Response verify OK") || !strings.Contains(out, "leaf.pem: "+c.want) {
				t.Errorf("openssl says of the answer of %s: %s", c.of.Name, out)
			}
		}
	})
}

// outside has openssl look at things as files.
type outside struct {
	t   *testing.T
	dir string
}

func (o outside) file(name string, content []byte) string {
	o.t.Helper()
	path := filepath.Join(o.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		o.t.Fatal(err)
	}
	return path
}

func (o outside) openssl(args ...string) string {
	o.t.Helper()
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if err != nil {
		o.t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// certificates are an issuer's own and those above it.
func certificates(i *ca.Issuer) []byte {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate.Raw})
	for _, c := range i.Chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}
