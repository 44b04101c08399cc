package cert

import (
	"encoding/asn1"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// The extensions of RFC 5280 4.2 and its companions.
var (
	OIDSubjectKeyID          = asn1.ObjectIdentifier{2, 5, 29, 14}
	OIDKeyUsage              = asn1.ObjectIdentifier{2, 5, 29, 15}
	OIDSubjectAltName        = asn1.ObjectIdentifier{2, 5, 29, 17}
	OIDIssuerAltName         = asn1.ObjectIdentifier{2, 5, 29, 18}
	OIDBasicConstraints      = asn1.ObjectIdentifier{2, 5, 29, 19}
	OIDNameConstraints       = asn1.ObjectIdentifier{2, 5, 29, 30}
	OIDCRLDistributionPoints = asn1.ObjectIdentifier{2, 5, 29, 31}
	OIDCertificatePolicies   = asn1.ObjectIdentifier{2, 5, 29, 32}
	OIDPolicyMappings        = asn1.ObjectIdentifier{2, 5, 29, 33}
	OIDAuthorityKeyID        = asn1.ObjectIdentifier{2, 5, 29, 35}
	OIDPolicyConstraints     = asn1.ObjectIdentifier{2, 5, 29, 36}
	OIDExtKeyUsage           = asn1.ObjectIdentifier{2, 5, 29, 37}
	OIDFreshestCRL           = asn1.ObjectIdentifier{2, 5, 29, 46}
	OIDInhibitAnyPolicy      = asn1.ObjectIdentifier{2, 5, 29, 54}
	OIDAuthorityInfoAccess   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}
	OIDProxyCertInfo         = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 14}
	OIDTLSFeature            = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}
	OIDOCSPNoCheck           = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
)

// Extended key usages (RFC 5280 4.2.1.12 and companions).
var (
	OIDAnyExtKeyUsage  = asn1.ObjectIdentifier{2, 5, 29, 37, 0}
	OIDServerAuth      = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	OIDClientAuth      = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	OIDCodeSigning     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 3}
	OIDEmailProtection = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 4}
	OIDTimeStamping    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 8}
	OIDOCSPSigning     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 9}
	OIDIPsecIKE        = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 17}
)

// Other identifiers.
var (
	OIDAnyPolicy     = asn1.ObjectIdentifier{2, 5, 29, 32, 0}
	oidCPS           = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 2, 1}
	oidUserNotice    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 2, 2}
	oidAccessOCSP    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1}
	oidAccessIssuers = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}

	// PKCS #9 attributes of a request (RFC 2985 5.4), and Microsoft's older twin of extensionRequest.
	OIDRSASSAPSS              = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	OIDChallengePassword      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	OIDExtensionRequest       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	OIDMicrosoftCertExtension = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14}
)

// ParseOID reads a dotted object identifier. It accepts what DER can carry: two arcs at least, the first 0, 1 or 2, the
// second at most 39 under 0 and 1.
func ParseOID(text string) (asn1.ObjectIdentifier, error) {
	arcs := strings.Split(text, ".")
	if len(arcs) < 2 {
		return nil, fmt.Errorf("%q is not a dotted object identifier such as 1.2.3", text)
	}
	oid := make(asn1.ObjectIdentifier, len(arcs))
	for i, arc := range arcs {
		n, err := strconv.ParseUint(arc, 10, 31)
		if err != nil || (len(arc) > 1 && arc[0] == '0') || arc[0] == '+' {
			return nil, fmt.Errorf("arc %q of object identifier %q is not a number from 0 to 2147483647", arc, text)
		}
		oid[i] = int(n)
	}
	if !validOID(oid) {
		return nil, fmt.Errorf("object identifier %q cannot be encoded: the first arc is 0, 1 or 2, and the second at most "+
			"39 under 0 and 1", text)
	}
	return oid, nil
}

func validOID(oid asn1.ObjectIdentifier) bool {
	if len(oid) < 2 || oid[0] < 0 || oid[0] > 2 || (oid[0] < 2 && oid[1] > 39) {
		return false
	}
	for _, arc := range oid {
		if arc < 0 || arc > math.MaxInt32 {
			return false
		}
	}
	return oid[1] <= math.MaxInt32-80 // the first two arcs share one number
}

// extensions are the known extensions by the names that errors and lints use.
var extensions = [...]struct {
	oid  asn1.ObjectIdentifier
	name string
}{
	{OIDSubjectKeyID, "subjectKeyIdentifier"}, {OIDKeyUsage, "keyUsage"}, {OIDSubjectAltName, "subjectAltName"},
	{OIDIssuerAltName, "issuerAltName"}, {OIDBasicConstraints, "basicConstraints"},
	{OIDNameConstraints, "nameConstraints"}, {OIDCRLDistributionPoints, "cRLDistributionPoints"},
	{OIDCertificatePolicies, "certificatePolicies"}, {OIDPolicyMappings, "policyMappings"},
	{OIDAuthorityKeyID, "authorityKeyIdentifier"}, {OIDPolicyConstraints, "policyConstraints"},
	{OIDExtKeyUsage, "extKeyUsage"}, {OIDFreshestCRL, "freshestCRL"}, {OIDInhibitAnyPolicy, "inhibitAnyPolicy"},
	{OIDAuthorityInfoAccess, "authorityInfoAccess"}, {OIDProxyCertInfo, "proxyCertInfo"},
	{OIDTLSFeature, "tlsFeature"}, {OIDOCSPNoCheck, "ocsp-nocheck"},
}

// ExtensionName is the name of a known extension, and otherwise its dotted identifier.
func ExtensionName(oid asn1.ObjectIdentifier) string {
	for _, e := range extensions {
		if e.oid.Equal(oid) {
			return e.name
		}
	}
	return oid.String()
}
