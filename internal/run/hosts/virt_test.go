package hosts_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/run/consumer"
)

// The places where libvirt looks.
const (
	caFile      = "/etc/pki/CA/cacert.pem"
	crlFile     = "/etc/pki/CA/cacrl.pem"
	serverCert  = "/etc/pki/libvirt/servercert.pem"
	serverKey   = "/etc/pki/libvirt/private/serverkey.pem"
	libvirtConf = "/etc/libvirt/libvirtd.conf"
)

var placed = []string{caFile, crlFile, serverCert, serverKey}

// daemon is a libvirtd on a host, with its configuration and its sockets in their usual places. Only its port is not the
// usual one.
type daemon struct {
	*consumer.Process
	h    *host
	port string
	logs string // path of its log
	pids string // path of the file with its number
}

// configure writes libvirtd.conf and returns the port.
func (h *host) configure(settings ...string) (port string) {
	h.t.Helper()
	address, err := consumer.FreeAddress() // of 127.0.0.1, so that no other test takes it
	must(h.t, err)
	_, port, _ = strings.Cut(address, ":")
	h.configurePort(port, settings...)
	return port
}

func (h *host) configurePort(port string, settings ...string) {
	h.t.Helper()
	if h.root != "" {
		h.prepare(port, settings...)
		return
	}
	lines := append([]string{"listen_tls = 1", "listen_tcp = 0", fmt.Sprintf("listen_addr = %q", h.at), fmt.Sprintf("tls_port = %q", port),
		`auth_unix_ro = "none"`, `auth_unix_rw = "none"`, `auth_tls = "none"`, `log_outputs = "3:file:/run/libvirtd.log"`}, settings...)
	h.write(libvirtConf, strings.Join(lines, "\n")+"\n")
}

// libvirtd starts the daemon on the port of its configuration. Only its test driver is found: it needs neither systemd nor
// QEMU. Where it ends it is started again, as systemd would.
func (h *host) libvirtd(port string) *daemon {
	h.t.Helper()
	d := &daemon{h: h, port: port, logs: "/run/libvirtd.log", pids: "/run/libvirtd.pid"}
	run := "libvirtd --listen -p " + d.pids
	if h.root != "" {
		d.logs, d.pids = h.path("/opt/virt/log"), h.path("/opt/virt/pid")
		run = "libvirtd -f " + h.conf() + " --listen -p " + d.pids
	}
	h.write("/opt/drivers/none", "")
	h.write("/opt/libvirtd", "#!/bin/sh\nPATH=$PATH:/usr/sbin\nwhile :; do setpriv --pdeathsig KILL "+run+"; sleep 0.1; done\n")
	h.write("/opt/restart", "#!/bin/sh\np=$(cat "+d.pids+") && kill $p && while kill -0 $p 2>/dev/null; do sleep 0.05; done\n")
	for _, script := range []string{"/opt/libvirtd", "/opt/restart"} {
		must(h.t, os.Chmod(h.path(script), 0o755))
	}
	d.Process = h.start(consumer.Program{
		Path: h.inside("/opt/libvirtd"), Env: []string{"LIBVIRT_DRIVER_DIR=" + h.inside("/opt/drivers")}, Ready: consumer.Listening(h.at + ":" + port),
	})
	return d
}

// restarts has the agent restart the daemon as it can be done without systemd: the lines of agent.yaml.
func (h *host) restarts() string {
	return "steps:\n  libvirt-server:\n    restart: [" + h.inside("/opt/restart") + "]\n"
}

func (d *daemon) pid() string { return strings.TrimSpace(string(d.h.read(d.pids))) }

// log is what the daemon has written to its log.
func (d *daemon) log() string { return string(d.h.read(d.logs)) }

// uri is where the daemon is reached under a name, with a client's directory.
func (d *daemon) uri(name string, p *peer) string {
	uri := "test+tls://" + name + ":" + d.port + "/default"
	if p != nil {
		uri += "?pkipath=" + p.dir
	}
	return uri
}

// virsh is a command of virsh on the daemon's host.
func (d *daemon) virsh(name string, p *peer, words ...string) *exec.Cmd {
	return d.h.command(append([]string{"virsh", "-q", "-c", d.uri(name, p)}, words...)...)
}

// lets wants the daemon to accept a client.
func (d *daemon) lets(name string, p *peer) {
	d.h.t.Helper()
	if out := output(d.h.t, d.virsh(name, p, "list", "--name")); strings.TrimSpace(out) != "test" {
		d.h.t.Errorf("virsh list prints %q", out)
	}
}

// errRefused says that the daemon ended the connection instead of confirming the client's certificate.
var errRefused = errors.New("the daemon refuses this client")

// shake connects as a client that checks nothing, and returns the certificate that is served. The daemon confirms a client
// by one octet.
func (d *daemon) shake(p *peer) (*x509.Certificate, error) {
	conn, err := d.dial(p)
	if conn == nil {
		return nil, err
	}
	conn.Close()
	return conn.ConnectionState().PeerCertificates[0], err
}

func (d *daemon) dial(p *peer) (*tls.Conn, error) {
	config := &tls.Config{InsecureSkipVerify: true}
	if p != nil && p.pair.PrivateKey != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &p.pair, nil }
	}
	conn, err := tls.Dial("tcp", d.h.at+":"+d.port, config)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	var confirmed [1]byte
	if _, err := io.ReadFull(conn, confirmed[:]); err != nil || confirmed[0] != 1 {
		return conn, errors.Join(errRefused, err)
	}
	return conn, nil
}

// serves wants a certificate on the live port.
func (d *daemon) serves(p *peer, want *x509.Certificate) {
	d.h.t.Helper()
	got, err := d.shake(p)
	if err != nil {
		d.h.t.Errorf("connect: %v", err)
	} else if !got.Equal(want) {
		d.h.t.Errorf("certificate %s is served, not %s", cert.FormatSerial(got.SerialNumber), cert.FormatSerial(want.SerialNumber))
	}
}

// peer is a client of daemons: a directory as pkipath names it, and the same for Go.
type peer struct {
	dir    string
	pair   tls.Certificate // without a key where it has none
	serial string
}

// aKey is the key of clients. Keys that libvirt 9 takes need a second to make, so it is one for all.
var aKey = sync.OnceValue(func() crypto.Signer {
	key, err := keyfile.Generate(keyfile.RSA3072, 0)
	if err != nil {
		panic(err)
	}
	return key
})

// trustOf is what those trust who are of a pool: root and issuer.
func trustOf(p *client.Pool) []byte { return []byte(p.Root.PEM + p.Issuer.PEM) }

// newPeer writes a client's directory.
func newPeer(t testing.TB, trust, path []byte, key crypto.Signer) *peer {
	t.Helper()
	dir, err := os.MkdirTemp("", "peer-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	p := &peer{dir: dir}
	must(t, os.WriteFile(filepath.Join(dir, "cacert.pem"), trust, 0o644))
	if path == nil {
		return p
	}
	text, err := keyfile.EncodePKCS8(key)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "clientcert.pem"), path, 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "clientkey.pem"), text, 0o600))
	p.pair, err = tls.X509KeyPair(path, text)
	must(t, err)
	p.serial = cert.FormatSerial(p.pair.Leaf.SerialNumber)
	return p
}

// peer has the authority issue a client's certificate in a pool.
func (w *world) peer(t testing.TB, p *client.Pool, name string) *peer {
	t.Helper()
	return w.peerOf(t, p, "libvirt-client", name)
}

func (w *world) peerOf(t testing.TB, p *client.Pool, profile, name string) *peer {
	t.Helper()
	return w.peerWith(t, p, profile, name, aKey())
}

func (w *world) peerWith(t testing.TB, p *client.Pool, profile, name string, key crypto.Signer) *peer {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	out, err := w.admin.Issue(t.Context(), client.IssueRequest{
		Pool: p.Name, Profile: profile, PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})),
		Names: &client.Names{SAN: []string{"dns:" + name}},
	})
	must(t, err)
	return newPeer(t, trustOf(p), []byte(out.Certificate.PEM+out.Certificate.Chain), key)
}

// ownedPool is a pool whose root is in the test's hands, who can therefore sign what no authority would.
func (w *world) ownedPool(t testing.TB) (*client.Pool, *root.Root) {
	t.Helper()
	p, err := w.admin.AddPool(t.Context(), client.AddPoolRequest{Name: fmt.Sprintf("p%d", shared.pools.Add(1))})
	must(t, err)
	block, _ := pem.Decode([]byte(p.Issuer.CSR))
	request, err := cert.ParseCSR(block.Bytes)
	must(t, err)
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(t, err)
	now := time.Now().UTC().Truncate(time.Second)
	r, err := root.New(root.Options{Subject: cert.CommonName(p.Name + " root"), Validity: 1000 * 24 * time.Hour, PathLen: 1}, key, now)
	must(t, err)
	issuer, err := r.SignIssuer(root.Options{Subject: request.Subject}, request.SPKI, cert.Issuer{}, now)
	must(t, err)
	list, err := r.SignCRL(big.NewInt(now.UnixMilli()), nil, now, root.CRLValidity)
	must(t, err)
	p, err = w.admin.CompletePool(t.Context(), p.Name, client.CompletePoolRequest{
		Root: string(keyfile.EncodeCertificates(r.Certificate)), Issuer: string(keyfile.EncodeCertificates(issuer)),
		CRL: string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})),
	})
	must(t, err)
	w.crls(t, p)
	return p, r
}

// forgery is a client's certificate as a careless or hostile CA makes it.
type forgery struct {
	name             string
	notBefore, after time.Time
	usage            x509.ExtKeyUsage
}

// forge signs it with a root.
func forge(t testing.TB, r *root.Root, trust []byte, f forgery) *peer {
	t.Helper()
	if f.notBefore.IsZero() {
		f.notBefore = time.Now().Add(-time.Hour)
	}
	if f.after.IsZero() {
		f.after = time.Now().Add(24 * time.Hour)
	}
	oid := cert.OIDClientAuth
	if f.usage == x509.ExtKeyUsageServerAuth {
		oid = cert.OIDServerAuth
	}
	usage, err := marshalUsage(oid)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{"forged"}, CommonName: f.name}, DNSNames: []string{f.name},
		NotBefore: f.notBefore, NotAfter: f.after, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtraExtensions: []pkix.Extension{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(nil, template, r.Certificate, aKey().Public(), r.Signer)
	must(t, err)
	return newPeer(t, trust, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), aKey())
}

// marshalUsage is a critical extKeyUsage with one purpose.
func marshalUsage(purpose asn1.ObjectIdentifier) (pkix.Extension, error) {
	value, err := asn1.Marshal([]asn1.ObjectIdentifier{purpose})
	return pkix.Extension{Id: cert.OIDExtKeyUsage, Critical: true, Value: value}, err
}
