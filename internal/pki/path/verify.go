package path

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// Options are the inputs of RFC 5280 6.1.1 that are not the path itself, and the purposes wanted.
type Options struct {
	Time time.Time // when the path is to be valid; required

	// ExtKeyUsages are the purposes wanted: the leaf must permit one of them, and so must every CA that has the
	// extension (as OpenSSL, NSS and Go have it; RFC 5280 leaves it open). Empty: not checked.
	ExtKeyUsages []asn1.ObjectIdentifier

	InitialPolicies      []asn1.ObjectIdentifier // user-initial-policy-set; nil: any-policy
	ExplicitPolicy       bool                    // initial-explicit-policy
	InhibitPolicyMapping bool                    // initial-policy-mapping-inhibit
	InhibitAnyPolicy     bool                    // initial-any-policy-inhibit
}

// Result is what a valid path says.
type Result struct {
	// Policies is the user-constrained-policy-set: the policies, in the terms of the trust anchor's domain, that the path
	// is valid under. anyPolicy alone means all.
	Policies []asn1.ObjectIdentifier
}

const (
	maxPath             = 32      // certificates of a path
	maxConstraintChecks = 250_000 // names × constraints of a path, so that a hostile one cannot buy hours
)

// state holds the state variables of RFC 5280 6.1.2 while the path is walked from the anchor to the leaf.
type state struct {
	options       Options
	constraints   []*cert.NameConstraints // all of the path so far; each must be met, which is their intersection
	policies      *policyGraph            // nil is the NULL graph
	checks        int                     // of names against constraints, so far
	explicit      int                     // explicit_policy
	mapping       int                     // policy_mapping
	inhibitAny    int                     // inhibit_anyPolicy
	maxPathLength int
}

// Verify checks a certification path (RFC 5280 6.1, with the policy graph of RFC 9618): leaf first, trust anchor last. The
// anchor's own validity, basicConstraints, keyUsage and nameConstraints count too, as RFC 5937 permits and the
// implementations do that fleets use. Revocation is not judged here. The refusal names the rule and the certificate.
func Verify(path []*x509.Certificate, options Options) (*Result, error) {
	if len(path) == 0 || options.Time.IsZero() {
		return nil, fmt.Errorf("verify a path of %d certificates at %s", len(path), options.Time)
	}
	if len(path) > maxPath {
		return nil, fault.New(fault.TooLarge, "certification path of %d certificates: %d at most", len(path), maxPath)
	}
	n := len(path) - 1
	s := &state{options: options, policies: newPolicyGraph(), maxPathLength: n}
	s.explicit, s.mapping, s.inhibitAny = skipCount(options.ExplicitPolicy, n), skipCount(options.InhibitPolicyMapping, n),
		skipCount(options.InhibitAnyPolicy, n)
	if rule, err := s.anchor(path[n], n == 0); err != nil {
		return nil, refusal(rule, path[n], n, err)
	}
	for i := n - 1; i >= 0; i-- {
		rule, err := s.certificate(path[i], path[i+1], i == 0)
		if err != nil {
			return nil, refusal(rule, path[i], i, err)
		}
	}
	return s.wrapUp(path)
}

func skipCount(now bool, n int) int {
	if now {
		return 0
	}
	return n + 1
}

func refusal(rule string, c *x509.Certificate, index int, err error) error {
	return fault.New(fault.Invalid, "certificate %d of the path (%s, serial %s): %s: %w", index+1, subjectText(c),
		cert.FormatSerial(c.SerialNumber), rule, err).At(rule)
}

func subjectText(c *x509.Certificate) string {
	n, err := cert.ParseNameDER(c.RawSubject)
	if err != nil || len(n) == 0 {
		return "no subject"
	}
	return n.String()
}

// anchor checks what an anchor given as a certificate says about itself.
func (s *state) anchor(c *x509.Certificate, alone bool) (rule string, err error) {
	if err := s.validity(c); err != nil {
		return "validity", err
	}
	if err := s.purpose(c); err != nil {
		return "extKeyUsage", err
	}
	if err := criticalExtensions(c); err != nil {
		return "critical extension", err
	}
	if alone {
		return "", nil
	}
	if rule, err := s.constrain(c); err != nil {
		return rule, err
	}
	if c.Version < 3 {
		return "", nil // an anchor is trusted by other means (6.1.4 k)
	}
	if rule, err := isCA(c); err != nil {
		return rule, err
	}
	if limit := cert.PathLenOf(c); limit >= 0 {
		s.maxPathLength = min(s.maxPathLength, limit)
	}
	return "", nil
}

// certificate does 6.1.3 for a certificate that issuer issued, and 6.1.4 where it is not the last.
func (s *state) certificate(c, issuer *x509.Certificate, last bool) (rule string, err error) {
	if err := checkSignature(c, issuer); err != nil {
		return "signature", err
	}
	if err := s.validity(c); err != nil {
		return "validity", err
	}
	same, err := sameName(c.RawIssuer, issuer.RawSubject)
	if err != nil || !same {
		return "name chaining", fmt.Errorf("its issuer is not the subject %s of the next certificate", subjectText(issuer))
	}
	selfIssued, err := sameName(c.RawIssuer, c.RawSubject)
	if err != nil {
		return "name chaining", err
	}
	if last || !selfIssued {
		if err := s.checkNames(c); err != nil {
			return "name constraints", err
		}
	}
	if err := s.processPolicies(c, !last && selfIssued); err != nil {
		return "certificate policies", err
	}
	if err := s.purpose(c); err != nil {
		return "extKeyUsage", err
	}
	if err := criticalExtensions(c); err != nil {
		return "critical extension", err
	}
	if last {
		return "", nil
	}
	return s.prepareNext(c, selfIssued)
}

// prepareNext is 6.1.4.
func (s *state) prepareNext(c *x509.Certificate, selfIssued bool) (rule string, err error) {
	if err := s.mapPolicies(c); err != nil {
		return "policy mappings", err
	}
	if rule, err := s.constrain(c); err != nil {
		return rule, err
	}
	if !selfIssued {
		s.explicit, s.mapping, s.inhibitAny = max(s.explicit-1, 0), max(s.mapping-1, 0), max(s.inhibitAny-1, 0)
	}
	if err := s.constrainPolicies(c); err != nil {
		return "policy constraints", err
	}
	if rule, err := isCA(c); err != nil {
		return rule, err
	}
	if !selfIssued {
		if s.maxPathLength <= 0 {
			return "path length", fmt.Errorf("the pathLenConstraint of a CA above permits no CA here")
		}
		s.maxPathLength--
	}
	if limit := cert.PathLenOf(c); limit >= 0 {
		s.maxPathLength = min(s.maxPathLength, limit)
	}
	return "", nil
}

// isCA is 6.1.4 k and n.
func isCA(c *x509.Certificate) (rule string, err error) {
	if c.Version < 3 || !c.BasicConstraintsValid || !c.IsCA {
		return "basic constraints", fmt.Errorf("it issued a certificate and is no CA: version %d, basicConstraints CA:TRUE "+
			"is needed", c.Version)
	}
	if e := extensionOf(c, cert.OIDKeyUsage); e != nil && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return "key usage", fmt.Errorf("it issued a certificate and its keyUsage lacks keyCertSign")
	}
	return "", nil
}

func (s *state) validity(c *x509.Certificate) error {
	switch at := s.options.Time; {
	case at.Before(c.NotBefore):
		return fmt.Errorf("not valid before %s, and the time is %s", stamp(c.NotBefore), stamp(at))
	case at.After(c.NotAfter):
		return fmt.Errorf("not valid after %s, and the time is %s", stamp(c.NotAfter), stamp(at))
	}
	return nil
}

// checkSignature refuses what is weak before it computes anything.
func checkSignature(c, issuer *x509.Certificate) error {
	switch c.SignatureAlgorithm {
	case x509.UnknownSignatureAlgorithm:
		return fmt.Errorf("its signature algorithm is not known here")
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1, x509.DSAWithSHA256:
		return fmt.Errorf("%s signatures are not accepted", c.SignatureAlgorithm)
	}
	if err := issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return fmt.Errorf("it was not signed by the key of %s", subjectText(issuer))
	}
	return nil
}

func sameName(a, b []byte) (bool, error) {
	if bytes.Equal(a, b) {
		return true, nil
	}
	first, err := cert.ParseNameDER(a)
	if err != nil {
		return false, err
	}
	second, err := cert.ParseNameDER(b)
	return err == nil && first.Equal(second), err
}

func extensionOf(c *x509.Certificate, oid asn1.ObjectIdentifier) []byte {
	for i := range c.Extensions {
		if c.Extensions[i].Id.Equal(oid) {
			return c.Extensions[i].Value
		}
	}
	return nil
}

// criticalExtensions refuses critical extensions that no step here processes (6.1.4 o, 6.1.5 f).
func criticalExtensions(c *x509.Certificate) error {
	processed := []asn1.ObjectIdentifier{cert.OIDBasicConstraints, cert.OIDKeyUsage, cert.OIDExtKeyUsage, cert.OIDSubjectAltName,
		cert.OIDNameConstraints, cert.OIDCertificatePolicies, cert.OIDPolicyMappings, cert.OIDPolicyConstraints, cert.OIDInhibitAnyPolicy,
		cert.OIDCRLDistributionPoints}
	for _, e := range c.Extensions {
		if e.Critical && !slices.ContainsFunc(processed, e.Id.Equal) {
			return fmt.Errorf("extension %s is critical and not understood here", cert.ExtensionName(e.Id))
		}
	}
	return nil
}

// purpose checks that the certificate permits one of the purposes wanted.
func (s *state) purpose(c *x509.Certificate) error {
	value := extensionOf(c, cert.OIDExtKeyUsage)
	if len(s.options.ExtKeyUsages) == 0 || value == nil {
		return nil
	}
	permitted, err := cert.ParseKeyPurposes(value)
	if err != nil {
		return err
	}
	var wanted []string
	for _, oid := range s.options.ExtKeyUsages {
		if slices.ContainsFunc(permitted, oid.Equal) || slices.ContainsFunc(permitted, cert.OIDAnyExtKeyUsage.Equal) {
			return nil
		}
		wanted = append(wanted, cert.ExtKeyUsageName(oid))
	}
	return fmt.Errorf("it permits none of the purposes %v", wanted)
}

// constrain adds the certificate's name constraints to those of the path (6.1.4 g).
func (s *state) constrain(c *x509.Certificate) (rule string, err error) {
	if value := extensionOf(c, cert.OIDNameConstraints); value != nil {
		constraints, err := cert.ParseNameConstraints(value)
		if err != nil {
			return "name constraints", err
		}
		s.constraints = append(s.constraints, constraints)
	}
	return "", nil
}

// checkNames is 6.1.3 b and c.
func (s *state) checkNames(c *x509.Certificate) error {
	if len(s.constraints) == 0 {
		return nil
	}
	subject, err := cert.ParseNameDER(c.RawSubject)
	if err != nil {
		return err
	}
	var san []cert.GeneralName
	if value := extensionOf(c, cert.OIDSubjectAltName); value != nil {
		if san, err = cert.ParseGeneralNames(value); err != nil {
			return err
		}
	}
	for _, constraints := range s.constraints {
		s.checks += (len(san) + 1) * (len(constraints.Permitted) + len(constraints.Excluded))
		if s.checks > maxConstraintChecks {
			return errors.New("the path has more names under more constraints than are checked")
		}
		if err := constraints.Check(subject, san); err != nil {
			return err
		}
	}
	return nil
}

// wrapUp is 6.1.5.
func (s *state) wrapUp(path []*x509.Certificate) (*Result, error) {
	leaf := path[0]
	s.explicit = max(s.explicit-1, 0)
	if len(path) > 1 {
		constraints, err := parsePolicyConstraints(extensionOf(leaf, cert.OIDPolicyConstraints))
		if err != nil {
			return nil, refusal("policy constraints", leaf, 0, err)
		}
		if constraints.requireExplicit == 0 {
			s.explicit = 0
		}
	}
	policies := s.policies.constrained(s.options.InitialPolicies)
	if s.explicit == 0 && len(policies) == 0 {
		return nil, refusal("certificate policies", leaf, 0,
			fmt.Errorf("an explicit policy is required, and the path is valid under none that is wanted"))
	}
	return &Result{Policies: policies}, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
