package keyfile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	encasn1 "encoding/asn1"
	"encoding/hex"
	"math/big"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

// KeyID is a SHA-1 key identifier.
type KeyID [sha1.Size]byte

// NSSKeyID is the CKA_ID under which NSS keeps a private key: the SHA-1 of its public value, which is the modulus without
// leading zeros for RSA and the uncompressed point for EC. certutil -K prints it.
func NSSKeyID(pub crypto.PublicKey) (KeyID, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return sha1.Sum(k.N.Bytes()), nil
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			return KeyID{}, fault.New(fault.Invalid, "the EC public key is not valid: %w", err)
		}
		return sha1.Sum(point), nil
	case ed25519.PublicKey:
		return sha1.Sum(k), nil
	}
	return KeyID{}, fault.New(fault.Invalid, "no NSS key identifier is defined for a key of type %T", pub)
}

// RFC5280KeyID is method (1) of RFC 5280 section 4.2.1.2: the SHA-1 of the subjectPublicKey BIT STRING's octets.
func RFC5280KeyID(pub crypto.PublicKey) (KeyID, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return KeyID{}, fault.New(fault.Invalid, "the public key is not valid: %w", err)
	}
	in := cryptobyte.String(spki)
	var body cryptobyte.String
	var bits encasn1.BitString
	if !in.ReadASN1(&body, asn1.SEQUENCE) || !body.SkipASN1(asn1.SEQUENCE) || !body.ReadASN1BitString(&bits) {
		return KeyID{}, fault.New(fault.Invalid, "the public key is not valid")
	}
	return sha1.Sum(bits.RightAlign()), nil
}

// String is the form that certutil -K prints: forty lower-case hexadecimal digits.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// Signed is the form that Dogtag writes into CS.cfg: the identifier taken as a two's complement number of 160 bits, in
// hexadecimal without leading zeros, with a minus sign where its top bit is set.
func (id KeyID) Signed() string {
	n := new(big.Int).SetBytes(id[:])
	if id[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), 8*sha1.Size))
	}
	return n.Text(16)
}

// Decimal is the signed form in the digits in which Java prints a BigInteger that nobody asked for another base.
func (id KeyID) Decimal() string {
	n, _ := new(big.Int).SetString(id.Signed(), 16)
	return n.String()
}

// ParseDecimalKeyID reads the signed form in decimal digits.
func ParseDecimalKeyID(text string) (KeyID, error) {
	n, ok := new(big.Int).SetString(strings.TrimSpace(text), 10)
	half := new(big.Int).Lsh(big.NewInt(1), 8*sha1.Size-1)
	if !ok || strings.ContainsAny(text, "+_") || n.Cmp(half) >= 0 || n.CmpAbs(half) > 0 {
		return KeyID{}, fault.New(fault.Invalid, "%q is not a key identifier as a decimal number: it lies between -2^159 and 2^159-1", printable(text))
	}
	return ParseKeyID(n.Text(16)) // a positive one has 40 digits at most, and its top bit is not set
}

// ParseKeyID reads either form, with or without "0x" and with colons as openssl prints them. Forty digits without a sign
// are the identifier itself; anything else is the signed form.
func ParseKeyID(text string) (KeyID, error) {
	var id KeyID
	s := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(text)), ":", "")
	digits, negative := strings.CutPrefix(s, "-")
	digits = strings.TrimPrefix(digits, "0x")
	n, ok := new(big.Int).SetString(digits, 16)
	if !ok || strings.ContainsAny(digits, "+-_") || len(digits) > 2*len(id) {
		return id, fault.New(fault.Invalid, "%q is not a key identifier: up to 40 hexadecimal digits pass, with a minus sign "+
			"before them in the signed form", printable(text))
	}
	half := new(big.Int).Lsh(big.NewInt(1), 8*sha1.Size-1)
	if negative {
		if n.Cmp(half) > 0 {
			return id, fault.New(fault.Invalid, "%q is below -2^159, the least signed key identifier", printable(text))
		}
		n.Sub(new(big.Int).Lsh(half, 1), n)
		n.SetBit(n, 8*sha1.Size, 0) // -0 is 0
	}
	n.FillBytes(id[:])
	return id, nil
}

// PublicKeyOf reads the public key of a file that holds a private key, a certificate, a request (PKCS#10) or a public key
// (SubjectPublicKeyInfo), in PEM or DER. Of a bundle it takes the first certificate.
func PublicKeyOf(data, password []byte) (crypto.PublicKey, error) {
	if err := readable(data); err != nil {
		return nil, err
	}
	if !hasPEM(data) {
		if pub, err := x509.ParsePKIXPublicKey(data); err == nil {
			return pub, nil
		}
		if certs, err := ParseCertificates(data); err == nil {
			return certifiedKey(certs[0])
		}
		if request, err := x509.ParseCertificateRequest(data); err == nil {
			return requestedKey(request, nil)
		}
		return publicOf(ParsePrivateKey(data, password))
	}
	blocks, err := pemBlocks(data)
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		switch {
		case isKeyLabel(b.Type):
			return publicOf(ParsePrivateKey(data, password))
		case b.Type == "PUBLIC KEY":
			pub, err := x509.ParsePKIXPublicKey(b.Bytes)
			if err != nil {
				return nil, fault.New(fault.Invalid, "the public key is not valid: %w", err).At(lineOf(b.line))
			}
			return pub, nil
		case b.Type == "CERTIFICATE REQUEST", b.Type == "NEW CERTIFICATE REQUEST": // RFC 7468 section 7
			return requestedKey(x509.ParseCertificateRequest(b.Bytes))
		case b.Type == labelCertificate:
			certs, err := ParseCertificates(data)
			if err != nil {
				return nil, err
			}
			return certifiedKey(certs[0])
		}
	}
	return nil, fault.New(fault.Invalid, "the file has no key and no certificate, only: %s", labels(blocks))
}

func publicOf(key crypto.Signer, err error) (crypto.PublicKey, error) {
	if err != nil {
		return nil, err
	}
	return key.Public(), nil
}

func requestedKey(request *x509.CertificateRequest, err error) (crypto.PublicKey, error) {
	if err != nil {
		return nil, fault.New(fault.Invalid, "the request is not valid: %w", err)
	}
	if request.PublicKey == nil {
		return nil, fault.New(fault.Invalid, "the public key of the request is of an unknown algorithm")
	}
	return request.PublicKey, nil
}

// certifiedKey is the certificate's key, which is nil in a certificate of an algorithm that Go does not know.
func certifiedKey(c *x509.Certificate) (crypto.PublicKey, error) {
	if c.PublicKey == nil {
		return nil, fault.New(fault.Invalid, "the public key of the certificate %q is of an unknown algorithm", c.Subject)
	}
	return c.PublicKey, nil
}
