package trust_test

import (
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestCheckSeesWhatWasChanged changes rows as somebody would who can write to the database, and is told of each.
func TestCheckSeesWhatWasChanged(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		root, other := forge(t, "Foreign", nil), forge(t, "Other", nil)
		entry := a.add(root.pem())[0]
		check(t, a.Trust.AddCRL(ctx, admin, pool.Default, entry.ID, root.list(t, 1, time.Now().Add(-time.Hour), 24*time.Hour), once.Call{}))
		m := a.join(client.AddHostRequest{Name: "one", Placements: []client.PlacementOrder{tunnel("vpn")}})
		a.says(&peer{machine: m}, "", a.issue(m))
		a.verified()
		of := func(issuer string) []byte { return must[*ca.Issuer](t)(a.CA.Issuer(ctx, issuer)).Certificate.Raw }
		for _, c := range []struct {
			says, change string
			args         []any
			back         string
			backArgs     []any
		}{
			{"its fingerprint is not", "UPDATE trust_entry SET certificate = $1 WHERE id = $2", []any{other.Raw, entry.ID},
				"UPDATE trust_entry SET certificate = $1 WHERE id = $2", []any{root.Raw, entry.ID}},
			{"its CRL:", "UPDATE trust_entry SET certificate = $1 WHERE id = $2", []any{other.Raw, entry.ID},
				"UPDATE trust_entry SET certificate = $1 WHERE id = $2", []any{root.Raw, entry.ID}},
			{`key of issuer "lab-root" of pool "lab"`, "UPDATE trust_entry SET certificate = $1 WHERE id = $2", []any{of("lab-root"), entry.ID},
				"UPDATE trust_entry SET certificate = $1 WHERE id = $2", []any{root.Raw, entry.ID}},
			{"it is no issuer", "UPDATE trust_entry SET kind = 'issuer' WHERE id = $1", []any{entry.ID},
				"UPDATE trust_entry SET kind = 'anchor' WHERE id = $1", []any{entry.ID}},
			{"is a CA certificate", "UPDATE trust_entry SET kind = 'pinned' WHERE id = $1", []any{entry.ID},
				"UPDATE trust_entry SET kind = 'anchor' WHERE id = $1", []any{entry.ID}},
			{"it ends at", "UPDATE trust_entry SET not_after = not_after + 60000000 WHERE id = $1", []any{entry.ID},
				"UPDATE trust_entry SET not_after = not_after - 60000000 WHERE id = $1", []any{entry.ID}},
			{"the versions from", "UPDATE trust_entry SET from_version = from_version + 9000000000000 WHERE id = $1", []any{entry.ID},
				"UPDATE trust_entry SET from_version = from_version - 9000000000000 WHERE id = $1", []any{entry.ID}},
			{"is not the certificate of issuer", "UPDATE trust_entry SET issuer = 'x' WHERE id = $1", []any{entry.ID},
				"UPDATE trust_entry SET issuer = '' WHERE id = $1", []any{entry.ID}},
			{"its version is 1", "UPDATE trust_pool SET version = version + 9000000000000 WHERE pool = 'default'", nil,
				"UPDATE trust_pool SET version = version - 9000000000000 WHERE pool = 'default'", nil},
			{"its CRL cannot be read", "UPDATE trust_crl SET der = $1", []any{[]byte{1}},
				"UPDATE trust_crl SET der = $1", []any{root.list(t, 1, time.Now().Add(-time.Hour), 24*time.Hour)}},
			{"the announced certificate", "UPDATE trust_pinned SET serial = '01'", nil, "DELETE FROM trust_pinned", nil},
		} {
			a.exec(c.change, c.args...)
			found := ""
			_, err := a.Trust.Check(ctx, func(f trust.Finding) bool { found += f.Message + "\n"; return true })
			check(t, err)
			if !strings.Contains(found, c.says) {
				t.Errorf("%s: found %q", c.says, found)
			}
			a.exec(c.back, c.backArgs...)
		}
		a.verified()
	})
}
