package keyfile

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	gopkcs12 "software.sslmate.com/src/go-pkcs12"
)

// seeds fails a fuzz test whose committed corpus is gone: go test would pass on nothing. The corpora hold no private keys;
// those are made and added here.
func seeds(f *testing.F, least int) *path {
	f.Helper()
	entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", f.Name()))
	if err != nil || len(entries) < least {
		f.Fatalf("the corpus of %s has %d files, want %d: %v", f.Name(), len(entries), least, err)
	}
	p := new(path)
	if p.key, err = Generate(ECDSAP256, 0); err != nil {
		f.Fatal(err)
	}
	return p
}

// What is read as a key or a bundle is written and read again as the same.
func FuzzParsePEM(f *testing.F) {
	p := seeds(f, 4)
	for _, encode := range []func() ([]byte, error){
		func() ([]byte, error) { return EncodePKCS8(p.key) }, func() ([]byte, error) { return EncodeSEC1(p.key) },
	} {
		data, err := encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, err := ParsePrivateKey(data, nil); err == nil {
			out, err := EncodePKCS8(key)
			if err != nil {
				t.Fatalf("encode what was read: %v", err)
			}
			if again, err := ParsePrivateKey(out, nil); err != nil || !samePrivate(again, key) {
				t.Fatalf("read again: %v", err)
			}
		}
		if certs, err := ParseCertificates(data); err == nil {
			again, err := ParseCertificates(EncodeCertificates(certs...))
			if err != nil || !sameCertificates(again, certs) {
				t.Fatalf("read again: %v", err)
			}
			path, err := OrderPath(certs)
			if err == nil && len(path) == 0 {
				t.Fatal("an empty path")
			}
		}
		if pub, err := PublicKeyOf(data, nil); err == nil && pub == nil {
			t.Fatal("no key and no error")
		}
	})
}

func FuzzPKCS12(f *testing.F) {
	p := seeds(f, 2)
	template := &x509.Certificate{SerialNumber: bigOne()}
	der, err := x509.CreateCertificate(nil, template, template, p.key.Public(), p.key)
	if err != nil {
		f.Fatal(err)
	}
	if p.leaf, err = x509.ParseCertificate(der); err != nil {
		f.Fatal(err)
	}
	for password, encoder := range map[string]*gopkcs12.Encoder{
		"": gopkcs12.Passwordless, "x": gopkcs12.Modern2023.WithIterations(1), "y": gopkcs12.Modern2026.WithIterations(1),
		"z": gopkcs12.LegacyRC2.WithIterations(1),
	} {
		data, err := encoder.Encode(p.key, p.leaf, nil, password)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, []byte(password))
	}
	f.Fuzz(func(t *testing.T, data, password []byte) {
		left := budget(4096) // a mutated count must not cost the fuzzer its time
		entries, err := decodePKCS12(data, password, &left)
		if err != nil {
			return
		}
		if len(entries) == 0 {
			t.Fatal("nothing was read and nothing refused")
		}
		for _, e := range entries {
			if e.Key == nil && len(e.Chain) != 1 {
				t.Fatalf("trusted entry with %d certificates", len(e.Chain))
			}
			if e.Key != nil && len(e.Chain) > 0 && CheckPair(e.Key, e.Chain[0]) != nil {
				t.Fatal("the key is not the certificate's")
			}
		}
	})
}

func FuzzJKS(f *testing.F) {
	p := seeds(f, 2)
	template := &x509.Certificate{SerialNumber: bigOne()}
	der, err := x509.CreateCertificate(nil, template, template, p.key.Public(), p.key)
	if err != nil {
		f.Fatal(err)
	}
	if p.leaf, err = x509.ParseCertificate(der); err != nil {
		f.Fatal(err)
	}
	data, err := EncodeJKS([]Entry{{Alias: "a", Key: p.key, Chain: []*x509.Certificate{p.leaf}}}, []byte("x"), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := DecodeJKS(data, nil, []byte("x"))
		if err != nil {
			return
		}
		if raw, err := rawJKS(data, nil); err != nil || len(raw) != len(entries) {
			t.Fatalf("%d entries, and %d as they are in the file: %v", len(entries), len(raw), err)
		}
		out, err := EncodeJKS(entries, []byte("s"), []byte("k"))
		if err != nil {
			return // aliases that only differ in case, keys without their certificate
		}
		again, err := DecodeJKS(out, []byte("s"), []byte("k"))
		if err != nil || !SameEntries(again, entries) {
			t.Fatalf("read again: %v", err)
		}
		if second, err := EncodeJKS(again, []byte("s"), []byte("k")); err != nil || !bytes.Equal(second, out) {
			t.Fatalf("the encoding does not reproduce: %v", err)
		}
	})
}
