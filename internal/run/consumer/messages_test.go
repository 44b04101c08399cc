package consumer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestOpenLDAPAnswersByStartTLS(t *testing.T) {
	dir, err := os.MkdirTemp("", "ldap") // a socket's path may have 107 octets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	trust, _, authority, authorityKey := selfSigned(t, dir, nil, nil)
	certificate, key, _, _ := selfSigned(t, dir, authority, authorityKey)
	l, err := StartOpenLDAP(t.Context(), dir, "olcTLSCertificateFile: "+certificate, "olcTLSCertificateKeyFile: "+key)
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range [][]string{{"-ZZ", "-H", "ldap://" + l.Server.Address}, {"-H", "ldaps://" + l.Server.TLSAddress}} {
		who := exec.Command("ldapwhoami", append([]string{"-x"}, words...)...)
		who.Env = append(os.Environ(), "LDAPTLS_CACERT="+trust, "LDAPTLS_REQCERT=demand")
		if out, err := who.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "anonymous" {
			t.Errorf("ldapwhoami %v: %v: %s", words, err, out)
		}
	}
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestRabbitMQGreets(t *testing.T) {
	dir := t.TempDir()
	trust, _, authority, authorityKey := selfSigned(t, dir, nil, nil)
	certificate, key, leaf, private := selfSigned(t, dir, authority, authorityKey)
	r, err := StartRabbitMQ(t.Context(), dir, RabbitMQServer{Certificate: certificate, Key: key, CA: trust})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	own := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: private}
	if err := r.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	conn, err := tls.Dial("tcp", r.Server.Address, &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{own}})
	if err != nil {
		t.Fatal(err)
	}
	if !greets(t, conn) || !conn.ConnectionState().PeerCertificates[0].Equal(leaf) {
		t.Error("it does not greet as AMQP 0-9-1 does")
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
}

// greets says hello in AMQP 0-9-1, and hears whether a method frame of channel 0 comes back.
func greets(t *testing.T, conn net.Conn) bool {
	t.Helper()
	defer conn.Close()
	_, err := conn.Write([]byte("AMQP\x00\x00\x09\x01"))
	answer := make([]byte, 3)
	n, read := conn.Read(answer)
	if err = errors.Join(err, read); err != nil {
		t.Fatal(err)
	}
	return string(answer[:n]) == "\x01\x00\x00"[:n] && n > 0
}
