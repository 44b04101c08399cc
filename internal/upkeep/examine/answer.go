package examine

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"time"
)

// The first octets of records, RFC 8446 section 5.1, that a server may begin with.
const (
	recordAlert     = 21
	recordHandshake = 22
)

// hearing keeps the first octets that come in, to say what answered where that was no TLS.
type hearing struct {
	net.Conn
	head []byte
}

const mostHeard = 512

// Read reads, and keeps the beginning.
func (h *hearing) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if room := mostHeard - len(h.head); room > 0 {
		h.head = append(h.head, p[:min(n, room)]...)
	}
	return n, err
}

// whatAnswers tells by its first octets what a server is, and how TLS is started there if it can be.
func whatAnswers(head []byte) (what, startTLS string) {
	line, _, _ := bytes.Cut(head, []byte("\n"))
	text := shorten(clean(strings.TrimSpace(string(line))), 80)
	has := func(prefix string) bool { return bytes.HasPrefix(head, []byte(prefix)) }
	switch {
	case has("HTTP/"), has("<!DOCTYPE"), has("<html"):
		return fmt.Sprintf("plain HTTP (%s)", text), ""
	case has("SSH-"):
		return fmt.Sprintf("SSH (%s)", text), ""
	case has("RFB "):
		return fmt.Sprintf("VNC (%s)", text), "vnc"
	case has("NBDMAGIC"):
		return "a network block device (NBDMAGIC)", "nbd"
	case has("* OK"), has("* PREAUTH"):
		return fmt.Sprintf("IMAP (%s)", text), "imap"
	case has("+OK"):
		return fmt.Sprintf("POP3 (%s)", text), "pop3"
	case has("220") && strings.Contains(strings.ToUpper(text), "FTP") && !strings.Contains(strings.ToUpper(text), "SMTP"):
		return fmt.Sprintf("FTP (%s)", text), ""
	case has("220"):
		return fmt.Sprintf("SMTP (%s)", text), "smtp"
	case has("<?xml"), has("<stream:"):
		return "XMPP", "xmpp"
	case len(head) > 5 && head[3] == 0 && head[4] == 10 && int(head[0]) < 200: // packet 0, protocol 10
		version, _, _ := bytes.Cut(head[5:], []byte{0})
		return fmt.Sprintf("MySQL or MariaDB (%s)", shorten(clean(string(version)), 40)), ""
	case len(head) == 0:
		return "silence", ""
	}
	return fmt.Sprintf("something else (it begins with %q)", shorten(clean(string(head[:min(len(head), 24)])), 24)), ""
}

// listenWait is how long a greeting is waited for.
const listenWait = 1500 * time.Millisecond

// listen looks once more at a port that took a ClientHello without a word: some protocols greet first, and PostgreSQL waits
// for a question of its own, whose answer is waited for that long.
func (c connection) listen(ctx context.Context, patience time.Duration) (what, startTLS string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.address)
	if err != nil {
		return "", ""
	}
	defer conn.Close()
	head := make([]byte, mostHeard)
	_ = conn.SetDeadline(time.Now().Add(listenWait))
	if n, _ := conn.Read(head); n > 0 {
		return whatAnswers(head[:n])
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, 80877103)); err != nil {
		return "", ""
	}
	if n, _ := conn.Read(head[:1]); n == 1 {
		switch head[0] {
		case 'S':
			return "PostgreSQL, which wants to be asked for TLS first", "postgres"
		case 'N':
			return "PostgreSQL with ssl off", ""
		}
	}
	return "", ""
}

// StartTLSOf is how TLS is begun at a port by custom; empty where it begins at once.
func StartTLSOf(port string) string {
	switch port {
	case "25", "587":
		return "smtp"
	case "110":
		return "pop3"
	case "143":
		return "imap"
	case "389":
		return "ldap"
	case "5222":
		return "xmpp"
	case "5432":
		return "postgres"
	case "10809":
		return "nbd"
	}
	if len(port) == 4 && strings.HasPrefix(port, "59") {
		return "vnc"
	}
	return ""
}
