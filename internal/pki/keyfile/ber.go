package keyfile

import (
	"errors"

	"golang.org/x/crypto/cryptobyte/asn1"
)

var errBER = errors.New("not valid BER")

const berDepth = 32

// berToDER rewrites BER as far as NSS and Windows use it: indefinite lengths become definite, long forms of length
// shortest, and constructed OCTET STRINGs whole. It does not sort sets. What is DER already comes back equal.
func berToDER(data []byte) ([]byte, error) {
	out, rest, err := berElement(nil, data, 0)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, errBER
	}
	return out, nil
}

// berElement appends the DER of the first element of in to out. Each level copies its content once, so the cost is
// bounded by the depth times the length.
func berElement(out, in []byte, depth int) (der, rest []byte, err error) {
	if depth > berDepth || len(in) < 2 {
		return nil, nil, errBER
	}
	tag := in[0]
	if tag&0x1f == 0x1f { // no type read here has a tag above 30
		return nil, nil, errBER
	}
	content, rest, indefinite, err := berLength(in)
	if err != nil {
		return nil, nil, err
	}
	if tag&0x20 == 0 {
		if indefinite {
			return nil, nil, errBER
		}
		return appendDER(out, tag, content), rest, nil
	}
	var body []byte
	chunks := tag == byte(asn1.OCTET_STRING)|0x20
	for {
		if indefinite && len(content) >= 2 && content[0] == 0 && content[1] == 0 {
			rest = content[2:]
			break
		}
		if len(content) == 0 {
			if indefinite {
				return nil, nil, errBER
			}
			break
		}
		if chunks {
			body, content, err = berChunk(body, content, depth+1)
		} else {
			body, content, err = berElement(body, content, depth+1)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if chunks {
		tag = byte(asn1.OCTET_STRING)
	}
	return appendDER(out, tag, body), rest, nil
}

// berChunk appends the content of one chunk of a constructed OCTET STRING.
func berChunk(out, in []byte, depth int) (body, rest []byte, err error) {
	der, rest, err := berElement(nil, in, depth)
	if err != nil || der[0] != byte(asn1.OCTET_STRING) {
		return nil, nil, errBER
	}
	content, _, _, err := berLength(der)
	if err != nil {
		return nil, nil, err
	}
	return append(out, content...), rest, nil
}

// berLength splits off the content of the first element; that of an indefinite one runs to the end of in.
func berLength(in []byte) (content, rest []byte, indefinite bool, err error) {
	n, at := int(in[1]), 2
	switch {
	case n == 0x80:
		return in[at:], nil, true, nil
	case n > 0x84:
		return nil, nil, false, errBER
	case n > 0x80:
		count := n - 0x80
		if len(in) < at+count {
			return nil, nil, false, errBER
		}
		n = 0
		for _, c := range in[at : at+count] {
			n = n<<8 | int(c)
		}
		at += count
	}
	if n < 0 || n > len(in)-at {
		return nil, nil, false, errBER
	}
	return in[at : at+n], in[at+n:], false, nil
}

func appendDER(out []byte, tag byte, content []byte) []byte {
	out = append(out, tag)
	n := len(content)
	switch {
	case n < 0x80:
		out = append(out, byte(n))
	case n < 1<<8:
		out = append(out, 0x81, byte(n))
	case n < 1<<16:
		out = append(out, 0x82, byte(n>>8), byte(n))
	case n < 1<<24:
		out = append(out, 0x83, byte(n>>16), byte(n>>8), byte(n))
	default:
		out = append(out, 0x84, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(out, content...)
}
