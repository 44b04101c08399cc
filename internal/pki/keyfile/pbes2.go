package keyfile

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	encasn1 "encoding/asn1"
	"fmt"
	"hash"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/scrypt"

	"chancery/internal/fault"
)

var (
	oidPBES2      = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2     = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidScrypt     = encasn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
	oidHMACSHA1   = encasn1.ObjectIdentifier{1, 2, 840, 113549, 2, 7}
	oidHMACSHA224 = encasn1.ObjectIdentifier{1, 2, 840, 113549, 2, 8}
	oidHMACSHA256 = encasn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidHMACSHA384 = encasn1.ObjectIdentifier{1, 2, 840, 113549, 2, 10}
	oidHMACSHA512 = encasn1.ObjectIdentifier{1, 2, 840, 113549, 2, 11}
	oidAES128CBC  = encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
	oidAES192CBC  = encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}
	oidAES256CBC  = encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	oidDESEDE3CBC = encasn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}
)

const (
	// iterationBudget bounds all password derivations of one file together: some seconds of one core. OpenSSL writes
	// 2,048, Java 10,000, NSS up to 600,000 a derivation.
	iterationBudget = 10_000_000
	// scryptMemory bounds 128·N·r: OpenSSL's default takes 16 MiB.
	scryptMemory = 64 << 20
	// leastIterations is what RFC 8018 §4.2 recommends as the least of a derivation.
	leastIterations = 1_000
	saltLength      = 16
)

// PKCS8Iterations guards keys that lie offline behind a passphrase.
const PKCS8Iterations = 600_000

// budget counts down the password-derivation iterations that a file may still ask for.
type budget int

func newBudget() *budget { b := budget(iterationBudget); return &b }

func (b *budget) spend(n int) error {
	if n < 1 {
		return fault.New(fault.Invalid, "the file asks for %d password-derivation iterations", n)
	}
	if n > int(*b) {
		return fault.New(fault.TooLarge, "the file asks for more than %d password-derivation iterations", iterationBudget)
	}
	*b -= budget(n)
	return nil
}

// EncodeEncryptedPKCS8 returns key as PEM, "ENCRYPTED PRIVATE KEY", under PBES2 with PBKDF2-HMAC-SHA-256 and AES-256-CBC:
// the strongest that OpenSSL, GnuTLS, NSS and Java all read.
func EncodeEncryptedPKCS8(key crypto.Signer, password []byte) ([]byte, error) {
	return EncodeEncryptedPKCS8At(key, password, PKCS8Iterations)
}

// EncodeEncryptedPKCS8At is EncodeEncryptedPKCS8 with as many iterations of PBKDF2 as the caller chooses.
func EncodeEncryptedPKCS8At(key crypto.Signer, password []byte, iterations int) ([]byte, error) {
	if len(password) == 0 {
		return nil, fault.New(fault.Invalid, "the password is empty; an encrypted key needs one")
	}
	if iterations < leastIterations || iterations > iterationBudget {
		return nil, fault.New(fault.Invalid, "a key is to be encrypted with %d password-derivation iterations; %d to %d pass", iterations, leastIterations, iterationBudget)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	sealed, err := encryptedPrivateKeyInfo(der, password, iterations)
	if err != nil {
		return nil, err
	}
	return encodePEM(labelEncrypted, sealed), nil
}

// encryptedPrivateKeyInfo is RFC 5958's EncryptedPrivateKeyInfo of a PKCS#8 key.
func encryptedPrivateKeyInfo(der, password []byte, iterations int) ([]byte, error) {
	algorithm, sealed, err := pbes2Encrypt(der, password, iterations)
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(algorithm)
		b.AddASN1OctetString(sealed)
	})
	return b.Bytes()
}

// decryptPKCS8 opens an EncryptedPrivateKeyInfo.
func decryptPKCS8(der, password []byte) (crypto.Signer, error) {
	if password == nil {
		return nil, needPassword("private key")
	}
	plain, err := decryptKeyInfo(der, password, nil, newBudget())
	if err != nil {
		return nil, err
	}
	key, err := parsePKCS8(plain)
	if err != nil {
		// One wrong password in 256 leaves valid padding; what is inside is then no key.
		return nil, wrongPassword("private key")
	}
	return key, nil
}

// decryptKeyInfo opens an EncryptedPrivateKeyInfo; bmp is the password in PKCS#12's form, nil outside of PKCS#12.
func decryptKeyInfo(der, password, bmp []byte, left *budget) ([]byte, error) {
	in := cryptobyte.String(der)
	var body, algorithm, sealed cryptobyte.String
	if !in.ReadASN1(&body, asn1.SEQUENCE) || !in.Empty() || !body.ReadASN1(&algorithm, asn1.SEQUENCE) ||
		!body.ReadASN1(&sealed, asn1.OCTET_STRING) || !body.Empty() {
		return nil, fault.New(fault.Invalid, "the encrypted private key is not a valid EncryptedPrivateKeyInfo")
	}
	return decryptPBE(algorithm, sealed, password, bmp, left, "private key")
}

// decryptPBE opens content under a password-based encryption scheme. Algorithm is the inside of an AlgorithmIdentifier.
func decryptPBE(algorithm cryptobyte.String, content, password, bmp []byte, left *budget, what string) ([]byte, error) {
	var oid encasn1.ObjectIdentifier
	if !algorithm.ReadASN1ObjectIdentifier(&oid) {
		return nil, fault.New(fault.Invalid, "the encryption algorithm of the %s is not valid", what)
	}
	var mode cipher.BlockMode
	var err error
	switch {
	case oid.Equal(oidPBES2):
		mode, err = pbes2Mode(algorithm, password, left)
	case bmp != nil:
		mode, err = pkcs12Mode(oid, algorithm, bmp, left)
	default:
		err = unknownPBE(oid)
	}
	if err != nil {
		return nil, err
	}
	if len(content) == 0 || len(content)%mode.BlockSize() != 0 {
		return nil, fault.New(fault.Invalid, "the encrypted %s has %d bytes, not a whole number of blocks", what, len(content))
	}
	plain := make([]byte, len(content))
	mode.CryptBlocks(plain, content)
	pad := int(plain[len(plain)-1])
	if pad == 0 || pad > mode.BlockSize() || pad > len(plain) {
		return nil, wrongPassword(what)
	}
	for _, c := range plain[len(plain)-pad:] {
		if int(c) != pad {
			return nil, wrongPassword(what)
		}
	}
	return plain[:len(plain)-pad], nil
}

func unknownPBE(oid encasn1.ObjectIdentifier) error {
	return fault.New(fault.Invalid, "encryption algorithm %s is not read; PBES2 with PBKDF2 or scrypt and AES is", oid).
		WithHint("openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD.pem -out NEW.pem")
}

// pbes2Mode reads PBES2-params (RFC 8018 appendix A.4), which are the rest of the AlgorithmIdentifier.
func pbes2Mode(params cryptobyte.String, password []byte, left *budget) (cipher.BlockMode, error) {
	invalid := fault.New(fault.Invalid, "the PBES2 parameters are not valid")
	var body, kdf, scheme cryptobyte.String
	var kdfOID, encOID encasn1.ObjectIdentifier
	var iv []byte
	if !params.ReadASN1(&body, asn1.SEQUENCE) || !params.Empty() || !body.ReadASN1(&kdf, asn1.SEQUENCE) ||
		!body.ReadASN1(&scheme, asn1.SEQUENCE) || !body.Empty() || !kdf.ReadASN1ObjectIdentifier(&kdfOID) ||
		!scheme.ReadASN1ObjectIdentifier(&encOID) || !scheme.ReadASN1Bytes(&iv, asn1.OCTET_STRING) || !scheme.Empty() {
		return nil, invalid
	}
	keyLength := 0
	newCipher := aes.NewCipher
	switch {
	case encOID.Equal(oidAES128CBC):
		keyLength = 16
	case encOID.Equal(oidAES192CBC):
		keyLength = 24
	case encOID.Equal(oidAES256CBC):
		keyLength = 32
	case encOID.Equal(oidDESEDE3CBC):
		keyLength, newCipher = 24, des.NewTripleDESCipher
	default:
		return nil, unknownPBE(encOID)
	}
	key, err := deriveKey(kdfOID, kdf, password, keyLength, left)
	if err != nil {
		return nil, err
	}
	c, err := newCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	if len(iv) != c.BlockSize() {
		return nil, invalid
	}
	return cipher.NewCBCDecrypter(c, iv), nil
}

// deriveKey runs PBKDF2 or scrypt as the inside of a key-derivation AlgorithmIdentifier says.
func deriveKey(oid encasn1.ObjectIdentifier, kdf cryptobyte.String, password []byte, keyLength int, left *budget) ([]byte, error) {
	var params cryptobyte.String
	var salt []byte
	if !kdf.ReadASN1(&params, asn1.SEQUENCE) || !kdf.Empty() || !params.ReadASN1Bytes(&salt, asn1.OCTET_STRING) {
		return nil, fault.New(fault.Invalid, "the key derivation parameters are not valid")
	}
	switch {
	case oid.Equal(oidPBKDF2):
		return derivePBKDF2(params, salt, password, keyLength, left)
	case oid.Equal(oidScrypt):
		return deriveScrypt(params, salt, password, keyLength)
	}
	return nil, unknownPBE(oid)
}

func derivePBKDF2(params cryptobyte.String, salt, password []byte, keyLength int, left *budget) ([]byte, error) {
	var iterations, stated int
	newHash := sha1.New // RFC 8018 appendix A.2: the default PRF
	ok := params.ReadASN1Integer(&iterations)
	if ok && params.PeekASN1Tag(asn1.INTEGER) {
		ok = params.ReadASN1Integer(&stated) && stated == keyLength
	}
	if ok && !params.Empty() {
		var prf cryptobyte.String
		var oid encasn1.ObjectIdentifier
		if ok = params.ReadASN1(&prf, asn1.SEQUENCE) && prf.ReadASN1ObjectIdentifier(&oid) && params.Empty(); ok {
			if newHash = hmacHash(oid); newHash == nil {
				return nil, fault.New(fault.Invalid, "PBKDF2 with the function %s is not read; HMAC with SHA-1 or SHA-2 is", oid)
			}
		}
	}
	if !ok {
		return nil, fault.New(fault.Invalid, "the PBKDF2 parameters are not valid")
	}
	if err := left.spend(iterations); err != nil {
		return nil, err
	}
	key, err := pbkdf2.Key(newHash, string(password), salt, iterations, keyLength)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return key, nil
}

func hmacHash(oid encasn1.ObjectIdentifier) func() hash.Hash {
	switch {
	case oid.Equal(oidHMACSHA1):
		return sha1.New
	case oid.Equal(oidHMACSHA224):
		return sha256.New224
	case oid.Equal(oidHMACSHA256):
		return sha256.New
	case oid.Equal(oidHMACSHA384):
		return sha512.New384
	case oid.Equal(oidHMACSHA512):
		return sha512.New
	}
	return nil
}

func deriveScrypt(params cryptobyte.String, salt, password []byte, keyLength int) ([]byte, error) {
	var n, r, p int
	if !params.ReadASN1Integer(&n) || !params.ReadASN1Integer(&r) || !params.ReadASN1Integer(&p) || n < 2 || r < 1 || p < 1 {
		return nil, fault.New(fault.Invalid, "the scrypt parameters are not valid")
	}
	if n > scryptMemory || r > scryptMemory || n > scryptMemory/128/r || p > 16 {
		return nil, fault.New(fault.TooLarge, "scrypt with N=%d r=%d p=%d needs too much memory or time; 128·N·r up to %d and p "+
			"up to 16 pass", n, r, p, scryptMemory)
	}
	key, err := scrypt.Key(password, salt, n, r, p, keyLength)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the scrypt parameters are not valid: %w", err)
	}
	return key, nil
}

// pbes2Encrypt returns the AlgorithmIdentifier and the content encrypted under it.
func pbes2Encrypt(content, password []byte, iterations int) (algorithm, sealed []byte, err error) {
	salt, iv := make([]byte, saltLength), make([]byte, aes.BlockSize)
	rand.Read(salt) // crypto/rand.Read never fails
	rand.Read(iv)
	key, err := pbkdf2.Key(sha256.New, string(password), salt, iterations, 32)
	if err != nil {
		return nil, nil, fmt.Errorf("derive key: %w", err)
	}
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make cipher: %w", err)
	}
	pad := aes.BlockSize - len(content)%aes.BlockSize
	sealed = make([]byte, len(content)+pad)
	copy(sealed, content)
	for i := len(content); i < len(sealed); i++ {
		sealed[i] = byte(pad)
	}
	cipher.NewCBCEncrypter(c, iv).CryptBlocks(sealed, sealed)

	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidPBES2)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addPBKDF2(b, salt, iterations)
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidAES256CBC)
				b.AddASN1OctetString(iv)
			})
		})
	})
	algorithm, err = b.Bytes()
	return algorithm, sealed, err
}

func addPBKDF2(b *cryptobyte.Builder, salt []byte, iterations int) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidPBKDF2)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1OctetString(salt)
			b.AddASN1Int64(int64(iterations))
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidHMACSHA256)
				b.AddASN1NULL()
			})
		})
	})
}
