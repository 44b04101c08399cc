package trust_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"

	"crypto/x509/pkix"
)

// leaf makes a certificate that is no CA's.
func leaf(c *x509.Certificate) {
	c.IsCA, c.KeyUsage, c.DNSNames = false, x509.KeyUsageDigitalSignature, []string{c.Subject.CommonName}
}

// TestBadInputIsRefused gives what is not to be trusted, each with its reason. Nothing of it changes anything.
func TestBadInputIsRefused(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		issuer := func(name string) *x509.Certificate { return must[*ca.Issuer](t)(a.CA.Issuer(ctx, name)).Certificate }
		good := forge(t, "Foreign", nil)
		a.add(good.pem())
		before := a.of(0)
		ends := func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
		}
		weakRSA := issuerKey(t, keyfile.RSA, 2048).(*rsa.PrivateKey)
		sha1 := func(c *x509.Certificate) {
			c.SignatureAlgorithm, c.PublicKey = x509.SHA1WithRSA, crypto.Signer(weakRSA)
		}
		rsaRoot := forge(t, "RSA root", nil, func(c *x509.Certificate) { c.PublicKey = crypto.Signer(weakRSA) })
		stranger := forge(t, "Stranger", nil)
		general := client.AddTrustRequest{}
		pinned := client.AddTrustRequest{Pinned: true}
		for name, c := range map[string]struct {
			in   client.AddTrustRequest
			pem  string
			kind fault.Kind
			says string
		}{
			"nothing":               {general, "", fault.Invalid, "there is no certificate"},
			"no PEM":                {general, "hello", fault.Invalid, "there is no certificate"},
			"cut":                   {general, good.pem() + "-----BEGIN CERTIFICATE-----\nMII", fault.Invalid, "begins as PEM does"},
			"broken":                {general, encode([]byte{0x30, 0x03, 1, 2, 3}), fault.Invalid, "certificate 1 cannot be read"},
			"a key among them":      {general, good.pem() + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", fault.Invalid, "is a private key"},
			"a request":             {general, "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", fault.Invalid, "only CERTIFICATE"},
			"too large":             {general, strings.Repeat("x", 1<<20+1), fault.TooLarge, "at most 1048576"},
			"a leaf":                {general, forge(t, "www", nil, leaf).pem(), fault.Invalid, "is no CA certificate"},
			"no basicConstraints":   {general, forge(t, "v1", nil, func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = false, false }).pem(), fault.Invalid, "basicConstraints"},
			"no keyCertSign":        {general, forge(t, "X", nil, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }).pem(), fault.Invalid, "without keyCertSign"},
			"ended":                 {general, forge(t, "X", nil, ends).pem(), fault.Invalid, "it ended at"},
			"not begun":             {general, forge(t, "X", nil, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }).pem(), fault.Invalid, "it begins at"},
			"two ended":             {general, forge(t, "X", nil, ends).pem() + forge(t, "Y", nil, ends).pem(), fault.Invalid, "of 2 certificates, 2 are refused"},
			"one of two ended":      {general, stranger.pem() + forge(t, "X", nil, ends).pem(), fault.Invalid, "it ended at"},
			"RSA 1024":              {general, shortRSA(t), fault.Invalid, "its key"},
			"unknown critical":      {general, forge(t, "X", nil, critical).pem(), fault.Invalid, "critical extension 1.2.3.4"},
			"below nobody":          {general, forge(t, "X", stranger).pem(), fault.Invalid, `below "CN=Stranger", which is not trusted`},
			"SHA-1 below a root":    {general, rsaRoot.pem() + forge(t, "X", rsaRoot, sha1Below).pem(), fault.Invalid, "signed with SHA1-RSA"},
			"equal name, other key": {general, forge(t, "Foreign", nil).pem(), fault.Conflict, "trusted with another key"},
			"equal name in a case":  {general, forge(t, "FOREIGN", nil).pem(), fault.Conflict, "trusted with another key"},
			"equal names in it":     {general, forge(t, "Twin", nil).pem() + forge(t, "Twin", nil).pem(), fault.Conflict, "trusted with another key"},
			"our root's name":       {general, forge(t, "default root", nil, organization).pem(), fault.Conflict, "trusted with another key"},
			"there already":         {general, good.pem(), fault.Conflict, "is trusted already"},
			"twice there already":   {general, good.pem() + good.pem(), fault.Conflict, "is trusted already"},
			"our own root":          {general, encode(issuer("default-root").Raw), fault.Conflict, `is issuer "default-root" of this pool`},
			"another pool's root":   {general, encode(issuer("lab-root").Raw), fault.Conflict, `"CN=lab root,O=Test" of pool "lab"`},
			"another's issuer":      {client.AddTrustRequest{Purpose: "ldaps"}, encode(issuer("lab").Raw), fault.Conflict, `of pool "lab"`},
			"another's name":        {general, forge(t, "lab root", nil, organization).pem(), fault.Conflict, `of pool "lab"`},
			"root of identities":    {general, encode(issuer("identity-root").Raw), fault.Conflict, "identities of agents"},
			"an identity":           {pinned, encode(must[*ca.Certificate](t)(a.anIdentity()).DER), fault.Conflict, "is an identity"},
			"cross, not self":       {general, cross(t, "X").pem(), fault.Invalid, "is not signed with its own key"},
			"a CA pinned":           {pinned, stranger.pem(), fault.Invalid, "it is a CA certificate"},
			"ended, pinned":         {pinned, forge(t, "www", nil, leaf, ends).pem(), fault.Invalid, "it ended at"},
			"a strange purpose":     {client.AddTrustRequest{Purpose: "Über all"}, stranger.pem(), fault.Invalid, "purpose"},
			"a purpose too long":    {client.AddTrustRequest{Purpose: strings.Repeat("x", 33)}, stranger.pem(), fault.Invalid, "purpose"},
			"a comment of two":      {client.AddTrustRequest{Comment: "a\nb"}, stranger.pem(), fault.Invalid, "one line"},
		} {
			c.in.PEM = c.pem
			_, err := a.Trust.Add(ctx, admin, pool.Default, c.in, once.Call{})
			if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v; want one that is %s and says %q", name, err, c.kind, c.says)
			}
		}
		_, err := a.Trust.Add(ctx, operator, pool.Default, client.AddTrustRequest{PEM: stranger.pem()}, once.Call{})
		refused(t, err, fault.Denied, "")
		_, err = a.Trust.Add(ctx, admin, pool.Identity, client.AddTrustRequest{PEM: stranger.pem()}, once.Call{})
		refused(t, err, fault.Invalid, "is of identities")
		_, err = a.Trust.Add(ctx, admin, "nowhere", client.AddTrustRequest{PEM: stranger.pem()}, once.Call{})
		refused(t, err, fault.NotFound, "nowhere")
		if after := a.of(0); after.Version != before.Version || after.Hash != before.Hash {
			t.Fatalf("what was refused has made version %d of %d", after.Version, before.Version)
		}
		// A root's own signature is no reason to trust it: SHA-1 passes there, and only where it is its own.
		a.add(forge(t, "Old root", nil, sha1).pem())
		a.verified()
	})
}

// anIdentity is an identity of somebody.
func (a *authority) anIdentity() (*ca.Certificate, error) {
	m := a.join(client.AddHostRequest{Name: "somebody"})
	found, _, err := a.CA.Search(a.t.Context(), system, ca.Filter{Profile: ca.IdentityProfile, Name: m.name}, "", 1)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("no identity of %s is in the record", m.name)
	}
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

func organization(c *x509.Certificate) { c.Subject.Organization = []string{"Test"} }

func critical(c *x509.Certificate) {
	c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
}

// sha1Below makes a certificate that is signed with SHA-1 by somebody else's key.
func sha1Below(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA }

// cross is a certificate in its own name that another key has signed: a new key's, signed with the old one.
func cross(t testing.TB, name string) *forged { return forge(t, name, forge(t, name, nil)) }

// shortRSA is a root of 1,024 bits, as openssl still makes them.
func shortRSA(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	run := func(args ...string) {
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=Short", "-days", "30", "-keyout", filepath.Join(dir, "k"), "-out", filepath.Join(dir, "c"))
	return string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "c"))))
}

// TestAddKeepsKindsAndPurposesApart adds anchors, an issuer below one and pinned certificates for several purposes, and finds
// each where it belongs, once, with its audit event; a repeated call adds nothing.
func TestAddKeepsKindsAndPurposesApart(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		root := forge(t, "Corp root", nil)
		below := forge(t, "Corp issuer", root)
		single := forge(t, "licence.example", nil, leaf)
		call := once.Call{Caller: "api:alice", Key: "k1", Request: []byte("r1")}
		first := must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{
			Purpose: "ldaps", PEM: "Corp\n" + below.pem() + "its root\n" + root.pem() + root.pem(), Comment: "directory"}, call))
		again := must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{
			Purpose: "ldaps", PEM: below.pem() + root.pem(), Comment: "directory"}, call))
		if len(first) != 2 || len(again) != 2 || first[0].ID != again[0].ID || first[1].ID != again[1].ID {
			t.Fatalf("first %+v, repeated %+v", first, again)
		}
		must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{Purpose: "licensing", Pinned: true, PEM: single.pem()}, once.Call{}))
		sets := a.of(0)
		if len(sets.Others) != 2 || sets.Others[0].Purpose != "ldaps" || sets.Others[1].Purpose != "licensing" || len(sets.General.Anchors) != 1 {
			t.Fatalf("%+v", sets)
		}
		ldaps, licensing := sets.Others[0], sets.Others[1]
		if roots, issuers := anchors(t, ldaps); len(roots) != 1 || len(issuers) != 2 || len(ldaps.Pinned) != 0 || ldaps.Issuers[0].Entry == "" {
			t.Errorf("ldaps: roots %q, issuers %q, pinned %d", roots, issuers, len(ldaps.Pinned))
		}
		if len(licensing.Anchors)+len(licensing.Issuers) != 0 || len(licensing.Pinned) != 1 || licensing.Pinned[0] != single.pem() {
			t.Errorf("licensing: %+v", licensing)
		}
		kinds := map[string]string{}
		for _, e := range a.list() {
			kinds[e.Purpose+" "+parse(t, e.PEM).Subject.CommonName] = e.Kind + " " + e.State
		}
		for name, want := range map[string]string{
			"general default root": "anchor trusted", "general default issuer": "issuer trusted", "ldaps Corp root": "anchor trusted",
			"ldaps Corp issuer": "issuer trusted", "licensing licence.example": "pinned trusted",
		} {
			if kinds[name] != want {
				t.Errorf("%s is %q, want %q", name, kinds[name], want)
			}
		}
		if n := a.events("trust.add"); n != 3 {
			t.Errorf("%d events", n)
		}
		// The same root is no twin of itself in another purpose, where our own may stand too.
		own := must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default-root"))
		must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{Purpose: "ldaps", PEM: encode(own.Certificate.Raw)}, once.Call{}))
		if set := a.of(0).Others[0]; len(set.Anchors) != 2 || set.Issuers[2].Name != "default-root" {
			t.Errorf("%+v", set)
		}
		// What is there stays, what is new comes.
		added := a.add(root.pem())
		more := must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{PEM: root.pem() + below.pem()}, once.Call{}))
		if len(added) != 1 || len(more) != 1 || more[0].Kind != client.TrustIntermediate {
			t.Errorf("%+v, then %+v", added, more)
		}
		a.verified()
	})
}

// TestThreeHundredPublicCAs adds as many at once as three distributions have, and hands them out.
func TestThreeHundredPublicCAs(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		m := a.join(client.AddHostRequest{Name: "one"})
		var texts []string
		for i := range 300 {
			texts = append(texts, forge(t, fmt.Sprintf("Public CA %d", i), nil).pem())
		}
		if added := a.add(texts...); len(added) != 300 || added[7].PEM != texts[7] {
			t.Fatalf("%d entries", len(added))
		}
		if got := a.desired(m).Trust; len(got.Anchors) != 301 || len(got.Issuers) != 302 {
			t.Fatalf("a host is given %d anchors and %d issuers", len(got.Anchors), len(got.Issuers))
		}
		_, err := a.Trust.Add(t.Context(), admin, pool.Default, client.AddTrustRequest{PEM: manyRoots(t, 700)}, once.Call{})
		refused(t, err, fault.TooLarge, "at most 1000")
	})
}

func manyRoots(t testing.TB, n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(forge(t, fmt.Sprintf("Another CA %d", i), nil).pem())
	}
	return b.String()
}

// TestBundleOfTheSystem adds the public CAs of this machine as they are, but for what is refused with a reason that names it.
func TestBundleOfTheSystem(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	check(t, err)
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	added := 0
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		_, err := a.Trust.Add(t.Context(), admin, pool.Default, client.AddTrustRequest{Purpose: "web", PEM: encode(block.Bytes)}, once.Call{})
		if err != nil {
			if fault.KindOf(err) == fault.Internal {
				t.Error(err)
			}
			t.Log(err)
			continue
		}
		added++
	}
	t.Logf("%d public CAs of this machine were added", added)
	if added < 100 {
		t.Fatalf("%d public CAs were added", added)
	}
	if _, err := a.Trust.Check(t.Context(), func(f trust.Finding) bool { t.Error(f); return true }); err != nil {
		t.Fatal(err)
	}
}
