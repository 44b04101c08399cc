package cert

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"testing"

	"chancery/internal/fault"
)

// TestCheckPublicKey: what every caller may hand in, and what it is told.
func TestCheckPublicKey(t *testing.T) {
	for name, key := range signers(t) {
		pub, err := ParsePublicKey(spkiOf(t, key))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := CheckPublicKey(pub); err != nil || KeyAlgorithm(pub) != name {
			t.Errorf("%s is %s, %v", name, KeyAlgorithm(pub), err)
		}
		if same, ok := pub.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(key.Public()) {
			t.Errorf("%s is read as another key", name)
		}
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := rsaKey().N
	for says, key := range map[string]crypto.PublicKey{
		"curve P-224":             p224.Public(),
		"EC key without a point":  &ecdsa.PublicKey{Curve: elliptic.P256()},
		"without a curve":         &ecdsa.PublicKey{},
		"RSA key of 1024 bits":    &rsa.PublicKey{N: oddBits(1024), E: 65537},
		"RSA key of 16384 bits":   &rsa.PublicKey{N: oddBits(16384), E: 65537},
		"RSA exponent 1:":         &rsa.PublicKey{N: n, E: 1},
		"RSA exponent 65538:":     &rsa.PublicKey{N: n, E: 65538},
		"without a modulus":       &rsa.PublicKey{},
		"31 octets instead of 32": ed25519.PublicKey(make([]byte, 31)),
		"*ecdh.PublicKey":         x25519.Public(),
		"<nil>":                   nil,
	} {
		refused(t, CheckPublicKey(key), fault.Invalid, says)
		if _, err := MarshalPublicKey(key); err == nil {
			t.Errorf("%s: encoded", says)
		}
	}
}

// TestParsePublicKeyStrict: parameters and forms that an algorithm does not have are refused, so that one key has one
// encoding and one identifier.
func TestParsePublicKeyStrict(t *testing.T) {
	good := spkiOf(t, rsaKey())
	for what, spki := range map[string][]byte{
		"nothing":            nil,
		"trailing octets":    append(append([]byte{}, good...), 0),
		"RSA without NULL":   algorithmSPKI(oidRSA),
		"EC without a curve": algorithmSPKI(oidECKey),
		"RSA key of others":  rsaSPKI(new(big.Int), new(big.Int)),
	} {
		if key, err := ParsePublicKey(spki); err == nil {
			t.Errorf("%s: read as %v", what, key)
		} else {
			refused(t, err, fault.Invalid)
		}
	}
}
