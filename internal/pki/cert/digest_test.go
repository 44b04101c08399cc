package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
)

func TestSignDigestAgreesWithSign(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := ECDSAWithSHA384.Hash().New()
	h.Write([]byte("message"))
	signature, err := ECDSAWithSHA384.SignDigest(key, h.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := ECDSAWithSHA384.Verify(key.Public(), []byte("message"), signature); err != nil {
		t.Fatal(err)
	}
	if a, err := ParseAlgorithmIdentifier(ECDSAWithSHA384.Identifier()); a != ECDSAWithSHA384 || err != nil {
		t.Fatalf("its identifier is read as %v, %v", a, err)
	}
	if _, err := ParseAlgorithmIdentifier(nil); err == nil || SignatureAlgorithm(0).Hash() != 0 {
		t.Fatal("no algorithm passes as one")
	}
}
