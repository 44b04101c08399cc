package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"

	"chancery/internal/store/token/wire"
)

// TestPublicKeysOfObjects reads the attributes in the forms that libraries are known to give them.
func TestPublicKeysOfObjects(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ec.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	packed, err := asn1.Marshal(plain)
	if err != nil {
		t.Fatal(err)
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		keyType uint
		has     map[uint][]byte
		want    interface{ Equal(any) bool }
	}{
		"EC, an OCTET STRING":  {pkcs11.CKK_EC, map[uint][]byte{pkcs11.CKA_EC_PARAMS: []byte("\x06\x05\x2b\x81\x04\x00\x22"), pkcs11.CKA_EC_POINT: packed}, equals{&ec.PublicKey}},
		"EC, without it":       {pkcs11.CKK_EC, map[uint][]byte{pkcs11.CKA_EC_PARAMS: []byte("\x06\x05\x2b\x81\x04\x00\x22"), pkcs11.CKA_EC_POINT: plain}, equals{&ec.PublicKey}},
		"EC, no point of it":   {pkcs11.CKK_EC, map[uint][]byte{pkcs11.CKA_EC_PARAMS: []byte("\x06\x05\x2b\x81\x04\x00\x22"), pkcs11.CKA_EC_POINT: plain[1:]}, nil},
		"EC, another curve":    {pkcs11.CKK_EC, map[uint][]byte{pkcs11.CKA_EC_PARAMS: []byte("\x06\x05\x2b\x81\x04\x00\x0a"), pkcs11.CKA_EC_POINT: packed}, nil},
		"Ed25519 by number":    {ckkECEdwards, map[uint][]byte{pkcs11.CKA_EC_PARAMS: []byte("\x06\x03\x2b\x65\x70"), pkcs11.CKA_EC_POINT: edwards}, equals{edwards}},
		"Ed25519 by name":      {ckkECEdwards, map[uint][]byte{pkcs11.CKA_EC_PARAMS: []byte("\x13\x0cedwards25519"), pkcs11.CKA_EC_POINT: append([]byte{4, 32}, edwards...)}, equals{edwards}},
		"RSA":                  {pkcs11.CKK_RSA, map[uint][]byte{pkcs11.CKA_MODULUS: {0, 200, 1}, pkcs11.CKA_PUBLIC_EXPONENT: {1, 0, 1}}, nil},
		"RSA, a huge exponent": {pkcs11.CKK_RSA, map[uint][]byte{pkcs11.CKA_MODULUS: {200, 1}, pkcs11.CKA_PUBLIC_EXPONENT: bytes.Repeat([]byte{255}, 64)}, nil},
		"nothing":              {pkcs11.CKK_EC, nil, nil},
	} {
		got := publicFrom(c.keyType, func(kind uint) []byte { return c.has[kind] })
		if name == "RSA" {
			if k, ok := got.(*rsa.PublicKey); !ok || k.E != 65537 || k.N.Int64() != 200<<8+1 {
				t.Errorf("%s: %v", name, got)
			}
			continue
		}
		if (got != nil) != (c.want != nil) || got != nil && !c.want.Equal(got) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

type equals struct{ key any }

func (e equals) Equal(other any) bool {
	switch k := e.key.(type) {
	case *ecdsa.PublicKey:
		o, ok := other.(*ecdsa.PublicKey)
		return ok && k.Equal(o)
	case ed25519.PublicKey:
		o, ok := other.(ed25519.PublicKey)
		return ok && k.Equal(o)
	}
	return false
}

// TestCodes holds that a token that went away is told from one that refuses.
func TestCodes(t *testing.T) {
	for err, want := range map[error]wire.Code{
		pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED):         wire.Gone,
		pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID): wire.Gone,
		pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID):      wire.Failed,
	} {
		r, ok := errors.AsType[*refusal](judge("sign", err))
		if !ok || r.code != want {
			t.Errorf("%v: %v", err, r)
		}
	}
}

// TestOnlyTheNodeIsServed calls from this process, which is not the one that started it.
func TestOnlyTheNodeIsServed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	stat, err := os.Lstat(path)
	if err != nil || stat.Mode().Perm() != 0o600 {
		t.Fatalf("the socket's mode is %v: %v", stat.Mode(), err)
	}
	caller, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer caller.Close()
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := admit(conn); err == nil {
		t.Error("a process that is not the helper's parent was let in")
	}
}

// TestRequests are answered each, whatever they are, and the connection goes on.
func TestRequests(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.AcceptUnix()
		if err == nil {
			err = serve(conn, &module{path: "/nowhere.so"})
		}
		served <- err
	}()
	caller, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(caller)
	for _, c := range []struct {
		verb   byte
		fields [][]byte
		want   wire.Code
	}{
		{wire.Open, [][]byte{[]byte("{}"), nil}, wire.Module},
		{wire.Open, [][]byte{[]byte("no JSON"), nil}, wire.Refused},
		{wire.Look, [][]byte{[]byte("{}")}, wire.Module},
		{wire.Look, [][]byte{[]byte("{}"), nil}, wire.Refused},
		{wire.Open, nil, wire.Refused},
		{wire.Sign, [][]byte{{0, 0, 0, 9}, {1}, []byte("digest")}, wire.Refused},
		{wire.Sign, [][]byte{{9}, {1}, []byte("digest")}, wire.Refused},
		{99, nil, wire.Refused},
	} {
		if err := wire.Write(caller, c.verb, c.fields...); err != nil {
			t.Fatal(err)
		}
		code, answer, err := wire.Read(in, wire.MaxAnswer)
		if err != nil || wire.Code(code) != c.want || len(answer) != 1 || len(answer[0]) == 0 {
			t.Errorf("verb %d: code %d, %q, %v", c.verb, code, answer, err)
		}
	}
	if err := caller.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
