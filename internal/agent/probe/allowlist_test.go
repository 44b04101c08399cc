package probe

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// text is an attribute of a name, by number.
func text(oid, value string, tag ...int) []cert.Attribute {
	id, err := cert.ParseOID(oid)
	if err != nil {
		panic(err)
	}
	a := cert.Attribute{Type: id, Value: value}
	if len(tag) > 0 {
		a.Tag = cbasn1.Tag(tag[0])
	}
	return []cert.Attribute{a}
}

// TestAllowListLine holds the line against virt-pki-query-dn, which prints what libvirtd compares.
func TestAllowListLine(t *testing.T) {
	const c, st, l, o, ou, cn, dc, uid = "2.5.4.6", "2.5.4.8", "2.5.4.7", "2.5.4.10", "2.5.4.11", "2.5.4.3", "0.9.2342.19200300.100.1.25", "0.9.2342.19200300.100.1.1"
	names := []cert.Name{
		{text(c, "GB"), text(st, "London"), text(l, "London"), text(o, "libvirt.org"), text(cn, "client1")},
		{text(cn, "client1"), text(o, "libvirt.org")}, // the other order stays the other order
		{text(dc, "test"), text(dc, "example"), text(ou, "hosts"), text(uid, "u1")},
		{text("1.2.840.113549.1.9.1", "a@b.test"), text(cn, "x")},
		{append(text(ou, "b"), text(cn, "a")...), text(o, "multi")},
		{text("1.2.3.4.5", "unknown"), text(cn, "x")},
		{text("1.2.3.4.5", "ia5", 22), text("2.5.4.16", strings.Repeat("long", 40)), text("2.5.4.18", strings.Repeat("longer", 50)), text(cn, "x")},
	}
	// Several to a name, since a process is started for each.
	values := []string{"a,b", "a+b", `a"b`, `a\b`, "a<b>c;d", " lead", "#x", "trail ", "  two  ", "a=b", "ünï", "a/b", "#", " ", "x\ty", `\`, ",", "a  b", "日本", "a#b", `\,`}
	for some := range slices.Chunk(values, 7) {
		var name cert.Name
		for _, v := range some {
			name = append(name, text(o, v))
		}
		names = append(names, name)
	}
	// UTF8String, PrintableString, TeletexString, IA5String and BMPString.
	for id := range gnuTLSAttributes() {
		var name cert.Name
		for _, tag := range []int{12, 19, 20, 22, 30} {
			name = append(name, text(id, "GB", tag))
		}
		names = append(names, name)
	}
	dir := t.TempDir()
	for i, name := range names {
		der, err := name.DER()
		if err != nil {
			t.Errorf("name %d: %v", i, err)
			continue
		}
		h := issue(t, nil, "", func(c *x509.Certificate) { c.RawSubject = der })
		file := filepath.Join(dir, "c.pem")
		write(t, file, keyfile.EncodeCertificates(h.cert))
		out, err := exec.Command("virt-pki-query-dn", file).CombinedOutput()
		if err != nil {
			t.Fatalf("virt-pki-query-dn: %v: %s", err, out)
		}
		if got, want := AllowListLine(h.cert), strings.TrimSuffix(string(out), "\n"); got != want {
			t.Errorf("name %d: %v\n%s\nvirt-pki-query-dn:\n%s", i, name, got, want)
		}
	}
	if got := AllowListLine(issue(t, nil, "", func(c *x509.Certificate) { c.Subject = pkix.Name{} }).cert); got != "" {
		t.Errorf("an empty subject: %q", got)
	}
}
