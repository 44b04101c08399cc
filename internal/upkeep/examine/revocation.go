package examine

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"

	"chancery/internal/pki/crl"
)

// clockSkew is what two clocks may be apart without being wrong.
const clockSkew = 5 * time.Minute

// lookAtRevocation asks where each certificate of the path says, for each whose issuer is known.
func (r *report) lookAtRevocation(ctx context.Context, full []*x509.Certificate, f *fetcher, now time.Time) {
	for i, c := range full {
		if i+1 >= len(full) {
			if i == 0 && !selfSigned(c) && len(c.CRLDistributionPoints)+len(c.OCSPServer) == 0 {
				r.tell("revocation.none", "no cRLDistributionPoints, no OCSP", fmt.Sprintf("%s does not say where it would be revoked", named(c)), "")
			}
			break
		}
		issuer := full[i+1]
		if len(c.CRLDistributionPoints)+len(c.OCSPServer) == 0 {
			if i == 0 {
				r.tell("revocation.none", "no cRLDistributionPoints, no OCSP", fmt.Sprintf("%s does not say where it would be revoked", named(c)), "")
			}
			continue
		}
		const most = 3 // addresses of each kind
		for _, address := range c.CRLDistributionPoints[:min(most, len(c.CRLDistributionPoints))] {
			r.lookAtCRL(ctx, c, issuer, address, f, now)
		}
		for _, address := range c.OCSPServer[:min(most, len(c.OCSPServer))] {
			r.lookAtOCSP(ctx, c, issuer, address, f, now)
		}
	}
}

// notFetched tells why nothing came from an address.
func (r *report) notFetched(what, address string, err error) {
	address = shorten(clean(address), 160)
	var wrong *notOne
	switch {
	case errors.Is(err, errElsewhere):
		scheme, _, _ := strings.Cut(address, ":")
		if u, err := url.Parse(address); err == nil && u.User != nil {
			scheme, address = "an address with a password", "(not shown)"
		}
		r.tell("revocation.scheme", scheme, fmt.Sprintf("the %s at %s was not fetched", what, address), "")
	case errors.Is(err, errInside):
		command := "chancery doctor " + quoted(r.object) + " --fetch-private"
		if errors.Is(err, errNever) {
			command = ""
		}
		r.tell("revocation.inside", innermost(err).Error(), fmt.Sprintf("the %s at %s was not asked for", what, address), command)
	case errors.As(err, &wrong):
		r.tell("revocation.forged", shorten(clean(err.Error()), 200), fmt.Sprintf("what %s has is no %s", address, what), "curl -s "+quoted(address)+" | openssl asn1parse -inform DER")
	default:
		r.tell("revocation.unreachable", shorten(clean(err.Error()), 200), fmt.Sprintf("the %s at %s cannot be had", what, address), "curl -sv -o /dev/null "+quoted(address))
	}
}

// innermost is the refusal itself, without what was done when it came.
func innermost(err error) error {
	var dial *net.OpError
	if errors.As(err, &dial) {
		return dial.Err
	}
	return err
}

func (r *report) lookAtCRL(ctx context.Context, c, issuer *x509.Certificate, address string, f *fetcher, now time.Time) {
	list, err := f.list(ctx, address)
	if err != nil {
		r.notFetched("CRL", address, err)
		return
	}
	where := shorten(clean(address), 160)
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
		r.tell("revocation.forged", "another issuer's", fmt.Sprintf("the CRL at %s is not that of %s", where, named(issuer)), "")
		return
	}
	if err := list.CheckIssuer(issuer); err != nil {
		r.tell("revocation.forged", sentence(err), fmt.Sprintf("the CRL at %s is not signed by %s", where, named(issuer)), "")
		return
	}
	switch idp := list.IDP; {
	case list.BaseNumber != nil:
		r.tell("revocation.forged", "a delta CRL", fmt.Sprintf("the CRL at %s is a delta; a complete one must be there", where), "")
		return
	case idp != nil && (idp.IndirectCRL || idp.OnlyAttributeCerts || idp.OnlyUserCerts && c.IsCA || idp.OnlyCACerts && !c.IsCA ||
		len(idp.URIs) > 0 && !slices.Contains(idp.URIs, address)):
		r.tell("revocation.forged", "its scope is another", fmt.Sprintf("the CRL at %s does not cover %s (issuingDistributionPoint)", where, named(c)), "")
		return
	}
	if e, ok := list.Lookup(c.SerialNumber); ok && e.Reason != crl.RemoveFromCRL {
		r.tell("revocation.revoked", fmt.Sprintf("%s since %s", e.Reason, stamp(e.RevokedAt)), fmt.Sprintf("%s is revoked, says the CRL of %s", named(c), named(issuer)), "")
		return
	}
	if idp := list.IDP; idp != nil && idp.OnlySomeReasons {
		r.tell("revocation.partial", "onlySomeReasons", fmt.Sprintf("the CRL at %s lists what was revoked for some reasons; %s is not on it", where, named(c)),
			"curl -s "+quoted(address)+" | openssl crl -inform DER -noout -text")
		return
	}
	if now.After(list.NextUpdate) {
		r.tell("revocation.stale", "nextUpdate "+stamp(list.NextUpdate), fmt.Sprintf("the CRL of %s at %s is %s too old", named(issuer), where, span(now.Sub(list.NextUpdate))),
			"chancery crl issue --issuer ISSUER")
		return
	}
	if list.ThisUpdate.After(now.Add(clockSkew)) {
		r.tell("revocation.stale", "thisUpdate "+stamp(list.ThisUpdate), fmt.Sprintf("the CRL of %s at %s is from the future; a clock is wrong", named(issuer), where), "timedatectl")
		return
	}
	r.ok("revocation", "%s is not on the CRL of %s, which is fresh for another %s", named(c), named(issuer), span(list.NextUpdate.Sub(now)))
}

func (r *report) lookAtOCSP(ctx context.Context, c, issuer *x509.Certificate, address string, f *fetcher, now time.Time) {
	question, err := ocsp.CreateRequest(c, issuer, &ocsp.RequestOptions{Hash: crypto.SHA1}) // the hash that every responder knows
	if err != nil {
		r.tell("revocation.forged", err.Error(), "no question can be made about "+named(c), "")
		return
	}
	body, err := f.do(ctx, address, question, mostOCSP)
	if err != nil {
		r.notFetched("OCSP answer", address, err)
		return
	}
	r.judgeOCSP("revocation.forged", "revocation.stale", "the OCSP answer of "+shorten(clean(address), 160), body, c, issuer, now)
}

// judgeOCSP judges an answer about c. The rules are those for one that is not the issuer's, and for one that is not fresh.
func (r *report) judgeOCSP(forged, stale, what string, body []byte, c, issuer *x509.Certificate, now time.Time) {
	answer, err := parseOCSP(body, c, issuer)
	var refused ocsp.ResponseError
	switch {
	case errors.As(err, &refused) && refused.Status == ocsp.Unauthorized:
		r.tell("revocation.unknown", "unauthorized", fmt.Sprintf("%s: the responder does not speak for the issuer of %s", what, named(c)), "")
		return
	case errors.As(err, &refused):
		r.tell("revocation.unreachable", refused.Status.String(), fmt.Sprintf("%s is an error", what), "")
		return
	case err != nil:
		r.tell(forged, err.Error(), fmt.Sprintf("%s is not one of %s about %s", what, named(issuer), named(c)), "")
		return
	}
	if err := responderMay(answer, issuer, now); err != nil {
		r.tell(forged, err.Error(), fmt.Sprintf("%s is signed by one who may not", what), "")
		return
	}
	switch {
	case !answer.NextUpdate.IsZero() && now.After(answer.NextUpdate):
		r.tell(stale, "nextUpdate "+stamp(answer.NextUpdate), fmt.Sprintf("%s is %s too old", what, span(now.Sub(answer.NextUpdate))), "")
	case answer.ThisUpdate.After(now.Add(clockSkew)):
		r.tell(stale, "thisUpdate "+stamp(answer.ThisUpdate), what+" is from the future; a clock is wrong", "timedatectl")
	case answer.Status == ocsp.Revoked:
		r.tell("revocation.revoked", fmt.Sprintf("%s since %s", crl.Reason(answer.RevocationReason), stamp(answer.RevokedAt)), fmt.Sprintf("%s is revoked, says %s", named(c), what), "")
	case answer.Status == ocsp.Unknown:
		r.tell("revocation.unknown", "unknown", fmt.Sprintf("%s does not know %s", what, named(c)), "")
	case answer.NextUpdate.IsZero():
		r.ok("revocation", "%s says that %s is good", what, named(c))
	default:
		r.ok("revocation", "%s says that %s is good, for another %s", what, named(c), span(answer.NextUpdate.Sub(now)))
	}
}

// parseOCSP reads an answer and checks its signature. One that is signed by the issuer and carries the issuer's own certificate,
// as OpenSSL's responder makes it, is the issuer's too.
func parseOCSP(body []byte, c, issuer *x509.Certificate) (*ocsp.Response, error) {
	answer, err := ocsp.ParseResponseForCert(body, c, issuer)
	var refused ocsp.ResponseError
	if err == nil || errors.As(err, &refused) {
		return answer, err
	}
	if own, bare := ocsp.ParseResponseForCert(body, c, nil); bare == nil && own.Certificate != nil && own.Certificate.Equal(issuer) {
		return own, nil
	}
	return nil, err
}

// responderMay holds a delegated responder to RFC 6960 section 4.2.2.2: its certificate is the issuer's own, in force, and for
// signing such answers. That the issuer signed it was checked.
func responderMay(answer *ocsp.Response, issuer *x509.Certificate, now time.Time) error {
	c := answer.Certificate
	switch {
	case c == nil, c.Equal(issuer):
		return nil
	case !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		return fmt.Errorf("the certificate of the responder (%s) has no OCSPSigning", subject(c))
	case now.Before(c.NotBefore.Add(-clockSkew)) || now.After(c.NotAfter):
		return fmt.Errorf("the certificate of the responder (%s) is valid from %s to %s", subject(c), stamp(c.NotBefore), stamp(c.NotAfter))
	}
	return nil
}

// lookAtStaple judges the OCSP answer that was sent along (RFC 6066 section 8), and its absence where the certificate demands
// one (RFC 7633).
func (r *report) lookAtStaple(staple []byte, full []*x509.Certificate, now time.Time) {
	c := full[0]
	demanded := slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}) })
	switch {
	case len(staple) == 0 && demanded:
		r.tell("staple.missing", "no answer", fmt.Sprintf("%s demands one in each handshake", named(c)), "")
	case len(staple) > 0 && len(full) > 1:
		r.judgeOCSP("staple.invalid", "staple.invalid", "the stapled OCSP answer", staple, c, full[1], now)
	}
}
