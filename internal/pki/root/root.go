// Package root is a root as its owner uses it, away from the authority: it makes the root's key and certificate, signs the
// issuers under it, and signs its CRL. Everything here happens in the caller's process and memory; nothing is stored.
//
// RFC 5280 §4 and §5. A root names no CRL and no OCSP responder for itself: nothing above it could sign them. It signs a
// CRL at once all the same, because consumers such as libvirt, PostgreSQL and stunnel want one for every issuer of a path.
package root

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"math/big"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
)

const (
	// Validity is how long a root lasts where its owner does not say.
	Validity = 20 * 365 * 24 * time.Hour
	// IssuerValidity is how long an issuer under it lasts: it is re-keyed well before the root ends.
	IssuerValidity = 10 * 365 * 24 * time.Hour
	// CRLValidity is how long the CRL of an offline root lasts: its key is fetched once a year, with a month to spare.
	CRLValidity = 400 * 24 * time.Hour
	// Backdate is how far before now a certificate begins, for consumers whose clocks are behind.
	Backdate = 5 * time.Minute
)

// Options say what root is to be made.
type Options struct {
	Subject     cert.Name
	Validity    time.Duration         // 0: Validity
	PathLen     int                   // how many CA certificates may stand between it and a leaf; -1 for no limit
	Constraints *cert.NameConstraints // names that may be certified below it; nil for all
}

// Root is a CA certificate that nobody signed but itself, and its key.
type Root struct {
	Certificate *x509.Certificate
	Signer      crypto.Signer
}

// New makes the certificate of a root that has the given key.
func New(o Options, key crypto.Signer, now time.Time) (*Root, error) {
	spki, err := cert.MarshalPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	tbs, err := build(o, spki, Validity, now, func(t *cert.Template, serial *big.Int) (*cert.TBS, error) {
		return cert.BuildSelfSigned(t, spki, serial, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	certificate, err := sign(tbs, key)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	return &Root{Certificate: certificate, Signer: key}, nil
}

// Open pairs a root's certificate with its key, and refuses what is no root.
func Open(certificate *x509.Certificate, key crypto.Signer) (*Root, error) {
	if err := keyfile.CheckPair(key.Public(), certificate); err != nil {
		return nil, err
	}
	if !certificate.IsCA || certificate.CheckSignatureFrom(certificate) != nil {
		return nil, fault.New(fault.Invalid, "%q is no root: a root has CA:TRUE and is signed by its own key", certificate.Subject)
	}
	return &Root{Certificate: certificate, Signer: key}, nil
}

// SignIssuer certifies the key spki as an issuer under the root. Links name where the root publishes.
func (r *Root) SignIssuer(o Options, spki []byte, links cert.Issuer, now time.Time) (*x509.Certificate, error) {
	links.Certificate = r.Certificate
	tbs, err := build(o, spki, IssuerValidity, now, func(t *cert.Template, serial *big.Int) (*cert.TBS, error) {
		t.CRLDistributionPoints, t.CAIssuers = links.CRLDistributionPoints, links.CAIssuers
		t.FreshestCRL, t.OCSPServers = links.FreshestCRL, links.OCSPServers
		if t.NotAfter.After(r.Certificate.NotAfter) && o.Validity == 0 {
			t.NotAfter = r.Certificate.NotAfter
		}
		return cert.Build(t, spki, serial, &links)
	})
	if err != nil {
		return nil, fmt.Errorf("issuer certificate: %w", err)
	}
	certificate, err := sign(tbs, r.Signer)
	if err != nil {
		return nil, fmt.Errorf("issuer certificate: %w", err)
	}
	return certificate, nil
}

// SignCRL signs the root's CRL; number must be larger than that of the one before.
func (r *Root) SignCRL(number *big.Int, entries []crl.Entry, thisUpdate time.Time, validity time.Duration) ([]byte, error) {
	if validity == 0 {
		validity = CRLValidity
	}
	der, err := crl.Encode(&crl.Spec{
		Issuer: r.Certificate, Number: number, ThisUpdate: thisUpdate, NextUpdate: thisUpdate.Add(validity),
	}, entries, r.Signer)
	if err != nil {
		return nil, fmt.Errorf("root CRL: %w", err)
	}
	return der, nil
}

// build lints the TBSCertificate of a CA that encode makes of the usual template.
func build(o Options, spki []byte, validity time.Duration, now time.Time, encode func(*cert.Template, *big.Int) (*cert.TBS, error)) (*cert.Linted, error) {
	if o.Validity != 0 {
		validity = o.Validity
	}
	serial, err := cert.NewSerial()
	if err != nil {
		return nil, err
	}
	now = now.UTC().Truncate(time.Second)
	tbs, err := encode(&cert.Template{
		Subject: o.Subject, NotBefore: now.Add(-Backdate), NotAfter: now.Add(validity),
		BasicConstraints: &cert.BasicConstraints{CA: true, PathLen: o.PathLen},
		KeyUsage:         x509.KeyUsageCertSign | x509.KeyUsageCRLSign, KeyUsageCritical: true,
		NameConstraints: o.Constraints,
	}, serial)
	if err != nil {
		return nil, err
	}
	return tbs.Lint(cert.Lints{})
}

func sign(linted *cert.Linted, key crypto.Signer) (*x509.Certificate, error) {
	der, err := linted.SignVerified(key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ParseConstraints reads name constraints as an operator writes them: permitted names as "+dns:example.com" or
// "dns:example.com", excluded ones as "!ip:10.0.0.0/8" or "-ip:10.0.0.0/8". No text at all means no constraints.
func ParseConstraints(texts []string) (*cert.NameConstraints, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	var c cert.NameConstraints
	for _, text := range texts {
		name := strings.TrimLeft(text, "!-")
		excluded := len(name) < len(text)
		g, err := cert.ParseGeneralName(strings.TrimPrefix(name, "+"))
		if err != nil {
			return nil, fault.New(fault.Invalid, "name constraint %q: %w", text, err)
		}
		if excluded {
			c.Excluded = append(c.Excluded, g)
		} else {
			c.Permitted = append(c.Permitted, g)
		}
	}
	return &c, nil
}

// ConstraintsOf writes the name constraints of a CA certificate as ParseConstraints reads them.
func ConstraintsOf(c *x509.Certificate) ([]string, error) {
	var texts []string
	for _, e := range c.Extensions {
		if !e.Id.Equal(cert.OIDNameConstraints) {
			continue
		}
		read, err := cert.ParseNameConstraints(e.Value)
		if err != nil {
			return nil, fmt.Errorf("name constraints of %q: %w", c.Subject, err)
		}
		for _, g := range read.Permitted {
			texts = append(texts, "+"+g.String())
		}
		for _, g := range read.Excluded {
			texts = append(texts, "!"+g.String())
		}
	}
	return texts, nil
}
