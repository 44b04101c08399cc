package cli

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
)

// underOfflineRoot makes an issuer whose root's key is in a file here: the node makes the issuer's key and its request, the
// root signs it in this process, and the node gets the certificate. The root's key never leaves this process.
func (c *issuerIssueCommand) underOfflineRoot(ctx context.Context, g *globals, api *client.Client, in client.CreateIssuerRequest) (*client.Issuer, error) {
	above, err := api.Issuer(ctx, c.Under)
	if err != nil {
		return nil, err
	}
	switch in.Pool { // refused before there is an issuer that waits for what it will not get
	case "":
		in.Pool = above.Pool
	case above.Pool:
	default:
		return nil, fault.New(fault.Conflict, "issuer %q would be of pool %q, but %q above it is of pool %q, and pools share no root, since consumers "+
			"let in whoever chains to theirs; pool %q, or no --pool, would pass", in.Name, in.Pool, above.Name, above.Pool, above.Pool)
	}
	block, _ := pem.Decode([]byte(above.PEM))
	if block == nil {
		return nil, fault.New(fault.Conflict, "issuer %s has no certificate yet", above.Name)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := g.offlineKey(c.KeyFile, c.PassphraseFile)
	if err != nil {
		return nil, err
	}
	r, err := root.Open(certificate, key)
	if err != nil {
		return nil, err
	}
	options, err := c.rootOptions()
	if err != nil {
		return nil, err
	}
	links, err := publishedBy(ctx, api, above.Name)
	if err != nil {
		return nil, err
	}
	// For the node the root is an outside one, which decides these.
	in.Kind, in.Parent, in.Validity, in.NameConstraints = "external", "", "", nil
	pending, err := api.CreateIssuer(ctx, in)
	if err != nil {
		return nil, err
	}
	signed, err := signRequest(r, pending, *options, links)
	if err != nil {
		return nil, fmt.Errorf("issuer %s waits for its certificate (chancery issuer csr %s): %w", pending.Name, pending.Name, err)
	}
	return api.ImportIssuerCertificate(ctx, pending.Name, client.IssuerCertificateRequest{
		Certificate: string(keyfile.EncodeCertificates(signed)), Chain: above.PEM,
	})
}

func (c *issuerIssueCommand) rootOptions() (*root.Options, error) {
	o := &root.Options{}
	if c.PathLen != nil {
		o.PathLen = *c.PathLen
	}
	var err error
	if c.Validity != "" {
		if o.Validity, err = lengthOf(c.Validity); err != nil {
			return nil, err
		}
	}
	o.Constraints, err = root.ParseConstraints(c.NameConstraints)
	return o, err
}

// publishedBy says where the node publishes an issuer's CRL and certificate; nowhere, without a public URL.
func publishedBy(ctx context.Context, api *client.Client, issuer string) (cert.Issuer, error) {
	set, err := api.Settings(ctx)
	if err != nil {
		return cert.Issuer{}, err
	}
	for _, f := range set.Fields {
		if base := strings.TrimSuffix(f.Value, "/"); f.Path == "public_url" && base != "" {
			return cert.Issuer{CRLDistributionPoints: []string{base + "/crl/" + issuer + ".crl"}, CAIssuers: []string{base + "/ca/" + issuer + ".cer"}}, nil
		}
	}
	return cert.Issuer{}, nil
}

func signRequest(r *root.Root, pending *client.Issuer, o root.Options, links cert.Issuer) (*x509.Certificate, error) {
	csr, err := cert.CSRLimits{}.ParsePEM([]byte(pending.CSR))
	if err != nil {
		return nil, err
	}
	o.Subject = csr.Subject
	return r.SignIssuer(o, csr.SPKI, links, time.Now())
}
