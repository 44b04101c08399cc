package hosts_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/cert"
	"chancery/internal/run/consumer"
)

// displays wants a display to show a certificate.
func (h *host) displays(address string, want *x509.Certificate) {
	h.t.Helper()
	seen, err := probe.Look(h.t.Context(), recipe.Probe{Address: address, StartTLS: "vnc"}, nil)
	must(h.t, err)
	if !seen.Leaf().Equal(want) {
		h.t.Errorf("the display at %s shows %s, not %s", address, cert.FormatSerial(seen.Leaf().SerialNumber), cert.FormatSerial(want.SerialNumber))
	}
}

// TestQEMUDisplays, scenario S14: machines that run show the new certificate after a renewal, without being restarted and
// without losing whoever looks at them; one that cannot be told is named, and keeps no other from its certificate.
func TestQEMUDisplays(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	h := w.qemuHost(t, "hyper", machine{pool: pool.Name})
	const dir = "/etc/pki/libvirt-vnc"
	sockets := h.socketDir()
	h.join(h.qemuOrder("vnc", dir, "sockets="+h.inside(sockets)))
	h.converge()
	if seen := h.observed("qemu-vnc"); seen.State != client.PlacementPlaced {
		t.Errorf("while no machine runs: %+v", seen)
	}
	var machines []*consumer.Process
	var displays []string
	for _, m := range []consumer.QEMUMachine{{Name: "web1", TLS: dir, Verify: true}, {Name: "web2", TLS: dir}, {Name: "plain"}} {
		m.Display, _ = h.freeAt()
		m.Socket = h.inside(sockets + "/" + m.Name)
		if m.TLS != "" {
			m.TLS = h.inside(m.TLS)
			displays = append(displays, m.Display)
		}
		machines = append(machines, h.qemuMachine(m))
	}
	leaf := func() *x509.Certificate { return parsed(t, h.read(dir+"/server-cert.pem")) }
	first := leaf()
	h.converge()
	if seen := h.observed("qemu-vnc"); seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(first.SerialNumber) {
		t.Errorf("two machines show %+v", seen)
	}
	good := w.clientOf(t, pool, "good")
	looks := h.viewer(displays[0], trustOf(pool), good)
	w.chancery(t, "host", "set", h.name, "--dns", "console-"+h.name)
	h.converge()
	second := leaf()
	if second.Equal(first) {
		t.Fatal("it was not re-keyed")
	}
	for _, d := range displays {
		h.displays(d, second)
	}
	looks.draws()
	for _, m := range machines {
		select {
		case <-m.Done():
			t.Errorf("a machine ended: %s", m.Output())
		default:
		}
	}
	other := w.pool(t)
	for name, own := range map[string]*peer{"of another pool": w.clientOf(t, other, "good"), "nobody": nil} {
		if err := view(t, h, displays[0], trustOf(pool), own); err == nil {
			t.Errorf("a viewer %s gets in", name)
		}
	}

	// A socket that somebody else holds: QMP serves one client at a time.
	hold, err := net.Dial("unix", h.path(sockets+"/web2"))
	must(t, err)
	defer hold.Close()
	must(t, hold.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err = hold.Read(make([]byte, 1))
	must(t, err)
	w.chancery(t, "host", "set", h.name, "--dns", "screen-"+h.name)
	h.refuses("web2 could not be asked: it does not answer; a socket of QMP serves one client at a time")
	third := leaf()
	if third.Equal(second) {
		t.Error("one machine that does not answer kept the others from their certificate")
	}
	h.displays(displays[0], third)
	h.displays(displays[1], second)
	must(t, hold.Close())
	until(t, "the machine that was held up is told", func() bool { return h.agent("run", "--once").Run() == nil })
	h.displays(displays[1], third)
	looks.draws()
}

// viewer is somebody who looks at a display.
type viewer struct {
	t    *testing.T
	conn *tls.Conn
}

// viewer opens a display as a client with a certificate.
func (h *host) viewer(address string, trust []byte, own *peer) *viewer {
	h.t.Helper()
	t := h.t.(*testing.T)
	conn, err := viewerOf(h, address, trust, own)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return &viewer{t, conn}
}

func view(t *testing.T, h *host, address string, trust []byte, own *peer) error {
	t.Helper()
	conn, err := viewerOf(h, address, trust, own)
	if err == nil {
		conn.Close()
	}
	return err
}

// viewerOf speaks RFB 3.8 with VeNCrypt 0.2, X509None, up to the first picture's size.
func viewerOf(h *host, address string, trust []byte, own *peer) (*tls.Conn, error) {
	plain, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	if err := plain.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	for _, turn := range []struct {
		expect int
		say    string
	}{{12, "RFB 003.008\n"}, {2, "\x13"}, {2, "\x00\x02"}, {6, "\x00\x00\x01\x04"}, {1, ""}} {
		if _, err := io.ReadFull(plain, make([]byte, turn.expect)); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(plain, turn.say); err != nil {
			return nil, err
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trust)
	config := &tls.Config{RootCAs: roots, ServerName: h.name}
	if own != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own.pair, nil }
	}
	conn := tls.Client(plain, config)
	result := make([]byte, 4)
	if _, err := io.ReadFull(conn, result); err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte{1}); err != nil { // others may look, too
		return nil, err
	}
	size := make([]byte, 24)
	if _, err := io.ReadFull(conn, size); err != nil {
		return nil, err
	}
	_, err = io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(size[20:])))
	return conn, err
}

// draws asks for a picture, over the connection that was opened before.
func (v *viewer) draws() {
	v.t.Helper()
	must(v.t, v.conn.SetDeadline(time.Now().Add(time.Minute)))
	ask := []byte{3, 0, 0, 0, 0, 0, 0, 16, 0, 16}
	_, err := v.conn.Write(ask)
	must(v.t, err)
	header := make([]byte, 4)
	if _, err := io.ReadFull(v.conn, header); err != nil || header[0] != 0 {
		v.t.Fatalf("who looked at the display before sees %v now: %v", header, err)
	}
	for range binary.BigEndian.Uint16(header[2:]) {
		rectangle := make([]byte, 12)
		if _, err := io.ReadFull(v.conn, rectangle); err != nil {
			v.t.Fatal(err)
		}
		area := int64(binary.BigEndian.Uint16(rectangle[4:])) * int64(binary.BigEndian.Uint16(rectangle[6:]))
		if _, err := io.CopyN(io.Discard, v.conn, 4*area); err != nil { // raw, with pixels of 32 bits
			v.t.Fatal(err)
		}
	}
}
