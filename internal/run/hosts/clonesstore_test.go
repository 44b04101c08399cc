package hosts_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/run/cluster"
)

// store is the PostgreSQL under the nodes of a test.
type store interface {
	servers() []string                                        // host:port of each
	hint() string                                             // what a URL that names them all says besides
	durability() string                                       // of an authority on it
	admin(t *testing.T, database string) string               // the URL by which its administrator reaches the one that takes writes
	certified(t *testing.T, pairs []serverPair, roots []byte) // gives each server its pair, and all the roots of clients
	admits(t *testing.T, first bool)                          // lets nodes in by their certificates, and, with first, node1 without
	replayed(t *testing.T)                                    // every server has what any of them has acknowledged
}

// serverPair is a certificate with what is above it, and its key, both PEM.
type serverPair struct{ certificate, key []byte }

// single is one server. Nothing of it is anywhere else.
type single struct{ *pkitest.PostgresServer }

func (s single) servers() []string                          { return []string{fmt.Sprintf("localhost:%d", s.Port)} }
func (s single) hint() string                               { return "" }
func (s single) durability() string                         { return "provider" }
func (s single) admin(_ *testing.T, database string) string { return s.URL(database) }
func (s single) replayed(*testing.T)                        {}
func (s single) certified(t *testing.T, pairs []serverPair, roots []byte) {
	t.Helper()
	data := filepath.Join(s.Dir, "data")
	place(t, filepath.Join(data, "server.crt"), pairs[0].certificate)
	place(t, filepath.Join(data, "server.key"), pairs[0].key)
	place(t, filepath.Join(data, "roots.crt"), roots)
	s.Exec(t, "ALTER SYSTEM SET ssl_ca_file = 'roots.crt'")
	s.Exec(t, "ALTER SYSTEM SET ssl = on")
	s.admits(t, true)
	until(t, "PostgreSQL takes TLS", func() bool { return ask(t, s.admin(t, "postgres"), "SHOW ssl") == "on" })
}

func (s single) admits(t *testing.T, first bool) {
	t.Helper()
	hba := "local all all trust\nhostssl all all 127.0.0.1/32 cert\n"
	if first {
		hba += "hostnossl all chancery_node1 127.0.0.1/32 trust\n"
	}
	place(t, filepath.Join(s.Dir, "data", "pg_hba.conf"), []byte(hba))
	s.Exec(t, "SELECT pg_reload_conf()")
}

// members are three servers under Patroni, whose commits wait for a standby. They let nodes in by the lines of deploy/patroni.
type members struct {
	*cluster.Cluster
	beside map[string]*cluster.Member // by the node on the same machine
	lost   *cluster.Member            // nil until one is
}

// newMembers starts them; the primary is on the machine of node1.
func newMembers(t *testing.T) *members {
	t.Helper()
	c, err := cluster.Start(t.Context(), cluster.Options{Namespaces: os.Geteuid() == 0, Parameters: map[string]string{"fsync": "off"}})
	must(t, err)
	t.Cleanup(func() { must(t, c.Stop()) })
	s := &members{Cluster: c, beside: map[string]*cluster.Member{}}
	s.beside["node1"] = s.primary(t)
	for _, m := range c.Members {
		if m != s.beside["node1"] {
			s.beside[fmt.Sprintf("node%d", len(s.beside)+1)] = m
		}
	}
	return s
}

func (s *members) servers() (all []string) {
	for _, m := range s.Members {
		all = append(all, m.Postgres())
	}
	return all
}

func (s *members) hint() string       { return "?target_session_attrs=read-write" }
func (s *members) durability() string { return "synchronous" }

// primary waits for a member that takes writes: until another does, half a minute may pass.
func (s *members) primary(t *testing.T) (m *cluster.Member) {
	t.Helper()
	until(t, "a member takes writes", func() bool { m = s.survivor(); return m != nil })
	return m
}

func (s *members) admin(t *testing.T, database string) string {
	t.Helper()
	return s.primary(t).Local("postgres", database)
}

// says is what a member answers; empty while it does not.
func says(m *cluster.Member, query string) string {
	out, err := psql("-XAtwc", query, m.Local("postgres", "postgres")).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// survivor is the member that takes writes, of those that are not lost; nil while none does.
func (s *members) survivor() *cluster.Member {
	for _, m := range s.Members {
		if m != s.lost && says(m, "SELECT pg_is_in_recovery()") == "f" {
			return m
		}
	}
	return nil
}

// reads is the flag by which a node reads at the member beside it.
func (s *members) reads(t *testing.T, node, database string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "read")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "postgres://%s/%s\n", s.beside[node].Postgres(), database), 0o600))
	return "--database-read-file=" + file
}

func (s *members) certified(t *testing.T, pairs []serverPair, roots []byte) {
	t.Helper()
	for i, m := range s.Members {
		must(t, m.Certify(pairs[i].certificate, pairs[i].key, roots))
	}
	must(t, s.Configure(t.Context(), map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"ssl": "on"}}}))
	s.admits(t, true)
	for _, m := range s.Members {
		until(t, m.Name+" takes TLS", func() bool { return says(m, "SHOW ssl") == "on" })
	}
}

func (s *members) admits(t *testing.T, first bool) {
	t.Helper()
	hba := []string{"local all all trust", "host all postgres all trust", "host replication postgres all trust"} // Patroni, and its administrator
	var shipped struct {
		PostgreSQL struct {
			HBA   []string `yaml:"pg_hba"`
			Ident []string `yaml:"pg_ident"`
		} `yaml:"postgresql"`
	}
	must(t, yaml.Unmarshal(read(t, filepath.Join(deployed, "patroni.yml")), &shipped))
	for _, line := range shipped.PostgreSQL.HBA {
		if strings.Contains(line, "map=nodes") {
			hba = append(hba, strings.NewReplacer(" chancery ", " authority,postgres ", "+chancery", "+pki").Replace(line))
		}
	}
	if len(hba) != 4 {
		t.Fatalf("the lines of nodes are %q", hba[3:])
	}
	if first {
		hba = append(hba, "hostnossl all chancery_node1 all trust")
	}
	must(t, s.Configure(t.Context(), map[string]any{"postgresql": map[string]any{"pg_hba": hba, "pg_ident": shipped.PostgreSQL.Ident}}))
	for _, m := range s.Members {
		until(t, m.Name+" lets in whom it shall", func() bool {
			return (psql("-Xqwc", "", m.URL("chancery_node1", "authority")).Run() == nil) == first
		})
	}
}

func (s *members) replayed(t *testing.T) {
	t.Helper()
	at := ask(t, s.admin(t, "postgres"), "SELECT pg_current_wal_lsn()")
	for _, m := range s.Members {
		if m == s.lost {
			continue
		}
		until(t, m.Name+" has replayed what there is", func() bool {
			return says(m, "SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= '"+at+"'") == "t"
		})
	}
}

// psql is PostgreSQL's own; that of Debian's /usr/bin is Perl, which takes several times as long to choose it.
func psql(args ...string) *exec.Cmd {
	path := "psql"
	if bin, err := cluster.Programs(); err == nil {
		path = filepath.Join(bin, path)
	}
	return exec.Command(path, args...)
}

// ask runs a query as the administrator of PostgreSQL.
func ask(t *testing.T, url, query string) string {
	t.Helper()
	return strings.TrimSpace(output(t, psql("-XAtwc", query, url)))
}

// replicated wants commits to wait for a standby, and the two nodes that are not beside the primary to read at their members.
func (n *nodes) replicated(t *testing.T) {
	until(t, "two standbys follow, and commits wait for one", func() bool {
		return n.sql(t, "SELECT COUNT(*) || '|' || COUNT(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) FROM pg_stat_replication") == "2|1"
	})
	now, err := n.all["node2"].admin.Settings(t.Context())
	must(t, err)
	if !slices.Contains(now.Fields, client.Setting{Path: "durability", Value: "synchronous"}) {
		t.Errorf("the settings are %v", now.Fields)
	}
	for _, name := range []string{"node2", "node3"} {
		m := n.cluster.beside[name]
		until(t, name+" reads at its member", func() bool {
			return says(m, `SELECT COUNT(*) > 0 AND BOOL_AND(client_dn = '/CN=chancery_`+name+`') AND pg_is_in_recovery()
				FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE usename = 'chancery_`+name+`'`) == "t"
		})
		until(t, "it says so", func() bool {
			c, err := n.all["node2"].admin.Clone(t.Context(), name)
			must(t, err)
			return c.Database.LocalReads
		})
	}
}

// machineLost loses the machine of the primary with all that is on it, node1 too. While no member takes writes, whoever reads at a member of
// its own answers as before; then another takes over, and what was acknowledged is there.
func (n *nodes) machineLost(t *testing.T) {
	t.Helper()
	known, c := n.issue(t, "node1"), n.cluster
	must(t, c.WaitHealthy(t.Context()))
	c.lost = c.primary(t)
	at := "node3"
	if c.beside[at] == c.lost { // another had taken over before, on a machine that was slow
		at = "node2"
	}
	until(t, at+" says good", func() bool { return n.status(t, at, known) == "good" })
	one := n.all["node1"]
	must(t, c.lost.Kill(cluster.Machine))
	kill(t, one.process)
	must(t, os.RemoveAll(string(one.dir)))
	answers := 0
	until(t, "another member takes writes", func() bool {
		before := c.survivor()
		said := n.status(t, at, known)
		after := c.survivor()
		if before == nil && after == nil {
			if answers++; said != "good" {
				t.Errorf("without a primary, %s says %q", at, said)
			}
		}
		return after != nil
	})
	if answers == 0 {
		t.Error("nothing was asked while no member took writes")
	}
	begun := time.Now()
	until(t, "node2 issues again", func() bool {
		return n.asked(t, "node2", "cert", "issue", "--profile", "server", "--csr", newRequest(t), "--name", "w.test").Run() == nil
	})
	t.Logf("%d answers came without a primary; node2 issued %s after there was one again", answers, time.Since(begun).Round(time.Millisecond))
}
