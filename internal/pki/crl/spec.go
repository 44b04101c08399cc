package crl

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// Spec is all of a CRL but its entries.
type Spec struct {
	Issuer     *x509.Certificate
	ThisUpdate time.Time // when the status was read, not when it was signed
	NextUpdate time.Time
	Number     *big.Int
	BaseNumber *big.Int                  // makes it a delta CRL: the CRLNumber of the complete CRL that it starts from
	IDP        *IssuingDistributionPoint // nil for a list over everything that the issuer issued
	Freshest   []string                  // URIs of the delta CRL, for a complete CRL only
	Algorithm  cert.SignatureAlgorithm   // 0 for the usual one of the issuer's key
}

// IssuingDistributionPoint is the extension of RFC 5280 §5.2.5. It is always critical.
type IssuingDistributionPoint struct {
	URIs                  []string // equal to the cRLDistributionPoints of the certificates covered
	OnlyUserCerts         bool
	OnlyCACerts           bool
	OnlyAttributeCerts    bool
	OnlySomeReasons       bool // seen only when read; not made
	IndirectCRL           bool // seen only when read; not made
	otherDistributionName bool
}

// Equal reports whether two lists have the same scope: RFC 5280 §6.3.3 compares the extension whole.
func (p *IssuingDistributionPoint) Equal(q *IssuingDistributionPoint) bool {
	if p == nil || q == nil {
		return p == q
	}
	if len(p.URIs) != len(q.URIs) {
		return false
	}
	for i, uri := range p.URIs {
		if q.URIs[i] != uri {
			return false
		}
	}
	return p.OnlyUserCerts == q.OnlyUserCerts && p.OnlyCACerts == q.OnlyCACerts &&
		p.OnlyAttributeCerts == q.OnlyAttributeCerts &&
		p.OnlySomeReasons == q.OnlySomeReasons && p.IndirectCRL == q.IndirectCRL &&
		p.otherDistributionName == q.otherDistributionName
}

// check refuses what RFC 5280 §5 forbids in a CRL that we sign.
func (s *Spec) check(public crypto.PublicKey) error {
	if s.Issuer == nil {
		return errors.New("CRL has no issuer")
	}
	key, ok := s.Issuer.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(public) {
		return fault.New(fault.Invalid, "the key is not the one of issuer %q", s.Issuer.Subject)
	}
	if s.Issuer.KeyUsage != 0 && s.Issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return fault.New(fault.Invalid, "issuer %q has a keyUsage without cRLSign; RFC 5280 §4.2.1.3 wants it to sign a CRL", s.Issuer.Subject)
	}
	if s.ThisUpdate.IsZero() || !s.NextUpdate.After(s.ThisUpdate) {
		return fault.New(fault.Invalid, "nextUpdate %s is not after thisUpdate %s", stamp(s.NextUpdate),
			stamp(s.ThisUpdate))
	}
	if err := checkNumber("CRLNumber", s.Number); err != nil {
		return err
	}
	if s.BaseNumber != nil {
		if err := checkNumber("BaseCRLNumber", s.BaseNumber); err != nil {
			return err
		}
		if s.BaseNumber.Cmp(s.Number) >= 0 {
			return fault.New(fault.Invalid, "delta CRL %v does not follow its base %v", s.Number, s.BaseNumber)
		}
		if len(s.Freshest) > 0 {
			return fault.New(fault.Invalid, "a delta CRL must not have freshestCRL (RFC 5280 §5.2.6)")
		}
	}
	return s.IDP.check()
}

func (p *IssuingDistributionPoint) check() error {
	if p == nil {
		return nil
	}
	only := 0
	for _, set := range []bool{p.OnlyUserCerts, p.OnlyCACerts, p.OnlyAttributeCerts} {
		if set {
			only++
		}
	}
	switch {
	case p.IndirectCRL || p.OnlySomeReasons:
		return fault.New(fault.Invalid, "indirect CRLs and CRLs for some reasons only are not made")
	case only > 1:
		return fault.New(fault.Invalid, "an issuingDistributionPoint may say only one of user, CA and attribute certificates (RFC 5280 §5.2.5)")
	case only == 0 && len(p.URIs) == 0:
		return fault.New(fault.Invalid,
			"an issuingDistributionPoint must not be empty (RFC 5280 §5.2.5); name a URI or leave it out")
	}
	for _, uri := range p.URIs {
		if err := checkURI(uri); err != nil {
			return err
		}
	}
	return nil
}

func checkURI(uri string) error {
	for _, c := range []byte(uri) {
		if c <= ' ' || c >= 0x7f {
			return fault.New(fault.Invalid, "URI %q has an octet that an IA5String URI may not hold", uri)
		}
	}
	if uri == "" {
		return fault.New(fault.Invalid, "a distribution point's URI is empty")
	}
	return nil
}

func checkNumber(what string, n *big.Int) error {
	if n == nil || n.Sign() < 0 || n.Cmp(maxNumber) >= 0 {
		return fault.New(fault.Invalid, "%s %v is not between 0 and 2^159 (RFC 5280 §5.2.3: 20 octets at most)", what, n)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// preamble is what stands before revokedCertificates in the TBSCertList, and extensions what stands behind it.
func (s *Spec) preamble(algorithm []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1Int64(1) // v2
	b.AddBytes(algorithm)
	b.AddBytes(s.Issuer.RawSubject) // octet for octet: relying parties compare names that way
	addTime(&b, s.ThisUpdate)
	addTime(&b, s.NextUpdate)
	return b.Bytes()
}

func (s *Spec) extensions() ([]byte, error) {
	keyID, err := authorityKeyID(s.Issuer)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addExtension(b, oidAuthorityKeyID, false, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(keyID) })
				})
			})
			addExtension(b, oidCRLNumber, false, func(b *cryptobyte.Builder) { b.AddASN1BigInt(s.Number) })
			if s.BaseNumber != nil {
				addExtension(b, oidDeltaCRLIndicator, true, func(b *cryptobyte.Builder) { b.AddASN1BigInt(s.BaseNumber) })
			}
			if s.IDP != nil {
				addExtension(b, oidIssuingDistPoint, true, s.IDP.marshal)
			}
			if len(s.Freshest) > 0 {
				addExtension(b, oidFreshestCRL, false, func(b *cryptobyte.Builder) { addDistributionPoints(b, s.Freshest) })
			}
		})
	})
	return b.Bytes()
}

func (p *IssuingDistributionPoint) marshal(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if len(p.URIs) > 0 {
			addDistributionPointName(b, p.URIs)
		}
		for tag, set := range map[cbasn1.Tag]bool{1: p.OnlyUserCerts, 2: p.OnlyCACerts, 5: p.OnlyAttributeCerts} {
			if set { // at most one of them, see check
				b.AddASN1(tag.ContextSpecific(), func(b *cryptobyte.Builder) { b.AddUint8(0xff) })
			}
		}
	})
}

// addDistributionPointName writes [0] { fullName [0] { uniformResourceIdentifier [6] … } }.
func addDistributionPointName(b *cryptobyte.Builder, uris []string) {
	b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, uri := range uris {
				b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(uri)) })
			}
		})
	})
}

func addDistributionPoints(b *cryptobyte.Builder, uris []string) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { addDistributionPointName(b, uris) })
	})
}

// authorityKeyID is the issuer's own key identifier where it has one (RFC 5280 §5.2.1). An imported CA without one gets
// the identifier of §4.2.1.2 (1), so that the extension, which §5.2.1 demands, is there.
func authorityKeyID(issuer *x509.Certificate) ([]byte, error) {
	if len(issuer.SubjectKeyId) > 0 {
		return issuer.SubjectKeyId, nil
	}
	id := cert.SubjectKeyIDOf(issuer.RawSubjectPublicKeyInfo, cert.KeyIDRFC5280)
	if len(id) == 0 {
		return nil, fmt.Errorf("issuer %q has no key identifier, and its public key is not DER", issuer.Subject)
	}
	return id, nil
}
