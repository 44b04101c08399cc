package doctor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/finding"
)

func collect(t *testing.T, seq finding.Seq) []finding.Finding {
	t.Helper()
	var all []finding.Finding
	for f, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	return all
}

// want finds a finding of the given check and level whose message holds text.
func want(t *testing.T, all []finding.Finding, level finding.Level, check, text string) {
	t.Helper()
	for _, f := range all {
		if f.Level == level && f.Check == check && strings.Contains(f.Message, text) {
			return
		}
	}
	t.Errorf("no %s of %s with %q among %v", level, check, text, all)
}

func selfSigned(t *testing.T, change func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host1"}, DNSNames: []string{"host1"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), BasicConstraintsValid: true,
	}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed, key
}

func TestFile(t *testing.T) {
	good, key := selfSigned(t, func(*x509.Certificate) {})
	expired, _ := selfSigned(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	future, _ := selfSigned(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
	ending, _ := selfSigned(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(5 * 24 * time.Hour) })
	nameless, _ := selfSigned(t, func(c *x509.Certificate) { c.DNSNames = nil })
	_, otherKey := selfSigned(t, func(*x509.Certificate) {})
	pem := keyfile.EncodeCertificates
	keyPEM := func(k *ecdsa.PrivateKey) []byte {
		text, err := keyfile.EncodePKCS8(k)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for name, c := range map[string]struct {
		content     []byte
		mode        os.FileMode
		level       finding.Level
		check, text string
	}{
		"good":      {pem(good), 0o644, finding.OK, "file.validity", "valid until"},
		"expired":   {pem(expired), 0o644, finding.Error, "file.validity", "expired"},
		"future":    {pem(future), 0o644, finding.Error, "file.validity", "not valid before"},
		"ending":    {pem(ending), 0o644, finding.Warning, "file.validity", "ends in"},
		"nameless":  {pem(nameless), 0o644, finding.Warning, "file.names", "no subjectAltName"},
		"order":     {append(pem(good), pem(future)...), 0o644, finding.OK, "file.order", "path of 2"},
		"pair":      {append(pem(good), keyPEM(key)...), 0o600, finding.OK, "file.pair", "belongs"},
		"no pair":   {append(pem(good), keyPEM(otherKey)...), 0o600, finding.Error, "file.pair", "does not belong"},
		"wide":      {keyPEM(key), 0o644, finding.Error, "file.mode", "0644"},
		"narrow":    {keyPEM(key), 0o640, finding.OK, "file.mode", "0640"},
		"garbage":   {[]byte("hello"), 0o644, finding.Error, "file", "could not look"},
		"empty":     {nil, 0o644, finding.Error, "file", "could not look"},
		"truncated": {pem(good)[:100], 0o644, finding.Error, "file", "could not look"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, c.content, c.mode); err != nil {
				t.Fatal(err)
			}
			want(t, collect(t, File(path, time.Now())), c.level, c.check, c.text)
		})
	}
	want(t, collect(t, File(filepath.Join(t.TempDir(), "none"), time.Now())), finding.Error, "file", "no such file")
}

func TestIssuersAndTheirCRLs(t *testing.T) {
	now := time.Now()
	year := 365 * 24 * time.Hour
	n := &Node{OfflineWarning: 60 * 24 * time.Hour}
	for name, c := range map[string]struct {
		state       IssuerState
		level       finding.Level
		check, text string
	}{
		"fine":        {IssuerState{Online: true, NotAfter: now.Add(year), NextUpdate: now.Add(time.Hour)}, finding.OK, "issuer.crl", "fresh"},
		"stale":       {IssuerState{Online: true, NotAfter: now.Add(year), NextUpdate: now.Add(-time.Hour)}, finding.Error, "issuer.crl", "past nextUpdate"},
		"none":        {IssuerState{Online: true, NotAfter: now.Add(year)}, finding.Error, "issuer.crl", "no CRL"},
		"offline 59":  {IssuerState{NotAfter: now.Add(year), NextUpdate: now.Add(59 * 24 * time.Hour)}, finding.Warning, "issuer.crl", "offline root"},
		"offline 61":  {IssuerState{NotAfter: now.Add(year), NextUpdate: now.Add(61 * 24 * time.Hour)}, finding.OK, "issuer.crl", "fresh"},
		"expired":     {IssuerState{Online: true, NotAfter: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}, finding.Error, "issuer", "expired"},
		"ends":        {IssuerState{Online: true, NotAfter: now.Add(100 * 24 * time.Hour), NextUpdate: now.Add(time.Hour)}, finding.Warning, "issuer", "ends on"},
		"pending":     {IssuerState{Online: true, Pending: true}, finding.Warning, "issuer", "waits"},
		"retired old": {IssuerState{Online: true, Retired: true, NotAfter: now.Add(-year), NextUpdate: now.Add(time.Hour)}, finding.OK, "issuer.crl", "fresh"},
	} {
		t.Run(name, func(t *testing.T) {
			var all []finding.Finding
			n.Issuer = func(context.Context) ([]IssuerState, error) { return []IssuerState{c.state}, nil }
			if err := n.issuers(t.Context(), now, func(f finding.Finding) { all = append(all, f) }); err != nil {
				t.Fatal(err)
			}
			want(t, all, c.level, c.check, c.text)
		})
	}
}
