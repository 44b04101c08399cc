package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"chancery/internal/pki/ocsp"
	"chancery/internal/run/consumer"
)

// openSSL is `openssl ocsp` as a responder over an index of its own. It signs every answer and closes every connection.
// Its -port takes no address, so it listens on every one while its rounds last; its keys are worth nothing. It runs as one
// process: the children of -multi outlive a parent that is killed.
type openSSL struct {
	*consumer.Process
	target *target
}

func (o *openSSL) stop() {
	if o != nil {
		_ = o.Process.Stop()
	}
}

// startOpenSSL starts the peer where it was not measured yet in this run: its answers do not depend on our store.
func (b *bench) startOpenSSL(ctx context.Context, store string) (*openSSL, error) {
	if store != empty || b.opensslDone {
		return nil, nil
	}
	b.opensslDone = true
	dir := filepath.Join(b.dir, "openssl")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	questions, err := writeOpenSSL(dir, b.questions, time.Now())
	if err != nil {
		return nil, fmt.Errorf("configure openssl ocsp: %w", err)
	}
	address, err := consumer.FreeAddress()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(address)
	target := openSSLTarget(address, questions)
	p, err := consumer.Start(ctx, consumer.Program{
		Path: "openssl", Dir: dir,
		// Not consumer.Listening: a connection that is closed without a request holds it up for good.
		Ready: func(context.Context) error { return (&caller{target: target}).call() },
		Args:  []string{"ocsp", "-index", "index.txt", "-CA", "ca.pem", "-rsigner", "ca.pem", "-rkey", "ca.key", "-port", port},
	})
	if err != nil {
		return nil, err
	}
	return &openSSL{p, target}, nil
}

// openSSLTarget posts, since the GET of `openssl ocsp` takes no base64 with a slash in it.
func openSSLTarget(address string, all []*question) *target {
	t := cachedTarget(address, all)
	requests := make([]string, len(all))
	for i, q := range all {
		requests[i] = post(address, "/", ocsp.RequestType, len(q.der)) + "\r\n" + string(q.der)
	}
	next := make([]int, 1024)
	t.once = true
	t.request = func(buf []byte, client int) ([]byte, error) {
		next[client]++
		return append(buf, requests[(client*31+next[client])%len(requests)]...), nil
	}
	t.check = func(_, status int, body []byte) error {
		if status != http.StatusOK || len(body) < 100 {
			return fmt.Errorf("status %d with %d octets", status, len(body))
		}
		return nil
	}
	return t
}

// writeOpenSSL makes a CA and an index of n certificates, and the requests about them.
func writeOpenSSL(dir string, n int, now time.Time) ([]*question, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	issuer, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	var index strings.Builder
	all := make([]*question, n)
	for i := range all {
		serial := big.NewInt(int64(0x100000 + i))
		if all[i], err = ask(&x509.Certificate{SerialNumber: serial}, issuer); err != nil {
			return nil, err
		}
		fmt.Fprintf(&index, "V\t%s\t\t%X\tunknown\t/CN=host-%d\n", now.AddDate(0, 6, 0).UTC().Format("060102150405Z"), serial, i)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return all, errors.Join(
		os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(dir, "ca.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600),
		os.WriteFile(filepath.Join(dir, "index.txt"), []byte(index.String()), 0o600),
	)
}
