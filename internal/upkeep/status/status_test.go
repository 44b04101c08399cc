package status_test

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/status"
)

// TestStatus looks at an authority as init makes it, with offline roots and no public URL, now and in years.
func TestStatus(t *testing.T) {
	dir := datadir.Dir(filepath.Join(t.TempDir(), "d"))
	_, err := setup.Init(t.Context(), setup.Options{Dir: dir, Passphrase: []byte("correct horse battery staple")})
	if err != nil {
		t.Fatal(err)
	}
	config, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	s, err := setup.Open(t.Context(), dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.DB.Close()
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
	for _, c := range []struct {
		days int
		says string
	}{
		{350, "its key is offline"}, {401, "the CRL of issuer default-root is stale"}, {365 * 30, "issuer identity ended"},
	} {
		if st := look(now.AddDate(0, 0, c.days)); !warns(st, c.says) {
			t.Errorf("after %d days: %q", c.days, st.Warnings)
		}
	}
}
