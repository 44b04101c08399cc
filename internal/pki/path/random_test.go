package path_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// randomPath is a certification path with the defects and curiosities that were built into it.
type randomPath struct {
	ders     [][]byte // leaf first, root last
	features []string
}

// has reports whether a feature was built in.
func (p *randomPath) has(feature string) bool { return slices.Contains(p.features, feature) }

func (p *randomPath) String() string { return strings.Join(p.features, " ") }

// certificates parses the path with the standard library; leaf first.
func (p *randomPath) certificates(t *testing.T) []*x509.Certificate {
	t.Helper()
	out := make([]*x509.Certificate, len(p.ders))
	for i, der := range p.ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatalf("%s: certificate %d: %v", p, i, err)
		}
		out[i] = c
	}
	return out
}

func pemOf(ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// pathMaker makes random paths. Keys are drawn from a pool, as making them is not what is tested.
type pathMaker struct {
	r    *mathrand.Rand
	keys []*ecdsa.PrivateKey
	now  time.Time
}

func newPathMaker(t *testing.T, seed uint64) *pathMaker {
	t.Helper()
	m := &pathMaker{r: mathrand.New(mathrand.NewPCG(seed, seed)), now: time.Now().Truncate(time.Second)}
	for range 16 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		m.keys = append(m.keys, key)
	}
	return m
}

// chance is true one time in n.
func (m *pathMaker) chance(n int) bool { return m.r.IntN(n) == 0 }

// serverAuth is the purpose that every path is checked for.
var serverAuth = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}

// path makes path number n: a root, up to three intermediates, and a leaf; each rule of RFC 5280 §6 that a private PKI
// meets is broken now and then, and now and then used in a way that is right.
func (m *pathMaker) path(t *testing.T, n int) *randomPath {
	t.Helper()
	p := &randomPath{}
	intermediates := m.r.IntN(4)
	order := m.r.Perm(len(m.keys))
	var parent *x509.Certificate
	var signer crypto.Signer
	for level := 0; level <= intermediates+1; level++ {
		key := m.keys[order[level]]
		isRoot, isLeaf := level == 0, level == intermediates+1
		c := m.plain(n, level, isLeaf)
		if !isRoot {
			m.spoilCommon(p, c)
		}
		switch {
		case isLeaf:
			m.spoilLeaf(p, c)
		case !isRoot:
			m.spoilIntermediate(p, c, intermediates-level)
		}
		issuer, by := parent, signer
		if isRoot {
			issuer, by = c, key
		} else if m.chance(60) {
			p.features = append(p.features, "signed-by-another-key")
			by = m.keys[order[len(order)-1]]
		}
		if !isRoot && m.chance(80) {
			p.features = append(p.features, "issuer-name-differs")
			other := *issuer
			other.RawSubject, other.Subject = nil, pkix.Name{CommonName: fmt.Sprintf("somebody else %d", n)}
			issuer = &other
		}
		p.ders = slices.Insert(p.ders, 0, m.sign(t, c, issuer, key, by))
		parent, signer = m.parse(t, p.ders[0]), key
	}
	if len(p.features) == 0 {
		p.features = append(p.features, "plain")
	}
	return p
}

// plain is a certificate without a fault.
func (m *pathMaker) plain(n, level int, isLeaf bool) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber:          big.NewInt(int64(n)<<8 | int64(level) + 1),
		Subject:               pkix.Name{Organization: []string{"Paths"}, CommonName: fmt.Sprintf("path %d level %d", n, level)},
		NotBefore:             m.now.Add(-48 * time.Hour),
		NotAfter:              m.now.Add(48 * time.Hour),
		BasicConstraintsValid: true,
	}
	if isLeaf {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, serverAuth
		c.DNSNames = []string{fmt.Sprintf("host%d.fleet.example", n)}
		return c
	}
	c.IsCA, c.MaxPathLen, c.KeyUsage = true, -1, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	return c
}

func (m *pathMaker) spoilCommon(p *randomPath, c *x509.Certificate) {
	switch m.r.IntN(60) {
	case 0:
		p.features = append(p.features, "expired")
		c.NotAfter = m.now.Add(-24 * time.Hour)
	case 1:
		p.features = append(p.features, "not-yet-valid")
		c.NotBefore, c.NotAfter = m.now.Add(72*time.Hour), m.now.Add(96*time.Hour) // NSS forgives a day
	case 2:
		p.features = append(p.features, "unknown-critical-extension")
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}})
	case 3:
		p.features = append(p.features, "unknown-extension")
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 2}, Value: []byte{5, 0}})
	}
}

func (m *pathMaker) spoilLeaf(p *randomPath, c *x509.Certificate) {
	switch m.r.IntN(24) {
	case 0:
		p.features = append(p.features, "leaf-client-only")
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case 1:
		p.features = append(p.features, "leaf-without-eku")
		c.ExtKeyUsage = nil
	case 2:
		p.features = append(p.features, "leaf-any-eku")
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	case 3:
		p.features = append(p.features, "leaf-without-key-usage")
		c.KeyUsage = 0
	case 4:
		p.features = append(p.features, "leaf-ip-name")
		c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, byte(m.r.IntN(256)))}
	case 5:
		p.features = append(p.features, "leaf-foreign-name")
		c.DNSNames = append(c.DNSNames, "host.other.example")
	case 6:
		p.features = append(p.features, "leaf-wildcard")
		c.DNSNames = []string{"*.fleet.example"}
	}
}

// spoilIntermediate is given how many further CA certificates follow below.
func (m *pathMaker) spoilIntermediate(p *randomPath, c *x509.Certificate, below int) {
	switch m.r.IntN(24) {
	case 0:
		p.features = append(p.features, "not-a-ca")
		c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign
	case 1:
		p.features = append(p.features, "ca-without-cert-sign")
		c.KeyUsage = x509.KeyUsageCRLSign
	case 2:
		c.MaxPathLen = m.r.IntN(3)
		c.MaxPathLenZero = c.MaxPathLen == 0
		if c.MaxPathLen < below {
			p.features = append(p.features, "path-too-long")
		} else {
			p.features = append(p.features, "path-length-kept")
		}
	case 3, 4:
		p.features = append(p.features, "permits-fleet-dns")
		c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"fleet.example"}
	case 5:
		p.features = append(p.features, "permits-other-dns")
		c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"other.example"}
	case 6:
		p.features = append(p.features, "excludes-other-dns")
		c.PermittedDNSDomainsCritical, c.ExcludedDNSDomains = true, []string{"other.example"}
	case 7:
		p.features = append(p.features, "permits-some-ip")
		c.PermittedDNSDomainsCritical = true
		c.PermittedIPRanges = []*net.IPNet{{IP: net.IPv4(192, 0, 2, 0).To4(), Mask: net.CIDRMask(25, 32)}}
	case 8:
		p.features = append(p.features, "ca-client-eku")
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case 9:
		p.features = append(p.features, "ca-server-eku")
		c.ExtKeyUsage = serverAuth
	case 10:
		p.features = append(p.features, "ca-without-key-usage")
		c.KeyUsage = 0
	}
}

func (m *pathMaker) sign(t *testing.T, c, issuer *x509.Certificate, key *ecdsa.PrivateKey, by crypto.Signer) []byte {
	t.Helper()
	// CreateCertificate refuses a parent whose key is not the signer's; that is the very fault that we want.
	parent := *issuer
	parent.PublicKey = by.Public()
	der, err := x509.CreateCertificate(rand.Reader, c, &parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (m *pathMaker) parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
