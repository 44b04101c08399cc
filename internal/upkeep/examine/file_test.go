package examine

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"chancery/internal/agent/probe"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/finding"
)

func keyPEM(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func in(t testing.TB, path string, o FileOptions) []string {
	t.Helper()
	found, err := File(t.Context(), path, o, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	note(t, found)
	ids := rules(found)
	slices.Sort(ids)
	return ids
}

// TestFiles: each kind of file, right and wrong.
func TestFiles(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	leaf, issuer, root := o.leaf.cert, o.issuer.cert, o.root.cert
	other := issue(t, nil, "other", ca)
	of := func(name string, changes ...func(*x509.Certificate)) []byte {
		return keyfile.EncodeCertificates(issue(t, o.issuer, name, changes...).path...)
	}
	pems, plain := keyfile.EncodeCertificates, server("localhost")
	weak := issueFor(t, o.issuer, weakKey(t), "weak", plain)
	twoCAs := issue(t, issue(t, o.root, "narrow", ca, func(c *x509.Certificate) { c.MaxPathLenZero = true }), "below", ca)
	refused := issue(t, twoCAs, "localhost", plain)
	p12, err := keyfile.EncodePKCS12([]keyfile.Entry{{Alias: "a", Key: o.leaf.key, Chain: o.leaf.path}}, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	jks, err := keyfile.EncodeJKS([]keyfile.Entry{{Alias: "a", Key: o.leaf.key, Chain: o.leaf.path}, {Alias: "old", Chain: []*x509.Certificate{issue(t, nil, "gone", ca, expired).cert}}}, []byte("secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := keyfile.EncodeEncryptedPKCS8(o.leaf.key, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := cert.CreateCSR(&cert.CSRTemplate{}, o.leaf.key)
	if err != nil {
		t.Fatal(err)
	}
	badCSR := bytes.Clone(csr)
	badCSR[len(badCSR)-1] ^= 1
	list := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) }
	future, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(time.Hour), NextUpdate: time.Now().Add(2 * time.Hour)}, issuer, o.issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	partial, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(2), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}}, issuer, o.issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	twin := issue(t, nil, issuer.Subject.CommonName, ca)
	var seventeen []*x509.Certificate
	for range 17 {
		seventeen = append(seventeen, issue(t, nil, "root", ca).cert)
	}
	trusted := FileOptions{Trust: o.trust()}
	for name, c := range map[string]struct {
		content []byte
		mode    os.FileMode
		options FileOptions
		broken  []string
	}{
		"right":            {pems(leaf, issuer), 0o644, trusted, nil},
		"right, one":       {pems(leaf), 0o644, FileOptions{Names: []string{"localhost"}}, nil},
		"der":              {leaf.Raw, 0o644, FileOptions{}, nil},
		"der, trailing":    {append(bytes.Clone(leaf.Raw), "garbage"...), 0o644, FileOptions{}, []string{"file.trailing"}},
		"trust file":       {pems(root, issuer), 0o644, FileOptions{Recipe: "libvirt-server"}, nil},
		"trust, one ended": {pems(root, issue(t, nil, "ended", ca, expired).cert), 0o644, FileOptions{}, []string{"file.times.expired"}},
		"trust, no CA":     {pems(root, leaf), 0o644, FileOptions{}, []string{"file.trust.anchor"}},
		"trust, twice":     {pems(root, root), 0o644, FileOptions{}, []string{"file.path.duplicate"}},
		"too many":         {pems(seventeen...), 0o644, FileOptions{Recipe: "libvirt-server"}, []string{"file.limits"}},
		"gap":              {pems(leaf), 0o644, trusted, []string{"file.path.incomplete"}},
		"stranger":         {pems(leaf, issuer), 0o644, FileOptions{Trust: &Trust{Anchors: []*x509.Certificate{other.cert}, From: "x"}}, []string{"file.path.incomplete"}},
		"stranger's root":  {pems(leaf, issuer, root), 0o644, FileOptions{Trust: &Trust{Anchors: []*x509.Certificate{other.cert}, From: "x"}}, []string{"file.trust.untrusted"}},
		"wrong order":      {pems(refused.cert, root, twoCAs.cert, twoCAs.path[1]), 0o644, FileOptions{}, []string{"file.path.order"}},
		"extra":            {pems(leaf, issuer, other.cert), 0o644, FileOptions{}, []string{"file.path.extra"}},
		"path refused":     {pems(refused.path...), 0o644, trusted, []string{"file.path.refused"}},
		"expired":          {of("a", plain, expired), 0o644, FileOptions{}, []string{"file.times.expired"}},
		"future":           {of("a", plain, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(100 * time.Hour) }), 0o644, FileOptions{}, []string{"file.times.future"}},
		"ends": {of("a", plain, func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(-1000 * time.Hour)
			c.NotAfter = time.Now().Add(100 * time.Hour)
		}), 0o644, FileOptions{}, []string{"file.times.ends"}},
		"common name only":   {of("a", server()), 0o644, FileOptions{}, []string{"file.names.commonname"}},
		"other name":         {pems(leaf, issuer), 0o644, FileOptions{Names: []string{"web9"}}, []string{"file.names.mismatch"}},
		"a client's":         {of("a", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), 0o644, FileOptions{}, nil},
		"a client's, nginx":  {of("a", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), 0o644, FileOptions{Recipe: "nginx"}, []string{"file.usages.server"}},
		"no signature":       {of("a", plain, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), 0o644, FileOptions{}, []string{"file.usages.key"}},
		"encipherment":       {of("a", plain, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }), 0o644, FileOptions{}, []string{"file.usages.encipherment"}},
		"libvirt":            {of("a", plain), 0o644, FileOptions{Recipe: "libvirt-server"}, []string{"file.usages.critical"}},
		"weak":               {pems(weak.path...), 0o644, FileOptions{}, []string{"file.key.weak"}},
		"pair":               {append(pems(leaf), keyPEM(t, o.leaf.key)...), 0o600, FileOptions{}, nil},
		"pair, key first":    {append(keyPEM(t, o.leaf.key), pems(leaf, issuer)...), 0o640, FileOptions{}, nil},
		"no pair":            {append(pems(leaf), keyPEM(t, other.key)...), 0o600, FileOptions{}, []string{"file.pair"}},
		"two keys":           {append(keyPEM(t, o.leaf.key), keyPEM(t, other.key)...), 0o600, FileOptions{}, []string{"file.keys"}},
		"wide":               {keyPEM(t, o.leaf.key), 0o644, FileOptions{}, []string{"file.mode"}},
		"sealed":             {sealed, 0o600, FileOptions{}, []string{"file.password"}},
		"sealed, opened":     {sealed, 0o600, FileOptions{Password: []byte("secret")}, nil},
		"sealed, wrong":      {sealed, 0o600, FileOptions{Password: []byte("other")}, []string{"file.password.wrong"}},
		"text":               {append([]byte("Subject: somebody\n"), pems(leaf)...), 0o644, FileOptions{}, []string{"file.text"}},
		"cut off":            {pems(leaf)[:300], 0o644, FileOptions{}, []string{"file.format"}},
		"garbage":            {[]byte("\x1b[2Jhello"), 0o644, FileOptions{}, []string{"file.format"}},
		"empty":              {nil, 0o644, FileOptions{}, []string{"file.format"}},
		"pkcs12":             {p12, 0o600, FileOptions{Password: []byte("secret")}, nil},
		"pkcs12, no word":    {p12, 0o600, FileOptions{}, []string{"file.password"}},
		"pkcs12, wide":       {p12, 0o644, FileOptions{Password: []byte("secret")}, []string{"file.mode"}},
		"jks":                {jks, 0o600, FileOptions{Password: []byte("secret")}, []string{"file.times.expired"}},
		"jks, wrong":         {jks, 0o600, FileOptions{Password: []byte("other")}, []string{"file.password.wrong"}},
		"crl":                {list(o.issuer.list(t, time.Hour)), 0o644, FileOptions{Trust: &Trust{Anchors: []*x509.Certificate{root}, Others: []*x509.Certificate{issuer}}}, nil},
		"crl, der, stale":    {o.issuer.list(t, -time.Hour), 0o644, FileOptions{}, []string{"file.crl.stale"}},
		"crl, future":        {list(future), 0o644, FileOptions{}, []string{"file.crl.future"}},
		"crl, partial":       {list(partial), 0o644, FileOptions{}, []string{"file.crl.partial"}},
		"crl, forged":        {list(twin.list(t, time.Hour)), 0o644, FileOptions{Trust: &Trust{Anchors: []*x509.Certificate{issuer}}}, []string{"file.crl.issuer"}},
		"pkcs12, wrong":      {p12, 0o600, FileOptions{Password: []byte("other")}, []string{"file.password.wrong"}},
		"a CA's own, known":  {pems(other.cert), 0o644, FileOptions{Trust: &Trust{Anchors: []*x509.Certificate{other.cert}, From: "x"}}, nil},
		"a CA's, stranger's": {pems(other.cert), 0o644, trusted, []string{"file.trust.untrusted"}},
		"alone, stranger's":  {pems(issue(t, nil, "alone", plain).cert), 0o644, trusted, []string{"file.trust.selfsigned", "file.trust.untrusted"}},
		"issuer, trusted":    {pems(issuer, root), 0o644, trusted, nil},
		"csr":                {csr, 0o644, FileOptions{}, nil},
		"csr, bad signature": {badCSR, 0o644, FileOptions{}, []string{"file.csr.refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := put(t, filepath.Join(t.TempDir(), "f"), c.content, c.mode)
			if got := in(t, path, c.options); !slices.Equal(got, c.broken) {
				found, _ := File(t.Context(), path, c.options, time.Now())
				t.Errorf("broken: %v\n   not: %v\n%s", got, c.broken, listing(found))
			}
		})
	}
	if _, err := File(t.Context(), filepath.Join(t.TempDir(), "none"), FileOptions{}, time.Now()); err == nil {
		t.Error("a file that is not there is looked at")
	}
	if _, err := File(t.Context(), t.TempDir(), FileOptions{}, time.Now()); err == nil {
		t.Error("a directory is looked at as a file")
	}
	if _, err := File(t.Context(), "x", FileOptions{Recipe: "none"}, time.Now()); err == nil {
		t.Error("an unknown recipe passes")
	}
}

// TestCommandsThatMend runs the commands that are shown: what comes of them is whole, private, and right.
func TestCommandsThatMend(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	whole := append(keyfile.EncodeCertificates(o.leaf.path...), keyPEM(t, o.leaf.key)...)
	for name, c := range map[string]struct {
		content, want []byte
		rule          string
	}{
		"text":     {append([]byte("Subject: somebody\n"), whole...), whole, "file.text"},
		"trailing": {append(bytes.Clone(o.leaf.cert.Raw), "garbage"...), o.leaf.cert.Raw, "file.trailing"},
	} {
		t.Run(name, func(t *testing.T) {
			path := put(t, filepath.Join(t.TempDir(), "a file.pem"), c.content, 0o600)
			found, err := File(t.Context(), path, FileOptions{}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			at := slices.IndexFunc(found, func(f finding.Finding) bool { return f.Check == c.rule })
			if at < 0 {
				t.Fatalf("%s is not found:\n%s", c.rule, listing(found))
			}
			shell := exec.Command("sh", "-c", found[at].Hint)
			shell.Dir = filepath.Dir(path)
			if out, err := shell.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", found[at].Hint, err, out)
			}
			made := filepath.Join(shell.Dir, "NEW")
			got, err := os.ReadFile(made)
			if err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%s leaves %d octets of %d: %v", found[at].Hint, len(got), len(c.want), err)
			}
			if broken := in(t, made, FileOptions{}); len(broken) > 0 {
				t.Errorf("after %s: %v", found[at].Hint, broken)
			}
		})
	}
}

// TestKeyBeside: a key in a file of its own.
func TestKeyBeside(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	certificate, key := o.leaf.files(t)
	_, others := o.root.files(t)
	for _, c := range []struct {
		key    string
		broken []string
	}{{key, nil}, {others, []string{"file.pair"}}, {certificate, []string{"file.format"}}, {key + "-none", []string{"file.unreadable"}}} {
		if got := in(t, certificate, FileOptions{Key: c.key}); !slices.Equal(got, c.broken) {
			t.Errorf("%s: %v, not %v", c.key, got, c.broken)
		}
	}
}

// TestSHA1InAFile: openssl signs what Go does not.
func TestSHA1InAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := newOffice(t)
	root, key := o.root.files(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	put(t, file("ext"), []byte("subjectAltName=DNS:localhost\n"), 0o600)
	openssl(t, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", file("key"), "-out", file("csr"), "-subj", "/CN=localhost")
	openssl(t, "x509", "-req", "-sha1", "-in", file("csr"), "-CA", root, "-CAkey", key, "-days", "90", "-extfile", file("ext"), "-out", file("cert"))
	if got := in(t, file("cert"), FileOptions{}); !slices.Equal(got, []string{"file.signature.weak"}) {
		t.Error(got)
	}
	for _, kind := range []string{"-des3", "-aes256"} { // what OpenSSL seals
		openssl(t, "pkcs12", "-export", "-in", file("cert"), "-inkey", file("key"), "-passout", "pass:secret", "-keypbe", "AES-256-CBC", "-out", file("p12"+kind))
		if got := in(t, file("p12"+kind), FileOptions{Password: []byte("secret")}); !slices.Equal(got, []string{"file.signature.weak"}) {
			t.Error(got)
		}
	}
}

// TestReadableByTheConsumer: a directory above the file is in the way.
func TestReadableByTheConsumer(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("this is tried by root, who can take a user's place")
	}
	o := newOffice(t)
	dir, err := os.MkdirTemp("/tmp", "examine")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	path := put(t, filepath.Join(inner, "c.pem"), keyfile.EncodeCertificates(o.leaf.path...), 0o644)
	options := FileOptions{User: "nobody", System: probe.System{AsRoot: true}}
	found, err := File(t.Context(), path, options, time.Now()) // MkdirTemp makes 0700
	if err != nil {
		t.Fatal(err)
	}
	wantOne(t, found, "file.readable", dir+", mode 0700")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := in(t, path, options); got != nil {
		t.Error(got)
	}
	if _, err := File(t.Context(), path, FileOptions{User: "no-such-user"}, time.Now()); err == nil {
		t.Error("an unknown user passes")
	}
}

// TestUnreadable: who may not read is told so.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o := newOffice(t)
	dir, err := os.MkdirTemp("/tmp", "examine")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "key.pem"), keyPEM(t, o.leaf.key), 0o600)
	put(t, filepath.Join(dir, "c.pem"), keyfile.EncodeCertificates(o.leaf.path...), 0o644)
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	copied := put(t, filepath.Join(dir, "examine.test"), binary, 0o755)
	cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", copied, "-test.run", "TestAsNobody")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "EXAMINE_DIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("looked as nobody")) {
		t.Fatalf("%v: %s", err, out)
	}
	brokenMu.Lock()
	broken["file.unreadable"] = true
	brokenMu.Unlock()
}

// TestAsNobody is the part of TestUnreadable that another user plays.
func TestAsNobody(t *testing.T) {
	dir := os.Getenv("EXAMINE_DIR")
	if dir == "" {
		return // TestUnreadable plays it
	}
	found, err := File(t.Context(), filepath.Join(dir, "key.pem"), FileOptions{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	want(t, found, "file.unreadable")
	targets, err := Walk(dir, WalkLimits{})
	if err != nil {
		t.Fatal(err)
	}
	result, err := Scan(t.Context(), targets, ScanOptions{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Found) != 3 || !slices.Contains(result.Found[2].Problems, "file.unreadable") {
		t.Fatalf("%+v", result.Found)
	}
	os.Stdout.WriteString("looked as nobody\n")
}
