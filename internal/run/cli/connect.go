package cli

import (
	"os"

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
		if err := ownerOnly(g.TokenFile, "a token"); err != nil {
			return nil, "", "", err
		}
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
	if err := ownerOnly(keyFile, "the key of an identity"); err != nil {
		return nil, "", "", err
	}
	o.Certificate = client.CertificateFiles(certFile, keyFile)
	return o, certFile, keyFile, nil
}

// ownerOnly refuses a file that others may read: what it holds may have been taken already, and narrowing the mode would
// hide that. What is no file, such as a pipe or standard input, passes.
func ownerOnly(path, what string) error {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o077 == 0 {
		return nil // a file that is not there is told by whoever reads it
	}
	return fault.New(fault.Invalid, "%s holds %s and has mode %04o, so others may have read it; 0600 is wanted", path, what, st.Mode().Perm()).
		WithHint("replace what it holds, or where nobody else is on this machine: chmod 600 %s", path)
}
