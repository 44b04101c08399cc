package hosts_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/run/consumer"
)

// scene is a daemon on a host that is a directory: what an ordinary user can have. Its files are where its configuration
// says, so it is restarted where others are reloaded.
type scene struct {
	*testing.T
	w    *world
	pool *client.Pool
	h    *host
	d    *daemon
	c    *peer
}

const (
	sceneFiles = "/opt/libvirt"
	scenePaths = "paths: [" + sceneFiles + "]\n" // of agent.yaml
	sceneCert  = sceneFiles + "/servercert.pem"
	sceneKey   = sceneFiles + "/private/serverkey.pem"
	sceneCRL   = sceneFiles + "/cacrl.pem"
)

func newScene(t *testing.T, parameters ...string) *scene {
	t.Helper()
	w := theWorld(t)
	s := &scene{T: t, w: w, pool: w.pool(t)}
	s.h = w.newHost(t, "host", machine{pool: s.pool.Name, directory: true})
	for _, d := range []string{sceneFiles, sceneFiles + "/private"} {
		must(t, os.Mkdir(s.h.path(d), 0o755))
	}
	port := s.h.configure(elsewhere(s.h.inside(sceneFiles))...)
	s.h.write("/etc/chancery/agent.yaml", scenePaths+s.h.restarts())
	s.h.join(order("libvirt-server", append(parameters, "conf="+s.h.conf())...))
	s.h.converge()
	s.d, s.c = s.h.libvirtd(port), w.peer(t, s.pool, "client")
	return s
}

// The parts of a daemon's life, for whoever cannot have a mount table. Each is what stands for tests of the default places
// where those cannot be made.

func (s *scene) isAccepted() {
	s.d.lets(s.h.at, s.c)
	s.h.converge()
	seen := s.h.observed("libvirt-server")
	leaf := parsed(s, s.h.read(sceneCert))
	if seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(leaf.SerialNumber) {
		s.Errorf("reported is %+v", seen)
	}
	// What this user cannot do is told and not passed over.
	if told := strings.Contains(seen.Message, "owner"); told == (os.Geteuid() == 0) {
		s.Errorf("as user %d it is told: %q", os.Geteuid(), seen.Message)
	}
	st, err := os.Stat(s.h.path(sceneKey))
	must(s, err)
	if st.Mode() != 0o600 {
		s.Errorf("the key has mode %v", st.Mode())
	}
}

func (s *scene) mendsDrift() {
	must(s, os.Chmod(s.h.path(sceneKey), 0o644))
	must(s, os.WriteFile(s.h.path(sceneCert), []byte("changed\n"), 0o644))
	s.h.converge()
	mended := strings.Join(s.h.observed("libvirt-server").Repaired, "\n")
	if !strings.Contains(mended, sceneKey) || !strings.Contains(mended, sceneCert) {
		s.Errorf("reported is %q", mended)
	}
	st, err := os.Stat(s.h.path(sceneKey))
	must(s, err)
	if st.Mode() != 0o600 {
		s.Errorf("the key has mode %v", st.Mode())
	}
	s.d.serves(s.c, parsed(s, s.h.read(sceneCert)))
}

func (s *scene) refuses() {
	_, rogue := s.w.ownedPool(s.T)
	for name, p := range map[string]*peer{
		"of another CA":         forge(s, rogue, trustOf(s.pool), forgery{name: "rogue"}),
		"without a certificate": newPeer(s, trustOf(s.pool), nil, nil),
		"a server's":            s.w.peerOf(s, s.pool, "libvirt-server", "server"),
	} {
		if _, err := s.d.shake(p); !errors.Is(err, errRefused) {
			s.Errorf("a client %s: %v", name, err)
		}
	}
	s.d.lets(s.h.at, s.c)
}

func (s *scene) renews() {
	before, pid := parsed(s, s.h.read(sceneCert)), s.d.pid()
	s.w.chancery(s, "host", "set", s.h.name, "--dns", "also-"+s.h.name)
	s.h.converge()
	after := parsed(s, s.h.read(sceneCert))
	if after.Equal(before) || s.d.pid() == pid {
		s.Errorf("certificate %s, then %s; process %s, then %s", before.SerialNumber, after.SerialNumber, pid, s.d.pid())
	}
	s.d.serves(s.c, after)
}

func (s *scene) rollsBack() {
	before, key := parsed(s, s.h.read(sceneCert)), string(s.h.read(sceneKey))
	s.h.write("/etc/chancery/agent.yaml", scenePaths+"steps:\n  libvirt-server:\n    restart: [/bin/false]\n")
	s.w.chancery(s, "host", "set", s.h.name, "--dns", "again-"+s.h.name)
	s.h.refuses("the old files are back")
	if !parsed(s, s.h.read(sceneCert)).Equal(before) || string(s.h.read(sceneKey)) != key {
		s.Error("the old pair was not put back")
	}
	s.d.serves(s.c, before)
	s.h.write("/etc/chancery/agent.yaml", scenePaths+s.h.restarts())
	s.h.converge()
	s.d.serves(s.c, parsed(s, s.h.read(sceneCert)))
}

func (s *scene) revokes() {
	bad := s.w.peer(s, s.pool, "bad")
	s.d.lets(s.h.at, bad)
	s.w.chancery(s, "cert", "revoke", bad.serial, "--reason", "superseded")
	until(s, "the CRL is on the host", func() bool {
		s.h.converge()
		return revokes(s.h.crlOf(s.h.crls(sceneCRL), s.pool.Issuer), bad.pair.Leaf)
	})
	if _, err := s.d.shake(bad); !errors.Is(err, errRefused) {
		s.Errorf("a revoked client: %v", err)
	}
	s.d.lets(s.h.at, s.c)
}

// TestInDirectory is the whole life of a daemon's files below --root, as root and as everybody else.
func TestInDirectory(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for _, part := range []struct {
		name string
		do   func(*scene)
	}{
		{"accepted", (*scene).isAccepted}, {"drift", (*scene).mendsDrift}, {"refused", (*scene).refuses}, {"renewed", (*scene).renews},
		{"rolled back", (*scene).rollsBack}, {"revoked", (*scene).revokes},
	} {
		t.Run(part.name, func(t *testing.T) {
			own := *s
			own.T = t
			part.do(&own)
		})
	}
}

// elseInDirectory reports whether this test cannot have what it needs, a mount table of its own, which only root may have.
// Then it has done another part of a daemon's life in a directory.
func elseInDirectory(t *testing.T, part func(*scene)) bool {
	t.Helper()
	if os.Geteuid() == 0 {
		return false
	}
	part(newScene(t))
	return true
}

// conf is the daemon's configuration as its programs name it.
func (h *host) conf() string {
	if h.root == "" {
		return libvirtConf
	}
	return h.path(libvirtConf)
}

// prepare is what a daemon needs that is not alone in its /etc and /run.
func (h *host) prepare(port string, settings ...string) *consumer.Libvirtd {
	h.t.Helper()
	d, err := consumer.PrepareLibvirtd(h.path("/opt/virt"), h.at+":"+port, settings...)
	must(h.t, err)
	must(h.t, os.MkdirAll(filepath.Dir(h.conf()), 0o755))
	if err := os.Symlink(h.path("/opt/virt/libvirtd.conf"), h.conf()); !errors.Is(err, fs.ErrExist) {
		must(h.t, err)
	}
	h.env = d.Env()
	return d
}
