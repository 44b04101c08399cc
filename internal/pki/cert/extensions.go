package cert

import (
	"crypto/x509"
	"encoding/asn1"
	"math/bits"
	"unicode/utf8"

	"chancery/internal/fault"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// contextTag is the context-specific tag n, primitive.
func contextTag(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific() }

// extensionList collects the extensions of one TBSCertificate. A failure is remembered; the first one wins.
type extensionList struct {
	b   *cryptobyte.Builder
	err error
}

// add encodes one Extension (RFC 5280 4.1.2.9) whose value fill writes; critical is left out where it is FALSE.
func (x *extensionList) add(oid asn1.ObjectIdentifier, critical bool, fill func(b *cryptobyte.Builder) error) {
	x.b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
			if err := fill(b); err != nil && x.err == nil {
				x.err = err
			}
		})
	})
}

// raw encodes an extension whose value is there already.
func (x *extensionList) raw(e Extension) {
	if !validOID(e.ID) {
		x.err = fault.New(fault.Invalid, "extension identifier %s cannot be encoded: the first arc is 0, 1 or 2, and the "+
			"second at most 39 under 0 and 1", e.ID)
		return
	}
	x.add(e.ID, e.Critical, func(b *cryptobyte.Builder) error {
		b.AddBytes(e.Value)
		return nil
	})
}

// addTemplate encodes the extensions in certtool's order. RFC 5280 leaves the order open; with this one a template's
// certificate prints as certtool's own does.
func (x *extensionList) addTemplate(t *Template, spki []byte, authorityKeyID []byte) {
	if len(t.TLSFeatures) > 0 {
		x.add(OIDTLSFeature, false, func(b *cryptobyte.Builder) error { return addIntegers(b, t.TLSFeatures) })
	}
	for _, e := range t.Extra {
		x.raw(e)
	}
	if c := t.BasicConstraints; c != nil {
		x.add(OIDBasicConstraints, true, c.add)
	}
	if len(t.SAN) > 0 {
		x.add(OIDSubjectAltName, t.SANCritical || len(t.Subject) == 0, func(b *cryptobyte.Builder) error {
			return addGeneralNames(b, cbasn1.SEQUENCE, t.SAN)
		})
	}
	x.addPolicies(t)
	if len(t.ExtKeyUsage) > 0 {
		x.add(OIDExtKeyUsage, t.ExtKeyUsageCritical, func(b *cryptobyte.Builder) error { return addOIDs(b, t.ExtKeyUsage) })
	}
	if t.NameConstraints != nil {
		x.add(OIDNameConstraints, true, t.NameConstraints.add)
	}
	x.addAccess(t)
	if t.KeyUsage != 0 {
		x.add(OIDKeyUsage, t.KeyUsageCritical, func(b *cryptobyte.Builder) error { return addKeyUsage(b, t.KeyUsage) })
	}
	x.addKeyIDs(t, spki, authorityKeyID)
	x.addPointers(t)
	if t.OCSPNoCheck {
		x.raw(Extension{ID: OIDOCSPNoCheck, Value: asn1NullDER})
	}
	if t.ProxyCertInfo != nil {
		x.add(OIDProxyCertInfo, true, t.ProxyCertInfo.add)
	}
}

func (x *extensionList) addKeyIDs(t *Template, spki []byte, authorityKeyID []byte) {
	subjectKeyID := t.SubjectKeyIDValue
	if len(subjectKeyID) == 0 {
		subjectKeyID = SubjectKeyIDOf(spki, t.SubjectKeyID)
	}
	if len(subjectKeyID) > 0 {
		x.add(OIDSubjectKeyID, false, func(b *cryptobyte.Builder) error {
			b.AddASN1OctetString(subjectKeyID)
			return nil
		})
	}
	if len(authorityKeyID) > 0 {
		x.add(OIDAuthorityKeyID, false, func(b *cryptobyte.Builder) error {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(contextTag(0), func(b *cryptobyte.Builder) { b.AddBytes(authorityKeyID) })
			})
			return nil
		})
	}
}

func (x *extensionList) addPointers(t *Template) {
	if len(t.CRLDistributionPoints) > 0 {
		x.add(OIDCRLDistributionPoints, false, func(b *cryptobyte.Builder) error {
			return addDistributionPoint(b, t.CRLDistributionPoints)
		})
	}
	if len(t.FreshestCRL) > 0 {
		x.add(OIDFreshestCRL, false, func(b *cryptobyte.Builder) error { return addDistributionPoint(b, t.FreshestCRL) })
	}
}

func (x *extensionList) addAccess(t *Template) {
	if len(t.OCSPServers)+len(t.CAIssuers) > 0 {
		x.add(OIDAuthorityInfoAccess, false, func(b *cryptobyte.Builder) (err error) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				err = addAccess(b, oidAccessOCSP, t.OCSPServers)
				if err == nil {
					err = addAccess(b, oidAccessIssuers, t.CAIssuers)
				}
			})
			return err
		})
	}
}

func (x *extensionList) addPolicies(t *Template) {
	if t.InhibitAnyPolicy != nil {
		x.add(OIDInhibitAnyPolicy, true, func(b *cryptobyte.Builder) error {
			if *t.InhibitAnyPolicy < 0 {
				return fault.New(fault.Invalid, "inhibitAnyPolicy %d: a number of certificates from 0 is needed", *t.InhibitAnyPolicy)
			}
			b.AddASN1Int64(int64(*t.InhibitAnyPolicy))
			return nil
		})
	}
	if len(t.Policies) > 0 {
		x.add(OIDCertificatePolicies, false, func(b *cryptobyte.Builder) error { return addPolicyInformation(b, t.Policies) })
	}
}

func (c *BasicConstraints) add(b *cryptobyte.Builder) error {
	if !c.CA && c.PathLen > 0 {
		return fault.New(fault.Invalid, "a path length of %d without CA: it has a meaning for a CA only", c.PathLen)
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if !c.CA {
			return
		}
		b.AddASN1Boolean(true)
		if c.PathLen >= 0 {
			b.AddASN1Int64(int64(c.PathLen))
		}
	})
	return nil
}

// addKeyUsage writes the named bit list, whose trailing zero bits DER leaves out.
func addKeyUsage(b *cryptobyte.Builder, usage x509.KeyUsage) error {
	if usage < 0 || usage >= 1<<9 {
		return fault.New(fault.Invalid, "key usage %#x has bits beyond decipherOnly", int(usage))
	}
	reversed := bits.Reverse16(uint16(usage)) // bit 0 of RFC 5280 4.2.1.3 is the first bit of the string
	octets := []byte{byte(reversed >> 8), byte(reversed)}
	if octets[1] == 0 {
		octets = octets[:1]
	}
	unused := bits.TrailingZeros8(octets[len(octets)-1])
	b.AddASN1(cbasn1.BIT_STRING, func(b *cryptobyte.Builder) {
		b.AddUint8(uint8(unused))
		b.AddBytes(octets)
	})
	return nil
}

func addOIDs(b *cryptobyte.Builder, oids []asn1.ObjectIdentifier) error {
	for _, oid := range oids {
		if !validOID(oid) {
			return fault.New(fault.Invalid, "object identifier %s cannot be encoded", oid)
		}
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, oid := range oids {
			b.AddASN1ObjectIdentifier(oid)
		}
	})
	return nil
}

func addIntegers(b *cryptobyte.Builder, numbers []int) error {
	for _, n := range numbers {
		if n < 0 || n > 65535 {
			return fault.New(fault.Invalid, "TLS feature %d: a TLS extension number from 0 to 65535 is needed, such as 5", n)
		}
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, n := range numbers {
			b.AddASN1Int64(int64(n))
		}
	})
	return nil
}

// addDistributionPoint writes one DistributionPoint with all URLs, since several names of one point are places of the
// same CRL (RFC 5280 4.2.1.13).
func addDistributionPoint(b *cryptobyte.Builder, urls []string) (err error) {
	names := make([]GeneralName, len(urls))
	for i, url := range urls {
		names[i] = URIName(url)
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(contextTag(0).Constructed(), func(b *cryptobyte.Builder) {
				err = addGeneralNames(b, contextTag(0).Constructed(), names)
			})
		})
	})
	return err
}

func addAccess(b *cryptobyte.Builder, method asn1.ObjectIdentifier, urls []string) (err error) {
	for _, url := range urls {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(method)
			if e := URIName(url).add(b, false); e != nil {
				err = e
			}
		})
	}
	return err
}

// maxNotice is the bound of explicitText (RFC 5280 4.2.1.4).
const maxNotice = 200

func addPolicyInformation(b *cryptobyte.Builder, policies []Policy) error {
	for _, p := range policies {
		switch {
		case !validOID(p.ID):
			return fault.New(fault.Invalid, "policy %s is no object identifier that can be encoded", p.ID)
		case !isASCII(p.CPS):
			return fault.New(fault.Invalid, "policy %s: the URI %q of its practice statement must be ASCII", p.ID, p.CPS)
		case !utf8.ValidString(p.UserNotice) || utf8.RuneCountInString(p.UserNotice) > maxNotice:
			return fault.New(fault.Invalid, "policy %s: its notice must be UTF-8 of at most %d characters", p.ID, maxNotice)
		}
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, p := range policies {
			b.AddASN1(cbasn1.SEQUENCE, p.add)
		}
	})
	return nil
}

func (p Policy) add(b *cryptobyte.Builder) {
	b.AddASN1ObjectIdentifier(p.ID)
	if p.CPS == "" && p.UserNotice == "" {
		return
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if p.UserNotice != "" {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidUserNotice)
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(p.UserNotice)) })
				})
			})
		}
		if p.CPS != "" {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidCPS)
				b.AddASN1(cbasn1.IA5String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(p.CPS)) })
			})
		}
	})
}

func (c *NameConstraints) add(b *cryptobyte.Builder) (failed error) {
	if len(c.Permitted)+len(c.Excluded) == 0 {
		return fault.New(fault.Invalid, "name constraints need a permitted or an excluded name (RFC 5280 4.2.1.10)")
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for i, names := range [][]GeneralName{c.Permitted, c.Excluded} {
			if len(names) == 0 {
				continue
			}
			b.AddASN1(contextTag(uint8(i)).Constructed(), func(b *cryptobyte.Builder) {
				for _, g := range names {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						if err := g.add(b, true); err != nil {
							failed = err
						}
					})
				}
			})
		}
	})
	return failed
}

func (p *ProxyCertInfo) add(b *cryptobyte.Builder) error {
	if !validOID(p.Language) || (p.PathLen != nil && *p.PathLen < 0) {
		return fault.New(fault.Invalid, "proxyCertInfo needs a policy language, such as 1.3.6.1.5.5.7.21.1, and no negative "+
			"path length")
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if p.PathLen != nil {
			b.AddASN1Int64(int64(*p.PathLen))
		}
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(p.Language)
			if p.Policy != nil {
				b.AddASN1OctetString(p.Policy)
			}
		})
	})
	return nil
}
