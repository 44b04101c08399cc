package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/finding"
)

// TestLoginThatEnds: a login is to be renewed at two thirds of its life, and what was not is told, first as a warning.
func TestLoginThatEnds(t *testing.T) {
	n := &Node{Dir: datadir.Dir(t.TempDir())}
	if err := n.login(time.Now(), func(f finding.Finding) { t.Errorf("without a login: %+v", f) }); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now().Truncate(time.Second)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "chancery_node1"}, NotBefore: begun, NotAfter: begun.Add(60 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	if err := n.Dir.KeepDatabaseLogin("chancery_node1", text, []string{certificate}, certificate); err != nil {
		t.Fatal(err)
	}
	for after, want := range map[time.Duration]finding.Level{
		0: finding.OK, 49 * time.Hour: finding.OK, 51 * time.Hour: finding.Warning, 61 * time.Hour: finding.Error,
	} {
		told := 0
		err := n.login(begun.Add(after), func(f finding.Finding) {
			told++
			if f.Level != want || f.Object != "chancery_node1" || (f.Hint == "") != (want == finding.OK) {
				t.Errorf("after %s: %+v", after, f)
			}
		})
		if err != nil || told != 1 {
			t.Errorf("after %s: %d findings, %v", after, told, err)
		}
	}
}
