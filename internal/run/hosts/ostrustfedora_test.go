package hosts_test

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/run/consumer"
)

const (
	fedoraSource    = "/etc/pki/ca-trust/source"
	fedoraAnchors   = fedoraSource + "/anchors"
	fedoraExtracted = "/etc/pki/ca-trust/extracted"
	fedoraBundle    = fedoraExtracted + "/pem/tls-ca-bundle.pem"
	fedoraHashes    = fedoraExtracted + "/pem/directory-hash"
)

// updateCATrust does what Fedora's update-ca-trust does, for directories below a root: it has p11-kit's trust read the sources
// and write the bundles. It is not Fedora's own script, of which Debian has no package. p11-kit reads the configuration that
// names other sources for no process of root's, so there it runs as nobody, and root takes over what it made.
const updateCATrust = `#!/bin/sh
set -eu
if [ "$1" = extract ]; then
	work=$(mktemp -d)
	trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
	if [ "$(id -u)" = 0 ]; then
		chown 65534:65534 "$work"
		setpriv --reuid=65534 --regid=65534 --clear-groups "$0" into "$2" "$work"
	else
		"$0" into "$2" "$work"
	fi
	out=$2/etc/pki/ca-trust/extracted
	rm -rf "$out/pem/directory-hash"
	cp -R --remove-destination "$work/." "$out/"
	chmod 0755 "$out" "$out/pem/directory-hash" # for who is to remove them and is not root
	exit
fi
export XDG_CONFIG_HOME=$2/opt/p11-kit
cd "$3"
mkdir openssl pem java
trust extract --format=openssl-bundle --filter=certificates --overwrite --comment openssl/ca-bundle.trust.crt
trust extract --format=pem-bundle --filter=ca-anchors --overwrite --comment --purpose=server-auth pem/tls-ca-bundle.pem
trust extract --format=pem-directory-hash --filter=ca-anchors --overwrite --purpose=server-auth pem/directory-hash
trust extract --format=java-cacerts --filter=ca-anchors --overwrite --purpose=server-auth java/cacerts
`

// fedora is a host with Fedora's trust store below its root, with the machine's public CAs as those of the distribution, and one
// that its operator added.
func (w *world) fedora(t *testing.T, pool *client.Pool) (h *host, own *root.Root) {
	t.Helper()
	h = w.newHost(t, "fedora", machine{pool: pool.Name, directory: true})
	const ofDistribution = "/usr/share/pki/ca-trust-source"
	for _, dir := range []string{fedoraAnchors, fedoraSource + "/blocklist", fedoraExtracted + "/openssl", fedoraExtracted + "/java", fedoraHashes,
		ofDistribution + "/anchors"} {
		must(t, os.MkdirAll(h.path(dir), 0o755))
	}
	public, err := os.ReadFile(systemBundle)
	must(t, err)
	h.write(ofDistribution+"/anchors/ca-bundle.pem", string(public))
	own, err = root.New(root.Options{Subject: cert.CommonName("operator's own")}, ecKey(t), time.Now())
	must(t, err)
	h.write(fedoraAnchors+"/operators-own.pem", string(keyfile.EncodeCertificates(own.Certificate)))
	h.write("/opt/p11-kit/pkcs11/modules/p11-kit-trust.module", "module: p11-kit-trust.so\ntrust-policy: yes\nx-init-reserved: paths='"+
		h.path(fedoraSource)+":"+h.path(ofDistribution)+"'\n")
	h.write("/opt/update-ca-trust", updateCATrust)
	must(t, os.Chmod(h.path("/opt/update-ca-trust"), 0o755))
	output(t, h.command(h.extracts()...))
	return h, own
}

func (h *host) extracts() []string {
	return []string{h.path("/opt/update-ca-trust"), "extract", h.root}
}

// TestOSTrustOfFedora: in Fedora's layout p11-kit takes the pool's root up into the bundle, the hash links and Java's cacerts,
// and no other; what is there stays; a root that leaves the pool's trust leaves all three; what the operator has distrusted is
// not taken up, and the placement says so.
func TestOSTrustOfFedora(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool, other := w.pool(t), w.pool(t)
	h, own := w.fedora(t, pool)
	public := strings.Count(string(h.read(fedoraBundle)), "BEGIN CERTIFICATE")
	if public < 100 {
		t.Fatalf("the bundle has %d CAs, and this test is about a hundred and more", public)
	}
	h.join(order("os-trust"))
	h.refuses("write into /etc/chancery/agent.yaml: paths: [")
	h.letIn(fedoraAnchors, "os-trust", "update-ca-trust", []string{"/bin/true"})
	h.refuses("so it is not trusted yet")
	good, rogue := h.opensslServer(w.peerOf(t, pool, "server", "localhost")), h.opensslServer(w.peerOf(t, other, "server", "localhost"))
	late := h.opensslServer(forge(t, own, nil, forgery{name: "localhost", usage: x509.ExtKeyUsageServerAuth}))
	if h.curlBelieves(good, "--cacert", fedoraBundle) {
		t.Error("the pool is trusted before p11-kit took its root up")
	}
	h.letIn(fedoraAnchors, "os-trust", "update-ca-trust", h.extracts())
	h.converge()
	if seen := h.observed("os-trust"); seen.State != client.PlacementServed {
		t.Errorf("reported is %+v", seen)
	}
	for _, c := range []struct{ flag, path string }{{"--cacert", fedoraBundle}, {"--capath", fedoraHashes}} {
		if !h.curlBelieves(good, c.flag, c.path) || h.curlBelieves(rogue, c.flag, c.path) || !h.curlBelieves(late, c.flag, c.path) {
			t.Errorf("curl %s does not believe a server of the pool or the operator's own, or believes one of another pool", c.flag)
		}
	}
	first := h.anchorsIn(fedoraAnchors)
	if n := strings.Count(string(h.read(fedoraBundle)), "BEGIN CERTIFICATE"); n != public+1 || len(first) != 1 {
		t.Fatalf("the bundle has %d certificates, and had %d; placed are %v", n, public, first)
	}
	ours := string(h.read(filepath.Join(fedoraAnchors, first[0])))
	if !h.javaBelieves(ours) {
		t.Error("Java's cacerts has not the pool's root")
	}
	bundle := h.inode(fedoraBundle)
	h.converge()
	if h.inode(fedoraBundle) != bundle {
		t.Error("a second look changed the store")
	}

	next, err := root.New(root.Options{Subject: cert.CommonName("next root, (two)")}, ecKey(t), time.Now())
	must(t, err)
	added, err := w.admin.AddTrust(t.Context(), pool.Name, client.AddTrustRequest{PEM: string(keyfile.EncodeCertificates(next.Certificate))})
	must(t, err)
	coming := h.opensslServer(forge(t, next, nil, forgery{name: "localhost", usage: x509.ExtKeyUsageServerAuth}))
	h.converge()
	if !h.curlBelieves(good, "--capath", fedoraHashes) || !h.curlBelieves(coming, "--capath", fedoraHashes) || len(h.anchorsIn(fedoraAnchors)) != 2 {
		t.Errorf("with two roots: %v", h.anchorsIn(fedoraAnchors))
	}
	must(t, w.admin.DropTrust(t.Context(), pool.Name, added[0].ID, client.DropTrustRequest{Because: "it was tried out"}))
	h.converge()
	if h.curlBelieves(coming, "--cacert", fedoraBundle) || h.curlBelieves(coming, "--capath", fedoraHashes) || !h.curlBelieves(good, "--cacert", fedoraBundle) {
		t.Error("the root that went is still believed, or the other is not")
	}
	if !h.curlBelieves(late, "--cacert", fedoraBundle) || strings.Count(string(h.read(fedoraBundle)), "BEGIN CERTIFICATE") != public+1 {
		t.Error("public CAs or the operator's own are not there any more")
	}

	h.write(fedoraSource+"/blocklist/distrusted.pem", ours)
	output(t, h.command(h.extracts()...))
	h.refuses("so it is not trusted yet")
	if h.curlBelieves(good, "--cacert", fedoraBundle) {
		t.Error("what the operator has distrusted is believed")
	}
}

// javaBelieves reports whether the cacerts that p11-kit made holds a certificate, as keytool says.
func (h *host) javaBelieves(text string) bool {
	h.t.Helper()
	sum := sha256.Sum256(parsed(h.t, []byte(text)).Raw)
	listed := output(h.t, h.command(consumer.Keytool("-list", "-keystore", h.path(fedoraExtracted+"/java/cacerts"), "-storepass", "changeit")...))
	return strings.Contains(listed, strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":"))
}
