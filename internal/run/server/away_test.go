package server

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// stream asks for OCSP answers by GET and POST, one after the other, until stop: each must be an answer, and good.
type stream struct {
	t        *testing.T
	public   string
	client   http.Client
	leaf, ca *x509.Certificate
	group    sync.WaitGroup
	ending   chan struct{}

	mu    sync.Mutex // guards what follows
	took  []time.Duration
	wrong []string
	aged  int // answers that said how old their data are
}

func newStream(t *testing.T, public string, leaf, ca *x509.Certificate, askers int) *stream {
	s := &stream{t: t, public: public, leaf: leaf, ca: ca, ending: make(chan struct{}), client: http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}}
	for i := range askers {
		s.group.Go(func() {
			for n := i; ; n++ {
				select {
				case <-s.ending:
					return
				default:
					s.ask(n%2 == 0, n%5 == 0)
				}
			}
		})
	}
	return s
}

// ask asks once; with a hash of its own now and then, so that not all is answered from what was signed before.
func (s *stream) ask(get, other bool) {
	hash := crypto.SHA1
	if other {
		hash = crypto.SHA256
	}
	begun := time.Now()
	aged, err := s.once(get, hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took = append(s.took, time.Since(begun))
	if err != nil {
		s.wrong = append(s.wrong, err.Error())
	}
	if aged {
		s.aged++
	}
}

func (s *stream) once(get bool, hash crypto.Hash) (aged bool, err error) {
	request, err := ocsp.CreateRequest(s.leaf, s.ca, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		return false, err
	}
	var resp *http.Response
	if get {
		resp, err = s.client.Get("http://" + s.public + "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(request)))
	} else {
		resp, err = s.client.Post("http://"+s.public+"/ocsp", "application/ocsp-request", bytes.NewReader(request))
	}
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	der, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err
	}
	answer, err := ocsp.ParseResponseForCert(der, s.leaf, s.ca)
	if err != nil {
		return false, err
	}
	if answer.Status != ocsp.Good || !time.Now().Before(answer.NextUpdate) {
		return false, fmt.Errorf("status %d until %v", answer.Status, answer.NextUpdate)
	}
	return resp.Header.Get(ageHeader) != "", nil
}

// asked is how many questions were answered.
func (s *stream) asked() (all, aged int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.took), s.aged
}

// more waits until so many more were answered.
func (s *stream) more(n int) {
	s.t.Helper()
	begun, _ := s.asked()
	until(s.t, "answers to OCSP requests", func() bool { now, _ := s.asked(); return now >= begun+n })
}

func (s *stream) stop(what string) {
	s.t.Helper()
	close(s.ending)
	s.group.Wait()
	s.client.CloseIdleConnections()
	slices.Sort(s.took)
	at := func(part float64) time.Duration {
		return s.took[int(part*float64(len(s.took)-1))].Round(10 * time.Microsecond)
	}
	s.t.Logf("%s: %d OCSP requests, %d lost; median %v, 99 %% %v, longest %v", what, len(s.took), len(s.wrong), at(0.5), at(0.99), at(1))
	if len(s.took) < 100 || s.aged == 0 || len(s.wrong) > 0 {
		s.t.Errorf("%d of %d OCSP requests were lost, %d were answered from old data: %.3q", len(s.wrong), len(s.took), s.aged, s.wrong[:min(3, len(s.wrong))])
	}
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come to be within three minutes", what)
		}
	}
}

// agent is a machine that has joined as a host.
func (r *running) agent(name string) *client.Client {
	r.t.Helper()
	made, err := r.admin().AddHost(r.t.Context(), client.AddHostRequest{Name: name})
	must(r.t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(r.t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(r.t, err)
	roots, err := client.RootsFile(r.dir.IdentityRoot())
	must(r.t, err)
	o := client.Options{Address: "https://" + r.API, Roots: roots, NoRetry: true}
	stranger, err := client.New(o)
	must(r.t, err)
	defer stranger.Close()
	joined, err := stranger.Join(r.t.Context(), client.JoinRequest{Token: made.Token, Agent: "test",
		CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	must(r.t, err)
	pair := tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode([]byte(joined.Certificate + joined.Chain)); block != nil; block, rest = pem.Decode(rest) {
		pair.Certificate = append(pair.Certificate, block.Bytes)
	}
	o.Certificate = func() (*tls.Certificate, error) { return &pair, nil }
	c, err := client.New(o)
	must(r.t, err)
	r.t.Cleanup(c.Close)
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestNodeServesWhileThePrimaryIsAway: a node with a standby beside it goes on answering what only reads, while its primary stands
// still, and when it is killed; it says how old its data are, refuses what would change something, and starts.
func TestNodeServesWhileThePrimaryIsAway(t *testing.T) {
	t.Parallel()
	primary := pkitest.Postgres(t, "fsync=off", "full_page_writes=off", "wal_keep_size=64MB")
	primary.Exec(t, "CREATE DATABASE chancery")
	parent := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(parent, name)
		must(t, os.WriteFile(path, []byte(text+"\n"), 0o600))
		return path
	}
	dir := datadir.Dir(filepath.Join(parent, "d"))
	_, err := setup.Init(t.Context(), authority(dir, "https://localhost:8443", file("write", primary.TCP("chancery"))))
	must(t, err)
	standby := primary.Standby(t, "n1", "fsync=off")
	config, err := os.ReadFile(dir.Config())
	must(t, err)
	must(t, os.WriteFile(dir.Config(), append(config, "database_read: "+file("read", standby.URL("chancery"))+"\n"...), 0o644))

	r := start(t, dir)
	admin := r.client(true)
	issue := func() (*client.IssueResult, error) {
		return admin.Issue(t.Context(), client.IssueRequest{Profile: "server", CSR: csr(t), Names: &client.Names{SAN: []string{"dns:w.test"}}})
	}
	issued, err := issue()
	must(t, err)
	leaf, above := r.certificates(issued)
	agent := r.agent("web1.test")
	crl := "http://" + r.Public + "/crl/" + issued.Certificate.Issuer + ".crl"
	until(t, "the CRL", func() bool { code, _ := fetch(t, crl); return code == http.StatusOK })

	away := func(what string, lose, back func()) {
		t.Helper()
		desired, err := agent.Desired(t.Context(), "", 0)
		must(t, err)
		s := newStream(t, r.Public, leaf, above, 4)
		s.more(50)
		lose()
		until(t, "that the primary is missed", func() bool { // data may be called old before that, where a busy machine is late with a heartbeat
			_, text := fetch(t, "http://"+r.Metrics+"/metrics")
			return strings.Contains(text, "chancery_primary_reachable 0")
		})
		until(t, "old data", func() bool { _, aged := s.asked(); return aged > 0 })
		s.more(200)
		r.readsOnly(agent, admin, desired, issued.Certificate, issue)
		s.more(50)
		s.stop(what)
		back()
		until(t, "issuance", func() bool { _, err := issue(); return err == nil })
		until(t, "readiness", func() bool { code, _ := fetch(t, "http://"+r.Metrics+"/readyz"); return code == http.StatusOK })
		must(t, agent.Report(t.Context(), client.Report{Agent: "held " + what}))
	}
	// The node looks at both servers twice a second, and dates what the standby has by that: nothing shows from outside that it has done so.
	begun := time.Now()
	until(t, "a look at both servers", func() bool { return time.Since(begun) > 2*time.Second })
	standby.Exec(t, "SELECT pg_wal_replay_pause()")
	until(t, "that the standby is behind and not read", func() bool {
		code, text := fetch(t, "http://"+r.Metrics+"/readyz/reads")
		return code == http.StatusOK && strings.Contains(text, "is behind the primary")
	})
	standby.Exec(t, "SELECT pg_wal_replay_resume()")
	standby.Replayed(t, primary)
	away("primary frozen", func() { primary.Freeze(t) }, func() { primary.Thaw(t) })
	away("primary killed", func() { primary.Kill(t) }, func() { must(t, primary.Restart()) })

	// A node starts without its primary.
	must(t, r.stop())
	standby.Replayed(t, primary) // what the node wrote at its end, too: else it says tryLater
	primary.Kill(t)
	r = start(t, dir)
	s := newStream(t, r.Public, leaf, above, 2)
	s.more(150)
	s.stop("started without a primary")
	if _, err := r.client(true).Status(t.Context()); err != nil {
		t.Errorf("status: %v", err)
	}
}

// readsOnly looks at everything that goes on while the primary is away, and at what does not.
func (r *running) readsOnly(agent, admin *client.Client, desired *client.Desired, issued *client.Certificate, issue func() (*client.IssueResult, error)) {
	r.t.Helper()
	t, crl := r.t, "http://"+r.Public+"/crl/"+issued.Issuer+".crl"
	got, err := agent.Desired(t.Context(), "", 0)
	must(t, err)
	// The checkpoint is the newest that there is; the rest is what it was.
	before, after := *desired, *got
	before.ETag, after.ETag, before.Checkpoint, after.Checkpoint = "", "", "", ""
	if !reflect.DeepEqual(before, after) || len(after.Trust.Anchors) == 0 {
		t.Errorf("an agent is told %+v, and was told %+v", after, before)
	}
	r.agedAPI()
	r.changesNothing(admin, issued)
	err = agent.Report(t.Context(), client.Report{Agent: "another version"})
	if p := problemOf(err); p.Status != http.StatusServiceUnavailable || p.RetryAfter <= 0 {
		t.Errorf("an agent's report: %v", err)
	}
	_, err = issue()
	if p := problemOf(err); p.Status != http.StatusServiceUnavailable || !strings.Contains(p.Detail, "cannot be reached since") {
		t.Errorf("issuance: %v", err)
	}
	if _, err := admin.Status(t.Context()); err != nil {
		t.Errorf("status: %v", err)
	}
	resp, err := http.Get(crl)
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get(ageHeader) == "" {
		t.Errorf("the CRL: %d %v", resp.StatusCode, resp.Header)
	}
	if code, _ := fetch(t, strings.Replace(strings.Replace(crl, "/crl/", "/ca/", 1), ".crl", ".cer", 1)); code != http.StatusOK {
		t.Errorf("the CA certificate: %d", code)
	}
	metrics := "http://" + r.Metrics
	if code, text := fetch(t, metrics+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "cannot be reached since") {
		t.Errorf("/readyz: %d %s", code, text)
	}
	if code, text := fetch(t, metrics+"/readyz/reads"); code != http.StatusOK || !strings.Contains(text, " old") {
		t.Errorf("/readyz/reads: %d %s", code, text)
	}
	if _, text := fetch(t, metrics+"/metrics"); !strings.Contains(text, "chancery_primary_reachable 0") || !strings.Contains(text, "chancery_data_age_seconds ") {
		t.Errorf("/metrics say nothing of it")
	}
}

// agedAPI looks for the age of the data in an answer of the API.
func (r *running) agedAPI() {
	r.t.Helper()
	roots, err := client.RootsFile(r.dir.IdentityRoot())
	must(r.t, err)
	pair, err := tls.LoadX509KeyPair(r.dir.AdminCert(), r.dir.AdminKey())
	must(r.t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("https://" + r.API + "/api/v1/status")
	must(r.t, err)
	resp.Body.Close()
	if age, err := strconv.Atoi(resp.Header.Get(ageHeader)); resp.StatusCode != http.StatusOK || err != nil || age <= 0 {
		r.t.Errorf("an answer of the API: %d %v", resp.StatusCode, resp.Header)
	}
}

// changesNothing asks for what would change the state of a certificate, of a list, and of who signs.
func (r *running) changesNothing(admin *client.Client, issued *client.Certificate) {
	r.t.Helper()
	t := r.t
	config, err := r.dir.Load()
	must(t, err)
	_, err = admin.Revoke(t.Context(), issued.Issuer, issued.Serial, client.RevokeRequest{Reason: "superseded"})
	refusals := map[string]error{"revocation": err}
	_, refusals["a fresh CRL"] = admin.IssueCRL(t.Context(), issued.Issuer, client.IssueCRLRequest{})
	_, refusals["promotion"] = admin.TurnClone(t.Context(), config.Name, "promote", client.CloneTurn{Lease: "crl"})
	for what, err := range refusals {
		if p := problemOf(err); p.Status != http.StatusServiceUnavailable || !strings.Contains(p.Detail, "cannot be reached since") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if c, err := admin.Certificate(t.Context(), issued.Issuer, issued.Serial); err != nil || c.State != "valid" {
		t.Errorf("after it was refused to revoke it: %+v, %v", c, err)
	}
}

// problemOf is the problem that a call was answered with; an empty one where there was none.
func problemOf(err error) *client.Problem {
	if p, ok := errors.AsType[*client.Problem](err); ok {
		return p
	}
	return &client.Problem{}
}

// certificates are what was issued, and its issuer.
func (r *running) certificates(issued *client.IssueResult) (leaf, issuer *x509.Certificate) {
	r.t.Helper()
	block, _ := pem.Decode([]byte(issued.Certificate.PEM))
	leaf, err := x509.ParseCertificate(block.Bytes)
	must(r.t, err)
	_, text := fetch(r.t, "http://"+r.Public+"/ca/"+issued.Certificate.Issuer+".cer")
	issuer, err = x509.ParseCertificate([]byte(text))
	must(r.t, err)
	return leaf, issuer
}
