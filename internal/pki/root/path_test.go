package root

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// maker makes CA certificates as others make them.
type maker struct {
	t      *testing.T
	serial int64
}

func (m *maker) key() crypto.Signer {
	m.t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	return key
}

// sign makes a CA certificate; by itself without one that is above it.
func (m *maker) sign(name string, of, by crypto.Signer, above *x509.Certificate, change func(*x509.Certificate)) *x509.Certificate {
	m.t.Helper()
	m.serial++
	c := &x509.Certificate{SerialNumber: big.NewInt(m.serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, MaxPathLen: -1}
	change(c)
	if above == nil {
		above = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, above, of.Public(), by)
	if err != nil {
		m.t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return parsed
}

// TestPathIsJudgedByWhatIsNewInIt: what stood above the certificate before is told of and stays; the same in what is new is refused.
func TestPathIsJudgedByWhatIsNewInIt(t *testing.T) {
	m := &maker{t: t}
	topKey, midKey, subKey := m.key(), m.key(), m.key()
	none := func(*x509.Certificate) {}
	unknown := func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}}}
	}
	ended := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	short := func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }
	for _, c := range []struct {
		name     string
		top, mid func(*x509.Certificate)
		says     string // of what stood there, as a warning, and of what is new as a refusal
	}{
		{"an unknown critical extension", none, unknown, "1.3.6.1.4.1.99999.1"},
		{"in the root", unknown, none, "1.3.6.1.4.1.99999.1"},
		{"a root that ended", ended, none, "and not now"},
		{"a middle that ended", none, ended, "and not now"},
		{"a root that permits no middle", short, none, "too many intermediates"},
	} {
		top := m.sign("Top", topKey, topKey, nil, c.top)
		mid := m.sign("Middle", midKey, topKey, top, c.mid)
		before, after := m.sign("Sub", subKey, midKey, mid, none), m.sign("Sub", subKey, midKey, mid, none)
		above := []*x509.Certificate{mid, top}
		path := func(c *x509.Certificate) []*x509.Certificate { return append([]*x509.Certificate{c}, above...) }
		warnings, err := CheckPath(path(after), path(before), time.Now())
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], c.says) {
			t.Errorf("%s stood there: %q, %v", c.name, warnings, err)
		}
		if _, err := CheckPath(path(after), []*x509.Certificate{before}, time.Now()); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s is new: %v", c.name, err)
		}
		bad := m.sign("Sub", subKey, midKey, mid, unknown)
		if _, err := CheckPath(path(bad), path(before), time.Now()); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `"CN=Sub"`) {
			t.Errorf("%s stood there, and the certificate itself is one that nobody takes: %v", c.name, err)
		}
	}
	// A path that was good and is not by what is new in it.
	top := m.sign("Top", topKey, topKey, nil, none)
	mid := m.sign("Middle", midKey, topKey, top, none)
	narrow := m.sign("Middle", midKey, topKey, top, short)
	before, below := m.sign("Sub", subKey, midKey, mid, none), m.sign("Sub", subKey, midKey, mid, none)
	constrained := m.sign("Top", topKey, topKey, nil, short)
	if _, err := CheckPath([]*x509.Certificate{below, narrow, constrained}, []*x509.Certificate{before, narrow, top}, time.Now()); !fault.Is(err, fault.Invalid) {
		t.Errorf("under a root that permits none: %v", err)
	}
	if warnings, err := CheckPath([]*x509.Certificate{below, mid, top}, []*x509.Certificate{before, mid, top}, time.Now()); err != nil || len(warnings) > 0 {
		t.Errorf("nothing is wrong, and told is %q, %v", warnings, err)
	}
}

// TestSignedAgainSaysWhatWasSaid: a certificate that is made once more is not held to lints that the one before fails under the same root.
func TestSignedAgainSaysWhatWasSaid(t *testing.T) {
	m := &maker{t: t}
	topKey, subKey := m.key(), m.key()
	long := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(20 * 365 * 24 * time.Hour) }
	r := &Root{Certificate: m.sign("Top", topKey, topKey, nil, func(c *x509.Certificate) { long(c); c.MaxPathLen = 1 }), Signer: topKey}
	before := m.sign("Sub", subKey, topKey, r.Certificate, func(c *x509.Certificate) { c.KeyUsage, c.SubjectKeyId = 0, []byte("sub") })
	after, err := r.RenewIssuer(before, 365*24*time.Hour, cert.Issuer{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if after.KeyUsage != 0 || after.MaxPathLen != before.MaxPathLen || !after.NotAfter.After(before.NotAfter) {
		t.Errorf("it says %d, %d, until %s", after.KeyUsage, after.MaxPathLen, after.NotAfter)
	}
}
