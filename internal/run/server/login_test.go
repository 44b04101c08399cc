package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/clone"
	"chancery/internal/upkeep/datadir"
)

// logins is what certifies a node's login, and the PostgreSQL that knows whom it lets in.
type logins struct {
	*issuer
	life    time.Duration
	root    string // of the pool
	refuse  error
	reached []string // the URLs
}

func (l *logins) certify(_ context.Context, csr string) (clone.Login, error) {
	l.count++
	block, _ := pem.Decode([]byte(csr))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return clone.Login{}, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(int64(l.count)), Subject: pkix.Name{CommonName: "chancery_node1"}, NotBefore: time.Now(), NotAfter: time.Now().Add(l.life),
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, l.cert, request.PublicKey, l.key)
	return clone.Login{Role: "chancery_node1", Certificate: []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}, Roots: l.root}, err
}

func (l *logins) reach(_ context.Context, url string) error {
	l.reached = append(l.reached, url)
	return l.refuse
}

// TestLogin: a node whose URL leaves it to the node how it logs in gets a login when the pool is there; it is renewed when it is due, and
// what PostgreSQL refuses takes the place of nothing, and is tried again, not made again.
func TestLogin(t *testing.T) {
	ctx, dir := t.Context(), datadir.Dir(t.TempDir())
	file := filepath.Join(t.TempDir(), "url")
	is := &logins{issuer: newIssuer(t), life: 90 * time.Hour}
	config := &datadir.Config{Name: "node1", DatabaseFile: file}
	l := &login{
		dir: dir, config: config, certify: is.certify, reach: is.reach, logger: slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil)),
		roots: func(context.Context) (string, error) { return is.root, nil },
	}
	look := func(at time.Time, wantSerial int64) {
		t.Helper()
		if err := l.look(ctx, at); (err != nil) != (is.refuse != nil) {
			t.Fatalf("look: %v", err)
		}
		leaf, err := dir.LoginCertificate()
		must(t, err)
		if leaf == nil && wantSerial != 0 || leaf != nil && leaf.SerialNumber.Int64() != wantSerial {
			t.Fatalf("the login is %v; expected serial %d", leaf, wantSerial)
		}
	}
	now := time.Now()
	must(t, os.WriteFile(file, []byte("postgres://db.test/chancery\n"), 0o600))
	look(now, 0) // no pool
	is.root = "one root\n"
	for _, other := range []string{"postgres://app:secret@db.test/c", "postgres://app@db.test/c", "postgres:///c?host=/run/postgresql", "postgres:///c",
		"postgres://db.test/c?sslcert=/etc/mine.pem"} {
		must(t, os.WriteFile(file, []byte(other+"\n"), 0o600))
		look(now, 0)
		if got := l.pause(); got != lookForLogin {
			t.Errorf("a node with another's login looks again after %s", got)
		}
	}
	must(t, os.WriteFile(file, []byte("postgres://db.test/chancery\n"), 0o600))
	is.refuse = errors.New("no pg_hba.conf entry")
	look(now, 0)
	look(now, 0)
	if is.count != 1 || len(is.reached) != 2 {
		t.Fatalf("%d certificates for %d tries", is.count, len(is.reached))
	}
	u, err := url.Parse(is.reached[0])
	must(t, err)
	if next := string(dir.NextDatabaseLogin()); u.User.Username() != "chancery_node1" || !strings.HasPrefix(u.Query().Get("sslcert"), next) ||
		!strings.HasPrefix(u.Query().Get("sslrootcert"), next) {
		t.Errorf("tried is %s", u)
	}
	is.refuse = nil
	look(now, 1)
	if got := l.pause(); got != lookAtLogin {
		t.Errorf("a node with a login of its own looks again after %s", got)
	}
	if _, err := os.Stat(string(dir.NextDatabaseLogin())); !os.IsNotExist(err) {
		t.Errorf("what was tried is still there: %v", err)
	}
	if got := l.ends.Load(); got == nil || got.Before(now.Add(89*time.Hour)) {
		t.Errorf("it ends at %v", got)
	}
	look(now.Add(50*time.Hour), 1)
	if is.count != 1 {
		t.Error("it was renewed before it was due")
	}

	// While a root is replaced both are there; servers that are not known by the new ones keep the old.
	is.root, is.refuse = "another root\n", errors.New("certificate signed by unknown authority")
	look(now, 1)
	wantRoots := func(want string) {
		t.Helper()
		have, err := os.ReadFile(dir.DatabaseRoots())
		must(t, err)
		if string(have) != want {
			t.Errorf("the roots are %q, not %q", have, want)
		}
	}
	wantRoots("one root\n")
	is.root, is.refuse = "one root\nanother root\n", nil
	look(now, 1)
	wantRoots("one root\nanother root\n")

	is.refuse = errors.New("unknown CA")
	look(now.Add(61*time.Hour), 1) // due
	is.refuse = nil
	is.life = 200 * time.Hour
	look(now.Add(61*time.Hour), 3) // what had waited was due itself
	look(now.Add(62*time.Hour), 3)
}
