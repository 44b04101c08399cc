package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/revocation"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

const tokenPIN = "4711-Secret"

// authorityInToken is an authority whose default issuer has its key in SoftHSM.
type authorityInToken struct {
	*pkitest.SoftHSM
	t      *testing.T
	dir    datadir.Dir
	result *setup.Result

	database string // file with its URL
}

// newAuthorityInToken makes one on PostgreSQL, so that a second node can join it.
func newAuthorityInToken(t *testing.T) *authorityInToken {
	t.Helper()
	database := filepath.Join(t.TempDir(), "database")
	if err := os.WriteFile(database, []byte(pkitest.URL(t, db.Postgres)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	soft := pkitest.NewSoftHSM(t)
	return newAuthorityBehind(t, soft, soft.Module, database)
}

// newAuthorityBehind makes one that reaches its token by a library, on SQLite where no file names a database.
func newAuthorityBehind(t *testing.T, soft *pkitest.SoftHSM, library, database string) *authorityInToken {
	t.Helper()
	a := &authorityInToken{SoftHSM: soft, t: t, dir: datadir.Dir(filepath.Join(t.TempDir(), "d")), database: database}
	pins := a.Init("authority", tokenPIN)
	a.Generate("authority", tokenPIN, "EC:prime256v1", "issuer", "01")
	a.Generate("authority", tokenPIN, "EC:secp384r1", "second", "02")
	a.Generate("authority", tokenPIN, "EC:prime256v1", "next", "03")
	o := authority(a.dir, "https://localhost:8443", a.database)
	o.Online, o.TokenHelper = false, pkitest.TokenHelper(t)
	o.Token = "pkcs11:token=authority;object=issuer?module-path=" + library + "&pin-source=" + pins
	var err error
	if a.result, err = setup.Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return a
}

// second makes the data directory of a node2, with what node1 wraps to it; its node.yaml names no token.
func (a *authorityInToken) second() datadir.Dir {
	t, ctx, now := a.t, a.t.Context(), time.Now()
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	config, err := a.dir.Load()
	check(err)
	dir := datadir.Dir(filepath.Join(t.TempDir(), "second"))
	check(os.Mkdir(string(dir), 0o700))
	for _, d := range []string{"ca", "admin"} {
		check(os.CopyFS(filepath.Join(string(dir), d), os.DirFS(filepath.Join(string(a.dir), d))))
	}
	check(os.Chmod(dir.AdminKey(), 0o600))
	other := *config
	other.Name, other.PKCS11 = "node2", datadir.PKCS11{}
	check(dir.Create(other))
	key, err := keys.CreateNodeKey(dir.NodeKey())
	check(err)
	one, err := setup.Open(ctx, a.dir, config, slog.New(slog.DiscardHandler))
	check(err)
	by := access.System(config.Name).Actor()
	check(one.DB.Tx(ctx, func(tx *db.Tx) error {
		return one.Keys.AddRecipient(ctx, tx, keys.Recipient{
			ID: "node2", Kind: keys.KindNode, Name: "node2", PublicKey: key.Public(), Created: now,
			Subsystems: []keys.Subsystem{keys.SubsystemCA, keys.SubsystemOCSP},
		}, by, now)
	}))
	_, err = one.Keys.Rewrap(ctx, "node2", by)
	check(err)
	check(one.Close())
	two, err := setup.Open(ctx, dir, &other, slog.New(slog.DiscardHandler))
	check(err)
	all, err := two.Keys.Recipients(ctx)
	check(err)
	check(two.DB.Tx(ctx, func(tx *db.Tx) error {
		for _, r := range all {
			if err := two.Keys.Endorse(ctx, tx, r.ID, r.PublicKey, "test", now); err != nil {
				return err
			}
		}
		return nil
	}))
	check(two.Close())
	return dir
}

// path is the certification path of the default issuer, root and issuer, in a file.
func (a *authorityInToken) path(api *client.Client) string {
	a.t.Helper()
	chain, err := api.Chain(a.t.Context(), "default")
	if err != nil {
		a.t.Fatal(err)
	}
	return a.file("path.pem", chain)
}

func (a *authorityInToken) file(name string, content []byte) string {
	a.t.Helper()
	path := filepath.Join(a.t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func (a *authorityInToken) openssl(args ...string) string {
	a.t.Helper()
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if err != nil {
		a.t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func issue(t *testing.T, api *client.Client, name string) (*client.IssueResult, error) {
	t.Helper()
	request, err := tryCSR()
	if err != nil {
		return nil, err
	}
	return api.Issue(t.Context(), client.IssueRequest{Profile: "server", CSR: request, Names: &client.Names{SAN: []string{"dns:" + name}}})
}

// children are the helpers that this process has started.
func children(t *testing.T) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		text, err := os.ReadFile(file)
		if err == nil && bytes.HasPrefix(text, []byte("Name:\tchancery-pkcs11\n")) && bytes.Contains(text, fmt.Appendf(nil, "\nPPid:\t%d\n", os.Getpid())) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestIssuerInToken is the life of an authority whose issuer's key lies in a token: certificates, CRLs and OCSP answers that
// openssl verifies, the helper killed under load, a restart, and a second issuer in the same token.
func TestIssuerInToken(t *testing.T) {
	a := newAuthorityInToken(t)
	if !strings.Contains(strings.Join(a.result.Warnings, "\n"), "no backup of the authority holds it") {
		t.Errorf("init does not say what a key in a token means: %q", a.result.Warnings)
	}
	r := start(t, a.dir)
	api, ctx := r.admin(), t.Context()
	issued, err := issue(t, api, "web.test")
	if err != nil {
		t.Fatal(err)
	}
	path, leaf := a.path(api), a.file("leaf.pem", []byte(issued.Certificate.PEM))
	a.openssl("verify", "-CAfile", path, leaf)
	a.crl(r, api, path, issued.Certificate.Serial)
	a.ocsp(r, path, leaf)
	a.killed(api, path)

	below, err := api.CreateIssuer(ctx, client.CreateIssuerRequest{Name: "second", Kind: client.IssuerIntermediate, Parent: "default", Subject: "CN=second", Key: "pkcs11:id=%02"})
	if err == nil {
		t.Fatal("an issuer was made below one whose path length is 0", below)
	}
	root, err := api.CreateIssuer(ctx, client.CreateIssuerRequest{Name: "second", Kind: client.IssuerRoot, Subject: "CN=second", Key: "pkcs11:token=authority;object=second"})
	if err != nil || root.Algorithm != "ecdsa-p384" {
		t.Fatalf("%+v, %v", root, err)
	}
	for key, want := range map[string]string{
		"pkcs11:token=authority;object=issuer":                "owner already",
		"pkcs11:token=authority;object=none":                  "no such private key",
		"pkcs11:token=authority;object=second?module-path=/x": "node.yaml",
		"pkcs11:token=authority;object=second?pin-value=1":    "pin-value",
		"pkcs11:token=elsewhere;object=second":                "node.yaml names no such token",
		"pkcs11:token=authority;object=second;slot-id=5":      "slot-id",
		"file:/etc/passwd":                                    "does not begin with pkcs11:",
	} {
		_, err := api.CreateIssuer(ctx, client.CreateIssuerRequest{Name: "third", Kind: client.IssuerRoot, Subject: "CN=third", Key: key})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; it should say %q", key, err, want)
		}
	}

	a.succeeds(api)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if left := children(t); len(left) > 0 {
		t.Errorf("the node has ended, and its helpers %v have not", left)
	}
	again := start(t, a.dir)
	issued, err = issue(t, again.admin(), "after.test")
	if err != nil {
		t.Fatal(err)
	}
	a.openssl("verify", "-CAfile", path, a.file("leaf.pem", []byte(issued.Certificate.PEM)))
}

// succeeds begins a rollout to a successor of the issuer: it does not leave the token unasked.
func (a *authorityInToken) succeeds(api *client.Client) {
	t, ctx := a.t, a.t.Context()
	t.Helper()
	for key, want := range map[string]string{
		"": "say where its successor's lies", "pkcs11:token=authority;object=issuer": "its successor needs another", "pkcs11:object=none": "no such private key",
	} {
		_, err := api.StartRollout(ctx, client.StartRolloutRequest{Kind: client.RolloutIssuer, Key: key, DryRun: true})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a rollout to the key %q: %v; it should say %q", key, err, want)
		}
	}
	if _, err := api.StartRollout(ctx, client.StartRolloutRequest{Kind: client.RolloutIssuer, Key: "software", DryRun: true}); err != nil {
		t.Errorf("a rollout to a key in software: %v", err)
	}
	r, err := api.StartRollout(ctx, client.StartRolloutRequest{Kind: client.RolloutIssuer, Key: "pkcs11:token=authority;id=%03"})
	if err != nil {
		t.Fatal(err)
	}
	if out := a.openssl("req", "-verify", "-noout", "-in", a.file("request.pem", []byte(r.CSR))); !strings.Contains(out, "OK") {
		t.Errorf("openssl says of the request for the root: %s", out)
	}
	issuers := 0
	for i, err := range api.Issuers(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if i.State == "pending" && i.KeyOnline {
			issuers++
		}
	}
	if issuers != 1 {
		t.Errorf("%d issuers wait for their root", issuers)
	}
	if _, err := api.AbortRollout(ctx, r.ID); err != nil {
		t.Fatal(err)
	}
}

// crl revokes, and has openssl verify the CRL.
func (a *authorityInToken) crl(r *running, api *client.Client, path, serial string) {
	t, ctx := a.t, a.t.Context()
	t.Helper()
	if _, err := api.Revoke(ctx, "", serial, client.RevokeRequest{Reason: "superseded"}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.IssueCRL(ctx, "default", client.IssueCRLRequest{}); err != nil {
		t.Fatal(err)
	}
	_, der := fetch(t, "http://"+r.Public+"/crl/default.crl")
	list, err := x509.ParseRevocationList([]byte(der))
	if err != nil || len(list.RevokedCertificateEntries) != 1 {
		t.Fatalf("the CRL: %v", err)
	}
	if out := a.openssl("crl", "-inform", "DER", "-in", a.file("crl", []byte(der)), "-CAfile", path, "-noout"); !strings.Contains(out, "verify OK") {
		t.Errorf("openssl says of the CRL: %s", out)
	}
}

// ocsp asks for the status of the certificate that crl revoked.
func (a *authorityInToken) ocsp(r *running, path, leaf string) {
	a.t.Helper()
	chain, err := os.ReadFile(path)
	if err != nil {
		a.t.Fatal(err)
	}
	block, _ := pem.Decode(chain)
	issuer := a.file("issuer.pem", pem.EncodeToMemory(block))
	out := a.openssl("ocsp", "-issuer", issuer, "-cert", leaf, "-url", "http://"+r.Public+"/ocsp", "-CAfile", path)
	if !strings.Contains(out, "Response verify OK") || !strings.Contains(out, "revoked") {
		a.t.Errorf("openssl says of the OCSP answer: %s", out)
	}
}

// killed issues on four connections while the helper is killed: each call succeeds, no serial comes twice, and openssl takes
// what was issued.
func (a *authorityInToken) killed(api *client.Client, path string) {
	t := a.t
	t.Helper()
	var mu sync.Mutex
	serials := map[string]string{}
	var count atomic.Int64
	done := make(chan struct{})
	var all sync.WaitGroup
	for caller := range 4 {
		all.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				issued, err := issue(t, api, fmt.Sprintf("h%d-%d.test", caller, n))
				if err != nil {
					t.Errorf("while the helper is killed: %v", err)
					return
				}
				mu.Lock()
				if serials[issued.Certificate.Serial] != "" {
					t.Errorf("serial %s was given twice", issued.Certificate.Serial)
				}
				serials[issued.Certificate.Serial] = issued.Certificate.PEM
				mu.Unlock()
				count.Add(1)
			}
		})
	}
	wait := func(more int64) {
		for until := count.Load() + more; count.Load() < until && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	killed := 0
	for killed < 3 && !t.Failed() {
		wait(10)
		for _, pid := range children(t) {
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed++
			}
		}
	}
	wait(10)
	close(done)
	all.Wait()
	var pems bytes.Buffer
	for _, text := range serials {
		pems.WriteString(text)
		if pems.Len() > 20<<10 {
			break
		}
	}
	for block, rest := pem.Decode(pems.Bytes()); block != nil; block, rest = pem.Decode(rest) {
		a.openssl("verify", "-CAfile", path, a.file("one.pem", pem.EncodeToMemory(block)))
	}
	t.Logf("%d certificates while %d helpers were killed", len(serials), killed)
}

// holder waits until a node has the lease to sign CRLs.
func (a *authorityInToken) holder(node string) {
	t := a.t
	t.Helper()
	url, err := os.ReadFile(a.database)
	if err != nil {
		t.Fatal(err)
	}
	d, err := db.Open(t.Context(), db.Options{URL: strings.TrimSpace(string(url))})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		all, err := d.Leases(t.Context())
		if err == nil && slices.ContainsFunc(all, func(l db.Lease) bool { return l.Name == revocation.Lease && l.Holder == node }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the leases are %+v, %v; %s should sign CRLs", all, err, node)
		}
	}
}

// TestTwoNodesOneToken has a second node that does not reach the token: it says so, by its name, and the other issues, and signs
// the CRLs, although the second had their lease; once it reaches the token it issues as well, under the same issuer.
func TestTwoNodesOneToken(t *testing.T) {
	a := newAuthorityInToken(t)
	dir := a.second()
	two := start(t, dir)
	a.holder("node2")
	one := start(t, a.dir)
	first := one.admin()
	a.holder("node1")
	if _, err := first.IssueCRL(t.Context(), "default", client.IssueCRLRequest{}); err != nil {
		t.Fatal(err)
	}
	path := a.path(first)
	_, err := issue(t, two.client(true), "web.test")
	if err == nil || !client.IsKind(err, "unavailable") || !strings.Contains(err.Error(), "node2") || !strings.Contains(err.Error(), "token") {
		t.Fatalf("a node without the token: %v", err)
	}
	if _, err := issue(t, first, "web.test"); err != nil {
		t.Fatalf("the node with the token: %v", err)
	}
	if err := two.stop(); err != nil {
		t.Fatal(err)
	}
	from, err := a.dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	to, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	to.PKCS11 = from.PKCS11
	if err := os.Remove(dir.Config()); err != nil {
		t.Fatal(err)
	}
	if err := dir.Create(*to); err != nil {
		t.Fatal(err)
	}
	two = start(t, dir)
	for name, api := range map[string]*client.Client{"one.test": first, "two.test": two.admin()} {
		issued, err := issue(t, api, name)
		if err != nil {
			t.Fatal(err)
		}
		a.openssl("verify", "-CAfile", path, a.file("leaf.pem", []byte(issued.Certificate.PEM)))
	}
	if _, err := first.Issuer(context.WithoutCancel(t.Context()), "default"); err != nil {
		t.Fatal(err)
	}
}
