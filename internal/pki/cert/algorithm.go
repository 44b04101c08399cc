package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"

	"chancery/internal/fault"
)

// SignatureAlgorithm is what certificates, CRLs, OCSP responses and requests are signed with. The zero value stands for
// the default of the key. To add one, add a constant and a row to signatureAlgorithms.
type SignatureAlgorithm uint8

// The signature algorithms.
const (
	ECDSAWithSHA256 SignatureAlgorithm = iota + 1
	ECDSAWithSHA384
	ECDSAWithSHA512
	RSAWithSHA256 // PKCS #1 v1.5, as are the next two
	RSAWithSHA384
	RSAWithSHA512
	Ed25519
)

type keyFamily uint8

const (
	familyRSA keyFamily = iota + 1
	familyECDSA
	familyEd25519
)

// signatureAlgorithms is indexed by SignatureAlgorithm. The identifiers are the DER of RFC 5758 3.2 (no parameters), RFC
// 4055 5 (NULL) and RFC 8410 3 (no parameters).
var signatureAlgorithms = [...]struct {
	name       string
	identifier string // DER
	hash       crypto.Hash
	family     keyFamily
}{
	ECDSAWithSHA256: {"ecdsa-with-SHA256", "\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02", crypto.SHA256, familyECDSA},
	ECDSAWithSHA384: {"ecdsa-with-SHA384", "\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03", crypto.SHA384, familyECDSA},
	ECDSAWithSHA512: {"ecdsa-with-SHA512", "\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04", crypto.SHA512, familyECDSA},
	RSAWithSHA256:   {"sha256WithRSA", "\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00", crypto.SHA256, familyRSA},
	RSAWithSHA384:   {"sha384WithRSA", "\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00", crypto.SHA384, familyRSA},
	RSAWithSHA512:   {"sha512WithRSA", "\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00", crypto.SHA512, familyRSA},
	Ed25519:         {"ed25519", "\x30\x05\x06\x03\x2b\x65\x70", 0, familyEd25519},
}

func (a SignatureAlgorithm) known() bool { return a > 0 && int(a) < len(signatureAlgorithms) }

// String is the algorithm's name.
func (a SignatureAlgorithm) String() string {
	if !a.known() {
		return fmt.Sprintf("signature algorithm %d", uint8(a))
	}
	return signatureAlgorithms[a].name
}

// ParseSignatureAlgorithm reads a name that String writes, without regard to case.
func ParseSignatureAlgorithm(name string) (SignatureAlgorithm, error) {
	for a := ECDSAWithSHA256; a.known(); a++ {
		if strings.EqualFold(a.String(), name) {
			return a, nil
		}
	}
	return 0, fault.New(fault.Invalid, "signature algorithm %q is not known: use ecdsa-with-SHA256, sha256WithRSA, their "+
		"SHA384 and SHA512 forms, or ed25519", name)
}

// Identifier is the DER AlgorithmIdentifier.
func (a SignatureAlgorithm) Identifier() []byte {
	if !a.known() {
		return nil
	}
	return []byte(signatureAlgorithms[a].identifier)
}

func algorithmOfIdentifier(der []byte) (SignatureAlgorithm, bool) {
	for a := ECDSAWithSHA256; a.known(); a++ {
		if string(der) == signatureAlgorithms[a].identifier {
			return a, true
		}
	}
	return 0, false
}

func familyOf(pub crypto.PublicKey) keyFamily {
	switch pub.(type) {
	case *rsa.PublicKey:
		return familyRSA
	case *ecdsa.PublicKey:
		return familyECDSA
	case ed25519.PublicKey:
		return familyEd25519
	}
	return 0
}

// DefaultAlgorithm is the algorithm for a signing key: the hash as strong as the curve, SHA-256 for RSA.
func DefaultAlgorithm(pub crypto.PublicKey) (SignatureAlgorithm, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return RSAWithSHA256, nil
	case *ecdsa.PublicKey:
		switch size := k.Curve.Params().BitSize; {
		case size <= 256:
			return ECDSAWithSHA256, nil
		case size <= 384:
			return ECDSAWithSHA384, nil
		}
		return ECDSAWithSHA512, nil
	case ed25519.PublicKey:
		return Ed25519, nil
	}
	return 0, fault.New(fault.Invalid, "a key of type %T cannot sign here: use RSA, ECDSA or Ed25519", pub)
}

// For returns a, or the key's default where a is 0, and refuses an algorithm that is not of the key's family.
func (a SignatureAlgorithm) For(pub crypto.PublicKey) (SignatureAlgorithm, error) {
	if a == 0 {
		return DefaultAlgorithm(pub)
	}
	if !a.known() || signatureAlgorithms[a].family != familyOf(pub) {
		return 0, fault.New(fault.Invalid, "%s does not fit a key of type %T", a, pub)
	}
	return a, nil
}

// Sign signs tbs. It refuses a signer whose key is of another family.
func (a SignatureAlgorithm) Sign(signer crypto.Signer, tbs []byte) ([]byte, error) {
	if _, err := a.For(signer.Public()); err != nil || a == 0 {
		return nil, fmt.Errorf("sign with %s: the key is of type %T", a, signer.Public())
	}
	hash := signatureAlgorithms[a].hash
	digest := tbs
	if hash != 0 {
		h := hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	signature, err := signer.Sign(rand.Reader, digest, hash)
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", a, err)
	}
	return signature, nil
}

// Verify checks a signature over tbs.
func (a SignatureAlgorithm) Verify(pub crypto.PublicKey, tbs, signature []byte) error {
	if !a.known() || signatureAlgorithms[a].family != familyOf(pub) {
		return fmt.Errorf("%s does not fit a key of type %T", a, pub)
	}
	digest, hash := tbs, signatureAlgorithms[a].hash
	if hash != 0 {
		h := hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	valid := false
	switch k := pub.(type) {
	case *rsa.PublicKey:
		valid = rsa.VerifyPKCS1v15(k, hash, digest, signature) == nil
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(k, digest, signature)
	case ed25519.PublicKey:
		valid = len(k) == ed25519.PublicKeySize && ed25519.Verify(k, tbs, signature)
	}
	if !valid {
		return errors.New("the signature does not verify")
	}
	return nil
}
