package cli

import (
	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/upkeep/datadir"
)

// clientOptions puts together where to connect and as whom: the flags come first, then the data directory. The files are
// those of the caller's identity; empty where the caller has a token.
func (g *globals) clientOptions() (o *client.Options, certFile, keyFile string, err error) {
	o = &client.Options{Address: g.Address, UserAgent: "chancery/" + version}
	rootFile := g.IdentityRoot
	certFile, keyFile = g.Cert, g.CertKey
	if (certFile == "") != (keyFile == "") {
		return nil, "", "", usage("--cert and --cert-key go together")
	}
	if g.Dir != "" {
		dir := datadir.Dir(g.Dir)
		if o.Address == "" {
			config, err := dir.Load()
			if err != nil {
				return nil, "", "", err
			}
			o.Address = config.Address
		}
		if rootFile == "" {
			rootFile = dir.IdentityRoot()
		}
		if certFile == "" && g.TokenFile == "" {
			certFile, keyFile = dir.AdminCert(), dir.AdminKey()
		}
	}
	if o.Address == "" || rootFile == "" {
		return nil, "", "", fault.New(fault.Invalid, "no node to talk to: give --dir, or --address and --identity-root").
			WithHint("export CHANCERY_DIR=/var/lib/chancery")
	}
	if o.Roots, err = client.RootsFile(rootFile); err != nil {
		return nil, "", "", err
	}
	if g.TokenFile != "" {
		token, err := g.secret(g.TokenFile, "token")
		if err != nil {
			return nil, "", "", err
		}
		o.Token = string(token)
		return o, "", "", nil
	}
	if certFile == "" {
		return nil, "", "", fault.New(fault.Invalid, "no credential: give --dir, --token-file, or --cert and --cert-key")
	}
	o.Certificate = client.CertificateFiles(certFile, keyFile)
	return o, certFile, keyFile, nil
}
