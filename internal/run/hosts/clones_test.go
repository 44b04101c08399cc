package hosts_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/run/consumer"
	"chancery/internal/upkeep/datadir"
)

// nodes are the nodes of an authority on a PostgreSQL that takes TLS alone, and knows each node by its own certificate.
type nodes struct {
	whole   *testing.T // whose machines end with it, and not with a phase
	store   store
	cluster *members // the store, where it is one
	first   *world
	url     string // a file with the URL of the nodes that joined; it names no user
	all     map[string]*member
	admin   string // the directory of the administrator's credential, who is on none of the machines
	kept    func() (*tls.Certificate, error)
}

// member is a node as its own process.
type member struct {
	*node
	public string
	admin  *client.Client // who waits for something to be so on this node
}

func (n *nodes) sql(t *testing.T, query string) string {
	t.Helper()
	return ask(t, n.store.admin(t, "authority"), query)
}

// begin makes the authority, whose first node logs in by a role that the database's administrator made.
func (n *nodes) begin(t *testing.T) {
	t.Helper()
	for _, statement := range []string{
		`CREATE ROLE pki NOLOGIN`, `GRANT pg_monitor TO pki`, `CREATE ROLE chancery_node1 LOGIN IN ROLE pki`, `CREATE DATABASE authority OWNER pki`,
	} {
		ask(t, n.store.admin(t, "postgres"), statement)
	}
	output(t, psql("-Xqw", "-v", "ON_ERROR_STOP=1", "-f", filepath.Join(deployed, "logins.sql"), n.store.admin(t, "authority")))
	n.store.replayed(t) // who meets a server that lacks the database asks no other
	n.first = ownWorld(t, n.reach("chancery_node1@", "authority"), nil)
	n.url = filepath.Join(t.TempDir(), "url")
	must(t, os.WriteFile(n.url, []byte(n.reach("", "authority")+"\n"), 0o600))
	w := n.first
	n.admin = filepath.Join(t.TempDir(), "admin")
	must(t, os.Mkdir(n.admin, 0o700))
	for name, file := range map[string]string{"cert.pem": w.dir.AdminCert(), "key.pem": w.dir.AdminKey(), "identity-root.pem": w.dir.IdentityRoot()} {
		must(t, copyFile(file, filepath.Join(n.admin, name), 0o600))
	}
	n.kept = client.CertificateFiles(filepath.Join(n.admin, "cert.pem"), filepath.Join(n.admin, "key.pem"))
	n.all["node1"] = &member{node: &node{name: "node1", dir: w.dir, api: w.API, process: w.process}, public: w.Public, admin: w.admin}
	n.types(t, "node1", "settings", "set", "durability="+n.store.durability())
}

// reach is the URL by which nodes reach a database.
func (n *nodes) reach(user, database string) string {
	return "postgres://" + user + strings.Join(n.store.servers(), ",") + "/" + database + n.store.hint()
}

// asked is a command of the administrator's, who has a node carry it out.
func (n *nodes) asked(t *testing.T, at string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command(program(t), append(append(args, "--cert", filepath.Join(n.admin, "cert.pem"), "--cert-key", filepath.Join(n.admin, "key.pem")), n.node(at)...)...)
}

// node are the flags by which a command finds a node.
func (n *nodes) node(at string) []string {
	_, port, _ := strings.Cut(n.all[at].api, ":")
	return []string{"--address", "https://localhost:" + port, "--identity-root", filepath.Join(n.admin, "identity-root.pem")}
}

// types runs a command that must succeed, and returns what it prints.
func (n *nodes) types(t *testing.T, at string, args ...string) string {
	t.Helper()
	return output(t, n.asked(t, at, args...))
}

// certified gives PostgreSQL certificates of the pool database, has it let nodes in by theirs alone, and has the first node get one.
func (n *nodes) certified(t *testing.T) {
	t.Helper()
	work := t.TempDir()
	n.types(t, "node1", "pool", "add", "database", "--root", "online")
	chain := filepath.Join(work, "chain.pem")
	n.types(t, "node1", "issuer", "chain", "database-root", "--out", chain)
	var pairs []serverPair
	for i, server := range n.store.servers() {
		host, _, _ := strings.Cut(server, ":")
		key, pair := filepath.Join(work, fmt.Sprint("key", i)), filepath.Join(work, fmt.Sprint("pair", i))
		n.types(t, "node1", "key", "generate", "--out", key)
		n.types(t, "node1", "cert", "issue", "--pool", "database", "--profile", "server", "--key", key, "--name", host, "--out", pair, "--chain")
		pairs = append(pairs, serverPair{certificate: read(t, pair), key: read(t, key)})
	}
	n.store.certified(t, pairs, read(t, chain))
	one := n.all["node1"]
	must(t, one.process.Stop())
	n.start(t, one) // it looks for a login at its start, and every ten minutes
	until(t, "the first node has a login of its own", func() bool {
		leaf, err := one.dir.LoginCertificate()
		must(t, err)
		return leaf != nil && leaf.Subject.CommonName == "chancery_node1"
	})
	n.store.admits(t, false)
	must(t, one.process.Stop())
	n.start(t, one)
}

// place writes a file that is the server's.
func place(t *testing.T, file string, text []byte) {
	t.Helper()
	must(t, os.WriteFile(file, text, 0o600))
	st, err := os.Stat(filepath.Dir(file))
	must(t, err)
	owner := st.Sys().(*syscall.Stat_t)
	must(t, os.Chown(file, int(owner.Uid), int(owner.Gid)))
}

// newRequest is a file with a request for a new key.
func newRequest(t *testing.T) string {
	t.Helper()
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, made)
	must(t, err)
	file := filepath.Join(t.TempDir(), "csr.pem")
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}), 0o644))
	return file
}

func (n *nodes) start(t *testing.T, m *member) {
	t.Helper()
	var err error
	m.process, err = consumer.Start(context.Background(), consumer.Program{
		Path: program(t), Args: []string{"serve", "--dir", string(m.dir)}, Ready: consumer.Listening(m.api),
	})
	must(t, err)
	if m.name == "node1" {
		n.first.process = m.process
	}
}

var approval = regexp.MustCompile(`chancery clone approve (\S+) ([0-9a-f]{64})\n`)

// join has a machine join by an invitation of another node. The command on it is killed some times, before and after the approval.
func (n *nodes) join(t *testing.T, by, name string, kills int, subsystems string, more ...string) *member {
	t.Helper()
	work := n.whole.TempDir()
	m := &member{node: &node{name: name, dir: datadir.Dir(filepath.Join(work, name)), api: freeAddress(t)}, public: freeAddress(t)}
	_, port, _ := strings.Cut(m.api, ":")
	token := filepath.Join(work, "token")
	n.types(t, by, "clone", "invite", "--subsystems", subsystems, "--out", token)
	args := append([]string{"clone", "join", "--token-file", token, "--dir", string(m.dir), "--name", name, "--address", "https://localhost:" + port,
		"--listen", m.api, "--public-listen", m.public, "--metrics-listen", freeAddress(t)}, more...)
	begin := func() *consumer.Process {
		p, err := consumer.Start(context.Background(), consumer.Program{Path: program(t), Args: append(args, "--database-file", n.url)})
		must(t, err)
		return p
	}
	for range kills {
		cut(t, begin())
	}
	last := begin()
	t.Cleanup(func() { must(t, last.Stop()) })
	var shown []string
	until(t, name+" waits for its approval", func() bool {
		shown = approval.FindStringSubmatch(last.Output() + "\n")
		select {
		case <-last.Done():
			t.Fatalf("join ended before it was approved:\n%s", last.Output())
		default:
		}
		return shown != nil
	})
	if kills > 0 { // the approval comes while nobody asks
		kill(t, last)
	}
	key, err := os.ReadFile(filepath.Join(string(m.dir)+".joining", "node.key"))
	must(t, err)
	fails(t, n.asked(t, by, "clone", "approve", name), "nothing is approved: give the fingerprint")
	fails(t, n.asked(t, by, "clone", "approve", name, strings.Repeat("0", 64)), "asked to join with another fingerprint than 0000")
	n.types(t, by, "clone", "approve", shown[1], shown[2])
	if kills > 0 {
		other := filepath.Join(work, "other")
		must(t, os.WriteFile(other, []byte(n.reach("", "postgres")+"\n"), 0o600))
		fails(t, exec.Command(program(t), append(args, "--database-file", other)...), "database_read leads to another database than database_file does")
		cut(t, begin())
		if _, err := os.Stat(m.dir.Config()); errors.Is(err, os.ErrNotExist) { // cut short after all was done, it is done
			last = begin()
		}
	}
	select {
	case <-last.Done():
	case <-time.After(2 * time.Minute):
		t.Fatalf("join does not end:\n%s", last.Output())
	}
	mine, err := os.ReadFile(m.dir.NodeKey())
	if err != nil || string(mine) != string(key) {
		t.Fatalf("%s has another key than the one that was approved (%v):\n%s", name, err, last.Output())
	}
	n.run(t, m)
	n.types(t, by, "clone", "status", name, "--wait", "2m")
	return m
}

// run starts the node of a machine that joined.
func (n *nodes) run(t *testing.T, m *member) {
	t.Helper()
	n.start(t, m)
	n.whole.Cleanup(func() { must(n.whole, m.process.Stop()) })
	roots, err := client.RootsFile(m.dir.IdentityRoot())
	must(t, err)
	_, port, _ := strings.Cut(m.api, ":")
	m.admin, err = client.New(client.Options{Address: "https://localhost:" + port, Roots: roots, Certificate: n.kept})
	must(t, err)
	n.whole.Cleanup(m.admin.Close)
	n.all[m.name] = m
}

// cut kills a command within the time that it usually takes, unless it has ended.
func cut(t *testing.T, p *consumer.Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(time.Duration(mathrand.IntN(300)) * time.Millisecond):
		kill(t, p)
	}
}
