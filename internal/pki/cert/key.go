package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"chancery/internal/fault"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// KeyIDMethod says how a subjectKeyIdentifier comes from a key.
type KeyIDMethod uint8

const (
	// KeyIDRFC5280 is the SHA-1 of the subjectPublicKey bits (RFC 5280 4.2.1.2, method 1).
	KeyIDRFC5280 KeyIDMethod = iota
	// KeyIDSPKI is the SHA-1 of the whole SubjectPublicKeyInfo, which certtool uses and prints as the public key ID.
	KeyIDSPKI
	// KeyIDSHA256 is the leftmost 160 bits of the SHA-256 of the subjectPublicKey bits (RFC 7093, method 1).
	KeyIDSHA256
	// KeyIDNone leaves the extension out.
	KeyIDNone
)

// SubjectKeyIDOf computes the identifier of a DER SubjectPublicKeyInfo; it is nil for KeyIDNone and for what is no
// SubjectPublicKeyInfo.
func SubjectKeyIDOf(spki []byte, method KeyIDMethod) []byte {
	if method == KeyIDSPKI {
		sum := sha1.Sum(spki)
		return sum[:]
	}
	_, bits, err := splitSPKI(spki)
	if err != nil || method == KeyIDNone {
		return nil
	}
	if method == KeyIDSHA256 {
		sum := sha256.Sum256(bits)
		return sum[:20]
	}
	sum := sha1.Sum(bits)
	return sum[:]
}

type algorithmIdentifier struct {
	oid        asn1.ObjectIdentifier
	parameters []byte // the DER element, nil when absent
}

func readAlgorithm(in *cryptobyte.String) (algorithmIdentifier, error) {
	var seq cryptobyte.String
	var a algorithmIdentifier
	if !in.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&a.oid) {
		return a, errors.New("an AlgorithmIdentifier is not a DER SEQUENCE that begins with an identifier")
	}
	if !seq.Empty() {
		var content cryptobyte.String
		var tag cbasn1.Tag
		parameters := seq
		if !seq.ReadAnyASN1(&content, &tag) || !seq.Empty() {
			return a, errors.New("an AlgorithmIdentifier has more than one parameter")
		}
		a.parameters = parameters
	}
	return a, nil
}

// splitSPKI returns the algorithm and the key bits of a SubjectPublicKeyInfo (RFC 5280 4.1.2.7).
func splitSPKI(spki []byte) (algorithmIdentifier, []byte, error) {
	input := cryptobyte.String(spki)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() {
		return algorithmIdentifier{}, nil, errors.New("the SubjectPublicKeyInfo is not one DER SEQUENCE")
	}
	algorithm, err := readAlgorithm(&seq)
	if err != nil {
		return algorithm, nil, err
	}
	var bits []byte
	if !seq.ReadASN1BitStringAsBytes(&bits) || !seq.Empty() {
		return algorithm, nil, errors.New("the SubjectPublicKeyInfo does not end in a BIT STRING of whole octets")
	}
	return algorithm, bits, nil
}

var (
	oidRSA      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidECKey    = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidEd25519  = asn1.ObjectIdentifier{1, 3, 101, 112}
	oidP256     = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidP384     = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	oidP521     = asn1.ObjectIdentifier{1, 3, 132, 0, 35}
	asn1NullDER = []byte{5, 0}
)

const (
	minRSABits = 2048
	maxRSABits = 8192
)

// ParsePublicKey reads a SubjectPublicKeyInfo strictly and holds it to CheckPublicKey. Compressed points, explicit
// curves, and parameters that the algorithm does not have are refused.
func ParsePublicKey(spki []byte) (crypto.PublicKey, error) {
	algorithm, bits, err := splitSPKI(spki)
	if err != nil {
		return nil, fault.New(fault.Invalid, "public key: %w", err)
	}
	switch {
	case algorithm.oid.Equal(oidRSA):
		return parseRSA(algorithm, bits)
	case algorithm.oid.Equal(oidECKey):
		return parseEC(algorithm, bits)
	case algorithm.oid.Equal(oidEd25519):
		if algorithm.parameters != nil || len(bits) != ed25519.PublicKeySize {
			return nil, fault.New(fault.Invalid, "public key: an Ed25519 key is 32 octets without parameters (RFC 8410 3)")
		}
		return ed25519.PublicKey(bits), nil
	}
	return nil, fault.New(fault.Invalid, "public key algorithm %s is not accepted: use RSA, ECDSA on P-256, P-384 or P-521, "+
		"or Ed25519", algorithm.oid)
}

func parseRSA(algorithm algorithmIdentifier, bits []byte) (crypto.PublicKey, error) {
	if string(algorithm.parameters) != string(asn1NullDER) {
		return nil, fault.New(fault.Invalid, "public key: the parameters of an RSA key must be NULL (RFC 3279 2.3.1)")
	}
	input := cryptobyte.String(bits)
	var seq cryptobyte.String
	n, e := new(big.Int), new(big.Int)
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() ||
		!seq.ReadASN1Integer(n) || !seq.ReadASN1Integer(e) || !seq.Empty() {
		return nil, fault.New(fault.Invalid, "public key: an RSA key is a DER SEQUENCE of modulus and exponent")
	}
	if err := checkRSA(n, e); err != nil {
		return nil, err
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

func checkRSA(n, e *big.Int) error {
	size := n.BitLen()
	switch {
	case n.Sign() <= 0:
		return fault.New(fault.Invalid, "RSA modulus is not positive")
	case size < minRSABits || size > maxRSABits:
		return fault.New(fault.Invalid, "RSA key of %d bits: %d to %d bits are accepted", size, minRSABits, maxRSABits)
	case n.Bit(0) == 0:
		return fault.New(fault.Invalid, "RSA modulus is even, so it is no product of two large primes")
	case e.Sign() <= 0 || e.BitLen() > 31:
		return fault.New(fault.Invalid, "RSA exponent of %d bits: 65537 is what others use, and 65537 to 2^31-1, odd, is "+
			"accepted", e.BitLen())
	case e.Bit(0) == 0 || e.Int64() < 65537:
		return fault.New(fault.Invalid, "RSA exponent %d: an odd number from 65537 to 2^31-1 is accepted", e)
	}
	return nil
}

func parseEC(algorithm algorithmIdentifier, bits []byte) (crypto.PublicKey, error) {
	parameters := cryptobyte.String(algorithm.parameters)
	var oid asn1.ObjectIdentifier
	if !parameters.ReadASN1ObjectIdentifier(&oid) || !parameters.Empty() {
		return nil, fault.New(fault.Invalid, "public key: the curve must be named (RFC 5480 2.1.1): P-256, P-384 or P-521")
	}
	var curve elliptic.Curve
	switch {
	case oid.Equal(oidP256):
		curve = elliptic.P256()
	case oid.Equal(oidP384):
		curve = elliptic.P384()
	case oid.Equal(oidP521):
		curve = elliptic.P521()
	default:
		return nil, fault.New(fault.Invalid, "public key: curve %s is not accepted: use P-256, P-384 or P-521", oid)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, bits)
	if err != nil {
		return nil, fault.New(fault.Invalid, "public key: not an uncompressed point on %s", curve.Params().Name)
	}
	return key, nil
}

// CheckPublicKey is the policy that every key must meet: RSA of 2048 to 8192 bits with an odd exponent from 65537, ECDSA
// on P-256, P-384 or P-521 with the point on the curve, or Ed25519.
func CheckPublicKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if k == nil || k.N == nil {
			return fault.New(fault.Invalid, "RSA key without a modulus")
		}
		return checkRSA(k.N, big.NewInt(int64(k.E)))
	case *ecdsa.PublicKey:
		if k == nil || k.Curve == nil {
			return fault.New(fault.Invalid, "EC key without a curve")
		}
		if *k == (ecdsa.PublicKey{Curve: k.Curve}) { // Bytes would panic
			return fault.New(fault.Invalid, "EC key without a point")
		}
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
		default:
			return fault.New(fault.Invalid, "curve %s is not accepted: use P-256, P-384 or P-521", k.Curve.Params().Name)
		}
		if _, err := k.Bytes(); err != nil {
			return fault.New(fault.Invalid, "the point is not on %s", k.Curve.Params().Name)
		}
		return nil
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return fault.New(fault.Invalid, "Ed25519 key of %d octets instead of %d", len(k), ed25519.PublicKeySize)
		}
		return nil
	}
	return fault.New(fault.Invalid, "a public key of type %T is not accepted: use RSA, ECDSA or Ed25519", pub)
}

// CheckIssuerKey holds the key of a CA's certificate to CheckPublicKey, and says it where the key is bound to RSASSA-PSS (RFC 4055
// section 1.2: id-RSASSA-PSS in the SubjectPublicKeyInfo). Such a key may sign nothing else, and neither CRLs nor OCSP responses are
// signed with RSASSA-PSS here, because much of what reads them cannot. A certificate whose own signature is RSASSA-PSS is another
// matter: its key may be for RSA of any padding.
func CheckIssuerKey(certificate *x509.Certificate) error {
	var algorithm asn1.ObjectIdentifier
	spki := cryptobyte.String(certificate.RawSubjectPublicKeyInfo)
	var identifier cryptobyte.String
	if spki.ReadASN1(&spki, cbasn1.SEQUENCE) && spki.ReadASN1(&identifier, cbasn1.SEQUENCE) && identifier.ReadASN1ObjectIdentifier(&algorithm) &&
		algorithm.Equal(OIDRSASSAPSS) {
		return fault.New(fault.Invalid, "the key of %q is bound to RSASSA-PSS, with which no CRLs are signed here; an RSA key (rsaEncryption), "+
			"ECDSA or Ed25519 would pass", certificate.Subject)
	}
	return CheckPublicKey(certificate.PublicKey)
}

// KeyAlgorithm names the algorithm and size of a key as profiles do: rsa-2048, ecdsa-p256, ed25519.
func KeyAlgorithm(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("rsa-%d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return fmt.Sprintf("ecdsa-p%d", k.Curve.Params().BitSize)
	case ed25519.PublicKey:
		return "ed25519"
	}
	return fmt.Sprintf("%T", pub)
}

// MarshalPublicKey encodes a key that passes CheckPublicKey as SubjectPublicKeyInfo.
func MarshalPublicKey(pub crypto.PublicKey) ([]byte, error) {
	if err := CheckPublicKey(pub); err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return spki, nil
}
