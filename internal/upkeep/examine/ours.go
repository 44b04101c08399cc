package examine

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/client"
	"chancery/internal/pki/keyfile"
)

// Authority is what an authority knows of certificates. It is asked for its issuers once.
type Authority struct {
	API *client.Client

	mu      sync.Mutex
	asked   bool
	err     error
	issuers []client.Issuer     // guarded by mu, and not changed once asked is set
	known   []*x509.Certificate // their certificates, at the same places
	pools   map[string]*Trust   // what was told of pools; guarded by mu
}

// load asks for the issuers and roots.
func (a *Authority) load(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked {
		return a.err
	}
	a.asked = true
	list, err := client.Collect(a.API.Issuers(ctx))
	if err != nil {
		a.err = err
		return err
	}
	for _, i := range list {
		if i.PEM == "" {
			full, err := a.API.Issuer(ctx, i.Name)
			if err != nil {
				a.err = err
				return err
			}
			i = *full
		}
		certificates, err := keyfile.ParseCertificates([]byte(i.PEM))
		if err != nil {
			continue // one that waits for its certificate
		}
		a.issuers, a.known = append(a.issuers, i), append(a.known, certificates[0])
	}
	return nil
}

// trustOf is what peers of a certificate's holder trust: its pool's hosts where an issuer of ours issued it, for another pool's
// roots are none of theirs, and all roots of the authority where none did.
func (a *Authority) trustOf(ctx context.Context, issuer *client.Issuer) *Trust {
	if issuer != nil && issuer.Pool != "" {
		if t := a.poolTrust(ctx, issuer.Pool); t != nil {
			return t
		}
	}
	t := &Trust{From: "the roots of the authority"}
	if a.load(ctx) != nil {
		return &Trust{}
	}
	for i, c := range a.known {
		switch {
		case a.issuers[i].Root && a.issuers[i].State != "pending":
			t.Anchors = append(t.Anchors, c)
		case !a.issuers[i].Root:
			t.Others = append(t.Others, c)
		}
	}
	return t
}

// poolTrust is what the hosts of a pool trust: its trust set, or where that may not be read the pool's roots.
func (a *Authority) poolTrust(ctx context.Context, pool string) *Trust {
	a.mu.Lock()
	t, ok := a.pools[pool]
	a.mu.Unlock()
	if ok {
		return t
	}
	t = a.askPoolTrust(ctx, pool)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pools == nil {
		a.pools = map[string]*Trust{}
	}
	a.pools[pool] = t
	return t
}

func (a *Authority) askPoolTrust(ctx context.Context, pool string) *Trust {
	t := &Trust{From: "the trust of pool " + pool}
	for e, err := range a.API.Trust(ctx, pool, client.TrustGeneral) {
		if err != nil {
			t.Anchors, t.Others = nil, nil
			break
		}
		certificates, err := keyfile.ParseCertificates([]byte(e.PEM))
		switch {
		case err != nil, e.State == "staged":
		case e.Kind == client.TrustAnchor:
			t.Anchors = append(t.Anchors, certificates[0])
		case e.Kind == client.TrustIntermediate:
			t.Others = append(t.Others, certificates[0])
		}
	}
	if len(t.Anchors) > 0 {
		return t
	}
	if err := a.load(ctx); err != nil {
		return nil
	}
	t.From = "the roots of pool " + pool
	for i, c := range a.known {
		switch one := a.issuers[i]; {
		case one.Pool != pool:
		case one.Root:
			t.Anchors = append(t.Anchors, c)
		default:
			t.Others = append(t.Others, c)
		}
	}
	if len(t.Anchors) == 0 {
		return nil
	}
	return t
}

// Issuer is the issuer of ours that signed c, nil where none did.
func (a *Authority) Issuer(ctx context.Context, c *x509.Certificate) (*client.Issuer, error) {
	if err := a.load(ctx); err != nil {
		return nil, err
	}
	for i, one := range a.known {
		if issued(c, one) {
			return &a.issuers[i], nil
		}
	}
	return nil, nil
}

// lookAtRecord holds a certificate against the authority's record. It returns the command that replaces it.
func (r *report) lookAtRecord(ctx context.Context, c *x509.Certificate, a *Authority, mend string, now time.Time) string {
	issuer, err := a.Issuer(ctx, c)
	if err != nil {
		r.tell("authority.unreachable", err.Error(), "what the authority knows of it was not looked at", "chancery status")
		return mend
	}
	if issuer == nil {
		r.ok("ours", "%s is not of an issuer of this authority", named(c))
		return mend
	}
	record, err := a.API.Certificate(ctx, issuer.Name, serial(c))
	switch {
	case client.IsKind(err, "not-found"):
		r.tell("ours.forged", "serial "+serial(c), fmt.Sprintf("issuer %s signed %s, and did not record it", issuer.Name, named(c)), "chancery audit list")
		return mend
	case err != nil:
		r.tell("authority.unreachable", err.Error(), "what the authority knows of it was not looked at", "chancery status")
		return mend
	}
	mend = fmt.Sprintf("chancery cert rekey %s --issuer %s --key K --out F", record.Serial, record.Issuer)
	host, placement := a.placed(ctx, record)
	whose := "issued by " + record.Issuer
	if host != nil {
		whose = fmt.Sprintf("issued by %s to host %s", record.Issuer, host.Name)
		mend = fmt.Sprintf("chancery agent run --once    (as root on %s)", host.Name)
	}
	if placement != nil {
		whose += ", placement " + placement.Name
	}
	switch {
	case record.State == "revoked" || record.State == "held":
		seen := record.State
		if v := record.Revocation; v != nil {
			seen = strings.TrimSpace(seen + " " + v.Reason)
		}
		r.tell("ours.revoked", seen, fmt.Sprintf("%s (%s) is served although its record says %s", named(c), whose, record.State), mend)
	case placement == nil || placement.Observed.Serial != record.Serial:
		if newer := a.newer(ctx, record, now); newer != nil {
			r.tell("ours.newer", "serial "+record.Serial, fmt.Sprintf("%s (%s) was followed by %s, issued on %s", named(c), whose, newer.Serial, stamp(newer.IssuedAt)), mend)
			break
		}
		r.ok("ours", "%s, serial %s", whose, record.Serial)
	default:
		r.ok("ours", "%s, serial %s, as its agent reported", whose, record.Serial)
	}
	return mend
}

// placed finds the host that a certificate is for, and the placement that has it now. The record knows the machine by another
// name than the host's, so the host is looked for by the certificate's names; it is the holder where it reported the
// certificate, or where the certificate was issued to no operator.
func (a *Authority) placed(ctx context.Context, record *client.Certificate) (*client.Host, *client.Placement) {
	tried := 0
	for _, name := range record.SAN {
		kind, name, _ := strings.Cut(name, ":")
		if kind != "dns" || tried == 4 {
			continue
		}
		tried++
		host, err := a.API.Host(ctx, name)
		if err != nil {
			continue
		}
		for i, p := range host.Placements {
			if p.Observed.Serial == record.Serial || p.Observed.Served == record.Serial {
				return host, &host.Placements[i]
			}
		}
		if !slices.ContainsFunc(host.OthersCertificates, func(c client.RemainingCertificate) bool { return c.Serial == record.Serial }) && len(host.Placements) > 0 {
			return host, nil
		}
	}
	return nil, nil
}

// newer is the newest valid certificate with the same subject and names, requested by the same and issued later.
func (a *Authority) newer(ctx context.Context, record *client.Certificate, now time.Time) *client.Certificate {
	if len(record.SAN) == 0 {
		return nil
	}
	_, name, _ := strings.Cut(record.SAN[0], ":")
	var found *client.Certificate
	looked := 0
	for c, err := range a.API.Certificates(ctx, client.CertificateFilter{Name: name, State: "valid", After: now, Requester: record.Requester, PageSize: 100}) {
		if looked++; err != nil || looked > 500 {
			break
		}
		if c.IssuedAt.After(record.IssuedAt) && c.Subject == record.Subject && c.Profile == record.Profile && sameNames(c.SAN, record.SAN) &&
			(found == nil || c.IssuedAt.After(found.IssuedAt)) {
			found = &c
		}
	}
	return found
}

func sameNames(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// firstName is a name for the command that makes another certificate.
func firstName(c *x509.Certificate, names []string) string {
	if len(c.DNSNames) > 0 {
		return clean(c.DNSNames[0])
	}
	if len(names) > 0 {
		return names[0]
	}
	return clean(c.Subject.CommonName)
}
