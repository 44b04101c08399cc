package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// writeBundle writes what a host needs to place a certificate without reaching the authority: chancery agent place takes it.
func (g *globals) writeBundle(ctx context.Context, api *client.Client, c *client.Certificate, file string) error {
	bundle, err := bundleOf(ctx, api, c)
	if err != nil {
		return fmt.Errorf("%s is issued, but its bundle was not made: %w", c.Serial, err)
	}
	text, err := bundle.Encode()
	if err != nil {
		return err
	}
	if err := g.write(file, text, 0o644); err != nil {
		return fmt.Errorf("%s is issued, but its bundle was not written: %w", c.Serial, err)
	}
	return nil
}

// bundleOf collects the path of a certificate, the trust of its pool, and the CRLs in force of the pool's issuers.
func bundleOf(ctx context.Context, api *client.Client, c *client.Certificate) (*loop.Bundle, error) {
	path, err := keyfile.ParseCertificates([]byte(c.PEM + c.Chain))
	if err != nil {
		return nil, err
	}
	b := &loop.Bundle{Path: path}
	of, err := api.Issuer(ctx, c.Issuer)
	if err != nil {
		return nil, err
	}
	for listed, err := range api.Issuers(ctx) {
		if err != nil {
			return nil, err
		}
		if listed.Pool != of.Pool {
			continue
		}
		issuer, err := api.Issuer(ctx, listed.Name)
		if err != nil {
			return nil, err
		}
		if err := addIssuer(ctx, api, b, issuer); err != nil {
			return nil, err
		}
	}
	if len(b.Anchors) == 0 { // the root is not in this authority; it may stand above the issuer all the same
		chain, err := api.Chain(ctx, of.Name)
		if err != nil {
			return nil, err
		}
		above, err := keyfile.ParseCertificates(chain)
		if err != nil {
			return nil, err
		}
		for _, certificate := range above {
			if bytes.Equal(certificate.RawSubject, certificate.RawIssuer) {
				b.Anchors = append(b.Anchors, certificate)
			}
		}
	}
	if len(b.Anchors) == 0 {
		return nil, fault.New(fault.Conflict, "the root of pool %s is not known here, and a bundle holds what to trust", of.Pool).
			WithHint("chancery issuer import %s --certificate F, with the root behind the issuer's certificate", of.Name)
	}
	b.Authority = b.Anchors[0].Subject.CommonName
	return b, nil
}

// addIssuer adds an issuer's certificate, as an anchor where it is a root, and its CRL in force.
func addIssuer(ctx context.Context, api *client.Client, b *loop.Bundle, issuer *client.Issuer) error {
	if issuer.PEM == "" {
		return nil // it waits for its certificate
	}
	certificates, err := keyfile.ParseCertificates([]byte(issuer.PEM))
	if err != nil {
		return fmt.Errorf("read the certificate of issuer %s: %w", issuer.Name, err)
	}
	if issuer.Root {
		b.Anchors = append(b.Anchors, certificates[0])
	} else {
		b.Issuers = append(b.Issuers, certificates[0])
	}
	if issuer.CRL == nil {
		return nil
	}
	var der bytes.Buffer
	if err := api.DownloadCRL(ctx, &der, issuer.Name, "current", "", "der"); err != nil {
		return fmt.Errorf("fetch the CRL of %s: %w", issuer.Name, err)
	}
	if _, err := x509.ParseRevocationList(der.Bytes()); err != nil {
		return fmt.Errorf("read the CRL of %s: %w", issuer.Name, err)
	}
	b.CRLs = append(b.CRLs, der.Bytes())
	return nil
}
