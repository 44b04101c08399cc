package loop

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
)

// Bundle is what a host needs from the authority to place a certificate without reaching it: the certification path, the
// trust, and the CRLs. It never holds a key: that lies in the state directory of the host that made the request.
//
// As a file it is PEM (RFC 7468) with these blocks, in this order, and nothing around them:
//
//	CHANCERY BUNDLE   JSON: {"version": 1, "authority": the common name of the pool's root}
//	CERTIFICATE       the certification path, leaf first, the root left out
//	CHANCERY ANCHOR   a certificate: a root to trust
//	CHANCERY ISSUER   a certificate: an issuer of the pool
//	X509 CRL          the newest complete CRL of one of them
type Bundle struct {
	Authority string
	Path      []*x509.Certificate
	Anchors   []*x509.Certificate
	Issuers   []*x509.Certificate
	CRLs      [][]byte // DER
}

// The types of a bundle's blocks.
const (
	blockBundle = "CHANCERY BUNDLE"
	blockPath   = "CERTIFICATE"
	blockAnchor = "CHANCERY ANCHOR"
	blockIssuer = "CHANCERY ISSUER"
	blockCRL    = "X509 CRL"
)

type bundleHead struct {
	Version   int    `json:"version"`
	Authority string `json:"authority"`
}

// Encode returns the bundle as a file.
func (b *Bundle) Encode() ([]byte, error) {
	head, err := json.Marshal(bundleHead{Version: 1, Authority: b.Authority})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	block := func(kind string, der []byte) { out.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})) }
	block(blockBundle, head)
	for _, of := range []struct {
		kind string
		list []*x509.Certificate
	}{{blockPath, b.Path}, {blockAnchor, b.Anchors}, {blockIssuer, b.Issuers}} {
		for _, c := range of.list {
			block(of.kind, c.Raw)
		}
	}
	for _, der := range b.CRLs {
		block(blockCRL, der)
	}
	return out.Bytes(), nil
}

// ParseBundle reads a bundle strictly: a block of another type, such as a key, and text around the blocks are refused.
func ParseBundle(text []byte) (*Bundle, error) {
	b := &Bundle{}
	seen := false
	for len(bytes.TrimSpace(text)) > 0 {
		if !bytes.HasPrefix(bytes.TrimSpace(text), []byte("-----BEGIN ")) {
			return nil, fault.New(fault.Invalid, "the bundle holds text outside its blocks")
		}
		block, rest := pem.Decode(text)
		if block == nil || len(block.Headers) > 0 {
			return nil, fault.New(fault.Invalid, "the bundle is cut short or changed: a block of it cannot be read")
		}
		if !seen && block.Type != blockBundle {
			return nil, fault.New(fault.Invalid, "this is no bundle: its first block is %q, and %q is wanted", block.Type, blockBundle).
				WithHint("make one: chancery cert issue --profile P --csr C --bundle F")
		}
		if seen && block.Type == blockBundle {
			return nil, fault.New(fault.Invalid, "these are two bundles in one file; give them one by one")
		}
		seen = true
		if err := b.take(block); err != nil {
			return nil, err
		}
		text = rest
	}
	switch {
	case len(b.Path) == 0:
		return nil, fault.New(fault.Invalid, "the bundle holds no certificate")
	case len(b.Anchors) == 0:
		return nil, fault.New(fault.Invalid, "the bundle holds no root to trust")
	}
	return b, nil
}

// take adds one block.
func (b *Bundle) take(block *pem.Block) error {
	switch block.Type {
	case blockBundle:
		var head bundleHead
		if err := json.Unmarshal(block.Bytes, &head); err != nil {
			return fault.New(fault.Invalid, "the head of the bundle cannot be read: %w", err)
		}
		if head.Version != 1 {
			return fault.New(fault.Invalid, "the bundle is of version %d, and this agent reads version 1", head.Version)
		}
		b.Authority = head.Authority
	case blockPath, blockAnchor, blockIssuer:
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fault.New(fault.Invalid, "a certificate of the bundle cannot be read: %w", err)
		}
		to := map[string]*[]*x509.Certificate{blockPath: &b.Path, blockAnchor: &b.Anchors, blockIssuer: &b.Issuers}[block.Type]
		*to = append(*to, c)
	case blockCRL:
		b.CRLs = append(b.CRLs, block.Bytes)
	default:
		return fault.New(fault.Invalid, "a bundle holds no block %q; %s, %s, %s, %s and %s pass", block.Type, blockBundle, blockPath, blockAnchor, blockIssuer, blockCRL)
	}
	return nil
}

// trust is the bundle's, with each CRL beside its issuer.
func (b *Bundle) trust() (*trusts, error) {
	t := &trust{authority: b.Authority, anchors: b.Anchors, loaded: true}
	add := func(list []*x509.Certificate) {
		for _, c := range list {
			known := false
			for _, i := range t.issuers {
				known = known || i.certificate.Equal(c)
			}
			if !known {
				issuer := trustIssuer{certificate: c}
				issuer.Name = nameOf(c)
				t.issuers = append(t.issuers, issuer)
			}
		}
	}
	add(b.Issuers)
	add(b.Anchors)
	for n, der := range b.CRLs {
		list, err := crl.Parse(der)
		if err != nil {
			return nil, fault.New(fault.Invalid, "CRL %d of the bundle: %w", n+1, err)
		}
		taken := false
		for i := range t.issuers {
			if !taken && list.CheckIssuer(t.issuers[i].certificate) == nil {
				t.issuers[i].crl, t.issuers[i].list, taken = der, list, true
			}
		}
		if !taken {
			return nil, fault.New(fault.Invalid, "CRL %d of the bundle is of none of its issuers", n+1)
		}
	}
	return &trusts{general: t}, nil
}

// nameOf is what an issuer is called where the authority's own name for it is not known.
func nameOf(c *x509.Certificate) string {
	name, err := cert.ParseNameDER(c.RawSubject)
	if err != nil {
		return c.Subject.String()
	}
	return name.String()
}
