package loop_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/pki/cert"
	"chancery/internal/run/consumer"
)

// tlsServer is a consumer: it reads its files when it is told by a file that appears, and serves what it read last.
type tlsServer struct {
	t        testing.TB
	m        *machine
	listener net.Listener
	told     string // the file that tells it

	mu   sync.Mutex
	pair *tls.Certificate // guarded by mu
}

const ownRecipe = `
name: server
title: a server of the test
about: It reads its files when it is told.
parameters:
  - {name: address, type: address, about: where it listens, required: true}
certificates:
  - profile: server
    key: [{algorithm: ecdsa-p256}]
    names: ["dns:${host.names}"]
    usages: [serverAuth]
trust: {crls: true}
files:
  - {path: /etc/ssl/server.key, content: [key], mode: "0600"}
  - {path: /etc/ssl/server.pem, content: [path]}
  - {path: /etc/ssl/server-ca.pem, content: [anchors]}
  - {path: /etc/ssl/server-crl.pem, content: [crls]}
reload:
  - {name: reload, command: [/bin/false], timeout: 1m}
probe: {address: "${param.address}", timeout: 1m}
`

// newServer is a host with a server whose address is at, or its own where at is empty.
func newServer(t testing.TB, at string) *tlsServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	if at == "" {
		at = l.Addr().String()
	}
	m := newMachine(t, client.PlacementOrder{Name: "server", Recipe: "local/server", Parameters: map[string]string{"address": at}})
	_, err = m.node.admin.ChangeHost(t.Context(), m.name, client.ChangeHostRequest{Profiles: &[]string{"server"}}) // its recipe is its own
	must(t, err)
	s := &tlsServer{t: t, m: m, listener: l, told: filepath.Join(t.TempDir(), "told")}
	must(t, os.MkdirAll(m.path(loop.RecipeDirectory), 0o755))
	s.patience("1m")
	s.reload("/bin/touch", s.told)
	config := &tls.Config{GetCertificate: s.certificate}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = tls.Server(conn, config).Handshake()
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
	return s
}

// patience is how long the server may take to be told, and to serve: long, but where it is to be too late.
func (s *tlsServer) patience(limit string) {
	s.t.Helper()
	text := strings.ReplaceAll(ownRecipe, "timeout: 1m", "timeout: "+limit)
	must(s.t, os.WriteFile(filepath.Join(s.m.path(loop.RecipeDirectory), "server.yaml"), []byte(text), 0o644))
}

// reload says in the host's agent.yaml how the server is told.
func (s *tlsServer) reload(vector ...string) {
	s.t.Helper()
	words := ""
	for _, word := range vector {
		words += fmt.Sprintf("%q, ", word)
	}
	text := fmt.Sprintf("recipes: [local/server]\nsteps:\n  local/server:\n    reload: [%s]\n", strings.TrimSuffix(words, ", "))
	must(s.t, os.WriteFile(s.m.path(loop.ConfigFile), []byte(text), 0o644))
}

// certificate is what the server serves; it reads its files anew once it was told.
func (s *tlsServer) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if os.Remove(s.told) == nil || s.pair == nil {
		pair, err := tls.LoadX509KeyPair(s.m.path("/etc/ssl/server.pem"), s.m.path("/etc/ssl/server.key"))
		if err != nil {
			return nil, err
		}
		s.pair = &pair
	}
	return s.pair, nil
}

// serves is the serial number that a client sees.
func (s *tlsServer) serves() string {
	s.t.Helper()
	return shownAt(s.t, s.listener.Addr().String())
}

// shownAt is the serial number that a client sees at an address.
func shownAt(t testing.TB, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	must(t, err)
	defer conn.Close()
	return cert.FormatSerial(conn.ConnectionState().PeerCertificates[0].SerialNumber)
}

// rename gives the host another name, for which it needs another certificate.
func (m *machine) rename(name string) {
	m.t.Helper()
	_, err := m.node.admin.ChangeHost(m.t.Context(), m.name, client.ChangeHostRequest{DNS: &[]string{m.name + ".example", m.name + "." + name}})
	must(m.t, err)
}

func TestServedIsWhatTheLivePortShows(t *testing.T) {
	s := newServer(t, "")
	o := s.m.settled().Observations[0]
	if o.State != client.PlacementServed || o.Served != o.Serial || s.serves() != o.Serial {
		t.Fatalf("%+v", o)
	}
	s.m.rename("second.example")
	if o := s.m.settled().Observations[0]; o.State != client.PlacementServed || s.serves() != o.Serial {
		t.Fatalf("%+v", o)
	}
}

func TestReloadThatFailsKeepsTheOldSet(t *testing.T) {
	for name, vector := range map[string][]string{"fails": {"/bin/false"}, "hangs": {"/bin/sleep", "600"}, "lies": {"/bin/true"}, "is not there": {"/no/such/program"}} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "")
			before := s.m.settled().Observations[0]
			key, certificate := s.m.read("/etc/ssl/server.key"), s.m.read("/etc/ssl/server.pem")
			s.reload(vector...)
			s.patience("1s")
			s.m.rename("new.example")
			result := s.m.once()
			o := result.Observations[0]
			if result.Done() || o.State != client.PlacementFailed || o.Serial != before.Serial {
				t.Errorf("%+v", o)
			}
			if string(key) != string(s.m.read("/etc/ssl/server.key")) || string(certificate) != string(s.m.read("/etc/ssl/server.pem")) {
				t.Error("the old set is not there")
			}
			if s.serves() != before.Serial {
				t.Error("something else is served")
			}
			s.reload("/bin/touch", s.told)
			s.patience("1m")
			after := s.m.settled().Observations[0]
			if after.Serial == before.Serial || s.serves() != after.Serial {
				t.Errorf("once it can be told: %+v", after)
			}
			if n := len(s.m.issued()); n != 2 {
				t.Errorf("%d certificates were issued, where one for each name does", n)
			}
		})
	}
}

func TestProbeOfAWrongPort(t *testing.T) {
	other := newServer(t, "")
	other.m.settled()
	s := newServer(t, other.listener.Addr().String())
	s.patience("1s")
	s.m.eventually("what another's port shows is said", func() bool { // which on a busy machine it may show too late
		o := s.m.once().Observations[0]
		if o.State != client.PlacementFailed {
			t.Fatalf("another's port: %+v", o)
		}
		return strings.Contains(o.Message, "serves certificate")
	})
	closed, err := consumer.FreeAddress()
	must(t, err)
	s = newServer(t, closed)
	if o := s.m.once().Observations[0]; o.State != client.PlacementDown {
		t.Errorf("nobody's port: %+v", o)
	}
}

func TestConsumerThatServesAnotherIsToldAgain(t *testing.T) {
	s := newServer(t, "")
	o := s.m.settled().Observations[0]
	stale, err := tls.X509KeyPair(s.m.read("/etc/ssl/server.pem"), s.m.read("/etc/ssl/server.key"))
	must(t, err)
	s.m.rename("third.example")
	s.m.settled()
	for _, limit := range []string{"3s", "1m"} { // the agent waits for as long before it tells again; a busy machine may then be too late
		s.patience(limit)
		s.mu.Lock()
		s.pair = &stale // as if it had been started with a copy of the old files
		s.mu.Unlock()
		result := s.m.once()
		after := result.Observations[0]
		if result.Done() && s.serves() == after.Serial && after.Serial != o.Serial && len(after.Repaired) > 0 {
			return
		}
		t.Logf("within %s: %+v", limit, after)
	}
	t.Fatal("it was not told again")
}
