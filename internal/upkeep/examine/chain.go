package examine

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/path"
)

// Trust is what peers trust, as far as the caller knows.
type Trust struct {
	Anchors []*x509.Certificate // roots
	Others  []*x509.Certificate // issuers below roots: what is missing in a path is named by them
	From    string              // where it is from, for the findings; empty where nothing was given
}

// ParseTrust reads a trust file: what is signed by itself is an anchor.
func ParseTrust(text []byte, from string) (*Trust, error) {
	all, err := keyfile.ParseCertificates(text)
	if err != nil {
		return nil, err
	}
	t := &Trust{From: from}
	for _, c := range all {
		if selfIssued(c) {
			t.Anchors = append(t.Anchors, c)
		} else {
			t.Others = append(t.Others, c)
		}
	}
	if len(t.Anchors) == 0 { // a consumer that trusts an issuer below a root
		t.Anchors, t.Others = t.Others, nil
	}
	return t, nil
}

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

func selfSigned(c *x509.Certificate) bool {
	return selfIssued(c) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// lookAtTrust tells of what stops a consumer that reads the trust file.
func (r *report) lookAtTrust(t *Trust, now time.Time) {
	for _, c := range t.Anchors {
		switch {
		case now.After(c.NotAfter):
			r.tell("trust.anchor", "notAfter "+stamp(c.NotAfter), fmt.Sprintf("%s in %s expired %s ago", named(c), t.From, span(now.Sub(c.NotAfter))), "")
		case now.Before(c.NotBefore):
			r.tell("trust.anchor", "notBefore "+stamp(c.NotBefore), fmt.Sprintf("%s in %s is not valid yet", named(c), t.From), "")
		case c.Version == 3 && !c.IsCA:
			r.tell("trust.anchor", "CA:FALSE", fmt.Sprintf("%s in %s is no CA's certificate", named(c), t.From), "")
		}
	}
}

// order judges the order of what was given and returns the path in it, leaf first. Of the root that ends it, sent or not,
// nothing is demanded here.
func (r *report) order(given []*x509.Certificate) []*x509.Certificate {
	var once []*x509.Certificate
	for i, c := range given {
		if at := slices.IndexFunc(once, c.Equal); at >= 0 {
			r.tell("path.duplicate", named(c), fmt.Sprintf("certificate %d of %d is there before", i+1, len(given)), "")
			continue
		}
		once = append(once, c)
	}
	chain := keyfile.PathFrom(once[0], once[1:])
	if r.where == "wire" && len(chain) > 1 && selfSigned(chain[len(chain)-1]) {
		r.tell("path.root", named(chain[len(chain)-1]), "the root is sent along", r.showRoot)
	}
	var places []string
	sorted := true
	for i, c := range chain {
		at := slices.IndexFunc(once, c.Equal)
		places = append(places, strconv.Itoa(at+1))
		sorted = sorted && at == i
	}
	if inOrder(chain, once) {
		sorted = true // at most something unrelated stands between, which is told below
	}
	if !sorted {
		at := 1
		for at < len(once)-1 && issued(once[at-1], once[at]) {
			at++
		}
		r.tell("path.order", "as given, the path is number "+strings.Join(places, ", "),
			fmt.Sprintf("certificate %d (%s) is not the issuer of certificate %d (%s)", at+1, subject(once[at]), at, subject(once[at-1])), "")
	}
	for i, c := range once {
		if !slices.ContainsFunc(chain, c.Equal) {
			r.tell("path.extra", named(c), fmt.Sprintf("certificate %d of %d does not belong to the path of %s", i+1, len(once), named(once[0])), "")
		}
	}
	if sorted && !r.has("path.extra", "path.duplicate") && len(chain) > 1 {
		r.ok("path", "a path of %d certificates, leaf first", len(chain))
	}
	return chain
}

// inOrder reports whether the certificates of chain stand among all in their order.
func inOrder(chain, all []*x509.Certificate) bool {
	last := -1
	for _, c := range chain {
		at := slices.IndexFunc(all, c.Equal)
		if at < last {
			return false
		}
		last = at
	}
	return true
}

func issued(c, issuer *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, issuer.RawSubject) && issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// reach judges whether a path reaches what is trusted, and returns it with what is above it as far as that is known. Usages
// are what its leaf is to be good for.
func (r *report) reach(ctx context.Context, chain []*x509.Certificate, t *Trust, usages []asn1.ObjectIdentifier, f *fetcher, now time.Time) []*x509.Certificate {
	top := chain[len(chain)-1]
	if len(t.Anchors) == 0 {
		return r.reachSystem(ctx, chain, f, now)
	}
	anchors := anchorsOf(top, t.Anchors)
	if len(anchors) > 0 {
		return r.verify(chain, anchors, t, usages, now)
	}
	if selfSigned(top) {
		if len(chain) == 1 && (r.where == "wire" || !top.IsCA) { // a root in a file is meant to be
			r.tell("trust.selfsigned", named(top), fmt.Sprintf("%s is signed by itself", named(top)), "")
		}
		r.tell("trust.untrusted", named(top), fmt.Sprintf("%s is not among the %d that are trusted (%s)", named(top), len(t.Anchors), t.From), "")
		return chain
	}
	for _, c := range t.Anchors {
		if bytes.Equal(c.RawSubject, top.RawIssuer) {
			r.tell("trust.untrusted", issuerName(top), fmt.Sprintf("an authority named %s is trusted, and another key of that name signed %s", issuerName(top), named(top)), "")
			return chain
		}
	}
	missing := missingOf(ctx, top, t.Others, f)
	if len(missing) == 0 {
		r.tell("path.incomplete", r.enumerate(chain), fmt.Sprintf("the issuer of %s is %s, which was not given and is no root that is trusted (%s): it is missing, "+
			"or the certificate is of another authority", named(top), issuerName(top), t.From), "")
		return chain
	}
	r.tell("path.incomplete", r.enumerate(chain), fmt.Sprintf("%s is missing, which issued %s; a peer that holds only the roots finds no path", named(missing[0]), named(top)), "")
	full := append(slices.Clone(chain), missing...)
	if anchors := anchorsOf(full[len(full)-1], t.Anchors); len(anchors) > 0 {
		return r.verify(full, anchors, t, usages, now)
	}
	return full
}

func (r *report) enumerate(chain []*x509.Certificate) string {
	if len(chain) == 1 {
		return "1 certificate: " + named(chain[0])
	}
	return fmt.Sprintf("%d certificates, the last is %s", len(chain), named(chain[len(chain)-1]))
}

// missingOf follows issuers from top upwards by what is known, and by what the certificates say about their issuers.
func missingOf(ctx context.Context, top *x509.Certificate, known []*x509.Certificate, f *fetcher) []*x509.Certificate {
	found := keyfile.PathFrom(top, known)[1:]
	for len(found) < 4 {
		last := top
		if len(found) > 0 {
			last = found[len(found)-1]
		}
		c := f.issuer(ctx, last)
		if selfSigned(last) || c == nil || c.Equal(last) {
			break
		}
		found = append(found, c)
	}
	return slices.DeleteFunc(found, selfSigned)
}

// anchorsOf are the anchors that c is, or that issued it.
func anchorsOf(c *x509.Certificate, anchors []*x509.Certificate) []*x509.Certificate {
	var found []*x509.Certificate
	for _, a := range anchors {
		if a.Equal(c) {
			return []*x509.Certificate{a}
		}
		if issued(c, a) {
			found = append(found, a)
		}
	}
	return found
}

// verify holds the path against RFC 5280 section 6. What has a rule of its own was told by that.
func (r *report) verify(chain, anchors []*x509.Certificate, t *Trust, usages []asn1.ObjectIdentifier, now time.Time) []*x509.Certificate {
	var refused error
	full := chain
	for _, anchor := range anchors {
		full = chain
		if !anchor.Equal(chain[len(chain)-1]) {
			full = append(slices.Clone(chain), anchor)
		}
		_, err := path.Verify(full, path.Options{Time: now, ExtKeyUsages: usages})
		if err == nil {
			r.ok("trust", "trusted by %s (%s)", named(anchor), t.From)
			return full
		}
		refused = err
	}
	if r.has("times.expired", "times.future", "usages.server", "usages.key", "signature.weak", "key.weak") {
		return full // the same, in other words
	}
	var f *fault.Error
	rule := "section 6"
	if errors.As(refused, &f) && f.Pointer != "" {
		rule = f.Pointer
	}
	r.tell("path.refused", rule, refused.Error(), "")
	return full
}

// reachSystem asks the operating system's store where nothing was given: a public certificate is then not called unknown.
func (r *report) reachSystem(ctx context.Context, chain []*x509.Certificate, f *fetcher, now time.Time) []*x509.Certificate {
	between, top := x509.NewCertPool(), chain[len(chain)-1]
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	roots, err := x509.SystemCertPool()
	if err == nil {
		options := x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if paths, err := chain[0].Verify(options); err == nil {
			r.ok("trust", "trusted by %s, which is in the operating system's store", named(paths[0][len(paths[0])-1]))
			return paths[0]
		}
	}
	switch missing := missingOf(ctx, top, nil, f); {
	case len(chain) == 1 && selfSigned(top):
		r.tell("trust.selfsigned", named(top), fmt.Sprintf("%s is signed by itself", named(top)), "")
		return chain
	case len(missing) > 0:
		r.tell("path.incomplete", r.enumerate(chain), fmt.Sprintf("%s is missing, which issued %s", named(missing[0]), named(top)), "")
		return append(slices.Clone(chain), missing...)
	case selfSigned(top):
		r.tell("trust.unknown", named(top), fmt.Sprintf("whether peers trust %s is not known here", named(top)), "")
	default:
		r.tell("trust.unknown", issuerName(top), fmt.Sprintf("the issuer of %s is %s: a root that peers may hold, or a certificate that is missing", named(top), issuerName(top)), "")
	}
	return chain
}

// serverAuth is id-kp-serverAuth, RFC 5280 section 4.2.1.12.
func serverAuth() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1} }

// purposesOf reads the extKeyUsage of a certificate; present says whether it has one.
func purposesOf(c *x509.Certificate) (purposes []asn1.ObjectIdentifier, critical, present bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 37}) {
			purposes, err := cert.ParseKeyPurposes(e.Value)
			return purposes, e.Critical, err == nil
		}
	}
	return nil, false, false
}
