package keyfile

import (
	"crypto"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/subtle"
	"crypto/x509"
	encasn1 "encoding/asn1"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

var (
	jksMagic   = []byte{0xfe, 0xed, 0xfe, 0xed}
	jceksMagic = []byte{0xce, 0xce, 0xce, 0xce}
	// oidSunProtector is the private scheme by which JKS seals keys: a keystream of chained SHA-1.
	oidSunProtector = encasn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 42, 2, 17, 1, 1}
)

const (
	jksKeyEntry     = 1
	jksTrustedEntry = 2
	// jksWhitening goes into the digest of the whole store, between the password and the content.
	jksWhitening = "Mighty Aphrodite"
)

// EncodeJKS returns a Java key store of type JKS, version 2. KeyPassword nil means the store's password, which is what
// keytool and most consumers expect. Aliases are written in lower case, because Java looks them up so, and in order; the
// salt of a key comes from the key and its password: the same entries give the same bytes. JKS protects a key weakly, so
// the file's mode is what keeps it.
func EncodeJKS(entries []Entry, storePassword, keyPassword []byte) ([]byte, error) {
	if err := checkEntries(entries); err != nil {
		return nil, err
	}
	if keyPassword == nil {
		keyPassword = storePassword
	}
	entries = slices.SortedFunc(slices.Values(entries), func(a, b Entry) int {
		return strings.Compare(strings.ToLower(a.Alias), strings.ToLower(b.Alias))
	})
	out := append([]byte{}, jksMagic...)
	out = binary.BigEndian.AppendUint32(out, 2)
	out = binary.BigEndian.AppendUint32(out, uint32(len(entries)))
	last := ""
	for _, e := range entries {
		alias := strings.ToLower(e.Alias)
		if alias == "" || alias == last {
			return nil, fault.New(fault.Invalid, "alias %q is empty or used twice; Java does not tell upper from lower case", alias)
		}
		last = alias
		text := javaUTF(alias)
		if len(text) > 0xffff {
			return nil, fault.New(fault.TooLarge, "an alias of %d bytes is refused; at most 65535 pass", len(text))
		}
		created := e.CreatedAt
		if created.IsZero() {
			created = e.Chain[0].NotBefore
		}
		tag := uint32(jksTrustedEntry)
		if e.Key != nil {
			tag = jksKeyEntry
		}
		out = binary.BigEndian.AppendUint32(out, tag)
		out = binary.BigEndian.AppendUint16(out, uint16(len(text)))
		out = append(out, text...)
		out = binary.BigEndian.AppendUint64(out, uint64(created.UnixMilli()))
		if e.Key != nil {
			sealed, err := sealJKSKey(e, utf16BE(keyPassword))
			if err != nil {
				return nil, err
			}
			out = appendBytes32(out, sealed)
			out = binary.BigEndian.AppendUint32(out, uint32(len(e.Chain)))
		}
		for _, c := range e.Chain {
			out = append(out, 0, 5)
			out = append(out, "X.509"...)
			out = appendBytes32(out, c.Raw)
		}
	}
	return append(out, jksDigest(storePassword, out)...), nil
}

func appendBytes32(out, p []byte) []byte {
	return append(binary.BigEndian.AppendUint32(out, uint32(len(p))), p...)
}

func jksDigest(password, content []byte) []byte {
	h := sha1.New()
	h.Write(utf16BE(password))
	h.Write([]byte(jksWhitening))
	h.Write(content)
	return h.Sum(nil)
}

// utf16BE is a password as Java hashes it.
func utf16BE(password []byte) []byte {
	bmp := bmpPassword(password)
	return bmp[:len(bmp)-2]
}

func sealJKSKey(e Entry, password []byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(e.Key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	mac := hmac.New(sha1.New, password)
	mac.Write([]byte(strings.ToLower(e.Alias)))
	mac.Write([]byte{0})
	mac.Write(der)
	salt := mac.Sum(nil)
	sealed := append(slices.Clone(salt), jksStream(der, password, salt)...)
	sealed = append(sealed, jksKeyCheck(password, der)...)
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidSunProtector)
			b.AddASN1NULL()
		})
		b.AddASN1OctetString(sealed)
	})
	return b.Bytes()
}

// jksStream returns p XOR the keystream, which is its own inverse.
func jksStream(p, password, salt []byte) []byte {
	out := make([]byte, len(p))
	h := sha1.New()
	for at := 0; at < len(p); at += sha1.Size {
		h.Reset()
		h.Write(password)
		h.Write(salt)
		salt = h.Sum(nil)
		subtle.XORBytes(out[at:], p[at:], salt[:min(sha1.Size, len(p)-at)])
	}
	return out
}

func jksKeyCheck(password, der []byte) []byte {
	sum := sha1.Sum(append(slices.Clone(password), der...))
	return sum[:]
}

// DecodeJKS reads a Java key store of type JKS, version 1 or 2. KeyPassword nil means the store's password. A store
// password of nil skips the check of the whole, as Java does for trust stores; keys then need a key password. Counts in
// the file are never believed: nothing is allocated for more than the bytes that are there.
func DecodeJKS(data, storePassword, keyPassword []byte) ([]Entry, error) {
	if err := readable(data); err != nil {
		return nil, err
	}
	content, err := jksContent(data, storePassword)
	if err != nil {
		return nil, err
	}
	if keyPassword == nil {
		keyPassword = storePassword
	}
	in := cryptobyte.String(content[4:])
	var version, count uint32
	if !in.ReadUint32(&version) || !in.ReadUint32(&count) || version < 1 || version > 2 {
		return nil, errJKS
	}
	r := &jksReader{in: in, version: version, password: keyPassword}
	var entries []Entry
	for range count {
		e, err := r.entry()
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	if !r.in.Empty() {
		return nil, errJKS
	}
	return entries, nil
}

var errJKS = fault.New(fault.Invalid, "the file is not a valid JKS key store, or it is truncated")

type jksReader struct {
	in          cryptobyte.String
	version     uint32
	password    []byte
	keys, certs int
}

func (r *jksReader) entry() (Entry, error) {
	var e Entry
	var tag uint32
	var millis uint64
	var alias cryptobyte.String
	if !r.in.ReadUint32(&tag) || !r.in.ReadUint16LengthPrefixed(&alias) || !r.in.ReadUint64(&millis) {
		return e, errJKS
	}
	var ok bool
	if e.Alias, ok = javaText(alias); !ok {
		return e, errJKS
	}
	e.CreatedAt = time.UnixMilli(int64(millis)).UTC()
	count := uint32(1)
	switch tag {
	case jksKeyEntry:
		sealed, ok := r.bytes32()
		if !ok || !r.in.ReadUint32(&count) {
			return e, errJKS
		}
		var err error
		if e.Key, err = r.key(sealed); err != nil {
			return e, fmt.Errorf("alias %q: %w", printable(e.Alias), err)
		}
	case jksTrustedEntry:
	default:
		return e, errJKS
	}
	for range count {
		c, err := r.certificate()
		if err != nil {
			return e, err
		}
		e.Chain = append(e.Chain, c)
	}
	return e, nil
}

func (r *jksReader) key(sealed []byte) (crypto.Signer, error) {
	if r.keys++; r.keys > maxStoreKeys {
		return nil, fault.New(fault.TooLarge, "the key store holds more than %d private keys", maxStoreKeys)
	}
	if r.password == nil {
		return nil, needPassword("private key")
	}
	in := cryptobyte.String(sealed)
	var info, algorithm, content cryptobyte.String
	var oid encasn1.ObjectIdentifier
	if !in.ReadASN1(&info, asn1.SEQUENCE) || !in.Empty() || !info.ReadASN1(&algorithm, asn1.SEQUENCE) ||
		!info.ReadASN1(&content, asn1.OCTET_STRING) || !algorithm.ReadASN1ObjectIdentifier(&oid) ||
		len(content) < 2*sha1.Size || len(content) > maxKeyDER {
		return nil, errJKS
	}
	if !oid.Equal(oidSunProtector) {
		return nil, fault.New(fault.Invalid, "the private key is sealed by %s, which is not JKS's scheme", oid)
	}
	password := utf16BE(r.password)
	salt, check := content[:sha1.Size], content[len(content)-sha1.Size:]
	der := jksStream(content[sha1.Size:len(content)-sha1.Size], password, salt)
	if !hmac.Equal(check, jksKeyCheck(password, der)) {
		return nil, wrongPassword("private key")
	}
	return parsePKCS8(der)
}

func (r *jksReader) certificate() (*x509.Certificate, error) {
	if r.certs++; r.certs > maxCertificates {
		return nil, tooManyCertificates()
	}
	if r.version == 2 { // version 1 has only X.509 and does not say so
		var kind cryptobyte.String
		if !r.in.ReadUint16LengthPrefixed(&kind) {
			return nil, errJKS
		}
		if string(kind) != "X.509" {
			return nil, fault.New(fault.Invalid, "the key store holds a certificate of type %q; X.509 is read", printable(string(kind)))
		}
	}
	der, ok := r.bytes32()
	if !ok {
		return nil, errJKS
	}
	return parseCertificate(der)
}

func (r *jksReader) bytes32() ([]byte, bool) {
	var n uint32
	var out []byte
	if !r.in.ReadUint32(&n) || int64(n) > int64(len(r.in)) || !r.in.ReadBytes(&out, int(n)) {
		return nil, false
	}
	return out, true
}

// javaUTF is the modified UTF-8 of java.io.DataOutput: surrogates one by one, and NUL in two bytes.
func javaUTF(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		switch {
		case u != 0 && u < 0x80:
			out = append(out, byte(u))
		case u < 0x800:
			out = append(out, 0xc0|byte(u>>6), 0x80|byte(u&0x3f))
		default:
			out = append(out, 0xe0|byte(u>>12), 0x80|byte(u>>6&0x3f), 0x80|byte(u&0x3f))
		}
	}
	return out
}

// javaText reads modified UTF-8.
func javaText(p []byte) (string, bool) {
	var units []uint16
	for len(p) > 0 {
		c, n := uint16(p[0]), 1
		switch {
		case c >= 0xe0 && c < 0xf0:
			c, n = c&0x0f, 3
		case c >= 0xc0 && c < 0xe0:
			c, n = c&0x1f, 2
		case c >= 0x80:
			return "", false
		}
		if len(p) < n {
			return "", false
		}
		for _, b := range p[1:n] {
			if b&0xc0 != 0x80 {
				return "", false
			}
			c = c<<6 | uint16(b&0x3f)
		}
		units = append(units, c)
		p = p[n:]
	}
	return string(utf16.Decode(units)), true
}
