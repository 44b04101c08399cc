package cert

import (
	"crypto/x509"
	"encoding/asn1"
	"time"
)

// NoExpiry is the notAfter of a certificate without a well-defined end (RFC 5280 4.1.2.5).
var NoExpiry = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Template is all of a TBSCertificate but the serial number, the issuer and the key. The extensions are encoded in
// certtool's order, which is not the order of the fields.
type Template struct {
	Subject             Name
	NotBefore, NotAfter time.Time // to the second, UTC; the zone does not matter

	BasicConstraints *BasicConstraints // always critical (RFC 5280 4.2.1.9)

	KeyUsage         x509.KeyUsage // 0: no extension
	KeyUsageCritical bool

	ExtKeyUsage         []asn1.ObjectIdentifier
	ExtKeyUsageCritical bool

	// SubjectKeyID says how the identifier is computed; SubjectKeyIDValue, when it is not empty, is used instead.
	SubjectKeyID      KeyIDMethod
	SubjectKeyIDValue []byte

	// The authorityKeyIdentifier is the issuer's subjectKeyIdentifier, or the certificate's own where it is
	// self-signed. AuthorityKeyID, when it is not empty, is used instead.
	AuthorityKeyID     []byte
	OmitAuthorityKeyID bool

	SAN         []GeneralName
	SANCritical bool // an empty subject makes it critical by itself (RFC 5280 4.2.1.6)

	// CRLDistributionPoints and FreshestCRL are each one distribution point: the URLs are places of the same CRL.
	CRLDistributionPoints []string
	FreshestCRL           []string
	OCSPServers           []string
	CAIssuers             []string

	Policies         []Policy
	InhibitAnyPolicy *int             // always critical
	NameConstraints  *NameConstraints // always critical
	TLSFeatures      []int            // RFC 7633; 5 is status_request, "must staple"
	OCSPNoCheck      bool
	ProxyCertInfo    *ProxyCertInfo // always critical

	Extra []Extension

	SubjectUniqueID []byte
	IssuerUniqueID  []byte
}

// BasicConstraints says whether the subject is a CA (RFC 5280 4.2.1.9).
type BasicConstraints struct {
	CA      bool
	PathLen int // -1: no limit; of meaning only where CA is true
}

// Policy is one PolicyInformation (RFC 5280 4.2.1.4).
type Policy struct {
	ID         asn1.ObjectIdentifier
	UserNotice string // explicitText; "" for none
	CPS        string // URI of the practice statement; "" for none
}

// NameConstraints limits the names below a CA (RFC 5280 4.2.1.10). An address is a range, a DNS name covers itself and
// what is below it, a mailbox may be a mailbox, a host, or ".domain".
type NameConstraints struct {
	Permitted, Excluded []GeneralName
}

// ProxyCertInfo makes a proxy certificate (RFC 3820 3.8).
type ProxyCertInfo struct {
	PathLen  *int
	Language asn1.ObjectIdentifier
	Policy   []byte // nil for languages without one
}

// Extension is one extension as it is on the wire: Value is the content of extnValue.
type Extension struct {
	ID       asn1.ObjectIdentifier
	Critical bool
	Value    []byte
}

// Issuer is what the encoder needs of an issuer. A self-signed certificate has none: see BuildSelfSigned.
type Issuer struct {
	Certificate *x509.Certificate
	Above       []*x509.Certificate // those above it, whose name constraints hold as well
	Algorithm   SignatureAlgorithm  // 0: the default of the issuer's key
	Constraints *PathConstraints    // nil: read for each certificate from Certificate and Above

	// Where the issuer publishes; a profile puts these into what it issues. All plain http (RFC 5280 8).
	CRLDistributionPoints []string
	FreshestCRL           []string
	OCSPServers           []string
	CAIssuers             []string
}
