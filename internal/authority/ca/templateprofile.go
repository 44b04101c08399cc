package ca

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/profile"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/certtool"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/settings"
)

// planWithin builds what a profile grants of a template. The template's subject, names and validity are a wish, as those of a
// request are, and all else is the profile's: usages, pointers, policies, identifiers, criticality. What the template asks for
// beyond it is refused, since its author would miss it.
func (c *CA) planWithin(ctx context.Context, by access.Principal, order *Order, w *wish, p *plan, t *certtool.Template,
	made *certtool.Certificate, s *settings.Settings, now time.Time) error {
	v, err := c.profiles.Current(ctx, order.Profile)
	if err != nil {
		return err
	}
	if v.CA != nil {
		return notCA()
	}
	p.judgedBy(v, by, w.caller)
	serial, err := cert.NewSerial()
	if err != nil {
		return err
	}
	within := &within{version: v, made: made.Template, options: t.Options()}
	req, err := within.request(w)
	if err != nil {
		return err
	}
	req.Caller, req.Serial = w.caller, serial
	if t.Has("activation_date") {
		req.NotBefore = made.Template.NotBefore
	}
	if made.EndIsStated {
		req.NotAfter = made.Template.NotAfter
	}
	issuer := p.issuer.encoder(s, crl.Partition(serial, p.issuer.CRL.Partitions))
	granted, spki, refusal := v.Template(*req, issuer, now)
	if err := within.judge(granted, refusal); err != nil {
		return err
	}
	tbs, err := cert.Build(granted, spki, serial, issuer)
	if err != nil {
		return err
	}
	p.linted, err = tbs.Lint(cert.Lints{Off: v.Lints.Off})
	return err
}

// within holds a template against a profile.
type within struct {
	version *profile.Version
	made    *cert.Template // what certtool would make of the template
	options []certtool.Option
	beyond  []string
	first   string // where the first of them stands
}

// harmlessOptions are the options whose values are names or dates, which the profile judges as a request's, or which say nothing of a
// certificate. All others are refused unless they ask for what the profile gives.
var harmlessOptions = []string{
	"unit", "ou", "organization", "o", "dc", "dn", "cn", "uid", "locality", "state", "country", "pkcs9_email", "dn_oid",
	"dns_name", "uri", "ip_address", "email", "krb5_principal", "other_name", "other_name_octet", "other_name_utf8", "xmpp_name",
	"activation_date", "expiration_date", "expiration_days", "honor_crq_extensions", "honor_crq_ext",
	"challenge_password", "password", "pkcs12_key_name",
	"crl_revocation_date", "crl_this_update_date", "crl_next_update_date", "crl_next_update", "crl_number",
}

// request is what the profile is asked. The extensions are those of the request that the template honours, and what
// add_extension gives; what an option gives is judged with the option, so that the refusal can say where it stands.
func (h *within) request(w *wish) (*cert.Request, error) {
	extra := slices.DeleteFunc(slices.Clone(h.made.Extra), func(e cert.Extension) bool {
		return slices.ContainsFunc(h.options, func(o certtool.Option) bool { return e.ID.Equal(o.Extension) && !h.copied(o.Extension) })
	})
	wish, err := cert.NewWish(w.spki, extra)
	if err != nil {
		return nil, err
	}
	// certtool overrules these two of a request without a word.
	if w.csr != nil && h.honors(cert.OIDKeyUsage) {
		wish.KeyUsage |= w.csr.KeyUsage
	}
	if w.csr != nil && h.honors(cert.OIDBasicConstraints) {
		wish.BasicConstraints = w.csr.BasicConstraints
	}
	for _, purpose := range h.made.ExtKeyUsage {
		if !slices.ContainsFunc(h.options, func(o certtool.Option) bool { return purpose.Equal(o.Purpose) }) {
			wish.ExtKeyUsage = append(wish.ExtKeyUsage, purpose) // the request's
		}
	}
	names := append(append([]cert.GeneralName{}, h.made.SAN...), wish.SAN...)
	return &cert.Request{CSR: wish, Subject: h.made.Subject, Names: names}, nil
}

func (h *within) honors(id asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(h.options, func(o certtool.Option) bool {
		return o.Name == "honor_crq_extensions" || o.Name == "honor_crq_ext" && o.Value == id.String()
	})
}

func (h *within) copied(id asn1.ObjectIdentifier) bool {
	x := &h.version.Extensions
	return slices.Contains(x.Copy, id.String()) || slices.Contains(x.Ignore, id.String())
}

// judge refuses all that lies beyond the profile at once, with what the profile itself refused. granted is nil where it did.
func (h *within) judge(granted *cert.Template, refusal error) error {
	if refusal != nil {
		if _, ok := errors.AsType[*fault.Error](refusal); !ok {
			return refusal
		}
		granted = nil
	}
	usage, err := cert.ParseKeyUsage(h.version.Usage.KeyUsage)
	if err != nil {
		return err
	}
	for _, o := range h.options {
		switch {
		case slices.Contains(harmlessOptions, o.Name):
		case o.KeyUsage != 0 || o.Purpose != nil:
			if o.KeyUsage&^usage != 0 || o.Purpose != nil && !h.hasPurpose(o.Purpose) {
				h.refuse(o, strings.Join(append(slices.Clone(h.version.Usage.KeyUsage), h.version.Usage.Extended...), ", "))
			}
		case o.Extension != nil:
			if !h.copied(o.Extension) {
				h.refuse(o, strings.Join(h.version.Extensions.Copy, ", "))
			}
		case strings.HasPrefix(o.Name, "policy"):
			h.policy(o)
		default:
			h.given(o, granted)
		}
	}
	if len(h.beyond) == 0 {
		return refusal
	}
	if refusal != nil {
		h.beyond = append(h.beyond, refusal.Error())
	}
	return fault.New(fault.Denied, "profile %q does not grant what the template asks for: %s", h.version.Name, strings.Join(h.beyond, "; ")).
		At(h.first)
}

func (h *within) refuse(o certtool.Option, gives string) {
	if gives == "" {
		gives = "nothing of the kind"
	}
	asked := o.Name
	if o.Value != "" {
		asked += " = " + o.Value
	}
	if h.first == "" {
		h.first = fmt.Sprintf("%d:%d", o.Line, o.Column)
	}
	h.beyond = append(h.beyond, fmt.Sprintf("line %d, column %d: %s; the profile gives %s", o.Line, o.Column, asked, gives))
}

func (h *within) hasPurpose(purpose asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(h.version.Usage.Extended, func(name string) bool {
		id, err := cert.ParseExtKeyUsage(name)
		return err == nil && id.Equal(purpose)
	})
}

// policy judges policyN and its qualifiers: the policy must be one of the profile's, to the letter.
func (h *within) policy(o certtool.Option) {
	var n int
	var given []string
	for _, p := range h.version.Extensions.Policies {
		given = append(given, strings.TrimSpace(p.ID+" "+p.CPS))
	}
	if _, err := fmt.Sscanf(o.Name, "policy%d", &n); err == nil && 0 < n && n <= len(h.made.Policies) {
		asked := h.made.Policies[n-1]
		if slices.Contains(h.version.Extensions.Policies, cert.PolicyText{ID: asked.ID.String(), CPS: asked.CPS, Notice: asked.UserNotice}) {
			return
		}
	}
	h.refuse(o, strings.Join(given, ", "))
}

// given judges the options that ask for what the profile may give by itself. Without a grant nothing is known of that, and the
// profile's own refusal says enough.
func (h *within) given(o certtool.Option, granted *cert.Template) {
	var gives []string
	if granted != nil {
		switch o.Name {
		case "crl_dist_points":
			gives = granted.CRLDistributionPoints
		case "ocsp_uri":
			gives = granted.OCSPServers
		case "ca_issuers_uri":
			gives = granted.CAIssuers
		case "tls_feature":
			for _, n := range granted.TLSFeatures {
				gives = append(gives, fmt.Sprint(n))
			}
		}
	}
	pointer := slices.Contains([]string{"crl_dist_points", "ocsp_uri", "ca_issuers_uri", "tls_feature"}, o.Name)
	switch {
	case pointer && (granted == nil || slices.Contains(gives, strings.TrimSpace(o.Value))):
	case o.Name == "serial":
		h.refuse(o, "a random number")
	default:
		h.refuse(o, strings.Join(gives, ", "))
	}
}
