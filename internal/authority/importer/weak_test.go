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

// The records of a large CA may all have the same flaw: what is said of it stays short.
func TestWarningsAreBounded(t *testing.T) {
	c := new(CA)
	for i := range 10 * maxWarnings {
		c.warn("serial %d", i)
	}
	b := newBook(c)
	b.weak = 3
	b.close()
	if n := len(c.Warnings); n != maxWarnings+2 || c.Warnings[n-1] != "450 more warnings are not shown" || c.Warnings[0][:2] != "3 " {
		t.Errorf("%d warnings, from %q to %q", n, c.Warnings[0], c.Warnings[n-1])
	}
}
