package cert

import (
	"crypto"
	"encoding/asn1"
	"math/big"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// rawCSR builds a request of any content whatever, signed by key as if it were fine.
type rawCSR struct {
	version    []byte
	subject    []byte
	spki       []byte
	attributes func(b *cryptobyte.Builder)
	identifier []byte // of the signature algorithm
	tail       []byte
}

func (r rawCSR) der(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	if r.version == nil {
		r.version = []byte{2, 1, 0}
	}
	if r.subject == nil {
		r.subject = []byte{0x30, 0}
	}
	if r.spki == nil {
		r.spki = spkiOf(t, key)
	}
	algorithm, err := DefaultAlgorithm(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if r.identifier == nil {
		r.identifier = algorithm.Identifier()
	}
	if r.attributes == nil {
		r.attributes = func(*cryptobyte.Builder) {}
	}
	var info cryptobyte.Builder
	info.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(r.version)
		b.AddBytes(r.subject)
		b.AddBytes(r.spki)
		b.AddASN1(contextTag(0).Constructed(), r.attributes)
	})
	signature, err := algorithm.Sign(key, info.BytesOrPanic())
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info.BytesOrPanic())
		b.AddBytes(r.identifier)
		b.AddASN1BitString(signature)
	})
	return append(b.BytesOrPanic(), r.tail...)
}

// request makes the attribute of type oid that asks for the extensions.
func request(oid asn1.ObjectIdentifier, extensions ...Extension) func(b *cryptobyte.Builder) {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					x := extensionList{b: b}
					for _, e := range extensions {
						x.raw(e)
					}
				})
			})
		})
	}
}

func sanOf(names ...string) Extension {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, name := range names {
			b.AddASN1(contextTag(uint8(DNS)), func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
		}
	})
	return Extension{ID: OIDSubjectAltName, Value: b.BytesOrPanic()}
}

func rsaSPKI(n, e *big.Int) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidRSA)
			b.AddASN1NULL()
		})
		var key cryptobyte.Builder
		key.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1BigInt(n)
			b.AddASN1BigInt(e)
		})
		b.AddASN1BitString(key.BytesOrPanic())
	})
	return b.BytesOrPanic()
}

func ecSPKI(curve asn1.ObjectIdentifier, point []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidECKey)
			b.AddASN1ObjectIdentifier(curve)
		})
		b.AddASN1BitString(point)
	})
	return b.BytesOrPanic()
}

// oddBits is an odd number of exactly so many bits.
func oddBits(bits uint) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return n.SetBit(n, 0, 1)
}

// sha1Identifier is ecdsa-with-SHA1.
var sha1Identifier = []byte("\x30\x09\x06\x07\x2a\x86\x48\xce\x3d\x04\x01")

func twice(attribute func(b *cryptobyte.Builder)) func(b *cryptobyte.Builder) {
	return func(b *cryptobyte.Builder) { attribute(b); attribute(b) }
}

func rawSAN(kind GeneralNameKind, content []byte) Extension {
	name := element(contextTag(uint8(kind)), content)
	return Extension{ID: OIDSubjectAltName, Value: element(cbasn1.SEQUENCE, name)}
}

func commonNameDER(tag cbasn1.Tag, text string) []byte {
	oid := []byte{6, 3, 0x55, 4, 3}
	attribute := element(cbasn1.SEQUENCE, append(oid, element(tag, []byte(text))...))
	return element(cbasn1.SEQUENCE, element(cbasn1.SET, attribute))
}

func ed25519SPKI(octets int) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(Ed25519.Identifier())
		b.AddASN1BitString(make([]byte, octets))
	})
	return b.BytesOrPanic()
}

func algorithmSPKI(oid asn1.ObjectIdentifier) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oid) })
		b.AddASN1BitString([]byte{1})
	})
	return b.BytesOrPanic()
}
