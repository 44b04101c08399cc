package setup_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/run/server"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// TestRootOfTheAuthorityThatWasJoined: a machine that was first given the token of another authority, and refused, keeps nothing of it. Where a
// directory has the root of another authority all the same, the node replaces it if its own certificate proves which is right, and else
// says so before it serves.
func TestRootOfTheAuthorityThatWasJoined(t *testing.T) {
	t.Parallel()
	s, other := newServed(t), newDir(t)
	if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: other, DatabaseFile: databaseFile(t, pkitest.URL(t, db.Postgres)),
		Online: true}); err != nil {
		t.Fatal(err)
	}
	others := readFile(t, other.IdentityRoot())
	shows := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-pem-file")
		_, _ = w.Write(others)
	}))
	defer shows.Close()
	root, err := keyfile.ParseCertificates(others)
	if err != nil {
		t.Fatal(err)
	}
	o := s.joining(t, "n2", s.approving(t, "n2"))
	good := o.Token
	wrong, err := client.ParseCloneToken(good)
	if err != nil {
		t.Fatal(err)
	}
	wrong.Address, wrong.Fingerprint = shows.URL, client.Fingerprint(root[0].Raw)
	o.Token = wrong.String()
	if _, err := setup.Join(t.Context(), o); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "is another authority's") {
		t.Fatalf("with the token of another authority: %v", err)
	}
	o.Token = good
	if _, err := setup.Join(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	ours, err := s.Identity.RootCertificates(t.Context())
	if err != nil || len(ours) != 1 {
		t.Fatalf("%d roots, %v", len(ours), err)
	}
	want := keyfile.EncodeCertificates(ours...)
	is := func(what string, want []byte) {
		t.Helper()
		if !bytes.Equal(readFile(t, o.Dir.IdentityRoot()), want) {
			t.Errorf("%s, the directory has the wrong root of identities", what)
		}
	}
	is("joined", want)
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(o.Dir.IdentityRoot(), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	hold := func() error {
		return open(t, o.Dir).HoldIdentityRoot(t.Context(), o.Dir, slog.New(slog.NewTextHandler(&log, nil)))
	}
	for what, text := range map[string][]byte{"another's": others, "damaged": []byte("-----BEGIN"), "both": append(bytes.Clone(others), want...)} {
		write(text)
		log.Reset()
		if err := hold(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if what == "both" {
			is(what, text)
		} else if is(what, want); !strings.Contains(log.String(), "was another authority's") {
			t.Errorf("%s: it is replaced without a word", what)
		}
	}
	// What the node's own certificate does not prove is left to people.
	write(others)
	if err := os.Remove(o.Dir.TLS()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = server.Run(ctx, server.Options{Dir: o.Dir, Logger: slog.New(slog.DiscardHandler)})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "holds a root of identities that the authority in the database has not") {
		t.Errorf("it serves: %v", err)
	}
	is("refused", others)
}

// TestReadsAnotherAuthority has node.yaml name another authority's database to read from: the node does not start, and says by which key.
func TestReadsAnotherAuthority(t *testing.T) {
	t.Parallel()
	var urls [2]string
	var dirs [2]datadir.Dir
	for i := range urls {
		urls[i], dirs[i] = pkitest.URL(t, db.Postgres), newDir(t)
		if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dirs[i], DatabaseFile: databaseFile(t, urls[i]), Online: true}); err != nil {
			t.Fatal(err)
		}
	}
	config := append(readFile(t, dirs[0].Config()), "database_read: "+databaseFile(t, urls[1])+"\n"...)
	if err := os.WriteFile(dirs[0].Config(), config, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := server.Run(ctx, server.Options{Dir: dirs[0], Logger: slog.New(slog.DiscardHandler)})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "database_read leads to another database than database_file does") {
		t.Errorf("it serves: %v", err)
	}
}
