package server

import (
	"bytes"
	"context"
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

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/migrate"
	"chancery/internal/upkeep/setup"

	"golang.org/x/crypto/ocsp"
)

// TestAnswersWhileItMoves moves an authority to PostgreSQL: meanwhile the move itself answers what only reads, and refuses to issue with the
// reason; a node then goes on from the new database.
func TestAnswersWhileItMoves(t *testing.T) {
	t.Parallel()
	dir := made(t)
	r := start(t, dir)
	issued, err := issue(t, r.admin(), "before.test")
	if err != nil {
		t.Fatal(err)
	}
	crl := "/crl/" + issued.Certificate.Issuer + ".crl"
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if code, _ := fetch(t, "http://"+r.Public+crl); code == http.StatusOK && answersOCSP(t, r.Public, dir, issued.Certificate.PEM) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the node never had a CRL and an OCSP responder")
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte(pkitest.URL(t, db.Postgres)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	at, looked := make(chan Addresses, 1), false
	done, err := migrate.Run(t.Context(), migrate.Options{
		Dir: dir, URLFile: file,
		Answer: func(ctx context.Context, config *datadir.Config, s *setup.Services) error {
			return Answer(ctx, Options{Dir: dir, Version: "test", Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
				Listening: func(a Addresses) { at <- a }}, config, s)
		},
		Tell: func(step string) {
			if step != "comparing every row" {
				return
			}
			select {
			case a := <-at:
				looked = true
				meanwhile(t, &running{t: t, dir: dir, Addresses: a}, crl, issued.Certificate.PEM)
			case <-time.After(time.Minute):
				t.Error("nobody answers")
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !looked || len(done.Warnings) > 0 {
		t.Errorf("looked at it: %v; warnings %q", looked, done.Warnings)
	}
	r = start(t, dir)
	if _, err := issue(t, r.admin(), "after.test"); err != nil {
		t.Error(err)
	}
}

// meanwhile asks who answers during a move.
func meanwhile(t *testing.T, r *running, crl, certificate string) {
	t.Helper()
	if code, _ := fetch(t, "http://"+r.Public+crl); code != http.StatusOK {
		t.Errorf("the CRL: %d", code)
	}
	if !answersOCSP(t, r.Public, r.dir, certificate) {
		t.Error("an OCSP request is not answered")
	}
	api := r.client(true)
	if _, err := api.Status(t.Context()); err != nil {
		t.Errorf("the status: %v", err)
	}
	_, err := issue(t, api, "meanwhile.test")
	if p := problemOf(err); p.Status != http.StatusServiceUnavailable || !strings.Contains(p.Detail, "the authority is being moved to postgres://") {
		t.Errorf("a certificate: %v", err)
	}
}

// answersOCSP says whether a certificate is good by who answers there.
func answersOCSP(t *testing.T, public string, dir datadir.Dir, certificate string) bool {
	t.Helper()
	block, _ := pem.Decode([]byte(certificate))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	code, der := fetch(t, "http://"+public+"/ca/default.cer")
	if code != http.StatusOK {
		return false
	}
	issuer, err := x509.ParseCertificate([]byte(der))
	if err != nil {
		t.Fatal(err)
	}
	request, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Post("http://"+public+"/ocsp", "application/ocsp-request", bytes.NewReader(request))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ocsp.ParseResponseForCert(body, leaf, issuer)
	return err == nil && parsed.Status == ocsp.Good
}
