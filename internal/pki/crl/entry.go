package crl

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

// Entry is one element of revokedCertificates.
type Entry struct {
	Serial     *big.Int
	RevokedAt  time.Time
	Reason     Reason
	Invalidity time.Time // when the key was first suspect, RFC 5280 §5.3.2; zero means that no date is given
}

// EncodeEntry returns the DER of one element of revokedCertificates: what a store keeps, and Sign takes.
func EncodeEntry(e Entry) ([]byte, error) {
	switch {
	case e.Serial == nil || e.Serial.Sign() < 0:
		return nil, fault.New(fault.Invalid,
			"serial %v is negative or missing; a revoked certificate has one of 0 or more", e.Serial)
	case e.Serial.BitLen() > 8*32:
		// Certificates that we did not issue may break the 20 octets of RFC 5280 §4.1.2.2, and must be revocable.
		return nil, fault.New(fault.Invalid, "serial of %d bits is over the limit of 256", e.Serial.BitLen())
	case !e.Reason.Valid():
		return nil, fault.New(fault.Invalid, "revocation reason %d is not one of %v", int(e.Reason), Reasons())
	case e.RevokedAt.IsZero():
		return nil, fault.New(fault.Invalid, "entry of serial %x has no revocation date", e.Serial)
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 64))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(e.Serial)
		addTime(b, e.RevokedAt)
		if e.Reason == Unspecified && e.Invalidity.IsZero() {
			return // RFC 5280 §5.3.1: unspecified SHOULD be said by leaving the extension out
		}
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if e.Reason != Unspecified {
				addExtension(b, oidReasonCode, false, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.ENUM, func(b *cryptobyte.Builder) { b.AddUint8(uint8(e.Reason)) })
				})
			}
			if !e.Invalidity.IsZero() {
				addExtension(b, oidInvalidityDate, false,
					func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(e.Invalidity.UTC()) })
			}
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode CRL entry of serial %x: %w", e.Serial, err)
	}
	return der, nil
}

// ParseEntry reads what EncodeEntry wrote, strictly, with nothing after it.
func ParseEntry(der []byte) (Entry, error) {
	input := cryptobyte.String(der)
	e, err := readEntry(&input)
	if err != nil {
		return Entry{}, err
	}
	if !input.Empty() {
		return Entry{}, errors.New("octets follow the CRL entry")
	}
	return e, nil
}

func readEntry(input *cryptobyte.String) (Entry, error) {
	var (
		e    Entry
		body cryptobyte.String
	)
	if !input.ReadASN1(&body, cbasn1.SEQUENCE) {
		return e, errors.New("CRL entry is not a SEQUENCE")
	}
	e.Serial = new(big.Int)
	if !body.ReadASN1Integer(e.Serial) {
		return e, errors.New("CRL entry has no serial number")
	}
	var err error
	if e.RevokedAt, err = readTime(&body); err != nil {
		return e, fmt.Errorf("revocationDate of serial %x: %w", e.Serial, err)
	}
	if body.Empty() {
		return e, nil
	}
	var extensions cryptobyte.String
	if !body.ReadASN1(&extensions, cbasn1.SEQUENCE) || !body.Empty() || extensions.Empty() {
		return e, fmt.Errorf("crlEntryExtensions of serial %x are not one filled SEQUENCE", e.Serial)
	}
	var seen [4]asn1.ObjectIdentifier // enough for every extension that an entry can have; more are looked at, not compared
	for n := 0; !extensions.Empty(); n++ {
		id, critical, value, err := readExtension(&extensions)
		if err != nil {
			return e, fmt.Errorf("extension of serial %x: %w", e.Serial, err)
		}
		for i := range min(n, len(seen)) {
			if seen[i].Equal(id) {
				return e, fmt.Errorf("extension %v of serial %x stands twice", id, e.Serial)
			}
		}
		if n < len(seen) {
			seen[n] = id
		}
		if err := e.readExtension(id, critical, value); err != nil {
			return e, fmt.Errorf("extension %v of serial %x: %w", id, e.Serial, err)
		}
	}
	return e, nil
}

func (e *Entry) readExtension(id asn1.ObjectIdentifier, critical bool, value cryptobyte.String) error {
	switch {
	case id.Equal(oidReasonCode):
		var reason int
		if !value.ReadASN1Enum(&reason) || !value.Empty() || !Reason(reason).Valid() {
			return errors.New("reasonCode is not a CRLReason")
		}
		e.Reason = Reason(reason)
	case id.Equal(oidInvalidityDate):
		if !value.ReadASN1GeneralizedTime(&e.Invalidity) || !value.Empty() {
			return errors.New("invalidityDate is not a GeneralizedTime in UTC without fractions")
		}
	case id.Equal(oidCertificateIssuer):
		return errors.New("certificateIssuer makes this an indirect CRL, which is not supported")
	case critical:
		// RFC 5280 §5.3: a CRL with an unknown critical entry extension MUST NOT be used to decide a status.
		return errors.New("is critical and not known")
	}
	return nil
}

// addTime writes UTCTime through 2049 and GeneralizedTime from then on (RFC 5280 §5.1.2.4).
func addTime(b *cryptobyte.Builder, t time.Time) {
	t = t.UTC()
	if y := t.Year(); y >= 1950 && y < 2050 {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

func readTime(input *cryptobyte.String) (time.Time, error) {
	var t time.Time
	if input.PeekASN1Tag(cbasn1.UTCTime) {
		if !input.ReadASN1UTCTime(&t) {
			return t, errors.New("UTCTime is not YYMMDDHHMMSSZ")
		}
		return t, nil
	}
	if !input.ReadASN1GeneralizedTime(&t) {
		return t, errors.New("time is neither UTCTime nor GeneralizedTime in UTC without fractions")
	}
	if t.Year() < 2050 && t.Year() >= 1950 {
		return t, errors.New("GeneralizedTime is used for a date that RFC 5280 §5.1.2.4 wants as UTCTime")
	}
	return t, nil
}

func addExtension(b *cryptobyte.Builder, id asn1.ObjectIdentifier, critical bool, value func(*cryptobyte.Builder)) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(id)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

func readExtension(input *cryptobyte.String) (id asn1.ObjectIdentifier, critical bool, value cryptobyte.String, err error) {
	var body cryptobyte.String
	if !input.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1ObjectIdentifier(&id) {
		return id, false, nil, errors.New("is not a SEQUENCE that begins with an OBJECT IDENTIFIER")
	}
	if body.PeekASN1Tag(cbasn1.BOOLEAN) {
		if !body.ReadASN1Boolean(&critical) || !critical {
			return id, false, nil, errors.New("critical is not DER: FALSE is the default and is left out")
		}
	}
	if !body.ReadASN1(&value, cbasn1.OCTET_STRING) || !body.Empty() {
		return id, false, nil, errors.New("has no single OCTET STRING as its value")
	}
	return id, critical, value, nil
}
