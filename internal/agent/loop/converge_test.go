package loop_test

import (
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

func TestJoinedHostHoldsWhatItShall(t *testing.T) {
	m := newMachine(t, plain(nil))
	result := m.settled()
	pair := m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
	if o := result.Observations[0]; o.State != client.PlacementPlaced || o.Serial == "" || len(o.Files) != 4 || len(o.CRLs) != 2 {
		t.Fatalf("%+v", o)
	}
	if st, err := os.Stat(m.path("/etc/ssl/a.key")); err != nil || st.Mode() != 0o600 {
		t.Fatalf("%v %v", st.Mode(), err)
	}
	if names := pair.Leaf.DNSNames; !slices.Contains(names, m.name) || !slices.Contains(names, m.name+".example") {
		t.Fatalf("names %v", names)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(m.read("/etc/ssl/ca.pem"))
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		must(t, err)
		between.AddCert(c)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: m.name}); err != nil {
		t.Fatal(err)
	}
	host, err := m.node.admin.Host(t.Context(), m.name)
	must(t, err)
	if host.State != client.HostJoined || len(host.Placements) != 1 || host.Placements[0].Observed.Serial != result.Observations[0].Serial {
		t.Fatalf("the authority was told %+v", host)
	}
	// The host holds the key, and the authority never did.
	if strings.Contains(string(m.read("/etc/ssl/a.pem")), "PRIVATE") {
		t.Fatal("a key is in the file of the certificate")
	}
}

// tree is every file below a directory with what a write would change.
func tree(t testing.TB, dirs ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, dir := range dirs {
		must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			must(t, err)
			st, err := os.Lstat(path)
			must(t, err)
			out, err := exec.Command("stat", "-c", "%i %y %z %a %u %g %s", path).Output()
			must(t, err)
			all[path] = strings.TrimSpace(string(out)) + st.Mode().String()
			return nil
		}))
	}
	return all
}

func TestPassWithoutChangeWritesNothing(t *testing.T) {
	m := newMachine(t, plain(nil), client.PlacementOrder{Name: "store", Recipe: "plain", Parameters: map[string]string{
		"store": "/etc/ssl/s.p12", "truststore": "/etc/ssl/t.p12", "password_file": "/etc/ssl/s.password", "alias": "web",
	}})
	m.settled()
	a, err := loop.New(m.options)
	must(t, err)
	defer a.Close()
	_, err = a.Once(t.Context())
	must(t, err)
	before := tree(t, m.root, m.state)
	if len(before) < 20 {
		t.Fatalf("only %d names are looked at", len(before))
	}
	began := time.Now()
	result, err := a.Once(t.Context())
	took := time.Since(began)
	must(t, err)
	if !result.Done() {
		t.Fatalf("%+v", result)
	}
	after := tree(t, m.root, m.state)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s was written: %s, and %s before", path, after[path], was)
		}
		delete(after, path)
	}
	for path := range after {
		t.Errorf("%s was made", path)
	}
	t.Logf("a pass over 2 placements without change took %s", took)
}

func TestDriftIsReportedAndRepaired(t *testing.T) {
	m := newMachine(t, plain(nil))
	first := m.settled()
	key, certificate := m.read("/etc/ssl/a.key"), m.read("/etc/ssl/a.pem")
	must(t, os.Chmod(m.path("/etc/ssl/a.key"), 0o640))
	must(t, os.WriteFile(m.path("/etc/ssl/a.pem"), []byte("gone"), 0o644))
	must(t, os.Remove(m.path("/etc/ssl/ca.pem")))
	o := m.settled().Observations[0]
	if len(o.Repaired) < 3 || !strings.Contains(strings.Join(o.Repaired, "\n"), "a.key") {
		t.Errorf("repaired: %q", o.Repaired)
	}
	if string(m.read("/etc/ssl/a.key")) != string(key) || string(m.read("/etc/ssl/a.pem")) != string(certificate) || o.Serial != first.Observations[0].Serial {
		t.Error("the repair changed what was placed")
	}
	if st, err := os.Stat(m.path("/etc/ssl/a.key")); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	m.read("/etc/ssl/ca.pem")
}

func TestChangedNamesAreReissuedAtOnce(t *testing.T) {
	m := newMachine(t, plain(nil))
	first := m.settled().Observations[0].Serial
	_, err := m.node.admin.ChangeHost(t.Context(), m.name, client.ChangeHostRequest{DNS: &[]string{m.name + ".example", m.name + ".other"}})
	must(t, err)
	if second := m.settled().Observations[0].Serial; second == first {
		t.Fatal("the certificate is the old one")
	}
	if names := m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key").Leaf.DNSNames; !slices.Contains(names, m.name+".other") {
		t.Fatalf("names %v", names)
	}
	if third := m.settled().Observations[0].Serial; third != m.once().Observations[0].Serial {
		t.Fatal("it is re-keyed again and again")
	}
}

func TestRevokedCertificateIsRekeyedAtOnce(t *testing.T) {
	m := newMachine(t, plain(nil))
	o := m.settled().Observations[0]
	old := m.read("/etc/ssl/a.key")
	_, err := m.node.admin.Revoke(t.Context(), "", o.Serial, client.RevokeRequest{Reason: "keyCompromise"})
	must(t, err)
	m.eventually("it holds another certificate and a CRL that says why", func() bool {
		result := m.once()
		return result.Done() && result.Observations[0].Serial != o.Serial && m.crlHas(o.Serial)
	})
	if string(old) == string(m.read("/etc/ssl/a.key")) {
		t.Fatal("the key of a revoked certificate is used again")
	}
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
}

func TestRekeyedAtTwoThirdsOfLife(t *testing.T) {
	m := newMachine(t, plain(map[string]string{"profile": shortLived(t)}))
	o := m.settled().Observations[0]
	first := m.read("/etc/ssl/a.key")
	if left := o.NotAfter.Sub(o.RekeyAt); left < 40*time.Minute || left > 55*time.Minute {
		t.Fatalf("of two hours %s are left when it is re-keyed", left)
	}
	m.clockAt(o.RekeyAt.Add(-time.Minute))
	if early := m.settled().Observations[0]; early.Serial != o.Serial {
		t.Fatal("it was re-keyed before it was due")
	}
	m.clockAt(o.RekeyAt.Add(time.Minute))
	if due := m.settled().Observations[0]; due.Serial == o.Serial || string(first) == string(m.read("/etc/ssl/a.key")) {
		t.Fatal("it was due, and has the same key")
	}
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
}

func TestPinnedKeyIsRenewed(t *testing.T) {
	m := newMachine(t, plain(map[string]string{"profile": shortLived(t), "pinned": "true"}))
	o := m.settled().Observations[0]
	first := m.read("/etc/ssl/a.key")
	m.clockAt(o.RekeyAt.Add(time.Minute))
	if due := m.settled().Observations[0]; due.Serial == o.Serial || string(first) != string(m.read("/etc/ssl/a.key")) {
		t.Fatalf("serial %s after %s, and the key is to be the same", due.Serial, o.Serial)
	}
	_, err := m.node.admin.Revoke(t.Context(), "", m.once().Observations[0].Serial, client.RevokeRequest{Reason: "keyCompromise"})
	must(t, err)
	m.eventually("the key that is revoked is replaced", func() bool {
		return m.once().Done() && string(first) != string(m.read("/etc/ssl/a.key"))
	})
}

func TestIdentityRenewsItself(t *testing.T) {
	m := newMachine(t)
	m.settled()
	before, err := loop.Look(m.state, time.Now())
	must(t, err)
	m.clockAt(before.IdentityDue.Add(time.Hour))
	m.settled()
	after, err := loop.Look(m.state, time.Now())
	must(t, err)
	if after.Generation != before.Generation+1 {
		t.Fatalf("generation %d after %d", after.Generation, before.Generation)
	}
	m.options.Now = nil
	m.settled() // with the new one
}

func TestClockThatIsOffIsReported(t *testing.T) {
	m := newMachine(t, plain(nil))
	m.settled()
	m.clockAt(time.Now().Add(time.Hour))
	if result := m.once(); !strings.Contains(strings.Join(result.Problems, "\n"), "ahead of the authority's") {
		t.Errorf("an hour ahead: %q", result.Problems)
	}
	// The certificates of the node and of this host are younger than an hour, so an hour behind none of them is valid yet.
	m.clockAt(time.Now().Add(-time.Hour))
	key := m.read("/etc/ssl/a.key")
	if result := m.once(); result.Done() || !strings.Contains(strings.Join(result.Problems, "\n"), "clock") {
		t.Errorf("an hour behind: %+v", result)
	}
	m.options.Now = nil
	m.settled()
	if n := len(m.issued()); n != 1 || string(key) != string(m.read("/etc/ssl/a.key")) {
		t.Errorf("%d certificates were issued for a clock that was off", n)
	}
}

// clockAt sets the agent's clock.
func (m *machine) clockAt(at time.Time) {
	ahead := time.Until(at)
	m.options.Now = func() time.Time { return time.Now().Add(ahead) }
}

// shortLived is the profile server with a life of two hours.
func shortLived(t *testing.T) string {
	t.Helper()
	n, name := authority(t), "short"
	if _, err := n.admin.Profile(t.Context(), name, 0); err == nil {
		return name
	}
	server, err := n.admin.Profile(t.Context(), "server", 0)
	must(t, err)
	text := regexp.MustCompile(`(?m)^name:.*`).ReplaceAllString(server.YAML, "name: "+name)
	text = regexp.MustCompile(`(?m)^( +default:) .*d$`).ReplaceAllString(text, "$1 2h")
	if !strings.Contains(text, "2h") {
		t.Fatalf("the profile has no validity to change:\n%s", text)
	}
	_, err = n.admin.SaveProfile(t.Context(), name, client.ProfileText{YAML: text})
	must(t, err)
	return name
}

// eventually asks until it is so.
func (m *machine) eventually(what string, so func() bool) {
	m.t.Helper()
	for late := time.Now().Add(2 * time.Minute); !so(); {
		if time.Now().After(late) {
			m.t.Fatalf("it never came to be that %s", what)
		}
		select {
		case <-m.t.Context().Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// crlHas reports whether a CRL that is placed revokes the serial.
func (m *machine) crlHas(serial string) bool {
	m.t.Helper()
	return slices.ContainsFunc(m.crls(), func(l *x509.RevocationList) bool {
		return slices.ContainsFunc(l.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return cert.FormatSerial(e.SerialNumber) == serial })
	})
}

// TestKilledAnywhereItGoesOn kills an agent at every step of its state directory, and at a sample of its operations on
// files, which the tests of internal/agent/place try one by one. Whoever comes next must end with a matching set, and with
// the one certificate that was asked for.
func TestKilledAnywhereItGoesOn(t *testing.T) {
	for in, least := range map[string]int{"state": 20, "files": 60} {
		m := newMachine(t, plain(nil))
		out := m.killed(in, 0)
		all, err := strconv.Atoi(out)
		if err != nil || all < least {
			t.Fatalf("a first pass has %q steps in %s", out, in)
		}
		m.settled()
		stride := 1
		if in == "files" {
			stride = all / 12
		}
		if testing.Short() {
			stride *= 4
		}
		tried := 0
		for at := 1; at <= all; at += stride {
			m := newMachine(t, plain(nil))
			m.killed(in, at)
			m.settled()
			m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
			if n := len(m.issued()); n != 1 {
				t.Errorf("killed at step %d of %d in %s, it was issued %d certificates", at, all, in, n)
			}
			tried++
		}
		if tried < 3 {
			t.Fatalf("only %d steps in %s were tried", tried, in)
		}
		t.Logf("killed at %d of %d steps in %s", tried, all, in)
	}
}

// killed runs a pass in a process that is killed at a step; 0 lets it end, and returns what it printed.
func (m *machine) killed(in string, at int) string {
	m.t.Helper()
	self, err := os.Executable()
	must(m.t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), killAt+"="+strconv.Itoa(at), killIn+"="+in, "CHANCERY_TEST_STATE="+m.state)
	var wrong strings.Builder
	cmd.Stderr = &wrong
	out, err := cmd.Output()
	if at == 0 {
		must(m.t, err)
		return string(out)
	}
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		m.t.Fatalf("it was to be killed at step %d in %s: %v %s", at, in, err, wrong.String())
	}
	return ""
}

func TestTokensAreRefusedInWords(t *testing.T) {
	n := authority(t)
	add := func(name string) *client.HostToken {
		added, err := n.admin.AddHost(t.Context(), client.AddHostRequest{Name: name})
		must(t, err)
		return added
	}
	added := add("token1")
	state := filepath.Join(t.TempDir(), "s")
	if _, err := loop.Join(t.Context(), loop.JoinOptions{State: state, Token: "hello"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no token: %v", err)
	}
	parsed, err := client.ParseJoinToken(added.Token)
	must(t, err)
	other := *parsed
	other.Fingerprint = client.Fingerprint([]byte("another authority"))
	if _, err := loop.Join(t.Context(), loop.JoinOptions{State: state, Token: other.String()}); err == nil || !strings.Contains(err.Error(), "root of identities") {
		t.Errorf("another authority's token: %v", err)
	}
	guessed := *parsed
	guessed.Secret = strings.Repeat("A", len(parsed.Secret))
	if _, err := loop.Join(t.Context(), loop.JoinOptions{State: state, Token: guessed.String()}); !client.IsKind(err, "unauthenticated") {
		t.Errorf("a guessed secret: %v", err)
	}
	joined, err := loop.Join(t.Context(), loop.JoinOptions{State: state, Token: added.Token})
	if err != nil || joined.Host != "token1" {
		t.Fatalf("%+v, %v", joined, err)
	}
	if _, err := loop.Join(t.Context(), loop.JoinOptions{State: state, Token: added.Token}); !fault.Is(err, fault.Conflict) {
		t.Errorf("joined already: %v", err)
	}
	if _, err := loop.Join(t.Context(), loop.JoinOptions{State: filepath.Join(t.TempDir(), "s"), Token: added.Token}); !client.IsKind(err, "denied") {
		t.Errorf("redeemed by another machine: %v", err)
	}
}

// crls are the CRLs that are placed.
func (m *machine) crls() []*x509.RevocationList {
	m.t.Helper()
	var all []*x509.RevocationList
	text := m.read("/etc/ssl/crl.pem")
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		l, err := x509.ParseRevocationList(block.Bytes)
		must(m.t, err)
		all = append(all, l)
	}
	return all
}
