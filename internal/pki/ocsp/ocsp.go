// Package ocsp reads OCSP requests and builds the answers: RFC 6960, with the nonce of RFC 9654 and, where it narrows
// them, RFC 5019.
//
// Divergences:
//   - A request's signature is read and not checked. RFC 6960 §4.1.2 lets a responder demand one; ours answers everybody,
//     so a signature would decide nothing.
//   - An issuer that the responder cannot speak for is answered with the unsigned error unauthorized (RFC 5019 §2.2.3),
//     and not with a signed unknown, which a foreign responder could not have signed either.
//   - Requests are limited to MaxRequest octets and MaxCertIDs certificates; beyond, they are malformed.
//   - A nonce of 0 or of more than 128 octets makes a request malformed (RFC 9654 §2.1).
//   - Of the request extensions only the nonce has an effect; unknown critical ones make the request malformed.
//
// Nothing here does I/O. A Responder never changes and may be used by many goroutines.
package ocsp

import (
	"crypto"
	_ "crypto/sha1" // linked in, because clients name issuers by it (RFC 5019 §2.1.1)
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
)

// Limits of a request.
const (
	MaxRequest = 32 << 10
	MaxCertIDs = 100
	MaxNonce   = 128 // RFC 9654 §2.1
)

// Media types of RFC 6960 appendix A.
const (
	RequestType  = "application/ocsp-request"
	ResponseType = "application/ocsp-response"
)

// ResponseStatus is the outermost status of a response. All but Successful are unsigned.
type ResponseStatus uint8

// The statuses of RFC 6960 §4.2.1.
const (
	Successful       ResponseStatus = 0
	MalformedRequest ResponseStatus = 1
	InternalError    ResponseStatus = 2
	TryLater         ResponseStatus = 3
	SigRequired      ResponseStatus = 5
	Unauthorized     ResponseStatus = 6
)

func (s ResponseStatus) String() string {
	switch s {
	case Successful:
		return "successful"
	case MalformedRequest:
		return "malformedRequest"
	case InternalError:
		return "internalError"
	case TryLater:
		return "tryLater"
	case SigRequired:
		return "sigRequired"
	case Unauthorized:
		return "unauthorized"
	default:
		return fmt.Sprintf("responseStatus %d", uint8(s))
	}
}

// CertStatus is what is said of one certificate.
type CertStatus uint8

// The statuses of RFC 6960 §2.2.
const (
	Good CertStatus = iota
	Revoked
	Unknown
)

func (s CertStatus) String() string {
	switch s {
	case Good:
		return "good"
	case Revoked:
		return "revoked"
	default:
		return "unknown"
	}
}

// CertID names a certificate by its issuer's hashes and its serial.
type CertID struct {
	Raw            []byte // the whole element, to be echoed octet for octet
	Hash           crypto.Hash
	IssuerNameHash []byte
	IssuerKeyHash  []byte
	Serial         *big.Int
}

// Hashes lists the hash functions that a CertID may use.
func Hashes() []crypto.Hash {
	return []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512}
}

// IssuerHashes computes the two hashes by which a CertID names an issuer (RFC 6960 §4.1.1).
func IssuerHashes(h crypto.Hash, issuer *x509.Certificate) (name, key []byte, err error) {
	bits, err := publicKeyBits(issuer)
	if err != nil {
		return nil, nil, err
	}
	return sum(h, issuer.RawSubject), sum(h, bits), nil
}

func sum(h crypto.Hash, octets []byte) []byte {
	w := h.New()
	w.Write(octets)
	return w.Sum(nil)
}

// publicKeyBits is the content of the subjectPublicKey BIT STRING, without its count of unused bits.
func publicKeyBits(c *x509.Certificate) ([]byte, error) {
	var spki struct {
		Algorithm asn1.RawValue
		PublicKey asn1.BitString
	}
	if rest, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &spki); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("public key of %q is not DER", c.Subject)
	}
	return spki.PublicKey.RightAlign(), nil
}

var (
	oidBasic           = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidNonce           = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	oidAcceptable      = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 4}
	oidArchiveCutoff   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 6}
	oidServiceLocator  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 7}
	oidPreferredSigAlg = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 8}
)

// hashOf finds the hash function of an object identifier; 0 where it is none of ours.
func hashOf(id asn1.ObjectIdentifier) crypto.Hash {
	switch id.String() {
	case "1.3.14.3.2.26":
		return crypto.SHA1
	case "2.16.840.1.101.3.4.2.1":
		return crypto.SHA256
	case "2.16.840.1.101.3.4.2.2":
		return crypto.SHA384
	case "2.16.840.1.101.3.4.2.3":
		return crypto.SHA512
	default:
		return 0
	}
}
