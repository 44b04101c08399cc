package ca

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"chancery/internal/pki/cert"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// facts is what a row says of a certificate. It is read from the certificate itself, so that the two cannot differ.
type facts struct {
	serial              *big.Int
	subject             cert.Name
	notBefore, notAfter time.Time
	spki                []byte
	names               []cert.GeneralName
	isCA                bool
}

// readFacts reads a certificate in a few microseconds: a page of the inventory has a thousand of them, and an export has
// all. It checks no more than it needs.
func readFacts(der []byte) (*facts, error) {
	input := cryptobyte.String(der)
	var whole, tbs cryptobyte.String
	if !input.ReadASN1(&whole, cbasn1.SEQUENCE) || !whole.ReadASN1Element(&tbs, cbasn1.SEQUENCE) {
		return nil, errors.New("read certificate: it is not the DER of one")
	}
	return readTBS(tbs)
}

// readTBS reads a TBSCertificate.
func readTBS(der []byte) (*facts, error) {
	var (
		f                               = facts{serial: new(big.Int)}
		input                           = cryptobyte.String(der)
		tbs, subject, validity, element cryptobyte.String
		err                             error
	)
	if !input.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!tbs.SkipOptionalASN1(cbasn1.Tag(0).ContextSpecific().Constructed()) || !tbs.ReadASN1Integer(f.serial) ||
		!tbs.SkipASN1(cbasn1.SEQUENCE) || !tbs.SkipASN1(cbasn1.SEQUENCE) || !tbs.ReadASN1(&validity, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Element(&subject, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&element, cbasn1.SEQUENCE) {
		return nil, errors.New("read certificate: it is not the DER of one")
	}
	f.spki = element
	if f.notBefore, err = readTime(&validity); err != nil {
		return nil, err
	}
	if f.notAfter, err = readTime(&validity); err != nil {
		return nil, err
	}
	if f.subject, err = cert.ParseNameDER(subject); err != nil {
		return nil, fmt.Errorf("read the subject of a certificate: %w", err)
	}
	return &f, f.readExtensions(tbs)
}

func readTime(in *cryptobyte.String) (t time.Time, err error) {
	if in.PeekASN1Tag(cbasn1.UTCTime) && in.ReadASN1UTCTime(&t) || in.PeekASN1Tag(cbasn1.GeneralizedTime) && in.ReadASN1GeneralizedTime(&t) {
		return t.UTC(), nil
	}
	return t, errors.New("read certificate: its validity is not two times")
}

// readExtensions reads what follows the key of a TBSCertificate.
func (f *facts) readExtensions(rest cryptobyte.String) error {
	var outer, list, extension, value cryptobyte.String
	var present bool
	if !rest.SkipOptionalASN1(cbasn1.Tag(1).ContextSpecific()) || !rest.SkipOptionalASN1(cbasn1.Tag(2).ContextSpecific()) ||
		!rest.ReadOptionalASN1(&outer, &present, cbasn1.Tag(3).ContextSpecific().Constructed()) {
		return errors.New("read certificate: its extensions are not where they belong")
	}
	if present && !outer.ReadASN1(&list, cbasn1.SEQUENCE) {
		return errors.New("read certificate: its extensions are no SEQUENCE")
	}
	for !list.Empty() {
		var id asn1.ObjectIdentifier
		if !list.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&id) ||
			!extension.SkipOptionalASN1(cbasn1.BOOLEAN) || !extension.ReadASN1(&value, cbasn1.OCTET_STRING) {
			return errors.New("read certificate: an extension is malformed")
		}
		switch {
		case id.Equal(cert.OIDSubjectAltName):
			var err error
			if f.names, err = cert.ParseGeneralNames(value); err != nil {
				return fmt.Errorf("read the names of a certificate: %w", err)
			}
		case id.Equal(cert.OIDBasicConstraints):
			var constraints cryptobyte.String
			if !value.ReadASN1(&constraints, cbasn1.SEQUENCE) || constraints.PeekASN1Tag(cbasn1.BOOLEAN) && !constraints.ReadASN1Boolean(&f.isCA) {
				return errors.New("read certificate: its basicConstraints are malformed")
			}
		}
	}
	return nil
}

// fill sets the fields of a certificate that its DER says.
func (c *Certificate) fill() error {
	f, err := readFacts(c.DER)
	if err != nil {
		return err
	}
	c.take(f)
	return nil
}

func (c *Certificate) take(f *facts) {
	c.Serial, c.NotBefore, c.NotAfter, c.Subject, c.facts = f.serial, f.notBefore, f.notAfter, f.subject.String(), f
}

func (c *Certificate) read() *facts {
	if c.facts == nil && len(c.DER) > 0 {
		c.facts, _ = readFacts(c.DER) // what the store holds was read once before it was stored
	}
	if c.facts == nil {
		return new(facts)
	}
	return c.facts
}

// Names are the subject alternative names.
func (c *Certificate) Names() []cert.GeneralName { return c.read().names }

// PublicKey is the SubjectPublicKeyInfo, nil for a record that was imported without its certificate.
func (c *Certificate) PublicKey() []byte { return c.read().spki }

func (c *Certificate) commonName() string {
	if cn := c.read().subject.Attributes(cert.OIDCommonName); len(cn) > 0 {
		return cn[len(cn)-1]
	}
	if len(c.DER) == 0 {
		if subject, err := cert.ParseName(c.Subject); err == nil {
			if cn := subject.Attributes(cert.OIDCommonName); len(cn) > 0 {
				return cn[len(cn)-1]
			}
		}
	}
	return ""
}
