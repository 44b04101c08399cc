package importer

import (
	"crypto"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"testing"

	"chancery/internal/pki/keyfile"
)

// Go does not verify MD5 any more, but an old root's signature by itself must be told from a wrong one.
func TestMD5Signature(t *testing.T) {
	key, err := keyfile.Generate(keyfile.RSA2048, 0)
	if err != nil {
		t.Fatal(err)
	}
	sum := md5.Sum([]byte("signed"))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key.(*rsa.PrivateKey), crypto.MD5, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	issuer := &x509.Certificate{PublicKey: key.Public()}
	if err := verifySignature(issuer, x509.MD5WithRSA, []byte("signed"), signature); !errors.Is(err, errWeak) {
		t.Errorf("a right MD5 signature: %v", err)
	}
	if err := verifySignature(issuer, x509.MD5WithRSA, []byte("other"), signature); err == nil || errors.Is(err, errWeak) {
		t.Errorf("a wrong MD5 signature: %v", err)
	}
}
