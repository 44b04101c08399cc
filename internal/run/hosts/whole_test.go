package hosts_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/upkeep/datadir"
)

// The tests that take longest stand here and not beside what they use: of the tests that run in parallel, Go begins with those that
// stand last, in the order of files, so that nothing has to wait for one of these that began late.

// TestRotateARootPage types docs/rotate-a-root.md: two nginx that are each other's clients, their agents, and a client that is no
// host of the authority.
func TestRotateARootPage(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	s := newStage(t, ownWorld(t, "", nil), map[string]string{
		"authority": "192.0.2.10", "web1": "192.0.2.11", "web2": "192.0.2.12", "laptop": "192.0.2.13",
	}, machine{pool: "web"}, webUnits())
	s.play("../../../docs/rotate-a-root.md", 25, 19)
}

// TestRabbitMQ takes a node from a host that has just joined through refusals, repairs, a renewal under a connection, a renewal that
// fails, revocations, and its end. A node takes seconds to start, so it is one.
func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	g, _ := w.rabbitmq(t)
	h := g.h
	h.converge()
	if seen := h.observed("rabbitmq"); seen.State != client.PlacementDown || seen.Serial == "" {
		t.Errorf("before it runs: %+v", seen)
	}
	g.Process = h.start(g.program)
	h.converge()
	g.good = w.clientOf(t, g.pool, "good")
	g.serves(g.leaf())
	if shown := g.lets(g.good); !shown.Equal(g.leaf()) {
		t.Errorf("a client is shown %s", shown.Subject)
	}
	other := w.pool(t)
	if said := output(t, asksVersion(g, g.trust, g.good)); said != amqpHeader {
		t.Errorf("openssl hears %q", said)
	}
	for says, rogue := range map[string]*peer{"unknown ca": w.clientOf(t, other, "good"), "alert": selfMade(t, g.trust, "good"), "certificate required": nil} {
		fails(t, asksVersion(g, g.trust, rogue), says)
	}
	fails(t, asksVersion(g, []byte(other.Root.PEM), g.good), "verify failed")
	g.mends(0o640)

	live, err := g.connect(t.Context(), g.trust, g.good)
	must(t, err)
	defer live.conn.Close()
	before := live.shown()
	g.rekey("shop")
	if g.leaf().Equal(before) {
		t.Error("the connection is a new one")
	}
	// The same connection ends with the refusal of a second header, and not before: nobody has hung up on it.
	if _, err := live.conn.Write([]byte(amqpHeader)); err != nil {
		t.Errorf("the connection was lost: %v", err)
	}

	spoil := "#!/bin/sh\n[ -e DONE ] || cat OTHER >KEY\n: >DONE\nexec CTL -q eval 'ssl:clear_pem_cache().'\n"
	ctl := "/usr/sbin/rabbitmqctl"
	if os.Geteuid() != 0 {
		ctl = h.inside("/opt/rabbitmqctl")
	}
	g.fails("reload: [SPOIL]", strings.ReplaceAll(spoil, "CTL", ctl), "invalid signature")

	bad := w.clientOf(t, g.pool, "bad")
	g.lets(bad)
	_, err = w.admin.Revoke(t.Context(), g.pool.Issuer.Name, bad.serial, client.RevokeRequest{Reason: "keyCompromise"})
	must(t, err)
	until(t, "a revoked client is refused", func() bool {
		h.converge()
		l, err := g.connect(t.Context(), g.trust, bad)
		if err == nil {
			l.conn.Close()
		}
		return err != nil
	})
	fails(t, asksVersion(g, g.trust, bad), "certificate revoked")
	g.lets(g.good)
	leaf := g.leaf()
	w.chancery(t, "cert", "revoke", cert.FormatSerial(leaf.SerialNumber), "--reason", "keyCompromise")
	until(t, "a revoked server has another key", func() bool {
		h.converge()
		return string(g.leaf().RawSubjectPublicKeyInfo) != string(leaf.RawSubjectPublicKeyInfo)
	})
	g.serves(g.leaf())
	g.lets(g.good)
	must(t, g.Stop())
	h.converge()
	if seen := h.observed("rabbitmq"); seen.State != client.PlacementDown {
		t.Errorf("after it was stopped: %+v", seen)
	}
}

// TestRescuePage types the way back from docs/move-and-rescue.md, on a cluster of deploy/patroni with an authority of which every
// certificate has ended: the roots of all pools, the node's, the administrator's, the hosts' identities, and what PostgreSQL, etcd
// and Patroni show each other. No clock is turned: the authority was made in a bubble of time, in the year 2000.
func TestRescuePage(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	w := &world{dir: datadir.Dir(filepath.Join(t.TempDir(), "authority"))}
	s := newDatabaseStage(t, w)
	for _, h := range s.machines {
		s.furnish(h)
	}
	s.cluster()
	e := &ended{t: t, s: s, dir: w.dir}
	db1, node := s.machines["db1"], s.machines["authority"]
	socket := filepath.Join(t.TempDir(), "socket-url")
	must(t, os.WriteFile(socket, []byte("postgres:///chancery?host="+db1.path("/run/postgresql")+"&user=chancery\n"), 0o600))
	e.found(socket)
	e.ends(socket)
	e.isDown()

	e.reaches(node)
	before, err := client.RootsFile(w.dir.IdentityRoot())
	must(t, err)
	node.run("cp", "-a", "/opt/chancery-agent", "/opt/chancery-agent-before")
	blocks := sectionOf(t, "../../../docs/move-and-rescue.md", "### The cluster of deploy/patroni")
	if len(blocks) != 12 {
		t.Fatalf("the page has %d blocks", len(blocks))
	}
	e.before()
	s.typeBlocks(blocks[:2], 1, 1) // look
	e.looked()
	s.typeBlocks(blocks[2:4], 1, 1) // lead
	e.leads()
	s.typeBlocks(blocks[4:6], 1, 1) // the rescue
	e.installs()
	e.keeps(func() { s.typeBlocks(blocks[6:7], 1, 0) }) // install
	e.waits()
	s.typeBlocks(blocks[7:9], 1, 1) // start
	e.started()
	s.typeBlocks(blocks[9:], 2, 1)
	e.pinned(before)
	e.told()
}

// TestClones has an authority grow by a clone and a clone of that, which share its work; loses the machine that it began on; grows
// again; and loses the one that both others came by. What an administrator does is typed: each command and each node is a process. The
// database is on three members under Patroni, with one of which the first machine is lost; commits wait for a standby.
func TestClones(t *testing.T) {
	t.Parallel()
	program(t) // before anything is started beside: a file that is written while others are forked is busy for a while
	c := newMembers(t)
	n := &nodes{whole: t, store: c, cluster: c, all: map[string]*member{}}
	n.begin(t)
	n.certified(t)
	n.join(t, "node1", "node2", 6, "ca,ocsp", c.reads(t, "node2", "authority"))
	n.join(t, "node2", "node3", 2, "ocsp", "--tls-name", "ocsp.example.test", c.reads(t, "node3", "authority"))
	for _, phase := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"synchronous standby", n.replicated}, {"logins", n.logins}, {"keys", n.keys}, {"revocation", n.revocation}, {"fresh CRL", n.freshCRL}, {"schedule", n.schedule},
		{"two promote at once", n.promotions}, {"node killed while it issues", n.killed}, {"renewal", n.renewal}, {"releases", n.releases}, {"issuer renewed", n.prolonged}, {"issuer re-keyed", n.rekeyed},
		{"issuer certified again", n.certifiedAgain},
		{"first machine lost", n.lost}, {"the one between removed", n.removed}, {"verify", n.verified},
	} {
		if !t.Run(phase.name, phase.run) {
			break // the next would build on what is not there
		}
	}
}
