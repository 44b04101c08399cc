package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/store/keys"
)

type rolloutCompleteCommand struct {
	rolloutID
	offlineRoot
	Validity  string `placeholder:"L" help:"How long a new root lasts; 20y when not given."`
	Algorithm string `placeholder:"A" help:"Of a new root's key; that of the root before when not given."`
}

// Run signs what a rollout waits for.
func (c *rolloutCompleteCommand) Run(ctx context.Context, g *globals) error {
	if c.RootFile == "" {
		return usage("give --root-file F: the key of the root that signs")
	}
	return g.rollout(func(api *client.Client) (*client.Rollout, error) {
		r, err := api.Rollout(ctx, currentRollout(c.ID))
		if err != nil {
			return nil, err
		}
		if r.CSR == "" {
			return nil, fault.New(fault.Conflict, "rollout %s waits for no root: it is %s, stage %s", r.ID, r.State, r.Stage).
				WithHint("chancery rollout status %s", r.ID)
		}
		return c.complete(ctx, g, api, r, c.Validity, c.Algorithm)
	})
}

// complete has the root sign the request of the new issuer, in this process, and brings in what it signed. The rollout is returned
// with an error too.
func (c *offlineRoot) complete(ctx context.Context, g *globals, api *client.Client, r *client.Rollout, validity, algorithm string) (*client.Rollout, error) {
	var in client.CompleteRolloutRequest
	var above *root.Root
	var err error
	if r.RootSubject == "" {
		above, err = c.openRoot(ctx, g, api, r.Root)
	} else {
		above, err = c.makeRoot(ctx, g, api, r, validity, algorithm)
	}
	if err != nil {
		return r, err
	}
	now := time.Now()
	if r.RootSubject != "" {
		list, err := above.SignCRL(big.NewInt(now.UnixMilli()), nil, now, 0)
		if err != nil {
			return r, err
		}
		in.Root = string(keyfile.EncodeCertificates(above.Certificate))
		in.CRL = string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}))
	}
	csr, err := cert.CSRLimits{}.ParsePEM([]byte(r.CSR))
	if err != nil {
		return r, err
	}
	links, err := publishedBy(ctx, api, r.Root)
	if err != nil {
		return r, err
	}
	issuer, err := above.SignIssuer(root.Options{Subject: csr.Subject}, csr.SPKI, links, now)
	if err != nil {
		return r, err
	}
	in.Issuer = string(keyfile.EncodeCertificates(issuer))
	done, err := api.CompleteRollout(ctx, r.ID, in)
	if err != nil {
		return r, err
	}
	if r.RootSubject != "" {
		g.say("the new root's key is in %s: take it off this machine", c.RootFile)
	}
	return done, nil
}

// openRoot opens the key of a root that is there.
func (c *offlineRoot) openRoot(ctx context.Context, g *globals, api *client.Client, name string) (*root.Root, error) {
	if name == "" {
		return nil, fault.New(fault.Conflict, "the root above is not here; have it sign the request that rollout status -o json shows").
			WithHint("chancery issuer import NAME brings in what it signed")
	}
	key, err := g.offlineKey(c.RootFile, c.PassphraseFile)
	if err != nil {
		return nil, err
	}
	certificate, err := certificateOf(ctx, api, name)
	if err != nil {
		return nil, err
	}
	return root.Open(certificate, key)
}

func certificateOf(ctx context.Context, api *client.Client, issuer string) (*x509.Certificate, error) {
	found, err := api.Issuer(ctx, issuer)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(found.PEM))
	if block == nil {
		return nil, fault.New(fault.Conflict, "issuer %s has no certificate yet", issuer)
	}
	return x509.ParseCertificate(block.Bytes)
}

// makeRoot makes a new root: its key is in a file, on disk, before anything of it leaves this process. A key that an earlier call
// has written is taken again, and so is the root's certificate where the node has it already.
func (c *offlineRoot) makeRoot(ctx context.Context, g *globals, api *client.Client, r *client.Rollout, validity, algorithm string) (*root.Root, error) {
	subject, err := cert.ParseName(r.RootSubject)
	if err != nil {
		return nil, err
	}
	o := root.Options{Subject: subject, PathLen: 1}
	if validity != "" {
		if o.Validity, err = lengthOf(validity); err != nil {
			return nil, err
		}
	}
	pool, err := api.Pool(ctx, r.Pool)
	if err != nil {
		return nil, err
	}
	var key crypto.Signer
	if _, err := os.Lstat(c.RootFile); err == nil {
		if key, err = g.offlineKey(c.RootFile, c.PassphraseFile); err != nil {
			return nil, err
		}
		if known, err := certificateOf(ctx, api, r.Root); err == nil {
			return root.Open(known, key)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if pool.Root != nil {
		before, err := certificateOf(ctx, api, pool.Root.Name)
		if err != nil {
			return nil, err
		}
		texts, err := root.ConstraintsOf(before)
		if err != nil {
			return nil, err
		}
		if o.Constraints, err = root.ParseConstraints(texts); err != nil {
			return nil, err
		}
		if algorithm == "" {
			algorithm = string(keyfile.AlgorithmOf(before.PublicKey))
		}
	}
	if key != nil {
		return root.New(o, key, time.Now())
	}
	return c.newRoot(g, o, algorithm)
}

// newRoot makes a root's key, its certificate, and the file.
func (c *offlineRoot) newRoot(g *globals, o root.Options, algorithm string) (*root.Root, error) {
	kind := keyfile.ECDSAP256
	if algorithm != "" {
		var err error
		if kind, err = keyfile.ParseAlgorithm(algorithm); err != nil {
			return nil, err
		}
	}
	passphrase, err := g.newPassphrase(c.PassphraseFile)
	if err != nil {
		return nil, err
	}
	key, err := keyfile.Generate(kind, 0)
	if err != nil {
		return nil, err
	}
	made, err := root.New(o, key, time.Now())
	if err != nil {
		return nil, err
	}
	sealed, err := keys.SealOffline(key, passphrase)
	if err != nil {
		return nil, err
	}
	if err := keyfile.WriteFile(c.RootFile, sealed, 0o600); err != nil {
		return nil, fmt.Errorf("write the root's key: %w", err)
	}
	return made, nil
}
