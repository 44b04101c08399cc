package prober

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority is a root that issues and revokes.
type authority struct {
	t           testing.TB
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	serial      int64
	revoked     []x509.RevocationListEntry
}

func newAuthority(t testing.TB, name string) *authority {
	a := &authority{t: t, key: newKey(t), serial: 1}
	a.certificate = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId: []byte(name),
	}, nil, &a.key.PublicKey)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (a *authority) sign(template, above *x509.Certificate, key *ecdsa.PublicKey) *x509.Certificate {
	a.t.Helper()
	a.serial++
	template.SerialNumber = big.NewInt(a.serial)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	if above == nil {
		above = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, above, key, a.key)
	must(a.t, err)
	c, err := x509.ParseCertificate(der)
	must(a.t, err)
	return c
}

func (a *authority) crl() []byte {
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: a.revoked,
	}, a.certificate, a.key)
	must(a.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// replace puts a file in the place of another, as an agent does.
func replace(t testing.TB, path string, parts ...[]byte) {
	t.Helper()
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	must(t, os.WriteFile(path+".new", all, 0o600))
	must(t, os.Rename(path+".new", path))
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// equip gives a consumer a new pair.
func (a *authority) equip(c *Consumer) *x509.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	leaf := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: c.Name}, DNSNames: []string{c.Name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.certificate, &key.PublicKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(a.t, err)
	replace(a.t, c.files.Pair, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pemOf(leaf))
	return leaf
}

func consumers(t testing.TB, n int) []*Consumer {
	t.Helper()
	var all []*Consumer
	for i := range n {
		dir := t.TempDir()
		c, err := Serve(string(rune('a'+i))+".test", "127.0.0.1:0", Files{
			Pair: filepath.Join(dir, "pair.pem"), Trust: filepath.Join(dir, "trust.pem"), CRLs: filepath.Join(dir, "crl.pem"),
		})
		must(t, err)
		t.Cleanup(func() { must(t, c.Close()) })
		all = append(all, c)
	}
	return all
}

// until waits for a count.
func (p *Prober) until(t testing.TB, is func(Count) bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(p.Count()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come to that in 30 s: %v", p.Count())
		}
	}
}

// A rotation in the right order costs no connection, and each wrong order does: the count of zero can be believed.
func TestProberSeesWhatBreaks(t *testing.T) {
	hosts := consumers(t, 3)
	from, to := newAuthority(t, "old"), newAuthority(t, "new")
	each := func(do func(c *Consumer)) {
		for _, c := range hosts {
			do(c)
		}
	}
	trust := func(of ...*authority) func(*Consumer) {
		return func(c *Consumer) {
			var anchors, lists [][]byte
			for _, a := range of {
				anchors, lists = append(anchors, pemOf(a.certificate)), append(lists, a.crl())
			}
			replace(t, c.files.CRLs, lists...)
			replace(t, c.files.Trust, anchors...)
		}
	}
	if err := hosts[0].Ready(); err == nil {
		t.Fatal("a consumer without files is ready")
	}
	each(trust(from))
	each(func(c *Consumer) { from.equip(c) })
	each(func(c *Consumer) { must(t, c.Ready()) })

	p := Start(hosts, 4, 0)
	step := func(do func()) {
		do()
		now := p.Count().Rounds
		p.until(t, func(c Count) bool { return c.Rounds > now+2 })
	}
	step(func() {})
	step(func() { each(trust(from, to)) })
	step(func() { each(func(c *Consumer) { to.equip(c) }) })
	step(func() { each(trust(to)) })
	if seen := p.Stop(); seen.Failed != 0 || seen.Tried < 4*9 {
		t.Fatalf("a rotation in order: %v\n%s", seen, strings.Join(seen.First, "\n"))
	}

	for name, wrong := range map[string]func(){
		"identity before trust": func() { from.equip(hosts[1]) },
		"no CRL of the issuer":  func() { replace(t, hosts[1].files.CRLs, from.crl()) },
		"a revoked certificate": func() {
			leaf := to.equip(hosts[1])
			to.revoked = append(to.revoked, x509.RevocationListEntry{SerialNumber: leaf.SerialNumber, RevocationTime: time.Now()})
			each(trust(to))
		},
	} {
		each(trust(to))
		each(func(c *Consumer) { to.equip(c) })
		wrong()
		p := Start(hosts, 4, 0)
		p.until(t, func(c Count) bool { return c.Rounds > 1 })
		if seen := p.Stop(); seen.Failed == 0 {
			t.Errorf("%s: %v", name, seen)
		}
	}
}
