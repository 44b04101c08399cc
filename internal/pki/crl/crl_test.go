package crl

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
	"encoding/pem"
	"io"
	"math/big"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

var issuedAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type testIssuer struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func newIssuer(t testing.TB, key crypto.Signer, algorithm x509.SignatureAlgorithm) testIssuer {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Fleet"}, CommonName: "Issuer, of \"tests\""},
		NotBefore: issuedAt.AddDate(-10, 0, 0), NotAfter: issuedAt.AddDate(50, 0, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SignatureAlgorithm: algorithm,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return testIssuer{certificate, key}
}

func p256(t testing.TB) testIssuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newIssuer(t, key, 0)
}

func (i testIssuer) spec(number int64) *Spec {
	return &Spec{Issuer: i.certificate, ThisUpdate: issuedAt, NextUpdate: issuedAt.AddDate(0, 0, 7), Number: big.NewInt(number)}
}

// issuers are of every kind of key that can sign.
func issuers(t *testing.T) map[string]testIssuer {
	t.Helper()
	all := make(map[string]testIssuer)
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		all[curve.Params().Name] = newIssuer(t, key, 0)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	all["RSA"] = newIssuer(t, rsaKey, 0)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	all["Ed25519"] = newIssuer(t, edKey, 0)
	return all
}

func someEntries() []Entry {
	var all []Entry
	for i, reason := range Reasons() {
		e := Entry{Serial: new(big.Int).Lsh(big.NewInt(int64(0x80+i)), uint(16*i)), RevokedAt: issuedAt.Add(-time.Duration(i) * time.Hour), Reason: reason}
		if i%2 == 1 {
			e.Invalidity = e.RevokedAt.Add(-24 * time.Hour)
		}
		all = append(all, e)
	}
	return append(all, Entry{Serial: big.NewInt(0), RevokedAt: time.Date(2051, 1, 2, 3, 4, 5, 0, time.UTC), Reason: KeyCompromise})
}

func sameEntry(a, b Entry) bool {
	return a.Serial.Cmp(b.Serial) == 0 && a.RevokedAt.Equal(b.RevokedAt) && a.Reason == b.Reason && a.Invalidity.Equal(b.Invalidity)
}

func TestEncodedListIsReadBackByUsAndByGo(t *testing.T) {
	for name, issuer := range issuers(t) {
		t.Run(name, func(t *testing.T) {
			spec := issuer.spec(1700000000000)
			spec.Freshest = []string{"http://pki.example/crl/delta.crl"}
			der, err := Encode(spec, someEntries(), issuer.key)
			if err != nil {
				t.Fatal(err)
			}
			list, err := Parse(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := list.CheckIssuer(issuer.certificate); err != nil {
				t.Fatal(err)
			}
			if list.Count != len(someEntries()) || list.Number.Cmp(spec.Number) != 0 || !slices.Equal(list.Freshest, spec.Freshest) {
				t.Fatalf("read back %+v", list)
			}
			for _, want := range someEntries() {
				if got, ok := list.Lookup(want.Serial); !ok || !sameEntry(got, want) {
					t.Errorf("lookup of %x = %+v, %v; want %+v", want.Serial, got, ok, want)
				}
			}
			if e, ok := list.Lookup(big.NewInt(99)); ok {
				t.Errorf("a serial that is not listed was found: %+v", e)
			}
			std, err := x509.ParseRevocationList(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := std.CheckSignatureFrom(issuer.certificate); err != nil {
				t.Fatal(err)
			}
			if len(std.RevokedCertificateEntries) != list.Count || std.Number.Cmp(spec.Number) != 0 {
				t.Fatalf("crypto/x509 reads %d entries of CRL %v", len(std.RevokedCertificateEntries), std.Number)
			}
			for i, e := range std.RevokedCertificateEntries {
				if want := someEntries()[i]; e.ReasonCode != int(want.Reason) || e.SerialNumber.Cmp(want.Serial) != 0 {
					t.Errorf("crypto/x509 reads entry %d as %+v", i, e)
				}
			}
		})
	}
}

func TestEntryProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := Entry{
			Serial:    new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 32).Draw(t, "serial")),
			RevokedAt: time.Unix(rapid.Int64Range(0, 4102444800+1e9).Draw(t, "revoked"), 0),
			Reason:    rapid.SampledFrom(append(Reasons(), RemoveFromCRL)).Draw(t, "reason"),
		}
		if rapid.Bool().Draw(t, "dated") {
			e.Invalidity = time.Unix(rapid.Int64Range(0, 4102444800).Draw(t, "invalidity"), 0)
		}
		der, err := EncodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseEntry(der)
		if err != nil || !sameEntry(e, back) {
			t.Fatalf("%+v became %+v, %v", e, back, err)
		}
		if n, err := countEntries(append(slices.Clone(der), der...)); n != 2 || err != nil {
			t.Fatalf("two entries count as %d, %v", n, err)
		}
		if e.Reason == Unspecified && bytes.Contains(der, []byte{0x55, 0x1d, 0x15}) {
			t.Fatal("unspecified was written out")
		}
	})
}

func TestRefusedEntries(t *testing.T) {
	good := Entry{Serial: big.NewInt(7), RevokedAt: issuedAt}
	for what, spoil := range map[string]func(*Entry){
		"negative serial":  func(e *Entry) { e.Serial = big.NewInt(-1) },
		"no serial":        func(e *Entry) { e.Serial = nil },
		"huge serial":      func(e *Entry) { e.Serial = new(big.Int).Lsh(big.NewInt(1), 300) },
		"reason 7":         func(e *Entry) { e.Reason = 7 },
		"reason 11":        func(e *Entry) { e.Reason = 11 },
		"no date":          func(e *Entry) { e.RevokedAt = time.Time{} },
		"negative reason ": func(e *Entry) { e.Reason = -1 },
	} {
		e := good
		spoil(&e)
		if _, err := EncodeEntry(e); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ParseReason("keycompromise"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "keyCompromise") {
		t.Errorf("a misspelt reason: %v", err)
	}
	if _, err := ParseReason("removeFromCRL"); err == nil {
		t.Error("removeFromCRL passes as a reason to revoke")
	}
}

func TestEmptyListOmitsRevokedCertificates(t *testing.T) {
	issuer := p256(t)
	der, err := Encode(issuer.spec(1), nil, issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	list, err := Parse(der)
	if err != nil || list.Count != 0 || len(list.revoked) != 0 {
		t.Fatalf("%v, %d entries", err, list.Count)
	}
}

func TestRefusedSpecs(t *testing.T) {
	issuer, other := p256(t), p256(t)
	noSign := *issuer.certificate
	noSign.KeyUsage = x509.KeyUsageCertSign
	for what, spoil := range map[string]func(*Spec){
		"other key":           func(s *Spec) { s.Issuer = other.certificate },
		"no cRLSign":          func(s *Spec) { s.Issuer = &noSign },
		"ends before":         func(s *Spec) { s.NextUpdate = s.ThisUpdate },
		"no number":           func(s *Spec) { s.Number = nil },
		"huge number":         func(s *Spec) { s.Number = new(big.Int).Lsh(big.NewInt(1), 159) },
		"base after":          func(s *Spec) { s.BaseNumber = big.NewInt(10) },
		"delta with freshest": func(s *Spec) { s.BaseNumber = big.NewInt(1); s.Freshest = []string{"http://x"} },
		"empty IDP":           func(s *Spec) { s.IDP = &IssuingDistributionPoint{} },
		"two scopes":          func(s *Spec) { s.IDP = &IssuingDistributionPoint{OnlyUserCerts: true, OnlyCACerts: true} },
		"URI with blank":      func(s *Spec) { s.IDP = &IssuingDistributionPoint{URIs: []string{"http://x y"}} },
		"indirect":            func(s *Spec) { s.IDP = &IssuingDistributionPoint{IndirectCRL: true} },
		"algorithm":           func(s *Spec) { s.Algorithm = cert.RSAWithSHA256 },
	} {
		spec := issuer.spec(10)
		spoil(spec)
		if _, err := Encode(spec, nil, issuer.key); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestEntriesMustMatchTheAnnouncedLength(t *testing.T) {
	issuer := p256(t)
	der, err := EncodeEntry(someEntries()[1])
	if err != nil {
		t.Fatal(err)
	}
	once := func(p []byte) func(func([]byte, error) bool) {
		return func(yield func([]byte, error) bool) { yield(p, nil) }
	}
	for what, c := range map[string]struct {
		length int64
		packed []byte
	}{
		"fewer":   {int64(len(der)) + 1, der},
		"more":    {int64(len(der)) - 1, der},
		"cut":     {int64(len(der)) - 1, der[:len(der)-1]},
		"garbage": {3, []byte{1, 2, 3}},
	} {
		if _, err := Sign(io.Discard, issuer.spec(1), c.length, once(c.packed), issuer.key); err == nil {
			t.Errorf("%s: signed", what)
		}
	}
	failing := func(yield func([]byte, error) bool) { yield(nil, io.ErrUnexpectedEOF) }
	if _, err := Sign(io.Discard, issuer.spec(1), 5, failing, issuer.key); err == nil {
		t.Error("a failing store: signed")
	}
}

func TestPartitionedAndDelta(t *testing.T) {
	issuer := p256(t)
	idp := &IssuingDistributionPoint{URIs: []string{"http://pki.example/crl/a/3.crl"}, OnlyUserCerts: true}
	list := func(number, base int64, idp *IssuingDistributionPoint, e ...Entry) *List {
		spec := issuer.spec(number)
		spec.IDP = idp
		if base > 0 {
			spec.BaseNumber = big.NewInt(base)
		}
		der, err := Encode(spec, e, issuer.key)
		if err != nil {
			t.Fatal(err)
		}
		l, err := Parse(der)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	base, next := list(5, 0, idp), list(9, 0, idp)
	delta := list(7, 5, idp, Entry{Serial: big.NewInt(3), RevokedAt: issuedAt, Reason: RemoveFromCRL})
	if !delta.IDP.Equal(idp) || delta.BaseNumber.Int64() != 5 {
		t.Fatalf("read back %+v", delta)
	}
	if e, ok := delta.Lookup(big.NewInt(3)); !ok || e.Reason != RemoveFromCRL {
		t.Errorf("removeFromCRL was lost: %+v", e)
	}
	if err := delta.CheckBase(base); err != nil {
		t.Error(err)
	}
	if err := next.CheckSuccessor(base); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"delta on a later base":   delta.CheckBase(next),
		"delta on an older base":  delta.CheckBase(list(4, 0, idp)),
		"delta on another scope":  delta.CheckBase(list(5, 0, nil)),
		"delta on a delta":        delta.CheckBase(list(6, 5, idp)),
		"complete as delta":       next.CheckBase(base),
		"number repeats":          base.CheckSuccessor(base),
		"number falls":            base.CheckSuccessor(next),
		"successor, other scope":  next.CheckSuccessor(list(5, 0, nil)),
		"other issuer's":          list(5, 0, nil).CheckIssuer(p256(t).certificate),
		"before it begins":        base.CheckTimes(issuedAt.Add(-time.Second)),
		"after it ended":          base.CheckTimes(issuedAt.AddDate(0, 0, 8)),
		"signature":               tampered(t, base).CheckIssuer(issuer.certificate),
		"removeFromCRL in a base": parseError(t, issuer),
	} {
		if err == nil {
			t.Errorf("%s: passes", what)
		}
	}
}

func tampered(t *testing.T, l *List) *List {
	t.Helper()
	c := *l
	c.RawTBS = slices.Clone(l.RawTBS)
	c.RawTBS[len(c.RawTBS)-1] ^= 1
	return &c
}

func parseError(t *testing.T, issuer testIssuer) error {
	t.Helper()
	der, err := Encode(issuer.spec(1), []Entry{{Serial: big.NewInt(1), RevokedAt: issuedAt, Reason: RemoveFromCRL}}, issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(der)
	return err
}

func TestPartitionIsSettled(t *testing.T) {
	// The values stand in certificates that are in the field: this table must never change.
	for serial, want := range map[int64]int{1: 69, 2: 13, 3: 77, 1 << 40: 62} {
		if got := Partition(big.NewInt(serial), 128); got != want {
			t.Errorf("Partition(%d, 128) = %d, want %d", serial, got, want)
		}
	}
	counts := make([]int, 16)
	for i := range int64(16000) {
		counts[Partition(big.NewInt(i), 16)]++
	}
	if slices.Min(counts) < 800 || slices.Max(counts) > 1200 {
		t.Errorf("sixteen partitions of 16000 serials hold %v", counts)
	}
	if Partition(big.NewInt(5), 1) != 0 || Partition(big.NewInt(5), 0) != 0 {
		t.Error("a single partition must be 0")
	}
}

func TestPEMIsStreamed(t *testing.T) {
	for n := range 200 {
		der := make([]byte, n)
		rand.Read(der)
		var out bytes.Buffer
		w := NewPEMWriter(&out)
		for rest := der; len(rest) > 0; {
			k := min(len(rest), 7)
			if _, err := w.Write(rest[:k]); err != nil {
				t.Fatal(err)
			}
			rest = rest[k:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if want := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}); n > 0 && !bytes.Equal(out.Bytes(), want) {
			t.Fatalf("%d octets become\n%s, want\n%s", n, out.Bytes(), want)
		}
		if PEMSize(int64(n)) != int64(out.Len()) {
			t.Fatalf("PEMSize(%d) = %d, and %d were written", n, PEMSize(int64(n)), out.Len())
		}
	}
	if _, err := FromPEM([]byte("hello")); !fault.Is(err, fault.Invalid) {
		t.Errorf("no PEM: %v", err)
	}
}

// million yields n entries in packs, as a store does, without holding them.
func million(n int) (int64, func(func([]byte, error) bool)) {
	entry := func(i int) []byte {
		serial := new(big.Int).SetBit(big.NewInt(int64(i)), 127, 1)
		der, _ := EncodeEntry(Entry{Serial: serial, RevokedAt: issuedAt, Reason: KeyCompromise})
		return der
	}
	return int64(n * len(entry(0))), func(yield func([]byte, error) bool) {
		pack := make([]byte, 0, 64<<10)
		for i := range n {
			pack = append(pack, entry(i)...)
			if len(pack) > 60<<10 {
				if !yield(pack, nil) {
					return
				}
				pack = pack[:0]
			}
		}
		yield(pack, nil)
	}
}

// TestMillionEntriesInLittleMemory signs a list of 1,000,000 entries and looks at the heap while it is on its way.
func TestMillionEntriesInLittleMemory(t *testing.T) {
	issuer := p256(t)
	length, entries := million(1_000_000)
	var peak uint64
	watch := writerFunc(func(p []byte) (int, error) {
		var m runtime.MemStats
		if len(p) > 1000 {
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		}
		return len(p), nil
	})
	frame, err := Sign(watch, issuer.spec(1), length, entries, issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	if frame.Entries != 1_000_000 || frame.Size() < length {
		t.Fatalf("frame %+v", frame)
	}
	if peak > 32<<20 {
		t.Errorf("the heap grew to %d MiB", peak>>20)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func BenchmarkSign1M(b *testing.B) {
	issuer := p256(b)
	length, entries := million(1_000_000)
	packed := make([]byte, 0, length)
	for p := range entries {
		packed = append(packed, p...)
	}
	b.SetBytes(length)
	for b.Loop() {
		stored := func(yield func([]byte, error) bool) {
			for p := range slices.Chunk(packed, int(length/1_000_000)*8192) {
				if !yield(p, nil) {
					return
				}
			}
		}
		if _, err := Sign(io.Discard, issuer.spec(1), length, stored, issuer.key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParse1M(b *testing.B) {
	issuer := p256(b)
	length, entries := million(1_000_000)
	var out bytes.Buffer
	if err := Write(&out, issuer.spec(1), length, entries, issuer.key); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(length)
	for b.Loop() {
		if _, err := Parse(out.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}
