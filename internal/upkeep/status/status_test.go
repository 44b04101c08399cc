package status_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authoritytest"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/status"
)

// TestStatus looks at an authority as init makes it, with offline roots and no public URL, now and in years.
func TestStatus(t *testing.T) {
	s, _ := authoritytest.Init(t, setup.Options{Passphrase: []byte("correct horse battery staple")})
	now := time.Now()
	look := func(at time.Time) *status.Status {
		t.Helper()
		st, err := status.Of(t.Context(), s, at)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	warns := func(st *status.Status, what string) bool {
		return slices.ContainsFunc(st.Warnings, func(w string) bool { return strings.Contains(w, what) })
	}
	fresh := look(now)
	if len(fresh.Issuers) != 4 || len(fresh.Expiring) != 4 || fresh.Clock != nil || fresh.Schema == 0 {
		t.Fatalf("status %+v", fresh)
	}
	if !warns(fresh, "public_url") || !warns(fresh, "issuer default has no CRL") || warns(fresh, "offline") {
		t.Fatalf("at once: %q", fresh.Warnings)
	}
	admin := access.System("test")
	if _, err := s.Trust.Add(t.Context(), admin, "default", client.AddTrustRequest{PEM: foreign(t, now.AddDate(0, 0, 40))}, once.Call{}); err != nil {
		t.Fatal(err)
	}
	if st := look(now.AddDate(0, 0, 9)); warns(st, "Foreign") {
		t.Errorf("31 days before its end: %q", st.Warnings)
	}
	for _, c := range []struct {
		days int
		says string
	}{
		{11, `the trust anchor "CN=Foreign" of pool default ends on`}, {350, "its key is offline"}, {401, "the CRL of issuer default-root is stale"}, {365 * 30, "issuer identity ended"},
	} {
		if st := look(now.AddDate(0, 0, c.days)); !warns(st, c.says) {
			t.Errorf("after %d days: %q", c.days, st.Warnings)
		}
	}
}

// foreign is a root of somebody else's.
func foreign(t *testing.T, end time.Time) string {
	t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	r, err := root.New(root.Options{Subject: cert.CommonName("Foreign"), Validity: end.Sub(now)}, key, now)
	if err != nil {
		t.Fatal(err)
	}
	return string(keyfile.EncodeCertificates(r.Certificate))
}
