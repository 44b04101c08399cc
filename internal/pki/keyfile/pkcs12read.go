package keyfile

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	encasn1 "encoding/asn1"
	"fmt"
	"hash"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

// bag is what one SafeBag held.
type bag struct {
	key     crypto.Signer
	cert    *x509.Certificate
	name    string
	keyID   []byte
	trusted bool
}

// reader12 opens one PKCS#12 file.
type reader12 struct {
	password []byte // as PBES2 takes it
	bmp      []byte // as RFC 7292 appendix B.1 takes it
	left     *budget
	bags     []bag
	keys     int
	keep     bool       // bags are kept as they are and not opened
	raw      []rawEntry // they
	form     form12
	sealed   bool // what is read now was encrypted
}

// DecodePKCS12 reads a key store as OpenSSL, GnuTLS, NSS (in BER), Java and Windows write it, old encryptions and PBMAC1
// included. Each private key becomes an entry with its path as far as the file has it; each certificate that belongs to no
// key's path, or that Java marked as trusted, becomes an entry without a key. CRLs and secrets in the file are passed over.
// A nil password opens only what has neither encryption nor MAC.
func DecodePKCS12(data, password []byte) ([]Entry, error) {
	return decodePKCS12(data, password, newBudget())
}

func decodePKCS12(data, password []byte, left *budget) ([]Entry, error) {
	if err := readable(data); err != nil {
		return nil, err
	}
	r := &reader12{password: password, bmp: bmpPassword(password), left: left}
	if err := r.open(data); err != nil {
		return nil, err
	}
	return r.entries()
}

// open reads the file's bags.
func (r *reader12) open(data []byte) error {
	der, err := berToDER(data)
	if err != nil {
		return errPKCS12
	}
	in := cryptobyte.String(der)
	var pfx, content, macData cryptobyte.String
	var version int
	if !in.ReadASN1(&pfx, asn1.SEQUENCE) || !in.Empty() || !pfx.ReadASN1Integer(&version) {
		return errPKCS12
	}
	if version != 3 {
		return fault.New(fault.Invalid, "the PKCS#12 file has version %d; 3 is read", version)
	}
	oid, content, ok := readContentInfo(&pfx)
	if !ok {
		return errPKCS12
	}
	if !oid.Equal(oidData) {
		return fault.New(fault.Invalid, "the PKCS#12 file is sealed by a public key; one sealed by a password is read")
	}
	var safe cryptobyte.String
	if !content.ReadASN1(&safe, asn1.OCTET_STRING) {
		return errPKCS12
	}
	if !pfx.Empty() {
		if !pfx.ReadASN1(&macData, asn1.SEQUENCE) || !pfx.Empty() {
			return errPKCS12
		}
		if err := r.checkMAC(macData, safe); err != nil {
			return err
		}
		r.form.mac = true
	}
	return r.readSafe(safe)
}

func readContentInfo(in *cryptobyte.String) (oid encasn1.ObjectIdentifier, content cryptobyte.String, ok bool) {
	var info cryptobyte.String
	ok = in.ReadASN1(&info, asn1.SEQUENCE) && info.ReadASN1ObjectIdentifier(&oid) && info.ReadASN1(&content, explicit0)
	return oid, content, ok
}

// checkMAC verifies MacData over the octets of the authenticated safe. An empty password has two forms in the field, two
// zero octets and none; the one that fits is kept for decryption.
func (r *reader12) checkMAC(macData, content cryptobyte.String) error {
	var digestInfo, algorithm cryptobyte.String
	var oid encasn1.ObjectIdentifier
	var digest, salt []byte
	iterations := 1
	if !macData.ReadASN1(&digestInfo, asn1.SEQUENCE) || !macData.ReadASN1Bytes(&salt, asn1.OCTET_STRING) ||
		(!macData.Empty() && !macData.ReadASN1Integer(&iterations)) || !macData.Empty() || len(salt) > 1024 ||
		!digestInfo.ReadASN1(&algorithm, asn1.SEQUENCE) || !digestInfo.ReadASN1Bytes(&digest, asn1.OCTET_STRING) ||
		!digestInfo.Empty() || !algorithm.ReadASN1ObjectIdentifier(&oid) {
		return errPKCS12
	}
	if oid.Equal(oidPBMAC1) {
		return r.checkPBMAC1(algorithm, digest, content)
	}
	newHash := digestHash(oid)
	if newHash == nil {
		return fault.New(fault.Invalid, "the MAC algorithm %s of the PKCS#12 file is not read; SHA-1 and SHA-2 are", oid)
	}
	forms := [][]byte{r.bmp}
	if len(r.password) == 0 {
		forms = append(forms, []byte{})
	}
	for _, bmp := range forms {
		if err := r.left.spend(iterations); err != nil {
			return err
		}
		mac := hmac.New(newHash, derive12(newHash, bmp, salt, iterations, deriveMACKey, newHash().Size()))
		mac.Write(content)
		if hmac.Equal(mac.Sum(nil), digest) {
			r.bmp = bmp
			return nil
		}
	}
	if r.password == nil {
		return needPassword("PKCS#12 file")
	}
	return wrongPassword("PKCS#12 file")
}

// checkPBMAC1 verifies the MAC of RFC 9579.
func (r *reader12) checkPBMAC1(algorithm cryptobyte.String, digest []byte, content cryptobyte.String) error {
	var params, kdf, kdfParams, scheme, inner cryptobyte.String
	var kdfOID, macOID encasn1.ObjectIdentifier
	var salt []byte
	var iterations, keyLength int
	if !algorithm.ReadASN1(&params, asn1.SEQUENCE) || !params.ReadASN1(&kdf, asn1.SEQUENCE) ||
		!params.ReadASN1(&scheme, asn1.SEQUENCE) || !kdf.ReadASN1ObjectIdentifier(&kdfOID) || !kdfOID.Equal(oidPBKDF2) ||
		!scheme.ReadASN1ObjectIdentifier(&macOID) || hmacHash(macOID) == nil {
		return errPKCS12
	}
	// RFC 9579 section 4: keyLength MUST be there.
	kdfParams = kdf
	if !kdfParams.ReadASN1(&inner, asn1.SEQUENCE) || !inner.ReadASN1Bytes(&salt, asn1.OCTET_STRING) ||
		!inner.ReadASN1Integer(&iterations) || !inner.ReadASN1Integer(&keyLength) || keyLength < 20 || keyLength > 64 {
		return errPKCS12
	}
	key, err := deriveKey(kdfOID, kdf, r.password, keyLength, r.left)
	if err != nil {
		return err
	}
	mac := hmac.New(hmacHash(macOID), key)
	mac.Write(content)
	if !hmac.Equal(mac.Sum(nil), digest) {
		return wrongPassword("PKCS#12 file")
	}
	return nil
}

func digestHash(oid encasn1.ObjectIdentifier) func() hash.Hash {
	switch {
	case oid.Equal(oidSHA1):
		return sha1.New
	case oid.Equal(oidSHA224):
		return sha256.New224
	case oid.Equal(oidSHA256):
		return sha256.New
	case oid.Equal(oidSHA384):
		return sha512.New384
	case oid.Equal(oidSHA512):
		return sha512.New
	}
	return nil
}

// readSafe reads the AuthenticatedSafe: a sequence of plain or encrypted SafeContents.
func (r *reader12) readSafe(content []byte) error {
	list, err := sequenceOf(content)
	if err != nil {
		return err
	}
	for !list.Empty() {
		oid, content, ok := readContentInfo(&list)
		if !ok {
			return errPKCS12
		}
		var plain []byte
		r.sealed = oid.Equal(oidEncryptedData)
		switch {
		case oid.Equal(oidData):
			if !content.ReadASN1Bytes(&plain, asn1.OCTET_STRING) {
				return errPKCS12
			}
		case oid.Equal(oidEncryptedData):
			if plain, err = r.decryptSafe(content); err != nil {
				return err
			}
			r.form.sealed = true
		default:
			return fault.New(fault.Invalid, "the PKCS#12 file holds content of type %s; data under a password is read", oid)
		}
		if err := r.readBags(plain, 0); err != nil {
			return err
		}
	}
	return nil
}

// sequenceOf returns the inside of content, a SEQUENCE in BER with nothing after it.
func sequenceOf(content []byte) (cryptobyte.String, error) {
	der, err := berToDER(content)
	if err != nil {
		return nil, errPKCS12
	}
	in := cryptobyte.String(der)
	var list cryptobyte.String
	if !in.ReadASN1(&list, asn1.SEQUENCE) {
		return nil, errPKCS12
	}
	return list, nil
}

func (r *reader12) decryptSafe(content cryptobyte.String) ([]byte, error) {
	var data, info, algorithm, sealed cryptobyte.String
	var version int
	if !content.ReadASN1(&data, asn1.SEQUENCE) || !data.ReadASN1Integer(&version) || !data.ReadASN1(&info, asn1.SEQUENCE) ||
		!info.SkipASN1(asn1.OBJECT_IDENTIFIER) || !info.ReadASN1(&algorithm, asn1.SEQUENCE) {
		return nil, errPKCS12
	}
	switch {
	case info.PeekASN1Tag(implicit0):
		info.ReadASN1(&sealed, implicit0)
	case info.ReadASN1(&sealed, explicit0): // NSS writes the implicit OCTET STRING in chunks
		var whole []byte
		for !sealed.Empty() {
			var chunk cryptobyte.String
			if !sealed.ReadASN1(&chunk, asn1.OCTET_STRING) {
				return nil, errPKCS12
			}
			whole = append(whole, chunk...)
		}
		sealed = whole
	default:
		return nil, errPKCS12
	}
	if r.password == nil {
		return nil, needPassword("PKCS#12 file")
	}
	return decryptPBE(algorithm, sealed, r.password, r.bmp, r.left, "PKCS#12 file")
}

// readBags reads one SafeContents.
func (r *reader12) readBags(content []byte, depth int) error {
	list, err := sequenceOf(content)
	if err != nil {
		return err
	}
	for !list.Empty() {
		var one, value, attributes cryptobyte.String
		var oid encasn1.ObjectIdentifier
		var has bool
		element := list
		if !list.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&oid) || !one.ReadASN1(&value, explicit0) ||
			!one.ReadOptionalASN1(&attributes, &has, asn1.SET) || !one.Empty() {
			return errPKCS12
		}
		if oid.Equal(oidSafeBag) && depth < 4 {
			if err := r.readBags(value, depth+1); err != nil {
				return err
			}
			continue
		}
		b := bag{}
		if err := b.readAttributes(attributes); err != nil {
			return err
		}
		if r.keep {
			if err := r.keepBag(element[:len(element)-len(list)], &b, oid, value); err != nil {
				return err
			}
			continue
		}
		if err := r.readBag(&b, oid, value); err != nil {
			return err
		}
		if b.key == nil && b.cert == nil {
			continue
		}
		if r.bags = append(r.bags, b); len(r.bags) > maxCertificates {
			return tooManyCertificates()
		}
	}
	return nil
}

func (r *reader12) readBag(b *bag, oid encasn1.ObjectIdentifier, value cryptobyte.String) error {
	var err error
	switch {
	case oid.Equal(oidShroudedKeyBag):
		if r.password == nil {
			return needPassword("private key")
		}
		var plain []byte
		if plain, err = decryptKeyInfo(value, r.password, r.bmp, r.left); err == nil {
			b.key, err = parsePKCS8(plain)
		}
	case oid.Equal(oidKeyBag):
		b.key, err = parsePKCS8(value)
	case oid.Equal(oidCertBag):
		b.cert, err = readCertBag(value)
	}
	if b.key != nil {
		if r.keys++; r.keys > maxStoreKeys {
			return fault.New(fault.TooLarge, "the key store holds more than %d private keys", maxStoreKeys)
		}
	}
	if err != nil && b.name != "" {
		return fmt.Errorf("%q: %w", printable(b.name), err)
	}
	return err
}

func readCertBag(value cryptobyte.String) (*x509.Certificate, error) {
	var body, content cryptobyte.String
	var oid encasn1.ObjectIdentifier
	var der []byte
	if !value.ReadASN1(&body, asn1.SEQUENCE) || !body.ReadASN1ObjectIdentifier(&oid) || !body.ReadASN1(&content, explicit0) {
		return nil, errPKCS12
	}
	if !oid.Equal(oidX509Bag) {
		return nil, fault.New(fault.Invalid, "the PKCS#12 file holds a certificate of type %s; X.509 is read", oid)
	}
	if !content.ReadASN1Bytes(&der, asn1.OCTET_STRING) {
		return nil, errPKCS12
	}
	return parseCertificate(der)
}

// readAttributes reads the attributes it knows; programs add others of their own.
func (b *bag) readAttributes(attributes cryptobyte.String) error {
	for !attributes.Empty() {
		var one, values cryptobyte.String
		var oid encasn1.ObjectIdentifier
		if !attributes.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&oid) || !one.ReadASN1(&values, asn1.SET) {
			return errPKCS12
		}
		switch {
		case oid.Equal(oidFriendlyName):
			b.name = bmpText(values)
		case oid.Equal(oidLocalKeyID):
			values.ReadASN1Bytes(&b.keyID, asn1.OCTET_STRING)
		case oid.Equal(oidJavaTrusted):
			b.trusted = true
		}
	}
	return nil
}

// entries puts keys and certificates together.
func (r *reader12) entries() ([]Entry, error) {
	var certs []*x509.Certificate
	names := make(map[string]string)
	for _, b := range r.bags {
		if b.cert != nil {
			certs = append(certs, b.cert)
			if b.name != "" {
				names[string(b.cert.Raw)] = b.name
			}
		}
	}
	used := make(map[string]bool)
	var entries []Entry
	for _, b := range r.bags {
		if b.key == nil {
			continue
		}
		e := Entry{Alias: b.name, Key: b.key}
		if leaf := r.leafOf(b); leaf != nil {
			e.Chain = PathFrom(leaf, certs)
			if e.Alias == "" {
				e.Alias = names[string(leaf.Raw)]
			}
			for i, c := range e.Chain {
				used[string(c.Raw)] = true
				if i > 0 {
					e.CANames = append(e.CANames, names[string(c.Raw)])
				}
			}
		}
		entries = append(entries, e)
	}
	for _, b := range r.bags {
		if b.cert != nil && (b.trusted || !used[string(b.cert.Raw)]) {
			entries = append(entries, Entry{Alias: b.name, Chain: []*x509.Certificate{b.cert}})
		}
	}
	if len(entries) == 0 {
		return nil, fault.New(fault.Invalid, "the PKCS#12 file holds neither a key nor a certificate")
	}
	return entries, nil
}

// leafOf finds the certificate of a key. The public key decides; localKeyID only chooses among several that fit, since
// some programs copy it wrongly.
func (r *reader12) leafOf(key bag) *x509.Certificate {
	var fit []bag
	for _, b := range r.bags {
		if b.cert != nil && samePublic(key.key.Public(), b.cert.PublicKey) {
			fit = append(fit, b)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	i := slices.IndexFunc(fit, func(b bag) bool { return key.keyID != nil && bytes.Equal(b.keyID, key.keyID) })
	return fit[max(i, 0)].cert
}
