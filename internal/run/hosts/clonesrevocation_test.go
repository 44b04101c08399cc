package hosts_test

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"chancery/client"
)

// issue has a node issue from the default pool.
func (n *nodes) issue(t *testing.T, at string) *client.Certificate {
	t.Helper()
	return decode[client.IssueResult](t, n.types(t, at, "cert", "issue", "--profile", "server", "--csr", newRequest(t), "--name", "w.test", "-o", "json")).Certificate
}

func (n *nodes) revoke(t *testing.T, at string, c *client.Certificate) {
	t.Helper()
	n.types(t, at, "cert", "revoke", c.Serial, "--reason", "keyCompromise")
}

// shown writes a certificate, its issuer and the issuer's path to files.
func (n *nodes) shown(t *testing.T, at string, c *client.Certificate) (leaf, above, path string) {
	t.Helper()
	work := t.TempDir()
	leaf, above, path = filepath.Join(work, "leaf.pem"), filepath.Join(work, "above.pem"), filepath.Join(work, "path.pem")
	var chain []byte
	until(t, at+" knows the issuer "+c.Issuer, func() bool { // it reads the issuers anew every few moments
		var err error
		chain, err = n.all[at].admin.Chain(t.Context(), c.Issuer)
		return err == nil
	})
	must(t, os.WriteFile(leaf, []byte(c.PEM), 0o644))
	must(t, os.WriteFile(above, []byte(cmp.Or(c.Chain, string(chain))), 0o644)) // a root may be its issuer
	must(t, os.WriteFile(path, chain, 0o644))
	return leaf, above, path
}

// status is what openssl learns of a certificate by a node's OCSP; empty while it learns nothing.
func (n *nodes) status(t *testing.T, at string, c *client.Certificate) string {
	t.Helper()
	leaf, above, path := n.shown(t, at, c)
	out, err := exec.Command("openssl", "ocsp", "-issuer", above, "-cert", leaf, "-url", "http://"+n.all[at].public+"/ocsp", "-CAfile", path).Output()
	if err != nil {
		return "" // a responder that is new
	}
	_, state, _ := strings.Cut(strings.SplitN(string(out), "\n", 2)[0], ": ")
	return state
}

// gnutls is what ocsptool says of it.
func (n *nodes) gnutls(t *testing.T, at string, c *client.Certificate) string {
	t.Helper()
	leaf, above, path := n.shown(t, at, c)
	out, err := exec.Command("ocsptool", "--ask=http://"+n.all[at].public+"/ocsp", "--load-cert", leaf, "--load-issuer", above, "--load-trust", path).CombinedOutput()
	if !strings.Contains(string(out), "Verifying OCSP Response: Success") {
		t.Fatalf("ocsptool: %v\n%s", err, out)
	}
	return string(out)
}

// crl is an issuer's list as a node publishes it, which openssl has verified, and the file that it is in.
func (n *nodes) crl(t *testing.T, at, issuer string) (list *x509.RevocationList, file string) {
	t.Helper()
	var der []byte
	until(t, "the list of "+issuer+" is published by "+at, func() bool {
		answer, err := http.Get("http://" + n.all[at].public + "/crl/" + issuer + ".crl")
		must(t, err)
		defer answer.Body.Close()
		der, err = io.ReadAll(answer.Body)
		return err == nil && answer.StatusCode == http.StatusOK
	})
	work := t.TempDir()
	chain, err := n.all[at].admin.Chain(t.Context(), issuer)
	must(t, err)
	path, file := filepath.Join(work, "path.pem"), filepath.Join(work, "crl")
	must(t, os.WriteFile(path, chain, 0o644))
	must(t, os.WriteFile(file, der, 0o644))
	out, err := exec.Command("openssl", "crl", "-inform", "DER", "-in", file, "-noout", "-verify", "-CAfile", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "verify OK") {
		t.Fatalf("openssl crl: %v\n%s", err, out)
	}
	list, err = x509.ParseRevocationList(der)
	must(t, err)
	return list, file
}

func (n *nodes) number(t *testing.T, at, issuer string) int64 {
	t.Helper()
	list, _ := n.crl(t, at, issuer)
	return list.Number.Int64()
}

// listed reports whether the list that a node publishes has a certificate.
func (n *nodes) listed(t *testing.T, at string, c *client.Certificate) bool {
	t.Helper()
	list, _ := n.crl(t, at, c.Issuer)
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Text(16) == strings.TrimLeft(c.Serial, "0") {
			return true
		}
	}
	return false
}

// reason is what openssl reads of a certificate on the list that a node publishes; empty where it is not on it.
func (n *nodes) reason(t *testing.T, at string, c *client.Certificate) string {
	t.Helper()
	_, file := n.crl(t, at, c.Issuer)
	for entry := range strings.SplitSeq(output(t, exec.Command("openssl", "crl", "-inform", "DER", "-in", file, "-noout", "-text")), "Serial Number: ") {
		serial, rest, _ := strings.Cut(entry, "\n")
		if !strings.EqualFold(strings.TrimLeft(strings.TrimSpace(serial), "0"), strings.TrimLeft(c.Serial, "0")) {
			continue
		}
		_, reason, _ := strings.Cut(rest, "X509v3 CRL Reason Code:")
		reason, _, _ = strings.Cut(strings.TrimLeft(reason, " \n"), "\n")
		return strings.TrimSpace(reason)
	}
	return ""
}

// nss imports the list that a node publishes into a database of NSS, which then holds it against a certificate.
func (n *nodes) nss(t *testing.T, at string, c *client.Certificate) string {
	t.Helper()
	store := "sql:" + t.TempDir()
	leaf, above, path := n.shown(t, at, c)
	_, list := n.crl(t, at, c.Issuer)
	text, err := os.ReadFile(path)
	must(t, err)
	root := filepath.Join(t.TempDir(), "root.pem")
	must(t, os.WriteFile(root, text[strings.LastIndex(string(text), "-----BEGIN"):], 0o644))
	output(t, exec.Command("certutil", "-N", "-d", store, "--empty-password"))
	for _, c := range [][3]string{{"root", "CT,C,C", root}, {"issuer", ",,", above}, {"leaf", ",,", leaf}} {
		output(t, exec.Command("certutil", "-A", "-d", store, "-n", c[0], "-t", c[1], "-i", c[2]))
	}
	output(t, exec.Command("crlutil", "-I", "-d", store, "-t", "1", "-i", list))
	out, _ := exec.Command("certutil", "-V", "-d", store, "-n", "leaf", "-u", "V").CombinedOutput() // its exit code is another word for the same
	return string(out)
}

// decided is a profile whose certificates somebody else than who asks decides on.
const decided = `
name: decided
names:
  common_name: names
  required: true
  rules:
    - roles: [admin, operator]
      dns: ["*.test"]
usage:
  key_usage: [digitalSignature]
  extended: [serverAuth]
validity:
  default: 30d
approval:
  two_person: true
`

// revocation: what is requested, approved, fetched and revoked on one node is on the list that another signs without being asked to, and on
// the one that it is then asked for; every responder says so, in the same octets.
func (n *nodes) revocation(t *testing.T) {
	work := t.TempDir()
	file, profile, token := filepath.Join(work, "leaf.pem"), filepath.Join(work, "decided.yaml"), filepath.Join(work, "token")
	must(t, os.WriteFile(profile, []byte(decided), 0o644))
	n.types(t, "node1", "profile", "save", "decided", profile)
	n.types(t, "node1", "operator", "add", "olga", "--role", "operator")
	n.types(t, "node1", "token", "add", "olga", "--out", token)
	n.store.replayed(t)
	asks, id := append([]string{"request", "submit", "--profile", "decided", "--csr", newRequest(t), "--name", "asked.test", "--token-file", token}, n.node("node2")...), ""
	until(t, "node2 knows the profile", func() bool { // it reads the profiles anew every few moments
		said, err := exec.Command(program(t), asks...).Output()
		id = strings.TrimSpace(string(said))
		return err == nil
	})
	n.types(t, "node2", "request", "approve", id)
	n.types(t, "node2", "request", "retrieve", id, "--out", file)
	text, err := os.ReadFile(file)
	must(t, err)
	c := decode[*client.Certificate](t, n.types(t, "node1", "cert", "show", fmt.Sprintf("%x", parsed(t, text).SerialNumber), "-o", "json"))
	for at := range n.all {
		until(t, at+" says good", func() bool { return n.status(t, at, c) == "good" })
		if said := n.gnutls(t, at, c); !strings.Contains(said, "Certificate Status: good") {
			t.Errorf("%s, asked by ocsptool, says\n%s", at, said)
		}
	}
	if said := n.nss(t, "node3", c); !strings.Contains(said, "certificate is valid") {
		t.Errorf("NSS says\n%s", said)
	}
	n.alike(t, c, "good")
	if holds, _ := n.holder(t, "node1"); holds != "node1" { // so that who revokes is not who signs
		n.types(t, "node1", "clone", "promote", "node1")
	}
	n.asClone(t, "node2")
	before := n.number(t, "node3", c.Issuer)
	n.revoke(t, "node2", c)
	for at := range n.all {
		until(t, at+" says revoked", func() bool { return n.status(t, at, c) == "revoked" })
		if said := n.gnutls(t, at, c); !strings.Contains(said, "Certificate Status: revoked") {
			t.Errorf("%s, asked by ocsptool, says\n%s", at, said)
		}
		until(t, "the list that "+at+" publishes has it", func() bool { return n.listed(t, at, c) })
	}
	after := n.number(t, "node3", c.Issuer)
	if after <= before {
		t.Errorf("list %d has what list %d had not", after, before)
	}
	n.alike(t, c, "revoked")
	forced := decode[client.CRL](t, n.types(t, "node1", "crl", "issue", "--issuer", c.Issuer, "-o", "json"))
	number, err := strconv.ParseInt(forced.Number, 10, 64)
	if err != nil || number <= after {
		t.Errorf("the list that was asked for after %d has the number %s", after, forced.Number)
	}
	if now, _ := n.holder(t, "node1"); now != "node1" {
		t.Errorf("meanwhile %s has come to sign, which revoked", now)
	}
	for at := range n.all {
		until(t, at+" publishes the list that was asked for", func() bool { return n.number(t, at, c.Issuer) >= number })
		if reason := n.reason(t, at, c); reason != "Key Compromise" {
			t.Errorf("the list that %s publishes gives the reason %q", at, reason)
		}
	}
	if said := n.nss(t, "node3", c); !strings.Contains(strings.ToLower(said), "revoked") {
		t.Errorf("NSS says\n%s", said)
	}
}

// holder is the node that signs CRLs, and another that could.
func (n *nodes) holder(t *testing.T, at string) (holds, other string) {
	t.Helper()
	until(t, "a node signs CRLs", func() bool {
		all, err := client.Collect(n.all[at].admin.Clones(t.Context()))
		must(t, err)
		holds, other = "", ""
		for _, c := range all {
			has := false
			for _, l := range c.Leases {
				has = has || l.Name == "crl" && l.Holder == c.Name
			}
			switch {
			case has:
				holds = c.Name
			case c.State == client.CloneActive && len(c.Subsystems) == 2 && n.all[c.Name] != nil:
				other = c.Name
			}
		}
		return holds != "" && other != ""
	})
	return holds, other
}

// freshCRL asks the node that does not sign CRLs for a new one: the one that does signs it. Then the other is promoted, whose list has what
// was revoked before, and names the issuer's key as the lists before did.
func (n *nodes) freshCRL(t *testing.T) {
	at := "node3"
	revoked := n.issue(t, n.someCA())
	issuer := revoked.Issuer
	n.revoke(t, n.someCA(), revoked)
	until(t, "the list has what was revoked", func() bool { return n.listed(t, at, revoked) })
	n.store.replayed(t) // who signs, too: the node that is asked may read at a standby
	for range 2 {
		holds, other := n.holder(t, at)
		before := n.number(t, at, issuer)
		made := decode[client.CRL](t, n.types(t, other, "crl", "issue", "--issuer", issuer, "-o", "json"))
		if number, err := strconv.ParseInt(made.Number, 10, 64); err != nil || number <= before {
			t.Errorf("the list after %d has the number %s", before, made.Number)
		}
		if now, _ := n.holder(t, at); now != holds {
			t.Errorf("the work went from %s to %s", holds, now)
		}
		until(t, "it is published", func() bool { return strconv.FormatInt(n.number(t, at, issuer), 10) >= made.Number })
		list, _ := n.crl(t, at, issuer)
		before = n.number(t, at, issuer)
		n.types(t, holds, "clone", "promote", other)
		until(t, other+", which was promoted, signs", func() bool {
			now, _ := n.holder(t, at)
			return now == other
		})
		until(t, "who signs from now on has begun with a list of its own", func() bool { return n.number(t, at, issuer) > before })
		next, _ := n.crl(t, at, issuer)
		if len(list.AuthorityKeyId) == 0 || !bytes.Equal(next.AuthorityKeyId, list.AuthorityKeyId) {
			t.Errorf("the list of %s names the key %x, and the one before %x", other, next.AuthorityKeyId, list.AuthorityKeyId)
		}
		if len(next.RevokedCertificateEntries) < len(list.RevokedCertificateEntries) || !n.listed(t, at, revoked) {
			t.Errorf("the list of %s has %d entries, and the one before %d", other, len(next.RevokedCertificateEntries), len(list.RevokedCertificateEntries))
		}
	}
}

// someCA is a node that issues.
func (n *nodes) someCA() string {
	if n.all["node2"] != nil {
		return "node2"
	}
	return "node4"
}

// schedule: an issuer that does not sign at each revocation signs at its time, and when it is asked to.
func (n *nodes) schedule(t *testing.T) {
	quiet := n.issue(t, "node2")
	n.types(t, "node2", "issuer", "crls", quiet.Issuer, "--no-on-revocation")
	for _, at := range []string{"node1", "node2"} {
		until(t, at+" knows it", func() bool { // it reads the issuers anew every second
			i, err := n.all[at].admin.Issuer(t.Context(), quiet.Issuer)
			must(t, err)
			return i.CRLMode.OnRevocation != nil && !*i.CRLMode.OnRevocation
		})
	}
	made := decode[client.CRL](t, n.types(t, "node2", "crl", "issue", "--issuer", quiet.Issuer, "-o", "json"))
	until(t, "it is published by the other", func() bool { return strconv.FormatInt(n.number(t, "node1", quiet.Issuer), 10) == made.Number })
	n.revoke(t, "node1", quiet)
	until(t, "OCSP says revoked at once", func() bool { return n.status(t, "node3", quiet) == "revoked" })

	// What another issuer's certificate shows on its list shows that the holder has looked meanwhile.
	loud := decode[client.IssueResult](t, n.types(t, "node2", "cert", "issue", "--pool", "database", "--profile", "client", "--csr", newRequest(t),
		"--subject", "CN=someone", "-o", "json")).Certificate
	n.revoke(t, "node2", loud)
	until(t, "the other list has its entry", func() bool { return n.listed(t, "node1", loud) })
	if now := strconv.FormatInt(n.number(t, "node1", quiet.Issuer), 10); now != made.Number || n.listed(t, "node1", quiet) {
		t.Errorf("list %s was signed before its time, after %s", now, made.Number)
	}
	n.types(t, "node1", "crl", "issue", "--issuer", quiet.Issuer)
	until(t, "the list that was asked for has it", func() bool { return n.listed(t, "node1", quiet) })
	n.types(t, "node2", "issuer", "crls", quiet.Issuer, "--on-revocation")
}

// prolonged: an issuer is renewed with its key on one node. Another issues under the new certificate without being told; the key's
// identifiers are what they were, and what was signed before is good under either certificate, answered for and listed.
func (n *nodes) prolonged(t *testing.T) {
	old := n.issue(t, "node1")
	work := t.TempDir()
	keep := func(name, text string) string {
		file := filepath.Join(work, name)
		must(t, os.WriteFile(file, []byte(text), 0o644))
		return file
	}
	show := func() string { return n.types(t, "node1", "issuer", "show", old.Issuer, "--pem") }
	before := keep("before.pem", show())
	n.types(t, "node1", "issuer", "renew", old.Issuer, "--validity", "11y")
	renewed := show()
	after := keep("after.pem", renewed)
	if was, is := n.types(t, "node2", "key", "id", before), n.types(t, "node2", "key", "id", after); was != is || is == "" {
		t.Errorf("the identifiers were %s and are %s", was, is)
	}
	fresh := n.issue(t, "node2")
	until(t, "node2 issues under the new certificate", func() bool {
		fresh = n.issue(t, "node2")
		return strings.HasPrefix(fresh.Chain, renewed)
	})
	for _, c := range []*client.Certificate{old, fresh} {
		leaf, _, path := n.shown(t, "node2", c)
		for _, issuer := range []string{before, after} {
			output(t, exec.Command("openssl", "verify", "-CAfile", path, "-untrusted", issuer, leaf))
		}
		until(t, "node3 says good of it", func() bool { return n.status(t, "node3", c) == "good" })
		n.revoke(t, "node2", c)
		until(t, "node3 says revoked", func() bool { return n.status(t, "node3", c) == "revoked" })
		until(t, "the list has it", func() bool { return n.listed(t, "node3", c) })
	}
}

// rekeyed: an issuer gets a new key on one node. Another issues with it without being told, and for what the old key signed there are
// answers and lists as before.
func (n *nodes) rekeyed(t *testing.T) {
	old := n.issue(t, "node1")
	n.types(t, "node1", "issuer", "issue", "default2", "--under", "default-root", "--subject", "CN=second issuer", "--pool", "default", "--default")
	fresh := n.issue(t, "node2")
	until(t, "node2 issues with the new key", func() bool {
		fresh = n.issue(t, "node2")
		return fresh.Issuer == "default2"
	})
	for _, c := range []*client.Certificate{old, fresh} {
		until(t, "node3 says good of what "+c.Issuer+" signed", func() bool { return n.status(t, "node3", c) == "good" })
		n.revoke(t, "node2", c)
		until(t, "node3 says revoked", func() bool { return n.status(t, "node3", c) == "revoked" })
		until(t, "the list of "+c.Issuer+" has it", func() bool { return n.listed(t, "node3", c) })
		if said := n.nss(t, "node1", c); !strings.Contains(strings.ToLower(said), "revoked") {
			t.Errorf("NSS says of what %s signed\n%s", c.Issuer, said)
		}
	}
}

// certifiedAgain: a CA that came from elsewhere and that its root, which is not here, certifies again keeps its key, and with it the
// key's identifiers. It stays one issuer, each node issues under the new certificate, and what it signed before is under both.
func (n *nodes) certifiedAgain(t *testing.T) {
	work := t.TempDir()
	file := func(name string) string { return filepath.Join(work, name) }
	var ids []string
	var given []*client.Certificate
	for _, name := range []string{"root.key", "key"} {
		output(t, exec.Command("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", file(name)))
		must(t, os.Chmod(file(name), 0o600))
	}
	output(t, exec.Command("openssl", "req", "-x509", "-new", "-key", file("root.key"), "-days", "3000", "-subj", "/CN=plant root", "-out", file("root"),
		"-addext", "keyUsage=critical,keyCertSign,cRLSign"))
	must(t, os.WriteFile(file("ext"), []byte("basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"+
		"subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"), 0o600))
	output(t, exec.Command("openssl", "req", "-new", "-key", file("key"), "-subj", "/CN=plant CA", "-out", file("csr")))
	for i, name := range []string{"plant", "plant-renewed"} {
		output(t, exec.Command("openssl", "x509", "-req", "-in", file("csr"), "-CA", file("root"), "-CAkey", file("root.key"), "-days", strconv.Itoa(800*(i+1)),
			"-extfile", file("ext"), "-out", file(name)))
		if i == 0 {
			n.first.chancery(t, "import", file(name), "--chain", file("root"), "--key", file("key"), "--name", "plant", "--pool", "plant", "--default")
		} else {
			refused, err := exec.Command(program(t), "--dir", string(n.first.dir), "import", file(name), "--chain", file("root"), "--key", file("key"), "--name", name,
				"--pool", "plant").CombinedOutput()
			if err == nil || !strings.Contains(string(refused), "issuer renew plant --certificate") {
				t.Errorf("a second issuer of one name and key: %v\n%s", err, refused)
			}
			n.first.chancery(t, "issuer", "renew", "plant", "--certificate", file(name))
		}
		ids = append(ids, n.types(t, "node2", "key", "id", file(name)))
		serial := strings.ToLower(strings.TrimPrefix(strings.TrimSpace(output(t, exec.Command("openssl", "x509", "-noout", "-serial", "-in", file(name)))), "serial="))
		until(t, "node2 issues under "+name, func() bool { // it reads the issuers anew every few moments
			out, err := n.asked(t, "node2", "issuer", "show", "plant", "-o", "json").Output()
			return err == nil && strings.TrimLeft(decode[client.Issuer](t, string(out)).Serial, "0") == strings.TrimLeft(serial, "0")
		})
		out := n.types(t, "node2", "cert", "issue", "--pool", "plant", "--profile", "server", "--csr", newRequest(t), "--name", "w.test", "-o", "json")
		given = append(given, decode[client.IssueResult](t, out).Certificate)
	}
	if ids[0] != ids[1] || ids[0] == "" {
		t.Errorf("the identifiers were %s and are %s", ids[0], ids[1])
	}
	for _, c := range given {
		leaf, _, _ := n.shown(t, "node2", c)
		for _, name := range []string{"plant", "plant-renewed"} {
			output(t, exec.Command("openssl", "verify", "-CAfile", file("root"), "-untrusted", file(name), leaf))
		}
		until(t, "node3 says good of what "+c.Issuer+" signed", func() bool { return n.status(t, "node3", c) == "good" })
	}
}

// promotions are made by two operators at once: one comes last, and one node signs.
func (n *nodes) promotions(t *testing.T) {
	var both sync.WaitGroup
	for _, to := range []string{"node1", "node2"} {
		promote := n.asked(t, to, "clone", "promote", to)
		both.Go(func() {
			if out, err := promote.CombinedOutput(); err != nil && !strings.Contains(string(out), "try again") {
				t.Errorf("promote %s: %v\n%s", to, err, out)
			}
		})
	}
	both.Wait()
	n.holder(t, "node3")
	n.freshCRL(t)
}
