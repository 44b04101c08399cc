package probe

import (
	"bufio"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// The tags of RFC 4511 that are used here: application 23 and 24, context 0.
const (
	extendedRequest  = asn1.Tag(23 | 0x60)
	extendedResponse = asn1.Tag(24 | 0x60)
	requestName      = asn1.Tag(0 | 0x80)
)

// startTLSOID is the request name of StartTLS, RFC 4511 section 4.14.1.
const startTLSOID = "1.3.6.1.4.1.1466.20037"

// startLDAP sends an extended request and reads its response.
func startLDAP(in *bufio.Reader, out io.Writer, _ string) error {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(extendedRequest, func(b *cryptobyte.Builder) {
			b.AddASN1(requestName, func(b *cryptobyte.Builder) { b.AddBytes([]byte(startTLSOID)) })
		})
	})
	if _, err := out.Write(b.BytesOrPanic()); err != nil {
		return err
	}
	body, err := readElement(in)
	if err != nil {
		return err
	}
	var id, code []byte
	s, op := cryptobyte.String(body), cryptobyte.String(nil)
	if !s.ReadASN1Bytes(&id, asn1.INTEGER) || string(id) != "\x01" || !s.ReadASN1(&op, extendedResponse) ||
		!op.ReadASN1Bytes(&code, asn1.ENUM) || len(code) != 1 {
		return fmt.Errorf("%w: the answer is no LDAP extended response", ErrNotTLS)
	}
	if code[0] != 0 {
		return fmt.Errorf("%w: the server answers StartTLS with result code %d", ErrNotTLS, code[0])
	}
	return nil
}

// readElement reads one BER SEQUENCE of definite length, which is what RFC 4511 section 5.1 allows, and returns its body.
func readElement(in *bufio.Reader) ([]byte, error) {
	tag, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	first, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	size := int(first)
	if first >= 0x80 {
		octets := int(first & 0x7f)
		if octets == 0 || octets > 4 {
			return nil, fmt.Errorf("%w: a length of %d octets", ErrNotTLS, octets)
		}
		size = 0
		for range octets {
			b, err := in.ReadByte()
			if err != nil {
				return nil, err
			}
			size = size<<8 | int(b)
		}
	}
	if tag != byte(asn1.SEQUENCE) || size > startTLSLimit {
		return nil, fmt.Errorf("%w: the answer begins with octet %#x and has %d octets", ErrNotTLS, tag, size)
	}
	body := make([]byte, size)
	_, err = io.ReadFull(in, body)
	return body, err
}
