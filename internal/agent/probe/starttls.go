package probe

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"chancery/internal/fault"
)

// startTLS is the plain-text part of a protocol: after it the server waits for a TLS ClientHello.
type startTLS func(in *bufio.Reader, out io.Writer, serverName string) error

// startTLSLimit bounds all that is read in plain text.
const startTLSLimit = 64 << 10

// startTLSLines bounds the lines of one answer.
const startTLSLines = 100

// starter returns the function of a protocol; nil where TLS begins at once.
func starter(protocol string) (startTLS, error) {
	switch protocol {
	case "":
		return nil, nil
	case "postgres":
		return startPostgres, nil
	case "smtp":
		return startSMTP, nil
	case "imap":
		return startIMAP, nil
	case "pop3":
		return startPOP3, nil
	case "ldap":
		return startLDAP, nil
	case "xmpp":
		return startXMPP, nil
	case "vnc":
		return startVNC, nil
	case "nbd":
		return startNBD, nil
	}
	return nil, fault.New(fault.Invalid, "starttls: %q is none of postgres, smtp, imap, pop3, ldap, xmpp, vnc and nbd", protocol)
}

// startPostgres sends an SSLRequest; the answer is one octet.
func startPostgres(in *bufio.Reader, out io.Writer, _ string) error {
	if _, err := out.Write(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, 80877103)); err != nil {
		return err
	}
	switch answer, err := in.ReadByte(); {
	case err != nil:
		return err
	case answer == 'S':
		return nil
	case answer == 'N':
		return fmt.Errorf("%w: the server has ssl off", ErrNotTLS)
	default:
		return fmt.Errorf("%w: the answer to SSLRequest is %q, not S or N", ErrNotTLS, answer)
	}
}

// startSMTP is RFC 3207. EHLO is said, because a server offers STARTTLS only after it.
func startSMTP(in *bufio.Reader, out io.Writer, _ string) error {
	if _, err := replySMTP(in, "220"); err != nil {
		return err
	}
	if _, err := io.WriteString(out, "EHLO localhost\r\n"); err != nil {
		return err
	}
	offers, err := replySMTP(in, "250")
	if err != nil {
		return err
	}
	if !hasLine(offers, "STARTTLS") {
		return fmt.Errorf("%w: the server does not offer STARTTLS", ErrNotTLS)
	}
	if _, err := io.WriteString(out, "STARTTLS\r\n"); err != nil {
		return err
	}
	_, err = replySMTP(in, "220")
	return err
}

// replySMTP reads the lines of one reply (RFC 5321 section 4.2.1) and wants its code.
func replySMTP(in *bufio.Reader, code string) ([]string, error) {
	var lines []string
	for len(lines) < startTLSLines {
		line, err := readLine(in)
		if err != nil {
			return nil, err
		}
		if len(line) < 3 || line[:3] != code || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
			return nil, fmt.Errorf("%w: the server said %q, where %s was expected", ErrNotTLS, printable(line), code)
		}
		if len(line) == 3 {
			return append(lines, ""), nil
		}
		lines = append(lines, line[4:])
		if line[3] == ' ' {
			return lines, nil
		}
	}
	return nil, fmt.Errorf("%w: a reply of more than %d lines", ErrNotTLS, startTLSLines)
}

// startIMAP is RFC 9051 section 6.2.1.
func startIMAP(in *bufio.Reader, out io.Writer, _ string) error {
	greeting, err := readLine(in)
	if err != nil {
		return err
	}
	if !hasPrefixFold(greeting, "* OK") {
		return fmt.Errorf("%w: the greeting is %q, not * OK", ErrNotTLS, printable(greeting))
	}
	if _, err := io.WriteString(out, "a1 STARTTLS\r\n"); err != nil {
		return err
	}
	for range startTLSLines {
		line, err := readLine(in)
		switch {
		case err != nil:
			return err
		case hasPrefixFold(line, "a1 OK"):
			return nil
		case !strings.HasPrefix(line, "* "): // untagged lines may come at any time
			return fmt.Errorf("%w: STARTTLS was answered by %q", ErrNotTLS, printable(line))
		}
	}
	return fmt.Errorf("%w: more than %d lines before the answer to STARTTLS", ErrNotTLS, startTLSLines)
}

// startPOP3 is RFC 2595 section 4.
func startPOP3(in *bufio.Reader, out io.Writer, _ string) error {
	for _, send := range []string{"", "STLS\r\n"} {
		if _, err := io.WriteString(out, send); err != nil {
			return err
		}
		line, err := readLine(in)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, "+OK") {
			return fmt.Errorf("%w: the server said %q, where +OK was expected", ErrNotTLS, printable(line))
		}
	}
	return nil
}

// startXMPP is RFC 6120 section 5.4, as a client. The stream is read as text up to what is looked for: all that is wanted
// of it is one element, and the limit bounds it.
func startXMPP(in *bufio.Reader, out io.Writer, serverName string) error {
	if serverName == "" {
		serverName = "localhost"
	}
	if strings.ContainsAny(serverName, `<>&'"`) {
		return fault.New(fault.Invalid, "the name %q cannot be put into a stream header", serverName)
	}
	open := "<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='" +
		serverName + "' version='1.0'>"
	if _, err := io.WriteString(out, open); err != nil {
		return err
	}
	features, err := readUntil(in, "</stream:features>", "<stream:features/>", "</stream:stream>", "</features>")
	if err != nil {
		return err
	}
	if !bytes.Contains(features, []byte("urn:ietf:params:xml:ns:xmpp-tls")) {
		return fmt.Errorf("%w: the stream does not offer starttls", ErrNotTLS)
	}
	if _, err := io.WriteString(out, "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"); err != nil {
		return err
	}
	answer, err := readUntil(in, ">")
	if err != nil {
		return err
	}
	answer = bytes.TrimSpace(answer)
	if !bytes.HasPrefix(answer, []byte("<proceed")) {
		return fmt.Errorf("%w: starttls was answered by %q", ErrNotTLS, printable(string(answer)))
	}
	if !bytes.HasSuffix(answer, []byte("/>")) {
		_, err = readUntil(in, "</proceed>")
	}
	return err
}

// readUntil reads up to the first of the ends, octet by octet, so that nothing behind it is taken.
func readUntil(in *bufio.Reader, ends ...string) ([]byte, error) {
	var text []byte
	for {
		b, err := in.ReadByte()
		if err != nil {
			return nil, err
		}
		text = append(text, b)
		if b != '>' {
			continue
		}
		for _, end := range ends {
			if bytes.HasSuffix(text, []byte(end)) {
				return text, nil
			}
		}
	}
}

// readLine reads a line of at most 4 KiB, without its end.
func readLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		return "", fmt.Errorf("%w: a line of more than %d octets", ErrNotTLS, len(line))
	}
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

func hasLine(lines []string, word string) bool {
	for _, line := range lines {
		if strings.EqualFold(strings.TrimSpace(line), word) {
			return true
		}
	}
	return false
}

func hasPrefixFold(line, prefix string) bool {
	return len(line) >= len(prefix) && strings.EqualFold(line[:len(prefix)], prefix)
}

// printable shortens what a stranger sent, for an error.
func printable(text string) string {
	if len(text) > 100 {
		text = text[:100] + "…"
	}
	return strings.ToValidUTF8(text, "?")
}
