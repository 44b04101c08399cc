package examine

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/finding"
)

// TestHostAsReported: what the authority knows of a host, in each way wrong.
func TestHostAsReported(t *testing.T) {
	t.Parallel()
	now := time.Now()
	right := client.Host{Name: "web1", Pool: "default", State: client.HostJoined, SeenAt: now.Add(-time.Minute), JoinedAt: now.Add(-24 * time.Hour), IdentityEnds: now.Add(30 * 24 * time.Hour)}
	for name, c := range map[string]struct {
		change func(*client.Host)
		rule   string
	}{
		"right":    {func(*client.Host) {}, ""},
		"pending":  {func(h *client.Host) { h.State = client.HostPending }, "host.state.pending"},
		"suspect":  {func(h *client.Host) { h.State, h.Message = client.HostSuspect, "two machines" }, "host.state.suspect"},
		"removed":  {func(h *client.Host) { h.State = client.HostRemoved }, "host.state.removed"},
		"silent":   {func(h *client.Host) { h.SeenAt = now.Add(-2 * time.Hour) }, "host.silent"},
		"never":    {func(h *client.Host) { h.SeenAt = time.Time{} }, "host.silent"},
		"identity": {func(h *client.Host) { h.IdentityEnds = now.Add(-time.Hour) }, "host.identity.expired"},
		"ends":     {func(h *client.Host) { h.IdentityEnds = now.Add(time.Hour) }, "host.identity.ends"},
	} {
		t.Run(name, func(t *testing.T) {
			h := right
			c.change(&h)
			r := &report{where: "host", object: h.Name}
			r.lookAtHost(&h, now)
			if c.rule == "" {
				want(t, r.found)
			} else {
				want(t, r.found, c.rule)
			}
		})
	}
	served := client.Observation{State: client.PlacementServed, Serial: "01", At: now, NotAfter: now.Add(90 * 24 * time.Hour), RekeyAt: now.Add(60 * 24 * time.Hour),
		Files: []client.ObservedFile{{Path: "/etc/x", Mode: "0600", Owner: "root", Group: "root", Label: "cert_t"}}, Repaired: []string{"a mode"}}
	for name, c := range map[string]struct {
		change func(*client.Observation)
		rule   string
	}{
		"right":   {func(*client.Observation) {}, ""},
		"failed":  {func(o *client.Observation) { o.State, o.Message = client.PlacementFailed, "no such group" }, "host.placement.failed"},
		"down":    {func(o *client.Observation) { o.State = client.PlacementDown }, "host.placement.down"},
		"pending": {func(o *client.Observation) { *o = client.Observation{State: client.PlacementPending} }, "host.placement.pending"},
		"late":    {func(o *client.Observation) { o.RekeyAt = now.Add(-48 * time.Hour) }, "host.placement.late"},
		"expired": {func(o *client.Observation) { o.NotAfter = now.Add(-time.Hour) }, "host.placement.expired"},
	} {
		t.Run(name, func(t *testing.T) {
			p := client.Placement{PlacementOrder: client.PlacementOrder{Name: "nginx", Recipe: "nginx"}, Observed: served}
			c.change(&p.Observed)
			r := &report{where: "host", object: "web1 nginx"}
			r.lookAtPlacement(&right, &p, now)
			if c.rule == "" {
				want(t, r.found)
			} else {
				want(t, r.found, c.rule)
			}
		})
	}
}

// TestServedAndReported: the port is held against the report, and is found by the host's own addresses.
func TestServedAndReported(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	leaf := issue(t, o.issuer, "web1.test", server("web1.test", "127.0.0.1"), known)
	bad := issue(t, o.issuer, "web1.test", server("web1.test", "127.0.0.1"), known, expired)
	look := func(address, said string, change func(*client.Host)) []finding.Finding {
		_, port, _ := net.SplitHostPort(address)
		h := &client.Host{Name: "web1.test", IP: []string{"127.0.0.1"}, State: client.HostJoined, Placements: []client.Placement{{
			PlacementOrder: client.PlacementOrder{Name: "nginx", Recipe: "nginx"},
			Observed:       client.Observation{State: client.PlacementServed, Serial: said, Address: "0.0.0.0:" + port, At: time.Now()},
		}}}
		if change != nil {
			change(h)
		}
		r := &report{where: "host", object: "web1.test nginx"}
		if err := r.lookAtServed(t.Context(), h, &h.Placements[0], nil, HostOptions{Trust: o.trust(), Offline: true, Timeout: 20 * time.Second}, time.Now()); err != nil {
			t.Fatal(err)
		}
		return r.found
	}
	good, old := leaf.sServer(t, leaf.path), bad.sServer(t, bad.path)
	want(t, look(good, serial(leaf.cert), nil))
	found := look(good, serial(bad.cert), nil)
	want(t, found, "host.port.contradiction")
	wantOne(t, found, "host.port.contradiction", serial(leaf.cert), serial(bad.cert))
	want(t, look(good, serial(bad.cert), func(h *client.Host) { // two placements share the port
		h.Placements = append(h.Placements, client.Placement{Observed: client.Observation{Serial: serial(leaf.cert)}})
	}))
	wantOne(t, look(old, serial(bad.cert), nil), "host.port.wrong", "times.expired")
	want(t, look("127.0.0.1:1", "01", nil), "host.port.unreachable")
	want(t, look("127.0.0.1:1", "01", func(h *client.Host) { h.Placements[0].Observed.Address = "127.0.0.1:1" })) // seen on loopback alone
	want(t, look("127.0.0.1:1", "01", func(h *client.Host) { h.Placements[0].Observed.Address = "somewhere" }))
}

// TestPlacedFiles: what was placed is held against what lies there, and what is served against what lies there.
func TestPlacedFiles(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	other := issue(t, o.issuer, "other", server("localhost"))
	for name, c := range map[string]struct {
		spoil  func(dir string)
		user   string
		served *holder
		rules  []string
	}{
		"right":   {nil, "", o.leaf, nil},
		"mode":    {func(dir string) { must(t, os.Chmod(filepath.Join(dir, "key.pem"), 0o640)) }, "", o.leaf, []string{"host.local.mode"}},
		"owner":   {func(dir string) { must(t, os.Chown(filepath.Join(dir, "cert.pem"), 65534, 65534)) }, "", o.leaf, []string{"host.local.owner"}},
		"missing": {func(dir string) { must(t, os.Remove(filepath.Join(dir, "key.pem"))) }, "", o.leaf, []string{"host.local.missing"}},
		"pair":    {func(dir string) { put(t, filepath.Join(dir, "key.pem"), keyPEM(t, other.key), 0o600) }, "", o.leaf, []string{"host.local.pair"}},
		"drift": {func(dir string) {
			put(t, filepath.Join(dir, "cert.pem"), keyfile.EncodeCertificates(other.path...), 0o644)
		}, "", o.leaf, []string{"host.local.drift", "host.local.pair", "host.local.stale"}},
		"garbage":  {func(dir string) { put(t, filepath.Join(dir, "cert.pem"), []byte("gone"), 0o644) }, "", o.leaf, []string{"host.local.drift"}},
		"readable": {nil, "nobody", o.leaf, []string{"host.local.readable"}},
		"stale":    {nil, "", other, []string{"host.local.stale"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			put(t, filepath.Join(dir, "key.pem"), keyPEM(t, o.leaf.key), 0o600)
			put(t, filepath.Join(dir, "cert.pem"), keyfile.EncodeCertificates(o.leaf.path...), 0o644)
			if c.spoil != nil {
				c.spoil(dir)
			}
			plan := &recipe.Plan{
				Recipe: "nginx", User: c.user, Certificates: []recipe.PlannedCertificate{{ID: "main"}},
				Files: []recipe.PlannedFile{
					{Path: filepath.Join(dir, "key.pem"), Content: []string{"key"}, Owner: "root", Group: "root", Mode: 0o600},
					{Path: filepath.Join(dir, "cert.pem"), Content: []string{"path"}, Owner: "root", Mode: 0o644},
				},
				Probe: &recipe.Probe{Address: c.served.sServer(t, c.served.path), Names: []string{"localhost"}},
			}
			r := &report{where: "host", object: "web1 nginx"}
			l := &local{report: r, state: "S", now: time.Now(), system: probe.System{AsRoot: os.Geteuid() == 0}, placed: loop.Placed{
				Name: "nginx", Plan: plan, Leaves: map[string]*x509.Certificate{"main": o.leaf.cert},
			}}
			if err := l.look(t.Context(), 20*time.Second); err != nil {
				t.Fatal(err)
			}
			note(t, r.found)
			got := rules(r.found)
			slices.Sort(got)
			if c.user != "" { // both files are in a directory of the test's own
				got = slices.Compact(got)
			}
			if !slices.Equal(got, c.rules) {
				t.Errorf("broken: %v\n   not: %v\n%s", got, c.rules, listing(r.found))
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
