package cert

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"chancery/internal/fault"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// Profile says what may be issued, to whom, and how it looks. It is data: it has no state, and what it allows depends on
// the request, the issuer and the time only.
type Profile struct {
	Name        string `yaml:"name"`                  // letters, digits and hyphens
	Description string `yaml:"description,omitempty"` // for people

	Names      NamePolicy      `yaml:"names"`
	Key        KeyPolicy       `yaml:"key,omitempty"`
	Usage      UsagePolicy     `yaml:"usage,omitempty"`
	Validity   ValidityPolicy  `yaml:"validity"`
	CA         *CAPolicy       `yaml:"ca,omitempty"` // present: the profile makes CAs
	Extensions ExtensionPolicy `yaml:"extensions,omitempty"`
	Lints      LintPolicy      `yaml:"lints,omitempty"`
	Approval   ApprovalPolicy  `yaml:"approval,omitempty"`
}

// NamePolicy says which names a certificate may have. A request's names are a wish: each must be allowed to this caller
// by one of the rules, or the request is refused and the name is named.
type NamePolicy struct {
	// CommonName is "names" (the common name must be one of the allowed DNS names or addresses, is added to the
	// subjectAltName, and is the first DNS name where the request has none), "caller" (it is the caller's name),
	// "subject" (it is checked by the subject patterns like any other attribute) or "none". The default is "names".
	CommonName string `yaml:"common_name,omitempty"`

	// Fixed is put into every subject, in encoded order before the attributes of the request: O=Example,C=DE as RFC 4514.
	Fixed string `yaml:"fixed,omitempty"`

	// Required refuses a certificate without a subjectAltName.
	Required bool `yaml:"required,omitempty"`

	Max   int        `yaml:"max,omitempty"` // subjectAltNames; 100 where it is 0
	Rules []NameRule `yaml:"rules"`
}

// NameRule allows names to some callers: to all of them where both Roles and Callers are empty, and otherwise to those
// with one of the roles or names.
//
// A pattern may contain variables: ${caller.name}, and the caller's entitlements such as ${host.names} and
// ${host.addresses}. A variable with several values makes as many patterns, one without a value makes none.
type NameRule struct {
	Roles   []string `yaml:"roles,omitempty"`
	Callers []string `yaml:"callers,omitempty"`

	// DNS: within a label * is any run of characters; a first label of ** is one or more labels. ".example.com" is short
	// for "**.example.com". "**" alone is every name. No pattern here allows a wildcard certificate.
	DNS []string `yaml:"dns,omitempty"`
	// Wildcard: *.NAME is allowed where NAME matches such a pattern.
	Wildcard []string `yaml:"wildcard,omitempty"`
	IP       []string `yaml:"ip,omitempty"`    // addresses and ranges: 192.0.2.0/24
	Email    []string `yaml:"email,omitempty"` // LOCAL@DNS-pattern, * in the local part
	// URI: * is any run of characters but / ? # @ and :, ** is any run of characters.
	URI          []string `yaml:"uri,omitempty"`
	DirName      []string `yaml:"dirname,omitempty"`       // RFC 4514 names whose subtrees are allowed
	OtherName    []string `yaml:"other_name,omitempty"`    // type-ids
	RegisteredID []string `yaml:"registered_id,omitempty"` // object identifiers

	// Subject: attribute type → patterns for its value, where * is any run of characters.
	Subject map[string][]string `yaml:"subject,omitempty"`
}

// KeyPolicy narrows the policy that all keys must meet (see CheckPublicKey).
type KeyPolicy struct {
	// Algorithms: rsa, ecdsa-p256, ecdsa-p384, ecdsa-p521, ed25519. Empty allows all of them.
	Algorithms []string `yaml:"algorithms,omitempty"`
	RSAMin     int      `yaml:"rsa_min,omitempty"` // bits; 2048 where it is 0
	RSAMax     int      `yaml:"rsa_max,omitempty"` // bits; 8192 where it is 0
}

// UsagePolicy is keyUsage and extKeyUsage. A request that asks for a usage beyond them is refused.
type UsagePolicy struct {
	// KeyUsage holds names of RFC 5280 4.2.1.3. What a key cannot do is left out by its type: keyEncipherment and
	// dataEncipherment for EC and Ed25519 keys, keyAgreement for RSA and Ed25519 keys.
	KeyUsage         []string `yaml:"key_usage,omitempty"`
	KeyUsageCritical *bool    `yaml:"key_usage_critical,omitempty"` // true where it is absent
	// KeepForEC leaves keyEncipherment in for EC keys, against RFC 8813, for consumers that insist on it (libvirt before
	// 11.6.0). The lint key-usage-of-key has to be off too.
	KeepForEC bool `yaml:"keep_for_ec,omitempty"`

	// Extended holds serverAuth, clientAuth, codeSigning, emailProtection, timeStamping, OCSPSigning, ipsecIKE,
	// anyExtendedKeyUsage, or dotted identifiers.
	Extended         []string `yaml:"extended,omitempty"`
	ExtendedCritical bool     `yaml:"extended_critical,omitempty"`
}

// ValidityPolicy bounds the validity. Durations are written as 90d, 12h, 5m, 2w or 1y (365 days), also joined: 1d12h.
type ValidityPolicy struct {
	Default  Duration  `yaml:"default"`            // where the request asks for none
	Max      Duration  `yaml:"max,omitempty"`      // Default where it is absent
	Backdate *Duration `yaml:"backdate,omitempty"` // 5m where it is absent
	// BeyondIssuer is "shorten" (the default: an end that nobody asked for is moved to the issuer's) or "refuse". An end
	// that was asked for is never moved.
	BeyondIssuer string `yaml:"beyond_issuer,omitempty"`
}

// CAPolicy makes the profile one for CAs.
type CAPolicy struct {
	// PathLength is the most CAs below the one made; a request may ask for fewer. -1 is no limit but the issuer's.
	PathLength int `yaml:"path_length"`
	// Permitted and Excluded are name constraints put into each: dns:example.com, ip:10.0.0.0/8, email:example.com.
	Permitted []string `yaml:"permitted,omitempty"`
	Excluded  []string `yaml:"excluded,omitempty"`
}

// ExtensionPolicy says which other extensions are put in, and what of a request's is not refused.
type ExtensionPolicy struct {
	CRL              *bool        `yaml:"crl,omitempty"`        // the issuer's cRLDistributionPoints; on where absent
	OCSP             *bool        `yaml:"ocsp,omitempty"`       // the issuer's OCSP responders; on where absent
	CAIssuers        *bool        `yaml:"ca_issuers,omitempty"` // where the issuer's certificate is; on where absent
	MustStaple       bool         `yaml:"must_staple,omitempty"`
	OCSPNoCheck      bool         `yaml:"ocsp_nocheck,omitempty"`
	Policies         []PolicyText `yaml:"policies,omitempty"`
	InhibitAnyPolicy *int         `yaml:"inhibit_any_policy,omitempty"`
	// SubjectKeyID is rfc5280 (the default), spki (as certtool does), sha256 (RFC 7093) or none.
	SubjectKeyID string `yaml:"subject_key_id,omitempty"`
	// Copy lists extensions that are taken from a request as they are; Ignore those that are left out without a refusal.
	Copy   []string `yaml:"copy,omitempty"`
	Ignore []string `yaml:"ignore,omitempty"`
}

// PolicyText is a certificate policy.
type PolicyText struct {
	ID     string `yaml:"id"`
	CPS    string `yaml:"cps,omitempty"`
	Notice string `yaml:"notice,omitempty"`
}

// LintPolicy turns lints off by name; see LintNames.
type LintPolicy struct {
	Off []string `yaml:"off,omitempty"`
	// ZLintOff names lints of zlint whose errors are shown and do not refuse the profile when it is saved: a consumer may
	// insist on what they complain of.
	ZLintOff []string `yaml:"zlint_off,omitempty"`
}

// ApprovalPolicy says who need not wait for an officer. The profile only carries it: requests are the authority's.
type ApprovalPolicy struct {
	Automatic []string `yaml:"automatic,omitempty"`  // roles whose entitled requests are issued at once
	TwoPerson bool     `yaml:"two_person,omitempty"` // who asked may not approve
}

// Names that no profile may have: the inventory has certificates of proofs of revocation under them, which no profile describes.
const (
	ReservedTwin    = "proof-twin"
	ReservedControl = "proof-control"
)

// maxProfile bounds the text of a profile.
const maxProfile = 64 << 10

// ParseProfile reads a profile's YAML strictly: unknown and repeated fields are refused with their line, and every field
// that is wrong is named.
func ParseProfile(text []byte) (*Profile, error) {
	if len(text) > maxProfile {
		return nil, fault.New(fault.TooLarge, "profile of %d octets: %d at most", len(text), maxProfile)
	}
	if err := checkYAML(string(text)); err != nil {
		return nil, err
	}
	var p Profile
	decoder := yaml.NewDecoder(strings.NewReader(string(text)), yaml.Strict())
	if err := decoder.Decode(&p); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Invalid, "the profile is empty")
		}
		return nil, fault.New(fault.Invalid, "profile: %s", strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "the profile is followed by a second document")
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &p, nil
}

// maxFlow bounds the depth of brackets; a profile needs three.
const maxFlow = 16

// checkYAML refuses what costs the decoder more than its length lets expect: aliases of aliases, and deep brackets.
func checkYAML(text string) error {
	depth := 0
	for _, t := range lexer.Tokenize(text) {
		switch t.Type {
		case token.AnchorType, token.AliasType:
			return fault.New(fault.Invalid, "profile: line %d: anchors and aliases are not accepted, since a few of them make a "+
				"text without end", t.Position.Line)
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		if depth > maxFlow {
			return fault.New(fault.Invalid, "profile: line %d: brackets more than %d deep", t.Position.Line, maxFlow)
		}
	}
	return nil
}

// YAML writes the profile; ParseProfile reads it back.
func (p *Profile) YAML() ([]byte, error) {
	text, err := yaml.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("write profile %s: %w", p.Name, err)
	}
	return text, nil
}

//go:embed profiles/*.yaml
var builtinFiles embed.FS

// BuiltinProfiles returns the names of the built-in profiles.
func BuiltinProfiles() []string {
	entries, _ := builtinFiles.ReadDir("profiles") // embedded: it is there
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	slices.Sort(names)
	return names
}

// BuiltinYAML returns the text of a built-in profile, comments included.
func BuiltinYAML(name string) ([]byte, error) {
	text, err := builtinFiles.ReadFile(path.Join("profiles", name+".yaml"))
	if err != nil {
		return nil, fault.New(fault.NotFound, "there is no built-in profile %q; there are %s", name,
			strings.Join(BuiltinProfiles(), ", "))
	}
	return text, nil
}

// BuiltinProfile returns a built-in profile.
func BuiltinProfile(name string) (*Profile, error) {
	text, err := BuiltinYAML(name)
	if err != nil {
		return nil, err
	}
	return ParseProfile(text)
}
