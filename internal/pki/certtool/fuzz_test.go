package certtool

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// FuzzParse holds that nothing panics, that every refusal is one for the caller, and that a template that the strict mode
// accepts makes the same certificate and CRL in both modes, without warnings.
func FuzzParse(f *testing.F) {
	for _, c := range parityCases {
		f.Add([]byte(withFixed(c.template)), c.key == "ec")
	}
	for _, template := range fragments {
		f.Add([]byte(template), false)
	}
	f.Add([]byte("crl_number = 3\ncrl_next_update_date = \"next year\"\n"), true)
	now := time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC)
	rsaKey := &rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 2047), big.NewInt(1)), E: 65537}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 1)) // the same in each run
	if err != nil {
		f.Fatal(err)
	}
	ecKey := &private.PublicKey
	f.Fuzz(func(t *testing.T, text []byte, ec bool) {
		result := map[Mode][]byte{}
		for _, mode := range []Mode{Strict, Compat} {
			var key any = rsaKey
			if ec {
				key = ecKey
			}
			tbs, crl, warnings, err := fuzzBuild(text, mode, now, key)
			if err != nil && fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.TooLarge {
				t.Fatalf("mode %d: %v is no refusal", mode, err)
			}
			if err == nil && mode == Strict && len(warnings) > 0 {
				t.Fatalf("the strict mode warns: %v", warnings)
			}
			if err == nil {
				result[mode] = append(bytes.Clone(tbs), crl...)
				whole := element(0x30, append(bytes.Clone(tbs), 0x30, 3, 6, 1, 0x2a, 3, 1, 0))
				if err := Print(io.Discard, whole); err != nil {
					t.Fatalf("mode %d: %v", mode, err)
				}
			}
		}
		if strict, ok := result[Strict]; ok && !bytes.Equal(strict, result[Compat]) {
			t.Fatalf("the modes differ: strict %x, compat %x", strict, result[Compat])
		}
	})
}

func fuzzBuild(text []byte, mode Mode, now time.Time, key any) (tbs, crl []byte, warnings []Warning, err error) {
	parsed, warnings, err := Parse(text, mode)
	if err != nil {
		return nil, nil, nil, err
	}
	list, err := parsed.CRL(now)
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := parsed.Certificate(now, key, Options{SelfSigned: true})
	if err != nil {
		return nil, nil, nil, err
	}
	if c.Serial == nil {
		c.Serial = big.NewInt(1)
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("encode the test's key: %w", err)
	}
	built, err := cert.BuildSelfSigned(c.Template, spki, c.Serial, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	return built.DER(), fmt.Appendf(nil, "%v %v %v %v", list.Number, list.ThisUpdate, list.NextUpdate, list.RevokedAt), warnings, nil
}

func FuzzPrint(f *testing.F) {
	l := newLab(f)
	for i, c := range parityCases {
		if i%20 != 0 || c.refused {
			continue
		}
		if der, _ := l.generate(f, withFixed(c.template), "rsa"); der != nil {
			f.Add(der)
		}
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		var a, b bytes.Buffer
		errA, errB := Print(&a, der), PrintUnsigned(&b, der)
		if (errA == nil) != (errB == nil) {
			t.Fatalf("signed: %v, unsigned: %v", errA, errB)
		}
		_ = PrintCRL(io.Discard, der) // must not panic
	})
}
