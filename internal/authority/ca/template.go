package ca

import (
	"bytes"
	"context"
	"fmt"
	"math/big"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/certtool"
	"chancery/internal/store/access"
	"chancery/internal/store/settings"
)

// templateProfile is what the inventory names as the profile of a certificate that was made from a template alone.
const templateProfile = "certtool"

func parseTemplate(order string, compat bool) (*certtool.Template, []string, error) {
	mode := certtool.Strict
	if compat {
		mode = certtool.Compat
	}
	t, found, err := certtool.Parse([]byte(order), mode)
	if err != nil {
		return nil, nil, fmt.Errorf("template: %w", err)
	}
	return t, texts(found), nil
}

func texts(warnings []certtool.Warning) []string {
	var all []string
	for _, w := range warnings {
		all = append(all, w.String())
	}
	return all
}

// planTemplate builds what a certtool template says. A template means what certtool means by it, its usages, identifiers
// and validity included; so without a profile beside it, only an admin may use one, who could change the profiles as well.
// With a profile see planWithin.
func (c *CA) planTemplate(ctx context.Context, by access.Principal, order *Order, w *wish, p *plan, s *settings.Settings, now time.Time) error {
	if order.Subject != "" || len(order.Names) > 0 || !order.NotBefore.IsZero() || !order.NotAfter.IsZero() || order.Validity != 0 {
		return fault.New(fault.Invalid, "subject, names and validity stand in the template; give them there and nowhere else")
	}
	t, warnings, err := parseTemplate(order.Template, order.Compat)
	if err != nil {
		return err
	}
	if t.Has("ca") {
		return notCA()
	}
	key, err := cert.ParsePublicKey(w.spki)
	if err != nil {
		return err
	}
	var options certtool.Options
	// A request that asks for nothing only proves that its sender has the key: then the template says all, as it does for
	// certtool when it is given a key. Otherwise the request's subject stands, as with certtool --load-request.
	if w.csr != nil && len(w.csr.Subject)+len(w.csr.Extensions) > 0 {
		options.Request = &certtool.Request{Subject: w.csr.Subject, Extensions: w.csr.Extensions}
	}
	made, err := t.Certificate(now, key, options)
	if err != nil {
		return fmt.Errorf("template: %w", err)
	}
	p.warnings = append(warnings, texts(made.Warnings)...)
	if order.Profile != "" {
		return c.planWithin(ctx, by, order, w, p, t, made, s, now)
	}
	if !by.Has(access.Admin) {
		return fault.New(fault.Denied, "%s may use a template within a profile only; name the profile", by.Name).
			WithHint("chancery cert issue --template T --profile P")
	}
	if err := withinIssuer(made.Template, p.issuer); err != nil {
		return err
	}
	if made.Serial == nil {
		if made.Serial, err = cert.NewSerial(); err != nil {
			return err
		}
	}
	p.profile, p.atOnce = templateProfile, true
	p.linted, err = lintTemplate(made.Template, w.spki, made.Serial, p.issuer.encoder(s, wholeList), order.Compat)
	return err
}

// withinIssuer refuses an end beyond the issuer's, "never" included, whatever the mode: no relying party would honour it.
func withinIssuer(t *cert.Template, issuer *Issuer) error {
	if end := issuer.Certificate.NotAfter; t.NotAfter.After(end) {
		return fault.New(fault.Invalid, "the certificate would end at %s, after its issuer %q, which ends at %s", t.NotAfter.UTC().Format(time.RFC3339),
			issuer.Name, end.UTC().Format(time.RFC3339)).WithHint("expiration_days = %d would pass", int(time.Until(end).Hours()/24))
	}
	return nil
}

// lintTemplate builds and lints. The lints that a profile may turn off are off for a template, since it means what certtool
// makes of it; what they find is a warning. With literal so is what certtool's silent traps end in.
func lintTemplate(t *cert.Template, spki []byte, serial *big.Int, issuer *cert.Issuer, literal bool) (*cert.Linted, error) {
	tbs, err := cert.Build(t, spki, serial, issuer)
	if err != nil {
		return nil, err
	}
	return tbs.Lint(cert.Lints{Off: optionalLints(), Literal: literal})
}

func optionalLints() []string {
	names, fixed := cert.LintNames()
	return slices.DeleteFunc(names, func(name string) bool { return fixed[name] })
}

// planCopy renews what no profile describes, because a template made it or it was imported: the same extensions, with a
// serial and dates of its own.
func planCopy(by access.Principal, order *Order, p *plan, s *settings.Settings, now time.Time) error {
	old := order.replaces
	if !by.Has(access.Admin, access.Officer, access.Operator) {
		return fault.New(fault.Denied, "certificate %s belongs to no profile; an operator renews it", cert.FormatSerial(old.Serial))
	}
	parsed, err := old.Parsed()
	if err != nil {
		return err
	}
	if !bytes.Equal(order.PublicKey, parsed.RawSubjectPublicKeyInfo) || parsed.CheckSignatureFrom(p.issuer.Certificate) != nil {
		return fault.New(fault.Conflict, "certificate %s belongs to no profile, so it can be renewed under its own issuer and with its own key only",
			cert.FormatSerial(old.Serial)).WithHint("issue a new certificate of a profile")
	}
	serial, err := cert.NewSerial()
	if err != nil {
		return err
	}
	t := &cert.Template{Subject: old.read().subject, NotBefore: now.Add(-backdate), SubjectKeyID: cert.KeyIDNone, OmitAuthorityKeyID: true}
	for _, e := range parsed.Extensions {
		t.Extra = append(t.Extra, cert.Extension{ID: e.Id, Critical: e.Critical, Value: e.Value})
	}
	switch {
	case !order.NotAfter.IsZero():
		t.NotAfter = order.NotAfter
	case order.Validity > 0:
		t.NotAfter = now.Add(order.Validity)
	default:
		if t.NotAfter = now.Add(old.NotAfter.Sub(old.NotBefore)); t.NotAfter.After(p.issuer.Certificate.NotAfter) {
			t.NotAfter = p.issuer.Certificate.NotAfter
		}
	}
	if err := withinIssuer(t, p.issuer); err != nil {
		return err
	}
	p.profile, p.atOnce = order.Profile, true
	p.linted, err = lintTemplate(t, order.PublicKey, serial, p.issuer.encoder(s, wholeList), false)
	return err
}
