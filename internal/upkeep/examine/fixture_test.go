package examine

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/agent/probe"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
	"chancery/internal/upkeep/finding"
)

// broken are the rules that the tests broke, so that none goes untried.
var (
	brokenMu sync.Mutex
	broken   = map[string]bool{}
)

// elsewhere are rules that are broken in the tests of internal/run/hosts, which have a whole authority, and those that need a
// kernel with SELinux or a network that loses packets.
func elsewhere(id string) bool {
	return slices.Contains([]string{"host.agent.stopped", "host.local.label", "wire.ours.revoked", "wire.ours.newer", "wire.ours.forged", "file.label", "wire.connect.unreachable"}, id)
}

// TestMain lets the test binary be the child that tries to read as another user, and wants every rule to have been broken.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "agent" && os.Args[2] == "readable" {
		os.Exit(probe.ReadableMain(os.Args[3:]))
	}
	flag.Parse()
	code := m.Run()
	if code == 0 && flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.fuzz").Value.String() == "" && flag.Lookup("test.bench").Value.String() == "" {
		for _, r := range Rules() {
			if !broken[r.ID] && !elsewhere(r.ID) {
				fmt.Printf("no test breaks the rule %s\n", r.ID)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// note remembers what was found, and refuses what a rule would not let be found.
func note(t testing.TB, found []finding.Finding) {
	t.Helper()
	brokenMu.Lock()
	defer brokenMu.Unlock()
	for _, f := range found {
		if f.Level == finding.OK {
			continue
		}
		broken[f.Check] = true
		rule, ok := ruleOf(f.Check)
		if !ok {
			t.Errorf("%s is no rule", f.Check)
		}
		if f.Message == "" || f.Seen == "" || f.Do == "" || f.Level != rule.Level {
			t.Errorf("a finding says too little: %+v", f)
		}
		for _, text := range []string{f.Message, f.Seen, f.Hint, f.Object} {
			if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) || strings.Contains(text, "%!") {
				t.Errorf("%s holds what a terminal must not get: %q", f.Check, text)
			}
		}
	}
}

// rules are the broken rules of findings.
func rules(found []finding.Finding) []string {
	var ids []string
	for _, f := range found {
		if f.Level != finding.OK && !slices.Contains(ids, f.Check) {
			ids = append(ids, f.Check)
		}
	}
	return ids
}

// want fails unless exactly these rules are broken.
func want(t testing.TB, found []finding.Finding, ids ...string) {
	t.Helper()
	note(t, found)
	got := rules(found)
	slices.Sort(got)
	slices.Sort(ids)
	if !slices.Equal(got, ids) {
		t.Errorf("broken: %v\n   not: %v\n%s", got, ids, listing(found))
	}
}

// wantOne fails unless the rule is broken, and the finding says the words.
func wantOne(t testing.TB, found []finding.Finding, id string, words ...string) {
	t.Helper()
	note(t, found)
	for _, f := range found {
		if f.Check != id || f.Level == finding.OK {
			continue
		}
		for _, w := range words {
			if !strings.Contains(f.Message+" "+f.Seen+" "+f.Hint, w) {
				t.Errorf("%s does not say %q: %+v", id, w, f)
			}
		}
		return
	}
	t.Errorf("%s is not found:\n%s", id, listing(found))
}

func listing(found []finding.Finding) string {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "  %-7s %-26s %s | %s | %s | %s\n", f.Level, f.Check, f.Object, f.Message, f.Seen, f.Hint)
	}
	return b.String()
}

// holder is a certificate and its key.
type holder struct {
	cert *x509.Certificate
	key  crypto.Signer
	path []*x509.Certificate // leaf first, the root left out
}

// issue makes a certificate under issuer, or one that is signed by itself where that is nil.
func issue(t testing.TB, issuer *holder, name string, changes ...func(*x509.Certificate)) *holder {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return issueFor(t, issuer, key, name, changes...)
}

func issueFor(t testing.TB, issuer *holder, key crypto.Signer, name string, changes ...func(*x509.Certificate)) *holder {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"examine"}, CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, change := range changes {
		change(template)
	}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{cert: c, key: key, path: []*x509.Certificate{c}}
	if issuer != nil && string(issuer.cert.RawSubject) != string(issuer.cert.RawIssuer) {
		h.path = append(h.path, issuer.path...)
	}
	return h
}

func ca(c *x509.Certificate) {
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	c.NotAfter = time.Now().Add(5 * 365 * 24 * time.Hour)
}

func server(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		for _, n := range names {
			if a := net.ParseIP(n); a != nil {
				c.IPAddresses = append(c.IPAddresses, a)
			} else {
				c.DNSNames = append(c.DNSNames, n)
			}
		}
	}
}

// known lets a certificate say where its revocation is looked up, so that its absence is not found in every test.
func known(c *x509.Certificate) { c.OCSPServer = []string{"http://127.0.0.1:9/none"} }

func expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }

// office is a root, an issuer under it, and a leaf of the issuer for localhost.
type office struct{ root, issuer, leaf *holder }

func newOffice(t testing.TB) *office {
	t.Helper()
	o := new(office)
	o.root = issue(t, nil, "root of "+t.Name(), ca)
	o.issuer = issue(t, o.root, "issuer of "+t.Name(), ca)
	o.leaf = issue(t, o.issuer, "localhost", server("localhost", "127.0.0.1"), known)
	return o
}

func (o *office) trust() *Trust {
	return &Trust{Anchors: []*x509.Certificate{o.root.cert}, From: "root.pem"}
}

func weakKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// files writes certificates and the key of h into a directory of their own.
func (h *holder) files(t testing.TB, path ...*x509.Certificate) (certificate, key string) {
	t.Helper()
	if len(path) == 0 {
		path = h.path
	}
	encoded, err := keyfile.EncodePKCS8(h.key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certificate, key = filepath.Join(dir, "c.pem"), filepath.Join(dir, "c.key")
	put(t, certificate, keyfile.EncodeCertificates(path...), 0o644)
	put(t, key, encoded, 0o600)
	return certificate, key
}

func put(t testing.TB, path string, content []byte, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// sServer starts openssl s_server with the certificates as they are to be sent, and returns its address.
func (h *holder) sServer(t testing.TB, sent []*x509.Certificate, more ...string) string {
	t.Helper()
	certificate, key := h.files(t, sent[0])
	args := []string{"s_server", "-quiet", "-cert", certificate, "-key", key}
	if len(sent) > 1 {
		chain := filepath.Join(filepath.Dir(certificate), "chain.pem")
		put(t, chain, keyfile.EncodeCertificates(sent[1:]...), 0o644)
		args = append(args, "-cert_chain", chain)
	}
	return start(t, "openssl", append(args, more...)...)
}

// start runs a program that listens at the address that is put behind -accept, until the test ends.
func start(t testing.TB, program string, args ...string) string {
	t.Helper()
	address, err := consumer.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	p, err := consumer.Start(context.WithoutCancel(t.Context()), consumer.Program{
		Path: path, Args: append(args, "-accept", address), Ready: consumer.Listening(address),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	return address
}

// at looks at a port as localhost.
func at(t testing.TB, address string, o PortOptions) []finding.Finding {
	t.Helper()
	if o.ServerName == "" && o.Names == nil {
		o.ServerName = "localhost"
	}
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	found, _, err := Port(t.Context(), address, o, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	note(t, found)
	return found
}
