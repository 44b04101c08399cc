package loop_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/keyfile"
)

// TestHostWhoseLeafEndedStillGetsItsTrust: its successor waits until all who pin it hold it, and they until this host holds
// theirs. So what it is to trust and to pin is placed beside the certificate that has ended, is said to be in use in this pass and
// in the next ones, and a trust that is no good is not placed even so.
func TestHostWhoseLeafEndedStillGetsItsTrust(t *testing.T) {
	m := newMover(t, map[string]string{"pinned": "true", "peers": "true"})
	m.lives("1h")
	known := foreignLeaf(t, "known")
	m.told(func(d *client.Desired, _ *client.DesiredPlacement) { d.Trust.Pinned = []string{pemText(known)} })
	first := m.issued()[0].Serial
	released := func(d *client.Desired, p *client.DesiredPlacement) {
		p.Released, d.Trust.Pinned = []string{first}, []string{pemText(known)}
	}
	placed := m.told(released)
	if placed.Serial != first || placed.State != client.PlacementPlaced {
		t.Fatalf("%+v", placed)
	}
	m.lives("4h") // the node's clock is nobody's to set, and the next one is to end later
	m.clockAt(placed.NotAfter.Add(time.Second))
	peer, root := foreignLeaf(t, "peer"), foreignRoot(t, "the next root", time.Now().Add(3*time.Hour))
	moved := func(d *client.Desired, p *client.DesiredPlacement) {
		released(d, p)
		d.Trust.Version, d.Trust.Pinned = 40, []string{pemText(peer)}
		d.Trust.Anchors = append(slices.Clone(d.Trust.Anchors), pemText(root))
	}
	for range 2 {
		o := m.told(moved)
		pinned, err := keyfile.ParseCertificates(m.read("/etc/ssl/peers.pem"))
		must(t, err)
		if !slices.EqualFunc(pinned, []*x509.Certificate{peer}, (*x509.Certificate).Equal) || len(o.Pinned) != 1 || o.Trust != 40 || len(m.trusts()) != 2 {
			t.Fatalf("%d pinned, %d trusted: %+v", len(pinned), len(m.trusts()), o)
		}
		if o.Serial != first || o.State != client.PlacementFailed || !strings.Contains(o.Message, "has ended") || len(o.Announced) != 1 {
			t.Errorf("%+v", o)
		}
	}
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
	bad := m.told(func(d *client.Desired, p *client.DesiredPlacement) {
		moved(d, p)
		d.Trust.Version, d.Trust.Anchors = 41, append(d.Trust.Anchors, pemText(peer)) // which is no CA
	})
	if bad.Trust != 40 || len(m.trusts()) != 2 || !strings.Contains(bad.Message, "CA:TRUE") {
		t.Errorf("a trust that is no good: %+v, %d trusted", bad, len(m.trusts()))
	}
	next := newest(m.issued()).Serial
	o := m.told(func(d *client.Desired, p *client.DesiredPlacement) {
		moved(d, p)
		p.Released = []string{first, next}
	})
	if o.Serial != next || o.State != client.PlacementPlaced || o.Trust != 40 {
		t.Errorf("once it is released: %+v", o)
	}
}

// foreignLeaf is a certificate that is no CA's.
func foreignLeaf(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	ca, key := foreignCA(t, name+" CA", time.Now().Add(24*time.Hour))
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
	}, ca, &key.PublicKey, key)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}
