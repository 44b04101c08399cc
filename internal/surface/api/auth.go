package api

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/surface/problem"
)

// authenticator finds out who calls: by the client certificate of the connection, by the one that a trusted proxy passes
// on, or by a token. A certificate is checked in full (path, validity, usage, revocation); the result is believed for at
// most a second, and so is what access says of the principal. That the signatures of a path are right stays true: they are not
// verified again while the roots are the same.
type authenticator struct {
	identities *identity.Service
	access     *access.Store
	proxies    []netip.Prefix

	mu      sync.RWMutex // guards what follows
	checked map[[sha256.Size]byte]proven
	roots   *x509.CertPool // the newest; the same value while it is the same set
}

// proven is a certificate that was found good.
type proven struct {
	issuer   string
	spki     []byte
	notAfter time.Time
	at       time.Time

	above []*x509.Certificate // the path that was verified, without the leaf
	roots *x509.CertPool      // which it was verified by
}

// verified reports whether the path that was verified before is one still.
func (p *proven) verified(roots *x509.CertPool, now time.Time) bool {
	if p.roots != roots || now.Before(p.at) || now.After(p.notAfter) {
		return false
	}
	return !slices.ContainsFunc(p.above, func(c *x509.Certificate) bool { return now.Before(c.NotBefore) || now.After(c.NotAfter) })
}

const (
	believe     = time.Second
	maxIdentity = 1 << 14
)

// principal is the caller of r, and how he proved it. A certificate that ended within the grace still proves him.
func (a *authenticator) principal(r *http.Request, now time.Time, grace time.Duration) (access.Principal, string, error) {
	certificates, proxied, err := a.certificates(r)
	if err != nil {
		return access.Principal{}, "", err
	}
	authorization := r.Header.Get("Authorization")
	switch {
	case authorization != "":
		// A token says more than a certificate that a client sends by habit, and both at once must not be a riddle.
		scheme, token, _ := strings.Cut(authorization, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return access.Principal{}, "", fault.New(fault.Unauthenticated, "the authorization scheme is %.20q; Bearer is wanted", scheme)
		}
		p, err := a.access.Authenticate(r.Context(), strings.TrimSpace(token))
		return p, "token", err
	case len(certificates) > 0:
		if ended := now.Sub(certificates[0].NotAfter); ended > 0 && ended <= grace {
			p, err := a.ended(r.Context(), certificates)
			return p, "ended-certificate", err
		}
		id, err := a.identity(r.Context(), certificates, now)
		if err != nil {
			return access.Principal{}, "", err
		}
		how := "certificate"
		if proxied {
			how = "client-cert"
		}
		p, err := a.access.AuthenticateCertificate(r.Context(), id.issuer, id.spki)
		return p, how, err
	}
	return access.Principal{}, "", fault.New(fault.Unauthenticated, "this needs a client certificate under the identity root, or a token").
		WithHint("run the command with --dir, or with --token-file")
}

// certificates are those that the caller showed, the leaf first.
func (a *authenticator) certificates(r *http.Request) (path []*x509.Certificate, proxied bool, err error) {
	headers := r.Header.Values("Client-Cert")
	if len(headers) == 0 {
		if r.TLS == nil {
			return nil, false, nil
		}
		return r.TLS.PeerCertificates, false, nil
	}
	if !a.trusted(r.RemoteAddr) {
		return nil, false, fault.New(fault.Denied, "Client-Cert is taken only from the proxies that node.yaml names in trusted_proxies")
	}
	if len(headers) != 1 {
		return nil, false, fault.New(fault.Invalid, "there are %d Client-Cert headers; a proxy sends one", len(headers))
	}
	leaf, err := byteSequence(headers[0])
	if err != nil {
		return nil, false, err
	}
	path = []*x509.Certificate{leaf}
	for _, header := range r.Header.Values("Client-Cert-Chain") {
		for item := range strings.SplitSeq(header, ",") {
			c, err := byteSequence(item)
			if err != nil {
				return nil, false, err
			}
			if path = append(path, c); len(path) > 10 {
				return nil, false, fault.New(fault.Invalid, "Client-Cert-Chain holds more than 9 certificates")
			}
		}
	}
	return path, true, nil
}

// byteSequence reads a certificate as a structured field's byte sequence (RFC 9440 §2.1, RFC 9651 §3.3.5).
func byteSequence(text string) (*x509.Certificate, error) {
	text = strings.TrimSpace(text)
	inner, open := strings.CutPrefix(text, ":")
	inner, end := strings.CutSuffix(inner, ":")
	if !open || !end {
		return nil, fault.New(fault.Invalid, "Client-Cert is no byte sequence (RFC 9440 §2.1): base64 between colons")
	}
	der, err := base64.StdEncoding.DecodeString(inner)
	if err != nil {
		return nil, fault.New(fault.Invalid, "Client-Cert: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "Client-Cert: %w", err)
	}
	return c, nil
}

func (a *authenticator) trusted(remote string) bool {
	_, addr := problem.Address(remote)
	return problem.Within(a.proxies, addr)
}

// identity checks a certificate in full, at most once a second.
func (a *authenticator) identity(ctx context.Context, path []*x509.Certificate, now time.Time) (proven, error) {
	leaf := path[0]
	key := sha256.Sum256(leaf.Raw)
	a.mu.RLock()
	id, ok := a.checked[key]
	a.mu.RUnlock()
	if age := now.Sub(id.at); ok && age >= 0 && age < believe && now.Before(id.notAfter) {
		return id, nil
	}
	roots, err := a.rootsNow(ctx)
	if err != nil {
		return proven{}, err
	}
	issuer := ""
	if ok && id.verified(roots, now) {
		if issuer, err = a.identities.IssuerOf(ctx, id.above[0]); err != nil && !fault.Is(err, fault.NotFound) {
			return proven{}, err
		}
	}
	if issuer == "" {
		if issuer, id.above, err = a.verify(ctx, path, roots, now); err != nil {
			return proven{}, err
		}
	}
	if err := a.good(ctx, issuer, leaf); err != nil {
		return proven{}, err
	}
	id = proven{issuer: issuer, spki: leaf.RawSubjectPublicKeyInfo, notAfter: leaf.NotAfter, at: now, above: id.above, roots: roots}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.checked) >= maxIdentity || a.checked == nil {
		a.checked = map[[sha256.Size]byte]proven{}
	}
	a.checked[key] = id
	return id, nil
}

// ended is the caller whose certificate has ended, and was good until then. The key is proven as ever: TLS takes it from the
// handshake and not from the certificate's dates. Nothing of it is remembered.
func (a *authenticator) ended(ctx context.Context, path []*x509.Certificate) (access.Principal, error) {
	leaf := path[0]
	roots, err := a.rootsNow(ctx)
	if err != nil {
		return access.Principal{}, err
	}
	issuer, _, err := a.verify(ctx, path, roots, leaf.NotAfter)
	if err != nil {
		return access.Principal{}, err
	}
	if err := a.good(ctx, issuer, leaf); err != nil {
		return access.Principal{}, err
	}
	return a.access.AuthenticateCertificate(ctx, issuer, leaf.RawSubjectPublicKeyInfo)
}

// good refuses a certificate that is revoked, on hold or not the caller's any more.
func (a *authenticator) good(ctx context.Context, issuer string, leaf *x509.Certificate) error {
	err := a.identities.Good(ctx, issuer, leaf.SerialNumber)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict) || fault.Is(err, fault.Denied) {
		return unproven("it is revoked, on hold or not in the record")
	}
	return err
}

// rootsNow are the roots of identities, as one value while they are the same.
func (a *authenticator) rootsNow(ctx context.Context) (*x509.CertPool, error) {
	roots, err := a.identities.Roots(ctx)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.roots == nil || !a.roots.Equal(roots) {
		a.roots = roots
	}
	return a.roots, nil
}

// verify checks the path up to the identity root, and returns the ID of the issuer and the path above the leaf.
func (a *authenticator) verify(ctx context.Context, path []*x509.Certificate, roots *x509.CertPool, now time.Time) (string, []*x509.Certificate, error) {
	intermediates := x509.NewCertPool()
	for _, c := range path[1:] {
		intermediates.AddCert(c)
	}
	chains, err := path[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
			return "", nil, unproven("it was valid from %v to %v", path[0].NotBefore, path[0].NotAfter)
		}
		return "", nil, unproven("it does not chain to the identity root as a client certificate: %v", err)
	}
	for _, chain := range chains {
		if len(chain) < 2 {
			continue
		}
		issuer, err := a.identities.IssuerOf(ctx, chain[1])
		if err == nil {
			return issuer, slices.Clone(chain[1:]), nil
		}
		if !fault.Is(err, fault.NotFound) {
			return "", nil, err
		}
	}
	return "", nil, unproven("no issuer of identities here issued it")
}

func unproven(format string, args ...any) error {
	return fault.New(fault.Unauthenticated, "the client certificate does not prove who calls: "+format, args...).
		WithHint("renew the identity: chancery operator enrol; an agent renews its own, up to 30 days after its end, and after that, or where it " +
			"was revoked, chancery host replace NAME lets its machine join anew")
}

// authorize lets a request through whose caller may do what the route does, and has not asked too often.
func (s *Server) authorize(ctx context.Context, c *call, r route) (context.Context, error) {
	now := time.Now()
	if r.action == stranger {
		return ctx, s.admitStranger(c, now)
	}
	grace := time.Duration(0)
	if r.lateRenewal {
		grace = identity.Grace
	}
	p, how, err := s.auth.principal(c.r, now, grace)
	if fault.Is(err, fault.Unauthenticated) && s.DB.MayBeBehind() { // who has just been made known may not be known at the standby
		p, how, err = s.auth.principal(c.r.WithContext(db.AtPrimary(c.r.Context())), now, grace)
	}
	if err != nil {
		if fault.Is(err, fault.Unauthenticated) {
			from, _ := problem.Address(c.r.RemoteAddr)
			if limited := s.strangers.Take(from, now); limited != nil {
				return ctx, limited
			}
		}
		return ctx, err
	}
	c.event.Add(slog.String("principal", p.Actor()), slog.String("auth", how))
	if err := s.limit(ctx, p, now); err != nil {
		return ctx, err
	}
	if err := p.May(r.action); err != nil && r.action != anyone {
		return ctx, err
	}
	return access.With(ctx, p), nil
}

// limit takes a call from the principal's bucket, of the size that the settings say.
func (s *Server) limit(ctx context.Context, p access.Principal, now time.Time) error {
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return err
	}
	limiter, rate := s.operators, set.Limits.OperatorRate
	if p.Has(access.Host) {
		limiter, rate = s.hosts, set.Limits.HostRate
	}
	limiter.Set(rate.PerSecond, int(rate.Burst))
	return limiter.Take(p.ID, now)
}
