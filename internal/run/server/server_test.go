package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
	"go.uber.org/goleak"
)

// pristine is a data directory as init makes it; making one takes a second, for the passphrase's sake.
var pristine string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	parent, err := os.MkdirTemp("", "chancery-server-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(parent)
	pristine = filepath.Join(parent, "d")
	if _, err := setup.Init(context.Background(), authority(datadir.Dir(pristine), "https://localhost:8443", "")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if code := m.Run(); code != 0 {
		return code
	}
	// Every node has ended by now, and has left nothing running.
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if err := goleak.Find(goleak.IgnoreAnyFunction("chancery/internal/pkitest.launch.func1")); err != nil { // the PostgreSQL of the tests
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// authority are the options of one whose first node listens on ports that the system chooses; without a file that names another database it
// is in SQLite.
func authority(dir datadir.Dir, address, databaseFile string) setup.Options {
	return setup.Options{
		Dir: dir, Address: address, Listen: "127.0.0.1:0", PublicListen: "127.0.0.1:0", Metrics: "127.0.0.1:0", Online: true, DatabaseFile: databaseFile,
		PublicURL: "http://pki.test", Passphrase: []byte("correct horse battery staple"), RecoveryWork: pkitest.RecoveryWork,
	}
}

// made is a data directory whose node listens on ports that the system chooses.
func made(t testing.TB) datadir.Dir {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
		t.Fatal(err)
	}
	d := datadir.Dir(dir)
	for _, secret := range []string{d.NodeKey(), d.AdminKey()} {
		if err := os.Chmod(secret, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// running is a node that serves, until stop or the end of the test.
type running struct {
	Addresses
	t    testing.TB
	dir  datadir.Dir
	stop func() error
}

func start(t testing.TB, dir datadir.Dir) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	at, ended := make(chan Addresses, 1), make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{
			Dir: dir, Version: "test", Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			Listening: func(a Addresses) { at <- a },
		})
	}()
	r := &running{t: t, dir: dir}
	done := false
	r.stop = func() error {
		if done {
			return nil
		}
		done = true
		cancel()
		return <-ended
	}
	select {
	case r.Addresses = <-at:
	case err := <-ended:
		done = true
		t.Fatalf("the node ended: %v", err)
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the node ended with %v", err)
		}
	})
	return r
}

// admin is a client with the credential of the data directory.
func (r *running) admin() *client.Client { return r.client(false) }

func (r *running) client(noRetry bool) *client.Client {
	r.t.Helper()
	roots, err := client.RootsFile(r.dir.IdentityRoot())
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := client.New(client.Options{
		Address: "https://" + r.API, Roots: roots, Certificate: client.CertificateFiles(r.dir.AdminCert(), r.dir.AdminKey()),
		NoRetry: noRetry,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

func csr(t testing.TB) string {
	t.Helper()
	text, err := tryCSR()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// tryCSR is csr for goroutines that are not the test's.
func tryCSR() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), err
}

func fetch(t testing.TB, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestNodeServesAndEnds(t *testing.T) {
	dir := made(t)
	r := start(t, dir)
	admin, ctx := r.admin(), t.Context()
	who, err := admin.Caller(ctx)
	if err != nil || who.Name != "admin" {
		t.Fatalf("%+v, %v", who, err)
	}
	issued, err := admin.Issue(ctx, client.IssueRequest{Profile: "server", CSR: csr(t), Names: &client.Names{SAN: []string{"dns:web.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Revoke(ctx, "", issued.Certificate.Serial, client.RevokeRequest{Reason: "superseded"}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.IssueCRL(ctx, "default", client.IssueCRLRequest{}); err != nil {
		t.Fatal(err)
	}
	if status, der := fetch(t, "http://"+r.Public+"/crl/default.crl"); status != 200 {
		t.Fatalf("CRL: %d %s", status, der)
	} else if list, err := x509.ParseRevocationList([]byte(der)); err != nil || len(list.RevokedCertificateEntries) != 1 {
		t.Fatalf("CRL: %v, %v", list, err)
	}
	if status, text := fetch(t, "http://"+r.Metrics+"/readyz"); status != 200 {
		t.Fatalf("readyz: %d %s", status, text)
	}
	if status, _ := fetch(t, "http://"+r.Metrics+"/healthz"); status != 200 {
		t.Fatalf("healthz: %d", status)
	}
	_, text := fetch(t, "http://"+r.Metrics+"/metrics")
	for _, want := range []string{
		`chancery_requests_total{operation="certificate-issue",outcome="ok",surface="api"} 1`, "chancery_crl_next_update_seconds",
		`chancery_certificates_expiring{days="30"}`, `chancery_rollouts{state="paused"} 0`, `chancery_rollouts{state="running"} 0`,
		`chancery_rollouts{state="waiting"} 0`, "go_goroutines", `surface="publish"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if _, err := admin.SignCheckpoint(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	again := start(t, dir)
	if shown, err := again.admin().Certificate(ctx, "", issued.Certificate.Serial); err != nil || shown.State != client.StateRevoked {
		t.Fatalf("after a restart: %+v, %v", shown, err)
	}
}

func TestNodesCertificateNamesWhereItIsReached(t *testing.T) {
	r := start(t, made(t))
	roots, err := client.RootsFile(r.dir.IdentityRoot())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "127.0.0.1"} {
		conn, err := tls.Dial("tcp", r.API, &tls.Config{RootCAs: roots, ServerName: name})
		if err != nil {
			t.Fatalf("as %s: %v", name, err)
		}
		conn.Close()
	}
	if stat, err := os.Stat(filepath.Join(string(r.dir), "node-tls.pem")); err != nil || stat.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", stat, err)
	}
	old, err := tls.Dial("tcp", r.API, &tls.Config{RootCAs: roots, ServerName: "localhost", MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
	if err == nil {
		old.Close()
		t.Fatal("TLS 1.1 is spoken")
	}
}

func TestSecondNodeOnOneDirectoryIsRefused(t *testing.T) {
	r := start(t, made(t))
	err := Run(t.Context(), Options{Dir: r.dir, Logger: slog.New(slog.DiscardHandler)})
	if !fault.Is(err, fault.Conflict) {
		t.Fatalf("got %v", err)
	}
}

func TestBusyPortIsNamed(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	dir := made(t)
	text, err := os.ReadFile(dir.Config())
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), "public: 127.0.0.1:0", "public: "+busy.Addr().String(), 1)
	if changed == string(text) {
		t.Fatalf("no public address in %s", text)
	}
	if err := os.WriteFile(dir.Config(), []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "listen for public") {
		t.Fatalf("got %v", err)
	}
}

// TestNodeOnPostgres makes and runs an authority whose store is PostgreSQL; its URL comes from a file.
func TestNodeOnPostgres(t *testing.T) {
	parent := t.TempDir()
	file := filepath.Join(parent, "url")
	if err := os.WriteFile(file, []byte(pkitest.URL(t, db.Postgres)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := datadir.Dir(filepath.Join(parent, "d"))
	if _, err := setup.Init(t.Context(), authority(dir, "https://localhost:8443", file)); err != nil {
		t.Fatal(err)
	}
	r := start(t, dir)
	admin := r.admin()
	issued, err := admin.Issue(t.Context(), client.IssueRequest{Profile: "server", CSR: csr(t), Names: &client.Names{SAN: []string{"dns:w.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	st, err := admin.Status(t.Context())
	if err != nil || st.Store.Engine != "postgres" || !st.Ready {
		t.Fatalf("%+v, %v", st, err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	// A list of key recipients that nobody has signed keeps no node from starting.
	text, err := os.ReadFile(file)
	must(t, err)
	writer := pkitest.Open(t, db.Options{URL: strings.TrimSpace(string(text))})
	must(t, writer.Tx(t.Context(), func(tx *db.Tx) error {
		n, err := tx.Exec(t.Context(), `INSERT INTO recipient_list SELECT version + 1, body, signature, created_at FROM recipient_list ORDER BY version DESC LIMIT 1`)
		if n != 1 {
			t.Errorf("%d lists were put there", n)
		}
		return err
	}))
	again := start(t, dir)
	if shown, err := again.admin().Certificate(t.Context(), "", issued.Certificate.Serial); err != nil || shown.State != client.StateValid {
		t.Fatalf("after a restart: %+v, %v", shown, err)
	}
}

// TestClockSetBack finds the time of the authority an hour ahead of this machine's clock.
func TestClockSetBack(t *testing.T) {
	dir := made(t)
	r := start(t, dir)
	issued, err := r.admin().Issue(t.Context(), client.IssueRequest{Profile: "server", CSR: csr(t), Names: &client.Names{SAN: []string{"dns:w.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	config, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	s, err := setup.Open(t.Context(), dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DB.ResetClock(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := s.DB.Close(); err != nil {
		t.Fatal(err)
	}
	behind := start(t, dir)
	admin := behind.client(true)
	_, err = admin.Issue(t.Context(), client.IssueRequest{Profile: "server", CSR: csr(t), Names: &client.Names{SAN: []string{"dns:w.test"}}})
	if !client.IsKind(err, "unavailable") || !strings.Contains(err.Error(), "clock is behind") {
		t.Fatalf("issued with a clock that is behind: %v", err)
	}
	if status, text := fetch(t, "http://"+behind.Metrics+"/readyz"); status != 503 || !strings.Contains(text, "clock") {
		t.Fatalf("readyz: %d %s", status, text)
	}
	st, err := admin.Status(t.Context())
	if err != nil || st.Ready || !strings.Contains(st.Clock, "behind") {
		t.Fatalf("status %+v, %v", st, err)
	}
	if shown, err := admin.Certificate(t.Context(), "", issued.Certificate.Serial); err != nil || shown.State != client.StateValid {
		t.Fatalf("what only reads: %+v, %v", shown, err)
	}
}

// TestHTTP2 asks over HTTP/2, which other clients than ours speak.
func TestHTTP2(t *testing.T) {
	r := start(t, made(t))
	roots, err := client.RootsFile(r.dir.IdentityRoot())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(r.dir.AdminCert(), r.dir.AdminKey())
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{
		ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}},
	}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("https://" + r.API + client.Prefix + "/caller")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != 200 {
		t.Fatalf("%s %s", resp.Proto, resp.Status)
	}
	doctor, err := (&http.Client{Transport: transport}).Get("https://" + r.API + client.Prefix + "/doctor")
	if err != nil {
		t.Fatal(err)
	}
	defer doctor.Body.Close()
	if text, err := io.ReadAll(doctor.Body); err != nil || len(text) == 0 || doctor.Trailer.Get(client.StreamTrailer) != "complete" {
		t.Fatalf("doctor: %d octets, trailer %v, %v", len(text), doctor.Trailer, err)
	}
}

// TestSystemdIsTold runs a node as systemd would, with a socket for its notices.
func TestSystemdIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "300000")
	t.Setenv("WATCHDOG_PID", "")
	os.Unsetenv("WATCHDOG_PID")
	r := start(t, made(t))
	told := func(want string) {
		t.Helper()
		buf := make([]byte, 1024)
		socket.SetReadDeadline(time.Now().Add(time.Minute))
		for {
			n, err := socket.Read(buf)
			if err != nil {
				t.Fatalf("wait for %s: %v", want, err)
			}
			if string(buf[:n]) == want {
				return
			}
		}
	}
	told("READY=1")
	told("WATCHDOG=1")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	told("STOPPING=1")
}

// TestCallsInProgressEnd stops a node while a call is being answered.
func TestCallsInProgressEnd(t *testing.T) {
	r := start(t, made(t))
	admin := r.admin()
	if _, err := admin.Caller(t.Context()); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 8)
	for range cap(results) {
		request := csr(t)
		go func() {
			_, err := admin.Issue(t.Context(), client.IssueRequest{Profile: "server", CSR: request, Names: &client.Names{SAN: []string{"dns:w.test"}}})
			results <- err
		}()
	}
	first := <-results
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if first != nil {
		t.Fatal(first)
	}
	for range cap(results) - 1 {
		// What was not taken up any more is a refused connection; what was taken up was answered.
		if err := <-results; err != nil && !strings.Contains(err.Error(), "refused") && !strings.Contains(err.Error(), "EOF") &&
			!strings.Contains(err.Error(), "reset") {
			t.Errorf("got %v", err)
		}
	}
}
