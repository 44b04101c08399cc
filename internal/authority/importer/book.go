package importer

import (
	"bytes"
	"crypto/x509"
	encasn1 "encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
)

// maxSerialBits is what a CRL entry of ours can carry; RFC 5280 4.1.2.2 allows 160, and old CAs broke it.
const maxSerialBits = 256

// maxCRLNumberBits leaves any number of lists to come below the 20 octets that RFC 5280 section 5.2.3 allows.
const maxCRLNumberBits = 152

// book gathers what a CA issued from several sources.
type book struct {
	ca    *CA
	at    map[string]int // serial to index in ca.Issued
	weak  int
	later []string // serials that only a CRL knows as revoked
	index bool     // the CA keeps records, so that its CRL should say nothing new
}

func newBook(c *CA) *book { return &book{ca: c, at: make(map[string]int)} }

// finish takes over bundles of issued certificates, then CRLs, and adds up the warnings.
func (b *book) finish(issued, crls [][]byte) (*CA, error) {
	for i, data := range issued {
		certs, err := keyfile.ParseCertificates(data)
		if err != nil {
			return nil, fmt.Errorf("issued certificates, file %d: %w", i+1, err)
		}
		for _, x := range certs {
			if err := b.addCertificate(x); err != nil {
				return nil, err
			}
		}
	}
	for _, data := range crls {
		if err := b.addCRL(data); err != nil {
			return nil, err
		}
	}
	if n := b.ca.CRLNumber; n != nil && n.BitLen() > maxCRLNumberBits {
		return nil, fault.New(fault.Invalid, "the CA's last CRLNumber %x leaves no room for greater ones: RFC 5280 5.2.3 ends at 20 octets", n)
	}
	b.close()
	return b.ca, nil
}

func (b *book) find(serial *big.Int) *ca.Record {
	if i, ok := b.at[serial.String()]; ok {
		return &b.ca.Issued[i]
	}
	return nil
}

func (b *book) add(i ca.Record) {
	b.at[i.Serial.String()] = len(b.ca.Issued)
	b.ca.Issued = append(b.ca.Issued, i)
}

func checkSerial(serial *big.Int) error {
	if serial.Sign() < 0 || serial.BitLen() > maxSerialBits {
		return fault.New(fault.Invalid, "serial %x is negative or longer than %d bits", serial, maxSerialBits)
	}
	return nil
}

// addCertificate records a certificate that the CA issued. The CA's own is passed over: it is the issuer.
func (b *book) addCertificate(x *x509.Certificate) error {
	if x.Equal(b.ca.Certificate) {
		return nil
	}
	if err := b.checkIssued(x); err != nil {
		return err
	}
	if have := b.find(x.SerialNumber); have != nil {
		if bytes.Equal(have.DER, x.Raw) {
			return nil
		}
		return fault.New(fault.Invalid, "serial %s belongs to two different certificates, %q and %q", cert.FormatSerial(x.SerialNumber),
			have.Subject, x.Subject)
	}
	b.add(b.record(x))
	return nil
}

// record keeps a certificate whose names cannot be read here as its record alone, so that it can be revoked at least.
func (b *book) record(x *x509.Certificate) ca.Record {
	r := ca.Record{Serial: x.SerialNumber, DER: x.Raw, NotBefore: x.NotBefore, NotAfter: x.NotAfter}
	name, err := cert.ParseNameDER(x.RawSubject)
	r.Subject = name.String()
	for _, e := range x.Extensions {
		if err == nil && e.Id.Equal(cert.OIDSubjectAltName) {
			_, err = cert.ParseGeneralNames(e.Value)
		}
	}
	if err != nil {
		b.ca.warn("the names of certificate %s cannot be read (%v); only its record is imported", cert.FormatSerial(x.SerialNumber), err)
		r.DER, r.Subject = nil, x.Subject.String()
	}
	return r
}

func (b *book) checkIssued(x *x509.Certificate) error {
	if err := checkSerial(x.SerialNumber); err != nil {
		return err
	}
	own := b.ca.Certificate
	if bytes.Equal(own.RawSubject, own.RawIssuer) && own.SerialNumber.Cmp(x.SerialNumber) == 0 {
		return fault.New(fault.Invalid, "certificate %q has the serial %s of the root itself", x.Subject, cert.FormatSerial(x.SerialNumber))
	}
	if !bytes.Equal(x.RawIssuer, own.RawSubject) {
		return fault.New(fault.Invalid, "certificate %q names %q as its issuer, not the CA", x.Subject, x.Issuer)
	}
	err := verify(x, own)
	if errors.Is(err, errWeak) {
		b.weak++
		return nil
	}
	if err != nil {
		return fault.New(fault.Invalid, "certificate %q (serial %s) was not signed by the CA's key", x.Subject,
			cert.FormatSerial(x.SerialNumber))
	}
	return nil
}

var (
	oidDeltaCRL          = encasn1.ObjectIdentifier{2, 5, 29, 27}
	oidInvalidityDate    = encasn1.ObjectIdentifier{2, 5, 29, 24}
	oidCertificateIssuer = encasn1.ObjectIdentifier{2, 5, 29, 29}
)

// addCRL takes over revocations and the CRLNumber of a CRL that the CA signed.
func (b *book) addCRL(data []byte) error {
	der, err := crl.FromPEM(data)
	if err != nil {
		return fmt.Errorf("CA's CRL: %w", err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return fault.New(fault.Invalid, "the CA's CRL is not valid: %w", err)
	}
	if !bytes.Equal(list.RawIssuer, b.ca.Certificate.RawSubject) {
		return fault.New(fault.Invalid, "the CRL is of issuer %q, not of the CA", list.Issuer)
	}
	err = verifySignature(b.ca.Certificate, list.SignatureAlgorithm, list.RawTBSRevocationList, list.Signature)
	if err != nil && !errors.Is(err, errWeak) {
		return fault.New(fault.Invalid, "the CRL was not signed by the CA's key")
	}
	for _, e := range list.Extensions {
		if e.Id.Equal(oidDeltaCRL) {
			return fault.New(fault.Invalid, "the CRL is a delta; the complete one is needed")
		}
	}
	if list.Number != nil && (b.ca.CRLNumber == nil || list.Number.Cmp(b.ca.CRLNumber) > 0) {
		b.ca.CRLNumber = list.Number
	}
	for _, e := range list.RevokedCertificateEntries {
		if err := b.addEntry(e); err != nil {
			return err
		}
	}
	return nil
}

func (b *book) addEntry(e x509.RevocationListEntry) error {
	if err := checkSerial(e.SerialNumber); err != nil {
		return err
	}
	serial := cert.FormatSerial(e.SerialNumber)
	revocation := &ca.Revocation{Reason: crl.Reason(e.ReasonCode), RevokedAt: e.RevocationTime.UTC()}
	if !revocation.Reason.Valid() || revocation.Reason == crl.RemoveFromCRL {
		b.ca.warn("the CRL revokes serial %s with reason %d, which a complete CRL does not have; it is imported as unspecified", serial,
			e.ReasonCode)
		revocation.Reason = crl.Unspecified
	}
	for _, x := range e.Extensions {
		switch {
		case x.Id.Equal(oidCertificateIssuer):
			return fault.New(fault.Invalid, "the CRL is indirect: serial %s in it is of another issuer", serial)
		case x.Id.Equal(oidInvalidityDate):
			value := cryptobyte.String(x.Value)
			if !value.ReadASN1GeneralizedTime(&revocation.InvalidityDate) || !value.Empty() {
				return fault.New(fault.Invalid, "the invalidityDate of serial %s in the CRL is not valid", serial)
			}
		}
	}
	have := b.find(e.SerialNumber)
	switch {
	case have == nil:
		b.add(ca.Record{Serial: e.SerialNumber, NotAfter: b.ca.Certificate.NotAfter, Revocation: revocation})
		b.later = append(b.later, serial)
	case have.Revocation == nil:
		have.Revocation = revocation
		if b.index {
			b.ca.warn("serial %s is valid in the CA's records and revoked in its CRL; it is imported as revoked", serial)
		}
	}
	return nil
}

// close adds the warnings that count, in front of those of single certificates.
func (b *book) close() {
	var counts []string
	count := func(n int, format string, args ...any) {
		if n > 0 {
			counts = append(counts, fmt.Sprintf(format, append([]any{n}, args...)...))
		}
	}
	without := 0
	for _, i := range b.ca.Issued {
		if i.DER == nil {
			without++
		}
	}
	count(b.weak, "%d issued certificates are %v: consumers refuse them, so renew them first", errWeak)
	if len(b.later) > 0 {
		count(len(b.later), "%d revoked serials are known from a CRL only (the first is %s); they stay on the CRL until the CA ends",
			b.later[0])
	}
	count(without, "%d of %d issued certificates are known by their records only; they can be revoked, and not shown or renewed",
		len(b.ca.Issued))
	b.ca.Warnings = append(counts, b.ca.Warnings...)
	if b.ca.unsaid > 0 {
		b.ca.Warnings = append(b.ca.Warnings, fmt.Sprintf("%d more warnings are not shown", b.ca.unsaid))
	}
}

// utc parses the two forms of time that an index and an extension have.
func utc(text string) (time.Time, bool) {
	for _, layout := range []string{"060102150405Z", "20060102150405Z"} {
		if len(text) != len(layout) {
			continue
		}
		t, err := time.Parse(layout, text)
		if err != nil {
			return t, false
		}
		if len(text) == 13 && t.Year() >= 2050 { // RFC 5280 4.1.2.5.1; Go's pivot is 1969
			t = t.AddDate(-100, 0, 0)
		}
		return t, true
	}
	return time.Time{}, false
}
