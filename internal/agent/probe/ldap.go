package probe

import (
	"bufio"
	"bytes"
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
	code, err := ldapResult(in)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("%w: the server answers StartTLS with result code %d", ErrNotTLS, code)
	}
	return nil
}

// ldapResult reads the response to message 1 and returns its result code. Lengths may have more octets than they need:
// RFC 4511 section 5.1 does not ask for DER, and Active Directory pads them.
func ldapResult(in *bufio.Reader) (byte, error) {
	message, err := readElement(in, asn1.SEQUENCE)
	if err != nil {
		return 0, err
	}
	rest := bufio.NewReader(bytes.NewReader(message))
	id, err := readElement(rest, asn1.INTEGER)
	if err != nil {
		return 0, err
	}
	response, err := readElement(rest, extendedResponse)
	if err != nil {
		return 0, err
	}
	code, err := readElement(bufio.NewReader(bytes.NewReader(response)), asn1.ENUM)
	if err != nil {
		return 0, err
	}
	if string(id) != "\x01" || len(code) != 1 {
		return 0, fmt.Errorf("%w: the answer is no LDAP response to our request", ErrNotTLS)
	}
	return code[0], nil
}

// readElement reads one BER element of the tag and of definite length, and returns its content.
func readElement(in *bufio.Reader, tag asn1.Tag) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, err
	}
	size := int(head[1])
	if size >= 0x80 {
		octets := size & 0x7f
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
	if head[0] != byte(tag) || size > startTLSLimit {
		return nil, fmt.Errorf("%w: an element with tag %#x and %d octets, where tag %#x was expected", ErrNotTLS, head[0], size, byte(tag))
	}
	content := make([]byte, size)
	_, err := io.ReadFull(in, content)
	return content, err
}
