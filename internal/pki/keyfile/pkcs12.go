package keyfile

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	encasn1 "encoding/asn1"
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

var (
	oidData           = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidEncryptedData  = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 6}
	oidKeyBag         = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 1}
	oidShroudedKeyBag = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 2}
	oidCertBag        = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 3}
	oidSafeBag        = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 6}
	oidX509Bag        = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 22, 1}
	oidFriendlyName   = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 20}
	oidLocalKeyID     = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 21}
	oidJavaTrusted    = encasn1.ObjectIdentifier{2, 16, 840, 1, 113894, 746875, 1, 1}
	oidSHA1           = encasn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA224         = encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 4}
	oidSHA256         = encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidSHA384         = encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
	oidSHA512         = encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}
	oidPBMAC1         = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 14}
)

// pkcs12Iterations is what Java writes; OpenSSL writes 2,048.
const pkcs12Iterations = 10_000

var (
	explicit0 = asn1.Tag(0).ContextSpecific().Constructed()
	implicit0 = asn1.Tag(0).ContextSpecific()
)

// EncodePKCS12 returns a key store that OpenSSL 1.1.1, GnuTLS, NSS, Java 12 and Windows Server 2019 and later read: keys
// and certificates under PBES2 (PBKDF2-HMAC-SHA-256, AES-256-CBC), the whole under HMAC-SHA-256 with the derivation of
// RFC 7292 appendix B. Keys and certificates bear their friendlyNames; certificates without a key are marked as Java's
// trusted entries. The PBMAC1 of RFC 9579 is not written, because OpenSSL 3.0 and Java 17 do not read it.
func EncodePKCS12(entries []Entry, password []byte) ([]byte, error) {
	if err := checkEntries(entries); err != nil {
		return nil, err
	}
	keyBags, certBags, err := safeBags(entries, password)
	if err != nil {
		return nil, err
	}
	return sealPKCS12(keyBags, certBags, password)
}

// form12 is how a PKCS#12 file is protected. Java reads the certificates of one that has neither a MAC nor encryption without
// a password, and with any: its own cacerts is of that form since JDK 18.
type form12 struct {
	mac    bool // the whole is under a MAC
	sealed bool // some of it is encrypted, besides keys that are sealed by themselves
}

// sealPKCS12 makes a key store of bags: those of sealed keys as they are, the others sealed together.
func sealPKCS12(keyBags, otherBags [][]byte, password []byte) ([]byte, error) {
	return formPKCS12(otherBags, keyBags, form12{mac: true, sealed: true}, password)
}

// formPKCS12 makes a key store of bags to be sealed together, and of others that stay as they are.
func formPKCS12(sealed, plain [][]byte, form form12, password []byte) ([]byte, error) {
	safe := cryptobyte.NewBuilder(nil)
	safe.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if form.sealed {
			addEncryptedSafe(b, sealed, password)
		}
		if len(plain) > 0 || !form.sealed {
			addContentInfo(b, oidData, func(b *cryptobyte.Builder) { b.AddASN1OctetString(sequence(plain)) })
		}
	})
	content, err := safe.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode PKCS#12: %w", err)
	}
	pfx := cryptobyte.NewBuilder(nil)
	pfx.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(3)
		addContentInfo(b, oidData, func(b *cryptobyte.Builder) { b.AddASN1OctetString(content) })
		if form.mac {
			addMAC(b, content, password)
		}
	})
	out, err := pfx.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode PKCS#12: %w", err)
	}
	return out, nil
}

// addMAC adds MacData over the octets of the authenticated safe.
func addMAC(b *cryptobyte.Builder, content, password []byte) {
	salt := make([]byte, saltLength)
	rand.Read(salt)
	mac := hmac.New(sha256.New, derive12(sha256.New, bmpPassword(password), salt, pkcs12Iterations, deriveMACKey, sha256.Size))
	mac.Write(content)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidSHA256)
				b.AddASN1NULL()
			})
			b.AddASN1OctetString(mac.Sum(nil))
		})
		b.AddASN1OctetString(salt)
		b.AddASN1Int64(pkcs12Iterations)
	})
}

// safeBags encodes each key, and each certificate once: entries may share the upper part of their paths.
func safeBags(entries []Entry, password []byte) (keys, certs [][]byte, err error) {
	written := make(map[string]bool)
	addCert := func(c *x509.Certificate, attributes ...[]byte) error {
		if written[string(c.Raw)] {
			return nil
		}
		written[string(c.Raw)] = true
		bag, err := certBag(c, attributes)
		certs = append(certs, bag)
		return err
	}
	// All leaves come before all others: a certificate that is one entry's leaf and in another's path keeps its localKeyID.
	for _, e := range entries {
		if e.Key == nil {
			if err := addCert(e.Chain[0], nameAttribute(e.Alias), trustedAttribute()); err != nil {
				return nil, nil, err
			}
			continue
		}
		id := e.KeyID
		if id == nil {
			sum := sha1.Sum(e.Chain[0].Raw)
			id = sum[:]
		}
		attributes := [][]byte{nameAttribute(e.Alias), keyIDAttribute(id)}
		bag, err := keyBag(e, password, attributes)
		if err != nil {
			return nil, nil, err
		}
		keys = append(keys, bag)
		if err := addCert(e.Chain[0], attributes...); err != nil {
			return nil, nil, err
		}
	}
	for _, e := range entries {
		for i, c := range e.Chain[1:] {
			name := ""
			if i < len(e.CANames) {
				name = e.CANames[i]
			}
			if err := addCert(c, nameAttribute(name)); err != nil {
				return nil, nil, err
			}
		}
	}
	return keys, certs, nil
}

func keyBag(e Entry, password []byte, attributes [][]byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(e.Key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	sealed, err := encryptedPrivateKeyInfo(der, password, pkcs12Iterations)
	if err != nil {
		return nil, err
	}
	return safeBag(oidShroudedKeyBag, sealed, attributes)
}

func certBag(c *x509.Certificate, attributes [][]byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidX509Bag)
		b.AddASN1(explicit0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(c.Raw) })
	})
	value, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode certificate bag: %w", err)
	}
	return safeBag(oidCertBag, value, attributes)
}

// safeBag encodes RFC 7292's SafeBag. Attributes are a SET OF, which DER sorts; empty ones are left out.
func safeBag(oid encasn1.ObjectIdentifier, value []byte, attributes [][]byte) ([]byte, error) {
	attributes = slices.DeleteFunc(slices.Clone(attributes), func(a []byte) bool { return len(a) == 0 })
	slices.SortFunc(attributes, bytes.Compare)
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(explicit0, func(b *cryptobyte.Builder) { b.AddBytes(value) })
		if len(attributes) > 0 {
			b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(attributes...)) })
		}
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode safe bag: %w", err)
	}
	return der, nil
}

func attribute(oid encasn1.ObjectIdentifier, value func(*cryptobyte.Builder)) []byte {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(asn1.SET, value)
	})
	return b.BytesOrPanic() // nothing in it can fail: a constant identifier and a short value
}

func nameAttribute(name string) []byte {
	if name == "" {
		return nil
	}
	return attribute(oidFriendlyName, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.Tag(30), func(b *cryptobyte.Builder) { // BMPString
			for _, u := range utf16.Encode([]rune(name)) {
				b.AddUint16(u)
			}
		})
	})
}

func keyIDAttribute(id []byte) []byte {
	return attribute(oidLocalKeyID, func(b *cryptobyte.Builder) { b.AddASN1OctetString(id) })
}

// trustedAttribute is what Java looks for before it takes a certificate for trusted: its own attribute, whose value lists
// the key purposes trusted for, here any.
func trustedAttribute() []byte {
	return attribute(oidJavaTrusted, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(encasn1.ObjectIdentifier{2, 5, 29, 37, 0})
	})
}

func addContentInfo(b *cryptobyte.Builder, oid encasn1.ObjectIdentifier, content func(*cryptobyte.Builder)) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(explicit0, content)
	})
}

// addEncryptedSafe adds the bags as one ContentInfo of EncryptedData (RFC 5652 section 8).
func addEncryptedSafe(b *cryptobyte.Builder, bags [][]byte, password []byte) {
	algorithm, sealed, err := pbes2Encrypt(sequence(bags), password, pkcs12Iterations)
	if err != nil {
		b.SetError(err)
		return
	}
	addContentInfo(b, oidEncryptedData, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidData)
				b.AddBytes(algorithm)
				b.AddASN1(implicit0, func(b *cryptobyte.Builder) { b.AddBytes(sealed) })
			})
		})
	})
}

func sequence(elements [][]byte) []byte {
	return appendDER(nil, byte(asn1.SEQUENCE), slices.Concat(elements...))
}

// bmpText reads the inside of a BMPString; a value that is not one is passed over as no name.
func bmpText(value cryptobyte.String) string {
	var text cryptobyte.String
	if !value.ReadASN1(&text, asn1.Tag(30)) || len(text)%2 != 0 {
		return ""
	}
	units := make([]uint16, len(text)/2)
	for i := range units {
		units[i] = binary.BigEndian.Uint16(text[2*i:])
	}
	return string(utf16.Decode(units))
}

var errPKCS12 = fault.New(fault.Invalid, "the file is not a valid PKCS#12 key store")
