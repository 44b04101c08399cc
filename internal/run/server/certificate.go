package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"chancery/internal/fault"
	certs "chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/datadir"
	"github.com/google/renameio/v2"
)

// certificate is the node's TLS certificate. The node issues it to itself under the issuer of identities, or asks another that can,
// with a new key each time, and renews it at two thirds of its life; a handshake takes what is newest. It is kept in a file beside
// the node's key, so that a node whose database is read-only at its start can still be talked to.
type certificate struct {
	file    string
	names   []string // as general names: dns:…, ip:…
	enrol   func(ctx context.Context, key crypto.Signer, names []string) (path [][]byte, err error)
	logger  *slog.Logger
	current atomic.Pointer[tls.Certificate]
}

// get is tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := c.current.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("the node has no TLS certificate")
}

// open takes up the stored certificate if it is still good for its names, and gets a new one otherwise.
func (c *certificate) open(ctx context.Context, now time.Time) error {
	stored, err := c.load()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.logger.Warn("the stored TLS certificate is of no use; a new one is issued", "file", c.file, "error", err)
	}
	if stored != nil {
		c.current.Store(stored)
		if now.Before(renewal(stored.Leaf)) && c.covers(stored.Leaf) {
			return nil
		}
	}
	err = c.renew(ctx)
	if err != nil && stored != nil && now.Before(stored.Leaf.NotAfter) {
		c.logger.Error("the TLS certificate was not renewed", "not_after", stored.Leaf.NotAfter, "error", err)
		return nil // Run tries again
	}
	if fault.Is(err, fault.Unavailable) {
		// What is public needs no certificate, and a node answers that which starts while the primary is away, or whose clock is ahead.
		c.logger.Error("the node has no TLS certificate that is good, and its API answers nobody until it has one", "error", err)
		return nil
	}
	return err
}

// covers says whether the certificate has all names it should have.
func (c *certificate) covers(leaf *x509.Certificate) bool {
	for _, name := range c.names {
		kind, value, _ := strings.Cut(name, ":")
		if kind == "dns" && !slices.Contains(leaf.DNSNames, value) {
			return false
		}
		if kind == "ip" && !slices.ContainsFunc(leaf.IPAddresses, net.ParseIP(value).Equal) {
			return false
		}
	}
	return true
}

// renewal is the time at two thirds of a certificate's life.
func renewal(leaf *x509.Certificate) time.Time {
	return leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3)
}

// Run renews until ctx ends. A failed renewal is tried again every minute; there is a third of a life for it.
func (c *certificate) Run(ctx context.Context) error {
	return again(ctx, c.wait(), func(ctx context.Context) time.Duration {
		if cert := c.current.Load(); cert == nil || !time.Now().Before(renewal(cert.Leaf)) {
			if err := c.renew(ctx); err != nil {
				c.logger.Error("the TLS certificate was not renewed", "error", err)
			}
		}
		return c.wait()
	})
}

// wait is how long nothing is to be done; the clock may jump, so it is looked at within the hour.
func (c *certificate) wait() time.Duration {
	if cert := c.current.Load(); cert != nil {
		return min(max(time.Until(renewal(cert.Leaf)), time.Minute), time.Hour)
	}
	return 5 * time.Second
}

// again calls look after a while, and again after what it returns, until ctx ends.
func again(ctx context.Context, first time.Duration, look func(context.Context) time.Duration) error {
	t := time.NewTimer(first)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			t.Reset(look(ctx))
		}
	}
}

func (c *certificate) renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make TLS key: %w", err)
	}
	path, err := c.enrol(ctx, key, c.names)
	if err != nil {
		return fmt.Errorf("issue TLS certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(path[0])
	if err != nil {
		return fmt.Errorf("parse TLS certificate: %w", err)
	}
	cert := &tls.Certificate{Certificate: path, PrivateKey: key, Leaf: leaf}
	if err := c.save(cert, key); err != nil {
		c.logger.Warn("the TLS certificate was not stored", "file", c.file, "error", err)
	}
	c.current.Store(cert)
	c.logger.Info("new TLS certificate", "serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter)
	return nil
}

func (c *certificate) save(cert *tls.Certificate, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range cert.Certificate {
		pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: c})
	}
	return renameio.WriteFile(c.file, text.Bytes(), 0o600, renameio.IgnoreUmask())
}

func (c *certificate) load() (*tls.Certificate, error) {
	text, err := keyfile.ReadSecret(c.file, keyfile.MaxFile)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, err
	}
	return &cert, nil
}

// serverNames are the names by which clients may reach the node: the address they are told, the one it listens on, what
// the configuration adds, and this machine. A node that issues nothing itself gets those that it joined with, and no others: not the one it
// listens on, which may be another's as well.
func serverNames(c *datadir.Config, issues bool) []string {
	hosts := append([]string{"localhost", "127.0.0.1", "::1"}, c.TLSNames...)
	if u, err := url.Parse(c.Address); err == nil {
		hosts = append(hosts, u.Hostname())
	}
	if host, _, err := net.SplitHostPort(c.Listen.API); err == nil && issues {
		hosts = append(hosts, host)
	}
	var names []string
	for _, host := range hosts {
		if ip, err := netip.ParseAddr(host); err == nil {
			if ip.IsUnspecified() {
				continue
			}
			host = ip.WithZone("").Unmap().String()
		}
		if name := certs.HostName(host); host != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
