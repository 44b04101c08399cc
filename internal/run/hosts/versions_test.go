package hosts_test

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const extraCert, extraKey = "/etc/pki/libvirt/servercert0.pem", "/etc/pki/libvirt/private/serverkey0.pem"

// TestVersions: what a host's libvirt can read decides on key, usages and the number of identities, and what was asked for
// and not given is told. The version is what the program libvirtd of the host says of itself.
func TestVersions(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	both := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	for _, c := range []struct {
		version    string
		ec         bool
		usage      x509.KeyUsage
		identities int
		says       []string
	}{
		{"9.0.0", false, both, 1, []string{"libvirt 9.0.0 gets RSA 3072", "libvirt 9.0.0 reads one only"}},
		{"11.6.0", true, x509.KeyUsageDigitalSignature, 1, []string{"libvirt 11.6.0 reads one only"}},
		{"11.10.0", true, x509.KeyUsageDigitalSignature, 2, nil},
	} {
		t.Run(c.version, func(t *testing.T) {
			t.Parallel()
			h := theWorld(t).newHost(t, "host", machine{})
			h.write(libvirtConf, "")
			h.saysVersion(c.version)
			h.join(order("libvirt-server", "key=ecdsa-p256", "extra_key=ecdsa-p384"))
			h.converge()
			leaf := parsed(t, h.read(serverCert))
			_, ec := leaf.PublicKey.(*ecdsa.PublicKey)
			_, isRSA := leaf.PublicKey.(*rsa.PublicKey)
			if ec != c.ec || isRSA == c.ec || leaf.KeyUsage != c.usage {
				t.Errorf("placed is a key %T with usages %b", leaf.PublicKey, leaf.KeyUsage)
			}
			seen := h.observed("libvirt-server")
			if seen.Facts["version"] != c.version {
				t.Errorf("the host's version is %q", seen.Facts["version"])
			}
			for _, text := range c.says {
				if !strings.Contains(seen.Message, text) {
					t.Errorf("it is not told that %s: %q", text, seen.Message)
				}
			}
			if c.says == nil && seen.Message != "" {
				t.Errorf("it is told %q", seen.Message)
			}
			if c.identities == 1 {
				h.absent(extraCert, extraKey)
				return
			}
			extra := parsed(t, h.read(extraCert))
			if key, ok := extra.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve.Params().BitSize != 384 || !slices.Equal(extra.DNSNames, leaf.DNSNames) {
				t.Errorf("the second identity is %T of %s", extra.PublicKey, extra.DNSNames)
			}
			h.run("openssl", "pkey", "-in", extraKey, "-noout")
		})
	}
}

// saysVersion has the host's libvirtd say of itself that it is of a version.
func (h *host) saysVersion(version string) {
	h.t.Helper()
	script := filepath.Join(h.home, "libvirtd")
	must(h.t, os.WriteFile(script, []byte("#!/bin/sh\n[ \"$*\" = --version ] && echo 'libvirtd (libvirt) "+version+"'\n"), 0o755))
	h.run("mount", "--bind", script, "/usr/sbin/libvirtd")
	if got := h.run("libvirtd", "--version"); got != fmt.Sprintf("libvirtd (libvirt) %s\n", version) {
		h.t.Fatalf("libvirtd --version prints %q", got)
	}
}
