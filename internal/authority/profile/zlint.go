package profile

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// Finding is a lint of zlint that a sample certificate did not pass.
type Finding struct {
	Lint    string // zlint's name for it
	Source  string // RFC5280 …
	Warning bool   // it does not refuse the profile
	Text    string
}

// registry has the lints that hold for a private PKI too.
var registry = sync.OnceValues(func() (lint.Registry, error) {
	return lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480, lint.RFC8813, lint.Community},
	})
})

// minLints is below what zlint has today, and far above what a broken filter would leave.
const minLints = 100

// Lint runs zlint over a certificate and returns what it did not pass, errors first. It takes milliseconds.
func Lint(der []byte) ([]Finding, error) {
	lints, err := registry()
	if err != nil {
		return nil, fmt.Errorf("choose the lints: %w", err)
	}
	c, err := zx509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "zlint cannot read the sample certificate: %w", err)
	}
	set := zlint.LintCertificateEx(c, lints)
	if len(set.Results) < minLints {
		return nil, fmt.Errorf("zlint ran %d lints; at least %d were expected", len(set.Results), minLints)
	}
	var found []Finding
	for name, result := range set.Results {
		if result.Status < lint.Warn {
			continue
		}
		f := Finding{Lint: name, Warning: result.Status == lint.Warn, Text: result.Details}
		if l := lints.CertificateLints().ByName(name); l != nil {
			f.Source = string(l.Source)
			if f.Text == "" {
				f.Text = l.Description
			}
		}
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b Finding) int {
		if a.Warning != b.Warning {
			if b.Warning {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Lint, b.Lint)
	})
	return found, nil
}

// refused returns the refusal of a profile whose samples failed a lint.
func refused(p *cert.Profile, samples []Sample) error {
	var failed []string
	for _, s := range samples {
		for _, f := range s.Findings {
			if text := fmt.Sprintf("%s (%s): %s", f.Lint, f.Source, f.Text); !f.Warning && !slices.Contains(failed, text) {
				failed = append(failed, text)
			}
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "certificates of profile %q would fail zlint: %s", p.Name, strings.Join(failed, "; ")).
		WithHint("chancery profile check FILE tries a change without saving it")
}
