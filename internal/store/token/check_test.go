package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"testing"
)

// TestWrongSignaturesStay holds what a token might answer, right and with one bit flipped, against what leaves the package.
func TestWrongSignaturesStay(t *testing.T) {
	digest := sha256.Sum256([]byte("to be signed"))
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, s, err := ecdsa.Sign(rand.Reader, ec, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	plain := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	v15, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	pss, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], options)
	if err != nil {
		t.Fatal(err)
	}
	public, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		public crypto.PublicKey
		opts   crypto.SignerOpts
		raw    []byte
	}{
		"ECDSA": {&ec.PublicKey, crypto.SHA256, plain}, "RSA": {&key.PublicKey, crypto.SHA256, v15}, "RSA-PSS": {&key.PublicKey, options, pss},
		"Ed25519": {public, crypto.Hash(0), ed25519.Sign(edwards, digest[:])},
	} {
		if _, err := check(c.public, digest[:], c.opts, c.raw); err != nil {
			t.Errorf("%s: a right signature is refused: %v", name, err)
		}
		for _, at := range []int{0, len(c.raw) / 2, len(c.raw) - 1} {
			wrong := append([]byte(nil), c.raw...)
			wrong[at] ^= 1
			if got, err := check(c.public, digest[:], c.opts, wrong); err == nil || got != nil {
				t.Errorf("%s: a signature with a wrong bit in octet %d leaves", name, at)
			}
		}
		for _, wrong := range [][]byte{nil, {}, c.raw[:len(c.raw)-1], append([]byte{0}, c.raw...)} {
			if _, err := check(c.public, digest[:], c.opts, wrong); err == nil {
				t.Errorf("%s: a signature of %d octets leaves", name, len(wrong))
			}
		}
	}
}
