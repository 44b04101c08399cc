package trust_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestOwnRecipeAnnouncesWhereItsOrderSaysSo: who is pinned is let in, so the word of a host that its own recipe announces is not
// enough, and the purpose is that of the order.
func TestOwnRecipeAnnouncesWhereItsOrderSaysSo(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		m := a.join(client.AddHostRequest{Name: "one", Placements: []client.PlacementOrder{{Name: "own", Recipe: "local/x"}}})
		c := a.issue(m)
		announces := func() {
			t.Helper()
			a.report(m, client.Observation{Placement: "own", State: client.PlacementPending, Message: fmt.Sprint(time.Now()), Announced: []string{encode(c.DER)}})
		}
		pinned := func(purpose string) bool {
			d := a.desired(m)
			return slices.ContainsFunc(append(d.TrustSets, d.Trust), func(s client.TrustSet) bool {
				return (s.Purpose == purpose || s.Purpose == "" && purpose == client.TrustGeneral) && slices.Contains(s.Pinned, encode(c.DER))
			})
		}
		announces()
		said := must[*client.Host](t)(a.Hosts.Show(t.Context(), operator, "one")).Placements[0].Observed.Message
		if pinned(client.TrustGeneral) || !strings.Contains(said, "pinned=true") {
			t.Errorf("it is pinned, or nothing is said: %q", said)
		}
		must[*client.Host](t)(a.Hosts.Set(t.Context(), operator, "one", client.ChangeHostRequest{Placements: &[]client.PlacementOrder{
			{Name: "own", Recipe: "local/x", Parameters: map[string]string{"pinned": "true", "purpose": "vpn"}},
		}}, ""))
		announces()
		if pinned(client.TrustGeneral) || !pinned("vpn") {
			t.Error("the order says that peers pin it for vpn, and they are not told so, or for more")
		}
	})
}

// TestNoMoreArePinnedThanReportsHold: what a report has no room for would never be released. The placement too many is refused when
// it is ordered, and the certificate too many is not passed on, and that is said.
func TestNoMoreArePinnedThanReportsHold(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		var err error
		for n := 0; err == nil && n <= trust.MostAnnouncing; n += 50 {
			var orders []client.PlacementOrder
			for i := range 50 {
				orders = append(orders, client.PlacementOrder{Name: fmt.Sprintf("p%d", i), Recipe: "local/x", Parameters: map[string]string{"pinned": "true", "purpose": "vpn"}})
			}
			if n == trust.MostAnnouncing {
				orders = orders[:1]
			}
			_, err = a.Hosts.Add(t.Context(), operator, client.AddHostRequest{Name: fmt.Sprintf("h%d", n), Placements: orders}, "")
			if err != nil && n < trust.MostAnnouncing {
				t.Fatal(err)
			}
		}
		refused(t, err, fault.TooLarge, "of 401 placements for purpose vpn; at most 400 pass")

		m := a.join(client.AddHostRequest{Name: "one", Placements: []client.PlacementOrder{tunnel("lan")}})
		first, second := a.issue(m), a.issue(m)
		check(t, a.tx(func(tx *db.Tx) error {
			for i := range trust.MostPinned - 1 {
				_, err := tx.Exec(t.Context(), `INSERT INTO trust_pinned (host, placement, serial, pool, purpose, fingerprint, certificate, not_after, state, created_at)
					VALUES ('other', 'p', $1, 'default', 'lan', $2, $3, $4, 'placed', 1)`, fmt.Sprint(i), fmt.Sprintf("%064x", i), first.DER, db.Micros(first.NotAfter))
				if err != nil {
					return err
				}
			}
			return nil
		}))
		a.report(m, client.Observation{Placement: "tunnel", State: client.PlacementPending, Announced: []string{encode(first.DER), encode(second.DER)}})
		released := a.desired(m).Placements[0].Released
		if len(released) != 1 || released[0] != cert.FormatSerial(first.Serial) {
			t.Errorf("released: %q", released)
		}
		a.report(m, client.Observation{Placement: "tunnel", State: client.PlacementPlaced, Serial: released[0], Announced: []string{encode(second.DER)}})
		said := must[*client.Host](t)(a.Hosts.Show(t.Context(), operator, "one")).Placements[0].Observed.Message
		if !strings.Contains(said, "1000 are pinned") {
			t.Errorf("host show says %q", said)
		}
	})
}
