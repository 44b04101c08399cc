package cert

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"chancery/internal/fault"
)

// Lints says which lints a profile has turned off, by name. Lints that guard the meaning of the certificate itself, see
// [LintNames], cannot be turned off.
type Lints struct {
	Off []string

	// Literal makes warnings of what certtool's silent traps end in: an empty subject, a control character in it, an end
	// before the beginning. It is for templates whose author asks for certtool's reading of them, and for no profile.
	Literal bool
}

func (r *Lints) off(name string) bool {
	literal := name == "validity-order" || name == "subject-present" || name == "subject-characters"
	return slices.Contains(r.Off, name) || r.Literal && literal
}

// lint is one rule about an encoded TBSCertificate. check returns nil or what is wrong: the value, and what would pass.
type lint struct {
	name  string
	fixed bool // cannot be turned off
	rule  string
	check func(v *tbsView, issuer *Issuer) error
}

// lints are the rules in the order of the certificate's fields. The table is never changed.
var lints = [...]lint{
	{"serial-number", true, "RFC 5280 4.1.2.2", lintSerialNumber},
	{"validity-encoding", true, "RFC 5280 4.1.2.5", lintValidityEncoding},
	{"validity-order", true, "RFC 5280 4.1.2.5", lintValidityOrder},
	{"validity-within-issuer", false, "a path is valid only while all of it is", lintValidityWithinIssuer},
	{"subject-present", true, "RFC 5280 4.1.2.6", lintSubjectPresent},
	{"subject-strings", false, "RFC 5280 4.1.2.4 and appendix A", lintSubjectStrings},
	{"subject-characters", true, "no name hides what it says", lintSubjectCharacters},
	{"subject-blanks", false, "RFC 4518 2.6: blanks at the ends do not count", lintSubjectBlanks},
	{"public-key", true, "the key policy", lintPublicKey},
	{"unique-identifiers", false, "RFC 5280 4.1.2.8", lintUniqueIDs},
	{"extension-unique", true, "RFC 5280 4.2", lintExtensionUnique},
	{"extension-critical", false, "RFC 5280 4.2.1 and 4.2.2", lintExtensionCritical},
	{"authority-key-id", false, "RFC 5280 4.2.1.1", lintAuthorityKeyID},
	{"subject-key-id", false, "RFC 5280 4.2.1.2", lintSubjectKeyID},
	{"key-usage", true, "RFC 5280 4.2.1.3", lintKeyUsage},
	{"key-usage-of-key", false, "RFC 8813 3 and RFC 8410 5", lintKeyUsageOfKey},
	{"policies", false, "RFC 5280 4.2.1.4", lintPolicies},
	{"san-content", true, "RFC 5280 4.2.1.6", lintSANContent},
	{"basic-constraints", true, "RFC 5280 4.2.1.9", lintBasicConstraints},
	{"path-length", true, "RFC 5280 4.2.1.9", lintPathLength},
	{"name-constraints", true, "RFC 5280 4.2.1.10", lintNameConstraints},
	{"issuer-constraints", true, "RFC 5280 4.2.1.10", lintIssuerConstraints},
	{"issuer-usage", true, "RFC 5280 4.2.1.3 and 4.2.1.9", lintIssuerUsage},
	{"ext-key-usage", false, "RFC 5280 4.2.1.12", lintExtKeyUsage},
	{"pointers", false, "RFC 5280 4.2.1.13 and 4.2.2.1", lintPointers},
	{"ocsp-nocheck", false, "RFC 6960 4.2.2.2.1", lintOCSPNoCheck},
}

// LintNames lists the lints; those for which fixed is true cannot be turned off.
func LintNames() (names []string, fixed map[string]bool) {
	fixed = map[string]bool{}
	for _, l := range lints {
		names = append(names, l.name)
		fixed[l.name] = l.fixed
	}
	return names, fixed
}

// CheckLintsOff refuses names that are no lints or may not be turned off.
func CheckLintsOff(off []string) error {
	if len(off) == 0 {
		return nil
	}
	names, fixed := LintNames()
	for _, name := range off {
		switch {
		case !slices.Contains(names, name):
			return fault.New(fault.Invalid, "there is no lint %q; the lints are %s", name, strings.Join(names, ", "))
		case fixed[name]:
			return fault.New(fault.Invalid, "lint %q cannot be turned off", name)
		}
	}
	return nil
}

// Lint judges the encoded TBSCertificate and, when no lint that is on fails, returns the value that can be signed. The
// refusal names every lint that failed. Lints that fail and are off become warnings of the result.
func (t *TBS) Lint(rules Lints) (*Linted, error) {
	if err := CheckLintsOff(rules.Off); err != nil {
		return nil, err
	}
	return t.lint(func(l *lint) bool { return rules.off(l.name) })
}

// LintAgain is Lint for a certificate that says once more what one before it says under the same issuer. Of the lints, those that nothing
// turns off hold it, and of these those that the one before passes there: the others were passed or turned off when that was made, or
// its users live with what it fails.
func (t *TBS) LintAgain(before *x509.Certificate) (*Linted, error) {
	was, err := parseTBS(before.RawTBSCertificate)
	return t.lint(func(l *lint) bool { return !l.fixed || err == nil && l.check(was, t.issuer) != nil })
}

// lint has what fails be a warning where it is excused.
func (t *TBS) lint(excused func(l *lint) bool) (*Linted, error) {
	v, err := parseTBS(t.der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "lint encoding: the TBSCertificate is malformed: %w", err).At("encoding")
	}
	linted := &Linted{tbs: t, serial: v.serial}
	var failed []string
	pointer := ""
	for n := range lints {
		l := &lints[n]
		err := l.check(v, t.issuer)
		if err == nil {
			continue
		}
		err = fmt.Errorf("lint %s (%s): %w", l.name, l.rule, err)
		if excused(l) {
			linted.warnings = append(linted.warnings, err)
			continue
		}
		failed = append(failed, err.Error())
		if pointer == "" {
			pointer = l.name
		}
	}
	if failed != nil {
		return nil, fault.New(fault.Invalid, "%s", strings.Join(failed, "; ")).At(pointer)
	}
	return linted, nil
}

// LintRenewed holds a certificate that was made elsewhere, under an issuer, to the lints that nothing turns off and that the one before it
// would pass there. What that one fails, its users live with, and a certificate that says the same cannot mend.
func LintRenewed(c, before *x509.Certificate, issuer *Issuer) error {
	now, err := parseTBS(c.RawTBSCertificate)
	was, failed := parseTBS(before.RawTBSCertificate)
	switch {
	case failed != nil:
		return nil
	case err != nil:
		return fault.New(fault.Invalid, "lint encoding: the TBSCertificate is malformed: %w", err).At("encoding")
	}
	for _, l := range lints {
		if !l.fixed || l.check(was, issuer) != nil {
			continue
		}
		if err := l.check(now, issuer); err != nil {
			return fault.New(fault.Invalid, "lint %s (%s): %w", l.name, l.rule, err).At(l.name)
		}
	}
	return nil
}
