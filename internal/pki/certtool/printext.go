package certtool

import (
	"encoding/asn1"
	"math/big"
	"net/netip"
	"time"

	"chancery/internal/pki/cert"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// extensionPrinter writes the value of an extension at depth 3; false says that the value is not what it should be.
type extensionPrinter func(p *printer, value cryptobyte.String) bool

var extensionPrinters = []struct {
	oid   asn1.ObjectIdentifier
	title string
	print extensionPrinter
}{
	{cert.OIDBasicConstraints, "Basic Constraints", (*printer).basicConstraints},
	{cert.OIDSubjectKeyID, "Subject Key Identifier", (*printer).subjectKeyID},
	{cert.OIDAuthorityKeyID, "Authority Key Identifier", (*printer).authorityKeyID},
	{cert.OIDKeyUsage, "Key Usage", (*printer).keyUsage},
	{arcs("2.5.29.16"), "Private Key Usage Period", (*printer).privateKeyUsagePeriod},
	{cert.OIDExtKeyUsage, "Key Purpose", (*printer).keyPurpose},
	{cert.OIDSubjectAltName, "Subject Alternative Name", (*printer).alternativeName},
	{cert.OIDIssuerAltName, "Issuer Alternative Name", (*printer).alternativeName},
	{cert.OIDCRLDistributionPoints, "CRL Distribution points", (*printer).distributionPoints},
	{cert.OIDProxyCertInfo, "Proxy Certificate Information", (*printer).proxyCertInfo},
	{cert.OIDAuthorityInfoAccess, "Authority Information Access", (*printer).informationAccess},
	{cert.OIDNameConstraints, "Name Constraints", (*printer).nameConstraints},
	{cert.OIDCertificatePolicies, "Certificate Policies", (*printer).certificatePolicies},
	{cert.OIDTLSFeature, "TLS Features", (*printer).features},
}

func criticalText(critical bool) string {
	if critical {
		return "critical"
	}
	return "not critical"
}

func (p *printer) extension(x cert.Extension) {
	critical := criticalText(x.Critical)
	if x.ID.Equal(cert.OIDInhibitAnyPolicy) {
		value := cryptobyte.String(x.Value)
		var skip int64
		if value.ReadASN1Integer(&skip) {
			p.line(2, "Inhibit anyPolicy skip certs: %d (%s)", skip, critical)
			return
		}
	}
	for _, e := range extensionPrinters {
		if e.oid.Equal(x.ID) {
			p.line(2, "%s (%s):", e.title, critical)
			if !e.print(p, x.Value) {
				p.line(3, "error: this is not DER of the extension: %x", x.Value)
			}
			return
		}
	}
	p.unknownExtension(x)
}

func (p *printer) unknownExtension(x cert.Extension) {
	p.line(2, "Unknown extension %s (%s):", x.ID, criticalText(x.Critical))
	p.line(3, "ASCII: %s", asciiText(x.Value))
	p.line(3, "Hexdump: %x", x.Value)
}

func asciiText(data []byte) string {
	text := make([]byte, len(data))
	for i, c := range data {
		if text[i] = c; c < ' ' || c > '~' {
			text[i] = '.'
		}
	}
	return string(text)
}

func (p *printer) basicConstraints(value cryptobyte.String) bool {
	var seq cryptobyte.String
	ca := false
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) || !readDefaultFalse(&seq, &ca) {
		return false
	}
	p.line(3, "Certificate Authority (CA): %s", map[bool]string{true: "TRUE", false: "FALSE"}[ca])
	var length int64
	if seq.ReadASN1Integer(&length) {
		p.line(3, "Path Length Constraint: %d", length)
	}
	return true
}

func (p *printer) subjectKeyID(value cryptobyte.String) bool {
	var id cryptobyte.String
	if !value.ReadASN1(&id, cbasn1.OCTET_STRING) {
		return false
	}
	p.line(3, "%x", []byte(id))
	return true
}

func (p *printer) authorityKeyID(value cryptobyte.String) bool {
	var seq, id, issuer, serial cryptobyte.String
	var hasID, hasIssuer, hasSerial bool
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadOptionalASN1(&id, &hasID, cbasn1.Tag(0).ContextSpecific()) ||
		!seq.ReadOptionalASN1(&issuer, &hasIssuer, explicit(1)) ||
		!seq.ReadOptionalASN1(&serial, &hasSerial, cbasn1.Tag(2).ContextSpecific()) {
		return false
	}
	if hasIssuer {
		names, err := cert.ParseGeneralNames(element(cbasn1.SEQUENCE, issuer))
		if err != nil {
			return false
		}
		for _, n := range names {
			p.generalName(3, "", n)
		}
	}
	if hasSerial {
		p.line(3, "serial: %x", []byte(serial))
	}
	if hasID {
		p.line(3, "%x", []byte(id))
	}
	return true
}

var keyUsageNames = []string{"Digital signature", "Non repudiation", "Key encipherment", "Data encipherment",
	"Key agreement",
	"Certificate signing", "CRL signing", "Key encipher only", "Key decipher only"}

func (p *printer) keyUsage(value cryptobyte.String) bool {
	var bits asn1.BitString
	if !value.ReadASN1BitString(&bits) {
		return false
	}
	for i, name := range keyUsageNames {
		if bits.At(i) == 1 {
			p.line(3, "%s.", name)
		}
	}
	return true
}

func (p *printer) privateKeyUsagePeriod(value cryptobyte.String) bool {
	var seq cryptobyte.String
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return false
	}
	for i, title := range []string{"Not Before", "Not After"} {
		var text cryptobyte.String
		var present bool
		if !seq.ReadOptionalASN1(&text, &present, cbasn1.Tag(i).ContextSpecific()) {
			return false
		}
		at, err := time.Parse("20060102150405Z", string(text))
		if present && err != nil {
			return false
		}
		if present {
			p.line(3, "%s: %s", title, timeText(at))
		}
	}
	return true
}

var purposeNames = []struct {
	oid  asn1.ObjectIdentifier
	name string
}{
	{cert.OIDServerAuth, "TLS WWW Server."}, {cert.OIDClientAuth, "TLS WWW Client."}, {cert.OIDCodeSigning, "Code signing."},
	{cert.OIDEmailProtection, "Email protection."}, {cert.OIDTimeStamping, "Time stamping."},
	{cert.OIDOCSPSigning, "OCSP signing."},
	{cert.OIDIPsecIKE, "Ipsec IKE."}, {cert.OIDAnyExtKeyUsage, "Any purpose."},
	{arcs("1.3.6.1.4.1.311.20.2.2"), "Smart Card Logon."},
}

func (p *printer) keyPurpose(value cryptobyte.String) bool {
	var seq cryptobyte.String
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return false
	}
	for !seq.Empty() {
		var oid asn1.ObjectIdentifier
		if !seq.ReadASN1ObjectIdentifier(&oid) {
			return false
		}
		name := oid.String()
		for _, n := range purposeNames {
			if n.oid.Equal(oid) {
				name = n.name
			}
		}
		p.line(3, "%s", name)
	}
	return true
}

func (p *printer) alternativeName(value cryptobyte.String) bool {
	names, err := cert.ParseGeneralNames(value)
	for _, n := range names {
		p.generalName(3, "", n)
	}
	return err == nil
}

func (p *printer) distributionPoints(value cryptobyte.String) bool {
	var seq cryptobyte.String
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return false
	}
	for !seq.Empty() {
		var point, choice, full cryptobyte.String
		var present bool
		if !seq.ReadASN1(&point, cbasn1.SEQUENCE) || !point.ReadOptionalASN1(&choice, &present, explicit(0)) {
			return false
		}
		if !present || !choice.ReadASN1(&full, explicit(0)) {
			continue // a point that is named relative to the issuer
		}
		names, err := cert.ParseGeneralNames(element(cbasn1.SEQUENCE, full))
		if err != nil {
			return false
		}
		for _, n := range names {
			p.generalName(3, "", n)
		}
	}
	return true
}

func (p *printer) proxyCertInfo(value cryptobyte.String) bool {
	var seq, policy cryptobyte.String
	var length int64
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return false
	}
	if seq.PeekASN1Tag(cbasn1.INTEGER) {
		if !seq.ReadASN1Integer(&length) {
			return false
		}
		p.line(3, "Path Length Constraint: %d", length)
	}
	var oid asn1.ObjectIdentifier
	if !seq.ReadASN1(&policy, cbasn1.SEQUENCE) || !policy.ReadASN1ObjectIdentifier(&oid) {
		return false
	}
	name := oid.String()
	switch name {
	case "1.3.6.1.5.5.7.21.1":
		name += " (id-ppl-inheritALL)"
	case "1.3.6.1.5.5.7.21.2":
		name += " (id-ppl-independent)"
	}
	p.line(3, "Policy Language: %s", name)
	var text cryptobyte.String
	if policy.ReadASN1(&text, cbasn1.OCTET_STRING) {
		p.line(3, "Policy:")
		p.line(4, "ASCII: %s", asciiText(text))
		p.line(4, "Hexdump: %x", []byte(text))
	}
	return true
}

func (p *printer) informationAccess(value cryptobyte.String) bool {
	var seq cryptobyte.String
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return false
	}
	for !seq.Empty() {
		var access cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !seq.ReadASN1(&access, cbasn1.SEQUENCE) || !access.ReadASN1ObjectIdentifier(&oid) {
			return false
		}
		name := "UNKNOWN"
		switch oid.String() {
		case "1.3.6.1.5.5.7.48.1":
			name = "id-ad-ocsp"
		case "1.3.6.1.5.5.7.48.2":
			name = "id-ad-caIssuers"
		}
		names, err := cert.ParseGeneralNames(element(cbasn1.SEQUENCE, access))
		if err != nil {
			return false
		}
		p.line(3, "Access Method: %s (%s)", oid, name)
		for _, n := range names {
			p.generalName(3, "Access Location ", n)
		}
	}
	return true
}

func (p *printer) nameConstraints(value cryptobyte.String) bool {
	var seq cryptobyte.String
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return false
	}
	for i, title := range []string{"Permitted", "Excluded"} {
		var trees cryptobyte.String
		var present bool
		if !seq.ReadOptionalASN1(&trees, &present, explicit(uint8(i))) {
			return false
		}
		if present {
			p.line(3, "%s:", title)
		}
		for !trees.Empty() {
			var tree cryptobyte.String
			if !trees.ReadASN1(&tree, cbasn1.SEQUENCE) || !p.subtree(tree) {
				return false
			}
		}
	}
	return true
}

func (p *printer) subtree(tree cryptobyte.String) bool {
	ip := cbasn1.Tag(7).ContextSpecific()
	if tree.PeekASN1Tag(ip) {
		var octets cryptobyte.String
		if !tree.ReadASN1(&octets, ip) || len(octets) != 8 && len(octets) != 32 {
			return false
		}
		address, _ := netip.AddrFromSlice(octets[:len(octets)/2])
		mask := new(big.Int).SetBytes(octets[len(octets)/2:])
		bits := 0
		for i := 4*len(octets) - 1; i >= 0 && mask.Bit(i) == 1; i-- {
			bits++
		}
		p.line(4, "IPAddress: %s/%d", address, bits)
		return true
	}
	names, err := cert.ParseGeneralNames(element(cbasn1.SEQUENCE, tree))
	for _, n := range names {
		p.generalName(4, "", n)
	}
	return err == nil
}

func (p *printer) certificatePolicies(value cryptobyte.String) bool {
	var seq cryptobyte.String
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return false
	}
	for !seq.Empty() {
		var information, qualifiers cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !seq.ReadASN1(&information, cbasn1.SEQUENCE) || !information.ReadASN1ObjectIdentifier(&oid) {
			return false
		}
		if oid.Equal(cert.OIDAnyPolicy) {
			p.line(3, "%s (anyPolicy)", oid)
		} else {
			p.line(3, "%s", oid)
		}
		if information.Empty() {
			continue
		}
		if !information.ReadASN1(&qualifiers, cbasn1.SEQUENCE) || !p.policyQualifiers(qualifiers) {
			return false
		}
	}
	return true
}

func (p *printer) policyQualifiers(qualifiers cryptobyte.String) bool {
	for !qualifiers.Empty() {
		var qualifier, text cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !qualifiers.ReadASN1(&qualifier, cbasn1.SEQUENCE) || !qualifier.ReadASN1ObjectIdentifier(&oid) {
			return false
		}
		switch oid.String() {
		case "1.3.6.1.5.5.7.2.1":
			if !qualifier.ReadASN1(&text, cbasn1.IA5String) {
				return false
			}
			p.line(4, "URI: %s", text)
		case "1.3.6.1.5.5.7.2.2":
			var notice cryptobyte.String
			var tag cbasn1.Tag
			if !qualifier.ReadASN1(&notice, cbasn1.SEQUENCE) {
				return false
			}
			if notice.PeekASN1Tag(cbasn1.SEQUENCE) && !notice.SkipASN1(cbasn1.SEQUENCE) { // noticeRef
				return false
			}
			if notice.ReadAnyASN1(&text, &tag) {
				p.line(4, "Note: %s", text)
			}
		}
	}
	return true
}

var featureNames = map[int64]string{
	0: "Server Name Indication", 1: "Maximum Record Size", 5: "OCSP Status Request", 10: "Supported Groups",
	11: "Supported EC Point Formats", 12: "SRP", 13: "Signature Algorithms", 14: "SRTP", 15: "Heartbeat", 16: "ALPN",
	19: "Client Certificate Type", 20: "Server Certificate Type", 21: "ClientHello Padding", 22: "Encrypt-then-MAC",
	23: "Extended Master Secret", 27: "Compress Certificate", 28: "Record Size Limit", 35: "Session Ticket",
	41: "Pre Shared Key",
	42: "Early Data", 43: "Supported Versions", 44: "Cookie", 45: "PSK Key Exchange Modes", 49: "Post Handshake Auth",
	51: "Key Share", 65281: "Safe Renegotiation",
}

func (p *printer) features(value cryptobyte.String) bool {
	var seq cryptobyte.String
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return false
	}
	shown := map[int64]bool{}
	for !seq.Empty() {
		var n int64
		if !seq.ReadASN1Integer(&n) {
			return false
		}
		if shown[n] {
			continue // GnuTLS reads each once
		}
		shown[n] = true
		if name, ok := featureNames[n]; ok {
			p.line(3, "%s(%d)", name, n)
		} else {
			p.line(3, "%d", n)
		}
	}
	return true
}
