package keyfile

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	encasn1 "encoding/asn1"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

// Trusted is a certificate that a key store trusts: an entry without a key, which in PKCS#12 Java has marked as trusted. It
// is not parsed: among a few hundred public CAs there is one that Go refuses and its owner wants.
type Trusted struct {
	Alias string
	DER   []byte
}

// TrustedIn lists the certificates that a key store of either kind trusts, once the password has opened it. A store of
// which nothing is trusted is no error.
func TrustedIn(data, password []byte) ([]Trusted, error) {
	entries, _, err := rawEntries(data, password)
	if err != nil {
		return nil, err
	}
	var all []Trusted
	for _, e := range entries {
		if e.trusted {
			all = append(all, Trusted{e.alias, e.der})
		}
	}
	return all, nil
}

// Retrust returns a key store of the same kind with other trusted certificates: without those that drop names, and with
// more. All else that is in it (keys, secrets, other people's certificates) stays as it is, octet by octet, but that what of a
// PKCS#12 file is sealed is sealed anew, as EncodePKCS12 does. What of it was not stays so: a file without MAC and encryption,
// which is for readers without a password, gets neither, and the password is not looked at, as Java does not. An alias that is
// taken gets a number.
func Retrust(data, password []byte, drop func(Trusted) bool, more []Entry) ([]byte, error) {
	entries, form, err := rawEntries(data, password)
	if err != nil {
		return nil, err
	}
	var kept []rawEntry
	taken := map[string]bool{}
	for _, e := range entries {
		if e.trusted && drop(Trusted{e.alias, e.der}) {
			continue
		}
		kept = append(kept, e)
		taken[strings.ToLower(e.alias)] = true
	}
	jks := bytes.HasPrefix(data, jksMagic)
	seal := sealsTrusted(entries, form)
	for _, m := range more {
		if m.Key != nil || len(m.Chain) != 1 {
			return nil, fault.New(fault.Invalid, "entry %q is no trusted certificate, and nothing else is added to a store", m.Alias)
		}
		stem := m.Alias
		for n := 2; taken[strings.ToLower(m.Alias)]; n++ {
			m.Alias = fmt.Sprintf("%s-%d", stem, n)
		}
		taken[strings.ToLower(m.Alias)] = true
		e := rawEntry{alias: m.Alias, der: m.Chain[0].Raw, trusted: true, sealed: seal}
		if !jks {
			if e.raw, err = certBag(m.Chain[0], [][]byte{nameAttribute(m.Alias), trustedAttribute()}); err != nil {
				return nil, err
			}
		} else if e.raw, err = rawJKSTrusted(m, binary.BigEndian.Uint32(data[4:])); err != nil {
			return nil, err
		}
		kept = append(kept, e)
	}
	if jks {
		return sealJKS(kept, binary.BigEndian.Uint32(data[4:]), password), nil
	}
	var sealed, plain [][]byte
	for _, e := range kept {
		if e.sealed {
			sealed = append(sealed, e.raw)
		} else {
			plain = append(plain, e.raw)
		}
	}
	form.sealed = form.sealed || seal
	return formPKCS12(sealed, plain, form, password)
}

// sealsTrusted reports whether certificates that are added to a PKCS#12 file are to be encrypted: as those are that it trusts,
// or else as the rest of the file is. One with a MAC in which there are but keys, sealed by themselves, is made as we make ours.
func sealsTrusted(entries []rawEntry, form form12) bool {
	plain := false
	for _, e := range entries {
		if e.trusted {
			return e.sealed
		}
		plain = plain || !e.sealed && !e.key
	}
	return form.sealed || form.mac && !plain
}

// rawEntry is an entry of a JKS store, or a bag of a PKCS#12 one, as it is in the file.
type rawEntry struct {
	alias   string
	raw     []byte
	der     []byte // of the certificate, where it is one
	key     bool   // it is a private key, sealed by itself where the store is sealed
	trusted bool
	sealed  bool // it was in an encrypted part of a PKCS#12 file
}

func rawEntries(data, password []byte) ([]rawEntry, form12, error) {
	if err := readable(data); err != nil {
		return nil, form12{}, err
	}
	if bytes.HasPrefix(data, jksMagic) || bytes.HasPrefix(data, jceksMagic) {
		all, err := rawJKS(data, password)
		return all, form12{}, err
	}
	r := &reader12{password: password, bmp: bmpPassword(password), left: newBudget(), keep: true}
	if err := r.open(data); err != nil {
		return nil, form12{}, err
	}
	return r.raw, r.form, nil
}

// rawJKS reads a JKS store without opening its keys or parsing its certificates.
func rawJKS(data, password []byte) ([]rawEntry, error) {
	content, err := jksContent(data, password)
	if err != nil {
		return nil, err
	}
	in := cryptobyte.String(content[4:])
	var version, count uint32
	if !in.ReadUint32(&version) || !in.ReadUint32(&count) || version < 1 || version > 2 {
		return nil, errJKS
	}
	r := &jksReader{in: in, version: version}
	var all []rawEntry
	for range count {
		begin := r.in
		e, err := r.rawEntry()
		if err != nil {
			return nil, err
		}
		e.raw = begin[:len(begin)-len(r.in)]
		all = append(all, e)
	}
	if !r.in.Empty() {
		return nil, errJKS
	}
	return all, nil
}

func (r *jksReader) rawEntry() (rawEntry, error) {
	var e rawEntry
	var tag uint32
	var millis uint64
	var alias cryptobyte.String
	if !r.in.ReadUint32(&tag) || !r.in.ReadUint16LengthPrefixed(&alias) || !r.in.ReadUint64(&millis) {
		return e, errJKS
	}
	var ok bool
	if e.alias, ok = javaText(alias); !ok {
		return e, errJKS
	}
	count := uint32(1)
	switch tag {
	case jksKeyEntry:
		e.key = true
		if _, ok := r.bytes32(); !ok || !r.in.ReadUint32(&count) {
			return e, errJKS
		}
	case jksTrustedEntry:
		e.trusted = true
	default:
		return e, errJKS
	}
	for range count {
		if r.certs++; r.certs > maxCertificates {
			return e, tooManyCertificates()
		}
		var kind cryptobyte.String
		if r.version == 2 && !r.in.ReadUint16LengthPrefixed(&kind) {
			return e, errJKS
		}
		if e.der, ok = r.bytes32(); !ok {
			return e, errJKS
		}
	}
	return e, nil
}

func rawJKSTrusted(e Entry, version uint32) ([]byte, error) {
	text := javaUTF(strings.ToLower(e.Alias))
	if len(text) == 0 || len(text) > 0xffff {
		return nil, fault.New(fault.Invalid, "an alias of %d bytes is refused; 1 to 65535 pass", len(text))
	}
	out := binary.BigEndian.AppendUint32(nil, jksTrustedEntry)
	out = binary.BigEndian.AppendUint16(out, uint16(len(text)))
	out = append(out, text...)
	out = binary.BigEndian.AppendUint64(out, uint64(e.Chain[0].NotBefore.UnixMilli()))
	if version == 2 {
		out = append(out, 0, 5)
		out = append(out, "X.509"...)
	}
	return appendBytes32(out, e.Chain[0].Raw), nil
}

func sealJKS(entries []rawEntry, version uint32, password []byte) []byte {
	out := append([]byte{}, jksMagic...)
	out = binary.BigEndian.AppendUint32(out, version)
	out = binary.BigEndian.AppendUint32(out, uint32(len(entries)))
	for _, e := range entries {
		out = append(out, e.raw...)
	}
	return append(out, jksDigest(password, out)...)
}

// jksContent is a JKS store without its digest, which has been checked.
func jksContent(data, password []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(data, jceksMagic):
		return nil, fault.New(fault.Invalid, "the key store is of type JCEKS; JKS and PKCS#12 are read").
			WithHint("keytool -importkeystore -srckeystore FILE -srcstoretype JCEKS -destkeystore NEW -deststoretype PKCS12")
	case !bytes.HasPrefix(data, jksMagic):
		return nil, fault.New(fault.Invalid, "the file is not a JKS key store")
	case len(data) < 12+sha1.Size:
		return nil, errJKS
	}
	content, digest := data[:len(data)-sha1.Size], data[len(data)-sha1.Size:]
	if password != nil && !hmac.Equal(digest, jksDigest(password, content)) {
		return nil, wrongPassword("key store")
	}
	return content, nil
}

// keepBag keeps a bag of a PKCS#12 file as it is.
func (r *reader12) keepBag(element []byte, b *bag, oid encasn1.ObjectIdentifier, value cryptobyte.String) error {
	e := rawEntry{alias: b.name, raw: element, sealed: r.sealed}
	switch {
	case oid.Equal(oidShroudedKeyBag), oid.Equal(oidKeyBag):
		if r.keys++; r.keys > maxStoreKeys {
			return fault.New(fault.TooLarge, "the key store holds more than %d private keys", maxStoreKeys)
		}
		e.key = true
	case oid.Equal(oidCertBag):
		var body, content cryptobyte.String
		var kind encasn1.ObjectIdentifier
		if !value.ReadASN1(&body, asn1.SEQUENCE) || !body.ReadASN1ObjectIdentifier(&kind) || !body.ReadASN1(&content, explicit0) {
			return errPKCS12
		}
		if kind.Equal(oidX509Bag) && !content.ReadASN1Bytes(&e.der, asn1.OCTET_STRING) {
			return errPKCS12
		}
		e.trusted = b.trusted && b.keyID == nil && e.der != nil
	}
	if r.raw = append(r.raw, e); len(r.raw) > maxCertificates {
		return tooManyCertificates()
	}
	return nil
}
