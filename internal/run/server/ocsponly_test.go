package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"chancery/client"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// addNode makes the data directory of another node of one's authority, as joining does.
func addNode(t *testing.T, one *setup.Services, first datadir.Dir, name, databaseFile string, subsystems ...keys.Subsystem) datadir.Dir {
	t.Helper()
	dir := datadir.Dir(filepath.Join(t.TempDir(), name))
	for _, path := range []string{dir.IdentityRoot(), dir.AuditKey(), dir.AdminCert(), dir.AdminKey()} {
		from := filepath.Join(string(first), strings.TrimPrefix(path, string(dir)))
		text, err := os.ReadFile(from)
		must(t, err)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, text, 0o600))
	}
	must(t, os.Chmod(string(dir), 0o700))
	key, err := keys.CreateNodeKey(dir.NodeKey())
	must(t, err)
	actor := access.System(one.Keys.Self()).Actor()
	recipient := keys.Recipient{ID: name, Kind: keys.KindNode, Name: name, Subsystems: subsystems, PublicKey: key.Public(), Created: time.Now()}
	list, err := one.Keys.SignList(t.Context(), []keys.Recipient{recipient})
	must(t, err)
	must(t, one.DB.Tx(t.Context(), func(tx *db.Tx) error {
		if err := one.Keys.AddRecipient(t.Context(), tx, recipient, actor, time.Now()); err != nil {
			return err
		}
		return one.Keys.PutList(t.Context(), tx, list, actor, time.Now())
	}))
	_, err = one.Keys.Rewrap(t.Context(), name, actor)
	must(t, err)
	config := datadir.Config{Name: name, Address: "https://localhost:8443", DatabaseFile: databaseFile,
		Listen: datadir.Listen{API: "127.0.0.1:0", Public: "127.0.0.1:0", Metrics: "127.0.0.1:0"}}
	must(t, dir.Create(config))
	loaded, err := dir.Load()
	must(t, err)

	tlsKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	issued, err := one.Identity.Serve(t.Context(), name, tlsKey.Public(), serverNames(loaded, false))
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(tlsKey)
	must(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range identity.Path(issued) {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	must(t, os.WriteFile(dir.TLS(), text, 0o600))
	return dir
}

// responseData is what a node answers about a certificate (RFC 6960 section 4.2.1), less producedAt; empty while it has no answer.
func responseData(t *testing.T, public string, leaf, above *x509.Certificate) string {
	t.Helper()
	request, err := ocsp.CreateRequest(leaf, above, nil)
	must(t, err)
	resp, err := http.Post("http://"+public+"/ocsp", "application/ocsp-request", bytes.NewReader(request))
	must(t, err)
	defer resp.Body.Close()
	der, err := io.ReadAll(resp.Body)
	must(t, err)
	answer, err := ocsp.ParseResponseForCert(der, leaf, above)
	if err != nil {
		return ""
	}
	produced := "\x18\x0f" + answer.ProducedAt.UTC().Format("20060102150405Z") // a GeneralizedTime, the first there is
	before, after, ok := strings.Cut(string(answer.TBSResponseData), produced)
	if !ok {
		t.Fatalf("no producedAt in %x", der)
	}
	return before + after
}

// TestNodeThatRunsOCSPAlone: it answers what is public, and agents' polls; it takes no lease, opens no issuer's key, and says where
// issuing is done.
func TestNodeThatRunsOCSPAlone(t *testing.T) {
	url := filepath.Join(t.TempDir(), "url")
	must(t, os.WriteFile(url, []byte(pkitest.URL(t, db.Postgres)+"\n"), 0o600))
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
	open := func(dir datadir.Dir, config *datadir.Config) *setup.Services {
		s, err := setup.Open(context.Background(), dir, config, slog.New(slog.DiscardHandler))
		must(t, err)
		t.Cleanup(func() { must(t, s.DB.Close()) })
		return s
	}
	one := open(dir, config)
	until(t, "the responder", func() bool {
		_, err := (&stream{t: t, public: first.Public, leaf: leaf, ca: above}).once(true, 3) // SHA-1
		return err == nil
	})
	near := addNode(t, one, dir, "ocsp1", url, keys.SubsystemOCSP)
	second := start(t, near)

	for _, get := range []bool{true, false} {
		if _, err := (&stream{t: t, public: second.Public, leaf: leaf, ca: above}).once(get, 5); err != nil { // SHA-256
			t.Errorf("OCSP: %v", err)
		}
	}
	for _, path := range []string{"/crl/" + issued.Certificate.Issuer + ".crl", "/ca/" + issued.Certificate.Issuer + ".cer"} {
		until(t, path, func() bool { code, _ := fetch(t, "http://"+first.Public+path); return code == http.StatusOK })
		_, mine := fetch(t, "http://"+first.Public+path)
		if code, text := fetch(t, "http://"+second.Public+path); code != http.StatusOK || text != mine {
			t.Errorf("%s: %d, and other octets", path, code)
		}
	}
	same := func() {
		t.Helper()
		until(t, "answers of one period", func() bool {
			one, two := responseData(t, first.Public, leaf, above), responseData(t, second.Public, leaf, above)
			if one == "" || one != responseData(t, first.Public, leaf, above) {
				return false
			}
			if one != two {
				t.Fatalf("the nodes differ:\n%x\n%x", one, two)
			}
			return true
		})
	}
	same()
	until(t, "readiness", func() bool { code, _ := fetch(t, "http://"+second.Metrics+"/readyz"); return code == http.StatusOK })
	if _, err := agent.Desired(t.Context(), "", 0); err != nil {
		t.Errorf("an agent's poll: %v", err)
	}

	admin := second.client(true)
	until(t, "the first node's registration", func() bool {
		_, err := admin.Clone(t.Context(), config.Name)
		return err == nil
	})
	_, err = admin.Issue(t.Context(), client.IssueRequest{Profile: "server", CSR: csr(t), Names: &client.Names{SAN: []string{"dns:x.test"}}})
	if p := problemOf(err); p.Status != http.StatusConflict || !strings.Contains(p.Detail, "runs ocsp") ||
		!strings.Contains(p.Hint, config.Name+" at https://ca1.test:8443") {
		t.Errorf("issuing: %v", err)
	}
	if _, err := admin.CreateIssuer(t.Context(), client.CreateIssuerRequest{Name: "mine", Subject: "CN=Mine"}); problemOf(err).Status != http.StatusConflict {
		t.Errorf("making an issuer: %v", err)
	}
	if _, err := admin.Revoke(t.Context(), "", issued.Certificate.Serial, client.RevokeRequest{Reason: "superseded"}); err != nil {
		t.Errorf("revoking, which needs no key: %v", err)
	}
	until(t, "the revocation at both", func() bool {
		for _, r := range []*running{first, second} {
			if _, err := (&stream{t: t, public: r.Public, leaf: leaf, ca: above}).once(true, 3); err == nil {
				return false // good still
			}
		}
		return true
	})
	same()

	// What it is entitled to, it opens; an issuer's key it neither opens nor makes.
	must(t, second.stop())
	loaded, err := near.Load()
	must(t, err)
	two := open(near, loaded)
	issuer, err := two.CA.Issuer(t.Context(), issued.Certificate.Issuer)
	must(t, err)
	if _, err := two.Keys.Signer(t.Context(), issuer.KeyID); !fault.Is(err, fault.Denied) {
		t.Errorf("it opens an issuer's key: %v", err)
	}
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	if _, err := two.Keys.Seal(t.Context(), made, keys.Issuer, issuer.ID); !fault.Is(err, fault.Denied) {
		t.Errorf("it seals an issuer's key: %v", err)
	}
	leases, err := two.DB.Leases(t.Context())
	must(t, err)
	if len(leases) == 0 {
		t.Error("there is no lease at all")
	}
	for _, l := range leases {
		if l.Holder == "ocsp1" {
			t.Errorf("it holds the lease %s", l.Name)
		}
	}
}
