package certtool

import (
	"encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidRSA     = arcs("1.2.840.113549.1.1.1")
	oidRSAPSS  = arcs("1.2.840.113549.1.1.10")
	oidEC      = arcs("1.2.840.10045.2.1")
	oidEd25519 = arcs("1.3.101.112")
	oidEd448   = arcs("1.3.101.113")
)

// level is a row of GnuTLS's security parameters: the least bits of a factoring key, and of an elliptic curve.
var levels = []struct {
	name    string
	rsa, ec int
}{
	{"Future", 15360, 512}, {"Ultra", 8192, 384}, {"High", 3072, 256}, {"Medium", 2048, 224}, {"Legacy", 1776, 192},
	{"Low", 1024, 160}, {"Weak", 1008, 160}, {"Very weak", 767, 0}, {"Export", 512, 0},
}

func securityLevel(bits int, curve bool) string {
	for _, l := range levels {
		if !curve && bits >= l.rsa || curve && bits >= l.ec {
			return l.name
		}
	}
	return "Insecure"
}

// publicKey writes the key of a SubjectPublicKeyInfo.
func (p *printer) publicKey(spki []byte) {
	input := cryptobyte.String(spki)
	var seq, algorithm cryptobyte.String
	var oid asn1.ObjectIdentifier
	var bits asn1.BitString
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&oid) || !seq.ReadASN1BitString(&bits) {
		p.line(1, "Subject Public Key Algorithm: unknown")
		return
	}
	key := bits.RightAlign()
	switch {
	case oid.Equal(oidRSA):
		p.rsaKey(key)
	case oid.Equal(oidEC):
		p.ecKey(algorithm, key)
	case oid.Equal(oidEd25519):
		p.edwardsKey("Ed25519", 256, key)
	case oid.Equal(oidEd448):
		p.edwardsKey("Ed448", 456, key)
	default:
		p.line(1, "Subject Public Key Algorithm: %s", oid)
	}
}

func (p *printer) rsaKey(der []byte) {
	input := cryptobyte.String(der)
	var seq, n, e cryptobyte.String
	p.line(1, "Subject Public Key Algorithm: RSA")
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1(&n, cbasn1.INTEGER) ||
		!seq.ReadASN1(&e, cbasn1.INTEGER) || len(n) == 0 {
		return
	}
	size := 8 * len(n)
	for _, c := range n {
		if c != 0 {
			for ; c&0x80 == 0; c <<= 1 {
				size--
			}
			break
		}
		size -= 8
	}
	p.line(1, "Algorithm Security Level: %s (%d bits)", securityLevel(size, false), size)
	p.line(2, "Modulus (bits %d):", size)
	p.octets(3, n)
	p.line(2, "Exponent (bits %d):", 8*len(e))
	p.octets(3, e)
}

var curves = []struct {
	oid  asn1.ObjectIdentifier
	name string
	size int // in octets
}{
	{arcs("1.2.840.10045.3.1.1"), "SECP192R1", 24}, {arcs("1.3.132.0.33"), "SECP224R1", 28},
	{arcs("1.2.840.10045.3.1.7"), "SECP256R1", 32}, {arcs("1.3.132.0.34"), "SECP384R1", 48},
	{arcs("1.3.132.0.35"), "SECP521R1", 66},
}

func (p *printer) ecKey(parameters cryptobyte.String, point []byte) {
	var oid asn1.ObjectIdentifier
	p.line(1, "Subject Public Key Algorithm: EC/ECDSA")
	if !parameters.ReadASN1ObjectIdentifier(&oid) {
		return
	}
	for _, c := range curves {
		if !c.oid.Equal(oid) || len(point) != 1+2*c.size || point[0] != 4 {
			continue
		}
		p.line(1, "Algorithm Security Level: %s (%d bits)", securityLevel(8*c.size, true), 8*c.size)
		p.line(2, "Curve:\t%s", c.name)
		p.line(2, "X:")
		p.octets(3, unsignedOctets(point[1:1+c.size]))
		p.line(2, "Y:")
		p.octets(3, unsignedOctets(point[1+c.size:]))
	}
}

// unsignedOctets is the DER form of a positive number: no leading zeros but one before a set first bit.
func unsignedOctets(n []byte) []byte {
	for len(n) > 1 && n[0] == 0 {
		n = n[1:]
	}
	if n[0]&0x80 != 0 {
		return append([]byte{0}, n...)
	}
	return n
}

func (p *printer) edwardsKey(name string, bits int, key []byte) {
	p.line(1, "Subject Public Key Algorithm: EdDSA (%s)", name)
	p.line(1, "Algorithm Security Level: %s (%d bits)", securityLevel(bits, true), bits)
	p.line(2, "Curve:\t%s", name)
	p.line(2, "X:")
	p.octets(3, key)
}

var signatureNames = []struct {
	oid    asn1.ObjectIdentifier
	name   string
	broken bool
}{
	{arcs("1.2.840.113549.1.1.11"), "RSA-SHA256", false}, {arcs("1.2.840.113549.1.1.12"), "RSA-SHA384", false},
	{arcs("1.2.840.113549.1.1.13"), "RSA-SHA512", false}, {arcs("1.2.840.113549.1.1.14"), "RSA-SHA224", false},
	{arcs("1.2.840.113549.1.1.5"), "RSA-SHA1", true}, {arcs("1.2.840.113549.1.1.4"), "RSA-MD5", true},
	{arcs("1.2.840.10045.4.3.2"), "ECDSA-SHA256", false}, {arcs("1.2.840.10045.4.3.3"), "ECDSA-SHA384", false},
	{arcs("1.2.840.10045.4.3.4"), "ECDSA-SHA512", false}, {arcs("1.2.840.10045.4.3.1"), "ECDSA-SHA224", false},
	{arcs("1.2.840.10045.4.1"), "ECDSA-SHA1", true}, {oidEd25519, "EdDSA-Ed25519", false}, {oidEd448, "EdDSA-Ed448", false},
}

var pssHashes = []struct {
	oid  asn1.ObjectIdentifier
	name string
}{
	{arcs("2.16.840.1.101.3.4.2.1"), "RSA-PSS-SHA256"}, {arcs("2.16.840.1.101.3.4.2.2"), "RSA-PSS-SHA384"},
	{arcs("2.16.840.1.101.3.4.2.3"), "RSA-PSS-SHA512"},
}

// signatureName names the algorithm of an AlgorithmIdentifier; broken says that GnuTLS warns of it.
func signatureName(der []byte) (name string, broken bool) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) {
		return "unknown", false
	}
	for _, s := range signatureNames {
		if s.oid.Equal(oid) {
			return s.name, s.broken
		}
	}
	var parameters, hash, identifier cryptobyte.String
	var hashOID asn1.ObjectIdentifier
	if oid.Equal(oidRSAPSS) && seq.ReadASN1(&parameters, cbasn1.SEQUENCE) && parameters.ReadASN1(&hash, explicit(0)) &&
		hash.ReadASN1(&identifier, cbasn1.SEQUENCE) && identifier.ReadASN1ObjectIdentifier(&hashOID) {
		for _, h := range pssHashes {
			if h.oid.Equal(hashOID) {
				return h.name, false
			}
		}
	}
	return oid.String(), false
}
