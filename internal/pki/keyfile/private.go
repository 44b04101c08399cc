package keyfile

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

// PEM labels of RFC 7468 and of the older forms.
const (
	labelPKCS8       = "PRIVATE KEY"
	labelEncrypted   = "ENCRYPTED PRIVATE KEY"
	labelPKCS1       = "RSA PRIVATE KEY"
	labelSEC1        = "EC PRIVATE KEY"
	labelECParams    = "EC PARAMETERS"
	labelCertificate = "CERTIFICATE"
)

// maxKeyDER bounds one private key: RSA of 16384 bits has about 9.3 kB. Parsing costs more than linear time, so the bound
// comes before it.
const maxKeyDER = 16 << 10

// ParsePrivateKey reads the one private key of a file: PEM or DER; PKCS#1, SEC 1, PKCS#8 or encrypted PKCS#8. Text around
// the PEM blocks (as certtool writes it), EC PARAMETERS and certificates are passed over. Password may be nil; it is not
// used for a key that is not encrypted. The key's strength is not judged here: cert.CheckPublicKey does that.
func ParsePrivateKey(data, password []byte) (crypto.Signer, error) {
	if err := readable(data); err != nil {
		return nil, err
	}
	if !hasPEM(data) {
		return parseKeyDER(data, password)
	}
	blocks, err := pemBlocks(data)
	if err != nil {
		return nil, err
	}
	var found crypto.Signer
	for _, b := range blocks {
		if !isKeyLabel(b.Type) {
			continue
		}
		key, err := parseKeyBlock(b, password)
		if err != nil {
			return nil, fmt.Errorf("private key at line %d: %w", b.line, err)
		}
		if found != nil && !samePublic(found.Public(), key.Public()) {
			return nil, fault.New(fault.Invalid, "the file holds more than one private key; one is needed").At(lineOf(b.line))
		}
		found = key
	}
	if found == nil {
		return nil, fault.New(fault.Invalid, "the file has no private key, only: %s", labels(blocks))
	}
	return found, nil
}

func lineOf(line int) string { return strconv.Itoa(line) + ":1" }

func isKeyLabel(label string) bool { return strings.HasSuffix(label, labelPKCS8) }

func parseKeyBlock(b block, password []byte) (crypto.Signer, error) {
	if b.Headers["DEK-Info"] != "" || strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED") {
		return nil, fault.New(fault.Invalid, "the key is in the old encrypted PEM form (Proc-Type: 4,ENCRYPTED), which is not "+
			"read; encrypted PKCS#8 is").WithHint("openssl pkcs8 -topk8 -in OLD.pem -out NEW.pem")
	}
	if len(b.Bytes) > maxKeyDER {
		return nil, keyTooLarge(len(b.Bytes))
	}
	switch b.Type {
	case labelPKCS8:
		return parsePKCS8(b.Bytes)
	case labelEncrypted:
		return decryptPKCS8(b.Bytes, password)
	case labelPKCS1:
		return parsePKCS1(b.Bytes)
	case labelSEC1:
		return parseSEC1(b.Bytes)
	case "OPENSSH PRIVATE KEY":
		return nil, fault.New(fault.Invalid, "the key is in OpenSSH's own form, which is not read; PKCS#8 is").
			WithHint("ssh-keygen -p -m PKCS8 -f FILE")
	}
	return nil, fault.New(fault.Invalid, "a key of the form %q is not read; PKCS#8, PKCS#1 and SEC 1 are", printable(b.Type))
}

func keyTooLarge(n int) error {
	return fault.New(fault.TooLarge, "a private key of %d bytes is refused; at most %d pass", n, maxKeyDER)
}

// parseKeyDER tells the four DER forms apart by their first fields, so that the error is that of the form it is.
func parseKeyDER(der, password []byte) (crypto.Signer, error) {
	if len(der) > maxKeyDER {
		return nil, keyTooLarge(len(der))
	}
	if err := notStore(der); err != nil {
		return nil, err
	}
	in := cryptobyte.String(der)
	var body, inner cryptobyte.String
	var version int
	if !in.ReadASN1(&body, asn1.SEQUENCE) {
		return nil, fault.New(fault.Invalid, "the file is neither PEM nor a DER private key")
	}
	if !in.Empty() {
		return nil, fault.New(fault.Invalid, "%d bytes follow the DER private key", len(in))
	}
	encrypted := body
	if encrypted.ReadASN1(&inner, asn1.SEQUENCE) && encrypted.PeekASN1Tag(asn1.OCTET_STRING) {
		return decryptPKCS8(der, password)
	}
	if !body.ReadASN1Integer(&version) {
		return nil, fault.New(fault.Invalid, "the file is DER, but not a private key")
	}
	switch {
	case body.PeekASN1Tag(asn1.SEQUENCE):
		return parsePKCS8(der)
	case body.PeekASN1Tag(asn1.INTEGER):
		return parsePKCS1(der)
	case body.PeekASN1Tag(asn1.OCTET_STRING):
		return parseSEC1(der)
	}
	return nil, fault.New(fault.Invalid, "the file is DER, but not a private key")
}

// notStore refuses key stores, which are often given where a key is wanted, as what they are. Those of PKCS#12 begin with their version, 3 (RFC 7292
// section 4); some are in BER, of indefinite length.
func notStore(data []byte) error {
	in := cryptobyte.String(data)
	var body cryptobyte.String
	var version int
	inBER := bytes.HasPrefix(data, []byte{0x30, 0x80, 2, 1, 3})
	if inBER || in.ReadASN1(&body, asn1.SEQUENCE) && body.ReadASN1Integer(&version) && version == 3 && body.PeekASN1Tag(asn1.SEQUENCE) {
		return fault.New(fault.Invalid, "the file is a PKCS#12 key store; a key alone is read here, or a certificate").
			WithHint("openssl pkcs12 -in FILE -nocerts -out KEY.pem takes the key out, and -nokeys -out CERT.pem the certificates")
	}
	if bytes.HasPrefix(data, jksMagic) || bytes.HasPrefix(data, jceksMagic) {
		return fault.New(fault.Invalid, "the file is a Java key store; a key alone is read here, or a certificate").
			WithHint("keytool -exportcert -rfc -keystore FILE -alias ALIAS takes a certificate out")
	}
	return nil
}

func parsePKCS8(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the PKCS#8 private key is not valid: %w", err)
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return k, nil
	case *ecdsa.PrivateKey:
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, fault.New(fault.Invalid, "the private key cannot sign (it is a key-agreement key); RSA, ECDSA and Ed25519 can")
}

func parsePKCS1(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS1PrivateKey(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the RSA private key is not valid: %w", err)
	}
	return key, nil
}

func parseSEC1(der []byte) (crypto.Signer, error) {
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the EC private key is not valid: %w", err)
	}
	return key, nil
}

// EncodePKCS8 returns key as PEM, "PRIVATE KEY": the form that every consumer of this project reads.
func EncodePKCS8(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return encodePEM(labelPKCS8, der), nil
}

// EncodePKCS1 returns an RSA key as PEM, "RSA PRIVATE KEY".
func EncodePKCS1(key crypto.Signer) ([]byte, error) {
	k, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fault.New(fault.Invalid, "PKCS#1 is for RSA keys; the key is %s", AlgorithmOf(key.Public()))
	}
	return encodePEM(labelPKCS1, x509.MarshalPKCS1PrivateKey(k)), nil
}

// EncodeSEC1 returns an ECDSA key as PEM, "EC PRIVATE KEY", with its curve inside and no EC PARAMETERS block before it.
func EncodeSEC1(key crypto.Signer) ([]byte, error) {
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fault.New(fault.Invalid, "SEC 1 is for ECDSA keys; the key is %s", AlgorithmOf(key.Public()))
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return encodePEM(labelSEC1, der), nil
}

// EncodeTraditional returns the form that a key's algorithm had before PKCS#8, which certtool and old consumers expect:
// PKCS#1 for RSA, SEC 1 for ECDSA; Ed25519 has PKCS#8 only.
func EncodeTraditional(key crypto.Signer) ([]byte, error) {
	switch key.(type) {
	case *rsa.PrivateKey:
		return EncodePKCS1(key)
	case *ecdsa.PrivateKey:
		return EncodeSEC1(key)
	}
	return EncodePKCS8(key)
}

func encodePEM(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

// samePublic reports whether two public keys are the same key. Keys of unknown kinds are equal only if their types say so.
func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// CheckPair refuses a key that is not the certificate's.
func CheckPair(key crypto.PublicKey, c *x509.Certificate) error {
	if signer, ok := key.(crypto.Signer); ok {
		key = signer.Public()
	}
	if samePublic(key, c.PublicKey) {
		return nil
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err == nil && bytes.Equal(spki, c.RawSubjectPublicKeyInfo) {
		return nil
	}
	return fault.New(fault.Conflict, "the private key (%s) does not belong to the certificate %q (%s)",
		AlgorithmOf(key), c.Subject, AlgorithmOf(c.PublicKey))
}
