package hosts_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
)

// endingRoot is a root of somebody else's that ends soon.
func endingRoot(t *testing.T, notAfter time.Time) *x509.Certificate {
	t.Helper()
	key := ecKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "it ends at " + notAfter.String()}, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}

// TestEndedAnchorStopsNoLibvirtd: libvirtd does not start while one CA in its file has ended, whatever else is there. The agent
// takes it out although the authority is away, and libvirtd starts.
func TestEndedAnchorStopsNoLibvirtd(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).renews) {
		return
	}
	w := ownWorld(t, "", nil)
	pool := w.pool(t)
	h := w.newHost(t, "ended", machine{pool: pool.Name})
	port := h.configure()
	h.join(order("libvirt-server"))
	h.converge()
	trusts := func() []*x509.Certificate {
		t.Helper()
		all, err := keyfile.ParseCertificates(h.read(caFile))
		must(t, err)
		return all
	}
	var ends time.Time
	var ending *x509.Certificate
	for validity := 25 * time.Second; ; validity *= 2 { // one that ended before it was placed is left out: another
		ends = time.Now().Add(validity).Truncate(time.Second)
		ending = endingRoot(t, ends)
		_, err := w.admin.AddTrust(t.Context(), pool.Name, client.AddTrustRequest{PEM: string(keyfile.EncodeCertificates(ending))})
		must(t, err)
		h.converge()
		if slices.ContainsFunc(trusts(), ending.Equal) {
			break
		}
		if time.Now().Before(ends) {
			t.Fatal("a CA that has not ended is not placed")
		}
	}
	if n := len(trusts()); n != 3 { // with the pool's root and issuer
		t.Fatalf("%d CAs are placed", n)
	}
	must(t, w.process.Stop())
	wait := time.NewTimer(time.Until(ends.Add(2 * time.Second)))
	defer wait.Stop()
	<-wait.C

	// What happens where nobody takes it out.
	kept := h.read(caFile)
	h.write("/opt/drivers/none", "")
	cmd := h.command("timeout", "120", "libvirtd", "--listen", "-p", "/run/tried.pid")
	cmd.Env = append(cmd.Env, "LIBVIRT_DRIVER_DIR=/opt/drivers", "PATH="+os.Getenv("PATH")+":/usr/sbin")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out)+string(h.read("/run/libvirtd.log")), "has expired") {
		t.Errorf("libvirtd starts with a CA that has ended: %v %s", err, out)
	}

	out, err := h.agent("run", "--once").CombinedOutput()
	t.Logf("the agent says, while the authority is away: %s %v", out, err)
	if all := trusts(); len(all) != 2 || slices.ContainsFunc(all, ending.Equal) {
		t.Errorf("%d CAs are placed still", len(all))
	}
	d := h.libvirtd(port)
	if err := consumer.Listening(h.at + ":" + port)(t.Context()); err != nil {
		t.Errorf("libvirtd does not start: %v: %s", err, d.log())
	}
	if len(kept) <= len(h.read(caFile)) {
		t.Error("nothing was taken out")
	}
}
