package probe

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
	"strings"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// Material is what is to be placed for one certificate of a plan.
type Material struct {
	Key       crypto.Signer
	Path      []*x509.Certificate // leaf first, the root left out
	Anchors   []*x509.Certificate // the roots that the consumer is to trust
	Issuers   []*x509.Certificate // all issuers of the pool's paths
	Pinned    []*x509.Certificate // certificates that the consumer is to trust as they are, and nothing below them
	PathRoots []*x509.Certificate // the roots that its peers have, where Anchors are for another purpose; nil: Anchors
	CRLs      [][]byte            // DER
	Authority string              // the common name of the pool's root
}

// Roots are those by which peers judge the path.
func (m *Material) Roots() []*x509.Certificate {
	if len(m.PathRoots) > 0 {
		return m.PathRoots
	}
	return m.Anchors
}

// Check says before a file is touched whether the consumer that plan describes would start with m and be accepted by its
// peers, at the instant now. The refusal names every rule that is broken.
func Check(m *Material, plan *recipe.Plan, certificate recipe.PlannedCertificate, now time.Time) error {
	var broken []string
	add := func(err error) {
		if err != nil {
			broken = append(broken, message(err))
		}
	}
	if len(m.Path) == 0 {
		return fault.New(fault.Invalid, "certificate %s of recipe %s: there is no certificate", certificate.ID, plan.Recipe)
	}
	leaf := m.Path[0]
	add(checkKey(m.Key, leaf, certificate))
	usages, err := purposes(certificate.Usages)
	add(err)
	add(checkLeaf(leaf, now))
	add(checkUsages(leaf, certificate, usages))
	add(checkNames(leaf, plan, certificate))
	root, err := checkPath(m, usages, now)
	add(err)
	for _, c := range m.Path[1:] {
		add(checkStrength(c))
	}
	if places(plan, "anchors") {
		for _, err := range checkTrust(m, plan, leaf, now) {
			add(err)
		}
	}
	add(checkSize(m.Path, plan.Trust, "the certification path"))
	for _, err := range checkCRLs(m, plan, root, now) {
		add(err)
	}
	if len(broken) == 0 {
		return nil
	}
	slices.Sort(broken)
	return fault.New(fault.Invalid, "certificate %s of recipe %s: %s", certificate.ID, plan.Recipe, strings.Join(slices.Compact(broken), "; "))
}

// CheckTrust is Check for a plan that places no certificate of the host's own, but whom to trust.
func CheckTrust(m *Material, plan *recipe.Plan, now time.Time) error {
	var broken []string
	wrong := checkCRLs(m, plan, nil, now)
	if places(plan, "anchors") {
		wrong = append(wrong, checkAnchors(m, plan, now)...)
	}
	for _, err := range wrong {
		if err != nil {
			broken = append(broken, message(err))
		}
	}
	if len(broken) == 0 {
		return nil
	}
	slices.Sort(broken)
	return fault.New(fault.Invalid, "recipe %s: %s", plan.Recipe, strings.Join(slices.Compact(broken), "; "))
}

// message is what a refusal says, without the hint of the check that it came from.
func message(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Message
	}
	return err.Error()
}

// places reports whether a file of the plan holds the content.
func places(plan *recipe.Plan, content string) bool {
	return slices.ContainsFunc(plan.Files, func(f recipe.PlannedFile) bool { return slices.Contains(f.Content, content) })
}

// checkKey refuses a key that is not the leaf's, is weak, or is of a family that the consumer does not take.
func checkKey(key crypto.Signer, leaf *x509.Certificate, planned recipe.PlannedCertificate) error {
	if key == nil {
		return fault.New(fault.Invalid, "there is no key for certificate %s", cert.FormatSerial(leaf.SerialNumber))
	}
	if err := keyfile.CheckPair(key.Public(), leaf); err != nil {
		return err
	}
	if err := cert.CheckPublicKey(key.Public()); err != nil {
		return err
	}
	if planned.Algorithm == "" {
		return nil
	}
	wanted, err := keyfile.ParseAlgorithm(planned.Algorithm)
	if err != nil {
		return err
	}
	if has := keyfile.AlgorithmOf(key.Public()); family(has) != family(wanted) {
		return fault.New(fault.Invalid, "the key is %s, and this consumer takes %s", has, wanted)
	}
	return nil
}

func family(a keyfile.Algorithm) string {
	name, _, _ := strings.Cut(string(a), "-")
	return name
}

// checkLeaf refuses a certificate that is not valid now, or is a CA's.
func checkLeaf(leaf *x509.Certificate, now time.Time) error {
	if err := checkTimes(leaf, now); err != nil {
		return err
	}
	if leaf.IsCA {
		return fault.New(fault.Invalid, "certificate %s (%s) is a CA's, and a consumer's own must not be", cert.FormatSerial(leaf.SerialNumber),
			leaf.Subject)
	}
	return nil
}

// checkTimes has no tolerance, because GnuTLS and OpenSSL have none.
func checkTimes(c *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(c.NotBefore):
		return fault.New(fault.Invalid, "certificate %s (%s) is not valid before %s, and it is %s", cert.FormatSerial(c.SerialNumber), c.Subject,
			c.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
		return fault.New(fault.Invalid, "certificate %s (%s) expired at %s, and it is %s", cert.FormatSerial(c.SerialNumber), c.Subject,
			c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// purposes reads the names of the usages that a consumer must see.
func purposes(names []string) ([]asn1.ObjectIdentifier, error) {
	var oids []asn1.ObjectIdentifier
	for _, name := range names {
		oid, err := cert.ParseExtKeyUsage(name)
		if err != nil {
			return nil, err
		}
		oids = append(oids, oid)
	}
	return oids, nil
}

// checkPath checks the path as a peer with only the roots would, for each usage, and returns the root that it ends in.
func checkPath(m *Material, usages []asn1.ObjectIdentifier, now time.Time) (*x509.Certificate, error) {
	var root *x509.Certificate
	if found := rootsOf(m.Path[len(m.Path)-1], m.Roots()); len(found) > 0 {
		root = found[0]
	}
	if len(usages) == 0 {
		return root, judgePath(m.Path, m.Roots(), nil, now)
	}
	for _, usage := range usages {
		if err := judgePath(m.Path, m.Roots(), []asn1.ObjectIdentifier{usage}, now); err != nil {
			return root, err
		}
	}
	return root, nil
}
