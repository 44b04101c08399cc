package path

import (
	"bytes"
	"crypto/x509"
	"slices"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// maxBuildSteps bounds the candidates that Build looks at, whatever cross-certificates it is given.
const maxBuildSteps = 256

// Build finds a valid path from leaf over intermediates to one of the anchors and returns it, leaf first. Candidates
// whose subjectKeyIdentifier is the one asked for come first. Where no path is valid, the refusal is that of the first
// complete path, or says whose issuer is missing.
func Build(leaf *x509.Certificate, intermediates, anchors []*x509.Certificate, options Options) ([]*x509.Certificate,
	error) {
	b := &builder{intermediates: intermediates, anchors: anchors, options: options}
	if path := b.extend([]*x509.Certificate{leaf}); path != nil {
		return path, nil
	}
	if b.steps > maxBuildSteps {
		return nil, fault.New(fault.TooLarge, "no certification path was found for %s within %d candidates", subjectText(leaf),
			maxBuildSteps)
	}
	if b.refusal != nil {
		return nil, b.refusal
	}
	missing := b.missing
	if missing == nil {
		missing = leaf
	}
	issuer, err := cert.ParseNameDER(missing.RawIssuer)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the issuer of %s has no readable name: %w", subjectText(missing), err)
	}
	return nil, fault.New(fault.Invalid, "no certification path: the issuer %q of %s is neither given nor trusted", issuer,
		subjectText(missing)).At("no issuer")
}

type builder struct {
	intermediates, anchors []*x509.Certificate
	options                Options
	steps                  int
	refusal                error             // of the first complete path
	missing                *x509.Certificate // the first certificate without a candidate
}

func (b *builder) extend(path []*x509.Certificate) []*x509.Certificate {
	last := path[len(path)-1]
	if slices.ContainsFunc(b.anchors, last.Equal) && b.try(path) {
		return path
	}
	if len(path) == maxPath {
		return nil
	}
	found := false
	for _, anchor := range candidates(last, b.anchors) {
		found = true
		if slices.ContainsFunc(path, anchor.Equal) {
			continue
		}
		if complete := append(slices.Clone(path), anchor); b.try(complete) {
			return complete
		}
	}
	for _, c := range candidates(last, b.intermediates) {
		found = true
		// A path with the same subject and key twice is a loop, whatever certificates say it (RFC 4158 5.2).
		loop := func(p *x509.Certificate) bool {
			return bytes.Equal(p.RawSubject, c.RawSubject) && bytes.Equal(p.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo)
		}
		b.steps++
		if slices.ContainsFunc(path, loop) || b.steps > maxBuildSteps || checkSignature(last, c) != nil {
			continue
		}
		if complete := b.extend(append(slices.Clone(path), c)); complete != nil {
			return complete
		}
	}
	if !found && b.missing == nil {
		b.missing = last
	}
	return nil
}

func (b *builder) try(path []*x509.Certificate) bool {
	if b.steps++; b.steps > maxBuildSteps {
		return false
	}
	_, err := Verify(path, b.options)
	if err != nil && b.refusal == nil {
		b.refusal = err
	}
	return err == nil
}

// candidates are those whose subject is c's issuer, the ones with the right key identifier first.
func candidates(c *x509.Certificate, from []*x509.Certificate) []*x509.Certificate {
	var right, others []*x509.Certificate
	for _, issuer := range from {
		if same, err := sameName(c.RawIssuer, issuer.RawSubject); err != nil || !same {
			continue
		}
		if len(c.AuthorityKeyId) > 0 && bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId) {
			right = append(right, issuer)
		} else {
			others = append(others, issuer)
		}
	}
	return append(right, others...)
}
