package status_test

import (
	"crypto"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authoritytest"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/status"
)

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestBudget has one thing after another be the first to end, up to when all is over.
func TestBudget(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		s := opened(t, url)
		now := time.Now()
		look := func(at time.Time) *status.Budget {
			t.Helper()
			return must[*status.Budget](t)(status.BudgetOf(t.Context(), s, at))
		}
		first := func(what string, left time.Duration) {
			t.Helper()
			b := look(now)
			got, end, ok := b.Left(now)
			if !ok || !strings.Contains(end.What, what) || got.Round(time.Minute) != left {
				t.Errorf("it could be down for %s, until %q ends, and not for %s until %q: %+v", got, end.What, left, what, b.Ends)
			}
			if !slices.IsSortedFunc(b.Ends, func(x, y status.End) int { return x.At.Compare(y.At) }) {
				t.Errorf("not in order: %+v", b.Ends)
			}
		}
		kinds := func(at time.Time) (all []status.Kind) {
			for _, e := range look(at).Ends {
				all = append(all, e.Kind)
			}
			slices.Sort(all)
			return all
		}
		serves := must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
		must[*ca.Certificate](t)(s.Identity.Serve(t.Context(), "node1", serves.Public(), []string{"dns:localhost"}))
		if b := look(now); !slices.ContainsFunc(b.Ends, func(e status.End) bool { return e.What == "the TLS certificate of node node1" }) {
			t.Errorf("the node is not named: %+v", b)
		}
		want := []status.Kind{status.EndIssuer, status.EndNode, status.EndOperator, status.EndCRL} // of an authority as init makes it; the roots have CRLs
		if got := kinds(now); !slices.Equal(got, want) {
			t.Errorf("at once %q end, not %q", got, want)
		}
		host := joined(t, s, "web1.example.com")
		first("", look(now).Ends[0].At.Sub(now).Round(time.Minute))
		exec(t, s.DB, `UPDATE host SET identity_ends = $1 WHERE name = $2`, db.Micros(now.Add(-29*24*time.Hour-22*time.Hour)), host)
		first("the identity of the agent of host "+host, 2*time.Hour)
		exec(t, s.DB, `UPDATE host_placement SET crl_ends = $1`, db.Micros(now.Add(time.Hour)))
		first("a CRL of placement plain of host "+host, time.Hour)
		exec(t, s.DB, `UPDATE host_placement SET not_after = $1`, db.Micros(now.Add(30*time.Minute)))
		first("the certificate of placement plain of host "+host, 30*time.Minute)
		exec(t, s.DB, `UPDATE host_placement SET not_after = $1`, db.Micros(now.Add(-time.Minute)))
		first("a CRL of placement plain of host "+host, time.Hour) // what has ended hides nothing
		ended := func(what ...string) {
			t.Helper()
			var got []string
			for _, e := range look(now).Ended {
				got = append(got, e.What)
			}
			if !slices.Equal(got, what) {
				t.Errorf("%q have ended, and not %q", got, what)
			}
		}
		ended("the certificate of placement plain of host " + host)
		exec(t, s.DB, `UPDATE crl SET next_update = $1`, db.Micros(now.Add(10*time.Minute)))
		first("the CRL of issuer ", 10*time.Minute)
		exec(t, s.DB, `INSERT INTO crl (id, issuer, scope, state, number, base, this_update, next_update, change, scheduled, entries, size, head, tail)
			SELECT 'd', id, 'delta', 'current', '2', '1', 0, $1, 0, 0, 0, 0, $2, $2 FROM issuer WHERE name = 'default'`, db.Micros(now.Add(8*time.Minute)), []byte{})
		first("the CRL of issuer ", 10*time.Minute) // the issuer makes none any more
		must[*ca.Issuer](t)(s.CA.SetCRLMode(t.Context(), admin, "default", ca.CRLMode{Validity: 7 * 24 * time.Hour, Refresh: 24 * time.Hour, Delta: true}, once.Call{}))
		first("the delta CRL of issuer default", 8*time.Minute)
		exec(t, s.DB, `DELETE FROM crl WHERE scope = 'delta'`)
		set := *must[*settings.Settings](t)(s.Settings.Get(t.Context()))
		set.PublicURL, set.OCSP.Validity = "http://ca.example.com", settings.Duration(5*time.Minute)
		must[*settings.Settings](t)(s.Settings.Set(t.Context(), "test", set, once.Call{}))
		if b := look(now); !b.Caches.Equal(now.Add(5 * time.Minute)) {
			t.Errorf("answers in caches are good until %s", b.Caches)
		}
		first("the CRL of issuer ", 10*time.Minute) // new answers fail at once, so those in caches are no end that counts
		exec(t, s.DB, `INSERT INTO ocsp_responder (id, issuer, key_id, certificate, not_before, not_after) SELECT 'r', id, '', $1, 0, $2 FROM issuer WHERE name = 'default'`,
			[]byte{0x30}, db.Micros(now.Add(3*time.Minute)))
		first("the certificate of the OCSP responder of issuer default", 3*time.Minute)
		exec(t, s.DB, `UPDATE ocsp_responder SET not_after = $1`, db.Micros(now.Add(-3*time.Minute)))
		exec(t, s.DB, `UPDATE crl SET next_update = $1`, db.Micros(now.Add(-2*time.Minute)))
		exec(t, s.DB, `UPDATE host_placement SET crl_ends = $1`, db.Micros(now.Add(-4*time.Minute)))
		b := look(now)
		if len(b.Ended) != 4 || b.Ended[0].Kind != status.EndPlacedCRL || b.Ended[1].Kind != status.EndResponder || b.Ended[2].Kind != status.EndCRL || b.Ended[3].Kind != status.EndPlaced {
			t.Errorf("what has ended is %+v", b.Ended)
		}
		if err := s.Hosts.Remove(t.Context(), admin, host, "", ""); err != nil {
			t.Fatal(err)
		}
		for _, e := range slices.Concat(look(now).Ends, look(now).Ended) {
			if strings.Contains(e.What, host) {
				t.Errorf("a host that was removed counts: %+v", e)
			}
		}
		if got := look(now.AddDate(100, 0, 0)); len(got.Ends) != 0 {
			t.Errorf("in a hundred years: %+v", got)
		}
	})
}

var admin = access.Principal{ID: "ada", Name: "ada", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}

// opened is an authority that init made on an engine.
func opened(t *testing.T, url string) *setup.Services {
	t.Helper()
	s, _ := authoritytest.Init(t, setup.Options{DatabaseFile: authoritytest.DatabaseFile(t, url), Passphrase: []byte("correct horse battery staple")})
	return s
}

// joined is a host with a placement, as which a machine has joined.
func joined(t *testing.T, s *setup.Services, name string) string {
	t.Helper()
	token := must[*client.HostToken](t)(s.Hosts.Add(t.Context(), admin, client.AddHostRequest{
		Name: name, Placements: []client.PlacementOrder{{Recipe: "plain", Parameters: map[string]string{"key": "/etc/ssl/x.key", "cert": "/etc/ssl/x.pem"}}},
	}, ""))
	key := must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
	der := must[[]byte](t)(cert.CreateCSR(&cert.CSRTemplate{}, key))
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	must[*client.Joined](t)(s.Hosts.Join(t.Context(), client.JoinRequest{Token: token.Token, CSR: csr, Agent: "test"}))
	return name
}

// exec changes rows as time would.
func exec(t *testing.T, d *db.DB, query string, args ...any) {
	t.Helper()
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), query, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
