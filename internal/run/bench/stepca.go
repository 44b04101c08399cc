package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"chancery/internal/run/consumer"
)

// stepCA is the peer for issuance: a step-ca with a root, an intermediate and a JWK provisioner, on its own durable store
// (badgerv2, which syncs each write), as its own init sets it up.
type stepCA struct {
	*consumer.Process
	dir     string
	address string
	tls     *tls.Config

	key    *ecdsa.PrivateKey // of the provisioner
	header string            // of its tokens, encoded
	ready  chan string       // request bodies made beforehand
	csrs   []request         // in turn; it is the tokens that are good for one call
	target *target
}

// startStepCA runs the program on a new store below dir.
func startStepCA(ctx context.Context, program, dir string, csrs []request) (*stepCA, error) {
	address, err := consumer.FreeAddress()
	if err != nil {
		return nil, err
	}
	s := &stepCA{dir: filepath.Join(dir, "step-ca"), address: address, csrs: csrs}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	if err := s.configure(time.Now()); err != nil {
		return nil, fmt.Errorf("configure step-ca: %w", err)
	}
	s.target = s.sign()
	s.Process, err = consumer.Start(ctx, consumer.Program{
		Path: program, Args: []string{filepath.Join(s.dir, "ca.json")}, Dir: s.dir, Ready: consumer.Listening(address),
	})
	return s, err
}

// configure writes its keys, certificates and ca.json.
func (s *stepCA) configure(now time.Time) error {
	keys := make([]*ecdsa.PrivateKey, 3)
	for i := range keys {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return err
		}
	}
	ca := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	root, intermediate := ca(1, "bench root"), ca(2, "bench intermediate")
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, keys[0].Public(), keys[0])
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, intermediate, root, keys[1].Public(), keys[0])
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		return err
	}
	for name, block := range map[string]*pem.Block{
		"root.crt": {Type: "CERTIFICATE", Bytes: rootDER}, "intermediate.crt": {Type: "CERTIFICATE", Bytes: der},
		"intermediate.key": {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	parsed, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	s.tls = &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
	s.key = keys[2]
	return s.writeConfig()
}

func (s *stepCA) writeConfig() error {
	point, err := s.key.PublicKey.Bytes()
	if err != nil {
		return err
	}
	jwk := map[string]string{"kty": "EC", "crv": "P-256", "x": base64url(point[1:33]), "y": base64url(point[33:]), "use": "sig", "alg": "ES256"}
	thumbprint := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + jwk["x"] + `","y":"` + jwk["y"] + `"}`)) // RFC 7638
	jwk["kid"] = base64url(thumbprint[:])
	s.header = base64url([]byte(`{"alg":"ES256","kid":"` + jwk["kid"] + `","typ":"JWT"}`))
	type object = map[string]any
	config, err := json.MarshalIndent(object{
		"root": "root.crt", "crt": "intermediate.crt", "key": "intermediate.key", "address": s.address, "dnsNames": []string{"127.0.0.1"},
		"logger":    object{"format": "text"},
		"db":        object{"type": "badgerv2", "dataSource": filepath.Join(s.dir, "db"), "badgerFileLoadingMode": ""},
		"authority": object{"provisioners": []any{object{"type": "JWK", "name": "bench", "key": jwk}}},
	}, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "ca.json"), config, 0o600)
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// token makes a one-time token for a name.
func (s *stepCA) token(name string, now time.Time) (string, error) {
	claims, err := json.Marshal(map[string]any{
		"aud": "https://" + s.address + "/1.0/sign", "iss": "bench", "sub": name, "sans": []string{name}, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	if err != nil {
		return "", err
	}
	signing := s.header + "." + base64url(claims)
	digest := sha256.Sum256([]byte(signing))
	r, t, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64) // RFC 7518 §3.4
	r.FillBytes(signature[:32])
	t.FillBytes(signature[32:])
	return signing + "." + base64url(signature), nil
}

// prepare makes n requests beforehand: a token is good for one.
func (s *stepCA) prepare(n int) error {
	s.ready = make(chan string, n)
	now := time.Now()
	var all sync.WaitGroup
	var failed atomic.Pointer[error]
	const workers = 4
	for w := range workers {
		all.Go(func() {
			for i := w; i < n; i += workers {
				csr := &s.csrs[i%len(s.csrs)]
				token, err := s.token(csr.name, now)
				if err == nil {
					var body []byte
					body, err = json.Marshal(map[string]string{"csr": csr.pem, "ott": token})
					s.ready <- string(body)
				}
				if err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return fmt.Errorf("make tokens for step-ca: %w", *err)
	}
	return nil
}

// sign is POST /1.0/sign.
func (s *stepCA) sign() *target {
	return &target{
		address: s.address, tls: s.tls, prepare: s.prepare,
		request: func(buf []byte, _ int) ([]byte, error) {
			select {
			case body := <-s.ready:
				buf = append(buf, "POST /1.0/sign HTTP/1.1\r\nHost: "+s.address+"\r\nContent-Type: application/json\r\nContent-Length: "...)
				buf = append(strconv.AppendInt(buf, int64(len(body)), 10), "\r\n\r\n"...)
				return append(buf, body...), nil
			default:
				return buf, errExhausted
			}
		},
		check: wantCreated,
	}
}
