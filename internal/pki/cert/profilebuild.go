package cert

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
)

// Caller is who asks for a certificate.
type Caller struct {
	Name  string
	Roles []string

	// Entitlements are the values of the variables that a profile's patterns may use: "host.names" → the names that
	// the authority knows the caller's host by, "host.addresses" likewise. "caller.name" is there by itself.
	Entitlements map[string][]string
}

// Request is what a caller wants of a profile. Exactly one of CSR and SPKI is needed.
type Request struct {
	Caller Caller
	CSR    *CSR
	SPKI   []byte // a public key whose possession was proved by other means

	Subject Name          // nil: the CSR's
	Names   []GeneralName // nil: the CSR's; empty but not nil: none

	NotBefore, NotAfter time.Time // zero: the profile's
	Validity            time.Duration
	PathLen             *int     // for CAs: fewer than the profile's
	Serial              *big.Int // nil: a new random one
}

// refusals collects why a request is refused. Whatever concerns the caller's rights makes the refusal a fault.Denied.
type refusals struct {
	problems
	denied bool
}

func (r *refusals) deny(path, format string, args ...any) {
	r.denied = true
	r.add(path, format, args...)
}

func (r *refusals) fault(profile string) error {
	if len(r.problems) == 0 {
		return nil
	}
	kind := fault.Invalid
	if r.denied {
		kind = fault.Denied
	}
	return fault.New(kind, "profile %s refuses: %s", profile, strings.Join(r.problems, "; "))
}

// Build judges a request and encodes what is granted: everything that is refused is named in one error. The result
// passed its lints and may be signed once.
func (p *Profile) Build(req Request, issuer *Issuer, now time.Time) (*Linted, error) {
	t, spki, err := p.Template(req, issuer, now)
	if err != nil {
		return nil, err
	}
	serial := req.Serial
	if serial == nil {
		if serial, err = NewSerial(); err != nil {
			return nil, err
		}
	}
	tbs, err := Build(t, spki, serial, issuer)
	if err != nil {
		return nil, err
	}
	return tbs.Lint(Lints{Off: p.Lints.Off})
}

// Template is the first half of Build: what would be issued, and for which key.
func (p *Profile) Template(req Request, issuer *Issuer, now time.Time) (*Template, []byte, error) {
	if issuer == nil || issuer.Certificate == nil {
		return nil, nil, errors.New("issue without an issuer")
	}
	var refused refusals
	t := &Template{}
	spki, family := p.key(req, &refused)
	p.grantNames(t, req, &refused)
	p.grantUsage(t, req, family, &refused)
	p.grantValidity(t, req, issuer, now, &refused)
	p.grantCA(t, req, issuer, &refused)
	p.grantExtensions(t, req, issuer, &refused)
	if err := refused.fault(p.Name); err != nil {
		return nil, nil, err
	}
	return t, spki, nil
}

// Entitled reports whether the profile lets the caller have the name, for surfaces that ask before there is a key.
func (p *Profile) Entitled(caller Caller, g GeneralName) bool { return p.allows(caller, g) }

// Automatic reports whether an entitled request of the caller is issued without waiting for an officer.
func (p *Profile) Automatic(caller Caller) bool {
	return slices.ContainsFunc(p.Approval.Automatic, func(role string) bool { return slices.Contains(caller.Roles, role) })
}

func (p *Profile) key(req Request, refused *refusals) ([]byte, keyFamily) {
	if (req.CSR == nil) == (len(req.SPKI) == 0) {
		refused.add("key", "give either a certification request or a public key")
		return nil, 0
	}
	if req.CSR != nil {
		refused.err("key", p.Key.check(KeyAlgorithm(req.CSR.PublicKey)))
		return req.CSR.SPKI, familyOf(req.CSR.PublicKey)
	}
	pub, err := ParsePublicKey(req.SPKI)
	if err != nil {
		refused.err("key", err)
		return nil, 0
	}
	refused.err("key", p.Key.check(KeyAlgorithm(pub)))
	return req.SPKI, familyOf(pub)
}

// check takes an algorithm as KeyAlgorithm names it.
func (k *KeyPolicy) check(algorithm string) error {
	family := algorithm
	if size, ok := strings.CutPrefix(algorithm, "rsa-"); ok {
		family = "rsa"
		var bits int
		if _, err := fmt.Sscan(size, &bits); err != nil {
			return fmt.Errorf("read the size of %s: %w", algorithm, err)
		}
		if (k.RSAMin != 0 && bits < k.RSAMin) || (k.RSAMax != 0 && bits > k.RSAMax) {
			return fmt.Errorf("RSA key of %d bits: %d to %d bits are allowed", bits, max(k.RSAMin, minRSABits),
				orDefault(k.RSAMax, maxRSABits))
		}
	}
	if len(k.Algorithms) > 0 && !slices.Contains(k.Algorithms, family) {
		return fmt.Errorf("%s is not allowed: use one of %s", algorithm, strings.Join(k.Algorithms, ", "))
	}
	return nil
}

func orDefault[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// grantUsage sets the profile's usages. What a request asks for beyond them is refused; fewer usages are not asked for
// by leaving some out, since most tools write all they know.
func (p *Profile) grantUsage(t *Template, req Request, family keyFamily, refused *refusals) {
	usage, err := ParseKeyUsage(p.Usage.KeyUsage)
	refused.err("usage", err)
	for _, name := range p.Usage.Extended {
		oid, err := ParseExtKeyUsage(name)
		refused.err("usage", err)
		t.ExtKeyUsage = append(t.ExtKeyUsage, oid)
	}
	t.ExtKeyUsageCritical = p.Usage.ExtendedCritical
	t.KeyUsageCritical = p.Usage.KeyUsageCritical == nil || *p.Usage.KeyUsageCritical
	t.KeyUsage = usageOfKey(usage, family, p.Usage.KeepForEC)
	if req.CSR == nil {
		return
	}
	if extra := req.CSR.KeyUsage &^ usage; extra != 0 {
		refused.deny("keyUsage", "%s is asked for; the profile gives %s", strings.Join(KeyUsageNames(extra), ", "),
			strings.Join(p.Usage.KeyUsage, ", "))
	}
	for _, oid := range req.CSR.ExtKeyUsage {
		if !containsOID(t.ExtKeyUsage, oid) {
			refused.deny("extKeyUsage", "%s is asked for; the profile gives %s", ExtKeyUsageName(oid),
				strings.Join(p.Usage.Extended, ", "))
		}
	}
}

// usageOfKey leaves out what a key of the family cannot do (RFC 8813 3, RFC 8410 5, RFC 3279 2.3.1).
func usageOfKey(usage x509.KeyUsage, family keyFamily, keepForEC bool) x509.KeyUsage {
	const encipher = x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
	const agree = x509.KeyUsageKeyAgreement | x509.KeyUsageEncipherOnly | x509.KeyUsageDecipherOnly
	switch {
	case family == familyECDSA && !keepForEC:
		return usage &^ encipher
	case family == familyEd25519:
		return usage &^ (encipher | agree)
	case family == familyRSA:
		return usage &^ agree
	}
	return usage
}

const defaultBackdate = 5 * time.Minute

func (p *Profile) grantValidity(t *Template, req Request, issuer *Issuer, now time.Time, refused *refusals) {
	backdate := defaultBackdate
	if p.Validity.Backdate != nil {
		backdate = time.Duration(*p.Validity.Backdate)
	}
	now = now.UTC().Truncate(time.Second)
	longest := time.Duration(orDefault(p.Validity.Max, p.Validity.Default))
	start := now
	t.NotBefore = now.Add(-backdate)
	if !req.NotBefore.IsZero() {
		t.NotBefore = req.NotBefore.UTC().Truncate(time.Second)
		if earliest := now.Add(-backdate); t.NotBefore.Before(earliest) {
			refused.add("notBefore", "%s is in the past: %s at the earliest", stamp(t.NotBefore), stamp(earliest))
		}
		if t.NotBefore.After(start) {
			start = t.NotBefore
		}
	}
	asked := true
	switch {
	case !req.NotAfter.IsZero():
		t.NotAfter = req.NotAfter.UTC().Truncate(time.Second)
	case req.Validity != 0:
		t.NotAfter = start.Add(req.Validity).Truncate(time.Second)
	default:
		asked = false
		t.NotAfter = start.Add(time.Duration(p.Validity.Default))
	}
	if begin := issuer.Certificate.NotBefore; now.Add(backdate).Before(begin) {
		refused.add("issuer", "it is not valid before %s, and now is %s", stamp(begin), stamp(now))
	}
	end := issuer.Certificate.NotAfter.UTC()
	if !asked && t.NotAfter.After(end) && p.Validity.BeyondIssuer != "refuse" {
		t.NotAfter = end
	}
	switch {
	case !t.NotAfter.After(now):
		refused.add("notAfter", "%s is not after now, %s", stamp(t.NotAfter), stamp(now))
	case t.NotAfter.Before(t.NotBefore):
		refused.add("notAfter", "%s is before notBefore %s", stamp(t.NotAfter), stamp(t.NotBefore))
	case t.NotAfter.Sub(start) > longest:
		refused.add("notAfter", "%s is more than %s from %s", stamp(t.NotAfter), Duration(longest), stamp(start))
	case t.NotAfter.After(end):
		refused.add("notAfter", "%s is beyond the issuer's %s", stamp(t.NotAfter), stamp(end))
	}
}

func (p *Profile) grantCA(t *Template, req Request, issuer *Issuer, refused *refusals) {
	var asked *BasicConstraints
	if req.CSR != nil {
		asked = req.CSR.BasicConstraints
	}
	if p.CA == nil {
		t.BasicConstraints = &BasicConstraints{}
		if asked != nil && asked.CA {
			refused.deny("basicConstraints", "CA:TRUE is asked for; the profile makes no CAs")
		}
		if req.PathLen != nil {
			refused.add("pathLen", "the profile makes no CAs")
		}
		return
	}
	length := p.CA.PathLength
	if limit := PathLenOf(issuer.Certificate); limit >= 0 && (length < 0 || length >= limit) {
		length = limit - 1
	}
	if length < 0 && PathLenOf(issuer.Certificate) == 0 {
		refused.add("pathLen", "the issuer's path length of 0 permits no CA below it")
	}
	wanted := req.PathLen
	if wanted == nil && asked != nil && asked.PathLen >= 0 {
		wanted = &asked.PathLen
	}
	if wanted != nil {
		if *wanted < 0 || (length >= 0 && *wanted > length) {
			refused.add("pathLen", "%d is asked for: 0 to %d is allowed", *wanted, length)
		}
		length = *wanted
	}
	t.BasicConstraints = &BasicConstraints{CA: true, PathLen: length}
	constraints, err := p.CA.constraints()
	refused.err("ca", err)
	t.NameConstraints = constraints
	t.InhibitAnyPolicy = p.Extensions.InhibitAnyPolicy
}

func on(setting *bool) bool { return setting == nil || *setting }

func (p *Profile) grantExtensions(t *Template, req Request, issuer *Issuer, refused *refusals) {
	x := &p.Extensions
	if on(x.CRL) {
		t.CRLDistributionPoints, t.FreshestCRL = issuer.CRLDistributionPoints, issuer.FreshestCRL
	}
	if on(x.OCSP) {
		t.OCSPServers = issuer.OCSPServers
	}
	if on(x.CAIssuers) {
		t.CAIssuers = issuer.CAIssuers
	}
	if x.MustStaple {
		t.TLSFeatures = []int{tlsStatusRequest}
	}
	t.OCSPNoCheck = x.OCSPNoCheck
	t.SubjectKeyID = map[string]KeyIDMethod{"spki": KeyIDSPKI, "sha256": KeyIDSHA256, "none": KeyIDNone}[x.SubjectKeyID]
	for _, policy := range x.Policies {
		id, err := ParseOID(policy.ID)
		refused.err("policies", err)
		t.Policies = append(t.Policies, Policy{ID: id, CPS: policy.CPS, UserNotice: policy.Notice})
	}
	if req.CSR == nil {
		return
	}
	for _, e := range req.CSR.Extensions {
		if slices.Contains(x.Copy, e.ID.String()) {
			t.Extra = append(t.Extra, e)
		} else if !p.tolerates(e) {
			refused.deny("extension", "%s is asked for; the profile neither gives, copies nor ignores it", ExtensionName(e.ID))
		}
	}
}

const tlsStatusRequest = 5 // RFC 7633 6

var mustStapleValue = []byte{0x30, 0x03, 0x02, 0x01, tlsStatusRequest}

// tolerates reports whether a requested extension needs no refusal: because another step judges it, because the profile
// gives the same, or because the profile ignores it.
func (p *Profile) tolerates(e Extension) bool {
	for _, judged := range []asn1.ObjectIdentifier{OIDSubjectAltName, OIDBasicConstraints, OIDKeyUsage, OIDExtKeyUsage,
		OIDSubjectKeyID} {
		if e.ID.Equal(judged) {
			return true
		}
	}
	switch {
	case e.ID.Equal(OIDTLSFeature) && p.Extensions.MustStaple && string(e.Value) == string(mustStapleValue),
		e.ID.Equal(OIDOCSPNoCheck) && p.Extensions.OCSPNoCheck:
		return true
	}
	return slices.Contains(p.Extensions.Ignore, e.ID.String())
}

// addressOrName reads a common name as the subjectAltName that it stands for.
func addressOrName(cn string) GeneralName {
	if a, err := netip.ParseAddr(cn); err == nil {
		return IPName(a)
	}
	return DNSName(strings.ToLower(cn))
}
