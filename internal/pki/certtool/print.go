package certtool

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"chancery/internal/pki/cert"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Print writes a certificate as certtool --certificate-info does: its sections, a blank line, and the PEM block. What
// certtool cannot read in it (an extension that is not DER, an unknown key) is shown as far as it goes.
func Print(w io.Writer, der []byte) error {
	text, err := certificateText(der, true)
	if err != nil {
		return err
	}
	text += "\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	_, err = io.WriteString(w, text)
	return err
}

// The lines that certtool --generate-certificate and --generate-self-signed print around a certificate.
const (
	GeneratingSigned     = "Generating a signed certificate...\n"
	GeneratingSelfSigned = "Generating a self signed certificate...\n"
	Signing              = "\n\nSigning certificate...\n"
)

// PrintUnsigned writes a certificate as certtool --generate-certificate shows it before it signs: without issuer,
// signature and fingerprint. A caller that wants all of certtool's talk writes GeneratingSigned before and Signing
// after it.
func PrintUnsigned(w io.Writer, der []byte) error {
	text, err := certificateText(der, false)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, text+"\n")
	return err
}

// printer collects the text. Depth is the number of tabs before a line.
type printer struct{ strings.Builder }

func (p *printer) line(depth int, format string, args ...any) {
	p.WriteString(strings.Repeat("\t", depth))
	p.WriteString(visible(fmt.Sprintf(format, args...)))
	p.WriteByte('\n')
}

// visible escapes what a name could steer a terminal with, as RFC 4514 writes octets: control characters but tabs, line ends, marks that
// turn the direction of text, and octets that are not UTF-8. certtool prints them as they are.
func visible(text string) string {
	if strings.IndexFunc(text, steers) < 0 && utf8.ValidString(text) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		if r == utf8.RuneError && size == 1 || steers(r) {
			for _, octet := range []byte(text[:size]) {
				fmt.Fprintf(&b, "\\%02X", octet)
			}
		} else {
			b.WriteString(text[:size])
		}
		text = text[size:]
	}
	return b.String()
}

func steers(r rune) bool {
	return unicode.IsControl(r) && r != '\t' || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029'
}

// octets writes hexadecimal pairs, sixteen a line.
func (p *printer) octets(depth int, data []byte) {
	for len(data) > 0 {
		n := min(16, len(data))
		p.line(depth, "%s", strings.ReplaceAll(fmt.Sprintf("% x", data[:n]), " ", ":"))
		data = data[n:]
	}
}

// printed is a certificate taken apart no further than printing needs: crypto/x509 refuses certificates that an operator
// may well want to look at.
type printed struct {
	version                       int64
	serial, issuer, subject, spki []byte
	notBefore, notAfter           time.Time
	issuerUID, subjectUID         []byte
	extensions                    []cert.Extension
	algorithm                     []byte // AlgorithmIdentifier
	signature                     []byte
}

var errNoCertificate = errors.New("print certificate: it is not a DER X.509 certificate")

func takeApart(der []byte) (*printed, error) {
	c := &printed{version: 0}
	input := cryptobyte.String(der)
	var whole, tbs, serial, algorithm, validity, uid cryptobyte.String
	var hasUID, hasExtensions bool
	var signature asn1.BitString
	var extensions cryptobyte.String
	if !input.ReadASN1(&whole, cbasn1.SEQUENCE) || !input.Empty() || !whole.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!whole.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) || !whole.ReadASN1BitString(&signature) {
		return nil, errNoCertificate
	}
	c.algorithm, c.signature = algorithm, signature.RightAlign()
	if !tbs.ReadOptionalASN1Integer(&c.version, explicit(0), int64(0)) ||
		!tbs.ReadASN1(&serial, cbasn1.INTEGER) || !tbs.SkipASN1(cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Element((*cryptobyte.String)(&c.issuer), cbasn1.SEQUENCE) || !tbs.ReadASN1(&validity, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Element((*cryptobyte.String)(&c.subject), cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Element((*cryptobyte.String)(&c.spki), cbasn1.SEQUENCE) {
		return nil, errNoCertificate
	}
	c.serial = serial
	if !readTime(&validity, &c.notBefore) || !readTime(&validity, &c.notAfter) {
		return nil, errNoCertificate
	}
	for i, field := range []*[]byte{&c.issuerUID, &c.subjectUID} {
		tag := cbasn1.Tag(i + 1).ContextSpecific()
		if !tbs.ReadOptionalASN1(&uid, &hasUID, tag) || hasUID && len(uid) == 0 {
			return nil, errNoCertificate
		}
		if hasUID {
			*field = uid[1:]
		}
	}
	if !tbs.ReadOptionalASN1(&extensions, &hasExtensions, explicit(3)) {
		return nil, errNoCertificate
	}
	if hasExtensions {
		var ok bool
		if c.extensions, ok = readExtensions(extensions); !ok {
			return nil, errNoCertificate
		}
	}
	return c, nil
}

func readExtensions(s cryptobyte.String) ([]cert.Extension, bool) {
	var list []cert.Extension
	var seq cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return nil, false
	}
	for !seq.Empty() {
		var one, value cryptobyte.String
		var x cert.Extension
		if !seq.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&x.ID) ||
			!readDefaultFalse(&one, &x.Critical) || !one.ReadASN1(&value, cbasn1.OCTET_STRING) {
			return nil, false
		}
		x.Value = value
		list = append(list, x)
	}
	return list, true
}

// readDefaultFalse reads BOOLEAN DEFAULT FALSE.
func readDefaultFalse(s *cryptobyte.String, b *bool) bool {
	return !s.PeekASN1Tag(cbasn1.BOOLEAN) || s.ReadASN1Boolean(b)
}

func readTime(s *cryptobyte.String, t *time.Time) bool {
	if s.PeekASN1Tag(cbasn1.UTCTime) {
		return s.ReadASN1UTCTime(t)
	}
	return s.ReadASN1GeneralizedTime(t)
}

func timeText(t time.Time) string { return t.UTC().Format("Mon Jan 02 15:04:05 UTC 2006") }

func certificateText(der []byte, signed bool) (string, error) {
	c, err := takeApart(der)
	if err != nil {
		return "", err
	}
	p := &printer{}
	p.line(0, "X.509 Certificate Information:")
	p.line(1, "Version: %d", c.version+1)
	p.line(1, "Serial Number (hex): %x", c.serial)
	if signed {
		p.line(1, "Issuer:%s", nameText(c.issuer))
	}
	p.line(1, "Validity:")
	p.line(2, "Not Before: %s", timeText(c.notBefore))
	p.line(2, "Not After: %s", timeText(c.notAfter))
	p.line(1, "Subject:%s", nameText(c.subject))
	p.publicKey(c.spki)
	if c.issuerUID != nil {
		p.line(1, "Issuer Unique ID:")
		p.octets(3, c.issuerUID)
	}
	if c.subjectUID != nil {
		p.line(1, "Subject Unique ID:")
		p.octets(3, c.subjectUID)
	}
	if len(c.extensions) > 0 {
		p.line(1, "Extensions:")
		for _, x := range c.extensions {
			p.extension(x)
		}
	}
	if signed {
		p.signature(c.algorithm, c.signature)
	}
	p.line(0, "Other Information:")
	if signed {
		sha1Sum, sha256Sum := sha1.Sum(der), sha256.Sum256(der)
		p.line(1, "Fingerprint:")
		p.line(2, "sha1:%x", sha1Sum)
		p.line(2, "sha256:%x", sha256Sum)
	}
	sha1Sum, sha256Sum := sha1.Sum(c.spki), sha256.Sum256(c.spki)
	p.line(1, "Public Key ID:")
	p.line(2, "sha1:%x", sha1Sum)
	p.line(2, "sha256:%x", sha256Sum)
	p.line(1, "Public Key PIN:")
	p.line(2, "pin-sha256:%s", base64.StdEncoding.EncodeToString(sha256Sum[:]))
	return p.String(), nil
}

func (p *printer) signature(algorithm, signature []byte) {
	name, broken := signatureName(algorithm)
	p.line(1, "Signature Algorithm: %s", name)
	if broken {
		p.line(0, "warning: signed using a broken signature algorithm that can be forged.")
	}
	p.line(1, "Signature:")
	p.octets(2, signature)
}

// nameText is a name as GnuTLS writes it: RFC 4514, most specific first, with its own attribute names. It begins with
// a blank unless the name is empty.
func nameText(der []byte) string {
	name, err := cert.ParseNameDER(der)
	if err != nil {
		return " " + "#" + hex.EncodeToString(der)
	}
	if len(name) == 0 {
		return ""
	}
	return " " + distinguishedName(name)
}

func distinguishedName(name cert.Name) string {
	var rdns []string
	for i := len(name) - 1; i >= 0; i-- {
		var parts []string
		for _, a := range name[i] {
			parts = append(parts, attributeText(a))
		}
		rdns = append(rdns, strings.Join(parts, "+"))
	}
	return strings.Join(rdns, ",")
}

func attributeText(a cert.Attribute) string {
	t, known := attributeByOID(a.Type)
	if !known {
		content := []byte(a.Value)
		return t.oid.String() + "=#" + hex.EncodeToString(element(a.Tag, content))
	}
	return t.name + "=" + escapeName(a.Value)
}

func escapeName(text string) string {
	var b bytes.Buffer
	for i := range len(text) {
		c := text[i]
		if strings.IndexByte(`,+"\<>;`, c) >= 0 || i == 0 && (c == '#' || c == ' ') || i > 0 && i == len(text)-1 && c == ' ' {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}
