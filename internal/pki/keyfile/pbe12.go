package keyfile

import (
	"bytes"
	"crypto/cipher"
	"crypto/des"
	"crypto/sha1"
	encasn1 "encoding/asn1"
	"encoding/binary"
	"fmt"
	"hash"
	"math/bits"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

// The encryption schemes of RFC 7292 appendix C. They are read, because CAs and key stores of earlier years are in them,
// and never written.
var (
	oidPBE3DES   = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 3}
	oidPBE2DES   = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 4}
	oidPBERC2128 = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 5}
	oidPBERC240  = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 6}
)

// The purposes that RFC 7292 appendix B.3 derives for.
const (
	deriveKeyMaterial = 1
	deriveIV          = 2
	deriveMACKey      = 3
)

// bmpPassword is a password as RFC 7292 appendix B.1 wants it: BMPString with two zero octets after it. It is never nil.
func bmpPassword(password []byte) []byte {
	out := []byte{}
	for _, u := range utf16.Encode([]rune(string(password))) {
		out = binary.BigEndian.AppendUint16(out, u)
	}
	return append(out, 0, 0)
}

// derive12 is the key derivation of RFC 7292 appendix B.2.
func derive12(newHash func() hash.Hash, bmp, salt []byte, iterations int, purpose byte, size int) []byte {
	h := newHash()
	u, v := h.Size(), h.BlockSize()
	d := bytes.Repeat([]byte{purpose}, v)
	i := append(fillBlocks(salt, v), fillBlocks(bmp, v)...)
	var out []byte
	for {
		h.Reset()
		h.Write(d)
		h.Write(i)
		a := h.Sum(nil)
		for range iterations - 1 {
			h.Reset()
			h.Write(a)
			a = h.Sum(a[:0])
		}
		if out = append(out, a...); len(out) >= size {
			return out[:size]
		}
		b := fillTo(a[:u], v)
		for at := 0; at < len(i); at += v {
			addOne(i[at:at+v], b)
		}
	}
}

// fillBlocks repeats p to the next multiple of v octets; nothing stays nothing.
func fillBlocks(p []byte, v int) []byte {
	if len(p) == 0 {
		return nil
	}
	return fillTo(p, v*((len(p)+v-1)/v))
}

func fillTo(p []byte, n int) []byte {
	out := make([]byte, 0, n+len(p))
	for len(out) < n {
		out = append(out, p...)
	}
	return out[:n]
}

// addOne sets block to block + b + 1 as big-endian numbers, without the carry out.
func addOne(block, b []byte) {
	carry := 1
	for j := len(block) - 1; j >= 0; j-- {
		carry += int(block[j]) + int(b[j])
		block[j] = byte(carry)
		carry >>= 8
	}
}

// pkcs12Mode reads pkcs-12PbeParams and returns the decrypter of the scheme.
func pkcs12Mode(oid encasn1.ObjectIdentifier, algorithm cryptobyte.String, bmp []byte, left *budget) (cipher.BlockMode, error) {
	var params cryptobyte.String
	var salt []byte
	var iterations int
	if !algorithm.ReadASN1(&params, asn1.SEQUENCE) || !algorithm.Empty() || !params.ReadASN1Bytes(&salt, asn1.OCTET_STRING) ||
		!params.ReadASN1Integer(&iterations) || !params.Empty() || len(salt) > 1024 {
		return nil, fault.New(fault.Invalid, "the PKCS#12 encryption parameters are not valid")
	}
	keySize := 0
	switch {
	case oid.Equal(oidPBE3DES):
		keySize = 24
	case oid.Equal(oidPBE2DES), oid.Equal(oidPBERC2128):
		keySize = 16
	case oid.Equal(oidPBERC240):
		keySize = 5
	default:
		return nil, unknownPBE(oid)
	}
	if err := left.spend(iterations); err != nil {
		return nil, err
	}
	if err := left.spend(iterations); err != nil { // the IV is derived as dearly as the key
		return nil, err
	}
	key := derive12(sha1.New, bmp, salt, iterations, deriveKeyMaterial, keySize)
	iv := derive12(sha1.New, bmp, salt, iterations, deriveIV, 8)
	var c cipher.Block
	var err error
	switch {
	case oid.Equal(oidPBE3DES):
		c, err = des.NewTripleDESCipher(key)
	case oid.Equal(oidPBE2DES):
		c, err = des.NewTripleDESCipher(append(key, key[:8]...))
	default:
		c = newRC2(key)
	}
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return cipher.NewCBCDecrypter(c, iv), nil
}

// rc2 is the block cipher of RFC 2268, for decryption only: until 2021 OpenSSL and Java sealed the certificates of every
// PKCS#12 file with it.
type rc2 struct{ k [64]uint16 }

// newRC2 expands key with an effective length of all its bits (RFC 2268 section 2).
func newRC2(key []byte) *rc2 {
	var l [128]byte
	copy(l[:], key)
	t := len(key)
	for i := t; i < 128; i++ {
		l[i] = rc2PiTable[l[i-1]+l[i-t]]
	}
	l[128-t] = rc2PiTable[l[128-t]]
	for i := 127 - t; i >= 0; i-- {
		l[i] = rc2PiTable[l[i+1]^l[i+t]]
	}
	c := new(rc2)
	for i := range c.k {
		c.k[i] = binary.LittleEndian.Uint16(l[2*i:])
	}
	return c
}

func (*rc2) BlockSize() int { return 8 }

// Encrypt is there for cipher.Block; nothing is ever sealed with RC2.
func (*rc2) Encrypt(_, _ []byte) { panic("keyfile: RC2 is not used to encrypt") }

// Decrypt undoes RFC 2268 section 3: five, six and five mixing rounds with a mashing round between.
func (c *rc2) Decrypt(dst, src []byte) {
	var r [4]uint16
	for i := range r {
		r[i] = binary.LittleEndian.Uint16(src[2*i:])
	}
	shifts := [4]int{1, 2, 3, 5}
	for j := 63; j >= 0; {
		for i := 3; i >= 0; i-- {
			r[i] = bits.RotateLeft16(r[i], -shifts[i])
			r[i] -= c.k[j] + (r[(i+3)&3] & r[(i+2)&3]) + (^r[(i+3)&3] & r[(i+1)&3])
			j--
		}
		if j == 43 || j == 19 {
			for i := 3; i >= 0; i-- {
				r[i] -= c.k[r[(i+3)&3]&63]
			}
		}
	}
	for i := range r {
		binary.LittleEndian.PutUint16(dst[2*i:], r[i])
	}
}

// rc2PiTable is the permutation of RFC 2268 section 2, made from the digits of pi.
var rc2PiTable = [256]byte{
	0xd9, 0x78, 0xf9, 0xc4, 0x19, 0xdd, 0xb5, 0xed, 0x28, 0xe9, 0xfd, 0x79, 0x4a, 0xa0, 0xd8, 0x9d,
	0xc6, 0x7e, 0x37, 0x83, 0x2b, 0x76, 0x53, 0x8e, 0x62, 0x4c, 0x64, 0x88, 0x44, 0x8b, 0xfb, 0xa2,
	0x17, 0x9a, 0x59, 0xf5, 0x87, 0xb3, 0x4f, 0x13, 0x61, 0x45, 0x6d, 0x8d, 0x09, 0x81, 0x7d, 0x32,
	0xbd, 0x8f, 0x40, 0xeb, 0x86, 0xb7, 0x7b, 0x0b, 0xf0, 0x95, 0x21, 0x22, 0x5c, 0x6b, 0x4e, 0x82,
	0x54, 0xd6, 0x65, 0x93, 0xce, 0x60, 0xb2, 0x1c, 0x73, 0x56, 0xc0, 0x14, 0xa7, 0x8c, 0xf1, 0xdc,
	0x12, 0x75, 0xca, 0x1f, 0x3b, 0xbe, 0xe4, 0xd1, 0x42, 0x3d, 0xd4, 0x30, 0xa3, 0x3c, 0xb6, 0x26,
	0x6f, 0xbf, 0x0e, 0xda, 0x46, 0x69, 0x07, 0x57, 0x27, 0xf2, 0x1d, 0x9b, 0xbc, 0x94, 0x43, 0x03,
	0xf8, 0x11, 0xc7, 0xf6, 0x90, 0xef, 0x3e, 0xe7, 0x06, 0xc3, 0xd5, 0x2f, 0xc8, 0x66, 0x1e, 0xd7,
	0x08, 0xe8, 0xea, 0xde, 0x80, 0x52, 0xee, 0xf7, 0x84, 0xaa, 0x72, 0xac, 0x35, 0x4d, 0x6a, 0x2a,
	0x96, 0x1a, 0xd2, 0x71, 0x5a, 0x15, 0x49, 0x74, 0x4b, 0x9f, 0xd0, 0x5e, 0x04, 0x18, 0xa4, 0xec,
	0xc2, 0xe0, 0x41, 0x6e, 0x0f, 0x51, 0xcb, 0xcc, 0x24, 0x91, 0xaf, 0x50, 0xa1, 0xf4, 0x70, 0x39,
	0x99, 0x7c, 0x3a, 0x85, 0x23, 0xb8, 0xb4, 0x7a, 0xfc, 0x02, 0x36, 0x5b, 0x25, 0x55, 0x97, 0x31,
	0x2d, 0x5d, 0xfa, 0x98, 0xe3, 0x8a, 0x92, 0xae, 0x05, 0xdf, 0x29, 0x10, 0x67, 0x6c, 0xba, 0xc9,
	0xd3, 0x00, 0xe6, 0xcf, 0xe1, 0x9e, 0xa8, 0x2c, 0x63, 0x16, 0x01, 0x3f, 0x58, 0xe2, 0x89, 0xa9,
	0x0d, 0x38, 0x34, 0x1b, 0xab, 0x33, 0xff, 0xb0, 0xbb, 0x48, 0x0c, 0x5f, 0xb9, 0xb1, 0xcd, 0x2e,
	0xc5, 0xf3, 0xdb, 0x47, 0xe5, 0xa5, 0x9c, 0x77, 0x0a, 0xa6, 0x20, 0x68, 0xfe, 0x7f, 0xc1, 0xad,
}
