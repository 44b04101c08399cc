package cert

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"

	"chancery/internal/fault"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// TBS is an encoded TBSCertificate (RFC 5280 4.1.2) that nobody has judged yet, with what its lints compare it to.
type TBS struct {
	der       []byte
	algorithm SignatureAlgorithm
	issuerKey crypto.PublicKey
	issuer    *Issuer // nil: self-signed
}

// DER returns a copy of the encoded TBSCertificate.
func (t *TBS) DER() []byte { return bytes.Clone(t.der) }

// Build encodes a certificate for the key spki under issuer. It refuses only what cannot be encoded; everything else is
// for Lint to judge.
func Build(t *Template, spki []byte, serial *big.Int, issuer *Issuer) (*TBS, error) {
	if issuer == nil || issuer.Certificate == nil {
		return nil, errors.New("build a certificate without an issuer")
	}
	algorithm, err := issuer.Algorithm.For(issuer.Certificate.PublicKey)
	if err != nil {
		return nil, err
	}
	tbs := &TBS{algorithm: algorithm, issuerKey: issuer.Certificate.PublicKey, issuer: issuer}
	authorityKeyID := t.AuthorityKeyID
	if len(authorityKeyID) == 0 {
		authorityKeyID = issuer.Certificate.SubjectKeyId
	}
	return tbs.encode(t, spki, serial, issuer.Certificate.RawSubject, authorityKeyID)
}

// BuildSelfSigned encodes a root: issuer and subject are the template's subject, and the signer is to have the key spki.
func BuildSelfSigned(t *Template, spki []byte, serial *big.Int, algorithm SignatureAlgorithm) (*TBS, error) {
	key, err := ParsePublicKey(spki)
	if err != nil {
		return nil, err
	}
	if algorithm, err = algorithm.For(key); err != nil {
		return nil, err
	}
	authorityKeyID := t.AuthorityKeyID
	if len(authorityKeyID) == 0 {
		authorityKeyID = t.SubjectKeyIDValue
	}
	if len(authorityKeyID) == 0 {
		authorityKeyID = SubjectKeyIDOf(spki, t.SubjectKeyID)
	}
	tbs := &TBS{algorithm: algorithm, issuerKey: key}
	return tbs.encode(t, spki, serial, nil, authorityKeyID)
}

// encode writes the TBSCertificate; a nil issuerName stands for the subject.
func (tbs *TBS) encode(t *Template, spki []byte, serial *big.Int, issuerName, authorityKeyID []byte) (*TBS, error) {
	if serial == nil {
		return nil, errors.New("build a certificate without a serial number")
	}
	subject, err := t.Subject.DER()
	if err != nil {
		return nil, fault.New(fault.Invalid, "subject: %w", err)
	}
	if _, _, err := splitSPKI(spki); err != nil {
		return nil, fault.New(fault.Invalid, "public key: %w", err)
	}
	if issuerName == nil {
		issuerName = subject
	}
	if t.OmitAuthorityKeyID {
		authorityKeyID = nil
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 512+len(spki)+len(subject)+len(issuerName)))
	var failed error
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(contextTag(0).Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) }) // v3
		b.AddASN1BigInt(serial)
		b.AddBytes(tbs.algorithm.Identifier())
		b.AddBytes(issuerName)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, t.NotBefore)
			addTime(b, t.NotAfter)
		})
		b.AddBytes(subject)
		b.AddBytes(spki)
		addUniqueID(b, 1, t.IssuerUniqueID)
		addUniqueID(b, 2, t.SubjectUniqueID)
		failed = addExtensions(b, t, spki, authorityKeyID)
	})
	if failed != nil {
		return nil, failed
	}
	if tbs.der, err = b.Bytes(); err != nil {
		return nil, fmt.Errorf("encode TBSCertificate: %w", err)
	}
	return tbs, nil
}

// addExtensions leaves the field out where there are none, as RFC 5280 4.1 wants: the sequence must not be empty.
func addExtensions(b *cryptobyte.Builder, t *Template, spki, authorityKeyID []byte) error {
	inner := extensionList{b: cryptobyte.NewBuilder(make([]byte, 0, 512))}
	inner.addTemplate(t, spki, authorityKeyID)
	if inner.err != nil {
		return inner.err
	}
	extensions, err := inner.b.Bytes()
	if err != nil {
		return fmt.Errorf("encode extensions: %w", err)
	}
	if len(extensions) > 0 {
		b.AddASN1(contextTag(3).Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(extensions) })
		})
	}
	return nil
}

func addUniqueID(b *cryptobyte.Builder, tag uint8, id []byte) {
	if len(id) > 0 {
		b.AddASN1(contextTag(tag), func(b *cryptobyte.Builder) {
			b.AddUint8(0) // no unused bits
			b.AddBytes(id)
		})
	}
}

// addTime writes UTCTime up to the year 2049 and GeneralizedTime from 2050 on (RFC 5280 4.1.2.5). Years before 1950 are
// beyond UTCTime too.
func addTime(b *cryptobyte.Builder, t time.Time) {
	t = t.UTC().Truncate(time.Second)
	if year := t.Year(); 1950 <= year && year <= 2049 {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

// Linted is a TBSCertificate that passed its lints and may be signed once.
type Linted struct {
	tbs      *TBS
	warnings []error
	serial   *big.Int
	consumed atomic.Bool
}

// TBS returns a copy of the encoded TBSCertificate, for a dry run or a log: what was linted cannot be changed any more.
func (l *Linted) TBS() []byte { return bytes.Clone(l.tbs.der) }

// SerialNumber is the serial number in the TBSCertificate.
func (l *Linted) SerialNumber() *big.Int { return new(big.Int).Set(l.serial) }

// Algorithm is what it will be signed with.
func (l *Linted) Algorithm() SignatureAlgorithm { return l.tbs.algorithm }

// Warnings are the lints that failed and were turned off.
func (l *Linted) Warnings() []error { return l.warnings }

// ErrConsumed is returned by the second call of Sign.
var ErrConsumed = errors.New("sign a certificate that was signed before")

// Sign signs the TBSCertificate and returns the certificate. It consumes l, also when it fails: a second call is an
// error. The signer must hold the key that the certificate names as its issuer's.
func (l *Linted) Sign(signer crypto.Signer) ([]byte, error) { return l.sign(signer, false) }

// SignVerified is Sign, and verifies the signature before it returns: for roots and for keys in hardware, where a fault
// that goes unseen costs more than the time.
func (l *Linted) SignVerified(signer crypto.Signer) ([]byte, error) { return l.sign(signer, true) }

func (l *Linted) sign(signer crypto.Signer, verify bool) ([]byte, error) {
	if !l.consumed.CompareAndSwap(false, true) {
		return nil, ErrConsumed
	}
	if key, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(l.tbs.issuerKey) {
		return nil, errors.New("sign a certificate with a key that is not its issuer's")
	}
	signature, err := l.tbs.algorithm.Sign(signer, l.tbs.der)
	if err != nil {
		return nil, err
	}
	if verify {
		if err := l.tbs.algorithm.Verify(l.tbs.issuerKey, l.tbs.der, signature); err != nil {
			return nil, fmt.Errorf("check own signature: %w", err)
		}
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(l.tbs.der)+len(signature)+32))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(l.tbs.der)
		b.AddBytes(l.tbs.algorithm.Identifier())
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}
