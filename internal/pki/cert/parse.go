package cert

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// tbsView is a TBSCertificate taken apart, for the lints: they judge the octets that will be signed and not the template
// that they were made from.
type tbsView struct {
	serial              *big.Int
	serialOctets        int
	issuer, subject     []byte
	subjectName         Name
	notBefore, notAfter time.Time
	timeErr             error
	spki                []byte
	uniqueIDs           bool
	extensions          []Extension

	// Decoded extensions; nil or zero where they are absent.
	basicConstraints *BasicConstraints
	keyUsage         x509.KeyUsage
	hasKeyUsage      bool
	extKeyUsage      []asn1.ObjectIdentifier
	san              []GeneralName
	subjectKeyID     []byte
	authorityKeyID   []byte
	nameConstraints  *NameConstraints
}

func (v *tbsView) extension(oid asn1.ObjectIdentifier) *Extension {
	for i := range v.extensions {
		if v.extensions[i].ID.Equal(oid) {
			return &v.extensions[i]
		}
	}
	return nil
}

func (v *tbsView) isCA() bool { return v.basicConstraints != nil && v.basicConstraints.CA }

func (v *tbsView) hasUsage(oid asn1.ObjectIdentifier) bool { return containsOID(v.extKeyUsage, oid) }

func containsOID(list []asn1.ObjectIdentifier, oid asn1.ObjectIdentifier) bool {
	for _, o := range list {
		if o.Equal(oid) {
			return true
		}
	}
	return false
}

// parseTBS takes a version 3 TBSCertificate apart.
func parseTBS(der []byte) (*tbsView, error) {
	input := cryptobyte.String(der)
	var tbs, version, serial, validity cryptobyte.String
	v := &tbsView{serial: new(big.Int)}
	if !input.ReadASN1(&tbs, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("not one DER SEQUENCE")
	}
	var number int64
	if !tbs.ReadASN1(&version, contextTag(0).Constructed()) || !version.ReadASN1Integer(&number) || number != 2 ||
		!version.Empty() {
		return nil, errors.New("the version is not v3")
	}
	if !tbs.ReadASN1Element(&serial, cbasn1.INTEGER) {
		return nil, errors.New("no serial number")
	}
	v.serialOctets = len(serial) - 2
	if !serial.ReadASN1Integer(v.serial) {
		return nil, errors.New("the serial number is not a DER INTEGER")
	}
	var algorithm, issuer, subject, spki cryptobyte.String
	if !tbs.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&issuer, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1(&validity, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&subject, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Element(&spki, cbasn1.SEQUENCE) {
		return nil, errors.New("algorithm, issuer, validity, subject or key is missing")
	}
	v.issuer, v.subject, v.spki = issuer, subject, spki
	v.readValidity(validity)
	var err error
	if v.subjectName, err = ParseNameDER(subject); err != nil {
		return nil, fmt.Errorf("subject: %w", err)
	}
	return v, v.readRest(tbs)
}

func (v *tbsView) readValidity(validity cryptobyte.String) {
	for _, t := range []*time.Time{&v.notBefore, &v.notAfter} {
		var content cryptobyte.String
		var tag cbasn1.Tag
		if !validity.ReadAnyASN1(&content, &tag) {
			v.timeErr = errors.New("the validity is not two times")
			return
		}
		var err error
		if *t, err = parseTime(tag, content); err != nil && v.timeErr == nil {
			v.timeErr = err
		}
	}
	if !validity.Empty() && v.timeErr == nil {
		v.timeErr = errors.New("the validity is more than two times")
	}
}

// parseTime reads a time in the only forms that RFC 5280 4.1.2.5 allows.
func parseTime(tag cbasn1.Tag, content []byte) (time.Time, error) {
	layout, text := "20060102150405Z", string(content)
	switch tag {
	case cbasn1.UTCTime:
		century := "20"
		if len(text) > 0 && text[0] >= '5' {
			century = "19"
		}
		text = century + text
	case cbasn1.GeneralizedTime:
	default:
		return time.Time{}, errors.New("a time is neither UTCTime nor GeneralizedTime")
	}
	t, err := time.Parse(layout, text)
	if err != nil || t.Format(layout) != text {
		return time.Time{}, fmt.Errorf("the time %q is not in the form %s", content, layout)
	}
	if utc := tag == cbasn1.UTCTime; !utc && 1950 <= t.Year() && t.Year() <= 2049 {
		return t, fmt.Errorf("%q must be UTCTime: GeneralizedTime begins with the year 2050", content)
	}
	return t, nil
}

func (v *tbsView) readRest(tbs cryptobyte.String) error {
	for tag := uint8(1); tag <= 2; tag++ {
		v.uniqueIDs = v.uniqueIDs || tbs.PeekASN1Tag(contextTag(tag))
		if !tbs.SkipOptionalASN1(contextTag(tag)) {
			return errors.New("a unique identifier is malformed")
		}
	}
	var wrapped, list cryptobyte.String
	var present bool
	if !tbs.ReadOptionalASN1(&wrapped, &present, contextTag(3).Constructed()) || !tbs.Empty() {
		return errors.New("octets follow the extensions")
	}
	if !present {
		return nil
	}
	if !wrapped.ReadASN1(&list, cbasn1.SEQUENCE) || !wrapped.Empty() {
		return errors.New("the extensions are not one SEQUENCE")
	}
	var err error
	if v.extensions, err = readExtensions(list); err != nil {
		return err
	}
	return v.decode()
}

// readExtensions reads the content of Extensions strictly: DER says that critical FALSE is left out.
func readExtensions(list cryptobyte.String) ([]Extension, error) {
	if list.Empty() {
		return nil, errors.New("the list of extensions is empty")
	}
	extensions := make([]Extension, 0, 10)
	for !list.Empty() {
		var seq, value cryptobyte.String
		var e Extension
		if !list.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&e.ID) {
			return nil, errors.New("an extension is not a SEQUENCE that begins with an identifier")
		}
		if seq.PeekASN1Tag(cbasn1.BOOLEAN) && (!seq.ReadASN1Boolean(&e.Critical) || !e.Critical) {
			return nil, fmt.Errorf("extension %s: critical is not DER TRUE", ExtensionName(e.ID))
		}
		if !seq.ReadASN1(&value, cbasn1.OCTET_STRING) || !seq.Empty() {
			return nil, fmt.Errorf("extension %s does not end in an OCTET STRING", ExtensionName(e.ID))
		}
		e.Value = value
		extensions = append(extensions, e)
	}
	return extensions, nil
}

// decode reads the extensions that lints look into. Of a repeated one the last is kept; another lint refuses it.
func (v *tbsView) decode() (err error) {
	for _, e := range v.extensions {
		switch {
		case e.ID.Equal(OIDBasicConstraints):
			v.basicConstraints, err = parseBasicConstraints(e.Value)
		case e.ID.Equal(OIDKeyUsage):
			v.hasKeyUsage = true
			v.keyUsage, err = parseKeyUsage(e.Value)
		case e.ID.Equal(OIDExtKeyUsage):
			v.extKeyUsage, err = ParseKeyPurposes(e.Value)
		case e.ID.Equal(OIDSubjectAltName):
			v.san, err = ParseGeneralNames(e.Value)
		case e.ID.Equal(OIDNameConstraints):
			v.nameConstraints, err = ParseNameConstraints(e.Value)
		case e.ID.Equal(OIDSubjectKeyID):
			v.subjectKeyID, err = parseOctets(e.Value)
		case e.ID.Equal(OIDAuthorityKeyID):
			v.authorityKeyID, err = parseAuthorityKeyID(e.Value)
		}
		if err != nil {
			return fmt.Errorf("extension %s: %w", ExtensionName(e.ID), err)
		}
	}
	return nil
}

func parseBasicConstraints(der []byte) (*BasicConstraints, error) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	c := &BasicConstraints{PathLen: -1}
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("not one DER SEQUENCE")
	}
	if seq.PeekASN1Tag(cbasn1.BOOLEAN) && (!seq.ReadASN1Boolean(&c.CA) || !c.CA) {
		return nil, errors.New("cA is not DER TRUE")
	}
	if seq.PeekASN1Tag(cbasn1.INTEGER) {
		if !seq.ReadASN1Integer(&c.PathLen) || c.PathLen < 0 {
			return nil, errors.New("pathLenConstraint is no number from 0")
		}
	}
	if !seq.Empty() {
		return nil, errors.New("octets follow the constraint")
	}
	return c, nil
}

func parseKeyUsage(der []byte) (x509.KeyUsage, error) {
	input := cryptobyte.String(der)
	var bits asn1.BitString
	if !input.ReadASN1BitString(&bits) || !input.Empty() {
		return 0, errors.New("not one DER BIT STRING")
	}
	var usage x509.KeyUsage
	for i := range bits.BitLength {
		if bits.At(i) != 0 {
			if i > 8 {
				return 0, fmt.Errorf("bit %d is not assigned", i)
			}
			usage |= 1 << i
		}
	}
	return usage, nil
}

// ParseKeyPurposes reads the KeyPurposeIds of an extKeyUsage extension.
func ParseKeyPurposes(der []byte) ([]asn1.ObjectIdentifier, error) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() || seq.Empty() {
		return nil, errors.New("not one filled DER SEQUENCE")
	}
	oids := make([]asn1.ObjectIdentifier, 0, 2)
	for !seq.Empty() {
		var oid asn1.ObjectIdentifier
		if !seq.ReadASN1ObjectIdentifier(&oid) {
			return nil, errors.New("an element is no object identifier")
		}
		oids = append(oids, oid)
	}
	return oids, nil
}

// ParsePolicies reads the policies of a certificatePolicies extension, without their qualifiers. A policy that appears
// twice is refused (RFC 5280 4.2.1.4).
func ParsePolicies(der []byte) ([]asn1.ObjectIdentifier, error) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() || seq.Empty() {
		return nil, errors.New("certificatePolicies is not one filled DER SEQUENCE")
	}
	var policies []asn1.ObjectIdentifier
	for !seq.Empty() {
		var information cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !seq.ReadASN1(&information, cbasn1.SEQUENCE) || !information.ReadASN1ObjectIdentifier(&oid) {
			return nil, errors.New("a policy is not a SEQUENCE that begins with an identifier")
		}
		if containsOID(policies, oid) {
			return nil, fmt.Errorf("policy %s appears twice", oid)
		}
		policies = append(policies, oid)
	}
	return policies, nil
}

func parseOctets(der []byte) ([]byte, error) {
	input := cryptobyte.String(der)
	var octets cryptobyte.String
	if !input.ReadASN1(&octets, cbasn1.OCTET_STRING) || !input.Empty() {
		return nil, errors.New("not one DER OCTET STRING")
	}
	return octets, nil
}

func parseAuthorityKeyID(der []byte) ([]byte, error) {
	input := cryptobyte.String(der)
	var seq, id cryptobyte.String
	var present bool
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() ||
		!seq.ReadOptionalASN1(&id, &present, contextTag(0)) {
		return nil, errors.New("not one DER SEQUENCE")
	}
	return id, nil
}

// ParseNameConstraints reads the value of a nameConstraints extension. A minimum other than 0 or a maximum is refused,
// as RFC 5280 4.2.1.10 demands of what cannot be processed.
func ParseNameConstraints(der []byte) (*NameConstraints, error) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() || seq.Empty() {
		return nil, errors.New("not one filled DER SEQUENCE")
	}
	c := &NameConstraints{}
	for i, names := range []*[]GeneralName{&c.Permitted, &c.Excluded} {
		var subtrees cryptobyte.String
		var present bool
		if !seq.ReadOptionalASN1(&subtrees, &present, contextTag(uint8(i)).Constructed()) || (present && subtrees.Empty()) {
			return nil, errors.New("the subtrees are not filled")
		}
		for !subtrees.Empty() {
			var subtree cryptobyte.String
			if !subtrees.ReadASN1(&subtree, cbasn1.SEQUENCE) {
				return nil, errors.New("a subtree is not a SEQUENCE")
			}
			g, err := readGeneralName(&subtree, true)
			if err != nil {
				return nil, err
			}
			if !subtree.Empty() {
				return nil, errors.New("a subtree has a minimum or a maximum")
			}
			*names = append(*names, g)
		}
	}
	if !seq.Empty() {
		return nil, errors.New("octets follow the subtrees")
	}
	return c, nil
}
