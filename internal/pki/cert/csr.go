package cert

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
)

// CSR is a certification request (RFC 2986) that was parsed strictly and whose signature verifies.
type CSR struct {
	Raw        []byte // the whole request
	RawTBS     []byte // CertificationRequestInfo
	RawSubject []byte
	Subject    Name
	SPKI       []byte // DER SubjectPublicKeyInfo
	PublicKey  crypto.PublicKey
	Algorithm  SignatureAlgorithm

	// What the request asks for in its extensions. A profile decides what of it is granted.
	SAN              []GeneralName
	BasicConstraints *BasicConstraints
	KeyUsage         x509.KeyUsage
	ExtKeyUsage      []asn1.ObjectIdentifier
	Extensions       []Extension // all of them, as they are

	ChallengePassword string
	Attributes        []asn1.ObjectIdentifier // types of all attributes
}
