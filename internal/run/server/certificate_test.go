package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chancery/internal/upkeep/datadir"
)

// issuer is enough of a CA to issue what certificate asks for.
type issuer struct {
	t     *testing.T
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate
	count int
	fail  error
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "identities"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().Add(1e6 * time.Hour),
	}}
	return i
}

func (i *issuer) enrol(_ context.Context, key crypto.Signer, names []string) ([][]byte, error) {
	i.count++
	if i.fail != nil {
		return nil, i.fail
	}
	now := time.Now()
	leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(100 + i.count)), NotBefore: now, NotAfter: now.Add(90 * 24 * time.Hour)}
	for _, name := range names {
		kind, value, _ := strings.Cut(name, ":")
		if kind == "dns" {
			leaf.DNSNames = append(leaf.DNSNames, value)
		} else {
			leaf.IPAddresses = append(leaf.IPAddresses, net.ParseIP(value))
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, i.cert, key.Public(), i.key)
	return [][]byte{der}, err
}

func (i *issuer) certificate(file string, names ...string) *certificate {
	return &certificate{file: file, names: names, enrol: i.enrol, logger: slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))}
}

func serialOf(t *testing.T, c *certificate) int64 {
	t.Helper()
	got, err := c.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	return got.Leaf.SerialNumber.Int64()
}

func TestCertificateIsKeptAndRenewedAtTwoThirds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tls.pem")
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		c := i.certificate(file, "dns:pki.example", "ip:127.0.0.1")
		if err := c.open(t.Context(), time.Now()); err != nil || serialOf(t, c) != 101 {
			t.Fatal(err)
		}
		if stat, err := os.Stat(file); err != nil || stat.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", stat, err)
		}
		again := i.certificate(file, "dns:pki.example", "ip:127.0.0.1")
		if err := again.open(t.Context(), time.Now()); err != nil || serialOf(t, again) != 101 || i.count != 1 {
			t.Fatalf("a restart issued anew: %v", err)
		}
		renamed := i.certificate(file, "dns:pki.example", "dns:other.example")
		if err := renamed.open(t.Context(), time.Now()); err != nil || serialOf(t, renamed) != 102 {
			t.Fatalf("a new name was not certified: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- again.Run(ctx) }()
		time.Sleep(59 * 24 * time.Hour)
		if synctest.Wait(); serialOf(t, again) != 101 {
			t.Fatal("renewed before two thirds of its life")
		}
		time.Sleep(2 * 24 * time.Hour)
		if synctest.Wait(); serialOf(t, again) != 103 {
			t.Fatalf("not renewed at two thirds of its life: %d", serialOf(t, again))
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	})
}

func TestFailedRenewalKeepsWhatIsGood(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tls.pem")
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		if err := i.certificate(file, "dns:a.example").open(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		i.fail = errors.New("the store is read-only")
		time.Sleep(70 * 24 * time.Hour)
		c := i.certificate(file, "dns:a.example")
		if err := c.open(t.Context(), time.Now()); err != nil || serialOf(t, c) != 101 {
			t.Fatalf("a certificate that is good for 20 days was not used: %v", err)
		}
		time.Sleep(21 * 24 * time.Hour)
		if err := i.certificate(file, "dns:a.example").open(t.Context(), time.Now()); err == nil {
			t.Fatal("an expired certificate was used")
		}
	})
}

func TestReadableKeyIsReplaced(t *testing.T) {
	i, file := newIssuer(t), filepath.Join(t.TempDir(), "tls.pem")
	if err := i.certificate(file, "dns:a.example").open(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	c := i.certificate(file, "dns:a.example")
	if err := c.open(t.Context(), time.Now()); err != nil || serialOf(t, c) != 102 {
		t.Fatalf("a key that others could read was used again: %v", err)
	}
}

func TestServerNames(t *testing.T) {
	got := serverNames(&datadir.Config{
		Address: "https://pki.example:8443", Listen: datadir.Listen{API: "0.0.0.0:8443"}, TLSNames: []string{"192.0.2.1", "fe80::1%eth0", "localhost"},
	}, true)
	want := []string{"dns:localhost", "ip:127.0.0.1", "ip:::1", "ip:192.0.2.1", "ip:fe80::1", "dns:pki.example"}
	if !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}
