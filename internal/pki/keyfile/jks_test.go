package keyfile

import (
	"bytes"
	"crypto/sha1"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	keystore "github.com/pavlo-v-chernykh/keystore-go/v4"

	"chancery/internal/fault"
)

func encodeJKS(t *testing.T, entries []Entry, store, key []byte) []byte {
	t.Helper()
	data, err := EncodeJKS(entries, store, key)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestJKSIsReadByJava(t *testing.T) {
	t.Parallel()
	p := newPath(t, RSA2048)
	at := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	entries := []Entry{
		{Alias: "Host1.Example.test", Key: p.key, Chain: p.chain(), CreatedAt: at},
		{Alias: "ca.pri.example.test", Chain: []*x509.Certificate{p.root}},
	}
	data := encodeJKS(t, entries, []byte("changeit"), nil)
	file := write(t, "s.jks", data)
	listed := string(run(t, "keytool", "-list", "-v", "-keystore", file, "-storepass", "changeit"))
	for _, want := range []string{"Keystore type: JKS", "Alias name: host1.example.test", "Creation date: Mar 4, 2026",
		"Certificate chain length: 3", "Entry type: trustedCertEntry", "contains 2 entries"} {
		if !strings.Contains(listed, want) {
			t.Errorf("keytool does not show %q:\n%s", want, listed)
		}
	}
	// Java opens the key too, and what it makes of it is our entry again.
	p12 := filepath.Join(t.TempDir(), "from-java.p12")
	run(t, "keytool", "-importkeystore", "-srckeystore", file, "-srcstorepass", "changeit", "-destkeystore", p12, "-deststoretype",
		"PKCS12", "-deststorepass", "changeit")
	got, err := DecodeStore(read(t, p12), []byte("changeit"))
	if err != nil || !SameEntries(got, entries) {
		t.Errorf("through Java: %v %v", got, err)
	}
	if again := encodeJKS(t, []Entry{entries[1], entries[0]}, []byte("changeit"), nil); !bytes.Equal(again, data) {
		t.Error("the same entries give other bytes")
	}
	ks := keystore.New()
	if err := ks.Load(bytes.NewReader(data), []byte("changeit")); err != nil || len(ks.Aliases()) != 2 {
		t.Errorf("keystore-go: %v", err)
	}
}

func TestJKSOfKeytool(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "java.jks")
	run(t, "keytool", "-genkeypair", "-alias", "Jäva", "-keyalg", "RSA", "-keysize", "2048", "-dname", "CN=java", "-keystore", file,
		"-storepass", "changeit", "-keypass", "another", "-storetype", "JKS")
	p := newPath(t, ECDSAP256)
	run(t, "keytool", "-importcert", "-noprompt", "-alias", "root", "-keystore", file, "-storepass", "changeit", "-file",
		write(t, "r", EncodeCertificates(p.root)))
	data := read(t, file)
	got, err := DecodeJKS(data, []byte("changeit"), []byte("another"))
	if err != nil || len(got) != 2 {
		t.Fatalf("%v %v", got, err)
	}
	for _, e := range got {
		if e.Key != nil && CheckPair(e.Key, e.Chain[0]) != nil {
			t.Error("the key does not fit its certificate")
		}
	}
	for _, tc := range []struct{ store, key []byte }{
		{[]byte("wrong"), []byte("another")}, {[]byte("changeit"), nil}, {[]byte("changeit"), []byte("wrong")}, {nil, nil},
	} {
		if _, err := DecodeJKS(data, tc.store, tc.key); !errors.Is(err, ErrPassword) {
			t.Errorf("passwords %q %q: %v", tc.store, tc.key, err)
		}
	}
	jceks := filepath.Join(dir, "java.jceks")
	run(t, "keytool", "-importcert", "-noprompt", "-alias", "r", "-keystore", jceks, "-storepass", "changeit", "-storetype", "JCEKS",
		"-file", write(t, "r", EncodeCertificates(p.root)))
	if _, err := DecodeStore(read(t, jceks), []byte("changeit")); err == nil || !strings.Contains(err.Error(), "JCEKS") {
		t.Errorf("JCEKS: %v", err)
	}
}

func TestJKSRoundTrip(t *testing.T) {
	p := newPath(t, Ed25519)
	entries := []Entry{{Alias: "é 😀 \x00", Key: p.key, Chain: p.chain()}, {Alias: "b", Chain: []*x509.Certificate{p.ca}}}
	data := encodeJKS(t, entries, []byte("störe"), []byte("kéy"))
	got, err := DecodeJKS(data, []byte("störe"), []byte("kéy"))
	if err != nil || !SameEntries(got, entries) || got[0].CreatedAt.IsZero() {
		t.Fatalf("%v %v", got, err)
	}
	if got, err := DecodeJKS(encodeJKS(t, entries[1:], []byte("x"), nil), nil, nil); err != nil || len(got) != 1 {
		t.Errorf("a trust store without its password: %v", err)
	}
	for _, bad := range [][]Entry{nil, {{Chain: []*x509.Certificate{p.ca}}}, {entries[1], {Alias: "B", Chain: []*x509.Certificate{p.ca}}},
		{{Alias: strings.Repeat("x", 1<<16), Chain: []*x509.Certificate{p.ca}}}} {
		if _, err := EncodeJKS(bad, []byte("x"), nil); err == nil {
			t.Error("a bad entry was encoded")
		}
	}
}

// Counts and lengths in the file are bounded by the bytes that follow them.
func TestDamagedJKS(t *testing.T) {
	p := newPath(t, ECDSAP256)
	password := []byte("x")
	data := encodeJKS(t, []Entry{{Alias: "a", Key: p.key, Chain: p.chain()}}, password, nil)
	for n := range len(data) {
		if _, err := DecodeJKS(data[:n], nil, password); err == nil || fault.KindOf(err) == fault.Internal {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	resign := func(change func([]byte)) []byte {
		body := slices.Clone(data[:len(data)-sha1.Size])
		change(body)
		return append(body, jksDigest(password, body)...)
	}
	for name, bad := range map[string][]byte{
		"entries":    resign(func(b []byte) { binary.BigEndian.PutUint32(b[8:], 1<<32-1) }),
		"no entries": resign(func(b []byte) { binary.BigEndian.PutUint32(b[8:], 0) }),
		"version":    resign(func(b []byte) { binary.BigEndian.PutUint32(b[4:], 3) }),
		"tag":        resign(func(b []byte) { binary.BigEndian.PutUint32(b[12:], 9) }),
		"alias":      resign(func(b []byte) { binary.BigEndian.PutUint16(b[16:], 1<<16-1) }),
		"key length": resign(func(b []byte) { binary.BigEndian.PutUint32(b[27:], 1<<32-1) }),
	} {
		if _, err := DecodeJKS(bad, password, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DecodeJKS([]byte("-----BEGIN"), password, nil); err == nil {
		t.Error("text passes")
	}
}
