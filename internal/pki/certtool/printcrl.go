package certtool

import (
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"time"

	"chancery/internal/pki/cert"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// GeneratingCRL is what certtool --generate-crl prints before the CRL, which it prints already signed.
const GeneratingCRL = "Generating a signed CRL...\n\n"

var errNoCRL = errors.New("print CRL: it is not a DER X.509 CRL")

// PrintCRL writes a CRL as certtool --crl-info does: its sections, a blank line, and the PEM block.
func PrintCRL(w io.Writer, der []byte) error {
	text, err := crlText(der)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, text+"\n"+string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})))
	return err
}

func crlText(der []byte) (string, error) {
	input := cryptobyte.String(der)
	var whole, tbs, algorithm, issuer, entries, extensions cryptobyte.String
	var signature asn1.BitString
	var thisUpdate, nextUpdate time.Time
	version := int64(0)
	if !input.ReadASN1(&whole, cbasn1.SEQUENCE) || !input.Empty() || !whole.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!whole.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) || !whole.ReadASN1BitString(&signature) {
		return "", errNoCRL
	}
	if tbs.PeekASN1Tag(cbasn1.INTEGER) && !tbs.ReadASN1Integer(&version) {
		return "", errNoCRL
	}
	if !tbs.SkipASN1(cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&issuer, cbasn1.SEQUENCE) || !readTime(&tbs, &thisUpdate) {
		return "", errNoCRL
	}
	if (tbs.PeekASN1Tag(cbasn1.UTCTime) || tbs.PeekASN1Tag(cbasn1.GeneralizedTime)) && !readTime(&tbs, &nextUpdate) {
		return "", errNoCRL
	}
	var hasEntries, hasExtensions bool
	if !tbs.ReadOptionalASN1(&entries, &hasEntries, cbasn1.SEQUENCE) ||
		!tbs.ReadOptionalASN1(&extensions, &hasExtensions, explicit(0)) {
		return "", errNoCRL
	}
	p := &printer{}
	p.line(0, "X.509 Certificate Revocation List Information:")
	p.line(1, "Version: %d", version+1)
	p.line(1, "Issuer:%s", nameText(issuer))
	p.line(1, "Update dates:")
	p.line(2, "Issued: %s", timeText(thisUpdate))
	if !nextUpdate.IsZero() {
		p.line(2, "Next at: %s", timeText(nextUpdate))
	}
	if hasExtensions {
		list, ok := readExtensions(extensions)
		if !ok {
			return "", errNoCRL
		}
		p.line(1, "Extensions:")
		for _, x := range list {
			p.crlExtension(x)
		}
	}
	if !p.revoked(entries) {
		return "", errNoCRL
	}
	p.signature(algorithm, signature.RightAlign())
	return p.String(), nil
}

var oidCRLNumber = arcs("2.5.29.20")

func (p *printer) crlExtension(x cert.Extension) {
	value := cryptobyte.String(x.Value)
	var number cryptobyte.String
	switch {
	case x.ID.Equal(oidCRLNumber) && value.ReadASN1(&number, cbasn1.INTEGER):
		p.line(2, "CRL Number (%s): %x", criticalText(x.Critical), []byte(number))
	case x.ID.Equal(cert.OIDAuthorityKeyID):
		p.extension(x)
	default:
		p.unknownExtension(x)
	}
}

// revoked writes the entries; certtool shows no reasons.
func (p *printer) revoked(entries cryptobyte.String) bool {
	count := 0
	for rest := entries; !rest.Empty(); count++ {
		if !rest.SkipASN1(cbasn1.SEQUENCE) {
			return false
		}
	}
	if count == 0 {
		p.line(1, "No revoked certificates.")
		return true
	}
	p.line(1, "Revoked certificates (%d):", count)
	for !entries.Empty() {
		var entry, serial cryptobyte.String
		var at time.Time
		if !entries.ReadASN1(&entry, cbasn1.SEQUENCE) || !entry.ReadASN1(&serial, cbasn1.INTEGER) || !readTime(&entry, &at) {
			return false
		}
		p.line(2, "Serial Number (hex): %x", []byte(serial))
		p.line(2, "Revoked at: %s", timeText(at))
	}
	return true
}
