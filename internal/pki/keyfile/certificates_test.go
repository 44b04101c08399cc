package keyfile

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/internal/fault"
)

func sameCertificates(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, (*x509.Certificate).Equal)
}

// A bundle is read alike from each form that programs keep it in.
func TestBundles(t *testing.T) {
	p := newPath(t, ECDSAP256)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	pem := EncodeCertificates(p.chain()...)
	if err := WriteFile(file("plain.pem"), pem, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "openssl", "crl2pkcs7", "-nocrl", "-certfile", file("plain.pem"), "-out", file("bag.p7b"))
	run(t, "openssl", "crl2pkcs7", "-nocrl", "-certfile", file("plain.pem"), "-outform", "DER", "-out", file("bag.der"))
	run(t, "certtool", "--p7-generate", "--load-certificate", file("plain.pem"), "--load-privkey",
		write(t, "k", encode(t, EncodePKCS8, p.key)), "--infile", "/dev/null", "--outder", "--outfile", file("signed.p7"))
	text := []byte{}
	for i, c := range p.chain() {
		one := write(t, "c.pem", EncodeCertificates(c))
		text = append(text, run(t, "openssl", "x509", "-text", "-in", one)...)
		if i == 0 {
			text = append(text, run(t, "certtool", "-i", "--infile", one)...) // the same certificate again, with certtool's text
			text = text[:bytes.LastIndex(text, []byte(pemBegin))]
		}
	}
	files := map[string][]byte{
		"text.pem": text, "crlf.pem": bytes.ReplaceAll(pem, []byte("\n"), []byte("\r\n")),
		"der":          slices.Concat(p.leaf.Raw, p.ca.Raw, p.root.Raw),
		"with-key.pem": append(encode(t, EncodePKCS8, p.key), pem...),
	}
	for name, data := range files {
		if err := os.WriteFile(file(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 8 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	for _, n := range names {
		got, err := ParseCertificates(read(t, file(n.Name())))
		if strings.HasPrefix(n.Name(), "bag") || n.Name() == "signed.p7" { // a SET OF has no order
			got, err = orderOrErr(got, err)
		}
		if err != nil || !sameCertificates(got, p.chain()) {
			t.Errorf("%s: %d certificates, %v", n.Name(), len(got), err)
		}
	}
	if !bytes.Equal(run(t, "openssl", "x509", "-in", file("plain.pem"), "-outform", "DER"), p.leaf.Raw) {
		t.Error("openssl reads another first certificate")
	}
}

func orderOrErr(certs []*x509.Certificate, err error) ([]*x509.Certificate, error) {
	if err != nil {
		return nil, err
	}
	return OrderPath(certs)
}

func TestBundleRefusals(t *testing.T) {
	p := newPath(t, Ed25519)
	pem := EncodeCertificates(p.chain()...)
	half := bytes.Replace(pem, []byte("-----END CERTIFICATE-----\n"), nil, 1)
	trusted := run(t, "openssl", "x509", "-trustout", "-in", write(t, "c", EncodeCertificates(p.leaf)))
	empty := run(t, "openssl", "crl2pkcs7", "-nocrl", "-in", os.DevNull)
	for _, tc := range []struct {
		name string
		data []byte
		kind fault.Kind
		want string
	}{
		{"empty", nil, fault.Invalid, "empty"},
		{"10 MB", bytes.Repeat(pem, 1+(10<<20)/len(pem)), fault.TooLarge, "at most"},
		{"an END line lost", half, fault.Invalid, "no END line"},
		{"truncated", pem[:len(pem)-30], fault.Invalid, "truncated"},
		{"DER cut", p.leaf.Raw[:len(p.leaf.Raw)-1], fault.Invalid, "truncated"},
		{"DER with a tail", append(slices.Clone(p.leaf.Raw), 0), fault.Invalid, "neither"},
		{"key only", encode(t, EncodePKCS8, p.key), fault.Invalid, "no certificate, only: PRIVATE KEY"},
		{"garbage certificate", encodePEM(labelCertificate, []byte{0x30, 1, 2}), fault.Invalid, "not valid"},
		{"trusted", trusted, fault.Invalid, "TRUSTED"},
		{"empty bag", empty, fault.Invalid, "no certificate"},
	} {
		_, err := ParseCertificates(tc.data)
		if err == nil || fault.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestOrderPath(t *testing.T) {
	p := newPath(t, ECDSAP256)
	for range 10 {
		certs := append(p.chain(), p.ca)
		rand.Shuffle(len(certs), func(i, j int) { certs[i], certs[j] = certs[j], certs[i] })
		if got, err := OrderPath(certs); err != nil || !sameCertificates(got, p.chain()) {
			t.Fatalf("%v: %v", got, err)
		}
	}
	if got, err := OrderPath([]*x509.Certificate{p.root}); err != nil || len(got) != 1 {
		t.Errorf("a root alone: %v %v", got, err)
	}
	other := newPath(t, ECDSAP256) // the same names, other keys
	if _, err := OrderPath(append(p.chain(), other.leaf)); err == nil {
		t.Error("two leaves pass as one path")
	}
	if _, err := OrderPath([]*x509.Certificate{p.leaf, other.ca, other.root}); err == nil {
		t.Error("an issuer of the right name and the wrong key passes")
	}
	if got, err := OrderPath([]*x509.Certificate{p.root, p.leaf}); err == nil {
		t.Errorf("a path with a gap passes: %v", got)
	}
	if _, err := OrderPath(nil); err == nil {
		t.Error("nothing passes")
	}
	cross := certify(t, pkix.Name{CommonName: "Test CA"}, p.caKey, other.root, other.rootKey)
	if got, err := OrderPath([]*x509.Certificate{cross, p.leaf}); err != nil || len(got) != 2 {
		t.Errorf("a cross certificate of the same key: %v", err)
	}
}

func TestCheckPair(t *testing.T) {
	p := newPath(t, ECDSAP256)
	if err := CheckPair(p.key, p.leaf); err != nil {
		t.Error(err)
	}
	if err := CheckPair(p.key.Public(), p.leaf); err != nil {
		t.Error(err)
	}
	if err := CheckPair(p.caKey, p.leaf); !fault.Is(err, fault.Conflict) {
		t.Errorf("a foreign key: %v", err)
	}
	if err := CheckPair(generate(t, RSA2048), p.leaf); err == nil || !strings.Contains(err.Error(), "rsa-2048") {
		t.Errorf("a key of another kind: %v", err)
	}
}
