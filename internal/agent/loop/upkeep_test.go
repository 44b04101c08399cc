package loop_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
)

// order changes what a host is to hold.
func (m *machine) order(placements ...client.PlacementOrder) {
	m.t.Helper()
	for i := range placements {
		if placements[i].Name == "" {
			placements[i].Name = placements[i].Recipe
		}
	}
	_, err := m.node.admin.ChangeHost(m.t.Context(), m.name, client.ChangeHostRequest{Placements: &placements})
	must(m.t, err)
}

// revoke revokes a certificate of the pool.
func (m *machine) revoke(serial string) {
	m.t.Helper()
	_, err := m.node.admin.Revoke(m.t.Context(), "", serial, client.RevokeRequest{Reason: "keyCompromise"})
	must(m.t, err)
}

// another is a certificate of the same pool, of another host.
func another(t testing.TB) string {
	t.Helper()
	return newMachine(t, plain(nil)).settled().Observations[0].Serial
}

// TestRefusedOrderStopsNothingThatWorks: an order that this host refuses is reported, and beside it what was placed before is
// looked after: CRLs are refreshed, drift is repaired, what is revoked or due is re-keyed.
func TestRefusedOrderStopsNothingThatWorks(t *testing.T) {
	m := newMachine(t, plain(map[string]string{"profile": shortLived(t)}))
	first := m.settled().Observations[0]
	m.order(plain(map[string]string{"profile": shortLived(t), "cert": "/srv/a.pem"}))
	refused := func(what string) client.Observation {
		t.Helper()
		o := m.once().Observations[0]
		if o.State != client.PlacementFailed || !strings.Contains(o.Message, "/srv/a.pem") || !strings.Contains(o.Message, "kept up meanwhile") {
			t.Errorf("%s: %+v", what, o)
		}
		return o
	}
	if o := refused("nothing to do"); o.Serial != first.Serial || !strings.Contains(o.Message, "hint: name a prefix") {
		t.Errorf("the hint or the certificate of before is missing: %+v", o)
	}

	must(t, os.Chmod(m.path("/etc/ssl/a.key"), 0o644))
	gone := another(t)
	m.revoke(gone)
	m.eventually("the CRL is refreshed", func() bool { refused("the CRL"); return m.crlHas(gone) })
	if st, err := os.Stat(m.path("/etc/ssl/a.key")); err != nil || st.Mode() != 0o600 {
		t.Errorf("drift was not repaired: %v %v", st.Mode(), err)
	}

	m.revoke(first.Serial)
	second := first
	m.eventually("the revoked certificate is replaced", func() bool {
		second = refused("revoked")
		return second.Serial != first.Serial && m.crlHas(first.Serial)
	})
	m.clockAt(second.RekeyAt.Add(time.Minute))
	third := refused("due")
	if third.Serial == second.Serial {
		t.Error("it was due, and was not re-keyed")
	}
	m.options.Now = nil // by the right clock it is due later
	if again := refused("once more"); again.Serial != third.Serial || len(m.issued()) != 3 {
		t.Errorf("%d certificates were issued, and three were needed", len(m.issued()))
	}
	m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")

	m.order(plain(map[string]string{"profile": shortLived(t), "cert": "/etc/ssl/b.pem"}))
	m.settled()
	m.pair("/etc/ssl/b.pem", "/etc/ssl/a.key")
	if left, err := filepath.Glob(filepath.Join(m.state, "placements", "*", "upkeep", "*")); err != nil || len(left) > 0 {
		t.Errorf("%q is left, %v", left, err)
	}
}

// TestPlanThatFailsAtTheProbeFreezesNothing: the order cannot be carried out, since its port shows another certificate.
func TestPlanThatFailsAtTheProbeFreezesNothing(t *testing.T) {
	s := newServer(t, "")
	m := s.m
	first := m.settled().Observations[0]
	s.patience("1s")
	must(t, os.Symlink("server-crl.pem", m.path("/etc/ssl/crl.pem")))
	other := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	gone := another(t)
	m.revoke(gone)
	m.order(client.PlacementOrder{Name: "server", Recipe: "local/server", Parameters: map[string]string{"address": other.Listener.Addr().String()}})
	a, err := loop.New(m.options)
	must(t, err)
	defer a.Close()
	failing := func() client.Observation {
		t.Helper()
		result, err := a.Once(t.Context()) // the same agent, which waits before it tries the order again
		must(t, err)
		o := result.Observations[0]
		if o.State != client.PlacementFailed {
			t.Fatalf("%+v", o)
		}
		return o
	}
	m.eventually("the CRL is refreshed", func() bool { failing(); return m.crlHas(gone) })
	m.revoke(first.Serial)
	m.eventually("the revoked certificate is replaced", func() bool {
		o := failing()
		return o.Serial != first.Serial && o.Serial == s.serves() && m.crlHas(first.Serial)
	})
	m.pair("/etc/ssl/server.pem", "/etc/ssl/server.key")
	if n := len(m.issued()); n != 2 {
		t.Errorf("%d certificates were issued, and two were needed", n)
	}
}

// TestRecipeThatIsAcceptedNoMoreIsLeftAlone: the host has the last word on upkeep too.
func TestRecipeThatIsAcceptedNoMoreIsLeftAlone(t *testing.T) {
	m := newMachine(t, plain(nil))
	m.settled()
	must(t, os.WriteFile(m.path(loop.ConfigFile), []byte("recipes: [nginx]\n"), 0o644))
	must(t, os.Chmod(m.path("/etc/ssl/a.key"), 0o640))
	if o := m.once().Observations[0]; o.State != client.PlacementFailed || !strings.Contains(o.Message, "left as it is") {
		t.Errorf("%+v", o)
	}
	if st, err := os.Stat(m.path("/etc/ssl/a.key")); err != nil || st.Mode() != 0o640 {
		t.Errorf("it was touched: %v %v", st.Mode(), err)
	}
}

const versionedRecipe = `
name: versioned
title: a server whose version decides
about: As libvirt's recipes, whose keys depend on a version.
facts:
  - {name: version, command: [%s, --version], pattern: '([0-9.]+)'}
certificates:
  - profile: server
    key:
      - {when: fact.version >= 2.0, algorithm: ecdsa-p256}
      - {algorithm: rsa-3072}
    names: ["dns:${host.names}"]
    usages: [serverAuth]
files:
  - {path: /etc/ssl/v.key, content: [key], mode: "0600"}
  - {path: /etc/ssl/v.pem, content: [path]}
`

// TestCommandThatFailsChangesNothing: one --version that fails is no other version.
func TestCommandThatFailsChangesNothing(t *testing.T) {
	program := filepath.Join(t.TempDir(), "versioned")
	says := func(script string) { must(t, os.WriteFile(program, []byte("#!/bin/sh\n"+script+"\n"), 0o755)) }
	m := newMachine(t, client.PlacementOrder{Name: "versioned", Recipe: "local/versioned"})
	_, err := m.node.admin.ChangeHost(t.Context(), m.name, client.ChangeHostRequest{Profiles: &[]string{"server"}})
	must(t, err)
	must(t, os.MkdirAll(m.path(loop.RecipeDirectory), 0o755))
	text := strings.Replace(versionedRecipe, "%s", program, 1)
	must(t, os.WriteFile(filepath.Join(m.path(loop.RecipeDirectory), "versioned.yaml"), []byte(text), 0o644))
	must(t, os.WriteFile(m.path(loop.ConfigFile), []byte("recipes: [local/versioned]\n"), 0o644))

	says("exit 127")
	if o := m.once().Observations[0]; o.State != client.PlacementFailed || !strings.Contains(o.Message, "fact version") || len(m.issued()) != 0 {
		t.Fatalf("a version that was never known: %+v, %d issued", o, len(m.issued()))
	}
	says("echo 2.1")
	first := m.settled().Observations[0]
	for what, script := range map[string]string{"exit status": "echo 1.0; exit 1", "killed": "kill -9 $$"} {
		says(script)
		o := m.settled().Observations[0]
		if o.Serial != first.Serial || !strings.Contains(o.Message, "taken to be 2.1") || o.Facts["version"] != "2.1" {
			t.Errorf("%s: %+v", what, o)
		}
	}
	says("echo 2.1")
	if o := m.settled().Observations[0]; o.Serial != first.Serial || strings.Contains(o.Message, "taken to be") || len(m.issued()) != 1 {
		t.Errorf("%+v, %d issued", o, len(m.issued()))
	}
	must(t, os.Remove(program)) // now it is known that there is none
	if o := m.settled().Observations[0]; o.Serial == first.Serial {
		t.Error("a program that was removed has a version")
	}
}

// TestAlarmAsksForNoMoreCertificates: while what comes is not fit to be placed, the call is repeated word for word, and
// another certificate is asked for once an hour, or when the refused one is revoked.
func TestAlarmAsksForNoMoreCertificates(t *testing.T) {
	m := newMachine(t, plain(nil))
	first := m.settled().Observations[0]
	w := onWire(t, m)
	w.set(nil, answers(t, func(_ client.IssueRequest, got *client.Certificate) *client.Certificate { got.Chain = ""; return got }))
	m.rename("new.example")
	alarm := func(issued int) {
		t.Helper()
		o := m.once().Observations[0]
		all := m.issued()
		if o.Serial != first.Serial || !strings.Contains(o.Message, "ALARM: certificate ") || len(all) != issued {
			t.Errorf("%d certificates were issued, and %d should be: %+v", len(all), issued, o)
		}
		if !slices.ContainsFunc(all, func(c client.Certificate) bool {
			return c.Serial != first.Serial && strings.Contains(o.Message, c.Serial)
		}) {
			t.Errorf("the refused certificate is not named: %s", o.Message)
		}
	}
	for range 4 { // each is an agent that was started anew
		alarm(2)
	}
	ahead := time.Now().Add(70 * time.Minute)
	for range 3 {
		m.clockAt(ahead)
		alarm(3)
	}
	m.revoke(newest(m.issued()).Serial)
	m.eventually("another is asked for", func() bool { m.once(); return len(m.issued()) == 4 })
	w.set(nil, nil)
	if o := m.settled().Observations[0]; o.Serial == first.Serial || len(m.issued()) != 4 {
		t.Errorf("once it is whole: %+v, %d issued", o, len(m.issued()))
	}
}
