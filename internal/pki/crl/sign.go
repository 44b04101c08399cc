package crl

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// MaxBuffered bounds a list that has to be in memory whole, because its algorithm signs messages and not digests.
const MaxBuffered = 64 << 20

// Frame is what stands around the TBSCertList in the finished CRL: Head + TBS + Tail are the DER. It is apart because the
// length in Head counts the signature, which for ECDSA varies by some octets and is known only when all is hashed; so the
// body can be stored while it is made, entries pass once, and the key signs once.
type Frame struct {
	Head    []byte // tag and length of CertificateList
	TBSSize int64
	Tail    []byte // signatureAlgorithm and signatureValue
	Entries int64
}

// Size is the length of the finished CRL.
func (f *Frame) Size() int64 { return int64(len(f.Head)) + f.TBSSize + int64(len(f.Tail)) }

// Unsigned is a CRL whose TBSCertList is written, and which waits for its signature.
type Unsigned struct {
	tbs       *tbsWriter
	algorithm cert.SignatureAlgorithm
	signer    crypto.Signer
	entries   int64
}

// Prepare writes the TBSCertList to w, and leaves to Sign what the signer does: a key in a token may take its time, and whoever
// reads entries from a store need not have that open meanwhile. entries yields whole encoded entries, one or many in a slice, of
// length octets altogether; fewer or more is an error, and then what w has is worth nothing. The slices are not kept.
func Prepare(w io.Writer, spec *Spec, length int64, entries iter.Seq2[[]byte, error], signer crypto.Signer) (*Unsigned, error) {
	if err := spec.check(signer.Public()); err != nil {
		return nil, err
	}
	algorithm, err := spec.Algorithm.For(signer.Public())
	if err != nil {
		return nil, err
	}
	preamble, err := spec.preamble(algorithm.Identifier())
	if err != nil {
		return nil, fmt.Errorf("encode CRL: %w", err)
	}
	extensions, err := spec.extensions()
	if err != nil {
		return nil, fmt.Errorf("encode CRL extensions: %w", err)
	}
	var revoked []byte // header of revokedCertificates, which MUST be absent when nothing is revoked (RFC 5280 §5.1.2.6)
	if length > 0 {
		revoked = header(cbasn1.SEQUENCE, length)
	}
	body := int64(len(preamble)+len(revoked)+len(extensions)) + length
	tbs := &tbsWriter{w: w}
	tbsHeader := header(cbasn1.SEQUENCE, body)
	if err := tbs.start(algorithm.Hash(), body+int64(len(tbsHeader))); err != nil {
		return nil, err
	}
	tbs.write(tbsHeader)
	tbs.write(preamble)
	tbs.write(revoked)
	count, err := tbs.writeEntries(length, entries)
	if err != nil {
		return nil, err
	}
	tbs.write(extensions)
	if tbs.err != nil {
		return nil, fmt.Errorf("write CRL: %w", tbs.err)
	}
	return &Unsigned{tbs: tbs, algorithm: algorithm, signer: signer, entries: count}, nil
}

// Sign has the signer sign the list.
func (u *Unsigned) Sign() (*Frame, error) {
	frame, err := u.tbs.sign(u.algorithm, u.signer)
	if err != nil {
		return nil, err
	}
	frame.Entries = u.entries
	return frame, nil
}

// Sign is Prepare and the signature in one.
func Sign(w io.Writer, spec *Spec, length int64, entries iter.Seq2[[]byte, error], signer crypto.Signer) (*Frame, error) {
	u, err := Prepare(w, spec, length, entries, signer)
	if err != nil {
		return nil, err
	}
	return u.Sign()
}

// Write writes a whole CRL to w. It holds the list in memory and is for short ones; the store of long ones uses Sign.
func Write(w io.Writer, spec *Spec, length int64, entries iter.Seq2[[]byte, error], signer crypto.Signer) error {
	var tbs bytes.Buffer
	frame, err := Sign(&tbs, spec, length, entries, signer)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{frame.Head, tbs.Bytes(), frame.Tail} {
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("write CRL: %w", err)
		}
	}
	return nil
}

// Encode returns a whole CRL over entries that are not encoded yet.
func Encode(spec *Spec, entries []Entry, signer crypto.Signer) ([]byte, error) {
	var packed []byte
	for _, e := range entries {
		der, err := EncodeEntry(e)
		if err != nil {
			return nil, err
		}
		packed = append(packed, der...)
	}
	var out bytes.Buffer
	err := Write(&out, spec, int64(len(packed)), func(yield func([]byte, error) bool) { yield(packed, nil) }, signer)
	return out.Bytes(), err
}

// tbsWriter passes the TBSCertList on and keeps what will be signed: a running hash, or for Ed25519 the octets.
type tbsWriter struct {
	w       io.Writer
	hash    hash.Hash
	message []byte // nil when hash is set
	size    int64
	err     error
}

func (t *tbsWriter) start(h crypto.Hash, size int64) error {
	if h != 0 {
		t.hash = h.New()
		return nil
	}
	if size > MaxBuffered {
		return fault.New(fault.TooLarge, "a CRL of %d octets is over the %d that Ed25519, which signs no digest, can sign here", size, MaxBuffered).
			WithHint("partition the issuer's CRL, or use an ECDSA issuer")
	}
	t.message = make([]byte, 0, size)
	return nil
}

func (t *tbsWriter) write(p []byte) {
	if t.err != nil {
		return
	}
	if t.hash != nil {
		t.hash.Write(p)
	} else {
		t.message = append(t.message, p...)
	}
	t.size += int64(len(p))
	_, t.err = t.w.Write(p)
}

// writeEntries walks over the entries' outermost headers, so that a store that lost octets is noticed before the list is
// signed and not by its readers.
func (t *tbsWriter) writeEntries(length int64, entries iter.Seq2[[]byte, error]) (count int64, err error) {
	left := length
	for packed, err := range entries {
		if err != nil {
			return 0, fmt.Errorf("read CRL entries: %w", err)
		}
		n, err := countEntries(packed)
		if err != nil {
			return 0, err
		}
		count += n
		if left -= int64(len(packed)); left < 0 {
			break
		}
		if t.write(packed); t.err != nil {
			return 0, fmt.Errorf("write CRL: %w", t.err)
		}
	}
	if left != 0 {
		return 0, fmt.Errorf("CRL entries are %d octets, and %d were announced", length-left, length)
	}
	return count, nil
}

// countEntries counts the elements of a run of encoded entries.
func countEntries(packed []byte) (n int64, err error) {
	for rest := packed; len(rest) > 0; n++ {
		size := elementSize(rest)
		if size <= 0 || size > len(rest) {
			return 0, errors.New("stored CRL entries are damaged: they are not a run of whole SEQUENCEs")
		}
		rest = rest[size:]
	}
	return n, nil
}

// elementSize is the length of the SEQUENCE that begins der, or 0. Entries are short, so lengths of up to two octets do.
func elementSize(der []byte) int {
	switch {
	case len(der) < 2 || der[0] != 0x30:
		return 0
	case der[1] < 0x80:
		return 2 + int(der[1])
	case der[1] == 0x81 && len(der) > 2 && der[2] >= 0x80:
		return 3 + int(der[2])
	case der[1] == 0x82 && len(der) > 3 && der[2] != 0:
		return 4 + int(der[2])<<8 + int(der[3])
	default:
		return 0
	}
}

func (t *tbsWriter) sign(algorithm cert.SignatureAlgorithm, signer crypto.Signer) (*Frame, error) {
	signed := t.message
	if t.hash != nil {
		signed = t.hash.Sum(nil)
	}
	signature, err := algorithm.SignDigest(signer, signed)
	if err != nil {
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	var b cryptobyte.Builder
	b.AddBytes(algorithm.Identifier())
	b.AddASN1BitString(signature)
	tail, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode CRL signature: %w", err)
	}
	return &Frame{Head: header(cbasn1.SEQUENCE, t.size+int64(len(tail))), TBSSize: t.size, Tail: tail}, nil
}

// header is the tag and the length of a DER element.
func header(tag cbasn1.Tag, length int64) []byte {
	if length < 0x80 {
		return []byte{byte(tag), byte(length)}
	}
	var octets []byte
	for n := length; n > 0; n >>= 8 {
		octets = append([]byte{byte(n)}, octets...)
	}
	return append([]byte{byte(tag), 0x80 | byte(len(octets))}, octets...)
}
