package keyfile

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	encasn1 "encoding/asn1"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Names with each string type, spaces, case, multi-valued and empty RDNs hash as openssl hashes them.
func TestNameHashAgainstOpenSSL(t *testing.T) {
	t.Parallel()
	key := generate(t, ECDSAP256)
	cn := encasn1.ObjectIdentifier{2, 5, 4, 3}
	o := encasn1.ObjectIdentifier{2, 5, 4, 10}
	serial := encasn1.ObjectIdentifier{2, 5, 4, 45} // uniqueIdentifier, a BIT STRING
	raw := func(tag int, value string) encasn1.RawValue {
		return encasn1.RawValue{Tag: tag, Bytes: []byte(value)}
	}
	names := []pkix.RDNSequence{
		{{{Type: cn, Value: "Test Root"}}},
		{{{Type: o, Value: raw(19, "  Libvirt.ORG\tLtd  ")}}, {{Type: cn, Value: raw(12, "Übung  \n ÄÖ")}}},
		{{{Type: cn, Value: raw(30, "\x00A\x00 \x00 \x00\xc4\x20\xac")}}},
		{{{Type: cn, Value: raw(28, "\x00\x00\x00A\x00\x01\xf6\x00")}}},
		{{{Type: cn, Value: raw(20, "caf\xe9 Z")}}},
		{{{Type: cn, Value: raw(22, "IA5@Example")}}, {{Type: cn, Value: raw(18, "1  2")}}},
		{{{Type: serial, Value: raw(3, "\x00\x20\x41\x42")}}},
		{{{Type: cn, Value: "zz"}, {Type: o, Value: "B"}, {Type: o, Value: "AA"}}},
		{{{Type: cn, Value: "   "}}},
		{{{Type: cn, Value: ""}}},
		{},
	}
	for i, rdns := range names {
		der, err := encasn1.Marshal(rdns)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), RawSubject: der, NotAfter: time.Now().Add(time.Hour)}
		c, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		file := write(t, "c.pem", encodePEM(labelCertificate, c))
		want := strings.Fields(string(run(t, "openssl", "x509", "-in", file, "-noout", "-subject_hash", "-subject_hash_old")))
		got, err := NameHash(der)
		if err != nil || len(want) != 2 || got != want[0] || OldNameHash(der) != want[1] {
			t.Errorf("name %d: openssl %v, we %s %s %v", i, want, got, OldNameHash(der), err)
		}
	}
	for _, bad := range []string{"", "\x30\x05", "\x30\x02\x31\x01", "\x30\x04\x31\x02\x30\x00", "\x30\x00\x00"} {
		if _, err := NameHash([]byte(bad)); err == nil {
			t.Errorf("%x passes as a name", bad)
		}
	}
}

// The links are those that openssl rehash makes in the same directory.
func TestHashLinksAgainstOpenSSLRehash(t *testing.T) {
	p, twin := newPath(t, ECDSAP256), newPath(t, ECDSAP256) // equal subjects, other keys
	dir := t.TempDir()
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(),
		NextUpdate: time.Now().Add(time.Hour)}, withKeyID(t, p), p.rootKey)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseRevocationList(crl)
	if err != nil {
		t.Fatal(err)
	}
	targets := []HashTarget{
		{File: "a.pem", Certificate: p.root}, {File: "b.pem", Certificate: twin.root}, {File: "c.pem", Certificate: p.root},
		{File: "d.pem", CRL: parsed}, {File: "e.pem", Certificate: p.ca},
	}
	for _, target := range targets {
		data := encodePEM("X509 CRL", crl)
		if target.Certificate != nil {
			data = EncodeCertificates(target.Certificate)
		}
		if err := WriteFile(filepath.Join(dir, target.File), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, old := range []bool{false, true} {
		args := []string{"rehash", dir}
		if old {
			args = []string{"rehash", "-compat", dir}
		}
		run(t, "openssl", args...)
		var want, got []string
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Type()&os.ModeSymlink != 0 {
				want = append(want, e.Name())
			}
		}
		links, err := HashLinks(targets, old)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			got = append(got, l.Name)
			if l.File == "c.pem" {
				t.Error("a repeated certificate got a link")
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || len(want) < 4 {
			t.Errorf("old %v: openssl rehash made %v, we %v", old, want, got)
		}
	}
	if _, err := HashLinks([]HashTarget{{File: "x"}}, false); err == nil {
		t.Error("a target without content passes")
	}
}

// withKeyID gives the root a subject key identifier, which x509.CreateRevocationList wants.
func withKeyID(t *testing.T, p *path) *x509.Certificate {
	t.Helper()
	c := *p.root
	if len(c.SubjectKeyId) == 0 {
		t.Fatal(fmt.Errorf("the root %s has no key identifier", c.Subject))
	}
	return &c
}
