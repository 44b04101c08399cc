package crl

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/pki/cert"
)

// List is a CRL that was read. Its entries stay in the octets that it was read from.
type List struct {
	Raw            []byte
	RawTBS         []byte
	RawIssuer      []byte
	Algorithm      cert.SignatureAlgorithm
	Signature      []byte
	ThisUpdate     time.Time
	NextUpdate     time.Time
	AuthorityKeyID []byte
	Number         *big.Int
	BaseNumber     *big.Int // not nil in a delta CRL
	IDP            *IssuingDistributionPoint
	Freshest       []string
	Count          int // of entries

	revoked cryptobyte.String
}

// Parse reads one DER CRL, strictly: version 2, DER throughout, every entry whole, no extension twice, no unknown critical
// extension (RFC 5280 §5.2 forbids deciding a status with such a list). It does not check the signature.
func Parse(der []byte) (*List, error) {
	l := &List{Raw: der}
	var (
		input           = cryptobyte.String(der)
		outer, tbs, sig cryptobyte.String
		rawTBS, alg     cryptobyte.String
	)
	switch {
	case !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !input.Empty():
		return nil, errors.New("CRL is not one DER SEQUENCE")
	case !outer.ReadASN1Element(&rawTBS, cbasn1.SEQUENCE):
		return nil, errors.New("CRL has no tbsCertList")
	case !outer.ReadASN1Element(&alg, cbasn1.SEQUENCE):
		return nil, errors.New("CRL has no signatureAlgorithm")
	}
	var signature asn1.BitString
	if !outer.ReadASN1BitString(&signature) || signature.BitLength%8 != 0 || !outer.Empty() {
		return nil, errors.New("CRL has no signatureValue, or something behind it")
	}
	l.RawTBS, l.Signature = rawTBS, signature.Bytes
	algorithm, err := cert.ParseAlgorithmIdentifier(alg)
	if err != nil {
		return nil, fmt.Errorf("CRL: %w", err)
	}
	l.Algorithm = algorithm
	if !rawTBS.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil, errors.New("CRL has no tbsCertList")
	}
	var version int64
	if !tbs.ReadASN1Integer(&version) || version != 1 {
		return nil, errors.New("CRL is not of version 2, which RFC 5280 §5.1.2.1 demands where there are extensions, and there must be some")
	}
	if !tbs.ReadASN1Element(&sig, cbasn1.SEQUENCE) || !bytes.Equal(sig, alg) {
		return nil, errors.New("CRL's signature algorithms inside and outside differ (RFC 5280 §5.1.1.2)")
	}
	if err := l.parseBody(&tbs); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *List) parseBody(tbs *cryptobyte.String) error {
	var issuer cryptobyte.String
	if !tbs.ReadASN1Element(&issuer, cbasn1.SEQUENCE) || len(issuer) <= 2 {
		return errors.New("CRL has no issuer name (RFC 5280 §5.1.2.3)")
	}
	l.RawIssuer = issuer
	var err error
	if l.ThisUpdate, err = readTime(tbs); err != nil {
		return fmt.Errorf("CRL's thisUpdate: %w", err)
	}
	if l.NextUpdate, err = readTime(tbs); err != nil {
		return fmt.Errorf("CRL's nextUpdate, which RFC 5280 §5.1.2.5 demands: %w", err)
	}
	if !l.NextUpdate.After(l.ThisUpdate) {
		return fmt.Errorf("CRL's nextUpdate %s is not after its thisUpdate %s", stamp(l.NextUpdate), stamp(l.ThisUpdate))
	}
	if tbs.PeekASN1Tag(cbasn1.SEQUENCE) {
		// RFC 5280 §5.1.2.6 wants an empty one to be absent; GnuTLS' certtool writes it, and every consumer reads that.
		if !tbs.ReadASN1(&l.revoked, cbasn1.SEQUENCE) {
			return errors.New("CRL's revokedCertificates is not a sequence")
		}
	}
	if err := l.parseExtensions(tbs); err != nil {
		return err
	}
	for e, err := range l.Entries() {
		if err != nil {
			return err
		}
		if e.Reason == RemoveFromCRL && l.BaseNumber == nil {
			return fmt.Errorf("serial %x has reason removeFromCRL, which only a delta CRL may have", e.Serial)
		}
		l.Count++
	}
	return nil
}

func (l *List) parseExtensions(tbs *cryptobyte.String) error {
	var explicit, extensions cryptobyte.String
	if !tbs.ReadASN1(&explicit, cbasn1.Tag(0).ContextSpecific().Constructed()) || !tbs.Empty() ||
		!explicit.ReadASN1(&extensions, cbasn1.SEQUENCE) || !explicit.Empty() {
		return errors.New("CRL has no crlExtensions (RFC 5280 §5.2 demands two), or something behind them")
	}
	seen := make(map[string]bool)
	for !extensions.Empty() {
		id, critical, value, err := readExtension(&extensions)
		if err != nil {
			return fmt.Errorf("CRL extension: %w", err)
		}
		if seen[id.String()] {
			return fmt.Errorf("CRL extension %v stands twice", id)
		}
		seen[id.String()] = true
		if err := l.parseExtension(id, critical, value); err != nil {
			return fmt.Errorf("CRL extension %v: %w", id, err)
		}
	}
	if l.Number == nil {
		return errors.New("CRL has no CRLNumber (RFC 5280 §5.2.3)")
	}
	return nil
}

func (l *List) parseExtension(id asn1.ObjectIdentifier, critical bool, value cryptobyte.String) (err error) {
	switch {
	case id.Equal(oidAuthorityKeyID):
		l.AuthorityKeyID, err = readKeyIdentifier(value)
	case id.Equal(oidCRLNumber):
		if critical {
			return errors.New("CRLNumber must not be critical")
		}
		l.Number, err = readNumber(value)
	case id.Equal(oidDeltaCRLIndicator):
		if !critical {
			return errors.New("deltaCRLIndicator must be critical (RFC 5280 §5.2.4)")
		}
		l.BaseNumber, err = readNumber(value)
	case id.Equal(oidIssuingDistPoint):
		if !critical {
			return errors.New("issuingDistributionPoint must be critical (RFC 5280 §5.2.5)")
		}
		l.IDP, err = readIssuingDistributionPoint(value)
	case id.Equal(oidFreshestCRL):
		l.Freshest, err = readDistributionPoints(value)
	case id.Equal(oidIssuerAltName), id.Equal(oidAuthorityInfo), id.Equal(oidExpiredCertsOnCRL):
	case critical:
		return errors.New("is critical and not known")
	}
	return err
}

// Entries yields the entries in their order. After an error it stops.
func (l *List) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for rest := l.revoked; !rest.Empty(); {
			e, err := readEntry(&rest)
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Lookup finds the last entry of a serial; in a delta CRL the reason may be RemoveFromCRL.
func (l *List) Lookup(serial *big.Int) (Entry, bool) {
	var b cryptobyte.Builder
	b.AddASN1BigInt(serial)
	want, err := b.Bytes()
	if err != nil {
		return Entry{}, false
	}
	var (
		found Entry
		ok    bool
	)
	for rest := l.revoked; !rest.Empty(); {
		var element, body cryptobyte.String
		if !rest.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return Entry{}, false // not reached: Parse read every entry
		}
		body = element
		if !body.ReadASN1(&body, cbasn1.SEQUENCE) || !bytes.HasPrefix(body, want) {
			continue
		}
		if e, err := ParseEntry(element); err == nil {
			found, ok = e, true
		}
	}
	return found, ok
}

func readNumber(value cryptobyte.String) (*big.Int, error) {
	n := new(big.Int)
	if !value.ReadASN1Integer(n) || !value.Empty() || n.Sign() < 0 {
		return nil, errors.New("is not one INTEGER of 0 or more")
	}
	return n, nil
}

func readKeyIdentifier(value cryptobyte.String) ([]byte, error) {
	var body, id cryptobyte.String
	if !value.ReadASN1(&body, cbasn1.SEQUENCE) || !value.Empty() {
		return nil, errors.New("is not one SEQUENCE")
	}
	if !body.PeekASN1Tag(cbasn1.Tag(0).ContextSpecific()) {
		return nil, nil // issuer and serial instead, as old CAs have it
	}
	if !body.ReadASN1(&id, cbasn1.Tag(0).ContextSpecific()) {
		return nil, errors.New("keyIdentifier is not DER")
	}
	return id, nil
}

func readIssuingDistributionPoint(value cryptobyte.String) (*IssuingDistributionPoint, error) {
	var body cryptobyte.String
	if !value.ReadASN1(&body, cbasn1.SEQUENCE) || !value.Empty() || body.Empty() {
		return nil, errors.New("is not one filled SEQUENCE")
	}
	p := &IssuingDistributionPoint{}
	var name, reasons cryptobyte.String
	var present bool
	if !body.ReadOptionalASN1(&name, &present, cbasn1.Tag(0).ContextSpecific().Constructed()) {
		return nil, errors.New("distributionPoint is not DER")
	}
	if present {
		uris, other, err := readDistributionPointName(name)
		if err != nil {
			return nil, err
		}
		p.URIs, p.otherDistributionName = uris, other
	}
	ok := readFlag(&body, 1, &p.OnlyUserCerts) && readFlag(&body, 2, &p.OnlyCACerts) &&
		body.ReadOptionalASN1(&reasons, &p.OnlySomeReasons, cbasn1.Tag(3).ContextSpecific()) &&
		readFlag(&body, 4, &p.IndirectCRL) && readFlag(&body, 5, &p.OnlyAttributeCerts)
	if !ok || !body.Empty() {
		return nil, errors.New("is not an IssuingDistributionPoint in DER")
	}
	if p.IndirectCRL {
		return nil, errors.New("indirect CRLs are not supported")
	}
	return p, nil
}

// readFlag reads an implicitly tagged BOOLEAN DEFAULT FALSE.
func readFlag(body *cryptobyte.String, tag cbasn1.Tag, flag *bool) bool {
	var value cryptobyte.String
	if !body.ReadOptionalASN1(&value, flag, tag.ContextSpecific()) {
		return false
	}
	return !*flag || len(value) == 1 && value[0] == 0xff
}

// readDistributionPointName reads the URIs of a fullName; other says that there are names of other kinds too, or that it
// is relative to the issuer's.
func readDistributionPointName(name cryptobyte.String) (uris []string, other bool, err error) {
	var full cryptobyte.String
	if name.PeekASN1Tag(cbasn1.Tag(1).ContextSpecific().Constructed()) {
		return nil, true, nil
	}
	if !name.ReadASN1(&full, cbasn1.Tag(0).ContextSpecific().Constructed()) || !name.Empty() || full.Empty() {
		return nil, false, errors.New("distributionPoint is neither a filled fullName nor a nameRelativeToCRLIssuer")
	}
	for !full.Empty() {
		var value cryptobyte.String
		var tag cbasn1.Tag
		if !full.ReadAnyASN1(&value, &tag) {
			return nil, false, errors.New("fullName is not DER")
		}
		if tag == cbasn1.Tag(6).ContextSpecific() {
			uris = append(uris, string(value))
		} else {
			other = true
		}
	}
	return uris, other, nil
}

func readDistributionPoints(value cryptobyte.String) ([]string, error) {
	var points cryptobyte.String
	if !value.ReadASN1(&points, cbasn1.SEQUENCE) || !value.Empty() || points.Empty() {
		return nil, errors.New("is not one filled SEQUENCE of distribution points")
	}
	var all []string
	for !points.Empty() {
		var point, name cryptobyte.String
		var present bool
		if !points.ReadASN1(&point, cbasn1.SEQUENCE) || !point.ReadOptionalASN1(&name, &present,
			cbasn1.Tag(0).ContextSpecific().Constructed()) {
			return nil, errors.New("a distribution point is not DER")
		}
		if !present {
			continue
		}
		uris, _, err := readDistributionPointName(name)
		if err != nil {
			return nil, err
		}
		all = append(all, uris...)
	}
	return all, nil
}
