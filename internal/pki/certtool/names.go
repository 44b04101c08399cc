package certtool

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// maxPolicies is how many policies a template can have.
const maxPolicies = 8

var (
	oidXMPP    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 5}
	oidKRB5    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 2, 2}
	tagGeneral = cbasn1.Tag(27)
)

// The name types that certtool gives a Kerberos principal (RFC 4120 6.2, RFC 6806 5).
const (
	ntPrincipal       = 1
	ntServiceInstance = 2  // krbtgt/…
	ntEnterprise      = 10 // with an @ of its own
)

func explicit(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }

func element(tag cbasn1.Tag, content []byte) []byte {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(content) })
	return b.BytesOrPanic() // no template has 4 GiB
}

func octetString(value []byte) []byte { return element(cbasn1.OCTET_STRING, value) }

// names collects the subjectAltName in certtool's order.
func (b *builder) names() error {
	var names []cert.GeneralName
	for _, kind := range []struct {
		option string
		read   func(e setting) (cert.GeneralName, error)
	}{
		{"dns_name", b.dnsName}, {"uri", uriName}, {"ip_address", ipAddress},
		{"other_name", otherName}, {"other_name_octet", otherName}, {"other_name_utf8", otherName},
		{"xmpp_name", xmppName}, {"krb5_principal", b.krb5Name}, {"email", b.emailName},
	} {
		if kind.option == "email" && b.isServer {
			continue
		}
		for _, e := range b.settings[kind.option] {
			if e.value == "" {
				return refuse(e, "the name is empty; certtool writes a certificate that it cannot read again")
			}
			name, err := kind.read(e)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		b.liftNames()
		return nil
	}
	if i := slices.IndexFunc(b.raw, func(x cert.Extension) bool { return x.ID.Equal(cert.OIDSubjectAltName) }); i >= 0 {
		b.out.SANCritical = b.raw[i].Critical
	}
	if value := b.takeRaw(cert.OIDSubjectAltName); value != nil {
		before, err := cert.ParseGeneralNames(value)
		if err != nil {
			return fault.New(fault.Invalid, "the subjectAltName of add_extension or of the request, to which the template "+
				"adds names: %w", err)
		}
		names = append(before, names...)
	}
	b.out.SAN = names
	return nil
}

// liftNames moves a subjectAltName that came as raw DER to where the issuer's checks of names look. One that would not be
// encoded to the same octets stays raw, for the lints to judge.
func (b *builder) liftNames() {
	i := slices.IndexFunc(b.raw, func(x cert.Extension) bool { return x.ID.Equal(cert.OIDSubjectAltName) })
	if i < 0 {
		return
	}
	names, err := cert.ParseGeneralNames(b.raw[i].Value)
	if err != nil {
		return
	}
	if again, err := cert.MarshalGeneralNames(names); err != nil || !bytes.Equal(again, b.raw[i].Value) {
		return
	}
	b.out.SAN, b.out.SANCritical = names, b.raw[i].Critical
	b.raw = slices.Delete(b.raw, i, i+1)
}

// asciiDomain turns an internationalised domain into A-labels and leaves others as they are, their case included.
func asciiDomain(e setting, domain string) (string, error) {
	if isASCII(domain) {
		return domain, nil
	}
	name, err := cert.ToASCII(domain)
	if err != nil {
		return "", refuse(e, "%w", err)
	}
	return name, nil
}

func (b *builder) dnsName(e setting) (cert.GeneralName, error) {
	if b.mode == Strict && strings.ContainsAny(e.value, " /:@\t") {
		return cert.GeneralName{}, refuse(e, "%q is not a DNS name, such as host1.example.com", e.value)
	}
	name, err := asciiDomain(e, e.value)
	return cert.DNSName(name), err
}

func uriName(e setting) (cert.GeneralName, error) {
	if !isASCII(e.value) {
		return cert.GeneralName{}, refuse(e, "%q is not ASCII; percent-encode the rest", e.value)
	}
	return cert.URIName(e.value), nil
}

func ipAddress(e setting) (cert.GeneralName, error) {
	a, err := netip.ParseAddr(e.value)
	if err != nil || a.Zone() != "" {
		return cert.GeneralName{}, refuse(e, "%q is neither an IPv4 nor an IPv6 address, such as 192.0.2.1 or 2001:db8::1",
			e.value)
	}
	return cert.GeneralName{Kind: cert.IPAddress, Value: a.String()}, nil // ::ffff:192.0.2.1 stays IPv6, as certtool has it
}

func (b *builder) emailName(e setting) (cert.GeneralName, error) {
	local, domain, found := cutLast(e.value, "@")
	if !found {
		if b.mode == Strict || !isASCII(e.value) {
			return cert.GeneralName{}, refuse(e, "%q is not a mailbox such as user@example.com", e.value)
		}
		return cert.EmailName(e.value), nil
	}
	if !isASCII(local) {
		return cert.GeneralName{}, refuse(e, "%q has a local part that is not ASCII, which an rfc822Name cannot hold", e.value)
	}
	domain, err := asciiDomain(e, domain)
	return cert.EmailName(local + "@" + domain), err
}

func cutLast(text, separator string) (before, after string, found bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(separator):], true
}

func otherName(e setting) (cert.GeneralName, error) {
	oid, text, err := oidAndRest(e)
	if err != nil {
		return cert.GeneralName{}, err
	}
	name := cert.GeneralName{Kind: cert.OtherName, OtherName: oid}
	switch e.name {
	case "other_name_octet":
		name.DER = octetString([]byte(text))
	case "other_name_utf8":
		name.DER = element(cbasn1.UTF8String, []byte(text))
	default:
		name.DER, err = hex.DecodeString(text)
		input := cryptobyte.String(name.DER)
		var content cryptobyte.String
		var tag cbasn1.Tag
		if err != nil || !input.ReadAnyASN1(&content, &tag) || !input.Empty() {
			return name, refuse(e, "%q is not the hexadecimal digits of one DER element, without 0x", text)
		}
	}
	return name, nil
}

func xmppName(e setting) (cert.GeneralName, error) {
	if !isASCII(e.value) {
		return cert.GeneralName{}, refuse(e, "%q is not ASCII; certtool makes Punycode of the whole of it, which no XMPP "+
			"software reads; write the domain as A-labels (xn--…), or all of it with other_name_utf8 and %s", e.value, oidXMPP)
	}
	return cert.GeneralName{Kind: cert.OtherName, OtherName: oidXMPP, DER: element(cbasn1.UTF8String, []byte(e.value))}, nil
}

// krb5Name encodes a KRB5PrincipalName (RFC 4556 3.2.2) of name/instance@REALM.
func (b *builder) krb5Name(e setting) (cert.GeneralName, error) {
	principal, realm, found := cutLast(e.value, "@")
	if !found || !isASCII(e.value) {
		return cert.GeneralName{}, refuse(e, "%q is not an ASCII principal with a realm, such as user@REALM or "+
			"host/name@REALM", e.value)
	}
	nameType := int64(ntPrincipal)
	components := strings.Split(principal, "/")
	switch {
	case b.mode == Strict && (realm == "" || slices.Contains(components, "")):
		return cert.GeneralName{}, refuse(e, "%q has an empty part, which certtool drops", e.value)
	case strings.Contains(principal, "@"):
		nameType, components = ntEnterprise, []string{principal}
	}
	components = slices.DeleteFunc(components, func(c string) bool { return c == "" })
	if len(components) == 2 && components[0] == "krbtgt" {
		nameType = ntServiceInstance
	}
	der, err := krb5DER(realm, nameType, components)
	return cert.GeneralName{Kind: cert.OtherName, OtherName: oidKRB5, DER: der}, err
}

func krb5DER(realm string, nameType int64, components []string) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddBytes(element(tagGeneral, []byte(realm))) })
		b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Int64(nameType) })
				b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						for _, c := range components {
							b.AddBytes(element(tagGeneral, []byte(c)))
						}
					})
				})
			})
		})
	})
	return b.Bytes()
}

func (b *builder) policies() error {
	for n := 1; n <= maxPolicies; n++ {
		name := "policy" + strconv.Itoa(n)
		e, ok := b.first(name)
		if !ok {
			break
		}
		oid, err := cert.ParseOID(e.value)
		if err != nil {
			return refuse(e, "%w", err)
		}
		for _, qualifier := range []string{name + "_txt", name + "_url"} {
			if e, ok := b.first(qualifier); ok && e.value == "" {
				return refuse(e, "the qualifier of a policy is empty")
			}
		}
		b.out.Policies = append(b.out.Policies, cert.Policy{ID: oid, UserNotice: b.Text(name + "_txt"),
			CPS: b.Text(name + "_url")})
	}
	if len(b.out.Policies) > 0 && b.takeRaw(cert.OIDCertificatePolicies) != nil {
		e, _ := b.first("policy1")
		return refuse(e, "an extension with policies is there already, from add_extension or the request; give all in one way")
	}
	if n, ok := b.number("inhibit_anypolicy_skip_certs"); ok && n >= 0 {
		if err := b.drop(cert.OIDInhibitAnyPolicy, "inhibit_anypolicy_skip_certs decides it"); err != nil {
			return err
		}
		b.out.InhibitAnyPolicy = &n
	}
	return nil
}

func (b *builder) nameConstraints() error {
	if !b.isCA {
		return nil
	}
	permitted, err := b.subtrees("nc_permit_")
	if err != nil {
		return err
	}
	excluded, err := b.subtrees("nc_exclude_")
	if err != nil {
		return err
	}
	if len(permitted)+len(excluded) > 0 {
		if err := b.drop(cert.OIDNameConstraints, "the nc_ options decide it"); err != nil {
			return err
		}
		b.out.NameConstraints = &cert.NameConstraints{Permitted: permitted, Excluded: excluded}
	}
	return nil
}

func (b *builder) subtrees(prefix string) ([]cert.GeneralName, error) {
	var names []cert.GeneralName
	for _, e := range b.settings[prefix+"ip"] {
		p, err := netip.ParsePrefix(e.value)
		if err != nil {
			return nil, refuse(e, "%q is not a range of addresses such as 192.0.2.0/24", e.value)
		}
		if b.mode == Strict && p != p.Masked() {
			return nil, refuse(e, "%q has bits behind its prefix; write %s", e.value, p.Masked())
		}
		names = append(names, cert.GeneralName{Kind: cert.IPAddress, Value: p.Masked().String()})
	}
	for _, e := range b.settings[prefix+"dns"] {
		name, err := asciiDomain(e, e.value)
		if err != nil {
			return nil, err
		}
		names = append(names, cert.DNSName(name))
	}
	for _, e := range b.settings[prefix+"email"] {
		local, domain, found := cutLast(e.value, "@")
		if !found {
			local, domain = "", e.value
		} else {
			local += "@"
		}
		domain, err := asciiDomain(e, domain)
		if err != nil || !isASCII(local) {
			return nil, refuse(e, "%q is neither a mailbox nor a domain that can be written in ASCII", e.value)
		}
		names = append(names, cert.EmailName(local+domain))
	}
	return names, nil
}

func (b *builder) pointers() error {
	for _, pointer := range []struct {
		option string
		id     asn1.ObjectIdentifier
		urls   *[]string
	}{
		{"crl_dist_points", cert.OIDCRLDistributionPoints, &b.out.CRLDistributionPoints},
		{"ocsp_uri", cert.OIDAuthorityInfoAccess, &b.out.OCSPServers},
		{"ca_issuers_uri", cert.OIDAuthorityInfoAccess, &b.out.CAIssuers},
	} {
		for _, e := range b.settings[pointer.option] {
			if !isASCII(e.value) {
				return refuse(e, "%q is not ASCII; percent-encode the rest", e.value)
			}
			if b.takeRaw(pointer.id) != nil {
				return refuse(e, "this extension is there already, from add_extension or the request; give all in one way")
			}
			*pointer.urls = append(*pointer.urls, e.value)
		}
	}
	return nil
}

func (b *builder) tlsFeatures() error {
	for _, e := range b.settings["tls_feature"] {
		n := strtol(e.value)
		if n < 0 || n > 65535 {
			return refuse(e, "%q is not the number of a TLS extension, from 0 to 65535; 5 is status_request", e.value)
		}
		if b.mode == Strict && slices.Contains(b.out.TLSFeatures, int(n)) {
			return refuse(e, "%d is there already", n)
		}
		b.out.TLSFeatures = append(b.out.TLSFeatures, int(n))
	}
	if e, ok := b.added[cert.OIDTLSFeature.String()]; ok && len(b.out.TLSFeatures) > 0 {
		if b.mode == Strict {
			return refuseAt(e.at, "certtool drops tls_feature, since %s of TLSFeature replaces it; remove one of them", e.name)
		}
		b.out.TLSFeatures = nil
		return nil
	}
	if len(b.out.TLSFeatures) > 0 {
		b.takeRaw(cert.OIDTLSFeature)
	}
	return nil
}
