package cert

import (
	"crypto"
	"crypto/rand"
	"fmt"
)

// Hash is what is hashed before signing; 0 for Ed25519, which signs the message itself.
func (a SignatureAlgorithm) Hash() crypto.Hash {
	if !a.known() {
		return 0
	}
	return signatureAlgorithms[a].hash
}

// SignDigest signs what Hash made of a message that is too long to be held, or for Ed25519 the message. The caller chose
// the algorithm by For.
func (a SignatureAlgorithm) SignDigest(signer crypto.Signer, digest []byte) ([]byte, error) {
	signature, err := signer.Sign(rand.Reader, digest, a.Hash())
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", a, err)
	}
	return signature, nil
}

// ParseAlgorithmIdentifier finds the algorithm of a DER AlgorithmIdentifier by its exact octets.
func ParseAlgorithmIdentifier(der []byte) (SignatureAlgorithm, error) {
	if a, ok := algorithmOfIdentifier(der); ok {
		return a, nil
	}
	return 0, fmt.Errorf("signature algorithm %x is not supported", der)
}
