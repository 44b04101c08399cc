package cert

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"chancery/internal/fault"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// CSR is a certification request (RFC 2986) that was parsed strictly and whose signature verifies.
type CSR struct {
	Raw        []byte // the whole request
	RawTBS     []byte // CertificationRequestInfo
	RawSubject []byte
	Subject    Name
	SPKI       []byte // DER SubjectPublicKeyInfo
	PublicKey  crypto.PublicKey
	Algorithm  SignatureAlgorithm

	// What the request asks for in its extensions. A profile decides what of it is granted.
	SAN              []GeneralName
	BasicConstraints *BasicConstraints
	KeyUsage         x509.KeyUsage
	ExtKeyUsage      []asn1.ObjectIdentifier
	Extensions       []Extension // all of them, as they are

	ChallengePassword string // a secret of the requester: never log it
	Attributes        []asn1.ObjectIdentifier
}

// CSRLimits bounds what a request may cost. A zero field means its default.
type CSRLimits struct {
	Octets int // 64 KiB
	Names  int // 100 subjectAltNames
}

const (
	defaultCSROctets = 64 << 10
	defaultCSRNames  = 100
	maxCSRAttributes = 32
	maxCSRExtensions = 64
)

// ParseCSR reads a DER request with the default limits.
func ParseCSR(der []byte) (*CSR, error) { return CSRLimits{}.Parse(der) }

// ParsePEM reads a request in PEM (NEW CERTIFICATE REQUEST is accepted too) or DER. Text before the block is ignored;
// a second block, or anything after the first, is refused.
func (l CSRLimits) ParsePEM(input []byte) (*CSR, error) {
	if err := l.checkSize(len(input)); err != nil {
		return nil, err
	}
	block, rest := pem.Decode(input)
	if block == nil {
		if err := CheckPEMEnd(input); err != nil {
			return nil, err
		}
		return l.Parse(input)
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, fault.New(fault.Invalid, "the PEM block is a %q; a CERTIFICATE REQUEST is needed", block.Type)
	}
	if strings.TrimSpace(string(rest)) != "" {
		return nil, fault.New(fault.Invalid, "the request is followed by more text; give one CERTIFICATE REQUEST only")
	}
	return l.Parse(block.Bytes)
}

// CheckPEMEnd refuses text in which a PEM block begins and does not end, as in a file that was cut off.
func CheckPEMEnd(text []byte) error {
	_, rest, found := strings.Cut(string(text), "-----BEGIN ")
	label, rest, whole := strings.Cut(rest, "-----")
	if !found || !whole || len(label) > 64 || strings.ContainsAny(label, "\r\n") {
		return nil
	}
	if !strings.Contains(rest, "-----END "+label+"-----") {
		return fault.New(fault.Invalid, "the PEM block begins with -----BEGIN %s-----, and -----END %s----- is missing: the text was cut off",
			label, label)
	}
	return nil
}

func (l CSRLimits) checkSize(octets int) error {
	limit := l.Octets
	if limit == 0 {
		limit = defaultCSROctets
	}
	if octets > limit {
		return fault.New(fault.TooLarge, "certification request of %d octets: %d at most", octets, limit)
	}
	return nil
}

// Parse reads a DER request, checks its key and its signature, and names the first thing that is wrong with it.
func (l CSRLimits) Parse(der []byte) (*CSR, error) {
	if err := l.checkSize(len(der)); err != nil {
		return nil, err
	}
	csr, signature, err := readCSR(der)
	if err != nil {
		if fault.KindOf(err) != fault.Internal {
			return nil, err
		}
		return nil, fault.New(fault.Invalid, "certification request (RFC 2986): %w", err)
	}
	limit := l.Names
	if limit == 0 {
		limit = defaultCSRNames
	}
	if len(csr.SAN) > limit {
		return nil, fault.New(fault.TooLarge, "certification request with %d names: %d at most", len(csr.SAN), limit)
	}
	for _, g := range csr.SAN {
		if err := CheckGeneralName(g); err != nil {
			return nil, fault.New(fault.Invalid, "certification request, subjectAltName: %w", err)
		}
	}
	if csr.PublicKey, err = ParsePublicKey(csr.SPKI); err != nil {
		return nil, err
	}
	if err := csr.Algorithm.Verify(csr.PublicKey, csr.RawTBS, signature); err != nil {
		return nil, fault.New(fault.Invalid, "certification request: %w with its own key (proof of possession)", err)
	}
	return csr, nil
}

func readCSR(der []byte) (*CSR, []byte, error) {
	input := cryptobyte.String(der)
	var whole, tbs, algorithm cryptobyte.String
	var signature []byte
	if !input.ReadASN1(&whole, cbasn1.SEQUENCE) {
		return nil, nil, errors.New("not a DER SEQUENCE of definite length")
	}
	if !input.Empty() {
		return nil, nil, fmt.Errorf("%d octets follow the request", len(input))
	}
	if !whole.ReadASN1Element(&tbs, cbasn1.SEQUENCE) || !whole.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) ||
		!whole.ReadASN1BitStringAsBytes(&signature) || !whole.Empty() {
		return nil, nil, errors.New("not certificationRequestInfo, signatureAlgorithm and signature")
	}
	csr := &CSR{Raw: der, RawTBS: tbs}
	var known bool
	if csr.Algorithm, known = algorithmOfIdentifier(algorithm); !known {
		return nil, nil, unknownSignature(algorithm)
	}
	return csr, signature, csr.readInfo(tbs)
}

func unknownSignature(identifier cryptobyte.String) error {
	name := fmt.Sprintf("%x", []byte(identifier))
	if a, err := readAlgorithm(&identifier); err == nil {
		name = a.oid.String()
	}
	return fault.New(fault.Invalid, "certification request: signature algorithm %s is not accepted: use ECDSA or RSA PKCS #1 "+
		"v1.5 with SHA-256, SHA-384 or SHA-512, or Ed25519", name)
}

func (c *CSR) readInfo(tbs cryptobyte.String) error {
	var info, subject, spki, attributes cryptobyte.String
	var version int64
	if !tbs.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1Integer(&version) {
		return errors.New("no version")
	}
	if version != 0 {
		return fmt.Errorf("version %d: v1, encoded as 0, is the only one", version)
	}
	if !info.ReadASN1Element(&subject, cbasn1.SEQUENCE) || !info.ReadASN1Element(&spki, cbasn1.SEQUENCE) {
		return errors.New("subject or subjectPKInfo is missing")
	}
	if !info.ReadASN1(&attributes, contextTag(0).Constructed()) || !info.Empty() {
		return errors.New("attributes, which may be empty and not absent, are malformed, or something follows them")
	}
	c.RawSubject, c.SPKI = subject, spki
	var err error
	if c.Subject, err = ParseNameDER(subject); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	if err := lintSubjectCharacters(&tbsView{subjectName: c.Subject}, nil); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	return c.readAttributes(attributes)
}

func (c *CSR) readAttributes(attributes cryptobyte.String) error {
	asked := false
	for !attributes.Empty() {
		var seq, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !attributes.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) ||
			!seq.ReadASN1(&values, cbasn1.SET) || !seq.Empty() {
			return errors.New("an attribute is not a type and a set of values")
		}
		if containsOID(c.Attributes, oid) {
			return fmt.Errorf("attribute %s appears twice", oid)
		}
		if len(c.Attributes) == maxCSRAttributes {
			return fmt.Errorf("more than %d attributes", maxCSRAttributes)
		}
		c.Attributes = append(c.Attributes, oid)
		switch {
		case oid.Equal(OIDExtensionRequest), oid.Equal(OIDMicrosoftCertExtension):
			if asked {
				return errors.New("extensions are requested twice, by the attribute of PKCS #9 and by Microsoft's")
			}
			asked = true
			if err := c.readExtensionRequest(values); err != nil {
				return err
			}
		case oid.Equal(OIDChallengePassword):
			var content cryptobyte.String
			var tag cbasn1.Tag
			if !values.ReadAnyASN1(&content, &tag) || !values.Empty() || !isStringTag(tag) {
				return errors.New("challengePassword is not one string")
			}
			text, err := decodeString(tag, content)
			if err != nil {
				return fmt.Errorf("challengePassword: %w", err)
			}
			c.ChallengePassword = text
		}
	}
	return nil
}

func (c *CSR) readExtensionRequest(values cryptobyte.String) error {
	var list cryptobyte.String
	if !values.ReadASN1(&list, cbasn1.SEQUENCE) || !values.Empty() {
		return errors.New("extensionRequest is not one SEQUENCE of extensions")
	}
	if list.Empty() {
		return nil // certtool and others ask for nothing in as many words
	}
	extensions, err := readExtensions(list)
	if err == nil {
		err = c.ask(extensions)
	}
	if err != nil {
		return fmt.Errorf("extensionRequest: %w", err)
	}
	return nil
}

// ask notes the extensions that are asked for, and reads those that a profile looks into.
func (c *CSR) ask(extensions []Extension) error {
	c.Extensions = extensions
	if len(extensions) > maxCSRExtensions {
		return fmt.Errorf("there are %d extensions: %d at most", len(extensions), maxCSRExtensions)
	}
	v := &tbsView{extensions: extensions}
	if err := lintExtensionUnique(v, nil); err != nil {
		return err
	}
	if err := v.decode(); err != nil {
		return err
	}
	c.SAN, c.BasicConstraints, c.KeyUsage, c.ExtKeyUsage = v.san, v.basicConstraints, v.keyUsage, v.extKeyUsage
	return nil
}

// NewWish is a request for a key whose possession was proved by other means, for a profile to judge: it asks for the
// extensions and has no signature.
func NewWish(spki []byte, extensions []Extension) (*CSR, error) {
	key, err := ParsePublicKey(spki)
	if err != nil {
		return nil, err
	}
	c := &CSR{SPKI: spki, PublicKey: key}
	if err := c.ask(extensions); err != nil {
		return nil, fault.New(fault.Invalid, "extensions that are asked for: %w", err)
	}
	return c, nil
}

// CSRTemplate is what a request asks for.
type CSRTemplate struct {
	Subject           Name
	SAN               []GeneralName
	BasicConstraints  *BasicConstraints
	KeyUsage          x509.KeyUsage
	ExtKeyUsage       []asn1.ObjectIdentifier
	Extra             []Extension
	ChallengePassword string
	Algorithm         SignatureAlgorithm // 0: the default of the key
}

// CreateCSR signs a request with the key that the certificate is to be for.
func CreateCSR(t *CSRTemplate, key crypto.Signer) ([]byte, error) {
	algorithm, err := t.Algorithm.For(key.Public())
	if err != nil {
		return nil, err
	}
	info, err := t.info(key.Public())
	if err != nil {
		return nil, err
	}
	signature, err := algorithm.Sign(key, info)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info)
		b.AddBytes(algorithm.Identifier())
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

// ProofOfPossession is a request, in PEM, that proves the key and asks for nothing: whoever certifies it decides on the names.
func ProofOfPossession(key crypto.Signer) (string, error) {
	der, err := CreateCSR(&CSRTemplate{}, key)
	if err != nil {
		return "", fmt.Errorf("make a certificate request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

func (t *CSRTemplate) info(pub crypto.PublicKey) ([]byte, error) {
	spki, err := MarshalPublicKey(pub)
	if err != nil {
		return nil, err
	}
	subject, err := t.Subject.DER()
	if err != nil {
		return nil, fault.New(fault.Invalid, "subject: %w", err)
	}
	extensions := extensionList{b: cryptobyte.NewBuilder(nil)}
	extensions.addTemplate(&Template{
		Subject: t.Subject, SAN: t.SAN, BasicConstraints: t.BasicConstraints, KeyUsage: t.KeyUsage, KeyUsageCritical: true,
		ExtKeyUsage: t.ExtKeyUsage, SubjectKeyID: KeyIDNone, Extra: t.Extra,
	}, spki, nil)
	if extensions.err != nil {
		return nil, extensions.err
	}
	list, err := extensions.b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode requested extensions: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(contextTag(0).Constructed(), func(b *cryptobyte.Builder) { t.addAttributes(b, list) })
	})
	return b.Bytes()
}

// addAttributes writes them in DER's order for a SET OF, which is that of their encodings.
func (t *CSRTemplate) addAttributes(b *cryptobyte.Builder, extensions []byte) {
	var attributes [][]byte
	add := func(oid asn1.ObjectIdentifier, tag cbasn1.Tag, content []byte) {
		var a cryptobyte.Builder
		a.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(content) })
			})
		})
		attributes = append(attributes, a.BytesOrPanic()) // our own identifiers and bounded content cannot fail
	}
	if t.ChallengePassword != "" {
		tag := cbasn1.UTF8String
		if isPrintable(t.ChallengePassword) {
			tag = cbasn1.PrintableString
		}
		add(OIDChallengePassword, tag, []byte(t.ChallengePassword))
	}
	if len(extensions) > 0 {
		add(OIDExtensionRequest, cbasn1.SEQUENCE, extensions)
	}
	slices.SortFunc(attributes, bytes.Compare)
	b.AddBytes(bytes.Join(attributes, nil))
}
