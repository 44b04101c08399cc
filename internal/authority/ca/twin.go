package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

// This file issues what a proof of revocation is tried with. Who may have either is the caller's to decide, in within.

// The profiles that the inventory names for certificates of proofs. No stored profile may have these names.
const (
	TwinProfile    = cert.ReservedTwin
	ControlProfile = cert.ReservedControl
)

const (
	twinLife    = time.Hour
	controlLife = 10 * time.Minute
)

// IssueTwin issues a twin of a certificate that is revoked or on hold: the same subject and names for another key, revoked in
// the transaction that records it, so that there is no instant at which it is good. Whoever has it can show it to a server and
// see whether that takes it.
//
// It is a client's certificate whatever the other one was, since it is shown by clients only: with serverAuth its holder could
// pass for the other's names before anyone who reads no CRLs. It lives an hour. The request proves that the caller has the key,
// and asks for nothing else. It is of the caller's own pool: before a consumer that reads no CRL it passes for what it is a twin of.
func (c *CA) IssueTwin(ctx context.Context, by access.Principal, of Ref, csr []byte, within Within) (*Certificate, error) {
	now := time.Now()
	request, s, err := c.proofRequest(ctx, by, csr, now)
	if err != nil {
		return nil, fmt.Errorf("issue a twin: %w", err)
	}
	var old *Certificate
	err = c.db.Read(ctx, func(tx *db.Tx) error {
		r, err := c.recordByRef(ctx, tx, of)
		if err == nil {
			old, err = c.complete(ctx, tx, r, now)
		}
		return err
	})
	if err == nil {
		err = old.Provable(now)
	}
	if err == nil {
		err = c.ownPool(ctx, by, old.Issuer)
	}
	if err == nil {
		err = noTwin(old.Issuer)
	}
	if err != nil {
		return nil, fmt.Errorf("issue a twin: %w", err)
	}
	linted, err := buildTwin(old, request, s, now)
	if err != nil {
		return nil, fmt.Errorf("issue a twin of %s: %w", cert.FormatSerial(old.Serial), err)
	}
	twin, err := c.signTwin(ctx, by, old, linted)
	if err != nil {
		return nil, err
	}
	twin.limits = s.Limits
	var issued *Certificate
	err = c.commit(ctx, func(tx *db.Tx, again bool) (err error) {
		issued = nil
		if again {
			if issued, err = c.committed(ctx, tx, twin, now); err != nil || issued != nil {
				return err
			}
		}
		issued, err = c.recordTwin(ctx, tx, by, of, twin, within, now)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("issue a twin of %s: %w", cert.FormatSerial(old.Serial), err)
	}
	c.announce()
	return issued, nil
}

// ownPool refuses a host a twin of what another pool's issuer signed. Its consumers could be shown the certificate; but of hosts
// of other pools, whoever runs this one knows nothing.
func (c *CA) ownPool(ctx context.Context, by access.Principal, issuer *Issuer) error {
	entitled, err := c.entitlements(ctx, by)
	if err != nil {
		return err
	}
	w := &wish{caller: cert.Caller{Entitlements: entitled}}
	return w.withinPool(by, issuer)
}

// Provable says why it cannot be proven that a certificate is refused everywhere; nil where it can.
func (c *Certificate) Provable(now time.Time) error {
	serial := cert.FormatSerial(c.Serial)
	switch {
	case now.After(c.NotAfter):
		return fault.New(fault.Conflict, "certificate %s ended on %s: everyone refuses it for that, and a refusal would prove nothing of its revocation",
			serial, utc(c.NotAfter))
	case c.State != Revoked && c.State != Held:
		return fault.New(fault.Conflict, "certificate %s is %s, and it is to be shown that a revoked one is refused", serial, c.State).
			WithHint("chancery cert revoke %s --reason REASON", serial)
	case len(c.DER) == 0:
		_, err := c.Parsed()
		return err
	case c.Issuer.Pool == IdentityPool:
		return fault.New(fault.Conflict, "certificate %s is an identity, which is shown to nodes only; they look its state up at each call", serial)
	case c.Profile == TwinProfile || c.Profile == ControlProfile:
		return fault.New(fault.Conflict, "certificate %s is itself one of a proof", serial)
	case c.read().isCA:
		return fault.New(fault.Conflict, "certificate %s is an issuer's; a proof tries certificates that are shown by clients", serial).
			WithHint("name a certificate that it issued")
	}
	return nil
}

// proofRequest admits a call, and reads a request that proves the possession of a key and asks for nothing.
func (c *CA) proofRequest(ctx context.Context, by access.Principal, csr []byte, now time.Time) (*cert.CSR, *settings.Settings, error) {
	if err := by.May(access.ActAsHost); err != nil {
		return nil, nil, err
	}
	if err := c.db.CheckClock(now); err != nil {
		return nil, nil, err
	}
	if err := c.withinRate(ctx, by, now); err != nil {
		return nil, nil, err
	}
	s, err := c.settings.Get(ctx)
	if err != nil {
		return nil, nil, err
	}
	request, err := cert.CSRLimits{Octets: int(s.Limits.CSRBytes), Names: int(s.Limits.Names)}.ParsePEM(csr)
	if err != nil {
		return nil, nil, err
	}
	if len(request.Subject)+len(request.Extensions) > 0 {
		return nil, nil, fault.New(fault.Invalid, "the request asks for names or extensions (subject %q, %d extensions); those of a proof's certificates are "+
			"given, and a request that asks for nothing would pass", request.Subject.String(), len(request.Extensions)).At("/csr")
	}
	if err := c.checkKey(ctx, request.SPKI); err != nil {
		return nil, nil, err
	}
	return request, s, nil
}

// proofTemplate is what is common to both: a client's certificate, for a short while.
func proofTemplate(subject cert.Name, names []cert.GeneralName, issuer *cert.Issuer, key *cert.CSR, life time.Duration, now time.Time) *cert.Template {
	now = now.UTC().Truncate(time.Second)
	t := &cert.Template{
		Subject: subject, SAN: names, NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
		BasicConstraints: &cert.BasicConstraints{}, ExtKeyUsage: []asn1.ObjectIdentifier{cert.OIDClientAuth}, ExtKeyUsageCritical: true,
		KeyUsage: x509.KeyUsageDigitalSignature, KeyUsageCritical: true,
		CRLDistributionPoints: issuer.CRLDistributionPoints, FreshestCRL: issuer.FreshestCRL, OCSPServers: issuer.OCSPServers, CAIssuers: issuer.CAIssuers,
	}
	if family(cert.KeyAlgorithm(key.PublicKey)) == "rsa" {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment // which libvirt before 11.6.0 demands
	}
	if end := issuer.Certificate.NotAfter; t.NotAfter.After(end) {
		t.NotAfter = end
	}
	return t
}

func buildTwin(old *Certificate, request *cert.CSR, s *settings.Settings, now time.Time) (*cert.Linted, error) {
	parsed, err := old.Parsed()
	if err != nil {
		return nil, err
	}
	if bytes.Equal(old.PublicKey(), request.SPKI) {
		return nil, fault.New(fault.Invalid, "the key is the certificate's own; who has that tries the certificate itself").At("/csr")
	}
	wanted, got := cert.KeyAlgorithm(parsed.PublicKey), cert.KeyAlgorithm(request.PublicKey)
	if family(wanted) != family(got) {
		return nil, fault.New(fault.Invalid, "the key is %s, and the certificate's is %s; a twin is of the same kind", got, wanted).At("/csr")
	}
	if old.Issuer.KeyID == "" {
		return nil, fault.New(fault.Conflict, "the key of issuer %q is offline, so no twin can be issued; who has the certificate's own key can try that",
			old.Issuer.Name)
	}
	serial, err := cert.NewSerial()
	if err != nil {
		return nil, err
	}
	issuer := old.Issuer.encoder(s, crl.Partition(serial, old.Issuer.CRL.Partitions))
	t := proofTemplate(old.read().subject, old.Names(), issuer, request, twinLife, now)
	return lintTemplate(t, request.SPKI, serial, issuer, true)
}

func family(algorithm string) string {
	name, _, _ := strings.Cut(algorithm, "-")
	return name
}

func (c *CA) signTwin(ctx context.Context, by access.Principal, old *Certificate, linted *cert.Linted) (*signed, error) {
	f, err := readTBS(linted.TBS())
	if err != nil {
		return nil, err
	}
	return c.sign(ctx, by, &plan{issuer: old.Issuer, profile: TwinProfile, linted: linted, facts: f})
}

// recordTwin writes a twin and its revocation. The certificate that it is a twin of is read again: it may have been released
// since.
func (c *CA) recordTwin(ctx context.Context, tx *db.Tx, by access.Principal, of Ref, s *signed, within Within, now time.Time) (*Certificate, error) {
	old, err := c.recordByRef(ctx, tx, of)
	if err != nil {
		return nil, err
	}
	if _, err := c.complete(ctx, tx, old, now); err != nil {
		return nil, err
	}
	if err := old.Provable(now); err != nil {
		return nil, err
	}
	if _, err := c.guard(ctx, tx, by, s, now); err != nil {
		return nil, err
	}
	r := &record{Certificate: *s.certificate, issuer: s.certificate.Issuer.number} // this run's own: the function may run twice
	r.ID = c.nextID(now)
	if err := within(ctx, tx, &r.Certificate); err != nil {
		return nil, err
	}
	if err := writeCertificates(ctx, tx, []any{&r.Certificate}); err != nil { // at once, since its revocation refers to it
		return nil, err
	}
	if err := c.auditIssued(ctx, tx, by, &r.Certificate, now); err != nil {
		return nil, err
	}
	if err := c.revokeIn(ctx, tx, r, crl.CessationOfOperation, by.Actor(), now); err != nil {
		return nil, err
	}
	return c.complete(ctx, tx, r, now)
}

// IssueControl issues the certificate that a proof holds a refusal against: a good one of an issuer, with the names and
// addresses that the calling host is known by, for ten minutes. It is a client's, whatever is placed on the host, so within
// must grant it to none but a host of a proof that wants controls.
func (c *CA) IssueControl(ctx context.Context, by access.Principal, issuerID string, csr []byte, within Within) (*Certificate, error) {
	now := time.Now()
	request, s, err := c.proofRequest(ctx, by, csr, now)
	if err != nil {
		return nil, fmt.Errorf("issue a control: %w", err)
	}
	set, err := c.issuersNow(ctx, now)
	if err != nil {
		return nil, err
	}
	issuer, err := set.forIssuance(&Order{Issuer: issuerID})
	if err != nil {
		return nil, fmt.Errorf("issue a control: %w", err)
	}
	linted, err := c.buildControl(ctx, by, issuer, request, s, now)
	if err != nil {
		return nil, fmt.Errorf("issue a control: %w", err)
	}
	p := &plan{issuer: issuer, profile: ControlProfile, atOnce: true, linted: linted}
	if p.facts, err = readTBS(linted.TBS()); err != nil {
		return nil, err
	}
	order := &Order{Issuer: issuer.ID, Profile: ControlProfile, CSR: csr, within: within, control: true}
	return c.issue(ctx, by, order, p, now)
}

func (c *CA) buildControl(ctx context.Context, by access.Principal, issuer *Issuer, request *cert.CSR, s *settings.Settings, now time.Time) (*cert.Linted, error) {
	entitled, err := c.entitlements(ctx, by)
	if err != nil {
		return nil, err
	}
	w := &wish{caller: cert.Caller{Entitlements: entitled}}
	if err := w.withinPool(by, issuer); err != nil {
		return nil, err
	}
	var names []cert.GeneralName
	var subject cert.Name
	for _, name := range entitled["host.names"] {
		if subject == nil {
			subject = cert.CommonName(name)
		}
		names = append(names, cert.DNSName(name))
	}
	for _, address := range entitled["host.addresses"] {
		name, err := cert.ParseGeneralName("ip:" + address)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	serial, err := cert.NewSerial()
	if err != nil {
		return nil, err
	}
	encoder := issuer.encoder(s, crl.Partition(serial, issuer.CRL.Partitions))
	t := proofTemplate(subject, names, encoder, request, controlLife, now)
	return lintTemplate(t, request.SPKI, serial, encoder, false)
}
