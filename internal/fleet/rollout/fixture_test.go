package rollout_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/authoritytest"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/rollout"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/setup"
)

var (
	admin    = access.Principal{ID: "anna", Name: "anna", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
	operator = access.Principal{ID: "otto", Name: "otto", Kind: access.KindOperator, Roles: []access.Role{access.Operator}}
	auditor  = access.Principal{ID: "adam", Name: "adam", Kind: access.KindOperator, Roles: []access.Role{access.Auditor}}
)

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused fails unless err is a refusal of that kind whose words hold the text.
func refused(t testing.TB, err error, kind fault.Kind, text string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %v, want a refusal that is %s and says %q", err, kind, text)
	}
}

// hinted checks what a refusal tells the operator to do.
func hinted(t testing.TB, err error, command string) {
	t.Helper()
	if refusal, ok := errors.AsType[*fault.Error](err); !ok || !strings.Contains(refusal.Hint, command) {
		t.Fatalf("got %v, want a refusal with the hint %q", err, command)
	}
}

// world is an authority with hosts.
type world struct {
	*setup.Services
	t     testing.TB
	drive *rollout.Drive
	hosts []*agent
	id    string // of the rollout that was started last
	node  *keys.NodeKey

	unsafe      bool // the trust is dropped on purpose: connections break
	connections int  // that were checked
	known       map[int64][]string
}

const lab = "lab"

// newWorld makes an authority with the pools identity, default and lab, their roots online, whose CRLs are signed.
func newWorld(t testing.TB, d *db.DB) *world {
	t.Helper()
	first := authoritytest.Settings()
	first.Limits.HostRate, first.Limits.Duplicates = settings.Rate{PerSecond: 100_000, Burst: 100_000}, 100_000
	s, node := authoritytest.New(t, d, first, pool.Identity, pool.Default, lab)
	w := &world{Services: s, t: t, node: node, known: map[int64][]string{}}
	w.signCRLs()
	w.drive = w.Rollouts.NewDrive()
	return w
}

// signCRLs runs the node's signer of CRLs until the test ends.
func (w *world) signCRLs() {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = w.Revocation.Run(ctx) }()
	w.t.Cleanup(func() { stop(); <-ended })
}

// again is the node after a kill: another process over the same database, which knows nothing.
func (w *world) again() {
	w.t.Helper()
	w.Services = must[*setup.Services](w.t)(setup.Assemble(w.DB, "n1", w.node, nil))
	w.drive = w.Rollouts.NewDrive()
}

// agent is a host's agent as the authority meets it: it fetches, orders and reports, and places nothing.
type agent struct {
	w          *world
	name       string
	principal  access.Principal
	generation int64
	certs      map[string]*ca.Certificate // by placement
	reissued   map[string]int64
	silent     bool   // it does not call
	trust      int64  // what it last placed
	fails      string // why its placements fail; empty where they do not
	address    string // where it says that it serves
	left       bool   // it is left out of what is checked to be safe
}

// add adds hosts, and has a machine join as each.
func (w *world) add(in client.AddHostRequest) *agent {
	w.t.Helper()
	in.Pool = lab
	if in.Placements == nil {
		in.Placements = []client.PlacementOrder{plain()}
	}
	if in.Profiles == nil {
		in.Profiles = []string{"server"}
	}
	return w.joins(must[*client.HostToken](w.t)(w.Hosts.Add(w.t.Context(), operator, in, "")))
}

func (a *agent) identify(joined *client.Joined) {
	block, _ := pem.Decode([]byte(joined.Certificate))
	identity := must[*x509.Certificate](a.w.t)(x509.ParseCertificate(block.Bytes))
	a.w.Access.Forget()
	a.principal = must[access.Principal](a.w.t)(a.w.Access.PrincipalNamed(a.w.t.Context(), joined.Host)).Showing(identity.RawSubjectPublicKeyInfo)
	a.generation = joined.Generation
}

// addMany adds hosts h00, h01 …, and has each converge.
func (w *world) addMany(n int) {
	w.t.Helper()
	for i := range n {
		w.add(client.AddHostRequest{Name: fmt.Sprintf("h%02d.example.com", i)}).converge()
	}
}

func newCSR(t testing.TB, names ...string) string {
	t.Helper()
	key := must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
	template := &cert.CSRTemplate{}
	for _, name := range names {
		template.SAN = append(template.SAN, cert.DNSName(name))
	}
	der := must[[]byte](t)(cert.CreateCSR(template, key))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func print256(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// converge does once what an agent does: it fetches what its host shall hold, gets what it lacks, and reports.
func (a *agent) converge() {
	a.w.t.Helper()
	if a.silent {
		return
	}
	ctx := a.w.t.Context()
	d := must[*client.Desired](a.w.t)(a.w.Hosts.Desired(ctx, a.principal, "", 0))
	if d.IdentityAfter >= a.generation {
		a.identify(must[*client.Joined](a.w.t)(a.w.Hosts.RenewIdentity(ctx, a.principal, client.RenewIdentityRequest{
			CSR: newCSR(a.w.t), Generation: a.generation,
		}, "")))
	}
	if a.fails == "" {
		a.trust = d.Trust.Version
	}
	report := client.Report{Agent: "test", Generation: a.generation}
	for _, p := range d.Placements {
		if a.fails == "" {
			a.obtain(p)
		}
		report.Observations = append(report.Observations, a.observe(p.Name))
	}
	check(a.w.t, a.w.Hosts.Report(ctx, a.principal, report))
}

// obtain gets a certificate where what is held is not what is wanted.
func (a *agent) obtain(p client.DesiredPlacement) {
	a.w.t.Helper()
	held := a.certs[p.Name]
	if held != nil && (p.Issuer == "" || held.Issuer.Name == p.Issuer) && a.reissued[p.Name] >= p.Reissue &&
		!slices.Contains(p.Revoked, cert.FormatSerial(held.Serial)) {
		return
	}
	a.certs[p.Name] = must[*ca.Certificate](a.w.t)(a.w.CA.Issue(a.w.t.Context(), a.principal, ca.Order{
		Profile: "server", CSR: []byte(newCSR(a.w.t, a.name)), Issuer: p.Issuer,
	}))
	a.reissued[p.Name] = p.Reissue
}

func (a *agent) observe(placement string) client.Observation {
	o := client.Observation{Placement: placement, State: client.PlacementServed, Trust: a.trust, Reissued: a.reissued[placement],
		Files: []client.ObservedFile{{Path: "/etc/tls/cert.pem"}, {Path: "/etc/tls/key.pem"}}, Reload: "systemctl reload x", Address: a.address}
	if a.fails != "" {
		o.State, o.Message = client.PlacementFailed, a.fails
	}
	if held := a.certs[placement]; held != nil {
		o.Serial, o.Issuer, o.NotAfter = cert.FormatSerial(held.Serial), print256(held.Issuer.Certificate), held.NotAfter
	}
	return o
}

// start starts a rollout of the pool lab.
func (w *world) start(in client.StartRolloutRequest) *client.Rollout {
	w.t.Helper()
	in.Pool = lab
	r := must[*client.Rollout](w.t)(w.Rollouts.Start(w.t.Context(), admin, in, once.Call{}))
	w.id = r.ID
	return r
}

func (w *world) show() *client.Rollout {
	w.t.Helper()
	return must[*client.Rollout](w.t)(w.Rollouts.Show(w.t.Context(), auditor, w.id))
}

// turn is one look of the driver, after which all agents converge. What was so before each is checked to be safe after it.
func (w *world) turn() *client.Rollout {
	w.t.Helper()
	check(w.t, w.drive.Look(w.t.Context()))
	for _, a := range w.hosts {
		a.converge()
		w.safe()
	}
	return w.show()
}

// until takes turns until a rollout is as wanted, or nothing happens any more.
func (w *world) until(what string, is func(r *client.Rollout) bool) *client.Rollout {
	w.t.Helper()
	deadline := time.Now().Add(4 * time.Minute)
	for {
		r := w.turn()
		if is(r) {
			return r
		}
		if r.EndedAt.IsZero() && r.State != client.RolloutPaused && time.Now().Before(deadline) {
			await(r)
			continue
		}
		w.t.Fatalf("waited for %q; the rollout is %s, stage %s, wave %d: %s; held by %v", what, r.State, r.Stage, r.Wave, r.Message, r.Holding)
	}
}

// await leaves others the processor: while a rollout is prepared, the signer of CRLs.
func await(r *client.Rollout) {
	if r.Stage == client.StagePrepare {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(time.Millisecond)
}

// awaitsCRL reports whether a rollout is prepared, and the signer of CRLs still owes a list of an issuer that it made.
func (w *world) awaitsCRL(r *client.Rollout) (yes bool) {
	w.t.Helper()
	if r.Stage != client.StagePrepare || !strings.HasSuffix(r.Message, "has no CRL yet") {
		return false
	}
	check(w.t, w.DB.Read(w.t.Context(), func(tx *db.Tx) error {
		return tx.QueryRow(w.t.Context(), `SELECT EXISTS (SELECT 1 FROM issuer i WHERE i.name IN ('lab-2', 'lab-root-2') AND NOT EXISTS
			(SELECT 1 FROM crl c WHERE c.issuer = i.id AND c.scope = 'complete' AND c.state = 'current'))`).Scan(&yes)
	}))
	return yes
}

func (w *world) untilState(state string) *client.Rollout {
	w.t.Helper()
	return w.until(state, func(r *client.Rollout) bool { return r.State == state })
}

func (w *world) untilStage(stage string) *client.Rollout {
	w.t.Helper()
	return w.until(stage, func(r *client.Rollout) bool { return r.Stage == stage && r.State == client.RolloutRunning })
}

// trusts are the fingerprints of all anchors in a version of the pool's trust.
func (w *world) trusts(version int64) []string {
	w.t.Helper()
	sets := must[*trust.Sets](w.t)(w.Trust.Of(w.t.Context(), lab, version, time.Now()))
	var prints []string
	for _, text := range sets.General.Anchors {
		block, _ := pem.Decode([]byte(text))
		prints = append(prints, print256(must[*x509.Certificate](w.t)(x509.ParseCertificate(block.Bytes))))
	}
	for _, i := range sets.General.Issuers {
		block, _ := pem.Decode([]byte(i.PEM))
		prints = append(prints, print256(must[*x509.Certificate](w.t)(x509.ParseCertificate(block.Bytes))))
	}
	slices.Sort(prints)
	return slices.Compact(prints)
}

// safe fails where one host presents what another one does not trust: a connection between them would break. Hosts that do not
// call are left out, if the test says so.
func (w *world) safe() {
	w.t.Helper()
	if w.unsafe {
		return
	}
	for _, peer := range w.hosts {
		if peer.trust == 0 {
			continue
		}
		if w.known[peer.trust] == nil { // what a version holds does not change
			w.known[peer.trust] = w.trusts(peer.trust)
		}
		for _, a := range w.hosts {
			if a.left || peer.left {
				continue
			}
			for placement, held := range a.certs {
				top := held.Issuer.Certificate
				if n := len(held.Issuer.Chain); n > 0 {
					top = held.Issuer.Chain[n-1]
				}
				for _, c := range []*x509.Certificate{held.Issuer.Certificate, top} {
					if !slices.Contains(w.known[peer.trust], print256(c)) {
						w.t.Fatalf("%s presents %s at %s under %q, and %s, at version %d, does not trust it", a.name, cert.FormatSerial(held.Serial), placement,
							c.Subject, peer.name, peer.trust)
					}
				}
				w.connections++
			}
		}
	}
}

// events counts the audit's events of an action.
func (w *world) events(action string) int {
	w.t.Helper()
	return len(must[audit.Page](w.t)(w.Audit.Search(w.t.Context(), audit.Filter{Action: action}, "", 1000)).Events)
}

// issuers says how many of the pool's hosts hold a certificate under each issuer.
func (w *world) under(issuer string) int {
	n := 0
	for _, a := range w.hosts {
		for _, held := range a.certs {
			if held.Issuer.Name == issuer {
				n++
			}
		}
	}
	return n
}

func (w *world) issuer(name string) *ca.Issuer {
	w.t.Helper()
	return must[*ca.Issuer](w.t)(w.CA.Issuer(w.t.Context(), name))
}

func plain() client.PlacementOrder {
	return client.PlacementOrder{Recipe: "plain", Parameters: map[string]string{"key": "/etc/tls/key.pem", "cert": "/etc/tls/cert.pem", "trust": "/etc/tls/trust.pem"}}
}

// joins has a machine join with a host's token.
func (w *world) joins(made *client.HostToken) *agent {
	w.t.Helper()
	a := &agent{w: w, name: made.Host.Name, certs: map[string]*ca.Certificate{}, reissued: map[string]int64{}}
	joined := must[*client.Joined](w.t)(w.Hosts.Join(w.t.Context(), client.JoinRequest{Token: made.Token, CSR: newCSR(w.t), Agent: "test"}))
	a.identify(joined)
	w.hosts = append(w.hosts, a)
	return a
}

// waitCRL waits until an issuer has a CRL.
func (w *world) waitCRL(issuer string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	must[*revocation.List](w.t)(w.Revocation.IssueCRL(ctx, access.System("n1"), issuer, revocation.Wish{}, once.Call{}))
}

// foreignCA is a root of somebody else, which issues by itself.
func foreignCA(t testing.TB, name string) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
	made := must[*root.Root](t)(root.New(root.Options{Subject: cert.CommonName(name), PathLen: 0}, key, time.Now()))
	return made.Certificate, key
}

func foreignRoot(t testing.TB, name string) string {
	t.Helper()
	c, _ := foreignCA(t, name)
	return string(keyfile.EncodeCertificates(c))
}

// signRoot does what the owner of a new root does: he makes it, and has it sign what a rollout waits for.
func signRoot(t testing.TB, r *client.Rollout) (above, issuer *x509.Certificate, list []byte) {
	t.Helper()
	key := must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
	subject := must[cert.Name](t)(cert.ParseName(r.RootSubject))
	now := time.Now()
	made := must[*root.Root](t)(root.New(root.Options{Subject: subject, PathLen: 1}, key, now))
	csr := must[*cert.CSR](t)(cert.CSRLimits{}.ParsePEM([]byte(r.CSR)))
	issuer = must[*x509.Certificate](t)(made.SignIssuer(root.Options{Subject: csr.Subject}, csr.SPKI, cert.Issuer{}, now))
	list = must[[]byte](t)(made.SignCRL(big.NewInt(now.UnixMilli()), nil, now, 0))
	return made.Certificate, issuer, list
}

// server is one that serves a certificate of its own.
type server struct{ port, serial string }

func serveSelf(t testing.TB, name string) server {
	t.Helper()
	key := must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
	made := must[*root.Root](t)(root.New(root.Options{Subject: cert.CommonName(name)}, key, time.Now()))
	l := must[net.Listener](t)(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{
		Certificate: [][]byte{made.Certificate.Raw}, PrivateKey: key}}}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = conn.(*tls.Conn).Handshake()
				_ = conn.Close()
			}()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	check(t, err)
	return server{port, cert.FormatSerial(made.Certificate.SerialNumber)}
}

// closedPort is one where nothing listens.
func closedPort(t testing.TB) string {
	t.Helper()
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	check(t, err)
	return port
}
