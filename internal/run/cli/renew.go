package cli

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// renewIdentity gives the caller a new key and certificate, in place of the old files, when two thirds of the old one's
// life are over: an identity is short-lived, and is renewed by being used. A failure is told and stops nothing; there is a
// third of a life for it.
func (g *globals) renewIdentity(ctx context.Context, api *client.Client, certFile, keyFile string, now time.Time) {
	text, err := keyfile.ReadFile(certFile, keyfile.MaxFile)
	if err != nil {
		return // the command itself will say so
	}
	path, err := keyfile.ParseCertificates(text)
	if err != nil || !renewalIsDue(path[0], now) {
		return
	}
	if err := enrolAnew(ctx, api, certFile, keyFile); err != nil {
		g.say("warning: the identity in %s ends on %s and was not renewed: %v", certFile, stamp(path[0].NotAfter), err)
	}
}

func renewalIsDue(c *x509.Certificate, now time.Time) bool {
	due := c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3)
	return now.After(due) && now.Before(c.NotAfter)
}

// enrolAnew replaces the key first: a command that runs in the moment between the two files finds that they are no pair,
// and fails before it has called anything.
func enrolAnew(ctx context.Context, api *client.Client, certFile, keyFile string) error {
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		return err
	}
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		return err
	}
	defer clear(text)
	csr, err := cert.CreateCSR(&cert.CSRTemplate{}, key)
	if err != nil {
		return err
	}
	identity, err := api.Enrol(ctx, "", client.EnrolRequest{CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))})
	if err != nil {
		return err
	}
	if err := keyfile.ReplaceFile(keyFile, text, 0o600); err != nil {
		return fmt.Errorf("replace the key: %w", err)
	}
	if err := keyfile.ReplaceFile(certFile, []byte(identity.PEM), 0o644); err != nil {
		return fmt.Errorf("replace the certificate: %w", err)
	}
	api.Close() // the next call shows the new one
	return nil
}
