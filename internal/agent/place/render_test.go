package place

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// office is a root, an issuer below it, and a server's certificate, with a CRL of both.
type office struct {
	root, issuer, leaf *x509.Certificate
	rootKey, issuerKey crypto.Signer
	material           *probe.Material
}

func newOffice(t *testing.T, algorithm keyfile.Algorithm) *office {
	t.Helper()
	o := &office{}
	o.root, o.rootKey = o.certify(t, "root", keyfile.ECDSAP256, nil, nil)
	o.issuer, o.issuerKey = o.certify(t, "issuer", keyfile.ECDSAP256, o.root, o.rootKey)
	leaf, key := o.certify(t, "localhost", algorithm, o.issuer, o.issuerKey)
	o.leaf = leaf
	o.material = &probe.Material{
		Key: key, Path: []*x509.Certificate{leaf, o.issuer}, Anchors: []*x509.Certificate{o.root},
		Issuers: []*x509.Certificate{o.issuer}, Authority: "root",
		CRLs: [][]byte{o.revoke(t, o.root, o.rootKey, big.NewInt(4711)), o.revoke(t, o.issuer, o.issuerKey, big.NewInt(4712))},
	}
	return o
}

func (o *office) certify(t *testing.T, name string, a keyfile.Algorithm, above *x509.Certificate, by crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	bits := 0
	if a == keyfile.RSA {
		bits = 2048
	}
	key, err := keyfile.Generate(a, bits)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"Place"}, CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: a == keyfile.ECDSAP256 && name != "localhost",
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if template.IsCA {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	} else {
		template.DNSNames = []string{name}
	}
	if above == nil {
		above, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, above, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

func (o *office) revoke(t *testing.T, issuer *x509.Certificate, key crypto.Signer, serial *big.Int) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(time.Now().UnixMilli()), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(24 * time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: serial, RevocationTime: time.Now()}},
	}, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (o *office) render(t *testing.T, plan *recipe.Plan) Set {
	t.Helper()
	set, err := Render(plan, map[string]*probe.Material{"main": o.material}, Sources{Password: testPassword})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func testPassword(string) ([]byte, error) { return []byte("changeit-please\n"), nil }

// planned is a plan whose files lie in /srv/tls.
func planned(encoding string, files ...recipe.PlannedFile) *recipe.Plan {
	plan := &recipe.Plan{Recipe: "web", Certificates: []recipe.PlannedCertificate{{ID: "main", Encoding: encoding}}}
	for _, f := range files {
		f.Of, f.Mode = "main", 0o644
		if f.Secret() {
			f.Mode = 0o600
		}
		if f.Format == "hashdir" {
			f.Mode = 0o755
		}
		f.Path = "/srv/tls/" + f.Path
		plan.Files = append(plan.Files, f)
	}
	return plan
}

// program runs a real one that must accept what it is given.
func program(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestPEMIsReadByOpenSSLAndGnuTLS places every PEM file and has the programs use them: keys in both encodings, the path checked
// against the anchors, the CRLs against their issuers.
func TestPEMIsReadByOpenSSLAndGnuTLS(t *testing.T) {
	for _, algorithm := range []keyfile.Algorithm{keyfile.ECDSAP256, keyfile.RSA, keyfile.Ed25519} {
		for _, encoding := range []string{"pkcs8", "traditional"} {
			t.Run(string(algorithm)+" "+encoding, func(t *testing.T) {
				o := newOffice(t, algorithm)
				s := newScene(t)
				plan := planned(encoding,
					recipe.PlannedFile{Path: "key.pem", Content: []string{"key"}},
					recipe.PlannedFile{Path: "leaf.pem", Content: []string{"leaf"}},
					recipe.PlannedFile{Path: "chain.pem", Content: []string{"path"}},
					recipe.PlannedFile{Path: "issuers.pem", Content: []string{"issuers"}},
					recipe.PlannedFile{Path: "ca.pem", Content: []string{"anchors"}},
					recipe.PlannedFile{Path: "crls.pem", Content: []string{"crls"}},
					recipe.PlannedFile{Path: "all.pem", Content: []string{"key", "path", "anchors"}},
					recipe.PlannedFile{Path: "key.der", Content: []string{"key"}, Format: "der"},
					recipe.PlannedFile{Path: "leaf.der", Content: []string{"leaf"}, Format: "der"})
				mustPlace(t, s.placer(t), o.render(t, plan))
				at := func(name string) string { return s.path("/srv/tls/" + name) }
				for _, path := range []string{at("key.pem"), at("all.pem")} {
					program(t, "openssl", "pkey", "-in", path, "-check", "-noout")
					program(t, "certtool", "--key-info", "--infile", path)
				}
				program(t, "openssl", "pkey", "-inform", "DER", "-in", at("key.der"), "-noout")
				program(t, "openssl", "x509", "-inform", "DER", "-in", at("leaf.der"), "-noout")
				program(t, "openssl", "verify", "-crl_check_all", "-CAfile", at("ca.pem"), "-CRLfile", at("crls.pem"),
					"-untrusted", at("issuers.pem"), at("leaf.pem"))
				if got := program(t, "certtool", "--verify", "--load-ca-certificate", at("ca.pem"), "--infile", at("chain.pem")); !strings.Contains(got, "Verified") {
					t.Errorf("certtool: %s", got)
				}
				key, err := os.ReadFile(at("key.pem"))
				if err != nil {
					t.Fatal(err)
				}
				traditional := map[keyfile.Algorithm]string{keyfile.ECDSAP256: "EC PRIVATE KEY", keyfile.RSA: "RSA PRIVATE KEY", keyfile.Ed25519: "PRIVATE KEY"}
				want := "PRIVATE KEY"
				if encoding == "traditional" {
					want = traditional[algorithm]
				}
				if !bytes.HasPrefix(key, []byte("-----BEGIN "+want+"-----\n")) {
					t.Errorf("the key begins %.40s", key)
				}
			})
		}
	}
}

// blocks are the PEM blocks of a text, and fails where anything is outside of them.
func blocks(t *testing.T, text []byte) (types []string, all [][]byte) {
	t.Helper()
	var again []byte
	for rest := text; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if len(b.Headers) > 0 {
			t.Errorf("a block has headers: %v", b.Headers)
		}
		types, all = append(types, b.Type), append(all, b.Bytes)
		again = append(again, pem.EncodeToMemory(b)...)
	}
	if !bytes.Equal(again, text) || len(all) == 0 {
		t.Errorf("there is something outside of the blocks, or no block:\n%s", text)
	}
	return types, all
}

// TestOrderOfContents: as the recipe says, nothing twice, nothing outside of PEM blocks.
func TestOrderOfContents(t *testing.T) {
	o := newOffice(t, keyfile.ECDSAP256)
	cases := map[string][]*x509.Certificate{
		"leaf": {o.leaf}, "path": {o.leaf, o.issuer}, "path-reversed": {o.issuer, o.leaf}, "issuers": {o.issuer}, "anchors": {o.root},
		"path anchors": {o.leaf, o.issuer, o.root}, "anchors leaf": {o.root, o.leaf}, "issuers anchors": {o.issuer, o.root},
	}
	for content, want := range cases {
		for _, intermediates := range []bool{false, true} {
			want := want
			plan := planned("", recipe.PlannedFile{Path: "x", Content: strings.Fields(content)})
			plan.Trust.Intermediates = intermediates
			if strings.Contains(content, "anchors") && intermediates && !slices.Contains(want, o.issuer) {
				at := slices.Index(want, o.root)
				want = slices.Insert(slices.Clone(want), at+1, o.issuer)
			}
			_, got := blocks(t, o.render(t, plan).Files[0].Data)
			var wanted [][]byte
			for _, c := range want {
				wanted = append(wanted, c.Raw)
			}
			if !slices.EqualFunc(got, wanted, bytes.Equal) {
				t.Errorf("%s, intermediates %v: %d certificates in another order", content, intermediates, len(got))
			}
		}
	}
	types, _ := blocks(t, o.render(t, planned("", recipe.PlannedFile{Path: "x", Content: []string{"key", "path"}})).Files[0].Data)
	if want := []string{"PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"}; !slices.Equal(types, want) {
		t.Errorf("key and path: %v", types)
	}
	types, _ = blocks(t, o.render(t, planned("", recipe.PlannedFile{Path: "x", Content: []string{"crls"}})).Files[0].Data)
	if want := []string{"X509 CRL", "X509 CRL"}; !slices.Equal(types, want) {
		t.Errorf("crls: %v", types)
	}
}

// TestKeyStores are read by keytool and openssl, and are not written again while they hold the same.
func TestKeyStores(t *testing.T) {
	o := newOffice(t, keyfile.ECDSAP256)
	s := newScene(t)
	p := s.placer(t)
	plan := planned("",
		recipe.PlannedFile{Path: "key.p12", Content: []string{"key", "path"}, Format: "pkcs12", PasswordFile: "/p", Alias: "tomcat"},
		recipe.PlannedFile{Path: "key.jks", Content: []string{"path", "key"}, Format: "jks", PasswordFile: "/p"},
		recipe.PlannedFile{Path: "trust.p12", Content: []string{"anchors"}, Format: "pkcs12", PasswordFile: "/p"},
		recipe.PlannedFile{Path: "trust.jks", Content: []string{"anchors"}, Format: "jks", PasswordFile: "/p"})
	set := o.render(t, plan)
	mustPlace(t, p, set)
	password := filepath.Join(quickDir(t), "password")
	if err := os.WriteFile(password, []byte("changeit-please"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"key.p12": "tomcat, ", "key.jks": "web, ", "trust.p12": "trustedCertEntry", "trust.jks": "trustedCertEntry",
	} {
		got := program(t, "keytool", "-list", "-keystore", s.path("/srv/tls/"+name), "-storepass:file", password)
		if !strings.Contains(got, want) || strings.HasPrefix(name, "key") && !strings.Contains(got, "PrivateKeyEntry") {
			t.Errorf("%s: keytool says\n%s", name, got)
		}
	}
	program(t, "openssl", "pkcs12", "-in", s.path("/srv/tls/key.p12"), "-passin", "file:"+password, "-noout")
	was := s.inodes(t, set)
	again := o.render(t, plan)
	if bytes.Equal(again.Files[0].Data, set.Files[0].Data) {
		t.Fatal("the bytes are the same each time, and the comparison by content proves nothing")
	}
	if words, err := p.Difference(again); err != nil || len(words) > 0 {
		t.Fatalf("differences: %v, %v", words, err)
	}
	if mustPlace(t, p, again); !slices.Equal(was, s.inodes(t, set)) {
		t.Fatal("a store was written again that holds the same")
	}
	next := newOffice(t, keyfile.ECDSAP256)
	if words, err := p.Difference(next.render(t, plan)); err != nil || len(words) != 4 {
		t.Fatalf("differences of other stores: %v, %v", words, err)
	}
	mustPlace(t, p, next.render(t, plan))
	if words, err := p.Difference(set); err != nil || len(words) != 4 {
		t.Fatalf("differences: %v, %v", words, err)
	}
	// A refusal puts back what was there. The stores of the old set are made anew for it, with other bytes.
	plan.Files = append(plan.Files, planned("", recipe.PlannedFile{Path: "leaf.pem", Content: []string{"leaf"}}).Files...)
	c := &consumer{check: func() error { return errors.New("no") }}
	four := *plan
	four.Files = plan.Files[:4]
	for _, o := range []*office{newOffice(t, keyfile.ECDSAP256), next} {
		old := next.render(t, &four)
		if out, err := p.Place(t.Context(), o.render(t, plan), &old, c); !out.RolledBack {
			t.Fatal(err)
		}
	}
	// What is ours is known by the bytes that lie there, although they were never rendered again.
	mustPlace(t, p, Set{Name: set.Name})
	if err := s.is(nil); err != nil {
		t.Fatal(err)
	}
}

// TestHashedDirectory: openssl finds issuers and CRLs in it; a new CRL takes the old one's place; what is not wanted any more goes,
// and a stranger's file stays.
func TestHashedDirectory(t *testing.T) {
	o := newOffice(t, keyfile.ECDSAP256)
	s := newScene(t)
	p := s.placer(t)
	plan := planned("", recipe.PlannedFile{Path: "ca", Content: []string{"anchors", "issuers", "crls"}, Format: "hashdir"},
		recipe.PlannedFile{Path: "leaf.pem", Content: []string{"leaf"}})
	set := o.render(t, plan)
	mustPlace(t, p, set)
	mustBe(t, s, set)
	dir := s.path("/srv/tls/ca")
	verify := func() ([]byte, error) {
		return exec.Command("openssl", "verify", "-crl_check_all", "-CApath", dir, s.path("/srv/tls/leaf.pem")).CombinedOutput()
	}
	if out, err := verify(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	links := 0
	for _, f := range set.Files {
		if f.Link != "" {
			links++
		}
	}
	if links != 8 { // two certificates and two CRLs, by the hashes of today and of old
		t.Fatalf("%d links", links)
	}
	ours, theirs := listing(t, dir), t.TempDir()
	for _, f := range set.Files[:4] {
		if err := os.WriteFile(filepath.Join(theirs, filepath.Base(f.Path)), f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program(t, "openssl", "rehash", "-compat", theirs)
	if want := listing(t, theirs); !slices.Equal(ours, want) {
		t.Fatalf("openssl rehash makes\n%v\nwe make\n%v", want, ours)
	}
	o.material.CRLs[1] = o.revoke(t, o.issuer, o.issuerKey, o.leaf.SerialNumber)
	if out := mustPlace(t, p, o.render(t, plan)); len(out.Changed) != 1 {
		t.Fatalf("a new CRL changes %v", out.Changed)
	}
	if out, err := verify(); err == nil || !strings.Contains(string(out), "revoked") {
		t.Fatalf("a revoked certificate passes: %s", out)
	}
	stranger := filepath.Join(dir, "stranger.pem")
	if err := os.WriteFile(stranger, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	next := newOffice(t, keyfile.ECDSAP256).render(t, plan)
	mustPlace(t, p, next)
	if err := os.Remove(stranger); err != nil {
		t.Fatalf("the stranger's file is gone: %v", err)
	}
	mustBe(t, s, next)
	if out, err := verify(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// listing is what lies in a hashed directory, with what each link leads to.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		target, _ := os.Readlink(filepath.Join(dir, e.Name())) //nolint:errcheck // a file that is no link has none
		all = append(all, e.Name()+" "+target)
	}
	return all
}

// TestRenderRefuses what would leave a consumer with an empty file, or with half of what it needs.
func TestRenderRefuses(t *testing.T) {
	o := newOffice(t, keyfile.ECDSAP256)
	cases := map[string]struct {
		change func(m *probe.Material)
		file   recipe.PlannedFile
	}{
		"no CRL":          {func(m *probe.Material) { m.CRLs = nil }, recipe.PlannedFile{Content: []string{"crls"}}},
		"no CRL hashed":   {func(m *probe.Material) { m.CRLs = nil }, recipe.PlannedFile{Content: []string{"crls"}, Format: "hashdir"}},
		"a PEM CRL":       {func(m *probe.Material) { m.CRLs[0] = []byte("-----BEGIN X509 CRL-----") }, recipe.PlannedFile{Content: []string{"crls"}}},
		"no key":          {func(m *probe.Material) { m.Key = nil }, recipe.PlannedFile{Content: []string{"key"}}},
		"no key to store": {func(m *probe.Material) { m.Key = nil }, recipe.PlannedFile{Content: []string{"key", "path"}, Format: "pkcs12"}},
		"no certificate":  {func(m *probe.Material) { m.Path = nil }, recipe.PlannedFile{Content: []string{"path"}}},
		"no anchors":      {func(m *probe.Material) { m.Anchors = nil }, recipe.PlannedFile{Content: []string{"anchors"}}},
		"no issuers":      {func(m *probe.Material) { m.Path = m.Path[:1] }, recipe.PlannedFile{Content: []string{"issuers"}}},
		"two in DER":      {nil, recipe.PlannedFile{Content: []string{"path"}, Format: "der"}},
		"unknown content": {nil, recipe.PlannedFile{Content: []string{"secrets"}}},
		"unknown format":  {nil, recipe.PlannedFile{Content: []string{"leaf"}, Format: "ods"}},
	}
	for name, c := range cases {
		m := *o.material
		m.CRLs = slices.Clone(m.CRLs)
		if c.change != nil {
			c.change(&m)
		}
		c.file.Path = "x"
		set, err := Render(planned("", c.file), map[string]*probe.Material{"main": &m}, Sources{Password: testPassword})
		if err == nil || len(set.Files) > 0 || !strings.Contains(err.Error(), "/srv/tls/x") {
			t.Errorf("%s: %+v, %v", name, set, err)
		}
	}
	plan := planned("", recipe.PlannedFile{Path: "x", Content: []string{"leaf"}})
	if _, err := Render(plan, nil, Sources{Password: testPassword}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no material: %v", err)
	}
}
