package publish_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/profile"
	"chancery/internal/authority/revocation"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/settings"
	"chancery/internal/surface/publish"
)

// office is an authority of one node whose public surface listens on loopback. Its public URL is that listener's, so the
// URLs in its certificates lead to it.
type office struct {
	t       testing.TB
	ca      *ca.CA
	service *revocation.Service
	config  *settings.Store
	db      *db.DB
	stop    func() // ends the loops
	server  *httptest.Server
	root    *ca.Issuer
	issuer  *ca.Issuer
	by      access.Principal
	dir     string // holds root.pem, issuer.pem and chain.pem
}

func newOffice(t testing.TB, d *db.DB, mode ca.CRLMode) *office {
	t.Helper()
	o := &office{t: t, db: d, dir: t.TempDir(), by: access.Principal{ID: "admin", Name: "admin", Kind: access.KindOperator, Roles: []access.Role{access.Admin, access.Officer}}}
	ctx := t.Context()
	log, err := audit.New(d, "node-a")
	must(t, err)
	nodeKey, err := keys.CreateNodeKey(filepath.Join(o.dir, "node.key"))
	must(t, err)
	recovery, err := keys.GenerateRecovery()
	must(t, err)
	store := keys.New(d, log, "node-a", nodeKey)
	config := settings.New(d, log)
	o.ca = ca.New(ca.Options{DB: d, Keys: store, Profiles: profile.New(d, log), Settings: config, Audit: log})
	o.service = revocation.New(revocation.Options{DB: d, CA: o.ca, Keys: store, Settings: config, Audit: log})
	o.config = config
	o.server = httptest.NewServer(publish.New(o.service, o.ca, config, nil))
	t.Cleanup(o.server.Close)
	first := settings.Defaults()
	first.Authority, first.Organization, first.PublicURL = "0197c6a8-6c58-7a4e-8f57-c6dbd7f1d9a5", "Fleet", o.server.URL
	first.CRL.Gather = 0
	must(t, d.Tx(ctx, func(tx *db.Tx) error {
		if err := config.Create(ctx, tx, first, "test", time.Now()); err != nil {
			return err
		}
		for _, r := range []keys.Recipient{
			{ID: "node-a", Kind: keys.KindNode, Name: "node-a", Subsystems: []keys.Subsystem{keys.SubsystemCA, keys.SubsystemOCSP}, PublicKey: nodeKey.Public()},
			{ID: "recovery", Kind: keys.KindRecovery, Name: "recovery", PublicKey: recovery.Public()},
		} {
			if err := store.AddRecipient(ctx, tx, r, "test", time.Now()); err != nil {
				return err
			}
		}
		return nil
	}))
	o.root, _, err = o.ca.CreateIssuer(ctx, o.by, ca.IssuerSpec{Name: "root", Subject: "CN=Root,O=Fleet"})
	must(t, err)
	o.issuer, _, err = o.ca.CreateIssuer(ctx, o.by, ca.IssuerSpec{Name: "one", Parent: "root", Default: true, Subject: "CN=Issuer one,O=Fleet", CRL: mode})
	must(t, err)
	o.write("root.pem", o.root.Certificate)
	o.write("issuer.pem", o.issuer.Certificate)
	o.write("chain.pem", o.issuer.Certificate, o.root.Certificate)
	o.run()
	return o
}

func (o *office) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for _, loop := range []func(context.Context) error{o.service.Run, o.service.Follow} {
		group.Go(func() {
			if err := loop(ctx); ctx.Err() == nil {
				o.t.Errorf("a loop ended: %v", err)
			}
		})
	}
	o.stop = sync.OnceFunc(func() { cancel(); group.Wait() })
	o.t.Cleanup(o.stop)
}

func (o *office) write(name string, all ...*x509.Certificate) {
	o.t.Helper()
	var text []byte
	for _, c := range all {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	must(o.t, os.WriteFile(filepath.Join(o.dir, name), text, 0o600))
}

// issue makes a certificate and writes it to a file of its name.
func (o *office) issue(name string) *x509.Certificate {
	o.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(o.t, err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	must(o.t, err)
	issued, err := o.ca.Issue(o.t.Context(), o.by, ca.Order{Issuer: o.issuer.ID, Profile: "server", PublicKey: spki, Names: []string{"dns:" + name}})
	must(o.t, err)
	c, err := issued.Parsed()
	must(o.t, err)
	o.write(name+".pem", c)
	return c
}

func (o *office) revoke(c *x509.Certificate, reason crl.Reason) {
	o.t.Helper()
	_, err := o.ca.Revoke(o.t.Context(), o.by, ca.Ref{Issuer: o.issuer.ID, Serial: c.SerialNumber}, ca.RevokeOrder{Reason: reason})
	must(o.t, err)
}

// until waits for what the loops do in the background.
func (o *office) until(what string, done func() bool) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 2*time.Minute)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			o.t.Fatalf("it never came to be that %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ready waits until lists and responders are there.
func (o *office) ready() {
	o.t.Helper()
	probe := o.issue("ready.example")
	o.until("the responder answers", func() bool { return o.status(probe, crypto.SHA1) == xocsp.Good })
	o.until("the list is there", func() bool { code, _, _ := o.get("/crl/one.crl", nil); return code == http.StatusOK })
	o.until("the root's list is there", func() bool { code, _, _ := o.get("/crl/root.crl", nil); return code == http.StatusOK })
}

// status asks by POST, and returns -1 where there is no answer that verifies.
func (o *office) status(c *x509.Certificate, hash crypto.Hash) int {
	o.t.Helper()
	request, err := xocsp.CreateRequest(c, o.issuer.Certificate, &xocsp.RequestOptions{Hash: hash})
	must(o.t, err)
	_, _, body := o.post(request)
	response, err := xocsp.ParseResponseForCert(body, c, o.issuer.Certificate)
	if err != nil {
		return -1
	}
	return response.Status
}

func (o *office) get(path string, header http.Header) (int, http.Header, []byte) {
	return o.do(http.MethodGet, path, header, nil)
}

func (o *office) post(body []byte) (int, http.Header, []byte) {
	return o.do(http.MethodPost, "/ocsp", http.Header{"Content-Type": {"application/ocsp-request"}}, strings.NewReader(string(body)))
}

func (o *office) do(method, path string, header http.Header, body io.Reader) (int, http.Header, []byte) {
	o.t.Helper()
	r, err := http.NewRequestWithContext(o.t.Context(), method, o.server.URL+path, body)
	must(o.t, err)
	for name, values := range header {
		r.Header[name] = values
	}
	response, err := http.DefaultTransport.RoundTrip(r) // follows no redirect
	must(o.t, err)
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	must(o.t, err)
	if method == http.MethodHead && len(got) > 0 {
		o.t.Errorf("HEAD %s has a body", path)
	}
	return response.StatusCode, response.Header, got
}

// program runs a real program in the office's directory. One that is not installed fails the test.
func (o *office) program(name string, args ...string) (string, error) {
	o.t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		o.t.Fatalf("%s is needed by this test: %v", name, err)
	}
	cmd := exec.CommandContext(o.t.Context(), path, args...)
	cmd.Dir = o.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
