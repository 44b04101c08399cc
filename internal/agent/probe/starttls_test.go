package probe

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// turn is what a scripted server does: it sends, and then waits for the text of the client.
type turn struct{ send, expect string }

// dialogues are the plain-text parts of the protocols, as servers in the field have them.
var dialogues = map[string][]turn{
	"smtp": {
		{"220-mail.test ESMTP\r\n220 ready\r\n", "EHLO"}, {"250-mail.test\r\n250-SIZE 10\r\n250-starttls\r\n250 HELP\r\n", "STARTTLS"}, {"220 go ahead\r\n", ""},
	},
	"imap": {
		{"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n", ""}, {"", "imap"},
	},
	"pop3": {{"+OK ready\r\n", "STLS"}, {"+OK begin\r\n", ""}},
	"ldap": {{"", "1.3.6.1.4.1.1466.20037"}, {"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00", ""}},
	"xmpp": {
		{"", "version="}, {"<?xml version='1.0'?><stream:stream from='localhost' id='1' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>" +
			"<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>", "<starttls"},
		{"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", ""},
	},
	"postgres": {{"", "\x04\xd2\x16\x2f"}, {"S", ""}},
	"vnc": {
		{"RFB 003.008\n", "RFB 003.008\n"}, {"\x02\x02\x13", "\x13"}, {"\x00\x02", "\x00\x02"},
		{"\x00\x02\x00\x00\x01\x01\x00\x00\x01\x04", "\x00\x00\x01\x04"}, {"\x01", ""},
	},
	"nbd": {{"NBDMAGICIHAVEOPT\x00\x03", "\x00\x00\x00\x05\x00\x00\x00\x00"}, {"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x05\x00\x00\x00\x01\x00\x00\x00\x00", ""}},
}

// unknownToOpenSSL are protocols that s_client does not speak. QEMU's own server and client are what these are held against,
// where the recipe qemu is tested.
var unknownToOpenSSL = []string{"vnc", "nbd"}

// play runs a dialogue on conn and reports whether the client kept to it. IMAP's tags are the client's own, so its
// commands are answered one by one.
func play(conn net.Conn, protocol string) bool {
	in := bufio.NewReader(conn)
	for _, step := range dialogues[protocol] {
		if _, err := io.WriteString(conn, step.send); err != nil {
			return false
		}
		switch step.expect {
		case "":
		case "imap":
			for {
				line, err := in.ReadString('\n')
				tag, command, _ := strings.Cut(strings.TrimSpace(line), " ")
				if err != nil {
					return false
				}
				if strings.EqualFold(command, "STARTTLS") {
					io.WriteString(conn, "* 1 EXISTS\r\n"+tag+" OK begin TLS\r\n")
					return true
				}
				io.WriteString(conn, "* CAPABILITY IMAP4rev1 STARTTLS\r\n"+tag+" OK\r\n")
			}
		default:
			var got []byte
			for !strings.Contains(string(got), step.expect) {
				b, err := in.ReadByte()
				if err != nil || len(got) > 1000 {
					return false
				}
				got = append(got, b)
			}
			if protocol == "smtp" {
				in.ReadString('\n')
			} else if protocol == "xmpp" {
				in.ReadString('>')
			} else if protocol == "pop3" {
				in.ReadString('\n')
			}
		}
	}
	return true
}

// TestStartTLS: for each protocol a server that openssl s_client gets along with is seen by the probe as well.
func TestStartTLS(t *testing.T) {
	o := newOffice(t)
	for protocol := range dialogues {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			address := plainServer(t, func(conn net.Conn) {
				if play(conn, protocol) {
					s := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*o.leaf.tls()}, NextProtos: []string{"postgresql"}})
					if s.Handshake() == nil {
						io.Copy(io.Discard, s)
					}
				}
			})
			p := probeOf(address)
			p.StartTLS, p.Timeout = protocol, 0
			seen, err := served(t, p, o.leaf.cert, o.roots(), nil, time.Now())
			if err != nil || len(seen.Path) != 2 {
				t.Errorf("saw %+v, error %v", seen, err)
			}
			if slices.Contains(unknownToOpenSSL, protocol) {
				return
			}
			out, err := exec.CommandContext(t.Context(), "openssl", "s_client", "-connect", address, "-starttls", protocol, "-name", "localhost").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "BEGIN CERTIFICATE") {
				t.Errorf("openssl: %v: %s", err, out)
			}
		})
	}
}

// TestStartTLSThatIsNotStarted: every other answer is refused, and none is waited for longer than the probe says.
func TestStartTLSThatIsNotStarted(t *testing.T) {
	cases := []struct {
		protocol, answer string
		want             error
	}{
		{"postgres", "N", ErrNotTLS}, {"postgres", "E", ErrNotTLS}, {"postgres", "", ErrNotTLS}, {"postgres", "Sinjected", ErrNotTLS},
		{"smtp", "554 no\r\n", ErrNotTLS}, {"smtp", "220 x\r\n250 x\r\n", ErrNotTLS}, {"smtp", "220 x\r\n250 STARTTLS\r\n454 later\r\n", ErrNotTLS},
		{"smtp", "220 x\r\n250 STARTTLS\r\n220 ok\r\nEHLO injected\r\n", ErrNotTLS}, {"smtp", strings.Repeat("220-x\r\n", 200), ErrNotTLS},
		{"smtp", "220" + strings.Repeat("x", 9000), ErrNotTLS}, {"smtp", "220_x\r\n", ErrNotTLS}, {"smtp", strings.Repeat("220-"+strings.Repeat("x", 4000)+"\n", 30), ErrNotTLS},
		{"imap", "* BYE\r\n", ErrNotTLS}, {"imap", "* OK\r\na1 NO\r\n", ErrNotTLS}, {"imap", "* OK\r\n" + strings.Repeat("* x\r\n", 200), ErrNotTLS},
		{"pop3", "-ERR\r\n", ErrNotTLS}, {"pop3", "+OK\r\n-ERR\r\n", ErrNotTLS},
		{"ldap", "\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x02\x04\x00\x04\x00", ErrNotTLS}, {"ldap", "\x30\x84\xff\xff\xff\xff", ErrNotTLS}, {"ldap", "\x30\x80", ErrNotTLS},
		{"ldap", "\x30\x03\x02\x01\x01", ErrNotTLS}, {"ldap", "HTTP/1.0", ErrNotTLS}, {"ldap", "\x30\x0c\x02\x01\x02\x78\x07\x0a\x01\x00\x04\x00\x04\x00", ErrNotTLS},
		{"xmpp", "<stream:features></stream:features>", ErrNotTLS}, {"xmpp", "<stream:features>urn:ietf:params:xml:ns:xmpp-tls</stream:features><failure/>", ErrNotTLS},
		{"xmpp", strings.Repeat("<a>", 60000), ErrNotTLS},
		{"vnc", "RFB 003.003\n\x00\x00\x00\x02", ErrNotTLS}, {"vnc", "HTTP/1.0 400", ErrNotTLS}, {"vnc", "RFB 003.008\n\x00\x00\x00\x00\x04busy", ErrNotTLS},
		{"vnc", "RFB 003.008\n\x01\x02", ErrNotTLS}, {"vnc", "RFB 003.008\n\x01\x13\x00\x01", ErrNotTLS}, {"vnc", "RFB 003.008\n\x01\x13\x00\x02\x01", ErrNotTLS},
		{"vnc", "RFB 003.008\n\x01\x13\x00\x02\x00\x01\x00\x00\x01\x01", ErrNotTLS}, {"vnc", "RFB 003.008\n\x01\x13\x00\x02\x00\x01\x00\x00\x01\x04\x00", ErrNotTLS},
		{"vnc", "RFB 003.008\n\x01\x13\x00\x02\x00\xff\x00", ErrNotTLS}, {"vnc", "RFB 003.008\n\x01\x13\x00\x02\x00\x01\x00\x00\x01\x04\x01injected", ErrNotTLS},
		{"nbd", "NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x03", ErrNotTLS}, {"nbd", "NBDMAGICIHAVEOPT\x00\x02", ErrNotTLS}, {"nbd", "NBDMAGICIHAVEOPT\x00\x03short", ErrNotTLS},
		{"nbd", "NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x05\x80\x00\x00\x02\x00\x00\x00\x02no", ErrNotTLS},
		{"nbd", "NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00", ErrNotTLS},
		{"nbd", "NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x05\x80\x00\x00\x01\xff\xff\xff\xff", ErrNotTLS},
	}
	for _, c := range cases {
		t.Run(c.protocol, func(t *testing.T) {
			t.Parallel()
			p := probeOf(plainServer(t, func(conn net.Conn) {
				io.WriteString(conn, c.answer)
				_ = conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
			}))
			p.StartTLS = c.protocol
			if _, err := looked(t, p, nil); !errors.Is(err, c.want) {
				t.Errorf("%.40q: %v", c.answer, err)
			}
		})
	}
}

// TestStartLDAPWithPaddedLengths is how Active Directory answers.
func TestStartLDAPWithPaddedLengths(t *testing.T) {
	answer := "\x30\x84\x00\x00\x00\x10\x02\x01\x01\x78\x84\x00\x00\x00\x07\x0a\x01\x00\x04\x00\x04\x00"
	if err := startLDAP(bufio.NewReader(strings.NewReader(answer)), io.Discard, ""); err != nil {
		t.Fatal(err)
	}
}

// FuzzStartTLS: whatever a server sends in plain text, the reader ends, takes no more than its limit, and does not panic.
func FuzzStartTLS(f *testing.F) {
	protocols := []string{"smtp", "imap", "pop3", "ldap", "xmpp", "postgres", "vnc", "nbd"}
	f.Fuzz(func(t *testing.T, which byte, answer []byte) {
		protocol := protocols[int(which)%len(protocols)]
		start, err := starter(protocol)
		if err != nil {
			t.Fatal(err)
		}
		in := strings.NewReader(string(answer))
		if err := start(bufio.NewReaderSize(io.LimitReader(in, startTLSLimit), 4<<10), io.Discard, "localhost"); err != nil {
			return
		}
		if len(answer) == 0 || len(answer)-in.Len() > startTLSLimit {
			t.Errorf("%s: %d octets were taken of %d", protocol, len(answer)-in.Len(), len(answer))
		}
	})
}
