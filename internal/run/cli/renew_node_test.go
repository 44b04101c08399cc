package cli

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/run/consumer"
	"chancery/internal/run/server"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// TestIdentityIsRenewedByBeingUsed lets a command run 21 of the 30 days later: the files in admin/ hold a new pair, which
// the node knows as the same administrator.
func TestIdentityIsRenewedByBeingUsed(t *testing.T) {
	address, err := consumer.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	dir := datadir.Dir(filepath.Join(t.TempDir(), "d"))
	if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir, Online: true, Address: "https://" + address, PublicListen: "127.0.0.1:0", Metrics: "127.0.0.1:0"}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- server.Run(ctx, server.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler), Listening: func(server.Addresses) { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	var talk bytes.Buffer
	g := &globals{Dir: string(dir), Streams: Streams{Out: io.Discard, Err: &talk}, ctx: ctx}
	api, err := g.connect()
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	before := pathIn(t, dir.AdminCert())
	g.renewIdentity(ctx, api, dir.AdminCert(), dir.AdminKey(), time.Now())
	if !bytes.Equal(before, pathIn(t, dir.AdminCert())) {
		t.Fatal("a new identity was renewed")
	}
	g.renewIdentity(ctx, api, dir.AdminCert(), dir.AdminKey(), time.Now().Add(21*24*time.Hour))
	if bytes.Equal(before, pathIn(t, dir.AdminCert())) || talk.Len() > 0 {
		t.Fatalf("an identity of 21 days was not renewed: %s", &talk)
	}
	if st, err := os.Stat(dir.AdminKey()); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v, error %v", st.Mode(), err)
	}
	again, err := g.connect()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if who, err := again.Caller(ctx); err != nil || who.Name != "admin" {
		t.Errorf("the new pair is of %+v, error %v", who, err)
	}
}

// pathIn reads a certificate file, and fails where it is none.
func pathIn(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyfile.ParseCertificates(text); err != nil {
		t.Fatal(err)
	}
	return text
}
