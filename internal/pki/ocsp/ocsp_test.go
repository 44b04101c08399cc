package ocsp

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/fault"
	"chancery/internal/pki/crl"
)

// office is an issuer with a delegated responder and two leaves.
type office struct {
	issuer, responder, good, revoked *x509.Certificate
	issuerKey, responderKey          crypto.Signer
	dir                              string // holds issuer.pem, good.pem and revoked.pem
}

func newOffice(t testing.TB, key func() crypto.Signer) *office {
	t.Helper()
	o := &office{issuerKey: key(), responderKey: key(), dir: t.TempDir()}
	now := time.Now().Truncate(time.Second)
	sign := func(template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
		template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(240*time.Hour)
		parent := o.issuer
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, o.issuerKey)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	o.issuer = sign(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "OCSP issuer"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature}, o.issuerKey.Public())
	o.responder = sign(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "OCSP responder"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: []byte{5, 0}}}}, o.responderKey.Public())
	leaf := key()
	o.good = sign(&x509.Certificate{SerialNumber: big.NewInt(0x1234), Subject: pkix.Name{CommonName: "good"}}, leaf.Public())
	o.revoked = sign(&x509.Certificate{SerialNumber: big.NewInt(0x99), Subject: pkix.Name{CommonName: "revoked"}}, leaf.Public())
	for name, c := range map[string]*x509.Certificate{"issuer": o.issuer, "good": o.good, "revoked": o.revoked, "responder": o.responder} {
		o.write(t, name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return o
}

func (o *office) write(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(o.dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (o *office) run(t *testing.T, program string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is needed by this test: %v", program, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = o.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (o *office) mustRun(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := o.run(t, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return out
}

// request asks openssl for a request and reads it.
func (o *office) request(t *testing.T, args ...string) *Request {
	t.Helper()
	o.mustRun(t, "openssl", append([]string{"ocsp", "-issuer", "issuer.pem", "-reqout", "req.der"}, args...)...)
	der, err := os.ReadFile(filepath.Join(o.dir, "req.der"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// answer says what the office knows of every certificate asked for.
func (o *office) answer(r *Request) []SingleResponse {
	now := time.Now()
	var all []SingleResponse
	for _, id := range r.CertIDs {
		s := SingleResponse{CertID: id.Raw, Status: Unknown, ThisUpdate: now, NextUpdate: now.Add(12 * time.Hour)}
		switch id.Serial.Int64() {
		case 0x1234:
			s.Status = Good
		case 0x99:
			s.Status, s.RevokedAt, s.Reason = Revoked, now.Add(-time.Minute), crl.KeyCompromise
		}
		all = append(all, s)
	}
	return all
}

func newP256() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func newRSA() crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

func newEd25519() crypto.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// TestOpenSSLUnderstandsTheAnswers has openssl ask, with and without nonce and by both hashes, and judge what is answered.
func TestOpenSSLUnderstandsTheAnswers(t *testing.T) {
	for name, key := range map[string]func() crypto.Signer{"P-256": newP256, "RSA": newRSA, "Ed25519": newEd25519} {
		o := newOffice(t, key)
		hashes := []string{"-sha256", "-sha1", "-sha384", "-sha512"}
		if name != "P-256" {
			hashes = hashes[:1] // the hash of a CertID has nothing to do with the key
		}
		for _, by := range []ResponderID{ByKey, ByName} {
			for _, delegated := range []bool{true, false} {
				responder, signer := o.issuer, o.issuerKey
				if delegated {
					responder, signer = o.responder, o.responderKey
				}
				r, err := NewResponder(o.issuer, responder, signer, by)
				if err != nil {
					t.Fatal(err)
				}
				for _, hash := range hashes {
					ask := []string{hash, "-cert", "good.pem", "-cert", "revoked.pem", "-serial", "0x777"}
					request := o.request(t, ask...)
					if len(request.CertIDs) != 3 || len(request.Nonce) == 0 {
						t.Fatalf("%s: read as %+v", hash, request)
					}
					der, err := r.Respond(o.answer(request), request.Nonce, time.Now())
					if err != nil {
						t.Fatal(err)
					}
					o.write(t, "resp.der", der)
					judge := []string{"ocsp", "-issuer", "issuer.pem", "-CAfile", "issuer.pem", "-respin", "resp.der"}
					// The first call holds the nonce against the one asked with, the second reads what is said of each certificate.
					out := o.mustRun(t, "openssl", append(judge, "-reqin", "req.der")...)
					out += o.mustRun(t, "openssl", append(append(judge, "-no_nonce"), ask...)...)
					for _, want := range []string{"Response verify OK", "good.pem: good", "revoked.pem: revoked", "Reason: keyCompromise", "0x777: unknown"} {
						if !strings.Contains(out, want) || strings.Contains(out, "WARNING") {
							t.Fatalf("%s %v %v %s: openssl does not say %q:\n%s", name, by, delegated, hash, want, out)
						}
					}
				}
			}
		}
	}
}

func TestGnuTLSUnderstandsTheAnswers(t *testing.T) {
	o := newOffice(t, newP256)
	r, err := NewResponder(o.issuer, o.responder, o.responderKey, ByKey)
	if err != nil {
		t.Fatal(err)
	}
	o.mustRun(t, "ocsptool", "--generate-request", "--load-issuer", "issuer.pem", "--load-cert", "revoked.pem", "--outfile", "req.der")
	asked, err := os.ReadFile(filepath.Join(o.dir, "req.der"))
	if err != nil {
		t.Fatal(err)
	}
	request, err := ParseRequest(asked)
	if err != nil {
		t.Fatal(err)
	}
	der, err := r.Respond(o.answer(request), request.Nonce, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o.write(t, "resp.der", der)
	out := o.mustRun(t, "ocsptool", "--verify-response", "--load-request", "req.der", "--load-response", "resp.der", "--load-trust", "issuer.pem")
	if !strings.Contains(out, "Verifying OCSP Response: Success") {
		t.Errorf("ocsptool does not verify:\n%s", out)
	}
	out = o.mustRun(t, "ocsptool", "--response-info", "--infile", "resp.der")
	for _, want := range []string{"Certificate Status: revoked", "Response Status: Successful", "Responder Key ID"} {
		if !strings.Contains(out, want) {
			t.Errorf("ocsptool does not say %q:\n%s", want, out)
		}
	}
}

func TestGoUnderstandsTheAnswers(t *testing.T) {
	o := newOffice(t, newP256)
	r, err := NewResponder(o.issuer, o.responder, o.responderKey, ByKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, hash := range Hashes() {
		asked, err := xocsp.CreateRequest(o.revoked, o.issuer, &xocsp.RequestOptions{Hash: hash})
		if err != nil {
			t.Fatal(err)
		}
		request, err := ParseRequest(asked)
		if err != nil {
			t.Fatal(err)
		}
		name, keyHash, err := IssuerHashes(hash, o.issuer)
		if err != nil || !bytes.Equal(name, request.CertIDs[0].IssuerNameHash) || !bytes.Equal(keyHash, request.CertIDs[0].IssuerKeyHash) {
			t.Fatalf("%v: the issuer's hashes are %x %x, %v; asked for %+v", hash, name, keyHash, err, request.CertIDs[0])
		}
		singles := o.answer(request)
		singles[0].ArchiveCutoff = time.Now().AddDate(-1, 0, 0)
		der, err := r.Respond(singles, nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		response, err := xocsp.ParseResponseForCert(der, o.revoked, o.issuer)
		if err != nil || response.Status != xocsp.Revoked || response.RevocationReason != xocsp.KeyCompromise || response.SerialNumber.Cmp(o.revoked.SerialNumber) != 0 {
			t.Fatalf("%v: x/crypto reads %+v, %v", hash, response, err)
		}
	}
	for _, status := range []ResponseStatus{MalformedRequest, InternalError, TryLater, SigRequired, Unauthorized} {
		_, err := xocsp.ParseResponse(ErrorResponse(status), o.issuer)
		if e, ok := err.(xocsp.ResponseError); !ok || uint8(e.Status) != uint8(status) {
			t.Errorf("%v is read as %v", status, err)
		}
	}
}

func TestRespondersThatMayNotSpeak(t *testing.T) {
	o, other := newOffice(t, newP256), newOffice(t, newP256)
	for what, try := range map[string]func() error{
		"another's key":       func() error { _, err := NewResponder(o.issuer, o.responder, o.issuerKey, ByKey); return err },
		"another's responder": func() error { _, err := NewResponder(o.issuer, other.responder, other.responderKey, ByKey); return err },
		"a leaf": func() error {
			_, err := NewResponder(o.issuer, o.good, fixedPublic{o.issuerKey, o.good.PublicKey}, ByKey)
			return err
		},
	} {
		if err := try(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

type fixedPublic struct {
	crypto.Signer
	public crypto.PublicKey
}

func (f fixedPublic) Public() crypto.PublicKey { return f.public }

// buildRequest writes a request of n certificates, with extensions as they are given.
func buildRequest(n int, extensions func(*cryptobyte.Builder)) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for i := range n {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier([]int{1, 3, 14, 3, 2, 26}); b.AddASN1NULL() })
							b.AddASN1OctetString(make([]byte, 20))
							b.AddASN1OctetString(make([]byte, 20))
							b.AddASN1Int64(int64(i + 1))
						})
					})
				}
			})
			if extensions != nil {
				b.AddASN1(context(2), func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, extensions) })
			}
		})
	})
	return b.BytesOrPanic()
}

func extension(id []int, critical bool, value []byte) func(*cryptobyte.Builder) {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(id)
			if critical {
				b.AddASN1Boolean(true)
			}
			b.AddASN1OctetString(value)
		})
	}
}

func nonce(n int) []byte {
	var b cryptobyte.Builder
	b.AddASN1OctetString(bytes.Repeat([]byte{7}, n))
	return b.BytesOrPanic()
}

func TestRequestLimits(t *testing.T) {
	basic := append([]byte{0x30, 0x0b, 0x06, 0x09}, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1)
	for what, c := range map[string]struct {
		der []byte
		ok  bool
	}{
		"one":                      {buildRequest(1, nil), true},
		"as many as allowed":       {buildRequest(MaxCertIDs, nil), true},
		"one too many":             {buildRequest(MaxCertIDs+1, nil), false},
		"a thousand":               {buildRequest(1000, nil), false},
		"none":                     {buildRequest(0, nil), false},
		"nonce of 1":               {buildRequest(1, extension(oidNonce, false, nonce(1))), true},
		"nonce of 128":             {buildRequest(1, extension(oidNonce, false, nonce(128))), true},
		"nonce of 0":               {buildRequest(1, extension(oidNonce, false, nonce(0))), false},
		"nonce of 129":             {buildRequest(1, extension(oidNonce, false, nonce(129))), false},
		"bare nonce":               {buildRequest(1, extension(oidNonce, false, []byte("0123456789abcdef"))), false},
		"unknown":                  {buildRequest(1, extension([]int{1, 2, 3}, false, nil)), true},
		"unknown critical":         {buildRequest(1, extension([]int{1, 2, 3}, true, nil)), false},
		"accepts basic":            {buildRequest(1, extension(oidAcceptable, false, basic)), true},
		"accepts something else":   {buildRequest(1, extension(oidAcceptable, false, []byte{0x30, 4, 6, 2, 42, 3})), false},
		"twice":                    {buildRequest(1, func(b *cryptobyte.Builder) { e := extension(oidNonce, false, nonce(9)); e(b); e(b) }), false},
		"empty":                    {nil, false},
		"garbage":                  {[]byte("GET / HTTP/1.1"), false},
		"trailing":                 {append(buildRequest(1, nil), 0), false},
		"10 MB":                    {make([]byte, 10<<20), false},
		"length over what is left": {[]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}, false},
	} {
		r, err := ParseRequest(c.der)
		if c.ok != (err == nil) {
			t.Errorf("%s: %v", what, err)
		}
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v is not a refusal", what, err)
		}
		if err == nil && len(r.CertIDs) == 0 {
			t.Errorf("%s: nothing was read", what)
		}
	}
}

func TestSignedRequestIsRead(t *testing.T) {
	o := newOffice(t, newRSA)
	key := o.responderKey.(*rsa.PrivateKey)
	o.write(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	r := o.request(t, "-cert", "good.pem", "-signer", "responder.pem", "-signkey", "key.pem")
	if !r.Signed || len(r.CertIDs) != 1 {
		t.Errorf("read as %+v", r)
	}
}

func TestPaths(t *testing.T) {
	// 0xfb 0xff … is '+' and '/' in base64; a request never looks like it, but clients do not know that.
	der := append(bytes.Repeat([]byte{0xfb, 0xff, 0xff}, 5), 1)
	text := base64.StdEncoding.EncodeToString(der)
	for what, path := range map[string]string{
		"escaped":    url.PathEscape(text),
		"all of it":  strings.NewReplacer("/", "%2F", "+", "%2B", "=", "%3D").Replace(text),
		"bare":       text,
		"no padding": strings.TrimRight(text, "="),
	} {
		if got, err := DecodePath(path); err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s %q: %x, %v", what, path, got, err)
		}
	}
	for _, path := range []string{"%zz", "a b", "!!!!", "A", strings.Repeat("A", MaxRequest+1)} {
		if _, err := DecodePath(path); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.20q: %v", path, err)
		}
	}
}

func BenchmarkRespondP256(b *testing.B) {
	o := newOffice(b, newP256)
	r, err := NewResponder(o.issuer, o.responder, o.responderKey, ByKey)
	if err != nil {
		b.Fatal(err)
	}
	request, err := ParseRequest(buildRequest(1, nil))
	if err != nil {
		b.Fatal(err)
	}
	singles := o.answer(request)
	for b.Loop() {
		if _, err := r.Respond(singles, nil, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}
