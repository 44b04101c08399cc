package hosts_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/keyfile"
)

// crls are the CRLs of a file, by their issuers' names; each must be PEM and nothing else.
func (h *host) crls(path string) map[string]*x509.RevocationList {
	h.t.Helper()
	all := map[string]*x509.RevocationList{}
	rest := h.read(path)
	for len(rest) > 0 {
		block, after := pem.Decode(rest)
		if block == nil || block.Type != "X509 CRL" {
			h.t.Fatalf("%s holds something else than CRLs:\n%s", path, rest)
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		must(h.t, err)
		all[list.Issuer.CommonName], rest = list, after
	}
	return all
}

// crlOf is that of an issuer.
func (h *host) crlOf(lists map[string]*x509.RevocationList, issuer *client.Issuer) *x509.RevocationList {
	h.t.Helper()
	list := lists[parsed(h.t, []byte(issuer.PEM)).Subject.CommonName]
	if list == nil {
		h.t.Fatalf("there is no CRL of %s", issuer.Name)
	}
	return list
}

// TestRevocation: a revoked client is refused as soon as the agent has placed the CRL, and loses the connection that it
// has. The CRLs are ones that certtool verifies, one for each issuer of the path, with numbers that grow.
func TestRevocation(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).revokes) {
		return
	}
	w := theWorld(t)
	pool := w.pool(t)
	h := w.newHost(t, "host", machine{pool: pool.Name})
	port := h.configure()
	h.join(order("libvirt-server", "drop_revoked=true"))
	h.converge()
	d := h.libvirtd(port)
	own, err := keyfile.Generate(keyfile.RSA3072, 0) // which is never certified again
	must(t, err)
	good, bad := w.peer(t, pool, "good"), w.peerWith(t, pool, "libvirt-client", "bad", own)
	before := h.crls(crlFile)
	if len(before) != 2 {
		t.Fatalf("%d CRLs are placed, not the root's and the issuer's", len(before))
	}
	kept := d.connect(good)
	open, err := d.dial(bad) // who says nothing: the daemon does not tell whose certificate it showed
	must(t, err)
	session := d.connect(bad)
	w.chancery(t, "cert", "revoke", bad.serial, "--reason", "keyCompromise")
	d.lets(h.name, bad) // the daemon has not heard of it
	until(t, "the CRL is on the host", func() bool {
		h.converge()
		return revokes(h.crlOf(h.crls(crlFile), pool.Issuer), bad.pair.Leaf)
	})
	if _, err := d.shake(bad); !errors.Is(err, errRefused) {
		t.Errorf("a revoked client: %v", err)
	}
	fails(t, d.virsh(h.name, bad, "list"), "error")
	until(t, "the daemon's log says that the certificate is revoked", func() bool { return strings.Contains(d.log(), "The certificate has been revoked") })
	open.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := open.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) || err == nil {
		t.Errorf("the connection of a revoked client: %d octets, %v; it was not ended", n, err)
	}
	if session.lists() {
		t.Error("the session of a revoked client goes on")
	}
	if !kept.lists() {
		t.Error("the session of a good client was ended")
	}
	d.lets(h.name, good)
	after := h.crls(crlFile)
	h.grows(before, after, pool.Issuer)
	verifiedByCerttool(t, h)
}

func revokes(list *x509.RevocationList, c *x509.Certificate) bool {
	return slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(c.SerialNumber) == 0
	})
}

// grows wants the CRLNumber of an issuer to have grown.
func (h *host) grows(before, after map[string]*x509.RevocationList, issuer *client.Issuer) {
	h.t.Helper()
	was, is := h.crlOf(before, issuer).Number, h.crlOf(after, issuer).Number
	if was == nil || is == nil || is.Cmp(was) <= 0 {
		h.t.Errorf("the CRLNumber of %s was %s and is %s", issuer.Name, was, is)
	}
}

// verifiedByCerttool has certtool check each CRL against its issuer, as they lie on the host.
func verifiedByCerttool(t *testing.T, h *host) {
	t.Helper()
	certificates, err := keyfile.ParseCertificates(h.read(caFile))
	must(t, err)
	dir := t.TempDir()
	lists := h.crls(crlFile)
	for _, c := range certificates {
		list := lists[c.Subject.CommonName]
		if list == nil {
			t.Errorf("there is no CRL of %s", c.Subject)
			continue
		}
		issuer, file := filepath.Join(dir, "issuer.pem"), filepath.Join(dir, "crl.pem")
		must(t, os.WriteFile(issuer, keyfile.EncodeCertificates(c), 0o644))
		must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list.Raw}), 0o644))
		out := h.run("certtool", "--verify-crl", "--load-ca-certificate", issuer, "--infile", file)
		if !strings.Contains(out, "Verified") {
			t.Errorf("certtool of the CRL of %s:\n%s", c.Subject, out)
		}
	}
	if len(certificates) != len(lists) || len(lists) == 0 {
		t.Errorf("%d CRLs and %d issuers", len(lists), len(certificates))
	}
}

// TestCRLIsRefreshed: where nothing was revoked a CRL is replaced well before its end, and the daemon goes on.
func TestCRLIsRefreshed(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).revokes) {
		return
	}
	w := theWorld(t)
	pool := w.pool(t)
	h := w.newHost(t, "host", machine{pool: pool.Name})
	port := h.configure()
	h.join(order("libvirt-server"))
	h.converge()
	d, c := h.libvirtd(port), w.peer(t, pool, "client")
	before, s := h.crls(crlFile), d.connect(c)
	for range 2 {
		_, err := w.admin.IssueCRL(t.Context(), pool.Issuer.Name, client.IssueCRLRequest{})
		must(t, err)
		var after map[string]*x509.RevocationList
		until(t, "the new CRL is on the host", func() bool {
			h.converge()
			after = h.crls(crlFile)
			return !bytes.Equal(h.crlOf(after, pool.Issuer).Raw, h.crlOf(before, pool.Issuer).Raw)
		})
		h.grows(before, after, pool.Issuer)
		for name, list := range after {
			if left := time.Until(list.NextUpdate); left < 24*time.Hour {
				t.Errorf("the CRL of %s ends in %s", name, left)
			}
		}
		before = after
	}
	verifiedByCerttool(t, h)
	if !s.lists() {
		t.Error("a new CRL ended a session")
	}
	d.lets(h.name, c)
	// What is no CRL is not placed: an empty file and one in DER stop the daemon.
	for _, text := range [][]byte{nil, h.crlOf(before, pool.Issuer).Raw} {
		must(t, os.WriteFile(h.path(crlFile), text, 0o644))
		h.converge()
		verifiedByCerttool(t, h)
	}
}
