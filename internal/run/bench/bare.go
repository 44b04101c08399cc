package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"chancery/internal/pki/ocsp"
	"chancery/internal/run/consumer"
)

// repeat calls work from so many goroutines for a while, once at least from each, and returns how often a second it was done.
func repeat(ctx context.Context, workers int, length time.Duration, work func() error) (float64, error) {
	var (
		count  atomic.Int64
		failed error
		once   sync.Once
		all    sync.WaitGroup
	)
	start := time.Now()
	end := start.Add(length)
	for range workers {
		all.Go(func() {
			for first := true; ctx.Err() == nil && (first || time.Now().Before(end)); first = false {
				if err := work(); err != nil {
					once.Do(func() { failed = err })
					return
				}
				count.Add(1)
			}
		})
	}
	all.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	return float64(count.Load()) / time.Since(start).Seconds(), failed
}

// bareCreate returns a function that creates one certificate of the shape that is issued in the benchmark, and keeps none.
func bareCreate() (func() error, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	subject, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	issuer := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bare issuer"}, SubjectKeyId: bytes.Repeat([]byte{7}, 20),
		NotBefore: now, NotAfter: now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	const url = "http://127.0.0.1:8080"
	return func() error {
		serial := make([]byte, 20)
		rand.Read(serial)
		serial[0] &= 0x7f
		_, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: "host.bench.example"},
			NotBefore: now, NotAfter: now.AddDate(0, 3, 0), BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			DNSNames: []string{"host.bench.example"}, CRLDistributionPoints: []string{url + "/crl/issuer.crl"},
			OCSPServer: []string{url + "/ocsp"}, IssuingCertificateURL: []string{url + "/ca/issuer.cer"},
		}, issuer, subject.Public(), key)
		return err
	}, nil
}

// bareSign returns a function that makes one P-256 signature.
func bareSign() (func() error, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	digest := make([]byte, 32)
	rand.Read(digest)
	return func() error {
		_, err := ecdsa.SignASN1(rand.Reader, key, digest)
		return err
	}, nil
}

// ServeBare answers every request with so many octets, as little as net/http can do; with sign, it makes a P-256 signature
// for each. It is the process beside which the OCSP responder is measured.
func ServeBare(ctx context.Context, address string, octets int, sign bool) error {
	socket, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	body := bytes.Repeat([]byte{0x30}, octets)
	length := strconv.Itoa(octets)
	signature, err := bareSign()
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sign {
			if err := signature(); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		w.Header().Set("Content-Type", ocsp.ResponseType)
		w.Header().Set("Content-Length", length)
		w.Write(body)
	})}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(socket); ctx.Err() == nil {
		return err
	}
	return nil
}

// startBare runs ServeBare in a process of its own.
func (b *bench) startBare(ctx context.Context, octets int, sign bool) (*consumer.Process, string, error) {
	address, err := consumer.FreeAddress()
	if err != nil {
		return nil, "", err
	}
	args := []string{"bench", "--bare", address, "--octets", strconv.Itoa(octets)}
	if sign {
		args = append(args, "--sign")
	}
	p, err := consumer.Start(ctx, consumer.Program{Path: b.Program, Args: args, Ready: consumer.Listening(address)})
	if err != nil {
		return nil, "", fmt.Errorf("start the bare handler: %w", err)
	}
	return p, address, nil
}
