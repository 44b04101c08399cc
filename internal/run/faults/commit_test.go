package faults_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/surface/api"
	"chancery/internal/upkeep/setup"
	"github.com/prometheus/client_golang/prometheus"
)

// faulty is a whole authority behind its API, on a store that fails where a test says so. Of a node's loops only the one
// that signs CRLs runs.
type faulty struct {
	*setup.Services
	t      *testing.T
	faults *pkitest.Faults
	admin  *client.Client
	other  *client.Client // an officer, known by a token
}

func newFaulty(t *testing.T, engine db.Dialect) *faulty {
	t.Helper()
	url := ""
	if engine == db.Postgres {
		url = pkitest.URL(t, engine)
	}
	return newFaultyOn(t, url)
}

func newFaultyOn(t *testing.T, database string) *faulty {
	t.Helper()
	dir := authorityOn(t, database)
	config, err := dir.Load()
	must(t, err)
	url, _, err := config.DatabaseURLs(dir)
	must(t, err)
	key, err := keys.LoadNodeKey(dir.NodeKey())
	must(t, err)
	f := &faulty{t: t, faults: &pkitest.Faults{}}
	d := pkitest.Open(t, db.Options{URL: url, Wrap: f.faults.Wrap})
	f.Services, err = setup.Assemble(d, config.Name, key, slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, d.LearnClock(t.Context()))
	f.asNode(string(dir))
	surface, err := api.New(f.Services, api.Options{
		Logger: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Version: "test", Expensive: 2, Checkpoints: signer{f.Services}, Dir: dir,
	})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Revocation.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	s := httptest.NewUnstartedServer(surface)
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	open := func(o client.Options) *client.Client {
		o.Address, o.Roots, o.NoRetry = s.URL, roots, true
		c, err := client.New(o)
		must(t, err)
		t.Cleanup(c.Close)
		return c
	}
	f.admin = open(client.Options{Certificate: client.CertificateFiles(dir.AdminCert(), dir.AdminKey())})
	_, err = f.admin.CreateOperator(t.Context(), client.CreateOperatorRequest{Name: "olga", Roles: []string{client.RoleOfficer}})
	must(t, err)
	token, err := f.admin.CreateToken(t.Context(), "olga", client.CreateTokenRequest{})
	must(t, err)
	f.other = open(client.Options{Token: token.Secret})
	_, err = f.admin.SaveProfile(t.Context(), "guarded", client.ProfileText{YAML: guarded(0)})
	must(t, err)
	until(t, "there is a CRL", func() bool { i, err := f.admin.Issuer(t.Context(), "default"); return err == nil && i.CRL != nil })
	return f
}

// guarded is a profile that wants two people, in so many versions.
func guarded(version int) string {
	return fmt.Sprintf(`name: guarded
description: version %d
names: {required: true, rules: [{roles: [operator, officer, admin], dns: ["**.test"]}]}
usage: {key_usage: [digitalSignature], extended: [serverAuth]}
key: {algorithms: [ecdsa-p256]}
validity: {default: 30d}
approval: {two_person: true}
`, version)
}

// signer signs checkpoints as a node's loop does.
type signer struct{ *setup.Services }

func (s signer) Sign(ctx context.Context, call once.Call) (*checkpoint.Signed, error) {
	lease, ok, err := s.DB.Acquire(ctx, audit.Lease, s.Audit.Node(), time.Minute)
	if err != nil || !ok {
		return nil, fmt.Errorf("acquire the lease: %v, %w", ok, err)
	}
	found, err := s.Keys.Find(ctx, keys.Audit, "")
	if err != nil {
		return nil, err
	}
	key, err := s.Keys.Signer(ctx, found[0].ID)
	if err != nil {
		return nil, err
	}
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	return s.Audit.Checkpoint(ctx, lease, set.Authority, time.Now(), call, key)
}

// act is a call that is to be done once, whatever becomes of its commits.
type act struct {
	name string
	// prepare makes what the call is about, and returns the call and a look at what it left: done says that its effect is
	// there, count how often it happened.
	prepare func(f *faulty, n int) (call func(ctx context.Context) (id string, err error), look func() (done bool, count int))
	moves   bool // its answer is what is in force, which may change meanwhile
	waits   bool // until another part of the node has done its own, which takes some moments: fewer cases
	// says is what a repetition may hear instead of the first answer where that held a secret, which is stored nowhere.
	says string
}

// TestEveryCommitOfEveryAct fails each commit of each act, before it is done and after, once or until the node gives up.
// What was acknowledged is there; what failed says so; and the call repeated with its key answers as the first would have.
func TestEveryCommitOfEveryAct(t *testing.T) {
	t.Parallel()
	failures := [][]int{{1}, {2}, {3}, {4}, {1, 2, 3, 4, 5, 6, 7, 8, 9}}
	if testing.Short() {
		failures = [][]int{{1}, {1, 2, 3, 4, 5, 6, 7, 8, 9}}
	}
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, engine)
			n, cases := 0, 0
			all := slices.Concat(acts, moreActs)
			if engine == db.Postgres {
				f.vouched()
				all = append(all, cloneActs...)
			}
			for _, a := range all {
				for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
					for _, failing := range failures {
						if a.waits && len(failing) == 1 && failing[0] > 1 {
							continue
						}
						n++
						f.once(a, n, fmt.Sprintf("%s, commits %v %s", a.name, failing, outcome), func() {
							for _, commit := range failing {
								f.faults.FailCommit(commit, outcome)
							}
						})
						cases++
					}
				}
			}
			if cases < 20*2*len(failures) {
				t.Errorf("%d cases ran", cases)
			}
			verified(t, f.admin)
		})
	}
}

// once runs an act with faults, and again without.
func (f *faulty) once(a act, n int, name string, inject func()) {
	f.t.Helper()
	call, look := a.prepare(f, n)
	key := fmt.Sprintf("key-%d", n)
	ctx, cancel := context.WithTimeout(client.WithIdempotencyKey(f.t.Context(), key), 2*time.Minute)
	defer cancel()
	inject()
	first, err := call(ctx)
	f.faults.Clear()
	done, count := look()
	if err == nil && !done {
		f.t.Errorf("%s: it was acknowledged and is not there", name)
	}
	if err != nil && !client.IsKind(err, string(fault.Unavailable)) {
		f.t.Errorf("%s: failed with %v", name, err)
	}
	if count > 1 {
		f.t.Errorf("%s: it happened %d times", name, count)
	}
	second, err := call(ctx)
	if a.says != "" && done && client.IsKind(err, a.says) {
		return
	}
	if err != nil {
		f.t.Errorf("%s: repeated with its key: %v", name, err)
		return
	}
	if first != "" && first != second && !a.moves {
		f.t.Errorf("%s: the call got %s, repeated it got %s", name, first, second)
	}
	done, count = look()
	if !done || count != 1 {
		f.t.Errorf("%s: repeated, it is done: %v, %d times", name, done, count)
	}
}

// issued is the serial of a certificate of its own.
func (f *faulty) issued(n int) string {
	f.t.Helper()
	out, err := f.admin.Issue(f.t.Context(), order(fmt.Sprintf("own%d.test", n)))
	must(f.t, err)
	return out.Certificate.Serial
}

// named counts the certificates for a name.
func (f *faulty) named(name string) int {
	f.t.Helper()
	count := 0
	for _, err := range f.admin.Certificates(f.t.Context(), client.CertificateFilter{Name: name}) {
		must(f.t, err)
		count++
	}
	return count
}

// looks looks at the state of a certificate, and counts the events that changed it.
func (f *faulty) looks(serial, want, action string) func() (bool, int) {
	return func() (bool, int) {
		f.t.Helper()
		c, err := f.admin.Certificate(f.t.Context(), "", serial)
		must(f.t, err)
		count := 0
		for _, err := range f.admin.Audit(f.t.Context(), client.AuditFilter{Object: serial, Action: action}) {
			must(f.t, err)
			count++
		}
		return c.State == want && count == 1, count
	}
}

// number is the number of the default issuer's CRL in force, whose octets are whole and signed.
func (f *faulty) number() *big.Int {
	f.t.Helper()
	pr, pw := io.Pipe()
	var group sync.WaitGroup
	group.Go(func() { pw.CloseWithError(f.admin.DownloadCRL(f.t.Context(), pw, "default", "current", "", "der")) })
	der, err := io.ReadAll(pr)
	group.Wait()
	must(f.t, err)
	list, err := x509.ParseRevocationList(der)
	must(f.t, err)
	must(f.t, list.CheckSignatureFrom(parsed(f.t, issuerOf(f.t, f.admin).PEM)))
	return list.Number
}

func state(c *client.Certificate, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return c.State + " " + c.Serial, nil
}
