package loop_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

const successionRecipe = `
name: succession
title: a consumer whose trust and certificate move
about: a test
parameters:
  - {name: pinned, type: bool, default: "false", about: "peers pin it"}
  - {name: purpose, type: name, about: "of the trust set"}
  - {name: peers, type: bool, default: "false", about: "it pins them"}
certificates:
  - profile: short
    key: [{algorithm: ecdsa-p256}]
    names: ["dns:${host.names}"]
    usages: [serverAuth]
    announce: "${param.purpose|general}"
    announce_when: param.pinned
trust: {purpose: "${param.purpose|}", crls: true}
files:
  - {path: /etc/ssl/a.key, content: [key], mode: "0600"}
  - {path: /etc/ssl/a.pem, content: [path]}
  - {path: /etc/ssl/ca.pem, content: [anchors]}
  - {path: /etc/ssl/crl.pem, when: param.purpose == "", content: [crls]}
  - {path: /etc/ssl/peers.pem, when: param.peers, content: [pinned]}
checks:
  - {name: check, command: [CHECK, CA]}
`

// mover is a host with the recipe above, and what it is told may be changed on the way.
type mover struct {
	*machine
	check string // the program that is its consumer's own check
}

func newMover(t *testing.T, parameters map[string]string) *mover {
	t.Helper()
	m := &mover{newMachine(t, client.PlacementOrder{Recipe: "local/succession", Name: "a", Parameters: parameters}), filepath.Join(t.TempDir(), "check")}
	_, err := m.node.admin.ChangeHost(t.Context(), m.name, client.ChangeHostRequest{Profiles: &[]string{shortLived(t)}}) // its recipe is its own
	must(t, err)
	m.checks("exit 0")
	must(t, os.MkdirAll(m.path(loop.RecipeDirectory), 0o755))
	text := strings.NewReplacer("CHECK", m.check, "CA]", m.path("/etc/ssl/ca.pem")+"]").Replace(successionRecipe)
	must(t, os.WriteFile(filepath.Join(m.path(loop.RecipeDirectory), "succession.yaml"), []byte(text), 0o644))
	must(t, os.WriteFile(m.path(loop.ConfigFile), []byte("recipes: [local/succession]\n"), 0o644))
	return m
}

func (m *mover) checks(script string) {
	m.t.Helper()
	must(m.t, os.WriteFile(m.check, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
}

// lives has its certificates issued for as long as that from now on, by a profile of its own.
func (m *mover) lives(validity string) {
	m.t.Helper()
	server, err := m.node.admin.Profile(m.t.Context(), "server", 0)
	must(m.t, err)
	name := "brief-" + m.name
	text := regexp.MustCompile(`(?m)^( +default:) .*d$`).ReplaceAllString(strings.Replace(server.YAML, "name: server", "name: "+name, 1), "$1 "+validity)
	if !strings.Contains(text, validity) {
		m.t.Fatalf("the profile has no validity to change:\n%s", text)
	}
	_, err = m.node.admin.SaveProfile(m.t.Context(), name, client.ProfileText{YAML: text})
	must(m.t, err)
	_, err = m.node.admin.ChangeHost(m.t.Context(), m.name, client.ChangeHostRequest{Profiles: &[]string{name}})
	must(m.t, err)
	recipe := m.path(loop.RecipeDirectory + "/succession.yaml")
	old, err := os.ReadFile(recipe)
	must(m.t, err)
	must(m.t, os.WriteFile(recipe, []byte(strings.Replace(string(old), "profile: short", "profile: "+name, 1)), 0o644))
}

// told runs a pass of a fresh agent upon what the authority says, as it is changed.
func (m *mover) told(change func(d *client.Desired, p *client.DesiredPlacement)) client.Observation {
	m.t.Helper()
	o, _ := m.tell(nil, change)
	return o
}

// tell is told, while the authority is away where gone says so.
func (m *mover) tell(gone error, change func(d *client.Desired, p *client.DesiredPlacement)) (client.Observation, *loop.Result) {
	m.t.Helper()
	a, err := loop.New(m.options)
	must(m.t, err)
	defer a.Close()
	_, err = a.Repair(m.t.Context())
	must(m.t, err)
	d, err := a.Fetch(m.t.Context())
	must(m.t, err)
	if change != nil {
		change(d, &d.Placements[0])
	}
	a.Leave(gone)
	result, err := a.Pass(m.t.Context(), d)
	must(m.t, err)
	return result.Observations[0], result
}

// root is a root of somebody else's.
func foreignRoot(t *testing.T, name string, notAfter time.Time) *x509.Certificate {
	c, _ := foreignCA(t, name, notAfter)
	return c
}

func foreignCA(t *testing.T, name string, notAfter time.Time) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c, key
}

func pemText(c *x509.Certificate) string { return string(keyfile.EncodeCertificates(c)) }

// trusts are the certificates in the file of those that are trusted.
func (m *mover) trusts() []*x509.Certificate {
	m.t.Helper()
	all, err := keyfile.ParseCertificates(m.read("/etc/ssl/ca.pem"))
	must(m.t, err)
	return all
}

// TestVersionOfTrustIsThatInUse: it is said when it is placed and the consumer took it, and a version that the consumer does
// not take leaves the one of before, placed and said.
func TestVersionOfTrustIsThatInUse(t *testing.T) {
	m := newMover(t, nil)
	extra := foreignRoot(t, "extra", time.Now().Add(time.Hour))
	version := func(v int64, anchors ...*x509.Certificate) func(*client.Desired, *client.DesiredPlacement) {
		return func(d *client.Desired, _ *client.DesiredPlacement) {
			d.Trust.Version = v
			for _, c := range anchors {
				d.Trust.Anchors = append(d.Trust.Anchors, pemText(c))
			}
		}
	}
	o := m.told(version(7))
	if o.Trust != 7 || o.State != client.PlacementPlaced || o.CRLEnds.Before(time.Now()) || o.Issuer == "" {
		t.Fatalf("%+v", o)
	}
	if again := m.told(version(8)); again.Trust != 8 {
		t.Errorf("the same under another number: %+v", again)
	}
	m.checks(`grep -c BEGIN "$1" | grep -qx 1`)
	failed := m.told(version(9, extra))
	if failed.Trust != 8 || failed.State != client.PlacementFailed || !strings.Contains(failed.Message, "check") || len(m.trusts()) != 1 {
		t.Errorf("a bundle that the consumer refuses: %+v, %d trusted", failed, len(m.trusts()))
	}
	if failed.Serial != o.Serial {
		t.Error("its certificate changed for it")
	}
	if after := m.told(version(8)); after.Trust != 8 || after.State != client.PlacementPlaced {
		t.Errorf("back at the version of before: %+v", after)
	}
	m.checks("exit 0")
	if taken := m.told(version(9, extra)); taken.Trust != 9 || len(m.trusts()) != 2 || taken.State != client.PlacementPlaced {
		t.Errorf("once it is taken: %+v", taken)
	}
}

// TestVersionWaitsForTheCRLsOfAllIssuers: an issuer whose CRL exists and is not here yet keeps a version from being in use.
func TestVersionWaitsForTheCRLsOfAllIssuers(t *testing.T) {
	m := newMover(t, nil)
	m.told(nil)
	extra := foreignRoot(t, "no list of it can be had", time.Now().Add(time.Hour))
	o, result := m.tell(nil, func(d *client.Desired, _ *client.DesiredPlacement) {
		d.Trust.Version = 70
		d.Trust.Issuers = append(d.Trust.Issuers, client.TrustIssuer{Name: "no-such-issuer", PEM: pemText(extra), CRLNumber: "1"})
	})
	if o.Trust == 70 || o.Trust == 0 || len(result.Problems) == 0 || !strings.Contains(strings.Join(result.Problems, " "), "no-such-issuer") {
		t.Errorf("%+v %v", o, result.Problems)
	}
}

// TestLeavesAreIssuedAnewWhenAskedFor: once for each number, also by an agent that is started anew.
func TestLeavesAreIssuedAnewWhenAskedFor(t *testing.T) {
	m := newMover(t, nil)
	first := m.told(nil)
	again := func(n int64) func(*client.Desired, *client.DesiredPlacement) {
		return func(_ *client.Desired, p *client.DesiredPlacement) { p.Reissue = n }
	}
	second := m.told(again(4))
	if second.Serial == first.Serial || second.Reissued != 4 || first.Reissued != 0 {
		t.Fatalf("%+v, then %+v", first, second)
	}
	for _, n := range []int64{4, 3, 0} {
		if o := m.told(again(n)); o.Serial != second.Serial || o.Reissued != 4 {
			t.Errorf("number %d once more: %+v", n, o)
		}
	}
	if len(m.issued()) != 2 {
		t.Errorf("%d were issued", len(m.issued()))
	}
}

// TestLeafMovesToTheIssuerThatIsNamed: and stays there when it is renewed. One that is not trusted yet is not gone under.
func TestLeafMovesToTheIssuerThatIsNamed(t *testing.T) {
	m := newMover(t, nil)
	first := m.told(nil)
	under := func(name string) func(*client.Desired, *client.DesiredPlacement) {
		return func(_ *client.Desired, p *client.DesiredPlacement) { p.Issuer = name }
	}
	stays := m.told(under("not-trusted"))
	if stays.Serial != first.Serial || stays.State != client.PlacementFailed || !strings.Contains(stays.Message, "not-trusted") {
		t.Fatalf("%+v", stays)
	}
	next := m.secondIssuer()
	want := hex.EncodeToString(sum(next.PEM))
	moved := m.told(under(next.Name))
	if moved.Issuer != want || moved.Serial == first.Serial || first.Issuer == want || moved.State != client.PlacementPlaced {
		t.Fatalf("from %+v to %+v, and the issuer is %s", first, moved, want)
	}
	// The authority renews a host's certificate under what it tells the host, and was not asked here.
	_, err := m.node.admin.SetDefaultIssuer(t.Context(), next.Name)
	must(t, err)
	m.clockAt(moved.RekeyAt.Add(time.Minute))
	renewed := m.told(under(next.Name))
	if renewed.Issuer != want || renewed.Serial == moved.Serial {
		t.Errorf("after its renewal: %+v", renewed)
	}
}

// secondIssuer is another issuer of the default pool.
func (m *mover) secondIssuer() *client.Issuer {
	m.t.Helper()
	for i, err := range m.node.admin.Issuers(m.t.Context()) {
		must(m.t, err)
		if i.Pool == "default" && i.Name == "second" {
			return &i
		}
	}
	made, err := m.node.admin.CreateIssuer(m.t.Context(), client.CreateIssuerRequest{Kind: "intermediate", Name: "second", Pool: "default", Parent: "default-root", Subject: "CN=second issuer,O=Chancery"})
	must(m.t, err)
	_, err = m.node.admin.IssueCRL(m.t.Context(), made.Name, client.IssueCRLRequest{})
	must(m.t, err)
	return made
}

func sum(text string) []byte {
	block, _ := pem.Decode([]byte(text))
	s := sha256.Sum256(block.Bytes)
	return s[:]
}

// TestTrustForAPurpose: a placement trusts who is trusted for its purpose, and nothing changes where that is not known.
func TestTrustForAPurpose(t *testing.T) {
	m := newMover(t, map[string]string{"purpose": "ldaps"})
	directory := foreignRoot(t, "directory", time.Now().Add(time.Hour))
	none := m.told(nil)
	if none.State != client.PlacementFailed || !strings.Contains(none.Message, "ldaps") || !strings.Contains(none.Message, "pool trust add") || len(m.issued()) != 0 {
		t.Fatalf("%+v, %d issued", none, len(m.issued()))
	}
	with := func(d *client.Desired, _ *client.DesiredPlacement) {
		d.Trust.Version = 3
		d.TrustSets = []client.TrustSet{{Purpose: "ldaps", Version: 3, Anchors: []string{pemText(directory)}}}
	}
	o := m.told(with)
	if o.State != client.PlacementPlaced || o.Trust != 3 || !slices.EqualFunc(m.trusts(), []*x509.Certificate{directory}, (*x509.Certificate).Equal) {
		t.Fatalf("%+v", o)
	}
	before := tree(t, m.root)
	gone := m.told(nil)
	if gone.State != client.PlacementFailed || gone.Serial != o.Serial || !strings.Contains(gone.Message, "left as it is") {
		t.Errorf("%+v", gone)
	}
	for path, was := range tree(t, m.root) {
		if before[path] != was {
			t.Errorf("%s was written", path)
		}
	}
}

// TestWhatPeersPinWaitsForThem: a certificate that peers pin is placed when it is released, and not before, whatever becomes of
// the one that is placed.
func TestWhatPeersPinWaitsForThem(t *testing.T) {
	m := newMover(t, map[string]string{"pinned": "true"})
	var released []string
	say := func(number int64) client.Observation {
		t.Helper()
		return m.told(func(_ *client.Desired, p *client.DesiredPlacement) { p.Reissue, p.Released = number, released })
	}
	first := say(0)
	if first.State != client.PlacementPending || len(first.Announced) != 1 || first.Serial != "" {
		t.Fatalf("the first: %+v", first)
	}
	if _, err := os.Lstat(m.path("/etc/ssl/a.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is placed: %v", err)
	}
	if again := say(0); !slices.Equal(again.Announced, first.Announced) || len(m.issued()) != 1 {
		t.Errorf("asked again: %+v, %d issued", again, len(m.issued()))
	}
	released = append(released, m.issued()[0].Serial)
	placed := say(0)
	if placed.Serial != released[0] || placed.State != client.PlacementPlaced || len(placed.Announced) != 0 {
		t.Fatalf("released: %+v", placed)
	}

	waiting := say(1)
	next := newest(m.issued()).Serial
	if waiting.Serial != placed.Serial || len(waiting.Announced) != 1 || waiting.State != client.PlacementPlaced || !strings.Contains(waiting.Message, next) {
		t.Errorf("the second: %+v", waiting)
	}
	m.revoke(placed.Serial)
	m.eventually("the old one is known to be revoked", func() bool { return strings.Contains(say(1).Message, "is revoked") })
	if o := say(1); o.Serial != placed.Serial || o.State != client.PlacementFailed || !strings.Contains(o.Message, "ALARM") || len(m.issued()) != 2 {
		t.Errorf("the old one is revoked: %+v, %d issued", o, len(m.issued()))
	}
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
	released = append(released, next)
	if o := say(1); o.Serial != next || o.State != client.PlacementPlaced || len(o.Announced) != 0 || len(m.issued()) != 2 {
		t.Errorf("released: %+v, %d issued", o, len(m.issued()))
	}
}

// TestReleasedIsAnnouncedUntilItIsPlaced: what is not announced and not placed leaves its peers, and a host that is told that it may
// place a certificate may fail once, and place it the next time.
func TestReleasedIsAnnouncedUntilItIsPlaced(t *testing.T) {
	m := newMover(t, map[string]string{"pinned": "true"})
	var released []string
	say := func(number int64) client.Observation {
		t.Helper()
		return m.told(func(_ *client.Desired, p *client.DesiredPlacement) { p.Reissue, p.Released = number, released })
	}
	say(0)
	first := m.issued()[0].Serial
	released = []string{first}
	m.checks("exit 1")
	if o := say(0); o.State != client.PlacementFailed || o.Serial != "" || len(o.Announced) != 1 {
		t.Errorf("the first, which its consumer does not take: %+v", o)
	}
	m.checks("exit 0")
	if o := say(0); o.Serial != first || len(o.Announced) != 0 {
		t.Fatalf("the first: %+v", o)
	}
	say(1)
	next := newest(m.issued()).Serial
	released = []string{first, next}
	m.checks("exit 1")
	o := say(1)
	if o.State != client.PlacementFailed || o.Serial != first || len(o.Announced) != 1 || serialOf(t, o.Announced[0]) != next {
		t.Errorf("the next, which its consumer does not take: %+v", o)
	}
	m.checks("exit 0")
	if o := say(1); o.Serial != next || len(o.Announced) != 0 || len(m.issued()) != 2 {
		t.Errorf("the next: %+v", o)
	}
	released = []string{first} // as after a backup was restored that knows of no other
	if o := say(1); o.Serial != next || len(o.Announced) != 1 || serialOf(t, o.Announced[0]) != next {
		t.Errorf("placed, and the authority knows nothing of it: %+v", o)
	}
}

func serialOf(t *testing.T, text string) string {
	t.Helper()
	all, err := keyfile.ParseCertificates([]byte(text))
	must(t, err)
	return cert.FormatSerial(all[0].SerialNumber)
}

// TestWhatPeersPinEndsBeforeItsSuccessorIsReleased: the placed one ends while its successor is not released.
func TestWhatPeersPinEndsBeforeItsSuccessorIsReleased(t *testing.T) {
	m := newMover(t, map[string]string{"pinned": "true"})
	m.lives("1h")
	m.told(nil)
	first := m.issued()[0].Serial
	release := func(_ *client.Desired, p *client.DesiredPlacement) { p.Released = []string{first} }
	placed := m.told(release)
	m.lives("4h") // the node's clock is nobody's to set, and the next one is to end later, however long the passes take
	m.clockAt(placed.RekeyAt.Add(time.Minute))
	waiting := m.told(release)
	if waiting.Serial != first || len(waiting.Announced) != 1 || waiting.State != client.PlacementPlaced {
		t.Fatalf("it is due: %+v", waiting)
	}
	m.clockAt(placed.NotAfter.Add(time.Second))
	gone := errors.New("away")
	ended, _ := m.tell(gone, release)
	if ended.Serial != first || ended.State != client.PlacementFailed || !strings.Contains(ended.Message, "ALARM") || !strings.Contains(ended.Message, "not released") {
		t.Errorf("it has ended: %+v", ended)
	}
}

// TestWhatIsPlacedIsAnnouncedWhenPeersBeginToPin: nobody has told them of it yet.
func TestWhatIsPlacedIsAnnouncedWhenPeersBeginToPin(t *testing.T) {
	m := newMover(t, nil)
	placed := m.told(nil)
	m.order(client.PlacementOrder{Recipe: "local/succession", Name: "a", Parameters: map[string]string{"pinned": "true"}})
	o := m.told(nil)
	if len(o.Announced) != 1 || o.Serial != placed.Serial || len(m.issued()) != 1 {
		t.Fatalf("%+v", o)
	}
	if done := m.told(func(_ *client.Desired, p *client.DesiredPlacement) { p.Released = []string{placed.Serial} }); len(done.Announced) != 0 {
		t.Errorf("once all hold it: %+v", done)
	}
}

// TestEndedAnchorLeavesWithoutTheAuthority: one that has ended keeps libvirtd from starting. The last one stays.
func TestEndedAnchorLeavesWithoutTheAuthority(t *testing.T) {
	m := newMover(t, map[string]string{"purpose": "ldaps"})
	soon := foreignRoot(t, "ends soon", time.Now().Add(20*time.Minute))
	later := foreignRoot(t, "ends later", time.Now().Add(40*time.Minute))
	both := func(d *client.Desired, _ *client.DesiredPlacement) {
		d.TrustSets = []client.TrustSet{{Purpose: "ldaps", Version: 5, Anchors: []string{pemText(soon), pemText(later)}}}
	}
	if o := m.told(both); len(m.trusts()) != 2 || o.Trust != 5 {
		t.Fatalf("%+v", o)
	}
	gone := errors.New("away")
	m.clockAt(soon.NotAfter.Add(time.Minute))
	o, _ := m.tell(gone, both)
	if !slices.EqualFunc(m.trusts(), []*x509.Certificate{later}, (*x509.Certificate).Equal) || o.State != client.PlacementPlaced ||
		!strings.Contains(o.Message, "ends soon") || o.Trust != 5 {
		t.Errorf("one has ended: %+v, %d trusted", o, len(m.trusts()))
	}
	m.clockAt(later.NotAfter.Add(time.Minute))
	o, _ = m.tell(gone, both)
	if len(m.trusts()) != 1 || o.State != client.PlacementFailed || !strings.Contains(o.Message, "expired at") {
		t.Errorf("all have ended: %+v, %d trusted", o, len(m.trusts()))
	}
}

// TestEndedAnchorLeavesWhereNothingElseCanBeDone: what is kept as it was is kept without what has ended.
func TestEndedAnchorLeavesWhereNothingElseCanBeDone(t *testing.T) {
	m := newMover(t, map[string]string{"purpose": "ldaps"})
	soon := foreignRoot(t, "ends soon", time.Now().Add(20*time.Minute))
	later := foreignRoot(t, "ends later", time.Now().Add(24*time.Hour))
	both := func(d *client.Desired, _ *client.DesiredPlacement) {
		d.TrustSets = []client.TrustSet{{Purpose: "ldaps", Version: 5, Anchors: []string{pemText(soon), pemText(later)}}}
	}
	placed := m.told(both)
	m.clockAt(placed.NotAfter.Add(time.Minute)) // the certificate has ended, too, and none can be had
	o, _ := m.tell(errors.New("away"), both)
	if len(m.trusts()) != 1 || o.State != client.PlacementFailed {
		t.Errorf("%+v, %d trusted", o, len(m.trusts()))
	}
}

// TestIdentityIsRenewedWhenAskedFor: for a generation that is not above the one named, and once.
func TestIdentityIsRenewedWhenAskedFor(t *testing.T) {
	m := newMover(t, nil)
	generation := func() int64 {
		s, err := loop.Look(m.state, time.Now())
		must(t, err)
		return s.Generation
	}
	m.told(nil)
	first := generation()
	after := func(d *client.Desired, _ *client.DesiredPlacement) { d.IdentityAfter = first }
	for range 3 {
		m.told(after)
	}
	if now := generation(); now != first+1 {
		t.Errorf("from generation %d to %d", first, now)
	}
}

// TestPathFollowsARenewedIssuer: where an issuer is renewed with its key, what is placed gets the issuer's new certificate, and stays
// the certificate that it was. There is one CRL of both.
func TestPathFollowsARenewedIssuer(t *testing.T) {
	m := newMover(t, nil)
	issuer := m.renewableIssuer()
	under := func(_ *client.Desired, p *client.DesiredPlacement) { p.Issuer = issuer.Name }
	path := func() []*x509.Certificate {
		all, err := keyfile.ParseCertificates(m.read("/etc/ssl/a.pem"))
		must(t, err)
		return all
	}
	m.waits("is under the issuer", func() bool { return m.told(under).Issuer == hex.EncodeToString(sum(issuer.PEM)) })
	first, before := m.told(under), path()
	lists := strings.Count(string(m.read("/etc/ssl/crl.pem")), "BEGIN")
	renewed, err := m.node.admin.RenewIssuer(t.Context(), issuer.Name, client.RenewIssuerRequest{Validity: "3y"})
	must(t, err)
	m.waits("has the new certificate of its issuer", func() bool {
		m.told(under)
		return len(path()) == 2 && pemText(path()[1]) == renewed.PEM
	})
	o := m.told(under)
	if o.Serial != first.Serial || o.State != client.PlacementPlaced || o.Issuer != hex.EncodeToString(sum(renewed.PEM)) || !path()[0].Equal(before[0]) {
		t.Errorf("from %+v to %+v", first, o)
	}
	if len(m.issued()) != 1 {
		t.Errorf("%d were issued", len(m.issued()))
	}
	if n := strings.Count(string(m.read("/etc/ssl/crl.pem")), "BEGIN"); n != lists || n == 0 {
		t.Errorf("%d CRLs are placed, and were %d: of an issuer with two certificates there is one", n, lists)
	}
	text := m.read("/etc/ssl/a.pem")
	if again := m.told(under); again.Serial != o.Serial || again.State != o.State || !slices.Equal(text, m.read("/etc/ssl/a.pem")) {
		t.Errorf("a pass later: %+v, and before %+v", again, o)
	}
}

// renewableIssuer is an issuer of the default pool that no other test goes by, and that ends in two years.
func (m *mover) renewableIssuer() *client.Issuer {
	m.t.Helper()
	name := "renewable-" + strings.ReplaceAll(m.name, ".", "-")
	made, err := m.node.admin.CreateIssuer(m.t.Context(), client.CreateIssuerRequest{Name: name, Kind: client.IssuerIntermediate, Parent: "default-root",
		Subject: "CN=" + name, Validity: "2y"})
	must(m.t, err)
	_, err = m.node.admin.IssueCRL(m.t.Context(), name, client.IssueCRLRequest{})
	must(m.t, err)
	return made
}

// waits tries until something is so, three minutes at most.
func (m *mover) waits(what string, is func() bool) {
	m.t.Helper()
	for end := time.Now().Add(3 * time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("the host never %s", what)
		}
	}
}
