// Package keyfile reads and writes key and certificate files as the programs that consume them do: PEM and DER private
// keys, certificate bundles, PKCS#7 certificate bags, PKCS#12 and Java key stores, OpenSSL hash links, NSS key
// identifiers, and the file itself, durably and never readable too widely.
//
// Specifications: RFC 7468 (PEM), RFC 8017 (PKCS#1), RFC 5915 (SEC 1 keys), RFC 5958 and RFC 5208 (PKCS#8), RFC 8018
// (PBES2), RFC 7914 (scrypt), RFC 7292 (PKCS#12), RFC 9579 (PBMAC1, read only), RFC 2268 (RC2, read only), RFC 2315
// (certificate bags), and the Java documentation of JKS. Divergences, all deliberate:
//
//   - Text outside PEM blocks is ignored on reading and never written (RFC 7468 section 2 allows it, consumers differ).
//   - A BEGIN line without its END line, or with another BEGIN line before it, is refused and named; RFC 7468 lets a
//     parser skip it, and then half a bundle is trusted in silence.
//   - The encrypted PEM of OpenSSL before PKCS#8 ("Proc-Type: 4,ENCRYPTED") is refused: it derives its key by one round
//     of MD5.
//   - Key derivation has a budget per file: iteration counts come from the file, and so from whoever made it.
//
// Every function is pure but for those that read and write files, and safe for concurrent use. No error contains key material or a
// password.
package keyfile

import (
	"bytes"
	"encoding/pem"
	"errors"
	"slices"
	"strings"

	"chancery/internal/fault"
)

// MaxFile bounds what the parsers accept. The largest honest file is a system's bundle of all public roots, well under
// 1 MiB; ten thousand certificates still fit.
const MaxFile = 8 << 20

// ErrPassword is in the chain of every refusal that a different password may turn into success.
var ErrPassword = errors.New("password")

func wrongPassword(what string) error {
	e := fault.New(fault.Invalid, "the password does not open the %s (or the file is damaged)", what)
	e.Err = ErrPassword
	return e
}

func needPassword(what string) error {
	e := fault.New(fault.Invalid, "the %s is encrypted and no password was given", what)
	e.Err = ErrPassword
	return e
}

// block is one PEM block and the line on which it begins.
type block struct {
	*pem.Block
	line int
}

const (
	pemBegin = "-----BEGIN "
	pemEnd   = "-----END "
	pemDash  = "-----"
)

// readable refuses what no parser of this package should look at.
func readable(data []byte) error {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return fault.New(fault.Invalid, "the file is empty")
	case len(data) > MaxFile:
		return fault.New(fault.TooLarge, "the file has %d bytes; at most %d are read", len(data), MaxFile)
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}), bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		return fault.New(fault.Invalid, "the file is UTF-16 text; PEM is ASCII").
			WithHint("iconv -f UTF-16 -t ASCII FILE")
	}
	return nil
}

// hasPEM reports whether data contains a line that begins a PEM block.
func hasPEM(data []byte) bool {
	return bytes.HasPrefix(trimBOM(data), []byte(pemBegin)) || bytes.Contains(data, []byte("\n"+pemBegin)) ||
		bytes.Contains(data, []byte("\r"+pemBegin))
}

func trimBOM(data []byte) []byte { return bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) }

// pemBlocks returns every PEM block of data. Unlike pem.Decode it does not skip what it cannot read: a block that is cut
// off or garbled is refused with its line. It is linear in len(data).
func pemBlocks(data []byte) ([]block, error) {
	data = trimBOM(data)
	if !bytes.Contains(data, []byte("\n")) { // old Macintosh line ends
		data = bytes.ReplaceAll(data, []byte("\r"), []byte("\n"))
	}
	var blocks []block
	begin, beginLine, label := -1, 0, ""
	for line, offset := 1, 0; offset < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[offset:], '\n'); i >= 0 {
			end = offset + i + 1
		}
		text := bytes.TrimRight(data[offset:end], " \t\r\n")
		switch {
		case bytes.HasPrefix(text, []byte(pemBegin)):
			if begin >= 0 {
				return nil, badPEM(beginLine, "the %s block has no END line", label)
			}
			label = strings.TrimSuffix(string(text[len(pemBegin):]), pemDash)
			begin, beginLine = offset, line
		case bytes.HasPrefix(text, []byte(pemEnd)):
			if begin < 0 {
				return nil, badPEM(line, "an END line has no BEGIN line before it")
			}
			b, rest := pem.Decode(data[begin:end])
			if b == nil || len(bytes.TrimSpace(rest)) > 0 || b.Type != label {
				return nil, badPEM(beginLine, "the %s block is not valid: its base64 is damaged, or its END line names something else",
					printable(label))
			}
			blocks = append(blocks, block{b, beginLine})
			begin = -1
		}
		offset = end
	}
	if begin >= 0 {
		return nil, badPEM(beginLine, "the %s block has no END line; the file is truncated", printable(label))
	}
	return blocks, nil
}

func badPEM(line int, format string, args ...any) error {
	return fault.New(fault.Invalid, format, args...).At(lineOf(line))
}

// printable shortens what a file says of itself before it is quoted in a message.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 64)]
}

// labels lists the types of blocks for a message, each once, in order.
func labels(blocks []block) string {
	var names []string
	for _, b := range blocks {
		if name := printable(b.Type); !slices.Contains(names, name) && len(names) < 8 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}
