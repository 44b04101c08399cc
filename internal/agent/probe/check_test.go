package probe

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
)

// libvirtPlan is what the recipe for an old libvirtd comes to, as far as Check reads it.
func libvirtPlan() (*recipe.Plan, recipe.PlannedCertificate) {
	c := recipe.PlannedCertificate{
		ID: "main", Algorithm: "rsa-3072", Names: []string{"dns:localhost", "ip:127.0.0.1"}, Usages: []string{"serverAuth"},
		KeyUsages: []string{"digitalSignature", "keyEncipherment"},
	}
	return &recipe.Plan{
		Recipe: "libvirt-server", Certificates: []recipe.PlannedCertificate{c},
		Trust: recipe.Trust{Intermediates: true, CRLs: true, MaxCertificates: 16, MaxBytes: 64 << 10},
		Files: []recipe.PlannedFile{
			{Path: "/etc/pki/CA/cacert.pem", Content: []string{"anchors"}}, {Path: "/etc/pki/CA/cacrl.pem", Content: []string{"crls"}},
			{Path: "/etc/pki/libvirt/servercert.pem", Content: []string{"path"}}, {Path: "/etc/pki/libvirt/private/serverkey.pem", Content: []string{"key"}},
		},
	}, c
}

// revoke signs a CRL of an issuer.
func revoke(t *testing.T, issuer *holder, change func(*crl.Spec), serials ...*big.Int) []byte {
	t.Helper()
	spec := &crl.Spec{Issuer: issuer.cert, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour), Number: big.NewInt(7)}
	if change != nil {
		change(spec)
	}
	var entries []crl.Entry
	for _, s := range serials {
		entries = append(entries, crl.Entry{Serial: s, RevokedAt: time.Now().Add(-time.Hour), Reason: crl.KeyCompromise})
	}
	der, err := crl.Encode(spec, entries, issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// material is all that is right for libvirtPlan.
func (o *office) material(t *testing.T, h *holder) *Material {
	t.Helper()
	return &Material{
		Key: h.key, Path: h.path, Anchors: o.roots(), Issuers: []*x509.Certificate{o.root.cert, o.issuer.cert},
		CRLs: [][]byte{revoke(t, o.root, nil), revoke(t, o.issuer, nil)}, Authority: o.root.cert.Subject.CommonName,
	}
}

func encipher(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }

func TestCheck(t *testing.T) {
	o, stranger := newOffice(t), newOffice(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	elliptic256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	names := server("localhost", "127.0.0.1")
	leaf := func(changes ...func(*x509.Certificate)) *holder {
		return issueFor(t, o.issuer, key, "localhost", append([]func(*x509.Certificate){names, encipher}, changes...)...)
	}
	good := leaf()
	oldRoot := issue(t, nil, "old root", ca, expired)
	earlyRoot := issue(t, nil, "early root", ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })
	noSign := issue(t, nil, "no signer", ca, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	weakIssuer := issueFor(t, o.root, weak, "weak issuer", ca)
	cases := []struct {
		name   string
		change func(m *Material, p *recipe.Plan, c *recipe.PlannedCertificate)
		want   []string // of the refusal; nil: it passes
	}{
		{name: "right"},
		{name: "no keyUsage at all passes", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Path = leaf(func(c *x509.Certificate) { c.KeyUsage = 0 }).path
		}},
		{name: "a later consumer takes ECDSA without keyEncipherment", change: func(m *Material, _ *recipe.Plan, c *recipe.PlannedCertificate) {
			h := issueFor(t, o.issuer, elliptic256, "localhost", names)
			m.Key, m.Path, c.Algorithm, c.KeyUsages = h.key, h.path, "ecdsa-p256", nil
		}},
		{name: "no certificate", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) { m.Path = nil }, want: []string{"there is no certificate"}},
		{name: "no key", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) { m.Key = nil }, want: []string{"there is no key"}},
		{name: "another's key", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) { m.Key = elliptic256 }, want: []string{"key"}},
		{name: "weak key", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			h := issueFor(t, o.issuer, weak, "localhost", names, encipher)
			m.Key, m.Path = h.key, h.path
		}, want: []string{"1024"}},
		{name: "weak issuer", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			h := issueFor(t, weakIssuer, key, "localhost", names, encipher)
			m.Path, m.Issuers = h.path, []*x509.Certificate{o.root.cert, weakIssuer.cert}
			m.CRLs = [][]byte{revoke(t, o.root, nil)}
		}, want: []string{"the key of CN=weak issuer,O=probe: "}},
		{name: "key of another family", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			h := issueFor(t, o.issuer, elliptic256, "localhost", names, encipher)
			m.Key, m.Path = h.key, h.path
		}, want: []string{"the key is ecdsa-p256", "takes rsa-3072"}},
		{name: "expired", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) { m.Path = leaf(expired).path }, want: []string{"expired at"}},
		{name: "not valid yet", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Path = leaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }).path
		}, want: []string{"not valid before"}},
		{name: "a CA as a leaf", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Path = leaf(func(c *x509.Certificate) { c.IsCA = true }).path
		}, want: []string{"is a CA's"}},
		{name: "no keyEncipherment for an old consumer", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Path = leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }).path
		}, want: []string{"needs keyEncipherment"}},
		{name: "no digitalSignature", change: func(m *Material, _ *recipe.Plan, c *recipe.PlannedCertificate) {
			c.KeyUsages = nil
			m.Path = leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }).path
		}, want: []string{"needs digitalSignature"}},
		{name: "another usage", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Path = leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }).path
		}, want: []string{"needs serverAuth"}},
		{name: "any usage", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Path = leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }).path
		}, want: []string{"needs serverAuth by name"}},
		{name: "one usage of two", change: func(m *Material, _ *recipe.Plan, c *recipe.PlannedCertificate) {
			c.Usages = append(c.Usages, "clientAuth")
		},
			want: []string{"needs clientAuth"}},
		{name: "a name is missing", change: func(_ *Material, _ *recipe.Plan, c *recipe.PlannedCertificate) {
			c.Names = append(c.Names, "dns:runsc", "ip:10.1.2.3")
		}, want: []string{"not for dns:runsc, ip:10.1.2.3", "dns:localhost, ip:127.0.0.1"}},
		{name: "a name of the probe is missing", change: func(_ *Material, p *recipe.Plan, _ *recipe.PlannedCertificate) {
			p.Probe = &recipe.Probe{Names: []string{"runsc"}}
		}, want: []string{"not for runsc"}},
		{name: "intermediate missing", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) { m.Path = m.Path[:1] },
			want: []string{"an intermediate is missing"}},
		{name: "wrong order", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Path = []*x509.Certificate{good.cert, o.root.cert, o.issuer.cert}
		}, want: []string{"not in order"}},
		{name: "issuer not in the trust file", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Issuers = []*x509.Certificate{o.root.cert}
		}, want: []string{"is not in the trust file"}},
		{name: "the path's issuer need not be in the trust file of others", change: func(m *Material, p *recipe.Plan, _ *recipe.PlannedCertificate) {
			p.Trust.Intermediates = false
		}},
		{name: "another authority", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) { m.Anchors = stranger.roots() },
			want: []string{"no root of the trust set"}},
		{name: "no trust", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) { m.Anchors, m.Issuers = nil, nil },
			want: []string{"the trust set is empty"}},
		{name: "an expired root beside", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Anchors = append(m.Anchors, oldRoot.cert)
		},
			want: []string{"old root", "expired at"}},
		{name: "a root of tomorrow beside", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Anchors = append(m.Anchors, earlyRoot.cert)
		}, want: []string{"early root", "not valid before"}},
		{name: "a leaf in the trust set", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Anchors = append(m.Anchors, good.cert)
		},
			want: []string{"do not say CA:TRUE"}},
		{name: "a CA that may not sign", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Anchors = append(m.Anchors, noSign.cert)
		},
			want: []string{"lacks keyCertSign"}},
		{name: "expired roots do not matter where no trust is placed", change: func(m *Material, p *recipe.Plan, _ *recipe.PlannedCertificate) {
			m.Anchors, p.Files = append(m.Anchors, oldRoot.cert), p.Files[2:]
		}},
		{name: "too many CAs", change: func(m *Material, _ *recipe.Plan, _ *recipe.PlannedCertificate) {
			for range 16 {
				m.Anchors = append(m.Anchors, issue(t, nil, "another", ca).cert)
			}
		}, want: []string{"has 18 certificates, and this consumer reads 16"}},
		{name: "too long a file", change: func(m *Material, p *recipe.Plan, _ *recipe.PlannedCertificate) { p.Trust.MaxBytes = 100 },
			want: []string{"the trust file has", "the certification path has", "reads 100"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := o.material(t, good)
			plan, planned := libvirtPlan()
			if c.change != nil {
				c.change(m, plan, &planned)
			}
			err := Check(m, plan, planned, time.Now())
			if c.want == nil && err != nil {
				t.Fatal(err)
			}
			if c.want != nil {
				wantError(t, err, append(c.want, "certificate main of recipe libvirt-server")...)
				if !fault.Is(err, fault.Invalid) {
					t.Errorf("a %s, not a refusal", fault.KindOf(err))
				}
			}
		})
	}
}

func TestCheckReadsTheInstantItIsGiven(t *testing.T) {
	o := newOffice(t)
	m := o.material(t, o.leaf)
	plan, c := libvirtPlan()
	c.Algorithm, c.KeyUsages = "", nil
	if err := Check(m, plan, c, time.Now()); err != nil {
		t.Fatal(err)
	}
	wantError(t, Check(m, plan, c, time.Now().Add(25*time.Hour)), "expired at")
	wantError(t, Check(m, plan, c, time.Now().Add(-2*time.Hour)), "not valid before")
	wantError(t, Check(m, plan, c, time.Now().Add(2*time.Hour)), "CRL")
}

// TestCheckCRLs: what a consumer must not be given, and what it must.
func TestCheckCRLs(t *testing.T) {
	o := newOffice(t)
	stranger, impostor := issue(t, nil, "a stranger", ca), issue(t, nil, "root "+t.Name(), ca)
	stale := func(s *crl.Spec) {
		s.ThisUpdate, s.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	early := func(s *crl.Spec) { s.ThisUpdate, s.NextUpdate = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour) }
	delta := func(s *crl.Spec) { s.BaseNumber = big.NewInt(3) }
	part := func(s *crl.Spec) {
		s.IDP = &crl.IssuingDistributionPoint{URIs: []string{"http://crl.test/1"}}
	}
	retired := issue(t, o.root, "retired", ca)
	right := func() [][]byte { return [][]byte{revoke(t, o.root, nil), revoke(t, o.issuer, nil)} }
	cases := []struct {
		name string
		crls [][]byte
		want []string
	}{
		{"right", right(), nil},
		{"none", nil, []string{"no CRL in force of CN=issuer", "no CRL in force of CN=root"}},
		{"not of the root", right()[1:], []string{"no CRL in force of CN=root"}},
		{"empty", append(right(), nil), []string{"CRL 3 of 3: it is empty"}},
		{"garbage", append(right(), []byte("-----BEGIN X509 CRL-----")), []string{"CRL 3 of 3"}},
		{"foreign", append(right(), revoke(t, stranger, nil)), []string{"not in the trust set"}},
		{"of an impostor of the same name", append(right(), revoke(t, impostor, nil)), []string{"CRL 3 of 3"}},
		{"stale", [][]byte{revoke(t, o.root, nil), revoke(t, o.issuer, stale)}, []string{"CRL 2 of 2", "no CRL in force of CN=issuer"}},
		{"stale of an issuer that the path does not need", append(right(), revoke(t, retired, stale)), nil},
		{"early of an issuer that the path does not need", append(right(), revoke(t, retired, early)), []string{"CRL 3 of 3"}},
		{"of tomorrow", [][]byte{revoke(t, o.root, nil), revoke(t, o.issuer, early)}, []string{"CRL 2 of 2"}},
		{"delta", [][]byte{revoke(t, o.root, nil), revoke(t, o.issuer, delta)}, []string{"delta CRL"}},
		{"partition", [][]byte{revoke(t, o.root, nil), revoke(t, o.issuer, part)}, []string{"covers only part"}},
		{"another is revoked", [][]byte{revoke(t, o.root, nil), revoke(t, o.issuer, nil, big.NewInt(4))}, nil},
		{"revoked", [][]byte{revoke(t, o.root, nil), revoke(t, o.issuer, nil, o.leaf.cert.SerialNumber)}, []string{"is revoked", "keyCompromise"}},
		{"issuer revoked", [][]byte{revoke(t, o.root, nil, o.issuer.cert.SerialNumber), revoke(t, o.issuer, nil)}, []string{"CN=issuer", "is revoked"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := o.material(t, o.leaf)
			m.Issuers, m.CRLs = append(m.Issuers, retired.cert), c.crls
			plan, planned := libvirtPlan()
			planned.Algorithm, planned.KeyUsages = "", nil
			err := Check(m, plan, planned, time.Now())
			if c.want == nil && err != nil {
				t.Fatal(err)
			}
			if c.want != nil {
				wantError(t, err, c.want...)
			}
		})
	}
}

// TestCheckFlipsNoBit: a CRL and a certificate that were changed on the way are refused wherever the change is.
func TestCheckFlipsNoBit(t *testing.T) {
	o := newOffice(t)
	der := revoke(t, o.issuer, nil, big.NewInt(5))
	issuers := []*x509.Certificate{o.root.cert, o.issuer.cert}
	if _, _, err := CheckCRL(der, issuers, time.Now()); err != nil {
		t.Fatal(err)
	}
	for i := range der {
		bad := slices.Clone(der)
		bad[i] ^= 1
		if _, _, err := CheckCRL(bad, issuers, time.Now()); err == nil {
			t.Fatalf("octet %d of %d may be changed", i, len(der))
		}
	}
}

// TestCheckAgreesWithLibvirtd starts libvirtd on what Check refuses and on what it passes: the daemon must refuse, and
// start, likewise.
func TestCheckAgreesWithLibvirtd(t *testing.T) {
	o := newOffice(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	names := server("localhost", "127.0.0.1")
	leaf := func(issuer *holder, change func(*x509.Certificate)) *holder {
		return issueFor(t, issuer, key, "localhost", names, encipher, change)
	}
	none := func(*x509.Certificate) {}
	onlyClient := func(c *x509.Certificate) {
		critical(c)
		c.ExtraExtensions = []pkix.Extension{{Id: oidExtKeyUsage, Critical: true, Value: []byte{0x30, 0x0a, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2}}}
	}
	cases := []struct {
		name   string
		leaf   *holder
		anchor *holder // beside the right one
		starts bool
	}{
		{"right", leaf(o.issuer, none), nil, true},
		{"expired", leaf(o.issuer, expired), nil, false},
		{"not valid yet", leaf(o.issuer, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), nil, false},
		{"no keyEncipherment", leaf(o.issuer, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), nil, false},
		{"a client's, critical", leaf(o.issuer, onlyClient), nil, false},
		{"a CA", leaf(o.issuer, func(c *x509.Certificate) { c.IsCA = true }), nil, false},
		{"unknown issuer", leaf(issue(t, o.issuer, "hidden", ca), none), nil, false},
		{"an expired CA beside", leaf(o.issuer, none), issue(t, nil, "old", ca, expired), false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := o.material(t, c.leaf)
			plan, planned := libvirtPlan()
			if c.anchor != nil {
				m.Anchors = append(m.Anchors, c.anchor.cert)
			}
			if err := Check(m, plan, planned, time.Now()); (err == nil) != c.starts {
				t.Errorf("Check: %v", err)
			}
			d, err := startLibvirtd(t, c.leaf, shortDir(t), trusted(m, plan.Trust)...)
			if (err == nil) != c.starts {
				t.Errorf("libvirtd: %v", err)
			}
			if err == nil {
				_ = d.Stop()
			} else if strings.Contains(err.Error(), "find ") {
				t.Error(err)
			}
		})
	}
}
