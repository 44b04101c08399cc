package clone_test

import (
	"slices"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/store/once"
)

// TestNamesThatWereApproved has a node that answers OCSP only ask for names that nobody looked at, and for those of nodes that issue.
func TestNamesThatWereApproved(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m := a.machine("o1", a.invite("ocsp"))
	m.in.Names = []string{"dns:ocsp.test", "ip:192.0.2.7"}
	waits, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	shown, err := a.Clones.Show(ctx, a.admin, "o1")
	must(t, err)
	if !slices.Equal(shown.Names, m.in.Names) || shown.Address != m.in.Address || !slices.Equal(shown.Subsystems, []string{"ocsp"}) {
		t.Fatalf("an administrator sees %+v", shown)
	}
	_, err = a.Clones.Approve(ctx, a.admin, "o1", client.CloneApproval{Fingerprint: waits.Fingerprint})
	must(t, err)
	joined, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	crt := leaf(t, joined.Certificate)
	self, err := a.Access.AuthenticateCertificate(ctx, must1(t)(a.Identity.Issuers(ctx))[0], crt.RawSubjectPublicKeyInfo)
	must(t, err)

	// It says of itself in the database what it likes, and its node.yaml has names that it likes.
	one := a.open(m)
	must(t, one.Clones.Register(ctx, "https://vip.corp.example:8443", time.Now()))
	next := a.machine("o1", &client.CloneToken{})
	for _, names := range [][]string{{"dns:vip.corp.example"}, {"dns:ocsp.test", "dns:db1.example"}, {"ip:192.0.2.200"}} {
		_, err := a.Clones.RenewIdentity(ctx, self, client.CloneIdentity{CSR: next.in.CSR, Names: names}, "")
		refused(t, err, fault.Denied, "was approved with the names")
	}
	for _, names := range [][]string{nil, {"ip:192.0.2.7"}, {"ip:192.0.2.7", "dns:ocsp.test"}} {
		renewed, err := a.Clones.RenewIdentity(ctx, self, client.CloneIdentity{CSR: next.in.CSR, Names: names}, "")
		must(t, err)
		got := leaf(t, renewed.Certificate)
		if slices.Contains(got.DNSNames, "vip.corp.example") || !slices.Contains(got.DNSNames, "o1.test") || len(got.IPAddresses) != 3 {
			t.Errorf("renewed for %v: %v, %v", names, got.DNSNames, got.IPAddresses)
		}
		next = a.machine("o1", &client.CloneToken{})
	}

	// Nodes that issue have further names and addresses; one is not approved yet.
	issuing := a.machine("n2", a.invite())
	issuing.in.Address, issuing.in.Names = "https://[2001:db8::1]:8443", []string{"dns:further.test"}
	_, err = a.Clones.Join(ctx, issuing.in)
	must(t, err)
	for _, name := range []string{"ip:2001:0db8:0:0::1", "ip:2001:db8::1", "dns:FURTHER.test"} {
		bad := a.machine("o2", a.invite("ocsp"))
		bad.in.Names = []string{name}
		_, err := a.Clones.Join(ctx, bad.in)
		refused(t, err, fault.Denied, "is where clients reach node n2")
	}
}

// TestFingerprintCoversAll gives a machine's approval to one that asks for something else with the same keys.
func TestFingerprintCoversAll(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m := a.machine("n2", a.invite())
	waits, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Force: true}, once.Call{}))
	for what, change := range map[string]func(in *client.CloneJoin){
		"address":        func(in *client.CloneJoin) { in.Address = "https://elsewhere.test" },
		"names":          func(in *client.CloneJoin) { in.Names = []string{"dns:elsewhere.test"} },
		"database login": func(in *client.CloneJoin) { in.DatabaseCSR = a.machine("x", &client.CloneToken{}).in.CSR },
	} {
		in := m.in
		in.Secret = a.invite().Secret
		change(&in)
		other, err := a.Clones.Join(ctx, in)
		must(t, err)
		_, err = a.Clones.Approve(ctx, a.admin, "n2", client.CloneApproval{Fingerprint: waits.Fingerprint})
		refused(t, err, fault.Conflict, waits.Fingerprint, "begins with "+other.Fingerprint[:8])
		must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Force: true}, once.Call{}))
		t.Logf("%s: %s", what, other.Fingerprint)
	}
}
