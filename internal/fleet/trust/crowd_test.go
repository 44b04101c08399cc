package trust_test

import (
	"context"
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

// TestWhoHoldsWhatIsReadWhereSomethingChanged: not each second, of all hosts, while one of them is away.
func TestWhoHoldsWhatIsReadWhereSomethingChanged(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		reads, lacking := 0, a.Trust.Lacking
		var both [2]*peer
		for i := range both {
			both[i] = &peer{machine: a.join(client.AddHostRequest{Name: fmt.Sprintf("h%d", i), Placements: []client.PlacementOrder{tunnel("vpn")}})}
			a.says(both[i], "")
		}
		next := a.issue(both[0].machine)
		a.says(both[0], "", next)
		a.Trust.Lacking = func(ctx context.Context, tx *db.Tx, p trust.Pinning, limit int) (map[string][]trust.Presented, error) {
			reads++
			return lacking(ctx, tx, p, limit)
		}
		begun := time.Now()
		looks := func(after time.Duration, want int) {
			t.Helper()
			if check(t, a.Trust.Release(t.Context(), begun.Add(after))); reads != want {
				t.Errorf("after %s: read %d times, want %d", after, reads, want)
			}
		}
		looks(0, 1)
		looks(time.Second, 1)
		looks(2*time.Second, 1)
		looks(time.Minute, 2)
		a.takes(both[1], "vpn")
		a.says(both[1], "")
		looks(time.Minute, 3)
		if n := len(a.desired(both[0].machine).Placements[0].Released); n != 1 {
			t.Errorf("%d are released", n)
		}
	})
}
