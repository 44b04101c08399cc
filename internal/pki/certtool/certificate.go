package certtool

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/gnudate"
)

// Options are the circumstances of a certificate that the template cannot know.
type Options struct {
	// Request is the certification request, if there is one. As with certtool its subject is then taken, and the
	// template's names for the subject are not; its extensions count as far as honor_crq_extensions or honor_crq_ext
	// let them.
	Request *Request

	// SelfSigned leaves the authorityKeyIdentifier out, as certtool does for a root.
	SelfSigned bool

	// ProxyOf is the subject of the certificate that a proxy certificate is made of (RFC 3820): its subject is that
	// name and the template's cn.
	ProxyOf cert.Name
}

// Request is what certtool takes from a certification request.
type Request struct {
	Subject    cert.Name
	Extensions []cert.Extension
}

// Certificate is what a template says of a certificate.
type Certificate struct {
	Template *cert.Template
	Serial   *big.Int // nil: the template leaves it to the issuer
	Warnings []Warning

	// EndIsStated says that notAfter is from the template and not the default of 365 days; NeverExpires that it is
	// 9999-12-31T23:59:59Z. Whether the issuer lives that long is the caller's check.
	EndIsStated, NeverExpires bool
}

// builder collects a certificate while the options are read.
type builder struct {
	*Template
	now      time.Time
	out      *cert.Template
	result   *Certificate
	raw      []cert.Extension   // from the request and add_extension, before the options of their own
	added    map[string]setting // which of raw add_extension gave, by identifier
	isRSA    bool
	isCA     bool
	isServer bool
}

// Certificate turns the template into a certificate for key, as certtool --generate-certificate does. now is both the
// default of notBefore and what relative dates and days count from; dates without a zone are in now's zone.
func (t *Template) Certificate(now time.Time, key crypto.PublicKey, o Options) (*Certificate, error) {
	_, isRSA := key.(*rsa.PublicKey)
	out := &cert.Template{SubjectKeyID: cert.KeyIDSPKI, OmitAuthorityKeyID: o.SelfSigned}
	b := &builder{Template: t, now: now, out: out, result: &Certificate{Template: out},
		isRSA: isRSA, isCA: t.has("ca"), isServer: t.has("tls_www_server")}
	if o.ProxyOf != nil {
		b.isCA = false
	}
	for _, step := range []func() error{
		b.serial, b.validity, b.uniqueIDs,
		func() error { return b.subject(o) },
		func() error { return b.requestExtensions(o.Request) },
		b.addedExtensions, b.basicConstraints,
		func() error { return b.proxy(o) },
		b.names, b.usages, b.policies, b.nameConstraints, b.pointers, b.tlsFeatures, b.settle,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return b.result, nil
}

// refuse is a refusal about one setting, in both modes.
func refuse(e setting, format string, args ...any) error {
	return refuseAt(e.valueAt, "%s: %w", e.name, fmt.Errorf(format, args...))
}

func (b *builder) warn(e setting, format string, args ...any) {
	b.result.Warnings = append(b.result.Warnings, Warning{e.at.line, e.at.column, fmt.Sprintf(format, args...)})
}

func (b *builder) serial() (err error) {
	b.result.Serial, err = b.bigNumber("serial")
	return err
}

// octets reads a serial or CRL number as octets: decimal, or hexadecimal octets behind 0x. certtool reads both options
// when it loads any template.
func (t *Template) octets(name string) ([]byte, error) {
	e, ok := t.first(name)
	if !ok {
		return nil, nil
	}
	if digits, isHex := strings.CutPrefix(e.value, "0x"); isHex {
		octets, err := hex.DecodeString(digits)
		if err != nil || len(octets) == 0 {
			return nil, refuse(e, "%q is not an even number of hexadecimal digits behind 0x", e.value)
		}
		return octets, nil
	}
	const most = 1<<63 - 2
	n, err := strconv.ParseInt(strings.TrimLeft(e.value, " \t\n\v\f\r"), 10, 64)
	if err != nil || n < 1 || n > most || t.mode == Strict && e.value != strings.TrimSpace(e.value) {
		return nil, refuse(e, "%q is not a decimal number from 1 to %d; write larger ones as 0x and an even number of "+
			"digits", e.value, most)
	}
	return append([]byte{0}, big.NewInt(n).Bytes()...), nil
}

// bigNumber is a serial or CRL number, held to what a certificate or CRL can carry; nil where the option is absent.
func (t *Template) bigNumber(name string) (*big.Int, error) {
	octets, err := t.octets(name)
	if err != nil || octets == nil {
		return nil, err
	}
	e, _ := t.first(name)
	n := new(big.Int).SetBytes(octets)
	switch {
	case len(octets) > 20:
		return nil, refuse(e, "%q has %d octets; RFC 5280 4.1.2.2 allows 20", e.value, len(octets))
	case octets[0] >= 0x80 && len(octets) == 20:
		return nil, refuse(e, "%q needs 21 octets as a positive number; RFC 5280 4.1.2.2 allows 20", e.value)
	case octets[0] >= 0x80:
		return nil, refuse(e, "%q would be a negative number, as its first bit is set; write 0x00%s", e.value, e.value[2:])
	case n.Sign() == 0:
		return nil, refuse(e, "0 is no number of a certificate or CRL; write 1 or more")
	}
	return n, nil
}

// date reads a date option; ok is false where it is absent.
func (t *Template) date(name string, now time.Time) (at time.Time, ok bool, err error) {
	e, ok := t.first(name)
	if !ok {
		return time.Time{}, false, nil
	}
	at, err = gnudate.Parse(e.value, now)
	if err != nil {
		return time.Time{}, false, refuse(e, "%w", err)
	}
	at = at.UTC().Truncate(time.Second)
	if at.Year() < 1950 {
		return time.Time{}, false, refuse(e, "%q is before 1950, the first year that a certificate can say (RFC 5280 "+
			"4.1.2.5)", e.value)
	}
	return at, true, nil
}

const defaultDays = 365

// daysFrom is now and that many days; certtool's -1 and everything past 9999 is "no end".
func daysFrom(now time.Time, days int) time.Time {
	if days == 0 || days < -2 {
		days = defaultDays
	}
	const tooMany = 3_000_000
	if days == -1 || days > tooMany {
		return cert.NoExpiry
	}
	end := now.UTC().Truncate(time.Second).AddDate(0, 0, days)
	if !end.Before(cert.NoExpiry) {
		return cert.NoExpiry
	}
	return end
}

func (b *builder) validity() error {
	start, stated, err := b.date("activation_date", b.now)
	if err != nil {
		return err
	}
	if !stated {
		start = b.now.UTC().Truncate(time.Second)
	}
	end, ends, err := b.date("expiration_date", b.now)
	if err != nil {
		return err
	}
	if !ends {
		days, given := b.number("expiration_days")
		end, ends = daysFrom(b.now, days), given
	}
	if b.mode == Strict && end.Before(start) {
		e, ok := b.first("expiration_date")
		if !ok {
			e, _ = b.first("activation_date")
		}
		return refuse(e, "the certificate would end (%s) before it begins (%s), as expiration_days count from now and not "+
			"from activation_date; set expiration_date later", end.Format(time.RFC3339), start.Format(time.RFC3339))
	}
	b.out.NotBefore, b.out.NotAfter = start, end
	b.result.EndIsStated, b.result.NeverExpires = ends, end.Equal(cert.NoExpiry)
	return nil
}

func (b *builder) uniqueIDs() error {
	for _, field := range []struct {
		option string
		id     *[]byte
	}{{"subject_unique_id", &b.out.SubjectUniqueID}, {"issuer_unique_id", &b.out.IssuerUniqueID}} {
		e, ok := b.first(field.option)
		if !ok {
			continue
		}
		id, err := hex.DecodeString(e.value)
		if err != nil {
			return refuse(e, "%q is not an even number of hexadecimal digits", e.value)
		}
		if b.mode == Strict {
			return refuseAt(e.at, "%s: RFC 5280 4.1.2.8 forbids unique identifiers in new certificates; remove this line", e.name).
				WithHint("--certtool-compat writes it as certtool does")
		}
		*field.id = id
	}
	return nil
}

func (b *builder) requestExtensions(r *Request) error {
	if r == nil {
		return nil
	}
	honored := map[string]bool{}
	for _, e := range b.settings["honor_crq_ext"] {
		oid, err := cert.ParseOID(e.value)
		if err != nil && b.mode == Strict {
			return refuse(e, "%w", err)
		}
		honored[oid.String()] = err == nil
	}
	for _, x := range r.Extensions {
		if b.has("honor_crq_extensions") || honored[x.ID.String()] {
			b.setRaw(x)
		}
	}
	return nil
}

// setRaw adds an extension, or replaces the one with its identifier.
func (b *builder) setRaw(x cert.Extension) {
	if i := slices.IndexFunc(b.raw, func(y cert.Extension) bool { return y.ID.Equal(x.ID) }); i >= 0 {
		b.raw[i] = x
		return
	}
	b.raw = append(b.raw, x)
}

// drop removes an extension that something else replaces. The Strict mode refuses it where add_extension gave it.
func (b *builder) drop(id asn1.ObjectIdentifier, because string) error {
	value := b.takeRaw(id)
	if e, ok := b.added[id.String()]; ok && value != nil && b.mode == Strict {
		return refuseAt(e.at, "certtool drops %s of %s, since %s; remove this line", e.name, cert.ExtensionName(id), because)
	}
	return nil
}

// purposesBefore removes the extended key usage to which options add theirs. What certtool makes of both is not critical.
func (b *builder) purposesBefore() ([]byte, error) {
	value := b.takeRaw(cert.OIDExtKeyUsage)
	if e, ok := b.added[cert.OIDExtKeyUsage.String()]; ok && value != nil && b.mode == Strict && e.name == "add_critical_extension" {
		return nil, refuseAt(e.at, "certtool adds the purposes of other lines to this extendedKeyUsage, and it is not critical any "+
			"more; write all of it here, or use add_extension")
	}
	return value, nil
}

// takeRaw removes the extension with that identifier and returns its value, nil where there is none.
func (b *builder) takeRaw(id asn1.ObjectIdentifier) []byte {
	i := slices.IndexFunc(b.raw, func(y cert.Extension) bool { return y.ID.Equal(id) })
	if i < 0 {
		return nil
	}
	value := b.raw[i].Value
	b.raw = slices.Delete(b.raw, i, i+1)
	return value
}

func (b *builder) addedExtensions() error {
	b.added = map[string]setting{}
	for _, name := range []string{"add_extension", "add_critical_extension"} {
		for _, e := range b.settings[name] {
			id, text, err := oidAndRest(e)
			if err != nil {
				return err
			}
			if first, twice := b.added[id.String()]; twice && b.mode == Strict {
				return refuse(e, "%s is set a second time, and only the last counts; line %d sets it first", id, first.at.line)
			}
			b.added[id.String()] = e
			value, err := extensionValue(text)
			if err != nil {
				return refuse(e, "%w", err)
			}
			b.setRaw(cert.Extension{ID: id, Critical: name == "add_critical_extension", Value: value})
		}
	}
	return nil
}

// extensionValue reads 0xHEX, HEX, or octet_string(…) of either, which is wrapped in an OCTET STRING.
func extensionValue(text string) ([]byte, error) {
	inner, wrap := strings.CutPrefix(text, "octet_string(")
	if wrap {
		end := strings.IndexByte(inner, ')')
		if end < 0 {
			return nil, fmt.Errorf("%q has no closing parenthesis", text)
		}
		inner = inner[:end]
	}
	value, err := hex.DecodeString(strings.TrimPrefix(inner, "0x"))
	if err != nil {
		return nil, fmt.Errorf("%q is neither an even number of hexadecimal digits, as in 0x0500, nor octet_string(0x…)", text)
	}
	if len(value) == 0 && !wrap {
		return nil, fmt.Errorf("%q has no octets", text)
	}
	if wrap {
		return octetString(value), nil
	}
	return value, nil
}

// splitPair splits "OID text" at its first blanks; rest is empty where there is nothing behind them.
func splitPair(value string) (id, rest string) {
	end := strings.IndexFunc(value, func(r rune) bool { return r < 0x80 && isSpace(byte(r)) })
	if end < 0 {
		return value, ""
	}
	return value[:end], strings.TrimLeft(value[end:], " \t\n\v\f\r")
}

func oidAndRest(e setting) (asn1.ObjectIdentifier, string, error) {
	id, rest := splitPair(e.value)
	oid, err := cert.ParseOID(id)
	if err != nil {
		return nil, "", refuse(e, "%w", err)
	}
	return oid, rest, nil
}

func (b *builder) basicConstraints() error {
	if err := b.drop(cert.OIDBasicConstraints, "option ca alone decides it"); err != nil {
		return err
	}
	c := &cert.BasicConstraints{CA: b.isCA, PathLen: -1}
	if n, ok := b.number("path_len"); ok && b.isCA && n >= 0 {
		c.PathLen = n
	}
	b.out.BasicConstraints = c
	return nil
}

// inheritAll is id-ppl-inheritALL, the language that certtool gives a proxy certificate without one.
var inheritAll = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 21, 1}

func (b *builder) proxy(o Options) error {
	if o.ProxyOf == nil {
		return nil
	}
	if err := b.drop(cert.OIDProxyCertInfo, "a proxy certificate has its own"); err != nil {
		return err
	}
	info := &cert.ProxyCertInfo{Language: inheritAll}
	if e, ok := b.first("proxy_policy_language"); ok {
		oid, err := cert.ParseOID(e.value)
		if err != nil {
			return refuse(e, "%w", err)
		}
		info.Language = oid
	}
	if n, ok := b.number("path_len"); ok && n >= 0 {
		info.PathLen = &n
	}
	b.out.ProxyCertInfo = info
	return nil
}

// settle leaves in Extra what no option has replaced.
func (b *builder) settle() error {
	for _, id := range []asn1.ObjectIdentifier{cert.OIDSubjectKeyID, cert.OIDAuthorityKeyID} {
		if id.Equal(cert.OIDAuthorityKeyID) && b.out.OmitAuthorityKeyID {
			continue
		}
		if e, ok := b.added[id.String()]; ok { // certtool stops too
			return refuseAt(e.at, "%s of %s: it is computed from the key; remove this line", e.name, cert.ExtensionName(id))
		}
		b.takeRaw(id)
	}
	b.out.Extra = b.raw
	return nil
}

// usages reads the key usage and the extended key usage.
func (b *builder) usages() error {
	leafLike := !b.isCA || b.isServer
	ike := leafLike && b.has("ipsec_ike_key")
	if err := b.extKeyUsage(ike); err != nil {
		return err
	}
	counts := map[string]bool{"encryption_key": leafLike && b.isRSA, "cert_signing_key": b.isCA, "crl_signing_key": b.isCA}
	var usage x509.KeyUsage
	for _, u := range usageOptions {
		if only, conditional := counts[u.option]; b.has(u.option) && (only || !conditional) {
			usage |= u.bit
		}
	}
	if leafLike && !b.isRSA {
		usage |= x509.KeyUsageDigitalSignature
		if e, ok := b.first("encryption_key"); ok {
			b.warn(e, "encryption_key is dropped, since only an RSA key can encipher keys; digitalSignature is set instead")
		}
	}
	if usage == 0 {
		return nil
	}
	if b.has("ipsec_ike_key") && !b.has("signing_key") { // a CA too, though its purpose is dropped
		usage |= x509.KeyUsageContentCommitment
	}
	if err := b.drop(cert.OIDKeyUsage, "signing_key and the like, or the kind of key, decide it"); err != nil {
		return err
	}
	b.out.KeyUsage, b.out.KeyUsageCritical = usage, true
	return nil
}

func (b *builder) extKeyUsage(ike bool) error {
	var usages []asn1.ObjectIdentifier
	for _, e := range b.settings["key_purpose_oid"] {
		oid, err := cert.ParseOID(e.value)
		if err != nil {
			return refuse(e, "%w", err)
		}
		if slices.ContainsFunc(usages, oid.Equal) && b.mode == Strict {
			return refuse(e, "%s is there already", oid)
		}
		usages = append(usages, oid)
	}
	for _, u := range purposeOptions {
		e, ok := b.first(u.option)
		if !ok || u.option == "ipsec_ike_key" && !ike {
			continue
		}
		if slices.ContainsFunc(usages, u.oid.Equal) && b.mode == Strict {
			return refuse(e, "%s is named by key_purpose_oid already", u.oid)
		}
		usages = append(usages, u.oid)
	}
	if len(usages) == 0 {
		return nil
	}
	value, err := b.purposesBefore()
	if err != nil {
		return err
	}
	if value != nil {
		var before []asn1.ObjectIdentifier
		if rest, err := asn1.Unmarshal(value, &before); err != nil || len(rest) > 0 {
			return fault.New(fault.Invalid, "the extended key usage of add_extension or of the request, to which the "+
				"template adds purposes, is not DER: %x", value)
		}
		usages = append(before, usages...)
	}
	b.out.ExtKeyUsage = usages
	return nil
}
