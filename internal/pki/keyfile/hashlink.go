package keyfile

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

// NameHash is the hash by which OpenSSL 1.0 and later finds a CA certificate or CRL in a directory (openssl x509 -hash):
// the first four octets, least significant first, of the SHA-1 of the name's canonical encoding.
func NameHash(name []byte) (string, error) {
	canonical, err := canonicalName(name)
	if err != nil {
		return "", err
	}
	sum := sha1.Sum(canonical)
	return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(sum[:])), nil
}

// OldNameHash is the hash of OpenSSL before 1.0 (openssl x509 -subject_hash_old): MD5 of
// the name's DER.
func OldNameHash(name []byte) string {
	sum := md5.Sum(name)
	return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(sum[:]))
}

// canonicalName is OpenSSL's canonical form of a DER name: every text becomes a UTF8String in lower case (ASCII letters
// only) without outer spaces and with single inner ones; each RDN is sorted again; the outer SEQUENCE's header is left out.
func canonicalName(name []byte) ([]byte, error) {
	invalid := fault.New(fault.Invalid, "the name is not valid DER")
	in := cryptobyte.String(name)
	var rdns, rdn cryptobyte.String
	if !in.ReadASN1(&rdns, asn1.SEQUENCE) || !in.Empty() {
		return nil, invalid
	}
	var out []byte
	for !rdns.Empty() {
		if !rdns.ReadASN1(&rdn, asn1.SET) {
			return nil, invalid
		}
		var attributes [][]byte
		for !rdn.Empty() {
			var one, oid, value, element cryptobyte.String
			var tag asn1.Tag
			if !rdn.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1Element(&oid, asn1.OBJECT_IDENTIFIER) {
				return nil, invalid
			}
			element = one
			if !one.ReadAnyASN1(&value, &tag) || !one.Empty() {
				return nil, invalid
			}
			canonical := []byte(element)
			if text, ok := decodeText(tag, value); ok {
				canonical = appendDER(nil, byte(asn1.UTF8String), foldText(text))
			}
			attributes = append(attributes, appendDER(nil, byte(asn1.SEQUENCE), append(slices.Clone([]byte(oid)), canonical...)))
		}
		slices.SortFunc(attributes, bytes.Compare)
		out = append(out, appendDER(nil, byte(asn1.SET), slices.Concat(attributes...))...)
	}
	return out, nil
}

// decodeText turns the string types that OpenSSL folds into UTF-8; others it leaves as they are.
func decodeText(tag asn1.Tag, value []byte) ([]byte, bool) {
	switch tag {
	case asn1.UTF8String, asn1.PrintableString, asn1.IA5String, 26: // VisibleString
		return value, true
	case asn1.T61String: // OpenSSL takes it for Latin-1
		var out []byte
		for _, c := range value {
			out = utf8.AppendRune(out, rune(c))
		}
		return out, true
	case 30: // BMPString
		if len(value)%2 != 0 {
			return nil, false
		}
		units := make([]uint16, len(value)/2)
		for i := range units {
			units[i] = binary.BigEndian.Uint16(value[2*i:])
		}
		return []byte(string(utf16.Decode(units))), true
	case 28: // UniversalString
		if len(value)%4 != 0 {
			return nil, false
		}
		var out []byte
		for i := 0; i < len(value); i += 4 {
			out = utf8.AppendRune(out, rune(binary.BigEndian.Uint32(value[i:])))
		}
		return out, true
	}
	return nil, false
}

func foldText(text []byte) []byte {
	space := func(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
	var out []byte
	for i, c := range text {
		switch {
		case space(c):
			if len(out) > 0 && !space(text[i-1]) {
				out = append(out, ' ')
			}
		case c >= 'A' && c <= 'Z':
			out = append(out, c+'a'-'A')
		default:
			out = append(out, c)
		}
	}
	return bytes.TrimSuffix(out, []byte(" "))
}

// HashTarget is a file of a hashed directory: a CA certificate, or a CRL.
type HashTarget struct {
	File        string
	Certificate *x509.Certificate
	CRL         *x509.RevocationList
}

// HashLink is a symbolic link that a hashed directory needs.
type HashLink struct{ Name, File string }

// HashLinks returns the links by which OpenSSL finds the targets in their directory: HASH.N for certificates and HASH.rN for
// CRLs, counted up where names collide, in the order of the targets; of equal contents only the first is linked. Old adds
// the links that programs built on OpenSSL before 1.0 look up, as openssl rehash -compat does.
func HashLinks(targets []HashTarget, old bool) ([]HashLink, error) {
	var links []HashLink
	seen := make(map[string]bool)
	next := make(map[string]int)
	for _, t := range targets {
		infix, name, raw := ".", []byte(nil), []byte(nil)
		switch {
		case t.Certificate != nil:
			name, raw = t.Certificate.RawSubject, t.Certificate.Raw
		case t.CRL != nil:
			infix, name, raw = ".r", t.CRL.RawIssuer, t.CRL.Raw
		default:
			return nil, fault.New(fault.Invalid, "%s holds neither a certificate nor a CRL", t.File)
		}
		if seen[infix+string(raw)] {
			continue
		}
		seen[infix+string(raw)] = true
		current, err := NameHash(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.File, err)
		}
		hashes := []string{current}
		if old {
			hashes = append(hashes, OldNameHash(name))
		}
		for _, hash := range hashes {
			stem := hash + infix
			links = append(links, HashLink{fmt.Sprintf("%s%d", stem, next[stem]), t.File})
			next[stem]++
		}
	}
	return links, nil
}
