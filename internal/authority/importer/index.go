package importer

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"unicode/utf8"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
)

const (
	maxIndexLine = 64 << 10
	maxProblems  = 10
)

// indexLine is one line of an OpenSSL index.
type indexLine struct {
	number int
	hex    string // the serial as it stands there, which names the file in newcerts
	ca.Record
}

// parseIndex reads an index.txt. It refuses the whole when a line is not understood, naming up to ten of them.
func parseIndex(r io.Reader) ([]indexLine, error) {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 4096), maxIndexLine)
	var lines []indexLine
	var problems []string
	first := 0
	seen := make(map[string]int)
	problem := func(number int, format string, args ...any) {
		if first == 0 {
			first = number
		}
		problems = append(problems, fmt.Sprintf("line %d: ", number)+fmt.Sprintf(format, args...))
	}
	number := 0
	for in.Scan() && len(problems) < maxProblems {
		number++
		text := strings.TrimSuffix(in.Text(), "\r")
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		line, err := parseIndexLine(text)
		if err != nil {
			problem(number, "%v", err)
			continue
		}
		line.number = number
		if before := seen[line.Serial.String()]; before != 0 {
			problem(number, "serial %s is on line %d as well", line.hex, before)
			continue
		}
		seen[line.Serial.String()] = number
		lines = append(lines, line)
	}
	if err := in.Err(); errors.Is(err, bufio.ErrTooLong) {
		problem(number+1, "it is longer than %d bytes", maxIndexLine)
	} else if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	if len(problems) > 0 {
		return nil, fault.New(fault.Invalid, "the CA's index cannot be read: %s", strings.Join(problems, "; ")).
			At(fmt.Sprintf("%d:1", first))
	}
	return lines, nil
}

// parseIndexLine reads: status, expiry, revocation, serial, file name, subject; apart by tabs.
func parseIndexLine(text string) (indexLine, error) {
	var line indexLine
	fields := splitFields(text)
	if len(fields) != 6 {
		return line, fmt.Errorf("it has %d fields, not 6", len(fields))
	}
	status, expiry, revocation, serial := fields[0], fields[1], fields[2], fields[3]
	var ok bool
	if line.NotAfter, ok = utc(expiry); !ok {
		return line, fmt.Errorf("the expiry date %q is not YYMMDDHHMMSSZ or YYYYMMDDHHMMSSZ", clip(expiry))
	}
	n, ok := new(big.Int).SetString(serial, 16)
	if !ok || strings.ContainsAny(serial, "+-_") || checkSerial(n) != nil {
		return line, fmt.Errorf("the serial %q is not a hexadecimal number of 0 to %d bits", clip(serial), maxSerialBits)
	}
	line.Serial, line.hex, line.Subject = n, serial, rfc4514(fields[5])
	switch {
	case status == "V" && revocation != "":
		return line, fmt.Errorf("the status is V and there is a revocation date")
	case status == "V", status == "E" && revocation == "":
	case status == "R", status == "E":
		var err error
		if line.Revocation, err = parseRevocation(revocation); err != nil {
			return line, err
		}
	default:
		return line, fmt.Errorf("the status %q is not V, R or E", clip(status))
	}
	return line, nil
}

func clip(s string) string { return s[:min(len(s), 80)] }

// splitFields cuts at tabs; a backslash before a tab keeps it, as OpenSSL's text database writes it.
func splitFields(text string) []string {
	var fields []string
	var field []byte
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text) && text[i+1] == '\t':
			field = append(field, '\t')
			i++
		case text[i] == '\t':
			fields = append(fields, string(field))
			field = field[:0]
		default:
			field = append(field, text[i])
		}
	}
	return append(fields, string(field))
}

// parseRevocation reads DATE[,REASON[,VALUE]].
func parseRevocation(text string) (*ca.Revocation, error) {
	parts := strings.SplitN(text, ",", 3)
	at, ok := utc(parts[0])
	if !ok {
		return nil, fmt.Errorf("the revocation date %q is not YYMMDDHHMMSSZ or YYYYMMDDHHMMSSZ", clip(parts[0]))
	}
	r := &ca.Revocation{RevokedAt: at}
	if len(parts) == 1 {
		return r, nil
	}
	value := ""
	if len(parts) == 3 {
		value = parts[2]
	}
	switch reason := parts[1]; strings.ToLower(reason) {
	case "holdinstruction":
		r.Reason = crl.CertificateHold
	case "keytime", "cakeytime":
		r.Reason = crl.KeyCompromise
		if strings.EqualFold(reason, "CAkeyTime") {
			r.Reason = crl.CACompromise
		}
		if r.InvalidityDate, ok = utc(value); !ok {
			return nil, fmt.Errorf("the compromise time %q is not YYYYMMDDHHMMSSZ", clip(value))
		}
	default:
		// removeFromCRL is among the reasons that openssl ca accepts, and then lists as revoked all the same.
		known := append(crl.Reasons(), crl.RemoveFromCRL)
		i := slices.IndexFunc(known, func(x crl.Reason) bool { return strings.EqualFold(x.String(), reason) })
		if i < 0 {
			return nil, fmt.Errorf("the revocation reason %q is not known", clip(reason))
		}
		if known[i] != crl.RemoveFromCRL {
			r.Reason = known[i]
		}
	}
	return r, nil
}

// rfc4514 turns OpenSSL's one-line name (/C=DE/O=x/CN=y) into RFC 4514. The one-line form does not escape the slash, so one
// is taken for a separator only where an attribute type and an equals sign follow. A name that cannot be told stays as it
// is written: it is for the eye only.
func rfc4514(line string) string {
	if !strings.HasPrefix(line, "/") {
		return line
	}
	var name cert.Name
	for rest := line[1:]; rest != ""; {
		part := rest
		rest = ""
		for i := 0; i < len(part); i++ {
			if part[i] == '/' && startsAttribute(part[i+1:]) {
				part, rest = part[:i], part[i+1:]
				break
			}
		}
		key, value, ok := strings.Cut(part, "=")
		oid, err := cert.ParseAttributeType(key)
		if !ok || err != nil {
			return line
		}
		value = unescape(value)
		if !utf8.ValidString(value) {
			return line
		}
		name = append(name, cert.RDN{{Type: oid, Value: value}})
	}
	return name.String()
}

func startsAttribute(s string) bool {
	i := 0
	for i < len(s) && (s[i] >= 'A' && s[i] <= 'Z' || s[i] >= 'a' && s[i] <= 'z' || s[i] >= '0' && s[i] <= '9' || s[i] == '.') {
		i++
	}
	return i > 0 && i < len(s) && s[i] == '='
}

// unescape undoes the \xHH of the one-line form.
func unescape(s string) string {
	var out bytes.Buffer
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if b, err := hex.DecodeString(s[i+2 : i+4]); err == nil {
				out.Write(b)
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
