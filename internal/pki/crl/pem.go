package crl

import (
	"encoding/base64"
	"encoding/pem"
	"io"

	"chancery/internal/fault"
)

const (
	pemType = "X509 CRL" // RFC 7468 §6
	pemLine = 64
)

// PEMSize is the length of the PEM form of n octets of DER, so that an HTTP answer can say it before it is made.
func PEMSize(n int64) int64 {
	text := (n + 2) / 3 * 4
	lines := (text + pemLine - 1) / pemLine
	return int64(len("-----BEGIN "+pemType+"-----\n")+len("-----END "+pemType+"-----\n")) + text + lines
}

// NewPEMWriter returns a writer that writes to w the PEM form of the DER that is written to it. Close ends it, and leaves w open.
func NewPEMWriter(w io.Writer) io.WriteCloser {
	p := &pemWriter{lines: &lineWriter{w: w}}
	p.base64 = base64.NewEncoder(base64.StdEncoding, p.lines)
	return p
}

type pemWriter struct {
	base64 io.WriteCloser
	lines  *lineWriter
	begun  bool
}

func (p *pemWriter) begin() error {
	if p.begun {
		return nil
	}
	p.begun = true
	_, err := io.WriteString(p.lines.w, "-----BEGIN "+pemType+"-----\n")
	return err
}

func (p *pemWriter) Write(der []byte) (int, error) {
	if err := p.begin(); err != nil {
		return 0, err
	}
	return p.base64.Write(der)
}

func (p *pemWriter) Close() error {
	if err := p.begin(); err != nil {
		return err
	}
	if err := p.base64.Close(); err != nil {
		return err
	}
	end := "-----END " + pemType + "-----\n"
	if p.lines.column > 0 {
		end = "\n" + end
	}
	_, err := io.WriteString(p.lines.w, end)
	return err
}

// lineWriter breaks what is written to it into lines of 64 characters (RFC 7468 §2).
type lineWriter struct {
	w      io.Writer
	column int
	buf    []byte
}

func (l *lineWriter) Write(text []byte) (int, error) {
	l.buf = l.buf[:0]
	for rest := text; len(rest) > 0; {
		n := min(pemLine-l.column, len(rest))
		l.buf = append(l.buf, rest[:n]...)
		rest = rest[n:]
		if l.column += n; l.column == pemLine {
			l.buf = append(l.buf, '\n')
			l.column = 0
		}
	}
	if _, err := l.w.Write(l.buf); err != nil {
		return 0, err
	}
	return len(text), nil
}

// FromPEM returns the DER of the first X509 CRL block, or the input itself when that is no PEM.
func FromPEM(input []byte) ([]byte, error) {
	if len(input) > 0 && input[0] == 0x30 {
		return input, nil
	}
	for rest := input; ; {
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, fault.New(fault.Invalid, "input is neither a DER CRL nor PEM with a block %q", pemType)
		}
		if block.Type == pemType {
			return block.Bytes, nil
		}
		rest = after
	}
}
