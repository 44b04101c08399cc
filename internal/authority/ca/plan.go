package ca

import (
	"context"
	"fmt"
	"strings"
	"time"

	"chancery/internal/authority/profile"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/settings"
)

// plan is an order that was judged: what would be signed, by whom, and whether it needs an approval.
type plan struct {
	issuer    *Issuer
	profile   string
	version   int
	twoPerson bool // of the profile
	atOnce    bool // the caller's entitled requests need no approval
	linted    *cert.Linted
	facts     *facts
	warnings  []string
	replaces  *Certificate
	login     bool // of IssueLogin
}

func notCA() error {
	return fault.New(fault.Denied, "the order would make a CA, and issuing a certificate never makes one").
		WithHint("chancery issuer issue makes an issuer")
}

// wish is an order whose texts were read.
type wish struct {
	caller  cert.Caller
	csr     *cert.CSR // nil where a bare public key was given
	spki    []byte
	subject cert.Name          // nil: the CSR's
	names   []cert.GeneralName // nil: the CSR's
	pool    string             // of a host whose order names none
}

// plan judges an order as the caller's. It signs nothing and changes nothing.
func (c *CA) plan(ctx context.Context, by access.Principal, order *Order, now time.Time) (*plan, error) {
	set, err := c.issuersNow(ctx, now)
	if err != nil {
		return nil, err
	}
	s, err := c.settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	w, err := c.read(ctx, by, order, s)
	if err != nil {
		return nil, err
	}
	if err := w.hostOrder(by, order); err != nil {
		return nil, err
	}
	from := *order
	if w.pool != "" {
		from.Pool = w.pool
	}
	issuer, err := set.forIssuance(&from)
	if err != nil {
		return nil, err
	}
	if err := w.withinPool(by, issuer); err != nil {
		return nil, err
	}
	who := w.applicant(by, order)
	if err := who.mayAsk(issuer); err != nil {
		return nil, err
	}
	p := &plan{issuer: issuer, replaces: order.replaces, login: order.login}
	switch {
	case order.Template != "":
		err = c.planTemplate(ctx, by, order, w, p, s, now)
	case order.replaces != nil && (order.Profile == templateProfile || order.Profile == importedProfile):
		err = planCopy(by, order, p, s, now)
	default:
		err = c.planProfile(ctx, by, order, w, p, s, now)
	}
	if err != nil {
		return nil, err
	}
	if p.facts, err = readTBS(p.linted.TBS()); err != nil {
		return nil, err
	}
	if p.facts.isCA {
		return nil, notCA()
	}
	if err := who.mayBear(issuer, p.facts); err != nil {
		return nil, err
	}
	for _, w := range p.linted.Warnings() {
		p.warnings = append(p.warnings, w.Error())
	}
	return p, nil
}

// read parses an order. Exactly one of CSR and public key is given, except that a renewal brings its own.
func (c *CA) read(ctx context.Context, by access.Principal, order *Order, s *settings.Settings) (*wish, error) {
	w := &wish{caller: cert.Caller{Name: by.Name}}
	for _, role := range by.Roles {
		w.caller.Roles = append(w.caller.Roles, string(role))
	}
	if isSystem(by) {
		w.caller.Roles = []string{systemRole}
	}
	var err error
	if w.caller.Entitlements, err = c.entitlements(ctx, by); err != nil {
		return nil, fmt.Errorf("look up what %s is entitled to: %w", by.Name, err)
	}
	if (len(order.CSR) == 0) == (len(order.PublicKey) == 0) {
		return nil, fault.New(fault.Invalid, "give either a certification request or a public key")
	}
	if order.replaces == nil {
		if err := provesKey(by, order.CSR); err != nil {
			return nil, err
		}
	}
	if len(order.CSR) > 0 {
		limits := cert.CSRLimits{Octets: int(s.Limits.CSRBytes), Names: int(s.Limits.Names)}
		if w.csr, err = limits.ParsePEM(order.CSR); err != nil {
			return nil, err
		}
		w.spki = w.csr.SPKI
	} else {
		w.spki = order.PublicKey
	}
	if order.Subject != "" {
		if w.subject, err = cert.ParseName(order.Subject); err != nil {
			return nil, err
		}
	}
	if int64(len(order.Names)) > s.Limits.Names {
		return nil, fault.New(fault.Invalid, "%d names are asked for; limits.names allows %d", len(order.Names), s.Limits.Names)
	}
	for i, text := range order.Names {
		name, err := cert.ParseGeneralName(text)
		if err != nil {
			return nil, fmt.Errorf("name %d: %w", i+1, err)
		}
		w.names = append(w.names, name)
	}
	if old := order.replaces; old != nil {
		w.subject, w.names = old.read().subject, append([]cert.GeneralName{}, old.Names()...)
	}
	return w, nil
}

// provesKey demands a request of hosts: it is signed by the key that it is for. A host that could have another's key
// certified could also have it revoked as compromised, and so banned.
func provesKey(by access.Principal, csr []byte) error {
	if len(csr) == 0 && by.Has(access.Host) && !isSystem(by) {
		return fault.New(fault.Denied, "%s must prove that it has the key: give a certification request instead of a public key", by.Name)
	}
	return nil
}

// systemRole is the role in profiles of the authority's own loops.
const systemRole = "authority"

func isSystem(by access.Principal) bool { return strings.HasPrefix(by.Actor(), "system:") }

// planProfile builds what the profile grants of the wish.
func (c *CA) planProfile(ctx context.Context, by access.Principal, order *Order, w *wish, p *plan, s *settings.Settings, now time.Time) error {
	if order.Profile == "" {
		return fault.New(fault.Invalid, "name a profile").WithHint("chancery profile list")
	}
	v, err := c.profiles.Current(ctx, order.Profile)
	if err != nil {
		return err
	}
	if v.CA != nil {
		return notCA()
	}
	p.judgedBy(v, by, w.caller)
	req, issuer, err := p.request(order, w, s)
	if err != nil {
		return err
	}
	p.linted, err = v.Build(*req, issuer, now)
	return err
}

// judgedBy notes the profile, and whether it lets the caller do without an officer. An officer who could approve the
// request at once need not submit it first.
func (p *plan) judgedBy(v *profile.Version, by access.Principal, caller cert.Caller) {
	p.profile, p.version, p.twoPerson = v.Name, v.Number, v.Approval.TwoPerson
	p.atOnce = v.Automatic(caller) || !p.twoPerson && by.May(access.DecideRequest) == nil
}

// request returns what the profile is asked, with the serial, since that decides the CRL that will cover the certificate.
func (p *plan) request(order *Order, w *wish, s *settings.Settings) (*cert.Request, *cert.Issuer, error) {
	serial, err := cert.NewSerial()
	if err != nil {
		return nil, nil, err
	}
	req := &cert.Request{
		Caller: w.caller, CSR: w.csr, Subject: w.subject, Names: w.names, NotBefore: order.NotBefore, NotAfter: order.NotAfter,
		Validity: order.Validity, Serial: serial,
	}
	if w.csr == nil || order.replaces != nil {
		req.CSR, req.SPKI = nil, w.spki
	}
	if order.Validity < 0 {
		return nil, nil, fault.New(fault.Invalid, "validity %s is negative", order.Validity)
	}
	if order.Validity != 0 && !order.NotAfter.IsZero() {
		return nil, nil, fault.New(fault.Invalid, "give either a validity or an end, not both")
	}
	return req, p.issuer.encoder(s, crl.Partition(serial, p.issuer.CRL.Partitions)), nil
}

// describe is what an officer reads of a request.
func (p *plan) describe() string {
	var names []string
	for _, n := range p.facts.names {
		names = append(names, n.String())
	}
	text := p.facts.subject.String()
	if len(names) > 0 {
		text = strings.TrimSpace(text + " (" + strings.Join(names, ", ") + ")")
	}
	if len(text) > maxDescription {
		text = strings.ToValidUTF8(text[:maxDescription], "") + " …"
	}
	return text
}

const maxDescription = 4000

// Preview says what an order would get.
type Preview struct {
	Issuer         *Issuer
	Profile        string
	ProfileVersion int
	AtOnce         bool // false: it would wait for an officer
	Subject        string
	Names          []string
	NotBefore      time.Time
	NotAfter       time.Time
	Warnings       []string
	// Unsigned is the certificate with an empty signature, for printing. Its serial is not the one that will be issued.
	Unsigned []byte
}

// DryRun judges an order as Submit would, and says what it would get or why it would be refused. It changes nothing.
func (c *CA) DryRun(ctx context.Context, by access.Principal, order Order) (*Preview, error) {
	now := time.Now()
	if err := by.May(access.SubmitRequest); err != nil {
		return nil, err
	}
	p, err := c.plan(ctx, by, &order, now)
	if err != nil {
		return nil, err
	}
	if err := c.checkKey(ctx, p.facts.spki); err != nil {
		return nil, err
	}
	preview := &Preview{
		Issuer: p.issuer, Profile: p.profile, ProfileVersion: p.version, AtOnce: p.atOnce, Subject: p.facts.subject.String(),
		NotBefore: p.facts.notBefore, NotAfter: p.facts.notAfter, Warnings: p.warnings,
		Unsigned: unsigned(p.linted),
	}
	for _, n := range p.facts.names {
		preview.Names = append(preview.Names, n.String())
	}
	return preview, nil
}
